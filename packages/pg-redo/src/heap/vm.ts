/** The visibility map: two bits per heap block, 32,672 heap blocks per map page (visibilitymap.c).
 *  Invariant: a stale *set* bit makes index-only scans and VACUUM wrong, a stale clear bit only costs time; whoever is in doubt clears.
 *  Functions change one 8 KiB map page in place and initialise a page of zeros first, as `vm_readbuf` does. */
import { BLCKSZ } from '@lakebase/ids';
import { ensureInit } from './heap-page.ts';

export const VM_ALL_VISIBLE = 1;
export const VM_ALL_FROZEN = 2;
export const VM_VALID_BITS = 3;

/** MAXALIGN(SizeOfPageHeaderData): the map starts here. */
const MAP_OFFSET = 24;
const MAP_BYTES: number = BLCKSZ - MAP_OFFSET;
export const HEAP_BLOCKS_PER_VM_PAGE: number = MAP_BYTES * 4;

/** Map page that holds the bits of a heap block. */
export const vmPageOf = (heapBlock: number): number => Math.floor(heapBlock / HEAP_BLOCKS_PER_VM_PAGE);

/** Clears `bits` of a heap block on its map page; true when one of them was set. */
export function vmClear(page: Buffer, heapBlock: number, bits: number): boolean {
  ensureInit(page);
  const index = heapBlock % HEAP_BLOCKS_PER_VM_PAGE;
  const at = MAP_OFFSET + (index >>> 2);
  const mask = (bits & VM_VALID_BITS) << ((index & 3) * 2);
  const old = page[at] as number;
  page[at] = old & ~mask;
  return (old & mask) !== 0;
}

/** Adds `bits` (visibilitymap_set); true when the page changed, which is when Postgres moves its LSN. */
export function vmSet(page: Buffer, heapBlock: number, bits: number): boolean {
  ensureInit(page);
  const index = heapBlock % HEAP_BLOCKS_PER_VM_PAGE;
  const at = MAP_OFFSET + (index >>> 2);
  const shift = (index & 3) * 2;
  const old = page[at] as number;
  // Compared with the whole pair, as Postgres does: setting less than what is there still counts as a write.
  if (((old >>> shift) & VM_VALID_BITS) === bits) return false;
  page[at] = old | ((bits & VM_VALID_BITS) << shift);
  return true;
}

export function vmGet(page: Buffer, heapBlock: number): number {
  const index = heapBlock % HEAP_BLOCKS_PER_VM_PAGE;
  return ((page[MAP_OFFSET + (index >>> 2)] as number) >>> ((index & 3) * 2)) & VM_VALID_BITS;
}

/** What a truncation of the heap to `heapBlocks` leaves of the map (visibilitymap_prepare_truncate).
 *  `tailPage` is the page whose tail must be cleared with {@link vmTruncateTail}; undefined when the cut is on a page boundary.
 *  A map shorter than `blocks` stays as it is. */
export function vmTruncation(heapBlocks: number): { tailPage: number | undefined; blocks: number } {
  const page = vmPageOf(heapBlocks);
  return heapBlocks % HEAP_BLOCKS_PER_VM_PAGE === 0 ? { tailPage: undefined, blocks: page } : { tailPage: page, blocks: page + 1 };
}

/** Clears the bits of every heap block ≥ `heapBlocks` on the map page that covers it. */
export function vmTruncateTail(page: Buffer, heapBlocks: number): void {
  ensureInit(page);
  const index = heapBlocks % HEAP_BLOCKS_PER_VM_PAGE;
  const at = MAP_OFFSET + (index >>> 2);
  page.fill(0, at + 1, BLCKSZ);
  page[at] = (page[at] as number) & ((1 << ((index & 3) * 2)) - 1);
}
