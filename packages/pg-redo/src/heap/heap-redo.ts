/** Redo of the heap resource manager: insert, delete, update, lock, confirm and in-place update, on one 8 KiB page in place.
 *  Invariants: (1) the result has the bytes heapam_xlog.c leaves, pd_lsn included; (2) a full-page image is never seen here, the caller
 *  restores it; (3) nothing is changed before the lengths of that step were checked; a record that does not fit the page is CORRUPT. */
import {
  clearPdFlag,
  copyBytes,
  type DecodedRecord,
  getU16,
  getU32,
  initPage,
  isNewPage,
  itemId,
  itemLength,
  PAI_IS_HEAP,
  PAI_OVERWRITE,
  PD_ALL_VISIBLE,
  pageReserveItem,
  pdUpper,
  putU16,
  putU32,
  setPageLsn,
  setPrunable,
} from '@lakebase/pg-format';
import * as c from './heap-codes.ts';
import * as t from './heap-page.ts';
import { VM_ALL_FROZEN, VM_VALID_BITS, vmClear, vmPageOf } from './vm.ts';

export function heapRedo(page: Buffer, record: DecodedRecord, blockId: number, _major: number): void {
  switch (record.info & c.XLOG_HEAP_OPMASK) {
    case c.XLOG_HEAP_INSERT:
      if (blockId === c.INSERT_VM_BLOCK) return redoVmClear(page, record, blockId, VM_VALID_BITS);
      return redoInsert(page, record);
    case c.XLOG_HEAP_DELETE:
      if (blockId === c.DELETE_VM_BLOCK) return redoVmClear(page, record, blockId, VM_VALID_BITS);
      return redoDelete(page, record);
    case c.XLOG_HEAP_UPDATE:
      return redoUpdate(page, record, blockId, false);
    case c.XLOG_HEAP_HOT_UPDATE:
      return redoUpdate(page, record, blockId, true);
    case c.XLOG_HEAP_TRUNCATE:
      return;
    case c.XLOG_HEAP_CONFIRM:
      return redoConfirm(page, record);
    case c.XLOG_HEAP_LOCK:
      if (blockId === c.LOCK_VM_BLOCK) return redoVmClear(page, record, blockId, VM_ALL_FROZEN);
      return redoLock(page, record);
    default:
      return redoInplace(page, record);
  }
}

/** The map page of block 0's bits, when the record names it. The LSN moves only with the bits, as in Postgres. */
export function redoVmClear(page: Buffer, record: DecodedRecord, blockId: number, bits: number): void {
  t.requireMapBlock(record, blockId);
  if (vmClear(page, t.blockOf(record, 0).block, bits)) setPageLsn(page, record.endLsn);
}

/** fix_infomask_from_infobits after the bits that go with every new xmax were dropped from the tuple at `at`. */
export function replaceXmaxBits(page: Buffer, at: number, infobits: number): void {
  let mask = getU16(page, at + t.T_INFOMASK) & ~(t.HEAP_XMAX_BITS | t.HEAP_MOVED);
  let mask2 = getU16(page, at + t.T_INFOMASK2) & ~t.HEAP_KEYS_UPDATED;
  if ((infobits & c.XLHL_XMAX_IS_MULTI) !== 0) mask |= t.HEAP_XMAX_IS_MULTI;
  if ((infobits & c.XLHL_XMAX_LOCK_ONLY) !== 0) mask |= t.HEAP_XMAX_LOCK_ONLY;
  if ((infobits & c.XLHL_XMAX_EXCL_LOCK) !== 0) mask |= t.HEAP_XMAX_EXCL_LOCK;
  if ((infobits & c.XLHL_XMAX_KEYSHR_LOCK) !== 0) mask |= t.HEAP_XMAX_KEYSHR_LOCK;
  if ((infobits & c.XLHL_KEYS_UPDATED) !== 0) mask2 |= t.HEAP_KEYS_UPDATED;
  putU16(page, at + t.T_INFOMASK, mask);
  putU16(page, at + t.T_INFOMASK2, mask2);
}

/** HeapTupleHeaderSetCmax(FirstCommandId): redo forgets command ids. */
function resetCommandId(page: Buffer, at: number): void {
  putU32(page, at + t.T_FIELD3, 0);
  putU16(page, at + t.T_INFOMASK, getU16(page, at + t.T_INFOMASK) & ~t.HEAP_COMBOCID);
}

