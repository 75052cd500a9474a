/** The 8 KiB page (bufpage.h, bufpage.c, itemid.h): header fields, line pointers, and the edits redo needs.
 *  Invariants: (1) a page is a Buffer of exactly 8192 bytes and is edited in place; (2) an edit leaves the same bytes as bufpage.c of
 *  16–18, the stale bytes between pd_lower and pd_upper included; (3) a page whose pointers contradict each other is CORRUPT, and then
 *  nothing was moved. */
import { scratchBuffer } from './scratch.ts';
import { LakebaseError } from '@lakebase/base';
import { BLCKSZ, type Lsn, lsnFromHalves, lsnHigh, lsnLow } from '@lakebase/ids';

/** SizeOfPageHeaderData: line pointers start here. */
export const PAGE_HEADER_BYTES = 24;
export const ITEM_ID_BYTES = 4;
/** PG_PAGE_LAYOUT_VERSION. */
export const PAGE_LAYOUT_VERSION = 4;
/** MaxHeapTuplesPerPage: (8192 − 24) / (MAXALIGN(23) + 4). */
export const MAX_HEAP_TUPLES_PER_PAGE = 291;
/** MaxIndexTuplesPerPage: (8192 − 24) / (MAXALIGN(8 + 1) + 4). */
export const MAX_INDEX_TUPLES_PER_PAGE = 408;

export const PD_HAS_FREE_LINES = 0x0001;
export const PD_PAGE_FULL = 0x0002;
export const PD_ALL_VISIBLE = 0x0004;

export const LP_UNUSED = 0;
export const LP_NORMAL = 1;
export const LP_REDIRECT = 2;
export const LP_DEAD = 3;

export const PAI_OVERWRITE = 1;
export const PAI_IS_HEAP = 2;

// Little-endian fields by plain stores: a third of the time of Buffer's methods, which check ranges again. The caller has checked that the
// field lies inside the bytes; what does not is not written, or reads as zero.
export const getU16 = (b: Uint8Array, at: number): number => (b[at] as number) | ((b[at + 1] as number) << 8);
export const getU32 = (b: Uint8Array, at: number): number =>
  ((b[at] as number) | ((b[at + 1] as number) << 8) | ((b[at + 2] as number) << 16) | ((b[at + 3] as number) << 24)) >>> 0;
export function putU16(b: Uint8Array, at: number, value: number): void {
  b[at] = value;
  b[at + 1] = value >>> 8;
}
export function putU32(b: Uint8Array, at: number, value: number): void {
  b[at] = value;
  b[at + 1] = value >>> 8;
  b[at + 2] = value >>> 16;
  b[at + 3] = value >>> 24;
}

export const maxAlign = (n: number): number => (n + 7) & ~7;

// Header fields: pd_lsn 0 (two u32 halves, high first), pd_checksum 8, pd_flags 10, pd_lower 12, pd_upper 14, pd_special 16,
// pd_pagesize_version 18, pd_prune_xid 20.
export const pageLsn = (page: Buffer): Lsn => lsnFromHalves(getU32(page, 0), getU32(page, 4));
export function setPageLsn(page: Buffer, lsn: Lsn): void {
  putU32(page, 0, lsnHigh(lsn));
  putU32(page, 4, lsnLow(lsn));
}
export const pdFlags = (page: Buffer): number => getU16(page, 10);
export const setPdFlags = (page: Buffer, flags: number): void => putU16(page, 10, flags);
export const setPdFlag = (page: Buffer, bit: number): void => putU16(page, 10, getU16(page, 10) | bit);
export const clearPdFlag = (page: Buffer, bit: number): void => putU16(page, 10, getU16(page, 10) & ~bit);
export const pdLower = (page: Buffer): number => getU16(page, 12);
export const setPdLower = (page: Buffer, v: number): void => putU16(page, 12, v);
export const pdUpper = (page: Buffer): number => getU16(page, 14);
export const setPdUpper = (page: Buffer, v: number): void => putU16(page, 14, v);
export const pdSpecial = (page: Buffer): number => getU16(page, 16);
export const pruneXid = (page: Buffer): number => getU32(page, 20);
export const setPruneXid = (page: Buffer, xid: number): void => putU32(page, 20, xid);
/** PageIsNew: never initialised (or all zero). */
export const isNewPage = (page: Buffer): boolean => getU16(page, 14) === 0;

