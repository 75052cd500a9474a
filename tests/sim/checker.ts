/** The invariants, checked with a view of everything at every event that could break one (docs/protocols/election.md, Invariants).
 *
 *  `committed` is the union of all claims: what a client was told, what a member or reader computed as committed. All claims must be prefixes
 *  of one log. Record ids stand for whole prefixes (log.ts), so comparing one record compares everything before it. */
import { type Configuration, describeConfiguration, sameConfiguration } from '@lakebase/wal-quorum';
import { GENESIS_LSN, type SimRecord, countUpTo } from './log.ts';

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
  /** Ids of records that were committed once, and perhaps lost in a recovery. */
  readonly #everCommitted = new Set<number>();
  /** Each recovery: terms from `firstTerm` on are of its lineage, which begins behind `records` records. What anybody had told of before it ends at
   *  `toldLsn`: a client may still hear of that, and nobody of more. */
  readonly #forks: { readonly firstTerm: number; readonly records: number; readonly toldLsn: number }[] = [];
  #toldLsn = 0;
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
    puts: 0,
    recoveries: 0,
    accepted: 0,
    pagesAhead: 0,
    lost: 0,
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

  /** Somebody tells that its log is durable up to here. */
  told(lsn: number): void {
    this.#toldLsn = Math.max(this.#toldLsn, lsn);
  }

  /** A recovery: a lineage whose terms begin at `firstTerm` goes on behind `before`. The object store has pages up to `pages`, and whole records up to
   *  `store` when it was asked, up to `storeNow` by now. What was committed beyond it is lost, which is said. */
  recovered(
    before: readonly SimRecord[],
    firstTerm: number,
    known: { readonly pages: number; readonly store: number; readonly storeNow: number },
  ): void {
    const end = before.at(-1)?.end ?? GENESIS_LSN;
    if (known.pages > end) this.#broken(`recovery at ${end}: pages have WAL up to ${known.pages}`);
    if (known.store > end) this.#broken(`recovery at ${end}: the object store has WAL up to ${known.store}`);
    if (end > Math.max(known.pages, known.storeNow, GENESIS_LSN))
      this.#broken(`recovery at ${end}: nothing in the object store goes so far`);
    for (const [i, record] of before.entries())
      if (this.committed[i]?.id !== record.id)
        this.#broken(`recovery: record ${record.id} at ${record.start} where ${this.committed[i]?.id} is committed`);
    this.counts.recoveries++;
    if (known.pages > known.store) this.counts.pagesAhead++;
    this.counts.lost += this.committed.length - before.length;
    this.#forks.push({ firstTerm, records: before.length, toldLsn: this.#toldLsn });
    this.committed.length = before.length;
    for (const [term, n] of this.#claims) this.#claims.set(term, Math.min(n, before.length));
  }

  /** How many records of a log of `term` are WAL of the timeline: a later recovery went on without the rest. */
  #kept(term: number, n: number, position: number, who: string): number {
    for (const fork of this.#forks) {
      if (term >= fork.firstTerm || n <= fork.records) continue;
      if (position > fork.toldLsn)
        this.#broken(`${who}: commit ${position} in term ${term}, after a recovery began term ${fork.firstTerm}`);
      return fork.records;
    }
    return n;
  }

  /** Everything in `log` that ends at or before `position` is committed, says `who`, by what was acknowledged in `term`. */
  claim(log: readonly SimRecord[], position: number, term: number, who: string): void {
    const n = this.#kept(term, countUpTo(log, position), position, who);
    this.#same(log, n, who);
    for (let i = this.committed.length; i < n; i++) {
      this.committed.push(log[i] as SimRecord);
      this.#everCommitted.add((log[i] as SimRecord).id);
    }
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
      else if (named.startLsn > record.start) this.#pruned(who, record);
      else if (named.term !== record.term) {
        this.#broken(`${who}: history says term ${named.term} for record ${record.id} of term ${record.term} at ${record.start}`);
      }
    }
  }

  #pruned(who: string, record: SimRecord): void {
    if (!this.#everCommitted.has(record.id)) this.#broken(`${who}: history pruned at record ${record.id}, which is not committed`);
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
