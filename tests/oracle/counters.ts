/** The counters a compute starts from, followed through WAL and checked at every shutdown checkpoint, which has the true ones.
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
} from '@lakebase/pg-format';
import type { CounterUpdate } from '@lakebase/pg-redo';
import type { Mismatch } from './page-store.ts';

/** checkPointCopy in pg_control. */
const CONTROL_CHECKPOINT_OFFSET = 40;

export class CounterModel {
  readonly mismatches: Mismatch[] = [];
  checkpoints = 0;
  #nextXid: number;
  #nextOid: number;
  #nextMulti: number;
  #nextMultiOffset: number;
  #oldestXid: number;
  #oldestMulti: number;

  constructor(baseDir: string) {
    const cp = decodeCheckPoint(readFileSync(join(baseDir, 'global', 'pg_control')), CONTROL_CHECKPOINT_OFFSET);
    this.#nextXid = cp.nextFullXid;
    this.#nextOid = cp.nextOid;
    this.#nextMulti = cp.nextMulti;
    this.#nextMultiOffset = cp.nextMultiOffset;
    this.#oldestXid = cp.oldestXid;
    this.#oldestMulti = cp.oldestMulti;
  }

  /** Before the record's effects. */
  before(record: DecodedRecord): void {
    // The workload never leaves epoch 0, so plain numbers compare.
    if (record.xid >= this.#nextXid) this.#nextXid = record.xid + 1;
    if (record.rmid !== RM_XLOG_ID || (record.info & 0xf0) !== XLOG_CHECKPOINT_SHUTDOWN || record.mainLength < CHECKPOINT_BYTES) return;
    this.checkpoints++;
    const cp: CheckPoint = decodeCheckPoint(record.buf, record.mainOffset);
    this.#check(record, 'nextXid is ahead', this.#nextXid <= cp.nextFullXid, this.#nextXid, cp.nextFullXid);
    this.#check(record, 'nextOid is behind', this.#nextOid >= cp.nextOid, this.#nextOid, cp.nextOid);
    this.#check(record, 'nextMulti', this.#nextMulti === cp.nextMulti, this.#nextMulti, cp.nextMulti);
    this.#check(record, 'nextMultiOffset', this.#nextMultiOffset === cp.nextMultiOffset, this.#nextMultiOffset, cp.nextMultiOffset);
    // Horizons in WAL move with truncations only; a checkpoint may know a newer one.
    this.#check(record, 'oldestXid is ahead', this.#oldestXid <= cp.oldestXid, this.#oldestXid, cp.oldestXid);
    this.#check(record, 'oldestMulti is ahead', this.#oldestMulti <= cp.oldestMulti, this.#oldestMulti, cp.oldestMulti);
  }

  update(update: CounterUpdate): void {
    if (update.nextFullXid !== undefined) this.#nextXid = update.nextFullXid;
    if (update.seenXid !== undefined && update.seenXid >= this.#nextXid) this.#nextXid = update.seenXid + 1;
    if (update.nextOid !== undefined) this.#nextOid = update.nextOid;
    if (update.nextMulti !== undefined && update.nextMulti > this.#nextMulti) this.#nextMulti = update.nextMulti;
    if (update.nextMultiOffset !== undefined && update.nextMultiOffset > this.#nextMultiOffset)
      this.#nextMultiOffset = update.nextMultiOffset;
    if (update.oldestXid !== undefined) this.#oldestXid = update.oldestXid;
    if (update.oldestMulti !== undefined) this.#oldestMulti = update.oldestMulti;
  }

  #check(record: DecodedRecord, what: string, holds: boolean, ours: number, theirs: number): void {
    if (!holds) this.mismatches.push({ where: `checkpoint at ${formatLsn(record.lsn)}`, detail: `${what}: ours ${ours}, its ${theirs}` });
  }
}
