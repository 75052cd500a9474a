/** The free space map as redo on a standby keeps it (freespace.c, fsmpage.c): only leaf pages are written while WAL is replayed, upper
 *  pages only when a relation is truncated. A page is a binary tree of one-byte categories: 4,095 inner nodes, then 4,069 leaf slots.
 *  Invariant: after {@link fsmSet} every inner node on the slot's path is the maximum of its children.
 *  Functions change one 8 KiB page in place, initialise a page of zeros first, and never touch the page LSN: the map is not WAL-logged. */
import { BLCKSZ } from '@lakebase/ids';
import { ensureInit } from './heap-page.ts';

/** PageHeader (24) and fp_next_slot (4). */
const NODES_OFFSET = 28;
const NODES: number = BLCKSZ - NODES_OFFSET;
const INNER_NODES: number = BLCKSZ / 2 - 1;
/** SlotsPerFSMPage. */
export const FSM_SLOTS: number = NODES - INNER_NODES;
/** MaxHeapTupleSize, which is MaxFSMRequestSize. */
const MAX_REQUEST = BLCKSZ - 32;
const CATEGORY_STEP = BLCKSZ / 256;

export interface FsmAddress {
  /** Physical block of the FSM fork. */
  readonly fsmBlock: number;
  readonly slot: number;
}

/** Physical FSM block of the `index`th page of a level (0 = leaf): pages lie in depth-first order, three levels. */
export function fsmPhysicalBlock(level: 0 | 1 | 2, index: number): number {
  let leaf = index * FSM_SLOTS ** level;
  let pages = 0;
  for (let l = 0; l < 3; l++) {
    pages += leaf + 1;
    leaf = Math.floor(leaf / FSM_SLOTS);
  }
  return pages - level - 1;
}

/** Leaf page of a heap block: {@link fsmPhysicalBlock} at level 0 without its loop, as nearly every insert asks. */
export function fsmLeaf(heapBlock: number): number {
  const index = Math.floor(heapBlock / FSM_SLOTS);
  const above = Math.floor(index / FSM_SLOTS);
  return index + above + Math.floor(above / FSM_SLOTS) + 2;
}

/** Leaf page and slot of a heap block. */
export function fsmAddress(heapBlock: number): FsmAddress {
  return { fsmBlock: fsmLeaf(heapBlock), slot: heapBlock % FSM_SLOTS };
}

/** Category of a number of free bytes (fsm_space_avail_to_cat). */
export function fsmCategory(freeBytes: number): number {
  if (freeBytes >= MAX_REQUEST) return 255;
  return Math.min(254, Math.floor(freeBytes / CATEGORY_STEP));
}

export const fsmGet = (page: Buffer, slot: number): number => page[NODES_OFFSET + INNER_NODES + slot] as number;
/** Largest category on the page. */
export const fsmRoot = (page: Buffer): number => page[NODES_OFFSET] as number;

/** Sets a slot and bubbles the maximum up (fsm_set_avail); true when the page changed. */
export function fsmSet(page: Buffer, slot: number, category: number): boolean {
  ensureInit(page);
  let node = INNER_NODES + slot;
  if (page[NODES_OFFSET + node] === category && category <= fsmRoot(page)) return false;
  page[NODES_OFFSET + node] = category;
  do {
    node = (node - 1) >>> 1;
    const value = maxOfChildren(page, node);
    if (page[NODES_OFFSET + node] === value) break;
    page[NODES_OFFSET + node] = value;
  } while (node > 0);
  if (category > fsmRoot(page)) fsmRebuild(page);
  return true;
}

/** What a truncation of the heap to `heapBlocks` leaves of the map (FreeSpaceMapPrepareTruncateRel); see vmTruncation. */
export function fsmTruncation(heapBlocks: number): { tailPage: number | undefined; blocks: number } {
  const { fsmBlock, slot } = fsmAddress(heapBlocks);
  return slot === 0 ? { tailPage: undefined, blocks: fsmBlock } : { tailPage: fsmBlock, blocks: fsmBlock + 1 };
}

/** Zeroes the slots of every heap block ≥ `heapBlocks` on the leaf page that covers it (fsm_truncate_avail); true when it changed. */
export function fsmTruncateAvail(page: Buffer, heapBlocks: number): boolean {
  ensureInit(page);
  let changed = false;
  for (let at = NODES_OFFSET + INNER_NODES + (heapBlocks % FSM_SLOTS); at < BLCKSZ; at++) {
    if (page[at] !== 0) changed = true;
    page[at] = 0;
  }
  if (changed) fsmRebuild(page);
  return changed;
}

/** An upper page after everything behind its slot `slot` is gone: that slot takes the child's maximum (0 without a child), later ones 0.
 *  A page nothing changes on stays as it is, even when it was never initialised. */
export function fsmRefreshSlots(page: Buffer, slot: number, child: Buffer | undefined): void {
  for (let s = slot; s < FSM_SLOTS; s++) {
    const value = s === slot && child !== undefined ? fsmRoot(child) : 0;
    if (fsmGet(page, s) !== value) fsmSet(page, s, value);
  }
}

/** Recomputes every inner node (fsm_rebuild_page). */
export function fsmRebuild(page: Buffer): void {
  for (let node = INNER_NODES - 1; node >= 0; node--) page[NODES_OFFSET + node] = maxOfChildren(page, node);
}

function maxOfChildren(page: Buffer, node: number): number {
  const left = 2 * node + 1;
  const a = left < NODES ? (page[NODES_OFFSET + left] as number) : 0;
  const b = left + 1 < NODES ? (page[NODES_OFFSET + left + 1] as number) : 0;
  return a > b ? a : b;
}
