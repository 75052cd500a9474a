/** What redo of every index access method needs of its page and of its record's parts.
 *  Invariants: (1) an edit starts with {@link checkSpecial}, so line pointers and special space are known to lie inside the page; (2) lists
 *  and tuples are read only inside the part of the record the caller names; what sticks out is CORRUPT. */
import { BLCKSZ } from '@lakebase/ids';
import {
  checkedItemId,
  checkPagePointers,
  type DecodedBlock,
  type DecodedRecord,
  itemLength,
  itemOffset,
  maxAlign,
  pageAddItem,
  pdSpecial,
} from '@lakebase/pg-format';
import { corrupt } from './record-error.ts';

/** InvalidBlockNumber. */
export const INVALID_BLOCK = 0xffff_ffff;
/** IndexTupleData: t_tid (6 bytes), t_info with the size in its low 13 bits. */
export const INDEX_TUPLE_HEADER_BYTES = 8;
const INDEX_SIZE_MASK = 0x1fff;

/** BlockIdData: two 16-bit halves, high first. */
export const readBlockId = (buf: Buffer, at: number): number => buf.readUInt16LE(at) * 0x1_0000 + buf.readUInt16LE(at + 2);
export function writeBlockId(buf: Buffer, at: number, block: number): void {
  buf.writeUInt16LE(block >>> 16, at);
  buf.writeUInt16LE(block & 0xffff, at + 2);
}

/** ItemPointerSet. */
export function writeTid(buf: Buffer, at: number, block: number, offnum: number): void {
  writeBlockId(buf, at, block);
  buf.writeUInt16LE(offnum, at + 4);
}

/** Page pointers agree with each other and leave `bytes` of special space, as this access method's pages have. */
export function checkSpecial(page: Buffer, record: DecodedRecord, bytes: number): void {
  checkPagePointers(page);
  if (pdSpecial(page) !== BLCKSZ - bytes) throw corrupt(record, `the page has its special space at ${pdSpecial(page)}`);
}

export const hasBlock = (record: DecodedRecord, id: number): boolean => id <= record.maxBlockId && record.blocks[id]?.inUse === true;

/** Block number of the record's block `id`. */
export function blockNumber(record: DecodedRecord, id: number): number {
  if (!hasBlock(record, id)) throw corrupt(record, `has no block ${id}`);
  return (record.blocks[id] as DecodedBlock).block;
}

export const noSuchBlock = (record: DecodedRecord, id: number) => corrupt(record, `changes nothing on a block ${id}`);
export const noSuchOperation = (record: DecodedRecord) => corrupt(record, 'no such operation on a block');
/** For records whose pages always come as full-page images. */
export const imageMissing = (record: DecodedRecord, id: number) => corrupt(record, `comes without the image of its block ${id}`);

/** Offset of the block's data, of which `need` bytes must be there. */
export function blockData(record: DecodedRecord, block: DecodedBlock, need: number): number {
  if (block.dataLength < need) throw corrupt(record, `block data of ${block.dataLength} bytes, ${need} are needed`);
  return block.dataOffset;
}

/** `count` item numbers at `at`, which must end before `end`. */
export function readOffsets(record: DecodedRecord, at: number, count: number, end: number): number[] {
  if (count < 0 || at + count * 2 > end) throw corrupt(record, `a list of ${count} item numbers is cut`);
  const offnums: number[] = [];
  for (let i = 0; i < count; i++) offnums.push(record.buf.readUInt16LE(at + i * 2));
  return offnums;
}

/** IndexTupleSize of the tuple at `at`, which must lie before `end`. */
export function indexTupleSize(record: DecodedRecord, buf: Buffer, at: number, end: number): number {
  if (end - at < INDEX_TUPLE_HEADER_BYTES) throw corrupt(record, 'an index tuple is cut');
  const size = buf.readUInt16LE(at + 6) & INDEX_SIZE_MASK;
  if (size < INDEX_TUPLE_HEADER_BYTES || size > end - at) throw corrupt(record, `an index tuple of ${size} bytes where ${end - at} are`);
  return size;
}

/** The item `src[at, at + size)` becomes number `offnum`, later ones move up. */
export function addItem(page: Buffer, record: DecodedRecord, src: Buffer, at: number, size: number, offnum: number, flags = 0): void {
  if (offnum === 0 || pageAddItem(page, src, at, size, offnum, flags) !== offnum)
    throw corrupt(record, `an item of ${size} bytes cannot be added as number ${offnum}`);
}

/** Index tuples one behind the other at [at, end) of the record become items `first`, `first` + 1, …; at most `limit`. Returns their end. */
export function addTuples(page: Buffer, record: DecodedRecord, at: number, end: number, first: number, limit: number): number {
  let from = at;
  for (let i = 0; i < limit && from < end; i++) {
    const size = indexTupleSize(record, record.buf, from, end);
    addItem(page, record, record.buf, from, size, first + i);
    from += size;
  }
  return from;
}

/** The same for tuples that are aligned in the record and go to the item numbers given, one for each. */
export function addAlignedTuples(page: Buffer, record: DecodedRecord, at: number, end: number, offnums: readonly number[]): void {
  let from = at;
  for (const offnum of offnums) {
    const size = maxAlign(indexTupleSize(record, record.buf, from, end));
    if (size > end - from) throw corrupt(record, 'the last tuple is cut');
    addItem(page, record, record.buf, from, size, offnum);
    from += size;
  }
  if (from !== end) throw corrupt(record, `${end - from} bytes follow the last tuple`);
}

/** Where the stored item `offnum` begins; it has at least `need` bytes and lies before the special space. */
export function itemStart(page: Buffer, record: DecodedRecord, offnum: number, need: number): number {
  const id = checkedItemId(page, offnum);
  if (itemLength(id) < need || itemOffset(id) + itemLength(id) > pdSpecial(page))
    throw corrupt(record, `item ${offnum} has ${itemLength(id)} bytes at ${itemOffset(id)}`);
  return itemOffset(id);
}
