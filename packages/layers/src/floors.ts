/** Truncation floors of a relation fork: which old changes a block must not see any more.
 *  A truncation to n blocks at LSN T hides every change ≤ T of blocks ≥ n, also after the fork has grown again: such blocks read as zeros.
 *  Only the steps that still matter are kept: block counts strictly grow from old to new, because a later truncation to fewer (or as many)
 *  blocks covers an earlier one. Value form: steps of `blocks u32be · lsn u64be`, oldest first. */
import { LakebaseError } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';

export interface FloorStep {
  readonly blocks: number;
  readonly lsn: Lsn;
}
export type Floors = readonly FloorStep[];

const STEP_BYTES = 12;
export const NO_FLOORS: Floors = [];

export function addFloor(floors: Floors, blocks: number, lsn: Lsn): Floors {
  let keep = floors.length;
  while (keep > 0 && (floors[keep - 1] as FloorStep).blocks >= blocks) keep--;
  return [...floors.slice(0, keep), { blocks, lsn }];
}

/** Changes of `block` at or below this LSN do not count. */
export function floorOf(floors: Floors, block: number): Lsn {
  for (let i = floors.length - 1; i >= 0; i--) {
    const step = floors[i] as FloorStep;
    if (step.blocks <= block) return step.lsn;
  }
  return 0 as Lsn;
}

export function encodeFloors(floors: Floors): Buffer {
  const bytes = Buffer.allocUnsafe(floors.length * STEP_BYTES);
  floors.forEach((step, i) => {
    bytes.writeUInt32BE(step.blocks, i * STEP_BYTES);
    bytes.writeUInt32BE(Math.floor(step.lsn / 0x1_0000_0000), i * STEP_BYTES + 4);
    bytes.writeUInt32BE(step.lsn % 0x1_0000_0000, i * STEP_BYTES + 8);
  });
  return bytes;
}

export function decodeFloors(bytes: Buffer): Floors {
  if (bytes.length % STEP_BYTES !== 0) throw new LakebaseError('CORRUPT', `truncation floors of ${bytes.length} bytes`);
  const floors: FloorStep[] = [];
  for (let at = 0; at < bytes.length; at += STEP_BYTES)
    floors.push({ blocks: bytes.readUInt32BE(at), lsn: (bytes.readUInt32BE(at + 4) * 0x1_0000_0000 + bytes.readUInt32BE(at + 8)) as Lsn });
  return floors;
}
