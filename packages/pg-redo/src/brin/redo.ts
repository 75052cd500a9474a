/** Redo of BRIN on one page in place (brin_xlog.c). Free space of BRIN pages is not WAL-logged and redo does not touch it either.
 *  Invariants: (1) the result has the bytes Postgres's redo leaves, pd_lsn included; (2) full-page images never come here; (3) a record
 *  that does not fit its page is CORRUPT, and the page is then to be thrown away. */
import {
  type DecodedBlock,
  type DecodedRecord,
  indexTupleDeleteNoCompact,
  indexTupleOverwrite,
  initPage,
  maxOffset,
  PAGE_HEADER_BYTES,
  PAI_OVERWRITE,
  setPageLsn,
  setPdLower,
} from '@lakebase/pg-format';
import { addItem, blockData, blockNumber, checkSpecial, INVALID_BLOCK, noSuchBlock, noSuchOperation, writeTid } from '../index-page.ts';
import { corrupt, mainData } from '../record-error.ts';
import * as c from './codes.ts';

export function brinRedo(page: Buffer, record: DecodedRecord, blockId: number, _major: number): void {
  const block = record.blocks[blockId] as DecodedBlock;
  switch (record.info & c.XLOG_BRIN_OPMASK) {
    case c.XLOG_BRIN_CREATE_INDEX:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      createIndex(page, record);
      break;
    case c.XLOG_BRIN_INSERT:
      insert(page, record, blockId, mainData(record, c.INSERT_BYTES));
      break;
    case c.XLOG_BRIN_UPDATE: {
      const main = mainData(record, c.UPDATE_INSERT_OFFSET + c.INSERT_BYTES);
      if (blockId === 2) removeItem(page, record, record.buf.readUInt16LE(main));
      else insert(page, record, blockId, main + c.UPDATE_INSERT_OFFSET);
      break;
    }
    case c.XLOG_BRIN_SAMEPAGE_UPDATE:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      overwrite(page, record, block);
      break;
    case c.XLOG_BRIN_REVMAP_EXTEND:
      if (blockId === 0) extendMeta(page, record);
      else if (blockId === 1) initBrinPage(page, c.BRIN_PAGETYPE_REVMAP);
      else throw noSuchBlock(record, blockId);
      break;
    case c.XLOG_BRIN_DESUMMARIZE: {
      const main = mainData(record, c.DESUMMARIZE_BYTES);
      const { buf } = record;
      if (blockId === 0)
        setRangeTid(page, record, { pagesPerRange: buf.readUInt32LE(main), heapBlock: buf.readUInt32LE(main + 4) }, INVALID_BLOCK, 0);
      else if (blockId === 1) removeItem(page, record, buf.readUInt16LE(main + 8));
      else throw noSuchBlock(record, blockId);
      break;
    }
    default:
      throw noSuchOperation(record);
  }
  setPageLsn(page, record.endLsn);
}

/** A page of another type would take the change, and be garbage. */
function checkType(page: Buffer, record: DecodedRecord, type: number): void {
  checkSpecial(page, record, c.SPECIAL_BYTES);
  if (page.readUInt16LE(c.PAGE_TYPE_OFFSET) !== type)
    throw corrupt(record, `changes a page of type ${page.readUInt16LE(c.PAGE_TYPE_OFFSET).toString(16)}`);
}

function initBrinPage(page: Buffer, type: number): void {
  initPage(page, c.SPECIAL_BYTES);
  page.writeUInt16LE(type, c.PAGE_TYPE_OFFSET);
}

function createIndex(page: Buffer, record: DecodedRecord): void {
  const main = mainData(record, c.CREATE_BYTES);
  initBrinPage(page, c.BRIN_PAGETYPE_META);
  page.writeUInt32LE(c.BRIN_META_MAGIC, PAGE_HEADER_BYTES);
  page.writeUInt32LE(record.buf.readUInt16LE(main + 4), PAGE_HEADER_BYTES + 4);
  page.writeUInt32LE(record.buf.readUInt32LE(main), PAGE_HEADER_BYTES + 8);
  setPdLower(page, PAGE_HEADER_BYTES + c.META_BYTES);
}

/** xl_brin_insert at `at`: the tuple goes onto block 0, its place into the revmap page, block 1. */
function insert(page: Buffer, record: DecodedRecord, blockId: number, at: number): void {
  const { buf } = record;
  const offnum = buf.readUInt16LE(at + 8);
  if (blockId === 1) {
    const range = { pagesPerRange: buf.readUInt32LE(at + 4), heapBlock: buf.readUInt32LE(at) };
    return setRangeTid(page, record, range, blockNumber(record, 0), offnum);
  }
  if (blockId !== 0) throw noSuchBlock(record, blockId);
  const block = record.blocks[0] as DecodedBlock;
  if ((record.info & c.XLOG_BRIN_INIT_PAGE) !== 0) initBrinPage(page, c.BRIN_PAGETYPE_REGULAR);
  checkType(page, record, c.BRIN_PAGETYPE_REGULAR);
  if (maxOffset(page) + 1 < offnum) throw corrupt(record, `inserts item ${offnum} after ${maxOffset(page)}`);
  addItem(page, record, buf, block.dataOffset, block.dataLength, offnum, PAI_OVERWRITE);
}

/** brinSetHeapBlockItemptr. */
function setRangeTid(
  page: Buffer,
  record: DecodedRecord,
  range: { readonly pagesPerRange: number; readonly heapBlock: number },
  block: number,
  offnum: number,
): void {
  checkType(page, record, c.BRIN_PAGETYPE_REVMAP);
  if (range.pagesPerRange === 0) throw corrupt(record, 'a range of no pages');
  const index = Math.floor(range.heapBlock / range.pagesPerRange) % c.REVMAP_ITEMS;
  writeTid(page, PAGE_HEADER_BYTES + index * 6, block, offnum);
}

function removeItem(page: Buffer, record: DecodedRecord, offnum: number): void {
  checkType(page, record, c.BRIN_PAGETYPE_REGULAR);
  indexTupleDeleteNoCompact(page, offnum);
}

function overwrite(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  checkType(page, record, c.BRIN_PAGETYPE_REGULAR);
  const offnum = record.buf.readUInt16LE(mainData(record, 2));
  if (!indexTupleOverwrite(page, offnum, record.buf, blockData(record, block, 1), block.dataLength))
    throw corrupt(record, `item ${offnum} does not take its update`);
}

/** Its pd_lower is set too: it lies wrong in an index that was upgraded from before 11. */
function extendMeta(page: Buffer, record: DecodedRecord): void {
  checkType(page, record, c.BRIN_PAGETYPE_META);
  page.writeUInt32LE(record.buf.readUInt32LE(mainData(record, 4)), PAGE_HEADER_BYTES + c.META_LAST_REVMAP_PAGE);
  setPdLower(page, PAGE_HEADER_BYTES + c.META_BYTES);
}