/** TransactionIdPrecedes: modulo-2^32 order for normal xids, plain order when one is permanent (< 3). */
export function xidPrecedes(a: number, b: number): boolean {
  if (a < 3 || b < 3) return a < b;
  return ((a - b) | 0) < 0;
}

/** PageSetPrunable. */
export function setPrunable(page: Buffer, xid: number): void {
  const old = pruneXid(page);
  if (old === 0 || xidPrecedes(xid, old)) setPruneXid(page, xid);
}

export function initPage(page: Buffer, specialSize: number): void {
  page.fill(0);
  const special = BLCKSZ - maxAlign(specialSize);
  page.writeUInt16LE(PAGE_HEADER_BYTES, 12);
  page.writeUInt16LE(special, 14);
  page.writeUInt16LE(special, 16);
  page.writeUInt16LE(BLCKSZ | PAGE_LAYOUT_VERSION, 18);
}

// Line pointers: lp_off 15 bits, lp_flags 2, lp_len 15, low bits first.
/** PageGetMaxOffsetNumber. */
export function maxOffset(page: Buffer): number {
  const lower = getU16(page, 12);
  return lower <= PAGE_HEADER_BYTES ? 0 : (lower - PAGE_HEADER_BYTES) >>> 2;
}
/** The raw line pointer of item `offnum` (1-based). The caller has checked offnum against {@link maxOffset}. */
export const itemId = (page: Buffer, offnum: number): number => getU32(page, PAGE_HEADER_BYTES + (offnum - 1) * 4);
export function setItemId(page: Buffer, offnum: number, value: number): void {
  const at = PAGE_HEADER_BYTES + (offnum - 1) * 4;
  if (at < PAGE_HEADER_BYTES || at > BLCKSZ - 4) throw corrupt(`no line pointer ${offnum}`);
  putU32(page, at, value);
}
export const makeItemId = (offset: number, flags: number, length: number): number =>
  ((offset & 0x7fff) | (flags << 15) | (length << 17)) >>> 0;
export const itemOffset = (id: number): number => id & 0x7fff;
export const itemFlags = (id: number): number => (id >>> 15) & 3;
export const itemLength = (id: number): number => id >>> 17;
export const ITEM_UNUSED = 0;

const corrupt = (what: string): LakebaseError => new LakebaseError('CORRUPT', `page: ${what}`);

/** Throws CORRUPT unless 24 ≤ lower ≤ upper ≤ special ≤ 8192 and special is aligned. */
export function checkPagePointers(page: Buffer): void {
  const lower = pdLower(page);
  const upper = pdUpper(page);
  const special = pdSpecial(page);
  if (lower < PAGE_HEADER_BYTES || lower > upper || upper > special || special > BLCKSZ || (special & 7) !== 0)
    throw corrupt(`pointers contradict each other: lower ${lower}, upper ${upper}, special ${special}`);
}

/** The line pointer of `offnum`, checked to exist and to point, if it has storage, inside the page. */
export function checkedItemId(page: Buffer, offnum: number): number {
  const lower = pdLower(page);
  if (offnum < 1 || offnum > maxOffset(page) || lower > BLCKSZ) throw corrupt(`no line pointer ${offnum}`);
  const id = itemId(page, offnum);
  const length = itemLength(id);
  if (length !== 0 && (itemOffset(id) < PAGE_HEADER_BYTES || itemOffset(id) + length > BLCKSZ))
    throw corrupt(`line pointer ${offnum} points outside: offset ${itemOffset(id)}, length ${length}`);
  return id;
}

/** Line pointer of an index tuple: has storage inside tuple space and is aligned, as PageIndexTupleDelete wants it. */
function checkedIndexItem(page: Buffer, offnum: number): number {
  const id = checkedItemId(page, offnum);
  const offset = itemOffset(id);
  if (offset < pdUpper(page) || offset + itemLength(id) > pdSpecial(page) || (offset & 7) !== 0)
    throw corrupt(`line pointer ${offnum}: offset ${offset}, length ${itemLength(id)}`);
  return id;
}

/** Up to this many bytes a loop beats Buffer.copy, which allocates a view per call in Node 24. */
const LOOP_BYTES = 96;

/** Copies between buffers that do not overlap. The caller has checked both ranges. */
export function copyBytes(src: Uint8Array, from: number, target: Uint8Array, to: number, length: number): void {
  if (length <= LOOP_BYTES) for (let i = 0; i < length; i++) target[to + i] = src[from + i] as number;
  else if (Buffer.isBuffer(src)) src.copy(target, to, from, from + length);
  else target.set(src.subarray(from, from + length), to);
}

