/** Redo of nbtree on one page in place (nbtxlog.c).
 *  Invariants: (1) the result has the bytes Postgres's redo leaves outside the hole, pd_lsn included; (2) full-page images never come here;
 *  (3) a record that does not fit its page is CORRUPT, and the page is then to be thrown away. */
import { LakebaseError } from '@lakebase/base';
import { BLCKSZ } from '@lakebase/ids';
import {
  checkedItemId,
  checkPagePointers,
  type DecodedBlock,
  type DecodedRecord,
  indexMultiDelete,
  indexTupleDelete,
  indexTupleOverwrite,
  initPage,
  itemLength,
  itemOffset,
  maxAlign,
  maxOffset,
  PAGE_HEADER_BYTES,
  pageAddItem,
  pdSpecial,
  setPageLsn,
  setPdLower,
  scratchBuffer,
} from '@lakebase/pg-format';
import { corrupt, mainData } from '../record-error.ts';
import * as c from './codes.ts';
import { dedup } from './dedup.ts';
import { setTidBlock, swapPosting, tidBlock, tupleSize, updatePosting } from './tuple.ts';

/** Page being rebuilt, and tuples being formed; redo is synchronous, one of each is enough. */
const rebuilt = scratchBuffer(BLCKSZ);
const tuple = scratchBuffer(BLCKSZ);
const item = scratchBuffer(BLCKSZ);
const tids = scratchBuffer(BLCKSZ);

export function btreeRedo(page: Buffer, record: DecodedRecord, blockId: number, major: number): void {
  const block = record.blocks[blockId] as DecodedBlock;
  switch (record.info & 0xf0) {
    case c.XLOG_BTREE_INSERT_LEAF:
      insert(page, record, block, false);
      break;
    case c.XLOG_BTREE_INSERT_POST:
      insert(page, record, block, true);
      break;
    case c.XLOG_BTREE_INSERT_UPPER:
    case c.XLOG_BTREE_INSERT_META:
      if (blockId === 0) insert(page, record, block, false);
      else if (blockId === 1) clearIncompleteSplit(page);
      else restoreMeta(page, record, block);
      break;
    case c.XLOG_BTREE_SPLIT_L:
    case c.XLOG_BTREE_SPLIT_R:
      split(page, record, blockId);
      break;
    case c.XLOG_BTREE_DEDUP:
      checkIndexPage(page);
      dedup(page, record, block, { rebuilt, tuple, tids });
      break;
    case c.XLOG_BTREE_VACUUM: {
      const main = mainData(record, 4);
      deleteItems(page, record, block, record.buf.readUInt16LE(main), record.buf.readUInt16LE(main + 2));
      // Before 18 redo left the id of the VACUUM that last split the page in place.
      if (major >= 18) page.writeUInt16LE(0, c.OPAQUE_CYCLE_ID);
      break;
    }
    case c.XLOG_BTREE_DELETE: {
      const main = mainData(record, 9);
      deleteItems(page, record, block, record.buf.readUInt16LE(main + 4), record.buf.readUInt16LE(main + 6));
      break;
    }
    case c.XLOG_BTREE_MARK_PAGE_HALFDEAD:
      if (blockId === 0) {
        const main = mainData(record, 20);
        halfDeadLeaf(page, record.buf.readUInt32LE(main + 8), record.buf.readUInt32LE(main + 12), record.buf.readUInt32LE(main + 16));
      } else unlinkFromParent(page, record);
      break;
    case c.XLOG_BTREE_UNLINK_PAGE:
    case c.XLOG_BTREE_UNLINK_PAGE_META:
      unlinkPage(page, record, blockId);
      break;
    case c.XLOG_BTREE_NEWROOT:
      if (blockId === 0) newRoot(page, record, block);
      else if (blockId === 1) clearIncompleteSplit(page);
      else restoreMeta(page, record, block);
      break;
    case c.XLOG_BTREE_META_CLEANUP:
      restoreMeta(page, record, block);
      break;
    default:
      throw corrupt(record, 'no such operation on a block');
  }
  setPageLsn(page, record.endLsn);
}

