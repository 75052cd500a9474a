/** Redo of GiST on one page in place (gistxlog.c).
 *  Invariants: (1) the result has the bytes Postgres's redo leaves, pd_lsn included; (2) the node sequence number of a split's left page
 *  is the LSN of the record that links the right one into the parent, so it is set by redo even over a full-page image, which cannot
 *  contain it; (3) a record that does not fit its page is CORRUPT, and the page is then to be thrown away. */
import { lsnHigh, lsnLow } from '@lakebase/ids';
import {
  type DecodedBlock,
  type DecodedRecord,
  indexMultiDelete,
  indexTupleDelete,
  indexTupleOverwrite,
  initPage,
  maxOffset,
  PAGE_HEADER_BYTES,
  setPageLsn,
  setPdLower,
} from '@lakebase/pg-format';
import {
  addTuples,
  blockData,
  blockNumber,
  checkSpecial,
  INVALID_BLOCK,
  indexTupleSize,
  noSuchBlock,
  noSuchOperation,
  readOffsets,
} from '../index-page.ts';
import { corrupt, mainData } from '../record-error.ts';
import * as c from './codes.ts';

export function gistRedo(page: Buffer, record: DecodedRecord, blockId: number, _major: number): void {
  const block = record.blocks[blockId] as DecodedBlock;
  switch (record.info & 0xf0) {
    case c.XLOG_GIST_PAGE_UPDATE:
      if (blockId === 0) update(page, record, block);
      else if (blockId === 1) clearFollowRight(page, record);
      else throw noSuchBlock(record, blockId);
      break;
    case c.XLOG_GIST_DELETE:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      deleteDead(page, record);
      break;
    case c.XLOG_GIST_PAGE_SPLIT:
      if (blockId === 0) clearFollowRight(page, record);
      else split(page, record, blockId, block);
      break;
    case c.XLOG_GIST_PAGE_DELETE:
      deletePage(page, record, blockId);
      break;
    default:
      throw noSuchOperation(record);
  }
  setPageLsn(page, record.endLsn);
}

/** What Postgres does to a page even after it came as an image. */
export function gistAfterImage(page: Buffer, record: DecodedRecord, blockId: number): void {
  const op = record.info & 0xf0;
  if ((op === c.XLOG_GIST_PAGE_UPDATE && blockId === 1) || (op === c.XLOG_GIST_PAGE_SPLIT && blockId === 0))
    gistRedo(page, record, blockId, 0);
}

const changeFlags = (page: Buffer, clear: number, set: number): void =>
  void page.writeUInt16LE((page.readUInt16LE(c.OPAQUE_FLAGS) & ~clear) | set, c.OPAQUE_FLAGS);

/** gistRedoClearFollowRight: the right half now has its downlink. */
function clearFollowRight(page: Buffer, record: DecodedRecord): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  page.writeUInt32LE(lsnHigh(record.endLsn), c.OPAQUE_NSN);
  page.writeUInt32LE(lsnLow(record.endLsn), c.OPAQUE_NSN + 4);
  changeFlags(page, c.F_FOLLOW_RIGHT, 0);
}

function update(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  const main = mainData(record, 4);
  const { buf } = record;
  const deletions = buf.readUInt16LE(main);
  const insertions = buf.readUInt16LE(main + 2);
  const end = block.dataOffset + block.dataLength;
  let at = blockData(record, block, deletions * 2);
  if (deletions === 1 && insertions === 1) {
    // One for one keeps its place among the bytes, too.
    const size = indexTupleSize(record, buf, at + 2, end);
    const offnum = buf.readUInt16LE(at);
    if (!indexTupleOverwrite(page, offnum, buf, at + 2, size)) throw corrupt(record, `item ${offnum} does not take its update`);
    if (at + 2 + size !== end) throw corrupt(record, 'bytes follow its tuple');
    return;
  }
  if (deletions > 0) {
    indexMultiDelete(page, readOffsets(record, at, deletions, end));
    if ((page.readUInt16LE(c.OPAQUE_FLAGS) & c.F_LEAF) !== 0) changeFlags(page, 0, c.F_TUPLES_DELETED);
    at += deletions * 2;
  }
  const first = maxOffset(page) + 1;
  const rest = end - addTuples(page, record, at, end, first, insertions);
  if (rest !== 0 || maxOffset(page) !== first + insertions - 1) throw corrupt(record, `its data is not ${insertions} tuples`);
}

/** Items found dead by a scan go when an insertion needs room. */
function deleteDead(page: Buffer, record: DecodedRecord): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  const main = mainData(record, 8);
  const count = record.buf.readUInt16LE(main + 4);
  indexMultiDelete(page, readOffsets(record, main + 8, count, main + record.mainLength));
  changeFlags(page, c.F_HAS_GARBAGE, c.F_TUPLES_DELETED);
}

/** Blocks 1, 2, … are the pages the split leaves, from left to right; the first is the page that was split, or the new root. */
function split(page: Buffer, record: DecodedRecord, blockId: number, block: DecodedBlock): void {
  const main = mainData(record, c.SPLIT_BYTES);
  const { buf } = record;
  const pages = buf.readUInt16LE(main + c.SPLIT_PAGES);
  if (blockId > pages) throw noSuchBlock(record, blockId);
  const at = blockData(record, block, 4);
  const end = at + block.dataLength;
  const tuples = buf.readInt32LE(at);
  const isRoot = block.block === c.GIST_ROOT_BLKNO;
  const isLast = blockId === pages;
  initPage(page, c.OPAQUE_BYTES);
  page.writeUInt16LE(c.GIST_PAGE_ID, c.OPAQUE_PAGE_ID);
  if (addTuples(page, record, at + 4, end, 1, tuples) !== end || maxOffset(page) !== tuples)
    throw corrupt(record, `its data is not ${tuples} tuples`);

  let rightlink = INVALID_BLOCK;
  if (!isRoot) rightlink = isLast ? buf.readUInt32LE(main + c.SPLIT_RIGHTLINK) : blockNumber(record, blockId + 1);
  page.writeUInt32LE(rightlink, c.OPAQUE_RIGHTLINK);
  page.writeUInt32LE(buf.readUInt32LE(main + c.SPLIT_NSN + 4), c.OPAQUE_NSN);
  page.writeUInt32LE(buf.readUInt32LE(main + c.SPLIT_NSN), c.OPAQUE_NSN + 4);
  let flags = 0;
  if (!isRoot && buf[main + c.SPLIT_IS_LEAF] !== 0) flags |= c.F_LEAF;
  // The pages below a new root have their downlinks there already.
  const isRootSplit = blockNumber(record, 1) === c.GIST_ROOT_BLKNO;
  if (!isLast && !isRootSplit && buf[main + c.SPLIT_FOLLOW_RIGHT] !== 0) flags |= c.F_FOLLOW_RIGHT;
  page.writeUInt16LE(flags, c.OPAQUE_FLAGS);
}

function deletePage(page: Buffer, record: DecodedRecord, blockId: number): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  const main = mainData(record, 10);
  const { buf } = record;
  if (blockId === 0) {
    // A deleted page holds nothing but the full xid of its deletion.
    if (maxOffset(page) !== 0) throw corrupt(record, 'deletes a page with items');
    changeFlags(page, 0, c.F_DELETED);
    setPdLower(page, PAGE_HEADER_BYTES + 8);
    buf.copy(page, PAGE_HEADER_BYTES, main, main + 8);
  } else if (blockId === 1) indexTupleDelete(page, buf.readUInt16LE(main + 8));
  else throw noSuchBlock(record, blockId);
}