function setHotUpdated(page: Buffer, at: number, hot: boolean): void {
  const mask2 = getU16(page, at + t.T_INFOMASK2);
  putU16(page, at + t.T_INFOMASK2, hot ? mask2 | t.HEAP_HOT_UPDATED : mask2 & ~t.HEAP_HOT_UPDATED);
}

/** Header of the new tuple at `at`: what WAL stores of it at buf[header] plus what redo knows. */
function writeHeader(page: Buffer, at: number, record: DecodedRecord, header: number, xmax: number, block: number, offnum: number): void {
  const { buf } = record;
  putU32(page, at + t.T_XMIN, record.xid);
  putU32(page, at + t.T_XMAX, xmax);
  putU32(page, at + t.T_FIELD3, 0);
  t.setCtid(page, at, block, offnum);
  putU16(page, at + t.T_INFOMASK2, getU16(buf, header));
  putU16(page, at + t.T_INFOMASK, getU16(buf, header + 2) & ~t.HEAP_COMBOCID);
  page[at + t.T_HOFF] = buf[header + 4] as number;
}

/** Room for a tuple of `bytes` as item `offnum`; returns where it begins. Tuples are put together on the page itself. */
function reserveTuple(page: Buffer, record: DecodedRecord, bytes: number, offnum: number): number {
  if (pageReserveItem(page, bytes, offnum, PAI_OVERWRITE | PAI_IS_HEAP) === 0 || offnum === 0)
    throw t.corruptRecord(record, `its tuple does not fit at item ${offnum}`);
  return pdUpper(page);
}

/** Adds the tuple whose WAL form (header, then bitmap and data) is at buf[at, at + length). Shared with multi-insert. */
export function addTupleFromWal(
  page: Buffer,
  record: DecodedRecord,
  header: number,
  data: number,
  length: number,
  block: number,
  offnum: number,
): void {
  if (length < 0 || t.TUPLE_HEADER_BYTES + length > t.MAX_HEAP_TUPLE_BYTES) throw t.corruptRecord(record, `a tuple of ${length} bytes`);
  const at = reserveTuple(page, record, t.TUPLE_HEADER_BYTES + length, offnum);
  copyBytes(record.buf, data, page, at + t.TUPLE_HEADER_BYTES, length);
  writeHeader(page, at, record, header, 0, block, offnum);
}

function redoInsert(page: Buffer, record: DecodedRecord): void {
  const main = t.mainData(record, c.INSERT_BYTES);
  const block = t.blockOf(record, 0);
  const offnum = record.buf.readUInt16LE(main);
  if (block.dataLength < c.TUPLE_HEADER_IN_WAL_BYTES) throw t.corruptRecord(record, 'has no tuple');
  if ((record.info & c.XLOG_HEAP_INIT_PAGE) !== 0) initPage(page, 0);
  else if (isNewPage(page)) throw t.corruptRecord(record, 'the page it inserts into was never initialised');
  const data = block.dataOffset + c.TUPLE_HEADER_IN_WAL_BYTES;
  addTupleFromWal(page, record, block.dataOffset, data, block.dataLength - c.TUPLE_HEADER_IN_WAL_BYTES, block.block, offnum);
  setPageLsn(page, record.endLsn);
  if (((record.buf[main + 2] as number) & c.XLH_INSERT_ALL_VISIBLE_CLEARED) !== 0) clearPdFlag(page, PD_ALL_VISIBLE);
}

function redoDelete(page: Buffer, record: DecodedRecord): void {
  const main = t.mainData(record, c.DELETE_BYTES);
  const buf = record.buf;
  const offnum = buf.readUInt16LE(main + 4);
  const flags = buf[main + 7] as number;
  const at = t.tupleAt(page, record, offnum);
  replaceXmaxBits(page, at, buf[main + 6] as number);
  setHotUpdated(page, at, false);
  if ((flags & c.XLH_DELETE_IS_SUPER) === 0) putU32(page, at + t.T_XMAX, buf.readUInt32LE(main));
  else putU32(page, at + t.T_XMIN, 0);
  resetCommandId(page, at);
  setPrunable(page, record.xid);
  if ((flags & c.XLH_DELETE_ALL_VISIBLE_CLEARED) !== 0) clearPdFlag(page, PD_ALL_VISIBLE);
  // A row that moved to another partition has a t_ctid that names no tuple (ItemPointerSetMovedPartitions).
  if ((flags & c.XLH_DELETE_IS_PARTITION_MOVE) !== 0) t.setCtid(page, at, 0xffff_ffff, 0xfffd);
  else t.setCtid(page, at, t.blockOf(record, 0).block, offnum);
  setPageLsn(page, record.endLsn);
}

