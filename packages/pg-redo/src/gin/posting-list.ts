/** Compressed posting lists (ginpostinglist.c): the first TID as it is, then the distance of each TID to the one before, 7 bits a byte,
 *  low bits first. A TID counts as block × 2^11 + offset: 43 bits, which a JavaScript number holds exactly; no bigint.
 *  Invariant: decoding reads only the bytes of the list; encoding writes strictly ascending TIDs only, others are CORRUPT. */
import { LakebaseError } from '@lakebase/base';
import { readBlockId, writeTid } from '../index-page.ts';
import { SEGMENT_HEADER_BYTES } from './codes.ts';

/** MaxHeapTuplesPerPageBits. */
const OFFSET_VALUES = 2048;
const TID_MAX: number = 2 ** 32 * OFFSET_VALUES - 1;

const bad = (what: string): LakebaseError => new LakebaseError('CORRUPT', `posting list: ${what}`);

/** SHORTALIGN. */
const shortAlign = (n: number): number => (n + 1) & ~1;

/** The TID at `at` as a number that orders as TIDs do. */
export function readItem(buf: Buffer, at: number): number {
  const offset = buf.readUInt16LE(at + 4);
  if (offset >= OFFSET_VALUES) throw bad(`item number ${offset}`);
  return readBlockId(buf, at) * OFFSET_VALUES + offset;
}

/** SizeOfGinPostingList of the list at `at`, which must end by `end`. */
export function segmentSize(buf: Buffer, at: number, end: number): number {
  if (end - at < SEGMENT_HEADER_BYTES) throw bad('header is cut');
  const size = SEGMENT_HEADER_BYTES + shortAlign(buf.readUInt16LE(at + 6));
  if (size > end - at) throw bad(`${size} bytes where ${end - at} are`);
  return size;
}

/** ginPostingListDecode of the list at `at`, whose size was checked. */
export function decodeSegment(buf: Buffer, at: number): number[] {
  let value = readItem(buf, at);
  const items = [value];
  const end = at + SEGMENT_HEADER_BYTES + buf.readUInt16LE(at + 6);
  for (let p = at + SEGMENT_HEADER_BYTES; p < end; ) {
    let delta = 0;
    for (let factor = 1; ; factor *= 128) {
      if (p >= end || factor > 2 ** 42) throw bad('a number is cut');
      const byte = buf[p++] as number;
      delta += (byte & 0x7f) * factor;
      if (byte < 0x80) break;
    }
    value += delta;
    if (value > TID_MAX) throw bad('a block number above 2^32');
    items.push(value);
  }
  return items;
}

/** ginMergeItemPointers: both ascending, what both have once. */
export function mergeItems(a: readonly number[], b: readonly number[]): number[] {
  const merged: number[] = [];
  let i = 0;
  let k = 0;
  while (i < a.length && k < b.length) {
    const x = a[i] as number;
    const y = b[k] as number;
    merged.push(Math.min(x, y));
    if (x <= y) i++;
    if (y <= x) k++;
  }
  while (i < a.length) merged.push(a[i++] as number);
  while (k < b.length) merged.push(b[k++] as number);
  return merged;
}

/** ginCompressPostingList of all `items` into `out` at 0; returns the list's size. */
export function encodeSegment(items: readonly number[], out: Buffer): number {
  let previous = items[0] as number;
  writeTid(out, 0, Math.floor(previous / OFFSET_VALUES), previous % OFFSET_VALUES);
  let at = SEGMENT_HEADER_BYTES;
  for (let i = 1; i < items.length; i++) {
    const value = items[i] as number;
    let delta = value - previous;
    if (delta <= 0) throw bad('TIDs are out of order');
    // Seven bytes hold every distance; one more for padding.
    if (at + 8 > out.length) throw bad(`${items.length} TIDs do not fit a page`);
    for (; delta > 0x7f; delta = Math.floor(delta / 128)) out[at++] = 0x80 | (delta % 128);
    out[at++] = delta;
    previous = value;
  }
  out.writeUInt16LE(at - SEGMENT_HEADER_BYTES, 6);
  if ((at & 1) !== 0) out[at++] = 0;
  return at;
}
