/** Moves the counters of the CheckPoint struct as WAL goes by (xlog_redo and its like): "next" counters only grow, in wraparound order for xids.
 *  Records carry 32-bit xids; the epoch follows from the next full xid, as no xid in use is half a cycle away from it. */
import type { CheckPoint } from '@lakebase/pg-format';
import type { CounterUpdate } from './effects.ts';

const EPOCH = 0x1_0000_0000;
const FIRST_NORMAL_XID = 3;

/** nextFullXid such that `xid` is below it. */
export function advancePastXid(nextFullXid: number, xid: number): number {
  if (xid < FIRST_NORMAL_XID) return nextFullXid;
  // Modulo 2^32, and without the call that `%` costs here: nearly every record comes by.
  const next = nextFullXid >>> 0;
  if (((xid - next) | 0) < 0) return nextFullXid;
  const epoch = Math.floor(nextFullXid / EPOCH) + (xid < next ? 1 : 0);
  let result = epoch * EPOCH + xid + 1;
  // TransactionIdAdvance skips the special xids at each wrap.
  if (result % EPOCH < FIRST_NORMAL_XID) result += FIRST_NORMAL_XID - (result % EPOCH);
  return result;
}

/** The full xid of a 32-bit one that has been assigned, so that it lies before the next (FullTransactionIdFromAllowableAt). */
export function fullXidAt(nextFullXid: number, xid: number): number {
  const epoch = Math.floor(nextFullXid / EPOCH) - (xid > nextFullXid % EPOCH ? 1 : 0);
  return Math.max(0, epoch) * EPOCH + xid;
}

/** Circular order of 32-bit ids: `a` comes before `b`. */
const before = (a: number, b: number): boolean => ((a - b) | 0) < 0;

export function applyCounters(c: CheckPoint, u: CounterUpdate): void {
  if (u.nextFullXid !== undefined && u.nextFullXid > c.nextFullXid) c.nextFullXid = u.nextFullXid;
  if (u.seenXid !== undefined) c.nextFullXid = advancePastXid(c.nextFullXid, u.seenXid);
  if (u.nextOid !== undefined) c.nextOid = u.nextOid;
  if (u.nextMulti !== undefined && ((u.nextMulti - c.nextMulti) | 0) > 0) c.nextMulti = u.nextMulti;
  if (u.nextMultiOffset !== undefined && ((u.nextMultiOffset - c.nextMultiOffset) | 0) > 0) c.nextMultiOffset = u.nextMultiOffset;
  if (u.oldestXid !== undefined && !before(u.oldestXid, c.oldestXid)) {
    c.oldestXid = u.oldestXid;
    if (u.oldestXidDb !== undefined) c.oldestXidDb = u.oldestXidDb;
  }
  if (u.oldestMulti !== undefined && !before(u.oldestMulti, c.oldestMulti)) {
    c.oldestMulti = u.oldestMulti;
    if (u.oldestMultiDb !== undefined) c.oldestMultiDb = u.oldestMultiDb;
  }
  // Zero switches commit timestamps off, or on for the first time.
  if (
    u.oldestCommitTsXid !== undefined &&
    (u.oldestCommitTsXid === 0 || c.oldestCommitTsXid === 0 || !before(u.oldestCommitTsXid, c.oldestCommitTsXid))
  )
    c.oldestCommitTsXid = u.oldestCommitTsXid;
  if (
    u.newestCommitTsXid !== undefined &&
    (u.newestCommitTsXid === 0 || c.newestCommitTsXid === 0 || !before(u.newestCommitTsXid, c.newestCommitTsXid))
  )
    c.newestCommitTsXid = u.newestCommitTsXid;
  if (u.oldestActiveXid !== undefined) c.oldestActiveXid = u.oldestActiveXid;
  if (u.time !== undefined) c.time = u.time;
}
