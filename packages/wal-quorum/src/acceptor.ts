/** One member's side of the election: what it may grant, adopt and stream. Pure: the safekeeper does the I/O in the order given here.
 *
 *  Invariants the caller must keep, all under one lock per timeline:
 *  - First of all, when a request carries a newer configuration: persist it and drop streams of lower generations.
 *  - Vote: stop appending, flush, `handleVote` on the state after that flush, persist `next`, then answer; drop streams of lower terms.
 *  - Elected: `planElected`, then its steps in order: persist the term (drop streams of lower terms, flush), lower the flush hint, truncate durably,
 *    persist the history, copy and flush up to `copyTo`, only then answer. History after truncation: or old bytes would be named as the
 *    new term's. History before copying: or new bytes would be named as the old term's.
 *  - Every append checks `mayStream` (or `mayCopy`) again; a position is reported only after its fdatasync.
 *  - `term` and the generation never fall. A stream, a vote and an adoption belong to one generation: when it rises, they end. Nothing below `commitLsn` is ever truncated. */
import { LakebaseError, assert } from '@lakebase/base';
import { type Lsn, type Term, formatLsn } from '@lakebase/ids';
import { type Configuration, compareConfigurations, describeConfiguration, validateConfiguration, votersOf } from './configuration.ts';
import { commonPoint, lastLogTerm, validateHistory } from './history.ts';
import type { Elected, MemberPosition, TermHistory, Vote } from './types.ts';

/** A damaged member does not vote. `lost`: durable WAL is missing, promises are known. `rebuilt`: the control file is new, so promises are
 *  forgotten as well. */
export interface Damage {
  readonly kind: 'lost' | 'rebuilt';
  /** The member's term when the damage was found: what it acknowledged in that term may be gone, so only a later term repairs it. */
  readonly term: Term;
  /** For people. */
  readonly reason: string;
}

export interface AcceptorState {
  /** Who this member is in its timeline's configurations. Durable. */
  readonly self: string;
  /** The highest configuration known here; its generation never falls. Durable before any answer shows it. */
  readonly configuration: Configuration;
  /** Highest term granted or adopted. Durable before any answer shows it. */
  readonly term: Term;
  /** Describes the log; may name a term that begins beyond its end while it is being copied. Durable. */
  readonly history: TermHistory;
  /** End of durable bytes, possibly inside a record. */
  readonly flushLsn: Lsn;
  /** End of the last complete durable record: all votes and positions use this one. */
  readonly flushRecordLsn: Lsn;
  /** Start of that record. */
  readonly lastRecordLsn: Lsn;
  /** Known committed *and* present here: the limit of what is served to readers. Persisted lazily; never falls while running. */
  readonly commitLsn: Lsn;
  readonly damage: Damage | null;
}

/** How far readers may be served. A member that lost WAL may know of a commit beyond its own end. */
export const readableLsn = (state: AcceptorState): Lsn => Math.min(state.commitLsn, state.flushRecordLsn) as Lsn;

export const positionOf = (state: AcceptorState): MemberPosition => ({
  term: state.term,
  lastLogTerm: lastLogTerm(state.history, state.flushRecordLsn),
  flushRecordLsn: state.flushRecordLsn,
  generation: state.configuration.generation,
});

/** The vote of a member that has just persisted `state.term`. */
export const voteOf = (state: AcceptorState): Vote => ({
  voter: state.self,
  term: state.term,
  lastLogTerm: lastLogTerm(state.history, state.flushRecordLsn),
  flushRecordLsn: state.flushRecordLsn,
  lastRecordLsn: state.lastRecordLsn,
  commitLsn: state.commitLsn,
  termHistory: state.history,
});

/** Is this member one of its own configuration? A member that was replaced, or lost its place, takes no part any more. */
export const isVoter = (state: AcceptorState): boolean => votersOf(state.configuration).includes(state.self);

export type ConfigurationDecision =
  | { readonly kind: 'older'; readonly configuration: Configuration; readonly reason: string }
  | { readonly kind: 'same' }
  /** Persist `next` and drop streams of lower generations before anything else is done or answered. */
  | { readonly kind: 'newer'; readonly next: AcceptorState };

/** Every request carries the configuration its sender works by. A member refuses an older one, whose sender may count a majority that is none any
 *  more, and takes over a newer one: who gives out generations has made sure that it may be followed. */
export function handleConfiguration(state: AcceptorState, configuration: Configuration): ConfigurationDecision {
  const order = compareConfigurations(state.configuration, validateConfiguration(configuration));
  if (order === 'newer') return { kind: 'newer', next: { ...state, configuration } };
  if (order === 'same') return { kind: 'same' };
  const reason = `configuration ${configuration.generation} is over: ${describeConfiguration(state.configuration)}`;
  return { kind: 'older', configuration: state.configuration, reason };
}

export type VoteDecision =
  | { readonly granted: true; readonly next: AcceptorState }
  /** `configuration` is set when the candidate works by an older one. */
  | { readonly granted: false; readonly term: Term; readonly reason: string; readonly configuration?: Configuration };

/** A term is granted once, to whoever asks first; a candidate whose answer got lost asks again with a higher term. The state given has the
 *  candidate's configuration already if that was newer ({@link handleConfiguration}). */
