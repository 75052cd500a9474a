/** The commit LSN, computed by whoever needs it from the members' reports.
 *
 *  Invariants: never falls; WAL of an older term is never counted by itself (Raft, section 5.4.2). A member counts only while its term is the term
 *  of its last log entry, that is once it has adopted its term: bytes it is still copying belong to a term that a later leader may yet
 *  replace. Once a majority has adopted (n, X), everything up to X is committed with it. */
import type { Lsn } from '@lakebase/ids';
import { type AcceptorState, positionOf } from './acceptor.ts';
import { lastLogTerm } from './history.ts';
import type { MemberPosition } from './types.ts';

export interface QuorumCommit {
  /** Term the quorum has adopted; 0 when there is none. */
  readonly term: number;
  readonly lsn: Lsn;
}

/** What a quorum has acknowledged in the highest term that a quorum has adopted. Reports may be of different ages. */
export function quorumCommit(positions: readonly MemberPosition[], quorum: number): QuorumCommit {
  let best: QuorumCommit = { term: 0, lsn: 0 as Lsn };
  for (const { term } of positions) {
    if (term <= best.term) continue;
    const acknowledged = positions.filter((p) => p.term === term && p.lastLogTerm === term).map((p) => p.flushRecordLsn);
    if (acknowledged.length < quorum) continue;
    acknowledged.sort((a, b) => b - a);
    best = { term, lsn: acknowledged[quorum - 1] as Lsn };
  }
  return best;
}

/** For readers of the log (pageserver, offload): the commit LSN now known, never below `previous`. */
export function commitLsn(positions: readonly MemberPosition[], previous: Lsn, quorum = 2): Lsn {
  return Math.max(previous, quorumCommit(positions, quorum).lsn) as Lsn;
}

/** For a member: how far its *own* bytes are committed. A log whose last term is older than the quorum's may diverge, so it learns nothing. */
export function memberCommitLsn(state: AcceptorState, peers: readonly MemberPosition[], quorum = 2): Lsn {
  const { term, lsn } = quorumCommit([positionOf(state), ...peers], quorum);
  if (term === 0 || lastLogTerm(state.history, state.flushRecordLsn) < term) return state.commitLsn;
  return Math.max(state.commitLsn, Math.min(lsn, state.flushRecordLsn)) as Lsn;
}
