/** Tuples of SP-GiST pages: adding, replacing placeholders, leaving dead tuples behind, following node links.
 *  Invariant: the page's counts of redirections and placeholders move with the tuples, as in spgdoinsert.c. */
import {
  type DecodedRecord,
  checkedItemId,
  indexMultiDelete,
  indexTupleDelete,
  initPage,
  itemLength,
  maxOffset,
  scratchBuffer,
} from '@lakebase/pg-format';
import { addItem, INDEX_TUPLE_HEADER_BYTES, INVALID_BLOCK, indexTupleSize, itemStart, writeTid } from '../index-page.ts';
import { corrupt } from '../record-error.ts';
import * as c from './codes.ts';

/** A place in the index: block and item number. */
export interface Place {
  readonly block: number;
  readonly offnum: number;
}

export const NOWHERE: Place = { block: INVALID_BLOCK, offnum: 0 };

/** The tuple being formed; redo is synchronous, one is enough. */
const dead = scratchBuffer(c.DEAD_TUPLE_BYTES);

export function initSpgistPage(page: Buffer, flags: number): void {
  initPage(page, c.OPAQUE_BYTES);
  page.writeUInt16LE(flags, c.OPAQUE_FLAGS);
  page.writeUInt16LE(c.SPGIST_PAGE_ID, c.OPAQUE_PAGE_ID);
}

export const addToCount = (page: Buffer, at: number, delta: number): void =>
  void page.writeUInt16LE((page.readUInt16LE(at) + delta) & 0xffff, at);

/** Size of the leaf tuple at `at` of the record, which must lie before `end`. */
export function leafSize(record: DecodedRecord, at: number, end: number): number {
  if (end - at < c.LEAF_HEADER_BYTES) throw corrupt(record, 'a leaf tuple is cut');
  return checkedSize(record, record.buf.readUInt32LE(at) >>> 2, c.LEAF_HEADER_BYTES, end - at);
}

export function innerSize(record: DecodedRecord, at: number, end: number): number {
  if (end - at < c.INNER_HEADER_BYTES) throw corrupt(record, 'an inner tuple is cut');
  return checkedSize(record, record.buf.readUInt16LE(at + 4), c.INNER_HEADER_BYTES, end - at);
}

function checkedSize(record: DecodedRecord, size: number, min: number, max: number): number {
  if (size < min || size > max) throw corrupt(record, `a tuple of ${size} bytes where ${max} are`);
  return size;
}

/** addOrReplaceTuple: an existing item under that number must be a placeholder, which goes. */
export function addOrReplace(page: Buffer, record: DecodedRecord, at: number, size: number, offnum: number): void {
  if (offnum <= maxOffset(page)) {
    const old = itemStart(page, record, offnum, 4);
    if ((page.readUInt32LE(old) & 3) !== c.SPGIST_PLACEHOLDER) throw corrupt(record, `item ${offnum} is no placeholder`);
    addToCount(page, c.OPAQUE_PLACEHOLDERS, -1);
    indexTupleDelete(page, offnum);
  }
  addItem(page, record, record.buf, at, size, offnum);
}

/** Deletes item `offnum` and puts another tuple under its number. */
export function replaceItem(page: Buffer, record: DecodedRecord, src: Buffer, at: number, size: number, offnum: number): void {
  indexTupleDelete(page, offnum);
  addItem(page, record, src, at, size, offnum);
}

/** spgFormDeadTuple; the tuple is valid until the next call. */
export function formDead(state: number, target: Place, redirectXid: number): Buffer {
  dead.writeUInt32LE((c.DEAD_TUPLE_BYTES << 2) | state, 0);
  dead.writeUInt16LE(0, 4);
  const place = state === c.SPGIST_REDIRECT ? target : NOWHERE;
  writeTid(dead, c.DEAD_POINTER, place.block, place.offnum);
  dead.writeUInt32LE(state === c.SPGIST_REDIRECT ? redirectXid : 0, c.DEAD_XID);
  return dead;
}

/** What deleted items leave behind: the first of the list as given, the others in `rest`. */
export interface Remains {
  readonly first: number;
  readonly rest: number;
  readonly target: Place;
  readonly redirectXid: number;
}

/** spgPageIndexMultiDelete. */
export function deleteLeaving(page: Buffer, record: DecodedRecord, offnums: readonly number[], remains: Remains): void {
  if (offnums.length === 0) return;
  const sorted = [...offnums].sort((a, b) => a - b);
  indexMultiDelete(page, sorted);
  for (const offnum of sorted) {
    const state = offnum === offnums[0] ? remains.first : remains.rest;
    addItem(page, record, formDead(state, remains.target, remains.redirectXid), 0, c.DEAD_TUPLE_BYTES, offnum);
    if (state === c.SPGIST_REDIRECT) addToCount(page, c.OPAQUE_REDIRECTIONS, 1);
    else if (state === c.SPGIST_PLACEHOLDER) addToCount(page, c.OPAQUE_PLACEHOLDERS, 1);
  }
}

/** spgUpdateNodeLink: node number `node` of the inner tuple at `offnum` leads to `target` from now on. */
export function updateNodeLink(page: Buffer, record: DecodedRecord, offnum: number, node: number, target: Place): void {
  const start = itemStart(page, record, offnum, c.INNER_HEADER_BYTES);
  const end = start + itemLength(checkedItemId(page, offnum));
  const word = page.readUInt32LE(start);
  if (node >= ((word >>> 3) & 0x1fff)) throw corrupt(record, `no node ${node} in item ${offnum}`);
  let at = start + c.INNER_HEADER_BYTES + (word >>> 16);
  for (let i = 0; i < node; i++) at += indexTupleSize(record, page, at, end);
  if (end - at < INDEX_TUPLE_HEADER_BYTES) throw corrupt(record, `item ${offnum} is cut at its node ${node}`);
  writeTid(page, at, target.block, target.offnum);
}
