/** Redo of hash indexes on one page in place (hash_xlog.c).
 *  Invariants: (1) the result has the bytes Postgres's redo leaves, pd_lsn included; (2) blocks a record names for their lock only stay
 *  as they are; (3) a record that does not fit its page is CORRUPT, and the page is then to be thrown away. */
import { type DecodedBlock, type DecodedRecord, indexMultiDelete, setPageLsn } from '@lakebase/pg-format';
import {
  addAlignedTuples,
  addItem,
  blockData,
  blockNumber,
  checkSpecial,
  imageMissing,
  indexTupleSize,
  INVALID_BLOCK,
  noSuchBlock,
  noSuchOperation,
  readOffsets,
} from '../index-page.ts';
import { corrupt, mainData } from '../record-error.ts';
import * as c from './codes.ts';
import * as meta from './metapage.ts';
import { changeBit, clearHashFlag, initBitmapPage, initHashPage } from './page.ts';

export function hashRedo(page: Buffer, record: DecodedRecord, blockId: number, _major: number): void {
  const block = record.blocks[blockId] as DecodedBlock;
  if (isInitialised(record, blockId)) initialise(page, record, blockId, block);
  else {
    checkSpecial(page, record, c.OPAQUE_BYTES);
    const types = typesChanged(record, blockId);
    if (types !== 0 && (page.readUInt16LE(c.OPAQUE_FLAGS) & types) === 0)
      throw corrupt(record, `block ${blockId} is a page of another type`);
    if (!change(page, record, blockId, block)) return;
  }
  setPageLsn(page, record.endLsn);
}

/** What Postgres does to a page even after it came as an image. */
export function hashAfterImage(page: Buffer, record: DecodedRecord, blockId: number): void {
  const op = record.info & 0xf0;
  if ((op === c.XLOG_HASH_SPLIT_ALLOCATE_PAGE && blockId === 0) || (op === c.XLOG_HASH_SPLIT_COMPLETE && blockId <= 1))
    hashRedo(page, record, blockId, 0);
}

/** The types of page this block of the record may be: what it does to one would be garbage on another. 0: it does nothing. */
function typesChanged(record: DecodedRecord, blockId: number): number {
  switch (record.info & 0xf0) {
    case c.XLOG_HASH_SPLIT_PAGE:
      return 0;
    case c.XLOG_HASH_UPDATE_META_PAGE:
      return c.LH_META_PAGE;
    case c.XLOG_HASH_INIT_BITMAP_PAGE:
    case c.XLOG_HASH_INSERT:
    case c.XLOG_HASH_VACUUM_ONE_PAGE:
      if (blockId === 1) return c.LH_META_PAGE;
      break;
    case c.XLOG_HASH_ADD_OVFL_PAGE:
      if (blockId === 2) return c.LH_BITMAP_PAGE;
      if (blockId === 4) return c.LH_META_PAGE;
      break;
    case c.XLOG_HASH_SPLIT_ALLOCATE_PAGE:
      if (blockId === 2) return c.LH_META_PAGE;
      break;
    case c.XLOG_HASH_SQUEEZE_PAGE:
      if (blockId === 5) return c.LH_BITMAP_PAGE;
      if (blockId === 6) return c.LH_META_PAGE;
      break;
    default:
      break;
  }
  return c.LH_BUCKET_PAGE | c.LH_OVERFLOW_PAGE;
}

/** Flags a record gives to a bucket's first page: they may not make it anything else. */
function bucketFlags(record: DecodedRecord, at: number): number {
  const flags = record.buf.readUInt16LE(at);
  if ((flags & c.LH_PAGE_TYPE) !== c.LH_BUCKET_PAGE) throw corrupt(record, `flags ${flags} for a bucket`);
  return flags;
}

