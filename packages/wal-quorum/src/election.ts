/** One candidacy for one term, run by the agent of a compute that is about to start. Sans-I/O: answers go in, actions come out.
 *
 *  Invariants: the donor is the most advanced of a majority of voters, so its log holds everything committed; `elected` goes out once, the same to
 *  all; the term is won when a majority has adopted it. After `won` the compute may start at startLsn; answers of the remaining members
 *  may still arrive and are counted. An Election is used for one term only: losing means a new one with a higher term. */
import { LakebaseError, assert } from '@lakebase/base';
import type { Lsn, Term } from '@lakebase/ids';
import { type Configuration, describeConfiguration, isQuorum, validateConfiguration, votersOf } from './configuration.ts';
import { appendTerm, historyUpTo, lastLogTerm, pruneHistory, validateHistory } from './history.ts';
import type { Elected, TermHistory, Vote } from './types.ts';

export interface ElectionWon {
  readonly term: Term;
  readonly startLsn: Lsn;
  readonly lastRecordLsn: Lsn;
  readonly history: TermHistory;
  readonly donor: string;
  readonly voters: readonly string[];
  /** At the moment of winning; `election.adopted` grows after it. */
  readonly adopted: readonly string[];
}

export type ElectionAction =
  | { readonly kind: 'elected'; readonly to: string; readonly request: Elected }
  | { readonly kind: 'won'; readonly result: ElectionWon }
  /** Not won: a member is at a higher term or holds a newer configuration, or no majority is left. `highestTerm` is what the next attempt must
   *  exceed, `configuration` what it must go by. */
  | { readonly kind: 'lost'; readonly highestTerm: Term; readonly configuration: Configuration; readonly reason: string }
  /** After winning: `member` is at a higher term and can never join this one. A compute that has not started yet should campaign again; a running one
   *  is safe but one member short until its next start, or about to be fenced. */
  | { readonly kind: 'outpaced'; readonly member: string; readonly highestTerm: Term };

export interface ElectionOptions {
  /** Whom to ask; while it is joint a majority of both sets must grant, and adopt. */
  readonly configuration: Configuration;
  readonly term: Term;
  /** Lowest commit LSN of *all* members, when all of them told theirs: the history is pruned below it. */
  readonly commitFloor?: Lsn;
}

export type ElectionPhase = 'voting' | 'electing' | 'won' | 'lost';

/** Term to campaign for, and how far the history may be pruned, from the status answers that came. */
export function planCandidacy(
  members: readonly string[],
  statuses: ReadonlyMap<string, { readonly term: Term; readonly commitLsn: Lsn }>,
): { term: Term; commitFloor: Lsn } {
  let term = 0;
  let floor = Number.MAX_SAFE_INTEGER;
  for (const id of members) {
    const status = statuses.get(id);
    term = Math.max(term, status?.term ?? 0);
    floor = Math.min(floor, status?.commitLsn ?? 0);
  }
  return { term: (term + 1) as Term, commitFloor: floor as Lsn };
}

/** The most advanced voter: last log term first, then the end of its last complete record; the first of equals. */
export function chooseDonor(votes: readonly Vote[]): Vote {
  return votes.reduce((best, vote) => (isAhead(vote, best) ? vote : best));
}

const isAhead = (a: Vote, b: Vote): boolean =>
  a.lastLogTerm !== b.lastLogTerm ? a.lastLogTerm > b.lastLogTerm : a.flushRecordLsn > b.flushRecordLsn;

export class Election {
  readonly term: Term;
  readonly configuration: Configuration;
  readonly #members: readonly string[];
  readonly #commitFloor: Lsn;
  readonly #votes = new Map<string, Vote>();
  readonly #refused = new Map<string, string>();
  readonly #adopted = new Set<string>();
  #highestTerm: Term;
  #newest: Configuration;
  #request: Elected | undefined;
  #phase: ElectionPhase = 'voting';

  constructor(options: ElectionOptions) {
    const { term } = options;
    this.configuration = validateConfiguration(options.configuration);
    this.#newest = this.configuration;
    assert(term > 0, 'term 0 is before the first election');
    this.term = term;
    this.#members = votersOf(this.configuration);
    this.#commitFloor = options.commitFloor ?? (0 as Lsn);
    this.#highestTerm = term;
  }

