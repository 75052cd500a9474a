/** The counters a compute starts from, followed through WAL as the pageserver does and checked at every shutdown checkpoint, which has the true ones.
 *  Invariant: a counter derived from WAL may never lie behind what was handed out and logged; ids assigned without WAL are not ours to know. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { formatLsn } from '@lakebase/ids';
import {
  CHECKPOINT_BYTES,
  type CheckPoint,
  type DecodedRecord,
  decodeCheckPoint,
  RM_XLOG_ID,
  XLOG_CHECKPOINT_SHUTDOWN,
  xidPrecedes,
} from '@lakebase/pg-format';
import { advancePastXid, applyCounters, type CounterUpdate } from '@lakebase/pg-redo';
import type { Mismatch } from './page-store.ts';

/** checkPointCopy in pg_control. */
const CONTROL_CHECKPOINT_OFFSET = 40;

export class CounterModel {
  readonly mismatches: Mismatch[] = [];
  checkpoints = 0;
  readonly #ours: CheckPoint;
  readonly #first: CheckPoint;

  constructor(baseDir: string) {
    this.#ours = decodeCheckPoint(readFileSync(join(baseDir, 'global', 'pg_control')), CONTROL_CHECKPOINT_OFFSET);
    this.#first = { ...this.#ours };
  }

  get nextMulti(): number {
    return this.#ours.nextMulti;
  }

  get wrapped(): boolean {
    const [first, now] = [this.#first, this.#ours];
    const epoch = (c: CheckPoint): number => Math.floor(c.nextFullXid / 0x1_0000_0000);
    return epoch(now) > epoch(first) && now.nextMulti < first.nextMulti && now.nextMultiOffset < first.nextMultiOffset;
  }

  get nextFullXid(): number {
    return this.#ours.nextFullXid;
  }

  /** Before the record's effects. */
  before(record: DecodedRecord): void {
    const ours = this.#ours;
    if (record.xid !== 0) ours.nextFullXid = advancePastXid(ours.nextFullXid, record.xid);
    if (record.rmid !== RM_XLOG_ID || (record.info & 0xf0) !== XLOG_CHECKPOINT_SHUTDOWN || record.mainLength < CHECKPOINT_BYTES) return;
    this.checkpoints++;
    const cp = decodeCheckPoint(record.buf, record.mainOffset);
    this.#check(record, 'nextXid is ahead', ours.nextFullXid <= cp.nextFullXid, ours.nextFullXid, cp.nextFullXid);
    this.#check(record, 'nextOid is behind', ours.nextOid >= cp.nextOid, ours.nextOid, cp.nextOid);
    // Zero is no multixact and no offset: the primary steps over it when it hands out the next, we at once.
    this.#check(record, 'nextMulti', ours.nextMulti === (cp.nextMulti || 1), ours.nextMulti, cp.nextMulti);
    const offset = cp.nextMultiOffset;
    this.#check(
      record,
      'nextMultiOffset',
      ours.nextMultiOffset === offset || (offset === 0 && ours.nextMultiOffset === 1),
      ours.nextMultiOffset,
      offset,
    );
    // Horizons in WAL move with truncations only; a checkpoint may know a newer one.
    this.#check(record, 'oldestXid is ahead', !xidPrecedes(cp.oldestXid, ours.oldestXid), ours.oldestXid, cp.oldestXid);
    this.#check(record, 'oldestMulti is ahead', ((cp.oldestMulti - ours.oldestMulti) | 0) >= 0, ours.oldestMulti, cp.oldestMulti);
  }

  update(update: CounterUpdate): void {
    applyCounters(this.#ours, update);
  }

  #check(record: DecodedRecord, what: string, holds: boolean, ours: number, theirs: number): void {
    if (!holds) this.mismatches.push({ where: `checkpoint at ${formatLsn(record.lsn)}`, detail: `${what}: ours ${ours}, its ${theirs}` });
  }
}
