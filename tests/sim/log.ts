/** A simulated WAL: records instead of bytes, but cut and sent at any byte.
 *
 *  Invariants: records are contiguous from GENESIS_LSN; each names its predecessor, as xl_prev and the checksum chain do in real WAL, so a record
 *  id stands for the whole prefix; only the last record may reach beyond `end` (it is partial). [flushed, end) is lost in a crash, in part or whole. */
import { InvariantBroken } from './checker.ts';

export const GENESIS_LSN = 0x100_0000;

export interface SimRecord {
  readonly id: number;
  readonly prevId: number;
  readonly term: number;
  readonly start: number;
  readonly end: number;
  /** A client waits for this one. */
  readonly commit: boolean;
}

/** Number of records that end at or before `position`. */
export function countUpTo(records: readonly SimRecord[], position: number): number {
  let low = 0;
  let high = records.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((records[middle] as SimRecord).end <= position) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Records that overlap [from, to). */
export function overlapping(records: readonly SimRecord[], from: number, to: number): SimRecord[] {
  const first = countUpTo(records, from);
  let last = first;
  while (last < records.length && (records[last] as SimRecord).start < to) last++;
  return records.slice(first, last);
}

export class SimLog {
  records: SimRecord[] = [];
  end: number = GENESIS_LSN;
  flushed: number = GENESIS_LSN;
  /** Records before the first of the lineage that this log holds: they stand for what the object store has of older ones. */
  inherited = 0;

  /** Begins anew behind `records`. */
  restartBehind(records: readonly SimRecord[]): void {
    this.records = records.slice();
    this.inherited = records.length;
    this.end = this.flushed = this.start;
  }
  /** Where this log begins. */
  get start(): number {
    return this.records[this.inherited - 1]?.end ?? GENESIS_LSN;
  }

  /** End of the last complete record at or before `position`. */
  recordEnd(position: number): number {
    const n = countUpTo(this.records, position);
    return n === 0 ? GENESIS_LSN : (this.records[n - 1] as SimRecord).end;
  }
  recordStart(position: number): number {
    const n = countUpTo(this.records, position);
    return n === 0 ? 0 : (this.records[n - 1] as SimRecord).start;
  }

  append(from: number, to: number, records: readonly SimRecord[], who: string): void {
    if (from !== this.end) throw new InvariantBroken(`${who}: append at ${from}, log ends at ${this.end}`);
    for (const record of records) {
      const last = this.records.at(-1);
      if (record.start < from) {
        if (last?.id !== record.id) throw new InvariantBroken(`${who}: half of record ${last?.id} joined to half of record ${record.id}`);
        continue;
      }
      if ((last?.id ?? 0) !== record.prevId) {
        throw new InvariantBroken(
          `${who}: record ${record.id} of term ${record.term} follows ${record.prevId}, log ends with ${last?.id ?? 0}`,
        );
      }
      this.records.push(record);
    }
    this.end = to;
  }

  /** Cuts at a record boundary; returns the complete records that went. */
  truncate(to: number): SimRecord[] {
    const { end } = this;
    if (to < this.start) throw new InvariantBroken(`cut at ${to}, below the start of the lineage at ${this.start}`);
    const gone = this.records.splice(countUpTo(this.records, to)).filter((record) => record.end <= end);
    this.end = to;
    this.flushed = Math.min(this.flushed, to);
    return gone;
  }
}
