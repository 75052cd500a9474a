/** Which members keep a timeline's WAL, and how that set is changed (docs/protocols/membership.md).
 *
 *  Invariants:
 *  - A configuration is named by its generation: no two configurations of one generation differ. The Manager gives generations out by
 *    compare-and-swap; a member only ever moves to a higher one.
 *  - While `newMembers` is set the configuration is joint: elections, adoptions and commits need a majority of both sets.
 *  - From one set of members to another only through the joint configuration of the two, and out of that one only when {@link finishProblem}
 *    finds nothing (or back to the old set, at any time).
 *  - A member is an identity, not a machine: one that lost its data joins again under another id. */
import { LakebaseError } from '@lakebase/base';
import type { Term } from '@lakebase/ids';
import type { MemberPosition } from './types.ts';

export interface Configuration {
  /** 0: the members every process was started with; nobody has configured this timeline yet. */
  readonly generation: number;
  readonly members: readonly string[];
  /** Set while joint: who the members shall be. */
  readonly newMembers: readonly string[] | null;
}

/** Bound on what we accept from a peer or a file. */
export const MEMBERS_MAX = 16;
const MEMBER_ID = /^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$/;

const invalid = (why: string): LakebaseError => new LakebaseError('INVALID_ARGUMENT', `not a configuration: ${why}`);

export function validateConfiguration(configuration: Configuration): Configuration {
  const { generation, members, newMembers } = configuration;
  if (!Number.isSafeInteger(generation) || generation < 0) throw invalid(`generation ${generation}`);
  for (const set of newMembers === null ? [members] : [members, newMembers]) {
    if (set.length === 0 || set.length > MEMBERS_MAX) throw invalid(`${set.length} members, between 1 and ${MEMBERS_MAX} expected`);
    if (new Set(set).size !== set.length) throw invalid('a member is named twice');
    for (const id of set) if (!MEMBER_ID.test(id)) throw invalid(`${JSON.stringify(id)} is not the id of a member`);
  }
  return configuration;
}

/** The members every process was started with, for a timeline that nobody has configured yet. */
export const staticConfiguration = (members: readonly string[]): Configuration => ({ generation: 0, members, newMembers: null });

/** Everybody who takes part: both sets while joint. */
export const votersOf = ({ members, newMembers }: Configuration): readonly string[] =>
  newMembers === null ? members : [...members, ...newMembers.filter((id) => !members.includes(id))];

export const majorityOf = (members: readonly unknown[]): number => Math.floor(members.length / 2) + 1;

const setsOf = ({ members, newMembers }: Configuration): readonly (readonly string[])[] =>
  newMembers === null ? [members] : [members, newMembers];

/** Do these members suffice to elect and to commit? */
export function isQuorum(configuration: Configuration, ids: Iterable<string>): boolean {
  const present = new Set(ids);
  return setsOf(configuration).every((set) => set.filter((id) => present.has(id)).length >= majorityOf(set));
}

/** The highest LSN that a quorum has reached; undefined when no quorum has told one. */
export function quorumLsn(configuration: Configuration, lsns: ReadonlyMap<string, number>): number | undefined {
  let reached: number | undefined;
  for (const set of setsOf(configuration)) {
    const known = set.map((id) => lsns.get(id)).filter((lsn) => lsn !== undefined);
    const lsn = known.sort((a, b) => b - a)[majorityOf(set) - 1];
    if (lsn === undefined) return undefined;
    reached = Math.min(reached ?? lsn, lsn);
  }
  return reached;
}

const sameSet = (a: readonly string[] | null, b: readonly string[] | null): boolean =>
  a === b || (a !== null && b !== null && a.length === b.length && a.every((id) => b.includes(id)));

export const sameConfiguration = (a: Configuration, b: Configuration): boolean =>
  a.generation === b.generation && sameSet(a.members, b.members) && sameSet(a.newMembers, b.newMembers);

/** How `theirs`, which came with a message, stands to the configuration this member holds. Throws CONFLICT for the same generation
 *  with other members: then generations were given out twice, and following either of the two could split the quorum. */
export function compareConfigurations(own: Configuration, theirs: Configuration): 'older' | 'same' | 'newer' {
  if (theirs.generation !== own.generation) return theirs.generation < own.generation ? 'older' : 'newer';
  if (sameConfiguration(own, theirs)) return 'same';
  throw new LakebaseError(
    'CONFLICT',
    `two configurations of generation ${own.generation}: ${describeConfiguration(own)} here, ${describeConfiguration(theirs)} there`,
  );
}

export function describeConfiguration({ generation, members, newMembers }: Configuration): string {
  return `${generation}: ${members.join(',')}${newMembers === null ? '' : ` -> ${newMembers.join(',')}`}`;
}

// ---- changing it

/** First step: the joint configuration in which `leaving` gives its place to `joining`. */
export function beginReplacement(current: Configuration, leaving: string, joining: string): Configuration {
  if (current.newMembers !== null) throw new LakebaseError('CONFLICT', `a change is under way: ${describeConfiguration(current)}`);
  if (!current.members.includes(leaving)) throw new LakebaseError('NOT_FOUND', `${leaving} is not a member`);
  if (current.members.includes(joining)) throw new LakebaseError('ALREADY_EXISTS', `${joining} is a member already`);
  const newMembers = current.members.map((id) => (id === leaving ? joining : id));
  return validateConfiguration({ generation: current.generation + 1, members: current.members, newMembers });
}