/** Moves bytes up within a page (`to` ≥ `from`); the ranges may overlap. */
function moveUp(page: Buffer, to: number, from: number, length: number): void {
  if (length <= LOOP_BYTES) for (let i = length - 1; i >= 0; i--) page[to + i] = page[from + i] as number;
  else page.copyWithin(to, from, from + length);
}

/** PageAddItemExtended with the item's bytes at `src[srcOffset, srcOffset + size)`.
 *  `offnum` 0 takes the first free slot. Returns the slot, or 0 when Postgres would refuse (redo treats that as corruption). */
export function pageAddItem(page: Buffer, src: Buffer, srcOffset: number, size: number, offnum: number, flags: number): number {
  if (srcOffset < 0 || size < 0 || srcOffset + size > src.length) throw corrupt(`item of ${size} bytes is not in its source`);
  const at = pageReserveItem(page, size, offnum, flags);
  if (at !== 0) copyBytes(src, srcOffset, page, pdUpper(page), size);
  return at;
}

/** {@link pageAddItem} without the bytes: the caller writes them at pd_upper. */
export function pageReserveItem(page: Buffer, size: number, offnum: number, flags: number): number {
  checkPagePointers(page);
  const limit = maxOffset(page) + 1;
  let at = offnum;
  let shuffle = false;
  if (at !== 0) {
    if ((flags & PAI_OVERWRITE) !== 0) {
      if (at < limit) {
        const id = itemId(page, at);
        if (itemFlags(id) !== LP_UNUSED || itemLength(id) !== 0) return 0;
      }
    } else if (at < limit) shuffle = true;
  } else {
    at = limit;
    if ((pdFlags(page) & PD_HAS_FREE_LINES) !== 0) {
      for (at = 1; at < limit; at++) {
        const id = itemId(page, at);
        if (itemFlags(id) === LP_UNUSED && itemLength(id) === 0) break;
      }
      if (at >= limit) clearPdFlag(page, PD_HAS_FREE_LINES);
    }
  }
  if (at > limit) return 0;
  if ((flags & PAI_IS_HEAP) !== 0 && at > MAX_HEAP_TUPLES_PER_PAGE) return 0;
  const lower = pdLower(page) + (at === limit || shuffle ? ITEM_ID_BYTES : 0);
  const upper = pdUpper(page) - maxAlign(size);
  if (lower > upper) return 0;
  if (shuffle) {
    const linp = PAGE_HEADER_BYTES + (at - 1) * 4;
    page.copyWithin(linp + 4, linp, PAGE_HEADER_BYTES + (limit - 1) * 4);
  }
  setItemId(page, at, makeItemId(upper, LP_NORMAL, size));
  setPdLower(page, lower);
  setPdUpper(page, upper);
  return at;
}

// Scratch of the compaction routines; redo is synchronous, so one of each is enough.
const keptIndex = new Uint16Array(BLCKSZ / 4);
const keptOffset = new Uint16Array(BLCKSZ / 4);
const keptLength = new Uint16Array(BLCKSZ / 4);
const scratch = scratchBuffer(BLCKSZ);

/** compactify_tuples: moves the kept items up against pd_special in the order of keptIndex. */
function compactify(page: Buffer, count: number, presorted: boolean): void {
  if (!presorted) page.copy(scratch);
  let upper = pdSpecial(page);
  // Presorted items only ever move up, highest first, so moving in place overwrites nothing that is still needed. Neighbours move as one.
  let runFrom = upper;
  let runEnd = upper;
  let runTo = upper;
  for (let i = 0; i < count; i++) {
    const length = keptLength[i] as number;
    const offset = keptOffset[i] as number;
    upper -= length;
    if (!presorted) {
      if (offset !== upper) copyBytes(scratch, offset, page, upper, length);
    } else if (offset + length === runFrom) {
      runFrom = offset;
      runTo = upper;
    } else {
      if (runTo !== runFrom) moveUp(page, runTo, runFrom, runEnd - runFrom);
      runFrom = offset;
      runEnd = offset + length;
      runTo = upper;
    }
    const linp = PAGE_HEADER_BYTES + (keptIndex[i] as number) * 4;
    page[linp] = upper;
    page[linp + 1] = ((page[linp + 1] as number) & 0x80) | (upper >>> 8);
  }
  if (presorted && runTo !== runFrom) moveUp(page, runTo, runFrom, runEnd - runFrom);
  setPdUpper(page, upper);
}