function checkIndexPage(page: Buffer): void {
  checkPagePointers(page);
  if (pdSpecial(page) !== c.OPAQUE_OFFSET)
    throw new LakebaseError('CORRUPT', `page: special space at ${pdSpecial(page)} is not that of a btree page`);
}

function initIndexPage(page: Buffer, fields: { prev: number; next: number; level: number; flags: number }): void {
  initPage(page, c.OPAQUE_BYTES);
  page.writeUInt32LE(fields.prev, c.OPAQUE_PREV);
  page.writeUInt32LE(fields.next, c.OPAQUE_NEXT);
  page.writeUInt32LE(fields.level, c.OPAQUE_LEVEL);
  page.writeUInt16LE(fields.flags, c.OPAQUE_FLAGS);
}

const clearFlag = (page: Buffer, flag: number): void => void page.writeUInt16LE(page.readUInt16LE(c.OPAQUE_FLAGS) & ~flag, c.OPAQUE_FLAGS);

function clearIncompleteSplit(page: Buffer): void {
  checkIndexPage(page);
  clearFlag(page, c.BTP_INCOMPLETE_SPLIT);
}

function add(page: Buffer, record: DecodedRecord, src: Buffer, at: number, size: number, offnum: number): void {
  if (offnum === 0 || pageAddItem(page, src, at, size, offnum, 0) === 0)
    throw corrupt(record, `an item of ${size} bytes cannot be added as number ${offnum}`);
}

function insert(page: Buffer, record: DecodedRecord, block: DecodedBlock, posting: boolean): void {
  checkIndexPage(page);
  const offnum = record.buf.readUInt16LE(mainData(record, 2));
  const { buf } = record;
  let at = block.dataOffset;
  let length = block.dataLength;
  if (!posting) {
    tupleSize(buf, at, at + length);
    return add(page, record, buf, at, length, offnum);
  }
  if (length < 2) throw corrupt(record, 'posting split has no data');
  const postingOff = buf.readUInt16LE(at);
  at += 2;
  length -= 2;
  if (tupleSize(buf, at, at + length) !== length) throw corrupt(record, `new item of ${length} bytes has another size`);
  buf.copy(item, 0, at, at + length);
  const id = checkedItemId(page, offnum - 1);
  const old = itemOffset(id);
  swapPosting(page, old, tupleSize(page, old, old + itemLength(id)), item, 0, postingOff);
  add(page, record, item, 0, length, offnum);
}

/** _bt_restore_page: items lie in reverse item-number order, each aligned. */
function restoreItems(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  const { buf } = record;
  const end = block.dataOffset + block.dataLength;
  const starts: number[] = [];
  for (let at = block.dataOffset; at < end; ) {
    starts.push(at);
    at += maxAlign(tupleSize(buf, at, end));
    if (at > end) throw corrupt(record, 'the last item is cut');
  }
  starts.push(end);
  for (let i = starts.length - 2, n = 1; i >= 0; i--, n++) {
    const at = starts[i] as number;
    add(page, record, buf, at, (starts[i + 1] as number) - at, n);
  }
}

function restoreMeta(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  if (block.dataLength !== c.METADATA_BYTES) throw corrupt(record, `metapage data of ${block.dataLength} bytes`);
  const { buf } = record;
  const at = block.dataOffset;
  initIndexPage(page, { prev: 0, next: 0, level: 0, flags: c.BTP_META });
  const md = PAGE_HEADER_BYTES;
  page.writeUInt32LE(c.BTREE_MAGIC, md);
  // version, root, level, fastroot, fastlevel, last_cleanup_num_delpages
  buf.copy(page, md + 4, at, at + 24);
  page.writeDoubleLE(-1, md + 32); // last_cleanup_num_heap_tuples, no longer used
  page[md + 40] = buf[at + 24] as number; // allequalimage
  setPdLower(page, md + 48);
}

