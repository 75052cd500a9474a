/** The invariants, checked with a view of everything at every event that could break one (docs/protocols/election.md, Invariants).
 *
 *  `committed` is the union of all claims: what a client was told, what a member or reader computed as committed. All claims must be prefixes
 *  of one log. Record ids stand for whole prefixes (log.ts), so comparing one record compares everything before it. */
import { type Configuration, describeConfiguration, sameConfiguration } from '@lakebase/wal-quorum';
import { type SimRecord, countUpTo } from './log.ts';

export class InvariantBroken extends Error {
  override readonly name = 'InvariantBroken';
}

export interface Leader {
  readonly candidacy: number;
  readonly term: number;
  /** The leader's whole log: grows while its compute writes. */
  readonly log: SimRecord[];
}

interface HistoryEntry {
  readonly term: number;
  readonly startLsn: number;
}

export class Checker {
  readonly committed: SimRecord[] = [];
  readonly leaders = new Map<number, Leader>();
  /** Term -> number of records acknowledged in it. A leader owes what lower terms committed; one elected late owes nothing to higher ones. */
  readonly #claims = new Map<number, number>();
  readonly #configurations = new Map<number, Configuration>();
  readonly counts = {
    acknowledged: 0,
    leaders: 0,
    truncations: 0,
    divergentTruncations: 0,
    served: 0,
    copied: 0,
    damages: 0,
    wipes: 0,
    crashes: 0,
    replacements: 0,
    aborts: 0,
  };

  get committedEnd(): number {
    return this.committed.at(-1)?.end ?? 0;
  }

  /** A majority voted for this candidacy. */
  elected(leader: Leader): void {
    const other = this.leaders.get(leader.term);
    if (other !== undefined && other.candidacy !== leader.candidacy) this.#broken(`two leaders in term ${leader.term}`);
    this.leaders.set(leader.term, leader);
    this.counts.leaders++;
    for (const [term, n] of this.#claims)
      if (term < leader.term) this.#holds(leader.log, n, `leader of term ${leader.term}, after term ${term}`);
  }

  /** Somebody goes by this configuration. */
  configured(configuration: Configuration, who: string): void {
    const known = this.#configurations.get(configuration.generation);
    if (known === undefined) this.#configurations.set(configuration.generation, configuration);
    else if (known !== configuration && !sameConfiguration(known, configuration))
      this.#broken(`${who}: configuration ${describeConfiguration(configuration)}, and there is ${describeConfiguration(known)}`);
  }

  /** Everything in `log` that ends at or before `position` is committed, says `who`, by what was acknowledged in `term`. */
  claim(log: readonly SimRecord[], position: number, term: number, who: string): void {
    const n = countUpTo(log, position);
    this.#same(log, n, who);
    for (let i = this.committed.length; i < n; i++) this.committed.push(log[i] as SimRecord);
    if (n <= (this.#claims.get(term) ?? 0)) return;
    this.#claims.set(term, n);
    for (const leader of this.leaders.values()) {
      if (leader.term > term) this.#holds(leader.log, n, `leader of term ${leader.term}, after ${who} in term ${term}`);
    }
  }

  /** A number computed from reports, without the bytes. */
  claimOfTerm(term: number, position: number, who: string): void {
    const leader = this.leaders.get(term);
    if (leader === undefined) this.#broken(`${who}: commit ${position} in term ${term}, which nobody won`);
    else this.claim(leader.log, position, term, who);
  }

  truncated(who: string, keptRecords: number, gone: readonly SimRecord[]): void {
    this.counts.truncations++;
    if (gone.length > 0) this.counts.divergentTruncations++;
    const first = gone[0];
    if (first !== undefined && this.committed[keptRecords]?.id === first.id) {
      this.#broken(`${who}: truncated committed record ${first.id} of term ${first.term} at ${first.start}`);
    }
  }

  /** The history names the true writer of every record of the log. */
  describes(who: string, history: readonly HistoryEntry[], records: readonly SimRecord[], from = 0): void {
    let entry = 0;
    for (let i = from; i < records.length; i++) {
      const record = records[i] as SimRecord;
      while (entry + 1 < history.length && (history[entry + 1] as HistoryEntry).startLsn <= record.start) entry++;
      const named = history[entry];
      if (named === undefined) this.#broken(`${who}: no history for record ${record.id}`);
      // Below the first entry the history was pruned: that part must be committed.
      else if (named.startLsn > record.start) this.#pruned(who, record, i);
      else if (named.term !== record.term) {
        this.#broken(`${who}: history says term ${named.term} for record ${record.id} of term ${record.term} at ${record.start}`);
      }
    }
  }

  #pruned(who: string, record: SimRecord, index: number): void {
    if (this.committed[index]?.id !== record.id) this.#broken(`${who}: history pruned at record ${record.id}, which is not committed`);
  }

  #same(log: readonly SimRecord[], n: number, who: string): void {
    const shared = Math.min(n, this.committed.length);
    if (shared === 0) return;
    const [mine, known] = [log[shared - 1], this.committed[shared - 1]];
    if (mine?.id !== known?.id) {
      this.#broken(
        `${who}: record ${mine?.id} of term ${mine?.term} where ${known?.id} of term ${known?.term} is committed (${known?.start})`,
      );
    }
  }

  #holds(log: readonly SimRecord[], n: number, who: string): void {
    if (n === 0) return;
    const known = this.committed[n - 1];
    if (log[n - 1]?.id !== known?.id) this.#broken(`${who}: lacks committed record ${known?.id} of term ${known?.term} at ${known?.start}`);
  }

  #broken(message: string): never {
    throw new InvariantBroken(message);
  }
}
