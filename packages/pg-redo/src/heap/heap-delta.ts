/** Side deltas of the visibility map and the free space map: changes no block reference of a record names.
 *  Form: kind u8, then fields little-endian. Kinds 0x40–0x4f are ours in the table of side-delta.ts. None moves the page LSN, as redo
 *  in Postgres does not either. */
import { LakebaseError } from '@lakebase/base';
import { fsmSet, fsmTruncateAvail } from './fsm.ts';
import { vmClear, vmTruncateTail } from './vm.ts';

/** (heapBlock u32, bits u8)+: clear map bits. An update may clear the bits of two heap blocks on one map page. */
export const DELTA_VM_CLEAR = 0x40;
/** heapBlocks u32: clear the map's tail, see vmTruncateTail. */
export const DELTA_VM_TRUNCATE = 0x41;
/** slot u16, category u8. */
export const DELTA_FSM_SET = 0x42;
/** heapBlocks u32: clear the free space map's tail, see fsmTruncateAvail. */
export const DELTA_FSM_TRUNCATE = 0x43;

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

function u32Delta(kind: number, value: number): Buffer {
  const delta = Buffer.allocUnsafe(5);
  delta[0] = kind;
  delta.writeUInt32LE(value, 1);
  return delta;
}

/** True when the delta's kind is one of this file's. */
export const isHeapDelta = (kind: number): boolean => kind >= DELTA_VM_CLEAR && kind <= DELTA_FSM_TRUNCATE;

/** Whether a delta on a page the fork does not have extends the fork, as redo in Postgres would. A truncation never does. */
export const deltaMakesPage = (delta: Buffer): boolean => delta[0] !== DELTA_VM_TRUNCATE && delta[0] !== DELTA_FSM_TRUNCATE;

/** Applies a delta of this file to a VM or FSM page in place. */
export function applyHeapDelta(page: Buffer, delta: Buffer): void {
  const kind = delta[0];
  if (kind === DELTA_VM_CLEAR && delta.length >= 6 && delta.length % 5 === 1) {
    for (let at = 1; at < delta.length; at += 5) vmClear(page, delta.readUInt32LE(at), delta[at + 4] as number);
  } else if (kind === DELTA_VM_TRUNCATE && delta.length === 5) vmTruncateTail(page, delta.readUInt32LE(1));
  else if (kind === DELTA_FSM_SET && delta.length === 4) fsmSet(page, delta.readUInt16LE(1), delta[3] as number);
  else if (kind === DELTA_FSM_TRUNCATE && delta.length === 5) fsmTruncateAvail(page, delta.readUInt32LE(1));
  else throw new LakebaseError('CORRUPT', `side delta of kind ${kind} and ${delta.length} bytes is not one of the heap's`);
}
