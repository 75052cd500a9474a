/** Side deltas of the visibility map and the free space map: changes no block reference of a record names.
 *  Form: kind u8, then fields little-endian. Kinds 0x40–0x4f are ours in the table of side-delta.ts. None moves the page LSN, as redo
 *  in Postgres does not either. */
import { LakebaseError } from '@lakebase/base';
import { FSM_SLOTS, fsmAddress, fsmPhysicalBlock, fsmRefreshSlots, fsmSet, fsmTruncateAvail, fsmTruncation } from './fsm.ts';
import { vmClear, vmTruncateTail } from './vm.ts';

/** (heapBlock u32, bits u8)+: clear map bits. An update may clear the bits of two heap blocks on one map page. */
export const DELTA_VM_CLEAR = 0x40;
/** heapBlocks u32: clear the map's tail, see vmTruncateTail. */
export const DELTA_VM_TRUNCATE = 0x41;
/** slot u16, category u8. */
export const DELTA_FSM_SET = 0x42;
/** heapBlocks u32: clear the free space map's tail, see fsmTruncateAvail. */
export const DELTA_FSM_TRUNCATE = 0x43;
/** child u32 (block of the same fork, 0xffffffff for none), slot u16: an upper page takes over its child's maximum, see {@link fsmTruncateDeltas}. */
export const DELTA_FSM_REFRESH = 0x44;
const NO_CHILD = 0xffff_ffff;

export function vmClearDelta(heapBlock: number, bits: number): Buffer {
  const delta = Buffer.allocUnsafe(6);
  delta[0] = DELTA_VM_CLEAR;
  delta.writeUInt32LE(heapBlock, 1);
  delta[5] = bits;
  return delta;
}

export function vmTruncateDelta(heapBlocks: number): Buffer {
  return u32Delta(DELTA_VM_TRUNCATE, heapBlocks);
}

export function fsmTruncateDelta(heapBlocks: number): Buffer {
  return u32Delta(DELTA_FSM_TRUNCATE, heapBlocks);
}

export function fsmSetDelta(slot: number, category: number): Buffer {
  const delta = Buffer.allocUnsafe(4);
  delta[0] = DELTA_FSM_SET;
  delta.writeUInt16LE(slot, 1);
  delta[3] = category;
  return delta;
}

export interface PageDelta {
  readonly block: number;
  readonly delta: Buffer;
}

/** What truncating the heap to `heapBlocks` does to the pages of the FSM fork that stay, in the order to apply: the tail of the last leaf,
 *  then the two pages above it (FreeSpaceMapVacuumRange in smgr_redo; all later pages of the fork are gone, so their slots become 0). */
export function fsmTruncateDeltas(heapBlocks: number): PageDelta[] {
  const { tailPage } = fsmTruncation(heapBlocks);
  const leaf = Math.floor(heapBlocks / FSM_SLOTS);
  const middle = Math.floor(leaf / FSM_SLOTS);
  const middleBlock = fsmPhysicalBlock(1, middle);
  const deltas: PageDelta[] = [];
  if (tailPage !== undefined) deltas.push({ block: tailPage, delta: u32Delta(DELTA_FSM_TRUNCATE, heapBlocks) });
  // The cut may take the middle page too; then its slot on the root has no child any more.
  const middleStays = middleBlock < fsmAddress(heapBlocks).fsmBlock;
  if (middleStays) deltas.push({ block: middleBlock, delta: refreshDelta(tailPage ?? NO_CHILD, leaf % FSM_SLOTS) });
  deltas.push({ block: fsmPhysicalBlock(2, 0), delta: refreshDelta(middleStays ? middleBlock : NO_CHILD, middle) });
  return deltas;
}

function refreshDelta(child: number, slot: number): Buffer {
  const delta = Buffer.allocUnsafe(7);
  delta[0] = DELTA_FSM_REFRESH;
  delta.writeUInt32LE(child, 1);
  delta.writeUInt16LE(slot, 5);
  return delta;
}

/** The block of the same fork whose content, as of the same record, decides what the delta does; undefined for most. */
export function deltaChildBlock(delta: Buffer): number | undefined {
  if (delta[0] !== DELTA_FSM_REFRESH || delta.length !== 7) return undefined;
  const child = delta.readUInt32LE(1);
  return child === NO_CHILD ? undefined : child;
}

function u32Delta(kind: number, value: number): Buffer {
  const delta = Buffer.allocUnsafe(5);
  delta[0] = kind;
  delta.writeUInt32LE(value, 1);
  return delta;
}

/** True when the delta's kind is one of this file's. */
export const isHeapDelta = (kind: number): boolean => kind >= DELTA_VM_CLEAR && kind <= DELTA_FSM_REFRESH;

/** Whether a delta on a page the fork does not have extends the fork, as redo in Postgres would. A truncation never does. */
export const deltaMakesPage = (delta: Buffer): boolean =>
  delta[0] !== DELTA_VM_TRUNCATE && delta[0] !== DELTA_FSM_TRUNCATE && delta[0] !== DELTA_FSM_REFRESH;

/** Applies a delta of this file to a VM or FSM page in place. `child` is the page {@link deltaChildBlock} names, if it exists; without it
 *  an upper FSM page promises no space below, which the next VACUUM corrects. */
export function applyHeapDelta(page: Buffer, delta: Buffer, child?: Buffer): void {
  const kind = delta[0];
  if (kind === DELTA_VM_CLEAR && delta.length >= 6 && delta.length % 5 === 1) {
    for (let at = 1; at < delta.length; at += 5) vmClear(page, delta.readUInt32LE(at), delta[at + 4] as number);
  } else if (kind === DELTA_VM_TRUNCATE && delta.length === 5) vmTruncateTail(page, delta.readUInt32LE(1));
  else if (kind === DELTA_FSM_SET && delta.length === 4 && delta.readUInt16LE(1) < FSM_SLOTS)
    fsmSet(page, delta.readUInt16LE(1), delta[3] as number);
  else if (kind === DELTA_FSM_TRUNCATE && delta.length === 5) fsmTruncateAvail(page, delta.readUInt32LE(1));
  else if (kind === DELTA_FSM_REFRESH && delta.length === 7) fsmRefreshSlots(page, delta.readUInt16LE(5), child);
  else throw new LakebaseError('CORRUPT', `side delta of kind ${kind} and ${delta.length} bytes is not one of the heap's`);
}
