/** What heap redo needs to know of tuples on a page (htup_details.h) and of a record's parts.
 *  Invariant: nothing is read or written outside the page, whatever the record says; a record that points elsewhere is CORRUPT. */
import { LakebaseError } from '@lakebase/base';
import {
  type DecodedBlock,
  type DecodedRecord,
  initPage,
  isNewPage,
  itemFlags,
  itemId,
  itemLength,
  itemOffset,
  LP_NORMAL,
  maxOffset,
  putU16,
  rmgrName,
} from '@lakebase/pg-format';
import { BLCKSZ, FORK_VM, formatLsn } from '@lakebase/ids';

// HeapTupleHeaderData: t_xmin 0, t_xmax 4, t_field3 8 (cid or xvac), t_ctid 12 (block high, block low, offset), t_infomask2 18,
// t_infomask 20, t_hoff 22, null bitmap from 23.
export const T_XMIN = 0;
export const T_XMAX = 4;
export const T_FIELD3 = 8;
export const T_CTID = 12;
export const T_INFOMASK2 = 18;
export const T_INFOMASK = 20;
export const T_HOFF = 22;
/** SizeofHeapTupleHeader. */
export const TUPLE_HEADER_BYTES = 23;
/** MaxHeapTupleSize. */
export const MAX_HEAP_TUPLE_BYTES: number = BLCKSZ - 32;

export const HEAP_XMAX_KEYSHR_LOCK = 0x0010;
export const HEAP_COMBOCID = 0x0020;
export const HEAP_XMAX_EXCL_LOCK = 0x0040;
export const HEAP_XMAX_LOCK_ONLY = 0x0080;
export const HEAP_XMIN_FROZEN = 0x0300;
export const HEAP_XMAX_COMMITTED = 0x0400;
export const HEAP_XMAX_INVALID = 0x0800;
export const HEAP_XMAX_IS_MULTI = 0x1000;
/** HEAP_MOVED_OFF | HEAP_MOVED_IN, from before 9.0. */
export const HEAP_MOVED = 0xc000;
/** Everything a new xmax resets: committed, invalid, multi, the two lock bits, lock-only. */
export const HEAP_XMAX_BITS: number =
  HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID | HEAP_XMAX_IS_MULTI | HEAP_XMAX_EXCL_LOCK | HEAP_XMAX_KEYSHR_LOCK | HEAP_XMAX_LOCK_ONLY;
export const HEAP_XACT_MASK = 0xfff0;
export const HEAP_KEYS_UPDATED = 0x2000;
export const HEAP_HOT_UPDATED = 0x4000;

/** A page of zeros becomes an empty page without special space. */
export function ensureInit(page: Buffer): void {
  if (isNewPage(page)) initPage(page, 0);
}

export function corruptRecord(record: DecodedRecord, what: string): LakebaseError {
  return new LakebaseError(
    'CORRUPT',
    `${rmgrName(record.rmid)} record 0x${(record.info & 0xf0).toString(16)} at ${formatLsn(record.lsn)}: ${what}`,
  );
}

/** Offset of the main data in `record.buf`, checked to have at least `bytes`. */
export function mainData(record: DecodedRecord, bytes: number): number {
  if (record.mainLength < bytes) throw corruptRecord(record, `main data has ${record.mainLength} bytes, needs ${bytes}`);
  return record.mainOffset;
}

export function blockOf(record: DecodedRecord, blockId: number): DecodedBlock {
  const block = blockId <= record.maxBlockId ? record.blocks[blockId] : undefined;
  if (block === undefined || !block.inUse) throw corruptRecord(record, `has no block ${blockId}`);
  return block;
}

export function hasBlock(record: DecodedRecord, blockId: number): boolean {
  return blockId <= record.maxBlockId && record.blocks[blockId]?.inUse === true;
}

/** The visibility map page a record names; a block of the heap in its place would be taken for a map. */
export function requireMapBlock(record: DecodedRecord, blockId: number): void {
  if (blockOf(record, blockId).fork !== FORK_VM) throw corruptRecord(record, `block ${blockId} is not a visibility map's`);
}

/** Position of a stored tuple on the page; it must be a normal item whose header lies inside the page. */
export function tupleAt(page: Buffer, record: DecodedRecord, offnum: number): number {
  if (isNewPage(page)) throw corruptRecord(record, 'the page it changes was never initialised');
  if (offnum < 1 || offnum > maxOffset(page) || 24 + offnum * 4 > BLCKSZ) throw corruptRecord(record, `the page has no item ${offnum}`);
  const id = itemId(page, offnum);
  const at = itemOffset(id);
  if (itemFlags(id) !== LP_NORMAL || itemLength(id) < TUPLE_HEADER_BYTES || at < 24 || at + itemLength(id) > BLCKSZ)
    throw corruptRecord(record, `item ${offnum} is not a tuple`);
  return at;
}

/** ItemPointerSet on t_ctid of the tuple at `at`. */
export function setCtid(page: Buffer, at: number, block: number, offnum: number): void {
  putU16(page, at + T_CTID, block >>> 16);
  putU16(page, at + T_CTID + 2, block);
  putU16(page, at + T_CTID + 4, offnum);
}
