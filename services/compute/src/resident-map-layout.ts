/** Bytes of the resident map (docs/protocols/shim-agent.md): where things lie in the file, one entry, the shim's counters. Pure.
 *  Invariant: little-endian here, native in the shim: the two run on one machine and we support little-endian machines only. */
import { LakebaseError } from '@lakebase/base';
import { type ForkNumber, RELSEG_BLOCKS, type RelTag } from '@lakebase/ids';

export const MAGIC = 0x4c42524d;
export const VERSION = 3;
export const HEADER_BYTES = 256;
export const ENTRY_BYTES = 48;
/** Files and areas that the shim may add. */
export const ADDED_MAX = 8_192;
export const AREAS_MAX = 8_192;
/** 32 blocks: two words of states, one of marks of use, one of marks of youth. */
export const CELL_BLOCKS = 32;
export const CELL_BYTES = 16;
/** Cells for all blocks of a segment. */
export const AREA_BYTES: number = (RELSEG_BLOCKS / CELL_BLOCKS) * CELL_BYTES;
/** Of the tables and the areas. */
const ALIGNMENT = 4_096;
/** The shim keeps entry numbers in 32-bit slots; this bound also keeps entries below 4 GiB. */
export const MAX_ENTRIES = 0x400_0000;

const COUNTERS_OFFSET = 40;
export const WAL_DELAY_OFFSET: number = COUNTERS_OFFSET + 6 * 8;
export const CLEAN_BLOCKS_OFFSET: number = COUNTERS_OFFSET + 8 * 8;
export const CLEAN_BUDGET_OFFSET: number = COUNTERS_OFFSET + 9 * 8;
const ADDED_OFFSET = 180;
const ADDED_MAX_OFFSET = 216;
const AREAS_MAX_OFFSET = 220;
const LOOKUP_OFFSET = 224;
const AREAS_OFFSET = 232;

const FLAG_DROPPED = 1;
const FLAG_LAID = 4;

/** One segment file as storage has it at the start LSN. `sourceFork` differs from the tag's fork for the main fork of an unlogged relation. */
export interface ResidentSegment {
  readonly tag: RelTag;
  readonly segment: number;
  readonly nblocks: number;
  readonly sourceFork?: ForkNumber;
}

/** An entry as the shim has left it: `nblocks` may have changed, `dropped` means the file was unlinked, `laid` that the shim
 *  has made it (with lazy layout a file exists only once its name was used). */
export interface ResidentEntry extends ResidentSegment {
  readonly index: number;
  /** Blocks that are tracked: all others of the file are local. */
  readonly nblocks: number;
  readonly sourceFork: ForkNumber;
  readonly dropped: boolean;
  readonly laid: boolean;
}

export interface ShimCounters {
  readonly faultRequests: number;
  readonly blocksFetched: number;
  readonly blocksWritten: number;
  readonly waits: number;
  readonly errors: number;
  /** How far WAL is written to the local disk, rounded up to a page; 0: nothing yet. */
  readonly walPosition: number;
  /** How long every 8192 bytes of WAL have to take (`ResidentMapFile.setWalDelay`). */
  readonly walDelayNs: number;
  readonly walSleptNs: number;
  readonly cleanBlocks: number;
  /** Bound on clean blocks; 0: none set yet. */
  readonly cleanBudget: number;
  readonly blocksEvicted: number;
  /** Writes that found the disk full and went on after clean blocks were dropped; and those for which there was nothing to drop. */
  readonly roomsMade: number;
  readonly roomsDenied: number;
  /** Below the data directory, as last measured. */
  readonly scratchBytes: number;
  readonly blocksPrefetched: number;
  /** Rounds begun; blocks that became clean in them because storage has them; blocks that were local and are tracked since a round. */
  readonly rounds: number;
  readonly blocksSettled: number;
  readonly blocksAdopted: number;
  /** Files made since the start that have an entry. */
  readonly added: number;
}

