/** What may be done when a timeline has lost its quorum, decided from what is seen of its members (docs/protocols/wal-recovery.md).
 *  Invariants: nothing is given up while a majority of the old set is there; unasked only when every disk of it is gone; the configuration that comes
 *  next shares no identity with any before it. */
import type { Lsn, Term } from '@lakebase/ids';
import { type Configuration, majorityOf, memberIdOf, nodeOf, votersOf } from './configuration.ts';

/** `there`: it answers, with its data. `empty`: it answers and has never held anything. `disk lost`: its node answers on another disk. `data lost`: the
 *  disk is there and the timeline on it is not, or cannot be read. `damaged`: it has lost part. `silent`: nobody can say. */
export type MemberState = 'there' | 'empty' | 'disk lost' | 'data lost' | 'damaged' | 'silent';

/** What a member that answers tells of itself. */
export interface MemberHolding {
  readonly damaged: boolean;
  readonly term: Term;
  readonly historyEntries: number;
  readonly startLsn: Lsn;
  readonly flushLsn: Lsn;
}

/** `firstTerm`: that members of its lineage are made with. */
export function stateOfHolding({ damaged, term, historyEntries, startLsn, flushLsn }: MemberHolding, firstTerm: Term): MemberState {
  if (damaged) return 'damaged';
  return term > firstTerm || historyEntries > 0 || flushLsn > startLsn ? 'there' : 'empty';
}

export interface RecoveryVerdict {
  /** Every disk is gone for sure: it is done without being asked. */
  readonly unasked: boolean;
  /** Why it is not done, also when the loss is accepted; null: it may be done. */
  readonly refusal: string | null;
}

/** `states` of all voters; who is missing is silent. */
export function recoveryVerdict(configuration: Configuration, states: ReadonlyMap<string, MemberState>): RecoveryVerdict {
  const { members } = configuration;
  const stateOf = (id: string): MemberState => states.get(id) ?? 'silent';
  const alive = members.filter((id) => stateOf(id) === 'there' || stateOf(id) === 'empty');
  const joining = votersOf(configuration).filter((id) => !members.includes(id));
  const unasked =
    members.every((id) => stateOf(id) === 'disk lost') && joining.every((id) => stateOf(id) === 'disk lost' || stateOf(id) === 'empty');
  const answering = new Set(
    votersOf(configuration)
      .filter((id) => stateOf(id) !== 'silent')
      .map(nodeOf),
  );
  if (alive.length >= majorityOf(members)) {
    const refusal = `${alive.length} of ${members.length} members are there with their data: nothing is lost, and a lost one is replaced by itself`;
    return { unasked, refusal };
  }
  if (answering.size >= majorityOf(members)) return { unasked, refusal: null };
  const refusal = `only ${answering.size} of the safekeepers answer; ${majorityOf(members)} are needed, on empty disks if need be`;
  return { unasked, refusal };
}

/** A member that is left knows of committed WAL beyond `startLsn`, and is putting it into the object store. */
export function memberAhead<S extends { readonly state: MemberState; readonly commitLsn: Lsn | null; readonly offloads: boolean }>(
  members: readonly S[],
  startLsn: Lsn,
): S | undefined {
  return members.find(({ state, commitLsn, offloads }) => offloads && state !== 'empty' && commitLsn !== null && commitLsn > startLsn);
}

export interface RecoveredMember {
  readonly id: string;
  /** Its node does not answer: it is lost from the start, and replaced as any other. */
  readonly absent: boolean;
}

/** One new member for each old one: on its node when that answers, else on one of `nodes` that is free. */
export function recoveredMembers(
  configuration: Configuration,
  states: ReadonlyMap<string, MemberState>,
  nodes: readonly string[],
): RecoveredMember[] {
  const lineage = configuration.generation + 1;
  const silent = new Set(
    votersOf(configuration)
      .filter((id) => (states.get(id) ?? 'silent') === 'silent')
      .map(nodeOf),
  );
  const taken = new Set(configuration.members.map(nodeOf));
  const free = nodes.filter((id) => !taken.has(id) && !silent.has(id));
  return configuration.members.map((member) => {
    const node = nodeOf(member);
    const other = silent.has(node) ? free.shift() : undefined;
    return { id: memberIdOf(other ?? node, lineage), absent: silent.has(node) && other === undefined };
  });
}

/** The configuration that begins the next lineage, whose number is its generation. */
export const recoveredConfiguration = ({ generation }: Configuration, members: readonly RecoveredMember[]): Configuration => ({
  generation: generation + 1,
  members: members.map(({ id }) => id),
  newMembers: null,
});