/** Pages made from nothing, whatever was there. */
function isInitialised(record: DecodedRecord, blockId: number): boolean {
  switch (record.info & 0xf0) {
    case c.XLOG_HASH_INIT_META_PAGE:
    case c.XLOG_HASH_INIT_BITMAP_PAGE:
      return blockId === 0;
    case c.XLOG_HASH_ADD_OVFL_PAGE:
      return blockId === 0 || blockId === 3;
    case c.XLOG_HASH_SPLIT_ALLOCATE_PAGE:
      return blockId === 1;
    case c.XLOG_HASH_SQUEEZE_PAGE:
      return blockId === 2;
    default:
      return false;
  }
}

function initialise(page: Buffer, record: DecodedRecord, blockId: number, block: DecodedBlock): void {
  const { buf } = record;
  switch (record.info & 0xf0) {
    case c.XLOG_HASH_INIT_META_PAGE:
      return meta.initMetapage(page, record);
    case c.XLOG_HASH_INIT_BITMAP_PAGE:
      return initBitmapPage(page, record, buf.readUInt16LE(mainData(record, 2)));
    case c.XLOG_HASH_ADD_OVFL_PAGE: {
      if (blockId === 3) return initBitmapPage(page, record, buf.readUInt16LE(mainData(record, 3)));
      const bucket = buf.readUInt32LE(blockData(record, block, 4));
      return initHashPage(page, { prev: blockNumber(record, 1), bucket, flags: c.LH_OVERFLOW_PAGE });
    }
    case c.XLOG_HASH_SPLIT_ALLOCATE_PAGE: {
      const main = mainData(record, 9);
      const bucket = buf.readUInt32LE(main);
      // A bucket page keeps in its prev-link the highest bucket there was when it was last split.
      return initHashPage(page, { prev: bucket, bucket, flags: bucketFlags(record, main + 6) });
    }
    default:
      return initHashPage(page, { prev: INVALID_BLOCK, bucket: c.INVALID_BUCKET, flags: c.LH_UNUSED_PAGE });
  }
}

/** False when the page stays as it is, its LSN too. */
function change(page: Buffer, record: DecodedRecord, blockId: number, block: DecodedBlock): boolean {
  const { buf } = record;
  switch (record.info & 0xf0) {
    case c.XLOG_HASH_INIT_BITMAP_PAGE:
      // The first bitmap page follows the metapage and the buckets.
      meta.addBitmap(page, record, (page.readUInt32LE(c.META_MAXBUCKET) + 2) >>> 0);
      return true;
    case c.XLOG_HASH_INSERT: {
      if (blockId === 1) {
        meta.addTupleCount(page, 1);
        return true;
      }
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      const offnum = buf.readUInt16LE(mainData(record, 2));
      indexTupleSize(record, buf, block.dataOffset, block.dataOffset + block.dataLength);
      addItem(page, record, buf, block.dataOffset, block.dataLength, offnum);
      return true;
    }
    case c.XLOG_HASH_ADD_OVFL_PAGE:
      if (blockId === 1) page.writeUInt32LE(blockNumber(record, 0), c.OPAQUE_NEXT);
      else if (blockId === 2) changeBit(page, record, block, true);
      else if (blockId === 4) meta.addOverflowPage(page, record, block);
      else throw noSuchBlock(record, blockId);
      return true;
    case c.XLOG_HASH_SPLIT_ALLOCATE_PAGE:
      if (blockId === 0) {
        const main = mainData(record, 9);
        page.writeUInt16LE(bucketFlags(record, main + 4), c.OPAQUE_FLAGS);
        page.writeUInt32LE(buf.readUInt32LE(main), c.OPAQUE_PREV);
      } else if (blockId === 2) meta.allocateBucket(page, record, block);
      else throw noSuchBlock(record, blockId);
      return true;
    case c.XLOG_HASH_SPLIT_PAGE:
      throw imageMissing(record, blockId);
    case c.XLOG_HASH_SPLIT_COMPLETE:
      if (blockId > 1) throw noSuchBlock(record, blockId);
      page.writeUInt16LE(bucketFlags(record, mainData(record, 4) + blockId * 2), c.OPAQUE_FLAGS);
      return true;
    case c.XLOG_HASH_MOVE_PAGE_CONTENTS:
      if (blockId === 0) return false;
      if (blockId === 1) moveIn(page, record, block, buf.readUInt16LE(mainData(record, 3)));
      else if (blockId === 2) deleteListed(page, record, block);
      else throw noSuchBlock(record, blockId);
      return true;
    case c.XLOG_HASH_SQUEEZE_PAGE:
      return squeeze(page, record, blockId, block);
    case c.XLOG_HASH_DELETE:
      if (blockId === 0) return false;
      if (blockId !== 1) throw noSuchBlock(record, blockId);
      deleteListed(page, record, block);
      if (buf[mainData(record, 2)] !== 0) clearHashFlag(page, c.LH_PAGE_HAS_DEAD_TUPLES);
      return true;
    case c.XLOG_HASH_SPLIT_CLEANUP:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      clearHashFlag(page, c.LH_BUCKET_NEEDS_SPLIT_CLEANUP);
      return true;
    case c.XLOG_HASH_UPDATE_META_PAGE:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      buf.copy(page, c.META_NTUPLES, mainData(record, 8), record.mainOffset + 8);
      return true;
    case c.XLOG_HASH_VACUUM_ONE_PAGE:
      vacuumOnePage(page, record, blockId);
      return true;
    default:
      throw noSuchOperation(record);
  }
}

