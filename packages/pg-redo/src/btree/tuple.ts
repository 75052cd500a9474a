/** Index tuples and posting lists (nbtdedup.c). All functions work on a tuple at an offset of a buffer, whose end the caller gives.
 *  Invariant: a tuple or posting list that does not lie inside its bounds is refused before anything is read from or written to it. */
import { LakebaseError } from '@lakebase/base';
import { maxAlign } from '@lakebase/pg-format';
import { BT_IS_POSTING, BT_OFFSET_MASK, INDEX_ALT_TID_MASK, INDEX_SIZE_MASK, TID_BYTES, TUPLE_HEADER_BYTES } from './codes.ts';

const bad = (what: string): LakebaseError => new LakebaseError('CORRUPT', `index tuple: ${what}`);

/** IndexTupleSize of the tuple at `at`, which must lie before `end`. */
export function tupleSize(buf: Buffer, at: number, end: number): number {
  if (at < 0 || end - at < TUPLE_HEADER_BYTES || end > buf.length) throw bad('header is cut');
  const size = buf.readUInt16LE(at + 6) & INDEX_SIZE_MASK;
  if (size < TUPLE_HEADER_BYTES || size > end - at) throw bad(`size ${size} where ${end - at} bytes are`);
  return size;
}

export const setTupleSize = (buf: Buffer, at: number, size: number): void =>
  void buf.writeUInt16LE((buf.readUInt16LE(at + 6) & ~INDEX_SIZE_MASK) | size, at + 6);

/** The block number half of t_tid: downlink of a pivot tuple, or where the posting list starts. */
export const tidBlock = (buf: Buffer, at: number): number => buf.readUInt16LE(at) * 0x1_0000 + buf.readUInt16LE(at + 2);

export function setTidBlock(buf: Buffer, at: number, block: number): void {
  buf.writeUInt16LE(block >>> 16, at);
  buf.writeUInt16LE(block & 0xffff, at + 2);
}

export const isPosting = (buf: Buffer, at: number): boolean =>
  (buf.readUInt16LE(at + 6) & INDEX_ALT_TID_MASK) !== 0 && (buf.readUInt16LE(at + 4) & BT_IS_POSTING) !== 0;

/** BTreeTupleGetNPosting. */
export const postingCount = (buf: Buffer, at: number): number => buf.readUInt16LE(at + 4) & BT_OFFSET_MASK;

/** Offset of the posting list within the tuple; checked to lie, whole, inside it. */
export function postingStart(buf: Buffer, at: number, size: number): number {
  if (!isPosting(buf, at)) throw bad('is no posting list');
  const start = tidBlock(buf, at);
  if (start < TUPLE_HEADER_BYTES || start + postingCount(buf, at) * TID_BYTES > size) throw bad('posting list does not fit');
  return start;
}

/** Makes the tuple at `at` one of `count` TIDs that start at `keySize` (BTreeTupleSetPosting). */
function setPosting(buf: Buffer, at: number, count: number, keySize: number): void {
  buf.writeUInt16LE(buf.readUInt16LE(at + 6) | INDEX_ALT_TID_MASK, at + 6);
  buf.writeUInt16LE(count | BT_IS_POSTING, at + 4);
  setTidBlock(buf, at, keySize);
}

/** _bt_swap_posting: puts the TID of the new item (at `item` of `itemBuf`) into the posting list at position `postingOff`, and the list's
 *  greatest TID, which falls out, into the new item. Both are changed in place. */
export function swapPosting(list: Buffer, at: number, size: number, itemBuf: Buffer, item: number, postingOff: number): void {
  const start = at + postingStart(list, at, size);
  const count = postingCount(list, at);
  if (postingOff <= 0 || postingOff >= count) throw bad(`posting list of ${count} cannot be split at ${postingOff}`);
  const last = start + (count - 1) * TID_BYTES;
  const place = start + postingOff * TID_BYTES;
  const maxTid = Buffer.from(list.subarray(last, last + TID_BYTES));
  list.copyWithin(place + TID_BYTES, place, last);
  itemBuf.copy(list, place, item, item + TID_BYTES);
  maxTid.copy(itemBuf, item);
}

/** _bt_form_posting: a tuple with the key of `base` and the `count` TIDs at the start of `tids`, written to `out`. Returns its size. */
export function formPosting(base: Buffer, at: number, keySize: number, tids: Buffer, count: number, out: Buffer): number {
  const size = count > 1 ? maxAlign(keySize + count * TID_BYTES) : keySize;
  if (size > INDEX_SIZE_MASK || size > out.length || count > BT_OFFSET_MASK || count === 0) throw bad(`${count} TIDs do not fit a tuple`);
  out.fill(0, 0, size);
  base.copy(out, 0, at, at + keySize);
  setTupleSize(out, 0, size);
  if (count > 1) {
    setPosting(out, 0, count, keySize);
    tids.copy(out, keySize, 0, count * TID_BYTES);
  } else {
    out.writeUInt16LE(out.readUInt16LE(6) & ~INDEX_ALT_TID_MASK, 6);
    tids.copy(out, 0, 0, TID_BYTES);
  }
  return size;
}

/** _bt_update_posting: the posting tuple at `at` without the TIDs whose positions `deleted` lists in ascending order. Returns the size. */
export function updatePosting(list: Buffer, at: number, size: number, deleted: readonly number[], tids: Buffer, out: Buffer): number {
  const keySize = postingStart(list, at, size);
  const count = postingCount(list, at);
  let kept = 0;
  let next = 0;
  for (let i = 0; i < count; i++) {
    if (next < deleted.length && deleted[next] === i) {
      next++;
      continue;
    }
    const from = at + keySize + i * TID_BYTES;
    if ((kept + 1) * TID_BYTES > tids.length) throw bad('too many TIDs');
    list.copy(tids, kept++ * TID_BYTES, from, from + TID_BYTES);
  }
  if (next !== deleted.length || kept === 0 || kept === count) throw bad(`cannot delete ${deleted.length} of ${count} TIDs`);
  return formPosting(list, at, keySize, tids, kept, out);
}
