/** Redo of the heap2 resource manager: pruning and freezing, visibility map set, multi-insert, lock of an updated version.
 *  Invariants: as in heap-redo.ts. */
import { LakebaseError } from '@lakebase/base';
import {
  clearPdFlag,
  type DecodedRecord,
  initPage,
  isNewPage,
  ITEM_UNUSED,
  LP_DEAD,
  LP_REDIRECT,
  makeItemId,
  maxOffset,
  PD_ALL_VISIBLE,
  repairFragmentation,
  setItemId,
  setPageLsn,
  setPdFlag,
  truncateLinePointers,
} from '@lakebase/pg-format';
import { BLCKSZ, formatLsn } from '@lakebase/ids';
import * as c from './heap-codes.ts';
import * as t from './heap-page.ts';
import { addTupleFromWal, redoVmClear, replaceXmaxBits } from './heap-redo.ts';
import { VM_ALL_FROZEN, VM_VALID_BITS, vmSet } from './vm.ts';

export function heap2Redo(page: Buffer, record: DecodedRecord, blockId: number, major: number): void {
  switch (record.info & c.XLOG_HEAP_OPMASK) {
    case c.XLOG_HEAP2_PRUNE_ON_ACCESS:
    case c.XLOG_HEAP2_PRUNE_VACUUM_SCAN:
    case c.XLOG_HEAP2_PRUNE_VACUUM_CLEANUP:
      requirePruneFormat(record, major);
      return redoPrune(page, record);
    case c.XLOG_HEAP2_VISIBLE:
      return redoVisible(page, record, blockId);
    case c.XLOG_HEAP2_MULTI_INSERT:
      if (blockId === c.MULTI_INSERT_VM_BLOCK) return redoVmClear(page, record, VM_VALID_BITS);
      return redoMultiInsert(page, record);
    case c.XLOG_HEAP2_LOCK_UPDATED:
      if (blockId === c.LOCK_VM_BLOCK) return redoVmClear(page, record, VM_ALL_FROZEN);
      return redoLockUpdated(page, record);
    default: // NEW_CID and REWRITE serve logical decoding only
      return;
  }
}

/** 17 joined pruning, vacuuming and freezing into one record; what 16 writes under these codes is something else. */
export function requirePruneFormat(record: DecodedRecord, major: number): void {
  if (major < 17)
    throw new LakebaseError(
      'UNSUPPORTED',
      `heap2 prune record of Postgres ${major} at ${formatLsn(record.lsn)}: redo knows those of 17 and 18`,
    );
}

/** Cursor over the prune record's block data; every read is checked against its end. */
let cursor = 0;
let limit = 0;

function take(record: DecodedRecord, bytes: number): number {
  const at = cursor;
  if (at + bytes > limit) throw t.corruptRecord(record, `its prune data ends ${at + bytes - limit} bytes too early`);
  cursor = at + bytes;
  return at;
}

function redoPrune(page: Buffer, record: DecodedRecord): void {
  const flags = record.buf[t.mainData(record, c.PRUNE_BYTES) + 1] as number;
  const block = t.blockOf(record, 0);
  const buf = record.buf;
  if (isNewPage(page)) throw t.corruptRecord(record, 'the page it prunes was never initialised');
  cursor = block.dataOffset;
  limit = block.dataOffset + block.dataLength;
  let plans = 0;
  let planCount = 0;
  if ((flags & c.XLHP_HAS_FREEZE_PLANS) !== 0) {
    planCount = buf.readUInt16LE(take(record, 4));
    plans = take(record, planCount * c.FREEZE_PLAN_BYTES);
  }
  const items = flags & (c.XLHP_HAS_REDIRECTIONS | c.XLHP_HAS_DEAD_ITEMS | c.XLHP_HAS_NOW_UNUSED_ITEMS);
  if ((flags & c.XLHP_HAS_REDIRECTIONS) !== 0) redirectItems(page, record);
  if ((flags & c.XLHP_HAS_DEAD_ITEMS) !== 0) setItems(page, record, makeItemId(0, LP_DEAD, 0));
  if ((flags & c.XLHP_HAS_NOW_UNUSED_ITEMS) !== 0) setItems(page, record, ITEM_UNUSED);
  if (items !== 0) {
    // Without the cleanup lock only dead line pointers were freed and no tuple may move.
    if ((flags & c.XLHP_CLEANUP_LOCK) !== 0) repairFragmentation(page);
    else truncateLinePointers(page);
  }
  for (let i = 0; i < planCount; i++) freezeTuples(page, record, plans + i * c.FREEZE_PLAN_BYTES);
  if (cursor !== limit) throw t.corruptRecord(record, `its prune data has ${limit - cursor} bytes too many`);
  setPageLsn(page, record.endLsn);
}

function checkedOffnum(page: Buffer, record: DecodedRecord, at: number): number {
  const offnum = record.buf.readUInt16LE(at);
  if (offnum < 1 || offnum > maxOffset(page) || 24 + offnum * 4 > BLCKSZ) throw t.corruptRecord(record, `the page has no item ${offnum}`);
  return offnum;
}