/** Last step. Only when {@link finishProblem} finds nothing. */
export function finishReplacement(joint: Configuration): Configuration {
  if (joint.newMembers === null) throw new LakebaseError('CONFLICT', 'no change is under way');
  return { generation: joint.generation + 1, members: joint.newMembers, newMembers: null };
}

/** Back to the old members. Allowed at any time: all that was elected or committed meanwhile has a majority of them. */
export function abortReplacement(joint: Configuration): Configuration {
  if (joint.newMembers === null) throw new LakebaseError('CONFLICT', 'no change is under way');
  return { generation: joint.generation + 1, members: joint.members, newMembers: null };
}

const isBehind = (a: MemberPosition, b: MemberPosition): boolean =>
  a.lastLogTerm !== b.lastLogTerm ? a.lastLogTerm < b.lastLogTerm : a.flushRecordLsn < b.flushRecordLsn;

/** What a member tells the driver of a change. */
export interface MemberReport extends MemberPosition {
  /** It has lost WAL: what it holds says nothing about what was committed. */
  readonly damaged: boolean;
}

/** Why a joint configuration may not be left for its new members yet; null when it may. Reports of damaged members
 *  and of members that do not hold the joint configuration do not count.
 *  While a compute writes nobody has all that another one tells at the same moment: the old members' reports may be `earlier` ones.
 *  - A majority of the old set must hold the joint configuration: from then on the old set alone elects and commits nothing, and what it had
 *    committed is in the most advanced of their logs.
 *  - A majority of the new set must hold all of that log and no lower term. The log, or the new set could elect a leader without something
 *    committed. The term, or it could grant a term again that the old set has granted already. */
export function finishProblem(
  joint: Configuration,
  reports: ReadonlyMap<string, MemberReport>,
  earlier: ReadonlyMap<string, MemberReport> = reports,
): string | null {
  const { members, newMembers, generation } = joint;
  if (newMembers === null) return 'no change is under way';
  const told = (set: readonly string[], from: ReadonlyMap<string, MemberReport>): MemberReport[] =>
    set.map((id) => from.get(id)).filter((p) => p !== undefined && p.generation >= generation && !p.damaged) as MemberReport[];
  const old = told(members, earlier);
  if (old.length < majorityOf(members)) return `${old.length} of ${members.length} old members hold generation ${generation}`;
  const term = Math.max(...old.map((p) => p.term)) as Term;
  const goal = old.reduce((best, p) => (isBehind(best, p) ? p : best));
  const ready = told(newMembers, reports).filter((p) => p.term >= term && !isBehind(p, goal));
  if (ready.length >= majorityOf(newMembers)) return null;
  return `${ready.length} of ${newMembers.length} new members have caught up`;
}

// ---- what stock Postgres is told

/** `ANY count (names)` of synchronous_standby_names. */
export interface StandbyRule {
  readonly count: number;
  readonly names: readonly string[];
}

/** Machine a member lives on: `sk3` for the member `sk3`, and for `sk3_g7`, which joined anew in generation 7. */
export const nodeOf = (member: string): string => member.replace(/_g[0-9]+$/, '');
export const memberIdOf = (node: string, generation: number): string => `${node}_g${generation}`;

/** The rules stock Postgres can express whose every satisfying set is a quorum. Outside a change: one, exact. While one member of n is being replaced
 *  (q = majority of n): *q of the n-1 common members*, or *q+1 of all n+1*. Each is safe alone, and a set is a quorum exactly when it satisfies one
 *  of the two (configuration.test.ts proves both by enumeration), so a compute may switch between them at any moment: the first when a
 *  replaced member is dead and its successor still copies, the second when a common member is away. */
export function standbyRules(configuration: Configuration): readonly StandbyRule[] {
  const { members, newMembers } = configuration;
  const count = majorityOf(members);
  if (newMembers === null) return [{ count, names: members }];
  const common = members.filter((id) => newMembers.includes(id));
  if (newMembers.length !== members.length || common.length !== members.length - 1)
    throw new LakebaseError('UNSUPPORTED', 'Postgres can wait for both majorities only while one member is being replaced');
  const all: StandbyRule = { count: count + 1, names: votersOf(configuration) };
  return common.length >= count ? [{ count, names: common }, all] : [all];
}

/** The rule to wait by while these members stream. */
export function chooseRule(configuration: Configuration, streaming: ReadonlySet<string>): StandbyRule {
  const rules = standbyRules(configuration);
  const satisfied = rules.find((rule) => rule.names.filter((id) => streaming.has(id)).length >= rule.count);
  return satisfied ?? (rules[0] as StandbyRule);
}

// ---- text

export interface ConfigurationText {
  readonly generation: number;
  readonly members: readonly string[];
  readonly newMembers: readonly string[] | null;
}

/** Checks everything: the value comes from another process. */
export function configurationFromJson(value: unknown): Configuration {
  const { generation, members, newMembers } = (value ?? {}) as Partial<Record<keyof ConfigurationText, unknown>>;
  const ids = (set: unknown): string[] => {
    if (!Array.isArray(set) || set.length > MEMBERS_MAX || set.some((id) => typeof id !== 'string')) throw invalid('members must be ids');
    return set as string[];
  };
  if (typeof generation !== 'number') throw invalid('generation must be a number');
  return validateConfiguration({
    generation,
    members: ids(members),
    newMembers: newMembers === null || newMembers === undefined ? null : ids(newMembers),
  });
}
