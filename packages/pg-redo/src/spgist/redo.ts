/** Redo of SP-GiST on one page in place (spgxlog.c).
 *  Invariants: (1) the result has the bytes Postgres's redo leaves, pd_lsn included; (2) a page the record makes anew is made from nothing;
 *  (3) full-page images never come here; a record that does not fit its page is CORRUPT, and the page is then to be thrown away. */
import { type DecodedRecord, setPageLsn } from '@lakebase/pg-format';
import { blockNumber, checkSpecial, hasBlock, noSuchBlock, noSuchOperation, readOffsets } from '../index-page.ts';
import { corrupt, mainData } from '../record-error.ts';
import * as c from './codes.ts';
import {
  addOrReplace,
  addToCount,
  deleteLeaving,
  formDead,
  initSpgistPage,
  innerSize,
  leafSize,
  NOWHERE,
  replaceItem,
  updateNodeLink,
} from './page.ts';
import { setNextOffset, vacuumLeaf, vacuumRedirect, vacuumRoot } from './vacuum.ts';

export function spgistRedo(page: Buffer, record: DecodedRecord, blockId: number, _major: number): void {
  switch (record.info & 0xf0) {
    case c.XLOG_SPGIST_ADD_LEAF:
      addLeaf(page, record, blockId);
      break;
    case c.XLOG_SPGIST_MOVE_LEAFS:
      moveLeafs(page, record, blockId);
      break;
    case c.XLOG_SPGIST_ADD_NODE:
      addNode(page, record, blockId);
      break;
    case c.XLOG_SPGIST_SPLIT_TUPLE:
      splitTuple(page, record, blockId);
      break;
    case c.XLOG_SPGIST_PICKSPLIT:
      pickSplit(page, record, blockId);
      break;
    case c.XLOG_SPGIST_VACUUM_LEAF:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      vacuumLeaf(page, record);
      break;
    case c.XLOG_SPGIST_VACUUM_ROOT:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      vacuumRoot(page, record);
      break;
    case c.XLOG_SPGIST_VACUUM_REDIRECT:
      if (blockId !== 0) throw noSuchBlock(record, blockId);
      vacuumRedirect(page, record);
      break;
    default:
      throw noSuchOperation(record);
  }
  setPageLsn(page, record.endLsn);
}

/** Makes the page anew when the record says so, else checks it. */
function open(page: Buffer, record: DecodedRecord, fresh: boolean, flags: number): void {
  if (fresh) initSpgistPage(page, flags);
  else checkSpecial(page, record, c.OPAQUE_BYTES);
}

const leafFlags = (nulls: boolean): number => (nulls ? c.SPGIST_LEAF | c.SPGIST_NULLS : c.SPGIST_LEAF);

function addLeaf(page: Buffer, record: DecodedRecord, blockId: number): void {
  const main = mainData(record, c.ADD_LEAF_BYTES);
  const { buf } = record;
  const leaf = buf.readUInt16LE(main + 2);
  const head = buf.readUInt16LE(main + 4);
  if (blockId === 1) {
    checkSpecial(page, record, c.OPAQUE_BYTES);
    const target = { block: blockNumber(record, 0), offnum: leaf };
    return updateNodeLink(page, record, buf.readUInt16LE(main + 6), buf.readUInt16LE(main + 8), target);
  }
  if (blockId !== 0) throw noSuchBlock(record, blockId);
  open(page, record, buf[main] !== 0, leafFlags(buf[main + 1] !== 0));
  const at = main + c.ADD_LEAF_BYTES;
  const size = leafSize(record, at, main + record.mainLength);
  // The head's own number: the head is dead and makes room.
  if (leaf === head) return replaceItem(page, record, buf, at, size, leaf);
  addOrReplace(page, record, at, size, leaf);
  if (head !== 0) setNextOffset(page, record, head, leaf);
}

/** Blocks: 0 the page the leaves leave, 1 where they go, 2 the parent. */
function moveLeafs(page: Buffer, record: DecodedRecord, blockId: number): void {
  const main = mainData(record, c.MOVE_LEAFS_BYTES);
  const { buf } = record;
  const end = main + record.mainLength;
  const moves = buf.readUInt16LE(main);
  const insertions = buf[main + 3] !== 0 ? 1 : moves + 1;
  let at = main + c.MOVE_LEAFS_BYTES;
  const toDelete = readOffsets(record, at, moves, end);
  at += moves * 2;
  const toInsert = readOffsets(record, at, insertions, end);
  at += insertions * 2;
  const target = { block: blockNumber(record, 1), offnum: toInsert[insertions - 1] as number };
  open(page, record, blockId === 1 && buf[main + 2] !== 0, leafFlags(buf[main + 4] !== 0));
  switch (blockId) {
    case 0: {
      const first = buf[main + c.MOVE_LEAFS_STATE + 4] !== 0 ? c.SPGIST_PLACEHOLDER : c.SPGIST_REDIRECT;
      const redirectXid = buf.readUInt32LE(main + c.MOVE_LEAFS_STATE);
      return deleteLeaving(page, record, toDelete, { first, rest: c.SPGIST_PLACEHOLDER, target, redirectXid });
    }
    case 1:
      for (const offnum of toInsert) {
        const size = leafSize(record, at, end);
        addOrReplace(page, record, at, size, offnum);
        at += size;
      }
      return;
    case 2:
      return updateNodeLink(page, record, buf.readUInt16LE(main + 6), buf.readUInt16LE(main + 8), target);
    default:
      throw noSuchBlock(record, blockId);
  }
}