/** PageRepairFragmentation (heap pages): closes the gaps, drops trailing unused line pointers, sets the free-lines hint. */
export function repairFragmentation(page: Buffer): void {
  checkPagePointers(page);
  const upper = pdUpper(page);
  const special = pdSpecial(page);
  const lines = maxOffset(page);
  let stored = 0;
  let unused = 0;
  let total = 0;
  let last = special;
  let finalUsed = 0;
  let presorted = true;
  let stale = false;
  for (let i = 1; i <= lines; i++) {
    // The pointers were checked: every line lies inside the page.
    const id = getU32(page, PAGE_HEADER_BYTES + i * 4 - 4);
    if (itemFlags(id) === LP_UNUSED) {
      unused++;
      if (id !== ITEM_UNUSED) stale = true;
      continue;
    }
    finalUsed = i;
    if (itemLength(id) === 0) continue;
    const offset = itemOffset(id);
    const length = maxAlign(itemLength(id));
    if (last > offset) last = offset;
    else presorted = false;
    if (offset < upper || offset + length > special) throw corrupt(`line pointer ${i}: offset ${offset}, length ${length}`);
    keptIndex[stored] = i - 1;
    keptOffset[stored] = offset;
    keptLength[stored] = length;
    total += length;
    stored++;
  }
  if (stored > 0 && total > special - pdLower(page)) throw corrupt(`items of ${total} bytes do not fit`);
  if (stale) for (let i = 1; i <= lines; i++) if (itemFlags(itemId(page, i)) === LP_UNUSED) setItemId(page, i, ITEM_UNUSED);
  if (stored === 0) setPdUpper(page, special);
  else compactify(page, stored, presorted);
  if (finalUsed !== lines) {
    unused -= lines - finalUsed;
    setPdLower(page, pdLower(page) - ITEM_ID_BYTES * (lines - finalUsed));
  }
  if (unused > 0) setPdFlag(page, PD_HAS_FREE_LINES);
  else clearPdFlag(page, PD_HAS_FREE_LINES);
}

/** PageTruncateLinePointerArray: always leaves one line pointer. */
export function truncateLinePointers(page: Buffer): void {
  checkPagePointers(page);
  let countDone = false;
  let hint = false;
  let end = 0;
  for (let i = maxOffset(page); i >= 1; i--) {
    const used = itemFlags(itemId(page, i)) !== LP_UNUSED;
    if (!countDone && i > 1) {
      if (used) countDone = true;
      else end++;
    } else if (!used) {
      hint = true;
      break;
    }
  }
  if (end > 0) setPdLower(page, pdLower(page) - ITEM_ID_BYTES * end);
  if (hint) setPdFlag(page, PD_HAS_FREE_LINES);
  else clearPdFlag(page, PD_HAS_FREE_LINES);
}

/** Adds `delta` to the offset of every item (1..lines) that lies at or before `boundary`. */
function shiftItems(page: Buffer, lines: number, boundary: number, delta: number, storedOnly: boolean): void {
  for (let i = 1; i <= lines; i++) {
    const id = itemId(page, i);
    if (itemOffset(id) <= boundary && !(storedOnly && itemLength(id) === 0))
      setItemId(page, i, ((id & ~0x7fff) | ((itemOffset(id) + delta) & 0x7fff)) >>> 0);
  }
}

/** PageIndexTupleDelete. */
export function indexTupleDelete(page: Buffer, offnum: number): void {
  checkPagePointers(page);
  const lines = maxOffset(page);
  const id = checkedIndexItem(page, offnum);
  const offset = itemOffset(id);
  const size = maxAlign(itemLength(id));
  const lower = pdLower(page);
  const upper = pdUpper(page);
  const linp = PAGE_HEADER_BYTES + (offnum - 1) * 4;
  if (lower > linp + 4) page.copyWithin(linp, linp + 4, lower);
  if (offset > upper) page.copyWithin(upper + size, upper, offset);
  setPdUpper(page, upper + size);
  setPdLower(page, lower - ITEM_ID_BYTES);
  shiftItems(page, lines - 1, offset, size, false);
}