  get phase(): ElectionPhase {
    return this.#phase;
  }
  /** Members that have adopted the term so far. */
  get adopted(): readonly string[] {
    return [...this.#adopted];
  }
  /** What members were, or are to be, told; undefined while voting. */
  get request(): Elected | undefined {
    return this.#request;
  }

  /** A granted vote. Late votes are ignored: `elected` reaches their voters all the same. */
  onVote(vote: Vote): readonly ElectionAction[] {
    this.#known(vote.voter);
    if (vote.term !== this.term || this.#phase !== 'voting') return [];
    validateHistory(vote.termHistory);
    if (lastLogTerm(vote.termHistory, vote.flushRecordLsn) !== vote.lastLogTerm) {
      throw new LakebaseError('CORRUPT', `vote of ${vote.voter}: its last log term does not follow from its history`);
    }
    this.#refused.delete(vote.voter);
    this.#votes.set(vote.voter, vote);
    if (!isQuorum(this.configuration, this.#votes.keys())) return [];
    this.#phase = 'electing';
    const request = this.#elect([...this.#votes.values()]);
    this.#request = request;
    return this.#members.map((to) => ({ kind: 'elected', to, request }));
  }

  /** A refusal of the vote or of `elected`, or an answer given up on (pass no term). */
  onRefusal(
    member: string,
    refusal: { readonly term?: Term; readonly configuration?: Configuration; readonly reason: string },
  ): readonly ElectionAction[] {
    this.#known(member);
    const changed = refusal.configuration !== undefined && refusal.configuration.generation > this.configuration.generation;
    if (refusal.configuration !== undefined && refusal.configuration.generation > this.#newest.generation)
      this.#newest = refusal.configuration;
    if (refusal.term !== undefined && refusal.term > this.#highestTerm) this.#highestTerm = refusal.term;
    const outpaced = refusal.term !== undefined && refusal.term > this.term;
    if (this.#phase === 'lost') return [];
    if (this.#phase === 'won') return outpaced ? [{ kind: 'outpaced', member, highestTerm: this.#highestTerm }] : [];
    // A duplicate of a request of ours that was already granted.
    if (!outpaced && !changed && (this.#adopted.has(member) || (this.#phase === 'voting' && this.#votes.has(member)))) return [];
    this.#refused.set(member, refusal.reason);
    const left = this.#members.filter((id) => !this.#refused.has(id));
    if (!outpaced && !changed && isQuorum(this.configuration, left)) return [];
    this.#phase = 'lost';
    const why = [...this.#refused].map(([id, reason]) => `${id}: ${reason}`).join('; ');
    return [{ kind: 'lost', highestTerm: this.#highestTerm, configuration: this.#newest, reason: why }];
  }

  /** A member has adopted the term: its log is complete up to the start LSN and durable. */
  onElected(member: string, answer: { readonly term: Term; readonly flushRecordLsn: Lsn }): readonly ElectionAction[] {
    this.#known(member);
    const request = this.#request;
    if (answer.term !== this.term || request === undefined) return [];
    if (answer.flushRecordLsn < request.termStartLsn) {
      throw new LakebaseError('CORRUPT', `${member} claims to have adopted term ${this.term} with an incomplete log`);
    }
    this.#refused.delete(member);
    this.#adopted.add(member);
    if (this.#phase !== 'electing' || !isQuorum(this.configuration, this.#adopted)) return [];
    this.#phase = 'won';
    const { termStartLsn: startLsn, lastRecordLsn, termHistory: history, donor, voters } = request;
    return [{ kind: 'won', result: { term: this.term, startLsn, lastRecordLsn, history, donor, voters, adopted: this.adopted } }];
  }

  /** A refused or unanswered member is asked to adopt again: forget the refusal. */
  retry(member: string): readonly ElectionAction[] {
    this.#known(member);
    if (this.#request === undefined || this.#phase === 'lost' || this.#adopted.has(member)) return [];
    this.#refused.delete(member);
    return [{ kind: 'elected', to: member, request: this.#request }];
  }

  #elect(votes: readonly Vote[]): Elected {
    const donor = chooseDonor(votes);
    const termStartLsn = donor.flushRecordLsn;
    const log = historyUpTo(donor.termHistory, termStartLsn);
    const termHistory = pruneHistory(appendTerm(log, this.term, termStartLsn), this.#commitFloor);
    const voters = votes.map((vote) => vote.voter);
    const { term, configuration } = this;
    return { term, termStartLsn, lastRecordLsn: donor.lastRecordLsn, termHistory, configuration, donor: donor.voter, voters };
  }

  #known(member: string): void {
    if (!this.#members.includes(member))
      throw new LakebaseError('INVALID_ARGUMENT', `${member} is not in configuration ${describeConfiguration(this.configuration)}`);
  }
}
