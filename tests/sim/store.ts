/** The object store, with the WAL that members put: of each lineage under names of its own. It never fails; messages to it do.
 *  Invariants, checked at every put: the WAL of a lineage has no hole and never changes. */
import type { WalLineage } from '@lakebase/wal-quorum';
import { InvariantBroken } from './checker.ts';
import { GENESIS_LSN, type SimRecord, countUpTo, overlapping } from './log.ts';
import type { Message, Process } from './messages.ts';
import type { World } from './world.ts';

/** WAL as it was put: it may end, and where it begins is said by the first put, in the middle of a record. */
class StoredWal {
  readonly records: SimRecord[] = [];
  end: number;

  constructor(startLsn: number) {
    this.end = startLsn;
  }

  put(from: number, to: number, records: readonly SimRecord[], who: string): void {
    if (from > this.end) throw new InvariantBroken(`${who}: puts WAL from ${from}, the object store has it up to ${this.end}`);
    for (const record of records) {
      const there = this.records[countUpTo(this.records, record.start)];
      if (there !== undefined && there.id !== record.id)
        throw new InvariantBroken(`${who}: puts record ${record.id} where the object store has ${there.id}`);
      if (there === undefined) this.records.push(record);
    }
    this.end = Math.max(this.end, to);
  }
}

export class Store implements Process {
  readonly id = 'store';
  readonly #world: World;
  readonly #lineages = new Map<number, StoredWal>();
  /** Generation of a configuration that is to be recovered: end of the last whole record of its lineage when that was first asked for. */
  readonly #asked = new Map<number, number>();

  constructor(world: World) {
    this.#world = world;
    world.add(this);
  }

  /** Up to where a recovery of that configuration must bring WAL back. */
  asked(generation: number): number {
    return this.#asked.get(generation) ?? 0;
  }

  /** End of the last whole record of the timeline's WAL; 0: there is none. */
  wholeEnd(lineages: readonly WalLineage[]): number {
    const ends = lineages.map(({ number }, i) => {
      const wal = this.#lineages.get(this.#name(number));
      const end = Math.min(wal?.end ?? 0, lineages[i + 1]?.startLsn ?? Number.MAX_SAFE_INTEGER);
      return wal?.records[countUpTo(wal.records, end) - 1]?.end ?? 0;
    });
    return Math.max(...ends);
  }

  #name(lineage: number): number {
    return this.#world.has('lineages-share-names') ? 0 : lineage;
  }

  receive(from: string, message: Message): void {
    if (message.kind === 'put') {
      const { lineage, startLsn, to, records } = message;
      const name = this.#name(lineage);
      let wal = this.#lineages.get(name);
      if (wal === undefined) this.#lineages.set(name, (wal = new StoredWal(startLsn)));
      wal.put(message.from, to, records, `${from}, lineage ${lineage}`);
      this.#world.checker.counts.puts++;
      this.#world.send(this.id, from, { kind: 'stored', lineage, end: wal.end });
    } else if (message.kind === 'archiveEndRequest') {
      const { generation, lineages, before } = message;
      if (!this.#asked.has(generation)) this.#asked.set(generation, this.wholeEnd(lineages));
      const whole = this.#whole(lineages, before);
      const [pagesLsn, walEnd] = [endOf(before), endOf(whole)];
      // To read it all takes its time.
      const { clock, random } = this.#world;
      clock.after(random.between(0, random.pick([5, 150])), () =>
        this.#world.send(this.id, from, { kind: 'archiveEnd', generation, pagesLsn, walEnd, whole }),
      );
    }
  }

  /** `before` and each whole record behind it: a byte belongs to the last lineage that begins at or before it, and a record names the one before it. */
  #whole(lineages: readonly WalLineage[], before: readonly SimRecord[]): SimRecord[] {
    const whole = before.slice();
    for (;;) {
      const at = endOf(whole);
      const mixed = this.#world.has('archive-without-lineages');
      const lineage = mixed
        ? lineages.find(({ number }) => (this.#lineages.get(number)?.end ?? 0) > at)
        : lineages.findLast(({ startLsn }) => startLsn <= at);
      if (lineage === undefined) return whole;
      const until = mixed ? undefined : lineages[lineages.indexOf(lineage) + 1]?.startLsn;
      const wal = this.#lineages.get(this.#name(lineage.number));
      const record = wal === undefined ? undefined : overlapping(wal.records, at, at + 1)[0];
      if (wal === undefined || record === undefined || record.start !== at || record.prevId !== (whole.at(-1)?.id ?? 0)) return whole;
      if (record.end > Math.min(wal.end, until ?? wal.end)) return whole;
      whole.push(record);
    }
  }
}

const endOf = (records: readonly SimRecord[]): number => records.at(-1)?.end ?? GENESIS_LSN;