export function handleVote(state: AcceptorState, term: Term, configuration: Configuration): VoteDecision {
  const decision = handleConfiguration(state, configuration);
  if (decision.kind === 'newer') return handleVote(decision.next, term, configuration);
  if (decision.kind === 'older')
    return { granted: false, term: state.term, reason: decision.reason, configuration: decision.configuration };
  if (!isVoter(state)) return { granted: false, term: state.term, reason: notAMember(state) };
  if (state.damage !== null) {
    return {
      granted: false,
      term: state.term,
      reason: `damaged, does not vote until a later term has repaired it (${state.damage.reason})`,
    };
  }
  if (term <= state.term) return { granted: false, term: state.term, reason: `term ${state.term} is already granted` };
  return { granted: true, next: { ...state, term } };
}

const notAMember = (state: AcceptorState): string =>
  `${state.self} is no member of configuration ${describeConfiguration(state.configuration)}`;

export type ElectedPlan =
  | { readonly kind: 'refused'; readonly term: Term; readonly reason: string; readonly configuration?: Configuration }
  /** Already part of the term and complete: answer again. */
  | { readonly kind: 'adopted' }
  | {
      readonly kind: 'adopt';
      /** Step 1, when set: a term above the one held; persist it before anything else and fence lower streams. */
      readonly raiseTerm: Term | null;
      /** Step 2, when set: cut the log to end here, durably. */
      readonly truncateTo: Lsn | null;
      /** Step 3: persist. */
      readonly history: TermHistory;
      /** Step 4: copy [copyFrom, copyTo) from the donor; equal when nothing is missing. */
      readonly copyFrom: Lsn;
      readonly copyTo: Lsn;
    };

/** What adopting a term takes, for a member that holds the request's configuration: a newer one is taken over first ({@link handleConfiguration}). Throws CORRUPT rather than cut committed WAL: that would mean the protocol itself is broken. */
export function planElected(state: AcceptorState, request: Elected): ElectedPlan {
  checkElected(request);
  const { self, term: own } = state;
  const decision = handleConfiguration(state, request.configuration);
  if (decision.kind === 'older') return { kind: 'refused', term: own, reason: decision.reason, configuration: decision.configuration };
  assert(decision.kind === 'same', 'a newer configuration is taken over before anything is done by it');
  if (!isVoter(state)) return { kind: 'refused', term: own, reason: notAMember(state) };
  const memberCount = votersOf(state.configuration).length;
  if (request.term < state.term) return { kind: 'refused', term: state.term, reason: `term ${state.term} is newer` };
  if (state.damage?.kind === 'rebuilt' && (request.voters.includes(self) || request.voters.length < memberCount - 1)) {
    const reason = 'this member was rebuilt and has forgotten its promises: it joins only a term that all other members granted';
    return { kind: 'refused', term: state.term, reason };
  }
  const { termStartLsn, termHistory: history } = request;
  const raiseTerm = request.term > state.term ? request.term : null;
  if (raiseTerm === null && state.history.at(-1)?.term === request.term) {
    if (state.flushRecordLsn >= termStartLsn) return { kind: 'adopted' };
    // An earlier attempt got as far as step 3: all that is here, a partial record included, is a prefix of the donor's log.
    return { kind: 'adopt', raiseTerm, truncateTo: null, history, copyFrom: state.flushLsn, copyTo: termStartLsn };
  }
  const keep = Math.min(commonPoint(state.history, state.flushRecordLsn, history), termStartLsn) as Lsn;
  if (keep < readableLsn(state)) {
    throw new LakebaseError(
      'CORRUPT',
      `term ${request.term} would truncate committed WAL: cut at ${formatLsn(keep)}, committed up to ${formatLsn(state.commitLsn)}; ` +
        'the members of this timeline disagree about committed data, do not remove any of them',
    );
  }
  return { kind: 'adopt', raiseTerm, truncateTo: state.flushLsn > keep ? keep : null, history, copyFrom: keep, copyTo: termStartLsn };
}

function checkElected(request: Elected): void {
  const last = validateHistory(request.termHistory).at(-1);
  if (last === undefined || last.term !== request.term || last.startLsn !== request.termStartLsn) {
    throw new LakebaseError('INVALID_ARGUMENT', 'the term history must end with the elected term and its start LSN');
  }
}

/** The state after the last step; persist it when it differs. The log holds everything committed before the term: a term later than the
 *  damage repairs it. */
export function finishElected(state: AcceptorState, request: Elected): AcceptorState {
  assert(state.term === request.term, 'the term changed while it was being adopted');
  assert(state.configuration.generation === request.configuration.generation, 'the configuration changed while a term was being adopted');
  assert(state.flushRecordLsn >= request.termStartLsn, 'adopted before the copy was complete');
  const { damage } = state;
  if (damage === null || (damage.kind === 'lost' && damage.term >= request.term)) return state;
  return { ...state, damage: null };
}

/** May WAL of the compute of `term`, which counts by the configuration `generation`, be appended and acknowledged here? True only once the term is
 *  adopted up to its start LSN. */
export function mayStream(state: AcceptorState, term: Term, generation: number): boolean {
  const last = state.history.at(-1);
  const adopted = state.term === term && last?.term === term && state.flushRecordLsn >= last.startLsn;
  return adopted && state.configuration.generation === generation && isVoter(state) && state.damage?.kind !== 'rebuilt';
}

/** May bytes copied from a peer for `term` be appended here? The history of the term must be durable first. */
export const mayCopy = (state: AcceptorState, term: Term): boolean => state.term === term && state.history.at(-1)?.term === term;

/** May this member serve uncommitted WAL to a peer that adopts `term`? A donor that has granted a higher term may be about to lose what it
 *  promised. Checked for every chunk, after reading it. */
export const mayServePeer = (state: AcceptorState, term: Term): boolean => state.term === term;