function split(page: Buffer, record: DecodedRecord, blockId: number): void {
  const main = mainData(record, 10);
  const level = record.buf.readUInt32LE(main);
  const left = record.blocks[0];
  const right = record.blocks[1];
  if (record.maxBlockId < 1 || left?.inUse !== true || right?.inUse !== true) throw corrupt(record, 'a split without its two pages');
  if (blockId === 0) splitLeft(page, record, left, right.block);
  else if (blockId === 1) {
    const next = record.maxBlockId >= 2 && record.blocks[2]?.inUse === true ? record.blocks[2].block : c.P_NONE;
    initIndexPage(page, { prev: left.block, next, level, flags: level === 0 ? c.BTP_LEAF : 0 });
    restoreItems(page, record, right);
  } else if (blockId === 2) {
    checkIndexPage(page);
    page.writeUInt32LE(right.block, c.OPAQUE_PREV);
  } else clearIncompleteSplit(page);
}

/** The left half is put together anew, in item-number order, as _bt_split does it: that fixes the order of the bytes. */
function splitLeft(page: Buffer, record: DecodedRecord, block: DecodedBlock, rightBlock: number): void {
  checkIndexPage(page);
  const { buf } = record;
  const main = record.mainOffset;
  const isLeaf = buf.readUInt32LE(main) === 0;
  const firstRight = buf.readUInt16LE(main + 4);
  const newItemOff = buf.readUInt16LE(main + 6);
  const postingOff = buf.readUInt16LE(main + 8);
  const newOnLeft = (record.info & 0xf0) === c.XLOG_BTREE_SPLIT_L;
  const end = block.dataOffset + block.dataLength;
  let at = block.dataOffset;
  let newSize = 0;
  let replaceOff = 0;
  let listSize = 0;
  if (newOnLeft || postingOff !== 0) {
    newSize = maxAlign(tupleSize(buf, at, end));
    if (newSize > end - at || newSize > item.length) throw corrupt(record, 'the new item is cut');
    buf.copy(item, 0, at, at + newSize);
    at += newSize;
    if (postingOff !== 0) {
      replaceOff = newItemOff - 1;
      const id = checkedItemId(page, replaceOff);
      const old = itemOffset(id);
      listSize = tupleSize(page, old, old + itemLength(id));
      page.copy(tuple, 0, old, old + maxAlign(listSize));
      swapPosting(tuple, 0, listSize, item, 0, postingOff);
    }
  }
  const hikeySize = maxAlign(tupleSize(buf, at, end));
  if (at + hikeySize !== end) throw corrupt(record, `${end - at} bytes for a high key of ${hikeySize}`);

  initPage(rebuilt, c.OPAQUE_BYTES);
  page.copy(rebuilt, c.OPAQUE_OFFSET, c.OPAQUE_OFFSET, BLCKSZ);
  add(rebuilt, record, buf, at, hikeySize, c.P_HIKEY);
  let n = c.P_HIKEY + 1;
  const first = page.readUInt32LE(c.OPAQUE_NEXT) === c.P_NONE ? c.P_HIKEY : c.P_HIKEY + 1;
  if (firstRight > maxOffset(page) + 1) throw corrupt(record, `splits at item ${firstRight} of ${maxOffset(page)}`);
  let off = first;
  for (; off < firstRight; off++) {
    if (off === replaceOff) {
      add(rebuilt, record, tuple, 0, maxAlign(listSize), n++);
      continue;
    }
    if (newOnLeft && off === newItemOff) add(rebuilt, record, item, 0, newSize, n++);
    const id = checkedItemId(page, off);
    add(rebuilt, record, page, itemOffset(id), itemLength(id), n++);
  }
  if (newOnLeft && off === newItemOff) add(rebuilt, record, item, 0, newSize, n++);
  rebuilt.copy(page);
  page.writeUInt16LE(c.BTP_INCOMPLETE_SPLIT | (isLeaf ? c.BTP_LEAF : 0), c.OPAQUE_FLAGS);
  page.writeUInt32LE(rightBlock, c.OPAQUE_NEXT);
  page.writeUInt16LE(0, c.OPAQUE_CYCLE_ID);
}

