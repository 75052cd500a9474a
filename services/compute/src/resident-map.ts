/** The resident map: which blocks of which relation segments are on the compute's local disk. The agent builds it before Postgres starts,
 *  the preload shim (`native/pgshim`) maps it shared and changes it while Postgres runs. Layout: `docs/protocols/shim-agent.md`.
 *
 *  Invariants
 *  - Little-endian here, native in the shim: the two run on one machine and we support little-endian machines only.
 *  - Entries are sorted by (spc, db, rel, fork, segment); the index of an entry is what the shim sends in a request.
 *  - After Postgres started only the shim writes the file, but for the delay of WAL. This side re-reads it ({@link ResidentMap.refresh}); what it sees is a snapshot. */
import { closeSync, openSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { endianness } from 'node:os';
import { LakebaseError } from '@lakebase/base';
import { type ForkNumber, RELSEG_BLOCKS, type RelTag } from '@lakebase/ids';

const MAGIC = 0x4c42524d;
const VERSION = 2;
const HEADER_BYTES = 256;
const ENTRY_BYTES = 32;
const COUNTERS_OFFSET = 40;
const CLEAN_BLOCKS_OFFSET = 104;
const CLEAN_BUDGET_OFFSET = 112;
/** 32 blocks: two words of states, one of use marks, one spare. */
const CELL_BLOCKS = 32;
const CELL_BYTES = 16;
const FLAG_DROPPED = 1;
const FLAG_LAID = 4;
/** The shim keeps entry numbers in 32-bit slots; this bound also keeps the map below 4 GiB of entries. */
const MAX_ENTRIES = 0x400_0000;

export const BLOCK_ABSENT = 0;
export const BLOCK_BUSY = 1;
export const BLOCK_CLEAN = 2;
export const BLOCK_DIRTY = 3;
export type BlockState = 0 | 1 | 2 | 3;

/** One segment file as storage has it at the start LSN. `sourceFork` differs from the tag's fork for the main fork of an unlogged relation. */
export interface ResidentSegment {
  readonly tag: RelTag;
  readonly segment: number;
  readonly nblocks: number;
  readonly sourceFork?: ForkNumber;
}

/** An entry as the shim has left it: `nblocks` may have shrunk, `dropped` means the file was unlinked, `laid` that the shim
 *  has made it (with lazy layout a file exists only once its name was used). */
export interface ResidentEntry extends ResidentSegment {
  readonly index: number;
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
  /** How long every 8192 bytes of WAL have to take ({@link ResidentMapFile.setWalDelay}). */
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
}

const compareSegments = (a: ResidentSegment, b: ResidentSegment): number =>
  a.tag.spc - b.tag.spc || a.tag.db - b.tag.db || a.tag.rel - b.tag.rel || a.tag.fork - b.tag.fork || a.segment - b.segment;

const bitmapBytes = (nblocks: number): number => Math.ceil(nblocks / CELL_BLOCKS) * CELL_BYTES;

export class ResidentMap {
  #bytes: Buffer;

  private constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  /** A fresh map: every block absent. The order of `segments` does not matter; see {@link find} for the index an entry got. */
  static build(segments: Iterable<ResidentSegment>): ResidentMap {
    if (endianness() !== 'LE') throw new LakebaseError('UNSUPPORTED', 'the resident map needs a little-endian machine');
    const sorted = [...segments].sort(compareSegments);
    if (sorted.length > MAX_ENTRIES)
      throw new LakebaseError('RESOURCE_EXHAUSTED', `${sorted.length} relation files; the limit is ${MAX_ENTRIES}`);
    const bitmapsOffset = HEADER_BYTES + sorted.length * ENTRY_BYTES;
    let total = bitmapsOffset;
    for (const s of sorted) {
      checkSegment(s);
      total += bitmapBytes(s.nblocks);
    }
    const bytes = Buffer.alloc(total);
    bytes.writeUInt32LE(MAGIC, 0);
    bytes.writeUInt32LE(VERSION, 4);
    bytes.writeUInt32LE(sorted.length, 8);
    writeU64(bytes, HEADER_BYTES, 16);
    writeU64(bytes, bitmapsOffset, 24);
    writeU64(bytes, total, 32);
    let bitmap = bitmapsOffset;
    let previous: ResidentSegment | undefined;
    for (const [index, s] of sorted.entries()) {
      if (previous !== undefined && compareSegments(previous, s) === 0)
        throw new LakebaseError(
          'INVALID_ARGUMENT',
          `relation ${s.tag.db}/${s.tag.rel} fork ${s.tag.fork} segment ${s.segment} is listed twice`,
        );
      previous = s;
      const at = HEADER_BYTES + index * ENTRY_BYTES;
      bytes.writeUInt32LE(s.tag.spc, at);
      bytes.writeUInt32LE(s.tag.db, at + 4);
      bytes.writeUInt32LE(s.tag.rel, at + 8);
      bytes.writeUInt8(s.tag.fork, at + 12);
      bytes.writeUInt8(s.sourceFork ?? s.tag.fork, at + 13);
      bytes.writeUInt16LE(s.segment, at + 14);
      bytes.writeUInt32LE(s.nblocks, at + 16);
      writeU64(bytes, bitmap, at + 24);
      bitmap += bitmapBytes(s.nblocks);
    }
    return new ResidentMap(bytes);
  }

  /** Checks header, entries and offsets; a map that fails was not made by {@link build}. */
  static decode(bytes: Buffer): ResidentMap {
    if (bytes.length < HEADER_BYTES || bytes.readUInt32LE(0) !== MAGIC || bytes.readUInt32LE(4) !== VERSION)
      throw new LakebaseError('CORRUPT', 'resident map: wrong magic, version or length');
    const count = bytes.readUInt32LE(8);
    if (
      readU64(bytes, 16) !== HEADER_BYTES ||
      readU64(bytes, 24) !== HEADER_BYTES + count * ENTRY_BYTES ||
      readU64(bytes, 32) !== bytes.length
    )
      throw new LakebaseError('CORRUPT', 'resident map: header offsets do not fit the file');
    const map = new ResidentMap(bytes);
    for (let i = 0; i < count; i++) {
      const bitmap = readU64(bytes, HEADER_BYTES + i * ENTRY_BYTES + 24);
      if (bitmap < HEADER_BYTES + count * ENTRY_BYTES || bitmap + bitmapBytes(map.entry(i).nblocks) > bytes.length)
        throw new LakebaseError('CORRUPT', `resident map: bitmap of entry ${i} lies outside the file`);
    }
    return map;
  }

  /** Reads the file the shim shares; the page cache makes what other processes stored visible here. */
  static open(path: string): ResidentMap {
    return ResidentMap.decode(readWhole(path));
  }

  /** Re-reads the file into this snapshot (its layout never changes). */
  refresh(path: string): void {
    const fresh = readWhole(path);
    if (fresh.length !== this.#bytes.length || fresh.readUInt32LE(8) !== this.length)
      throw new LakebaseError('CORRUPT', `resident map ${path} is not the one this process made`);
    this.#bytes = fresh;
  }

  /** Writes the map for the shim; only before Postgres starts. The file must be readable and writable for Postgres's user. */
  write(path: string): void {
    writeFileSync(path, this.#bytes, { mode: 0o600 });
  }

  /** The snapshot itself, as it would be written. */
  get bytes(): Buffer {
    return this.#bytes;
  }

  get length(): number {
    return this.#bytes.readUInt32LE(8);
  }

  get byteLength(): number {
    return this.#bytes.length;
  }

  entry(index: number): ResidentEntry {
    const at = this.#entryOffset(index);
    const b = this.#bytes;
    return {
      index,
      tag: { spc: b.readUInt32LE(at), db: b.readUInt32LE(at + 4), rel: b.readUInt32LE(at + 8), fork: b.readUInt8(at + 12) as ForkNumber },
      sourceFork: b.readUInt8(at + 13) as ForkNumber,
      segment: b.readUInt16LE(at + 14),
      nblocks: b.readUInt32LE(at + 16),
      dropped: (b.readUInt32LE(at + 20) & FLAG_DROPPED) !== 0,
      laid: (b.readUInt32LE(at + 20) & FLAG_LAID) !== 0,
    };
  }

  *entries(): Generator<ResidentEntry> {
    for (let i = 0; i < this.length; i++) yield this.entry(i);
  }

  /** Index of the entry of that segment file, or -1. */
  find(tag: RelTag, segment: number): number {
    let low = 0;
    let high = this.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const order = this.#compareEntry(middle, tag, segment);
      if (order === 0) return middle;
      if (order < 0) low = middle + 1;
      else high = middle - 1;
    }
    return -1;
  }

  state(index: number, block: number): BlockState {
    const word = this.#bytes.readUInt32LE(this.#wordOffset(index, block));
    return ((word >>> ((block % 16) * 2)) & 3) as BlockState;
  }

  /** Used since the clock came by last: read, or written. */
  accessed(index: number, block: number): boolean {
    return ((this.#bytes.readUInt32LE(this.#cellOffset(index, block) + 8) >>> (block % CELL_BLOCKS)) & 1) === 1;
  }

  /** Bound on clean blocks until the cache worker has measured; 0: none. */
  setCleanBudget(blocks: number): void {
    writeU64(this.#bytes, blocks, CLEAN_BUDGET_OFFSET);
  }

  anyAccessed(index: number): boolean {
    return !this.accessedBlocks(index).next().done;
  }

  /** Blocks on the local disk that were used since the clock came by last, ascending. Cells without any cost one read. */
  *accessedBlocks(index: number): Generator<number> {
    const { nblocks, dropped } = this.entry(index);
    if (dropped) return;
    for (let first = 0; first < nblocks; first += CELL_BLOCKS) {
      let marks = this.#bytes.readUInt32LE(this.#cellOffset(index, first) + 8);
      for (let block = first; marks !== 0 && block < nblocks; block++, marks >>>= 1)
        if ((marks & 1) === 1 && this.state(index, block) >= BLOCK_CLEAN) yield block;
    }
  }

  /** For pages the agent lays down itself before Postgres starts (boot set): the bytes must be in the file before the map is written. */
  setState(index: number, block: number, state: BlockState): void {
    const before = this.state(index, block);
    if ((before === BLOCK_CLEAN) !== (state === BLOCK_CLEAN))
      writeU64(this.#bytes, readU64(this.#bytes, CLEAN_BLOCKS_OFFSET) + (state === BLOCK_CLEAN ? 1 : -1), CLEAN_BLOCKS_OFFSET);
    const at = this.#wordOffset(index, block);
    const shift = (block % 16) * 2;
    this.#bytes.writeUInt32LE(((this.#bytes.readUInt32LE(at) & ~(3 << shift)) | (state << shift)) >>> 0, at);
  }

  /** Blocks of one entry in any of `states`, ascending, below the entry's current length. Words without a hit cost one read. */
  *blocks(index: number, ...states: BlockState[]): Generator<number> {
    const { nblocks, dropped } = this.entry(index);
    if (dropped) return;
    const wanted = new Set<number>(states);
    const skipZero = !wanted.has(BLOCK_ABSENT);
    for (let first = 0; first < nblocks; first += 16) {
      let word = this.#bytes.readUInt32LE(this.#wordOffset(index, first));
      if (word === 0 && skipZero) continue;
      for (let block = first; block < Math.min(first + 16, nblocks); block++, word >>>= 2) if (wanted.has(word & 3)) yield block;
    }
  }

  /** How many blocks are in each state, over all entries that are not dropped. */
  totals(): { absent: number; busy: number; clean: number; dirty: number } {
    const n: [number, number, number, number] = [0, 0, 0, 0];
    for (const { index, nblocks, dropped } of this.entries()) {
      if (dropped) continue;
      for (let block = 0; block < nblocks; block++) n[this.state(index, block)]++;
    }
    return { absent: n[0], busy: n[1], clean: n[2], dirty: n[3] };
  }

  counters(): ShimCounters {
    return decodeCounters(this.#bytes);
  }

  #entryOffset(index: number): number {
    if (!Number.isInteger(index) || index < 0 || index >= this.length)
      throw new LakebaseError('INVALID_ARGUMENT', `resident map has ${this.length} entries, not one numbered ${index}`);
    return HEADER_BYTES + index * ENTRY_BYTES;
  }

  #wordOffset(index: number, block: number): number {
    return this.#cellOffset(index, block) + ((block >>> 4) & 1) * 4;
  }

  #cellOffset(index: number, block: number): number {
    const at = this.#entryOffset(index);
    if (!Number.isInteger(block) || block < 0 || block >= this.#bytes.readUInt32LE(at + 16))
      throw new LakebaseError('INVALID_ARGUMENT', `entry ${index} of the resident map has no block ${block}`);
    return readU64(this.#bytes, at + 24) + Math.floor(block / CELL_BLOCKS) * CELL_BYTES;
  }

  #compareEntry(index: number, tag: RelTag, segment: number): number {
    const at = HEADER_BYTES + index * ENTRY_BYTES;
    const b = this.#bytes;
    return (
      b.readUInt32LE(at) - tag.spc ||
      b.readUInt32LE(at + 4) - tag.db ||
      b.readUInt32LE(at + 8) - tag.rel ||
      b.readUInt8(at + 12) - tag.fork ||
      b.readUInt16LE(at + 14) - segment
    );
  }
}

/** The header of a map in use: the shim's counters, and the one word that is ours to change while Postgres runs. Reads no bitmaps. */
export class ResidentMapFile implements Disposable {
  readonly #fd: number;
  readonly #header = Buffer.alloc(HEADER_BYTES);

  constructor(path: string) {
    this.#fd = openSync(path, 'r+');
    if (readSync(this.#fd, this.#header, 0, HEADER_BYTES, 0) !== HEADER_BYTES || this.#header.readUInt32LE(0) !== MAGIC) {
      closeSync(this.#fd);
      throw new LakebaseError('CORRUPT', `${path} is not a resident map`);
    }
  }

  counters(): ShimCounters {
    readSync(this.#fd, this.#header, 0, HEADER_BYTES, 0);
    return decodeCounters(this.#header);
  }

  setWalDelay(ns: number): void {
    const word = Buffer.alloc(8);
    writeU64(word, ns, 0);
    writeSync(this.#fd, word, 0, 8, WAL_DELAY_OFFSET);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

const WAL_DELAY_OFFSET = COUNTERS_OFFSET + 6 * 8;

function decodeCounters(b: Buffer): ShimCounters {
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
  };
}

function checkSegment(s: ResidentSegment): void {
  const { spc, db, rel } = s.tag;
  const u32 = (n: number): boolean => Number.isInteger(n) && n >= 0 && n <= 0xffff_ffff;
  if (!u32(spc) || !u32(db) || !u32(rel) || !u32(s.nblocks) || !Number.isInteger(s.segment) || s.segment < 0 || s.segment > 0xffff)
    throw new LakebaseError('INVALID_ARGUMENT', `relation ${spc}/${db}/${rel}: a number of its segment ${s.segment} is out of range`);
  if (s.nblocks > RELSEG_BLOCKS)
    throw new LakebaseError(
      'INVALID_ARGUMENT',
      `relation ${db}/${rel} segment ${s.segment} has ${s.nblocks} blocks, more than a segment holds`,
    );
}

function readWhole(path: string): Buffer {
  const fd = openSync(path, 'r');
  try {
    const header = Buffer.alloc(HEADER_BYTES);
    if (readSync(fd, header, 0, HEADER_BYTES, 0) !== HEADER_BYTES || header.readUInt32LE(0) !== MAGIC)
      throw new LakebaseError('CORRUPT', `${path} is not a resident map`);
    const total = readU64(header, 32);
    if (total < HEADER_BYTES || total > 0x1_0000_0000) throw new LakebaseError('CORRUPT', `resident map ${path} claims ${total} bytes`);
    const bytes = Buffer.allocUnsafe(total);
    for (let at = 0; at < total; ) {
      const n = readSync(fd, bytes, at, total - at, at);
      if (n === 0) throw new LakebaseError('CORRUPT', `resident map ${path} ends at byte ${at} of ${total}`);
      at += n;
    }
    return bytes;
  } finally {
    closeSync(fd);
  }
}

function writeU64(b: Buffer, value: number, at: number): void {
  b.writeUInt32LE(value % 0x1_0000_0000, at);
  b.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4);
}

const readU64 = (b: Buffer, at: number): number => b.readUInt32LE(at) + b.readUInt32LE(at + 4) * 0x1_0000_0000;
