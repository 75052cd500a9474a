/** Redo of GIN on one page in place (ginxlog.c).
 *  Invariants: (1) the result has the bytes Postgres's redo leaves, pd_lsn included; (2) splits and the vacuum of entry pages always come as
 *  full-page images, which never come here; (3) a record that does not fit its page is CORRUPT, and the page is then to be thrown away. */
import {
  type DecodedBlock,
  type DecodedRecord,
  indexTupleDelete,
  initPage,
  maxOffset,
  PAGE_HEADER_BYTES,
  setPageLsn,
  setPdLower,
  setPruneXid,
} from '@lakebase/pg-format';
import {
  addItem,
  addTuples,
  blockData,
  checkSpecial,
  imageMissing,
  indexTupleSize,
  INDEX_TUPLE_HEADER_BYTES,
  INVALID_BLOCK,
  itemStart,
  noSuchBlock,
  noSuchOperation,
  readBlockId,
  writeBlockId,
  writeTid,
} from '../index-page.ts';
import { corrupt, mainData } from '../record-error.ts';
import * as c from './codes.ts';
import { recompress } from './recompress.ts';

export function ginRedo(page: Buffer, record: DecodedRecord, blockId: number, _major: number): void {
  const block = record.blocks[blockId] as DecodedBlock;
  switch (record.info & 0xf0) {
    case c.XLOG_GIN_CREATE_PTREE:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      createPostingTree(page, record);
      break;
    case c.XLOG_GIN_INSERT:
      if (blockId === 0) insert(page, record, block);
      else if (blockId === 1) clearIncompleteSplit(page, record);
      else throw noSuchBlock(record, blockId);
      break;
    case c.XLOG_GIN_SPLIT:
      if (blockId !== 3) throw imageMissing(record, blockId);
      clearIncompleteSplit(page, record);
      break;
    case c.XLOG_GIN_VACUUM_PAGE:
      throw imageMissing(record, blockId);
    case c.XLOG_GIN_VACUUM_DATA_LEAF_PAGE:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      checkSpecial(page, record, c.OPAQUE_BYTES);
      recompress(page, record, block.dataOffset, block.dataOffset + block.dataLength);
      break;
    case c.XLOG_GIN_DELETE_PAGE:
      deletePage(page, record, blockId);
      break;
    case c.XLOG_GIN_UPDATE_META_PAGE:
      if (blockId === 0) restoreMeta(page, record, mainData(record, c.UPDATE_META_BYTES) + c.UPDATE_META_METADATA);
      else if (blockId !== 1) throw noSuchBlock(record, blockId);
      else if (!updateTail(page, record, block)) return;
      break;
    case c.XLOG_GIN_INSERT_LISTPAGE:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      insertListPage(page, record, block);
      break;
    case c.XLOG_GIN_DELETE_LISTPAGE:
      if (blockId === 0) restoreMeta(page, record, mainData(record, c.META_BYTES));
      else initGinPage(page, c.GIN_DELETED);
      break;
    default:
      throw noSuchOperation(record);
  }
  setPageLsn(page, record.endLsn);
}

function initGinPage(page: Buffer, flags: number): void {
  initPage(page, c.OPAQUE_BYTES);
  page.writeUInt16LE(flags, c.OPAQUE_FLAGS);
  page.writeUInt32LE(INVALID_BLOCK, c.OPAQUE_RIGHTLINK);
}

function createPostingTree(page: Buffer, record: DecodedRecord): void {
  const main = mainData(record, 4);
  const size = record.buf.readUInt32LE(main);
  if (size > record.mainLength - 4 || size > c.DATA_END - c.DATA_START) throw corrupt(record, `posting lists of ${size} bytes`);
  initGinPage(page, c.GIN_DATA | c.GIN_LEAF | c.GIN_COMPRESSED);
  record.buf.copy(page, c.DATA_START, main + 4, main + 4 + size);
  setPdLower(page, c.DATA_START + size);
}

function clearIncompleteSplit(page: Buffer, record: DecodedRecord): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  page.writeUInt16LE(page.readUInt16LE(c.OPAQUE_FLAGS) & ~c.GIN_INCOMPLETE_SPLIT, c.OPAQUE_FLAGS);
}

function insert(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  const main = mainData(record, 2);
  const { buf } = record;
  const flags = buf.readUInt16LE(main);
  const isLeaf = (flags & c.GIN_INSERT_ISLEAF) !== 0;
  // An insertion into an inner page completes the split of its child: the item there now leads to the right half.
  const rightChild = isLeaf ? INVALID_BLOCK : readBlockId(buf, mainData(record, 10) + 6);
  if ((flags & c.GIN_INSERT_ISDATA) === 0) insertEntry(page, record, block, rightChild);
  else if (isLeaf) recompress(page, record, block.dataOffset, block.dataOffset + block.dataLength);
  else insertPostingItem(page, record, block, rightChild);
}

function insertEntry(page: Buffer, record: DecodedRecord, block: DecodedBlock, rightChild: number): void {
  const { buf } = record;
  const at = blockData(record, block, 4 + INDEX_TUPLE_HEADER_BYTES);
  const offnum = buf.readUInt16LE(at);
  const size = indexTupleSize(record, buf, at + 4, block.dataOffset + block.dataLength);
  if (rightChild !== INVALID_BLOCK) writeTid(page, itemStart(page, record, offnum, INDEX_TUPLE_HEADER_BYTES), rightChild, 0);
  if (buf[at + 2] !== 0) indexTupleDelete(page, offnum);
  addItem(page, record, buf, at + 4, size, offnum);
}