/** VACUUM and DELETE: shrink posting lists, then delete whole items. */
function deleteItems(page: Buffer, record: DecodedRecord, block: DecodedBlock, deleted: number, updated: number): void {
  checkIndexPage(page);
  const { buf } = record;
  const end = block.dataOffset + block.dataLength;
  const u16 = (at: number): number => {
    if (at + 2 > end) throw corrupt(record, 'lists of items are cut');
    return buf.readUInt16LE(at);
  };
  let update = block.dataOffset + (deleted + updated) * 2;
  for (let i = 0; i < updated; i++) {
    const offnum = u16(block.dataOffset + (deleted + i) * 2);
    const count = u16(update);
    update += 2;
    const positions: number[] = [];
    for (let k = 0; k < count; k++, update += 2) positions.push(u16(update));
    const id = checkedItemId(page, offnum);
    const at = itemOffset(id);
    const size = updatePosting(page, at, tupleSize(page, at, at + itemLength(id)), positions, tids, tuple);
    if (!indexTupleOverwrite(page, offnum, tuple, 0, maxAlign(size))) throw corrupt(record, `item ${offnum} does not take its update`);
  }
  if (deleted > 0) {
    const offnums: number[] = [];
    for (let i = 0; i < deleted; i++) offnums.push(u16(block.dataOffset + i * 2));
    indexMultiDelete(page, offnums);
  }
  clearFlag(page, c.BTP_HAS_GARBAGE);
}

/** A half-dead leaf is empty but for a dummy high key that points to the top parent. */
function halfDeadLeaf(page: Buffer, prev: number, next: number, topParent: number): void {
  initIndexPage(page, { prev, next, level: 0, flags: c.BTP_HALF_DEAD | c.BTP_LEAF });
  tuple.fill(0, 0, c.TUPLE_HEADER_BYTES);
  setTidBlock(tuple, 0, topParent);
  // BTreeTupleSetTopParent: no key columns, so the pivot bit and a count of zero.
  tuple.writeUInt16LE(c.TUPLE_HEADER_BYTES | c.INDEX_ALT_TID_MASK, 6);
  pageAddItem(page, tuple, 0, c.TUPLE_HEADER_BYTES, c.P_HIKEY, 0);
}

/** The parent's downlink to the target takes over the right sibling's, whose own item goes. */
function unlinkFromParent(page: Buffer, record: DecodedRecord): void {
  checkIndexPage(page);
  const offnum = record.buf.readUInt16LE(mainData(record, 20));
  const target = checkedItemId(page, offnum);
  const next = checkedItemId(page, offnum + 1);
  if (itemLength(target) < c.TUPLE_HEADER_BYTES || itemLength(next) < c.TUPLE_HEADER_BYTES)
    throw corrupt(record, 'downlinks are no tuples');
  setTidBlock(page, itemOffset(target), tidBlock(page, itemOffset(next)));
  indexTupleDelete(page, offnum + 1);
}

function unlinkPage(page: Buffer, record: DecodedRecord, blockId: number): void {
  const { buf } = record;
  const main = mainData(record, 36);
  const left = buf.readUInt32LE(main);
  const right = buf.readUInt32LE(main + 4);
  const level = buf.readUInt32LE(main + 8);
  switch (blockId) {
    case 0: {
      const flags = c.BTP_DELETED | c.BTP_HAS_FULLXID | (level === 0 ? c.BTP_LEAF : 0);
      initIndexPage(page, { prev: left, next: right, level, flags });
      setPdLower(page, PAGE_HEADER_BYTES + 8);
      buf.copy(page, PAGE_HEADER_BYTES, main + 16, main + 24); // safexid
      return;
    }
    case 1:
      checkIndexPage(page);
      page.writeUInt32LE(right, c.OPAQUE_NEXT);
      return;
    case 2:
      checkIndexPage(page);
      page.writeUInt32LE(left, c.OPAQUE_PREV);
      return;
    case 3:
      return halfDeadLeaf(page, buf.readUInt32LE(main + 24), buf.readUInt32LE(main + 28), buf.readUInt32LE(main + 32));
    default:
      restoreMeta(page, record, record.blocks[blockId] as DecodedBlock);
  }
}

function newRoot(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  const level = record.buf.readUInt32LE(mainData(record, 8) + 4);
  initIndexPage(page, { prev: c.P_NONE, next: c.P_NONE, level, flags: c.BTP_ROOT | (level === 0 ? c.BTP_LEAF : 0) });
  if (level > 0) restoreItems(page, record, block);
}