function redoUpdate(page: Buffer, record: DecodedRecord, blockId: number, hot: boolean): void {
  const main = t.mainData(record, c.UPDATE_BYTES);
  const samePage = !t.hasBlock(record, c.UPDATE_OLD_BLOCK);
  if (blockId >= c.UPDATE_VM_NEW_BLOCK) return redoUpdateVm(page, record, blockId, record.buf[main + 7] as number);
  let oldTuple = 0;
  let oldLength = 0;
  if (samePage || blockId === c.UPDATE_OLD_BLOCK) {
    const offnum = record.buf.readUInt16LE(main + 4);
    oldTuple = t.tupleAt(page, record, offnum);
    oldLength = itemLength(itemId(page, offnum));
    if (samePage) addNewTuple(page, record, main, oldTuple, oldLength);
    redoUpdateOld(page, record, main, oldTuple, hot);
  } else {
    if ((record.info & c.XLOG_HEAP_INIT_PAGE) !== 0) initPage(page, 0);
    else if (isNewPage(page)) throw t.corruptRecord(record, 'the page it updates was never initialised');
    addNewTuple(page, record, main, 0, 0);
  }
  if (blockId === 0 && ((record.buf[main + 7] as number) & c.XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED) !== 0) clearPdFlag(page, PD_ALL_VISIBLE);
  setPageLsn(page, record.endLsn);
}

function redoUpdateOld(page: Buffer, record: DecodedRecord, main: number, at: number, hot: boolean): void {
  const buf = record.buf;
  replaceXmaxBits(page, at, buf[main + 6] as number);
  setHotUpdated(page, at, hot);
  putU32(page, at + t.T_XMAX, buf.readUInt32LE(main));
  resetCommandId(page, at);
  t.setCtid(page, at, t.blockOf(record, 0).block, buf.readUInt16LE(main + 12));
  setPrunable(page, record.xid);
  if (((buf[main + 7] as number) & c.XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED) !== 0) clearPdFlag(page, PD_ALL_VISIBLE);
}

/** The new version: WAL leaves out what it shares with the start and the end of the old one when both are on one page. */
function addNewTuple(page: Buffer, record: DecodedRecord, main: number, oldTuple: number, oldLength: number): void {
  const buf = record.buf;
  const flags = buf[main + 7] as number;
  const block = t.blockOf(record, 0);
  const end = block.dataOffset + block.dataLength;
  let at = block.dataOffset;
  let prefix = 0;
  let suffix = 0;
  const lengths = ((flags & c.XLH_UPDATE_PREFIX_FROM_OLD) !== 0 ? 2 : 0) + ((flags & c.XLH_UPDATE_SUFFIX_FROM_OLD) !== 0 ? 2 : 0);
  if (block.dataLength < lengths + c.TUPLE_HEADER_IN_WAL_BYTES) throw t.corruptRecord(record, 'has no new tuple');
  if (lengths !== 0 && oldLength === 0) throw t.corruptRecord(record, 'borrows from a tuple on another page');
  if ((flags & c.XLH_UPDATE_PREFIX_FROM_OLD) !== 0) {
    prefix = buf.readUInt16LE(at);
    at += 2;
  }
  if ((flags & c.XLH_UPDATE_SUFFIX_FROM_OLD) !== 0) {
    suffix = buf.readUInt16LE(at);
    at += 2;
  }
  const header = at;
  const hoff = buf[header + 4] as number;
  at += c.TUPLE_HEADER_IN_WAL_BYTES;
  const stored = end - at;
  const bytes = t.TUPLE_HEADER_BYTES + stored + prefix + suffix;
  if (bytes > t.MAX_HEAP_TUPLE_BYTES) throw t.corruptRecord(record, `its new tuple has ${bytes} bytes`);
  const bitmap = prefix > 0 ? hoff - t.TUPLE_HEADER_BYTES : 0;
  const oldData = prefix > 0 ? oldTuple + (page[oldTuple + t.T_HOFF] as number) : 0;
  if (bitmap < 0 || bitmap > stored || (prefix > 0 && oldData + prefix > oldTuple + oldLength))
    throw t.corruptRecord(record, `its prefix of ${prefix} bytes does not fit`);
  if (suffix > oldLength) throw t.corruptRecord(record, `its suffix of ${suffix} bytes does not fit`);
  const offnum = getU16(buf, main + 12);
  if (lengths !== 0 && oldTuple < pdUpper(page)) throw t.corruptRecord(record, 'the tuple it borrows from lies in free space');
  const tuple = reserveTuple(page, record, bytes, offnum);
  let to = tuple + t.TUPLE_HEADER_BYTES;
  if (prefix > 0) {
    copyBytes(buf, at, page, to, bitmap);
    at += bitmap;
    copyBytes(page, oldData, page, to + bitmap, prefix);
    to += bitmap + prefix;
  }
  copyBytes(buf, at, page, to, end - at);
  if (suffix > 0) copyBytes(page, oldTuple + oldLength - suffix, page, to + end - at, suffix);
  writeHeader(page, tuple, record, header, getU32(buf, main + 8), block.block, offnum);
}