/** An inner tuple grows by a node: in its place, or on another page (block 1) with a redirection left behind. The parent's downlink lies
 *  on the page `parentBlk` names: 0 the old one, 1 the new one, 2 a third. */
function addNode(page: Buffer, record: DecodedRecord, blockId: number): void {
  const main = mainData(record, c.ADD_NODE_BYTES);
  const { buf } = record;
  const at = main + c.ADD_NODE_BYTES;
  const size = innerSize(record, at, main + record.mainLength);
  const offnum = buf.readUInt16LE(main);
  const parentBlock = buf.readInt8(main + 5);
  open(page, record, blockId === 1 && buf[main + 4] !== 0, 0);
  if (!hasBlock(record, 1)) {
    if (blockId !== 0) throw noSuchBlock(record, blockId);
    return replaceItem(page, record, buf, at, size, offnum);
  }
  const target = { block: blockNumber(record, 1), offnum: buf.readUInt16LE(main + 2) };
  if (blockId === 1) addOrReplace(page, record, at, size, target.offnum);
  else if (blockId === 0) {
    const isBuild = buf[main + c.ADD_NODE_STATE + 4] !== 0;
    const redirectXid = buf.readUInt32LE(main + c.ADD_NODE_STATE);
    const left = isBuild ? formDead(c.SPGIST_PLACEHOLDER, NOWHERE, 0) : formDead(c.SPGIST_REDIRECT, target, redirectXid);
    replaceItem(page, record, left, 0, c.DEAD_TUPLE_BYTES, offnum);
    addToCount(page, isBuild ? c.OPAQUE_PLACEHOLDERS : c.OPAQUE_REDIRECTIONS, 1);
  } else if (blockId !== 2 || parentBlock !== 2) throw noSuchBlock(record, blockId);
  if (blockId === parentBlock) updateNodeLink(page, record, buf.readUInt16LE(main + 6), buf.readUInt16LE(main + 8), target);
}

/** An inner tuple becomes a shorter one (the prefix, in its place) above a second (the postfix, here or on block 1). */
function splitTuple(page: Buffer, record: DecodedRecord, blockId: number): void {
  const main = mainData(record, c.SPLIT_TUPLE_BYTES);
  const { buf } = record;
  const end = main + record.mainLength;
  const prefix = main + c.SPLIT_TUPLE_BYTES;
  const prefixSize = innerSize(record, prefix, end);
  const postfix = prefix + prefixSize;
  const postfixSize = innerSize(record, postfix, end);
  const offnumPostfix = buf.readUInt16LE(main + 2);
  const samePage = buf[main + 5] !== 0;
  open(page, record, blockId === 1 && buf[main + 4] !== 0, 0);
  if (blockId === 0) {
    replaceItem(page, record, buf, prefix, prefixSize, buf.readUInt16LE(main));
    if (samePage) addOrReplace(page, record, postfix, postfixSize, offnumPostfix);
  } else if (blockId === 1 && !samePage) addOrReplace(page, record, postfix, postfixSize, offnumPostfix);
  else throw noSuchBlock(record, blockId);
}

/** Leaves of one chain (on block 0) are distributed over blocks 0 and 1 under a new inner tuple (on block 2); the parent is on 2 or 3. */
function pickSplit(page: Buffer, record: DecodedRecord, blockId: number): void {
  const main = mainData(record, c.PICKSPLIT_BYTES);
  const { buf } = record;
  const end = main + record.mainLength;
  const deletions = buf.readUInt16LE(main + 2);
  const insertions = buf.readUInt16LE(main + 4);
  const nulls = buf[main + 11] !== 0;
  const isParent = buf[main + 12] !== 0;
  const target = { block: blockNumber(record, 2), offnum: buf.readUInt16LE(main + 8) };
  let at = main + c.PICKSPLIT_BYTES;
  const toDelete = readOffsets(record, at, deletions, end);
  at += deletions * 2;
  const toInsert = readOffsets(record, at, insertions, end);
  at += insertions * 2;
  const select = at;
  at += insertions;
  if (at > end) throw corrupt(record, 'its page selectors are cut');
  const inner = at;
  at += innerSize(record, inner, end);

  if (blockId > 3) throw noSuchBlock(record, blockId);
  if (blockId >= 2) {
    open(page, record, blockId === 2 && buf[main + 10] !== 0, nulls ? c.SPGIST_NULLS : 0);
    if (blockId === 2) addOrReplace(page, record, inner, at - inner, target.offnum);
    if (blockId === 3 || isParent) updateNodeLink(page, record, buf.readUInt16LE(main + 14), buf.readUInt16LE(main + 16), target);
    return;
  }
  // A root that splits is touched only as the page of the new inner tuple.
  if (blockId === 0 && buf[main] !== 0) throw noSuchBlock(record, blockId);
  const fresh = buf[main + 6 + blockId] !== 0;
  open(page, record, fresh, leafFlags(nulls));
  if (blockId === 0 && !fresh) {
    const isBuild = buf[main + c.PICKSPLIT_STATE + 4] !== 0;
    const redirectXid = buf.readUInt32LE(main + c.PICKSPLIT_STATE);
    const first = isBuild ? c.SPGIST_PLACEHOLDER : c.SPGIST_REDIRECT;
    deleteLeaving(page, record, toDelete, { first, rest: c.SPGIST_PLACEHOLDER, target, redirectXid });
  }
  for (let i = 0; i < insertions; i++) {
    const size = leafSize(record, at, end);
    if ((buf[select + i] !== 0 ? 1 : 0) === blockId) addOrReplace(page, record, at, size, toInsert[i] as number);
    at += size;
  }
}