/** Where the parts of the file lie. */
export interface MapLayout {
  readonly entryCount: number;
  readonly added: number;
  readonly addedMax: number;
  readonly areasMax: number;
  readonly bitmapsOffset: number;
  readonly lookupOffset: number;
  readonly areasOffset: number;
  readonly totalBytes: number;
}

const align = (n: number): number => Math.ceil(n / ALIGNMENT) * ALIGNMENT;
/** `nblocks` of the start as whole cells. */
export const baseBlocks = (nblocks: number): number => Math.ceil(nblocks / CELL_BLOCKS) * CELL_BLOCKS;
export const cellBytes = (blocks: number): number => Math.ceil(blocks / CELL_BLOCKS) * CELL_BYTES;

/** Of a fresh map. */
export function layoutOf(entryCount: number, bitmapBytes: number): MapLayout {
  const bitmapsOffset = HEADER_BYTES + (entryCount + ADDED_MAX) * ENTRY_BYTES;
  const lookupOffset = align(bitmapsOffset + bitmapBytes);
  const areasOffset = align(lookupOffset + tableBytes(ADDED_MAX, AREAS_MAX));
  const totalBytes = areasOffset + AREAS_MAX * AREA_BYTES;
  return { entryCount, added: 0, addedMax: ADDED_MAX, areasMax: AREAS_MAX, bitmapsOffset, lookupOffset, areasOffset, totalBytes };
}

/** The lookup table, and whose the areas are. */
const tableBytes = (addedMax: number, areasMax: number): number => 2 * addedMax * 4 + areasMax * 4;

export function encodeHeader(layout: MapLayout): Buffer {
  const b = Buffer.alloc(HEADER_BYTES);
  b.writeUInt32LE(MAGIC, 0);
  b.writeUInt32LE(VERSION, 4);
  b.writeUInt32LE(layout.entryCount, 8);
  writeU64(b, HEADER_BYTES, 16);
  writeU64(b, layout.bitmapsOffset, 24);
  writeU64(b, layout.totalBytes, 32);
  b.writeUInt32LE(layout.added, ADDED_OFFSET);
  b.writeUInt32LE(layout.addedMax, ADDED_MAX_OFFSET);
  b.writeUInt32LE(layout.areasMax, AREAS_MAX_OFFSET);
  writeU64(b, layout.lookupOffset, LOOKUP_OFFSET);
  writeU64(b, layout.areasOffset, AREAS_OFFSET);
  return b;
}

/** CORRUPT when the parts overlap or do not fill `fileBytes`. */
export function decodeHeader(b: Buffer, fileBytes: number): MapLayout {
  if (b.length < HEADER_BYTES || b.readUInt32LE(0) !== MAGIC || b.readUInt32LE(4) !== VERSION)
    throw new LakebaseError('CORRUPT', 'resident map: wrong magic, version or length');
  const layout: MapLayout = {
    entryCount: b.readUInt32LE(8),
    added: b.readUInt32LE(ADDED_OFFSET),
    addedMax: b.readUInt32LE(ADDED_MAX_OFFSET),
    areasMax: b.readUInt32LE(AREAS_MAX_OFFSET),
    bitmapsOffset: readU64(b, 24),
    lookupOffset: readU64(b, LOOKUP_OFFSET),
    areasOffset: readU64(b, AREAS_OFFSET),
    totalBytes: readU64(b, 32),
  };
  const { entryCount, added, addedMax, areasMax, bitmapsOffset, lookupOffset, areasOffset, totalBytes } = layout;
  if (
    readU64(b, 16) !== HEADER_BYTES ||
    entryCount > MAX_ENTRIES ||
    added > addedMax ||
    bitmapsOffset !== HEADER_BYTES + (entryCount + addedMax) * ENTRY_BYTES ||
    lookupOffset < bitmapsOffset ||
    areasOffset < lookupOffset + tableBytes(addedMax, areasMax) ||
    totalBytes !== areasOffset + areasMax * AREA_BYTES ||
    totalBytes !== fileBytes
  )
    throw new LakebaseError('CORRUPT', 'resident map: header offsets do not fit the file');
  return layout;
}