/** `count` item numbers, then as many tuples for them. */
function moveIn(page: Buffer, record: DecodedRecord, block: DecodedBlock, count: number): void {
  if (count === 0) return;
  const end = block.dataOffset + block.dataLength;
  const offnums = readOffsets(record, block.dataOffset, count, end);
  addAlignedTuples(page, record, block.dataOffset + count * 2, end, offnums);
}

/** The block's data is the list of items to delete. */
function deleteListed(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  const count = block.dataLength >>> 1;
  if (count > 0) indexMultiDelete(page, readOffsets(record, block.dataOffset, count, block.dataOffset + block.dataLength));
}

/** An overflow page is freed: its last tuples move to block 1, its neighbours (3 and 4, or 1 in place of 3) are linked past it. */
function squeeze(page: Buffer, record: DecodedRecord, blockId: number, block: DecodedBlock): boolean {
  const main = mainData(record, 12);
  const { buf } = record;
  const prev = buf.readUInt32LE(main);
  const next = buf.readUInt32LE(main + 4);
  const tuples = buf.readUInt16LE(main + 8);
  const prevIsWritten = buf[main + 11] !== 0;
  switch (blockId) {
    case 0:
      return false;
    case 1:
      moveIn(page, record, block, tuples);
      if (prevIsWritten) page.writeUInt32LE(next, c.OPAQUE_NEXT);
      return tuples > 0 || prevIsWritten;
    case 3:
      if (prevIsWritten) return false;
      page.writeUInt32LE(next, c.OPAQUE_NEXT);
      return true;
    case 4:
      page.writeUInt32LE(prev, c.OPAQUE_PREV);
      return true;
    case 5:
      changeBit(page, record, block, false);
      return true;
    case 6:
      meta.setFirstFree(page, record, block);
      return true;
    default:
      throw noSuchBlock(record, blockId);
  }
}

/** Items found dead by a scan go when an insertion needs room. */
function vacuumOnePage(page: Buffer, record: DecodedRecord, blockId: number): void {
  const main = mainData(record, 8);
  const count = record.buf.readUInt16LE(main + 4);
  if (blockId === 1) return meta.addTupleCount(page, -count);
  if (blockId !== 0) throw noSuchBlock(record, blockId);
  indexMultiDelete(page, readOffsets(record, main + 8, count, main + record.mainLength));
  clearHashFlag(page, c.LH_PAGE_HAS_DEAD_TUPLES);
}