function redirectItems(page: Buffer, record: DecodedRecord): void {
  const count = record.buf.readUInt16LE(take(record, 2));
  const data = take(record, count * 4);
  for (let i = 0; i < count; i++) {
    const from = checkedOffnum(page, record, data + i * 4);
    setItemId(page, from, makeItemId(checkedOffnum(page, record, data + i * 4 + 2), LP_REDIRECT, 0));
  }
}

function setItems(page: Buffer, record: DecodedRecord, id: number): void {
  const count = record.buf.readUInt16LE(take(record, 2));
  const data = take(record, count * 2);
  for (let i = 0; i < count; i++) setItemId(page, checkedOffnum(page, record, data + i * 2), id);
}

/** xlhp_freeze_plan: xmax 0, infomask2 4, infomask 6, frzflags 8, ntuples 10. The tuples' offsets follow all plans in order. */
function freezeTuples(page: Buffer, record: DecodedRecord, plan: number): void {
  const buf = record.buf;
  const count = buf.readUInt16LE(plan + 10);
  const frzflags = buf[plan + 8] as number;
  const offsets = take(record, count * 2);
  for (let i = 0; i < count; i++) {
    const at = t.tupleAt(page, record, buf.readUInt16LE(offsets + i * 2));
    buf.copy(page, at + t.T_XMAX, plan, plan + 4);
    // A tuple moved by a VACUUM FULL before 9.0: xvac shares its field with the command id.
    if ((frzflags & c.XLH_FREEZE_XVAC) !== 0) page.writeUInt32LE(2, at + t.T_FIELD3);
    if ((frzflags & c.XLH_INVALID_XVAC) !== 0) page.writeUInt32LE(0, at + t.T_FIELD3);
    buf.copy(page, at + t.T_INFOMASK2, plan + 4, plan + 8);
  }
}

/** Block 0 is the map page, block 1 the heap page. The heap page keeps its LSN: it would move only with data checksums or
 *  wal_log_hints, and then the record carries an image of it anyway. */
function redoVisible(page: Buffer, record: DecodedRecord, blockId: number): void {
  const bits = (record.buf[t.mainData(record, c.VISIBLE_BYTES) + 4] as number) & VM_VALID_BITS;
  if (blockId === 0) {
    if (vmSet(page, t.blockOf(record, 1).block, bits)) setPageLsn(page, record.endLsn);
  } else {
    if (isNewPage(page)) throw t.corruptRecord(record, 'the page it marks all-visible was never initialised');
    setPdFlag(page, PD_ALL_VISIBLE);
  }
}

function redoMultiInsert(page: Buffer, record: DecodedRecord): void {
  const buf = record.buf;
  const main = t.mainData(record, c.MULTI_INSERT_BYTES);
  const flags = buf[main] as number;
  const count = buf.readUInt16LE(main + 2);
  const init = (record.info & c.XLOG_HEAP_INIT_PAGE) !== 0;
  if (!init) t.mainData(record, c.MULTI_INSERT_BYTES + count * 2);
  const block = t.blockOf(record, 0);
  const end = block.dataOffset + block.dataLength;
  if (init) initPage(page, 0);
  else if (isNewPage(page)) throw t.corruptRecord(record, 'the page it inserts into was never initialised');
  let at = block.dataOffset;
  for (let i = 0; i < count; i++) {
    at += (at - block.dataOffset) & 1; // SHORTALIGN, counted from the start of the block's data
    if (at + c.MULTI_INSERT_TUPLE_BYTES > end) throw t.corruptRecord(record, `tuple ${i} lies outside its data`);
    const length = buf.readUInt16LE(at);
    const data = at + c.MULTI_INSERT_TUPLE_BYTES;
    if (data + length > end) throw t.corruptRecord(record, `tuple ${i} lies outside its data`);
    const offnum = init ? i + 1 : buf.readUInt16LE(main + c.MULTI_INSERT_BYTES + i * 2);
    addTupleFromWal(page, record, at + 2, data, length, block.block, offnum);
    at = data + length;
  }
  if (at !== end) throw t.corruptRecord(record, `has ${end - at} bytes after its last tuple`);
  setPageLsn(page, record.endLsn);
  if ((flags & c.XLH_INSERT_ALL_VISIBLE_CLEARED) !== 0) clearPdFlag(page, PD_ALL_VISIBLE);
  if ((flags & c.XLH_INSERT_ALL_FROZEN_SET) !== 0) setPdFlag(page, PD_ALL_VISIBLE);
}

function redoLockUpdated(page: Buffer, record: DecodedRecord): void {
  const main = t.mainData(record, c.LOCK_BYTES);
  const at = t.tupleAt(page, record, record.buf.readUInt16LE(main + 4));
  replaceXmaxBits(page, at, record.buf[main + 6] as number);
  page.writeUInt32LE(record.buf.readUInt32LE(main), at + t.T_XMAX);
  setPageLsn(page, record.endLsn);
}