/** Entry `index`, whose bytes begin at `at`. */
export function decodeEntry(b: Buffer, at: number, index: number): ResidentEntry {
  const flags = b.readUInt32LE(at + 20);
  const dropped = (flags & FLAG_DROPPED) !== 0;
  const nblocks = b.readUInt32LE(at + 16);
  return {
    index,
    tag: { spc: b.readUInt32LE(at), db: b.readUInt32LE(at + 4), rel: b.readUInt32LE(at + 8), fork: b.readUInt8(at + 12) as ForkNumber },
    sourceFork: b.readUInt8(at + 13) as ForkNumber,
    segment: b.readUInt16LE(at + 14),
    // The area of a dropped entry may be another's by now.
    nblocks: entryArea(b, at) === 0 || dropped ? Math.min(nblocks, entryBase(b, at)) : nblocks,
    dropped,
    laid: (flags & FLAG_LAID) !== 0,
  };
}

export const entryBitmap = (b: Buffer, at: number): number => readU64(b, at + 24);
export const entryBase = (b: Buffer, at: number): number => b.readUInt32LE(at + 32);
/** 0: none. */
export const entryArea = (b: Buffer, at: number): number => b.readUInt32LE(at + 36);

export function encodeEntry(b: Buffer, at: number, s: ResidentSegment, bitmap: number): void {
  b.writeUInt32LE(s.tag.spc, at);
  b.writeUInt32LE(s.tag.db, at + 4);
  b.writeUInt32LE(s.tag.rel, at + 8);
  b.writeUInt8(s.tag.fork, at + 12);
  b.writeUInt8(s.sourceFork ?? s.tag.fork, at + 13);
  b.writeUInt16LE(s.segment, at + 14);
  b.writeUInt32LE(s.nblocks, at + 16);
  writeU64(b, bitmap, at + 24);
  b.writeUInt32LE(baseBlocks(s.nblocks), at + 32);
}

/** CORRUPT when a number of the entry, or where its cells lie, cannot be. */
export function checkEntry(b: Buffer, at: number, index: number, layout: MapLayout): void {
  const base = entryBase(b, at);
  const bitmap = entryBitmap(b, at);
  const here = index < layout.entryCount ? bitmap >= layout.bitmapsOffset && bitmap + cellBytes(base) <= layout.lookupOffset : base === 0;
  if (
    !here ||
    base % CELL_BLOCKS !== 0 ||
    base > RELSEG_BLOCKS ||
    b.readUInt32LE(at + 16) > RELSEG_BLOCKS ||
    entryArea(b, at) > layout.areasMax ||
    b.readUInt8(at + 12) > 3 ||
    b.readUInt8(at + 13) > 3
  )
    throw new LakebaseError('CORRUPT', `resident map: entry ${index} cannot be one`);
}

export function decodeCounters(b: Buffer): ShimCounters {
  const at = (i: number): number => readU64(b, COUNTERS_OFFSET + i * 8);
  return {
    faultRequests: at(0),
    blocksFetched: at(1),
    blocksWritten: at(2),
    waits: at(3),
    errors: at(4),
    walPosition: at(5),
    walDelayNs: at(6),
    walSleptNs: at(7),
    cleanBlocks: at(8),
    cleanBudget: at(9),
    blocksEvicted: at(10),
    roomsMade: at(12),
    roomsDenied: at(13),
    scratchBytes: at(14),
    blocksPrefetched: at(15),
    rounds: at(19),
    blocksSettled: at(20),
    blocksAdopted: at(21),
    added: b.readUInt32LE(ADDED_OFFSET),
  };
}

export function writeU64(b: Buffer, value: number, at: number): void {
  b.writeUInt32LE(value % 0x1_0000_0000, at);
  b.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4);
}

export const readU64 = (b: Buffer, at: number): number => b.readUInt32LE(at) + b.readUInt32LE(at + 4) * 0x1_0000_0000;