/** PageIndexTupleDeleteNoCompact: the line pointer stays as unused unless it is the last. */
export function indexTupleDeleteNoCompact(page: Buffer, offnum: number): void {
  checkPagePointers(page);
  let lines = maxOffset(page);
  const id = checkedIndexItem(page, offnum);
  const offset = itemOffset(id);
  const size = maxAlign(itemLength(id));
  const upper = pdUpper(page);
  if (offnum < lines) setItemId(page, offnum, ITEM_UNUSED);
  else {
    setPdLower(page, pdLower(page) - ITEM_ID_BYTES);
    lines--;
  }
  if (offset > upper) page.copyWithin(upper + size, upper, offset);
  setPdUpper(page, upper + size);
  shiftItems(page, lines, offset, size, true);
}

/** PageIndexMultiDelete; `offnums` ascending. */
export function indexMultiDelete(page: Buffer, offnums: ArrayLike<number>, count: number = offnums.length): void {
  if (count <= 2) {
    for (let i = count - 1; i >= 0; i--) indexTupleDelete(page, offnums[i] as number);
    return;
  }
  checkPagePointers(page);
  const special = pdSpecial(page);
  const lines = maxOffset(page);
  let used = 0;
  let total = 0;
  let next = 0;
  let last = special;
  let presorted = true;
  for (let i = 1; i <= lines; i++) {
    const id = checkedIndexItem(page, i);
    if (next < count && i === offnums[next]) {
      next++;
      continue;
    }
    const offset = itemOffset(id);
    const length = maxAlign(itemLength(id));
    if (last > offset) last = offset;
    else presorted = false;
    keptIndex[used] = i - 1; // source slot for now
    keptOffset[used] = offset;
    keptLength[used] = length;
    total += length;
    used++;
  }
  if (next !== count) throw corrupt('items to delete are out of order or absent');
  if (total > special - pdLower(page)) throw corrupt(`items of ${total} bytes do not fit`);
  for (let i = 0; i < used; i++) {
    const source = keptIndex[i] as number;
    if (source !== i) setItemId(page, i + 1, itemId(page, source + 1));
    keptIndex[i] = i;
  }
  setPdLower(page, PAGE_HEADER_BYTES + used * ITEM_ID_BYTES);
  if (used > 0) compactify(page, used, presorted);
  else setPdUpper(page, special);
}

/** PageIndexTupleOverwrite; false when the new tuple does not fit. */
export function indexTupleOverwrite(page: Buffer, offnum: number, src: Buffer, srcOffset: number, size: number): boolean {
  checkPagePointers(page);
  if (srcOffset < 0 || size < 0 || srcOffset + size > src.length) throw corrupt(`item of ${size} bytes is not in its source`);
  const id = checkedIndexItem(page, offnum);
  const offset = itemOffset(id);
  const oldSize = maxAlign(itemLength(id));
  const upper = pdUpper(page);
  if (maxAlign(size) > oldSize + (upper - pdLower(page))) return false;
  const delta = oldSize - maxAlign(size);
  if (delta !== 0) {
    page.copyWithin(upper + delta, upper, offset);
    setPdUpper(page, upper + delta);
    shiftItems(page, maxOffset(page), offset, delta, true);
  }
  setItemId(page, offnum, makeItemId(offset + delta, itemFlags(id), size));
  src.copy(page, offset + delta, srcOffset, srcOffset + size);
  return true;
}

/** PageGetFreeSpace: room for one more item and its line pointer. */
export function freeSpace(page: Buffer): number {
  const space = pdUpper(page) - pdLower(page);
  return space < ITEM_ID_BYTES ? 0 : space - ITEM_ID_BYTES;
}

/** PageGetExactFreeSpace. */
export const exactFreeSpace = (page: Buffer): number => Math.max(0, pdUpper(page) - pdLower(page));

/** PageGetHeapFreeSpace: none when all line pointers a heap page may have are in use. */
export function heapFreeSpace(page: Buffer): number {
  const space = freeSpace(page);
  if (space > 0) {
    const lines = maxOffset(page);
    if (lines >= MAX_HEAP_TUPLES_PER_PAGE) {
      if ((pdFlags(page) & PD_HAS_FREE_LINES) === 0) return 0;
      for (let i = 1; i <= lines && PAGE_HEADER_BYTES + i * 4 <= BLCKSZ; i++) if (itemFlags(itemId(page, i)) === LP_UNUSED) return space;
      return 0;
    }
  }
  return space;
}