/** Where posting item `offnum` lies; `count` items are on the inner page. */
const postingItemAt = (offnum: number): number => c.DATA_START + (offnum - 1) * c.POSTING_ITEM_BYTES;

function postingItemCount(page: Buffer, record: DecodedRecord): number {
  const flags = page.readUInt16LE(c.OPAQUE_FLAGS);
  if ((flags & (c.GIN_DATA | c.GIN_LEAF)) !== c.GIN_DATA) throw corrupt(record, 'the page is no inner posting tree page');
  const count = page.readUInt16LE(c.OPAQUE_MAXOFF);
  if (postingItemAt(count + 1) > c.DATA_END) throw corrupt(record, `the page claims ${count} posting items`);
  return count;
}

function setPostingItemCount(page: Buffer, count: number): void {
  page.writeUInt16LE(count, c.OPAQUE_MAXOFF);
  setPdLower(page, postingItemAt(count + 1));
}

function insertPostingItem(page: Buffer, record: DecodedRecord, block: DecodedBlock, rightChild: number): void {
  const data = blockData(record, block, 2 + c.POSTING_ITEM_BYTES);
  const offnum = record.buf.readUInt16LE(data);
  const count = postingItemCount(page, record);
  const at = postingItemAt(offnum);
  const end = postingItemAt(count + 1);
  if (offnum < 1 || offnum > count || end + c.POSTING_ITEM_BYTES > c.DATA_END)
    throw corrupt(record, `no room for posting item ${offnum} among ${count}`);
  writeBlockId(page, at, rightChild);
  page.copyWithin(at + c.POSTING_ITEM_BYTES, at, end);
  record.buf.copy(page, at, data + 2, data + 2 + c.POSTING_ITEM_BYTES);
  setPostingItemCount(page, count + 1);
}

function deletePage(page: Buffer, record: DecodedRecord, blockId: number): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  const main = mainData(record, 12);
  const { buf } = record;
  switch (blockId) {
    case 0:
      page.writeUInt16LE(page.readUInt16LE(c.OPAQUE_FLAGS) | c.GIN_DELETED, c.OPAQUE_FLAGS);
      setPruneXid(page, buf.readUInt32LE(main + 8));
      return;
    case 1: {
      const offnum = buf.readUInt16LE(main);
      const count = postingItemCount(page, record);
      if (offnum < 1 || offnum > count) throw corrupt(record, `no posting item ${offnum} among ${count}`);
      page.copyWithin(postingItemAt(offnum), postingItemAt(offnum + 1), postingItemAt(count + 1));
      setPostingItemCount(page, count - 1);
      return;
    }
    case 2:
      page.writeUInt32LE(buf.readUInt32LE(main + 4), c.OPAQUE_RIGHTLINK);
      return;
    default:
      throw noSuchBlock(record, blockId);
  }
}

/** The record holds the whole metapage, at `at`. */
function restoreMeta(page: Buffer, record: DecodedRecord, at: number): void {
  initGinPage(page, c.GIN_META);
  record.buf.copy(page, PAGE_HEADER_BYTES, at, at + c.META_BYTES);
  setPdLower(page, PAGE_HEADER_BYTES + c.META_BYTES);
}

/** The pending list's last page takes tuples, or a link to the new last page. False when the record changes only the metapage. */
function updateTail(page: Buffer, record: DecodedRecord, block: DecodedBlock): boolean {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  const main = mainData(record, c.UPDATE_META_BYTES);
  const { buf } = record;
  const count = buf.readInt32LE(main + c.UPDATE_META_NTUPLES);
  if (count > 0) {
    addAll(page, record, block, maxOffset(page) + 1, count);
    // On a list page this counts rows, not entries.
    page.writeUInt16LE((page.readUInt16LE(c.OPAQUE_MAXOFF) + 1) & 0xffff, c.OPAQUE_MAXOFF);
    return true;
  }
  if (buf.readUInt32LE(main + c.UPDATE_META_PREV_TAIL) === INVALID_BLOCK) return false;
  page.writeUInt32LE(buf.readUInt32LE(main + c.UPDATE_META_NEW_RIGHTLINK), c.OPAQUE_RIGHTLINK);
  return true;
}

/** The block's data is `count` tuples. */
function addAll(page: Buffer, record: DecodedRecord, block: DecodedBlock, first: number, count: number): void {
  const end = block.dataOffset + block.dataLength;
  const rest = end - addTuples(page, record, block.dataOffset, end, first, count);
  if (rest !== 0 || maxOffset(page) !== first + count - 1) throw corrupt(record, `its data is not ${count} tuples`);
}

function insertListPage(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  const main = mainData(record, 8);
  const rightlink = record.buf.readUInt32LE(main);
  const isTail = rightlink === INVALID_BLOCK;
  initGinPage(page, isTail ? c.GIN_LIST | c.GIN_LIST_FULLROW : c.GIN_LIST);
  page.writeUInt32LE(rightlink, c.OPAQUE_RIGHTLINK);
  page.writeUInt16LE(isTail ? 1 : 0, c.OPAQUE_MAXOFF);
  addAll(page, record, block, 1, record.buf.readInt32LE(main + 4));
}
