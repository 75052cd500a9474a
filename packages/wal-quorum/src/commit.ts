/** The commit LSN, computed by whoever needs it from the members' reports.
 *
 *  Invariants: never falls; WAL of an older term is never counted by itself (Raft, section 5.4.2). A member counts only while its term is the term
 *  of its last log entry, that is once it has adopted its term: bytes it is still copying belong to a term that a later leader may yet
 *  replace. Once a majority has adopted (n, X), everything up to X is committed with it. */
import type { Lsn } from '@lakebase/ids';
import { type AcceptorState, positionOf } from './acceptor.ts';
import { type Configuration, quorumLsn } from './configuration.ts';
import { lastLogTerm } from './history.ts';
import type { MemberPosition } from './types.ts';

export interface QuorumCommit {
  /** Term the quorum has adopted; 0 when there is none. */
  readonly term: number;
  readonly lsn: Lsn;
}

/** What a quorum has acknowledged in the highest term that a quorum has adopted. Reports may be of different ages, but only those made under this
 *  very configuration count: an older one may come from before a vote that this configuration no longer asks about, a newer one belongs to a
 *  quorum of its own (docs/protocols/membership.md). */
export function quorumCommit(positions: ReadonlyMap<string, MemberPosition>, configuration: Configuration): QuorumCommit {
  let best: QuorumCommit = { term: 0, lsn: 0 as Lsn };
  for (const { term } of positions.values()) {
    if (term <= best.term) continue;
    const acknowledged = new Map<string, number>();
    for (const [id, p] of positions)
      if (p.term === term && p.lastLogTerm === term && p.generation === configuration.generation) acknowledged.set(id, p.flushRecordLsn);
    const lsn = quorumLsn(configuration, acknowledged);
    if (lsn !== undefined) best = { term, lsn: lsn as Lsn };
  }
  return best;
}

/** For readers of the log (pageserver, offload): the commit LSN now known, never below `previous`. */
export function commitLsn(positions: ReadonlyMap<string, MemberPosition>, previous: Lsn, configuration: Configuration): Lsn {
  return Math.max(previous, quorumCommit(positions, configuration).lsn) as Lsn;
}

/** For a member: how far its *own* bytes are committed. A log whose last term is older than the quorum's may diverge, so it learns nothing. */
export function memberCommitLsn(state: AcceptorState, peers: ReadonlyMap<string, MemberPosition>): Lsn {
  const { term, lsn } = quorumCommit(new Map(peers).set(state.self, positionOf(state)), state.configuration);
  if (term === 0 || lastLogTerm(state.history, state.flushRecordLsn) < term) return state.commitLsn;
  return Math.max(state.commitLsn, Math.min(lsn, state.flushRecordLsn)) as Lsn;
}