/** Map pages an update names: the one of the new heap block also stands for the old block when both lie on it. */
function redoUpdateVm(page: Buffer, record: DecodedRecord, blockId: number, flags: number): void {
  t.requireMapBlock(record, blockId);
  const newBlock = t.blockOf(record, 0).block;
  const oldBlock = t.hasBlock(record, c.UPDATE_OLD_BLOCK) ? t.blockOf(record, c.UPDATE_OLD_BLOCK).block : newBlock;
  const mapBlock = t.blockOf(record, blockId).block;
  let cleared = false;
  const coversOld = vmPageOf(oldBlock) === mapBlock && (flags & c.XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED) !== 0;
  if (coversOld) cleared = vmClear(page, oldBlock, VM_VALID_BITS);
  if (blockId === c.UPDATE_VM_NEW_BLOCK && vmClear(page, newBlock, VM_VALID_BITS)) cleared = true;
  if (cleared) setPageLsn(page, record.endLsn);
}

function redoConfirm(page: Buffer, record: DecodedRecord): void {
  const offnum = record.buf.readUInt16LE(t.mainData(record, 2));
  t.setCtid(page, t.tupleAt(page, record, offnum), t.blockOf(record, 0).block, offnum);
  setPageLsn(page, record.endLsn);
}

function redoLock(page: Buffer, record: DecodedRecord): void {
  const main = t.mainData(record, c.LOCK_BYTES);
  const buf = record.buf;
  const offnum = buf.readUInt16LE(main + 4);
  const at = t.tupleAt(page, record, offnum);
  replaceXmaxBits(page, at, buf[main + 6] as number);
  if (isLockedOnly(getU16(page, at + t.T_INFOMASK))) {
    setHotUpdated(page, at, false);
    t.setCtid(page, at, t.blockOf(record, 0).block, offnum);
  }
  putU32(page, at + t.T_XMAX, buf.readUInt32LE(main));
  resetCommandId(page, at);
  setPageLsn(page, record.endLsn);
}

/** HEAP_XMAX_IS_LOCKED_ONLY. */
function isLockedOnly(infomask: number): boolean {
  if ((infomask & t.HEAP_XMAX_LOCK_ONLY) !== 0) return true;
  return (infomask & (t.HEAP_XMAX_IS_MULTI | t.HEAP_XMAX_EXCL_LOCK | t.HEAP_XMAX_KEYSHR_LOCK)) === t.HEAP_XMAX_EXCL_LOCK;
}

function redoInplace(page: Buffer, record: DecodedRecord): void {
  const offnum = record.buf.readUInt16LE(t.mainData(record, 2));
  const block = t.blockOf(record, 0);
  const at = t.tupleAt(page, record, offnum);
  const hoff = page[at + t.T_HOFF] as number;
  if (itemLength(itemId(page, offnum)) - hoff !== block.dataLength)
    throw t.corruptRecord(record, `overwrites item ${offnum} with ${block.dataLength} bytes, which is not its length`);
  record.buf.copy(page, at + hoff, block.dataOffset, block.dataOffset + block.dataLength);
  setPageLsn(page, record.endLsn);
}
