/** The resident map: which blocks of which relation segments are on the compute's local disk. The agent builds it before Postgres starts,
 *  the preload shim (`native/pgshim`) maps it shared and changes it while Postgres runs. Layout: `docs/protocols/shim-agent.md`.
 *
 *  Invariants
 *  - Entries of the start are sorted by (spc, db, rel, fork, segment); those of files made since then follow in the order in which they were adopted. The
 *    index of an entry is what the shim sends in a request; it stands for that file for good.
 *  - What is sparse in the file is not in memory either: the lookup table, unused entries, areas beyond the blocks that are tracked.
 *  - After Postgres started only the shim writes the file, but for the delay of WAL. This side re-reads it ({@link ResidentMap.refresh}); what it sees is a snapshot. */
import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { endianness } from 'node:os';
import { LakebaseError } from '@lakebase/base';
import { RELSEG_BLOCKS, type RelTag } from '@lakebase/ids';
import {
  AREA_BYTES,
  CELL_BLOCKS,
  CELL_BYTES,
  CLEAN_BLOCKS_OFFSET,
  CLEAN_BUDGET_OFFSET,
  ENTRY_BYTES,
  HEADER_BYTES,
  MAX_ENTRIES,
  type MapLayout,
  type ResidentEntry,
  type ResidentSegment,
  type ShimCounters,
  WAL_DELAY_OFFSET,
  cellBytes,
  checkEntry,
  decodeCounters,
  decodeEntry,
  decodeHeader,
  encodeEntry,
  encodeHeader,
  entryArea,
  entryBase,
  entryBitmap,
  layoutOf,
  readU64,
  writeU64,
} from './resident-map-layout.ts';

export type { ResidentEntry, ResidentSegment, ShimCounters } from './resident-map-layout.ts';

/** What a snapshot takes at most. */
const MAX_BYTES = 0x1_0000_0000;
/** Words of a cell. */
const ACCESSED = 2;

export const BLOCK_ABSENT = 0;
export const BLOCK_BUSY = 1;
export const BLOCK_CLEAN = 2;
export const BLOCK_DIRTY = 3;
export type BlockState = 0 | 1 | 2 | 3;

/** What is read of the file. */
interface Snapshot {
  readonly layout: MapLayout;
  readonly header: Buffer;
  /** Of the start, then the added ones. */
  readonly entries: Buffer;
  /** Cells of blocks below each entry's base. */
  readonly bitmaps: Buffer;
  /** Cells of the tracked blocks from the base on, by entry. */
  readonly areas: ReadonlyMap<number, Buffer>;
}

const compareSegments = (a: ResidentSegment, b: ResidentSegment): number =>
  a.tag.spc - b.tag.spc || a.tag.db - b.tag.db || a.tag.rel - b.tag.rel || a.tag.fork - b.tag.fork || a.segment - b.segment;

const keyOf = (t: RelTag, segment: number): string => `${t.spc}/${t.db}/${t.rel}/${t.fork}/${segment}`;

export class ResidentMap {
  #s: Snapshot;
  /** Indexes of the added entries by name; the last of a name counts. Made when it is needed. */
  #addedByName: Map<string, number> | undefined;

  private constructor(snapshot: Snapshot) {
    this.#s = snapshot;
  }

  /** A fresh map: every block absent. The order of `segments` does not matter; see {@link find} for the index an entry got. */
  static build(segments: Iterable<ResidentSegment>): ResidentMap {
    if (endianness() !== 'LE') throw new LakebaseError('UNSUPPORTED', 'the resident map needs a little-endian machine');
    const sorted = [...segments].sort(compareSegments);
    if (sorted.length > MAX_ENTRIES)
      throw new LakebaseError('RESOURCE_EXHAUSTED', `${sorted.length} relation files; the limit is ${MAX_ENTRIES}`);
    let bitmapBytes = 0;
    for (const s of sorted) {
      checkSegment(s);
      bitmapBytes += cellBytes(s.nblocks);
    }
    const layout = layoutOf(sorted.length, bitmapBytes);
    const entries = Buffer.alloc(sorted.length * ENTRY_BYTES);
    let bitmap = layout.bitmapsOffset;
    let previous: ResidentSegment | undefined;
    for (const [index, s] of sorted.entries()) {
      if (previous !== undefined && compareSegments(previous, s) === 0)
        throw new LakebaseError(
          'INVALID_ARGUMENT',
          `relation ${s.tag.db}/${s.tag.rel} fork ${s.tag.fork} segment ${s.segment} is listed twice`,
        );
      previous = s;
      encodeEntry(entries, index * ENTRY_BYTES, s, bitmap);
      bitmap += cellBytes(s.nblocks);
    }
    return new ResidentMap({ layout, header: encodeHeader(layout), entries, bitmaps: Buffer.alloc(bitmapBytes), areas: new Map() });
  }

  /** Reads the file the shim shares; the page cache makes what other processes stored visible here. CORRUPT when it is no map. */
  static open(path: string): ResidentMap {
    const fd = openSync(path, 'r');
    try {
      return new ResidentMap(readSnapshot(fd));
    } finally {
      closeSync(fd);
    }
  }

  /** Re-reads the file into this snapshot: entries only come to it. */
  refresh(path: string): void {
    const fresh = ResidentMap.open(path).#s;
    const { entryCount, added, totalBytes } = this.#s.layout;
    if (fresh.layout.totalBytes !== totalBytes || fresh.layout.entryCount !== entryCount || fresh.layout.added < added)
      throw new LakebaseError('CORRUPT', `resident map ${path} is not the one this process made`);
    this.#s = fresh;
    this.#addedByName = undefined;
  }

  /** Writes a map that was built here for the shim; only before Postgres starts. The file must be readable and writable for Postgres's user. */
  write(path: string): void {
    const { layout, header, entries, bitmaps } = this.#s;
    if (layout.added > 0) throw new LakebaseError('INVALID_ARGUMENT', 'a resident map that the shim has changed is not written again');
    const fd = openSync(path, 'w', 0o600);
    try {
      writeAt(fd, header, 0);
      writeAt(fd, entries, HEADER_BYTES);
      writeAt(fd, bitmaps, layout.bitmapsOffset);
      ftruncateSync(fd, layout.totalBytes);
    } finally {
      closeSync(fd);
    }
  }

  /** Number of entries, added ones included. */
  get length(): number {
    return this.#s.layout.entryCount + this.#s.layout.added;
  }

  entry(index: number): ResidentEntry {
    return decodeEntry(this.#s.entries, this.#entryOffset(index), index);
  }

  *entries(): Generator<ResidentEntry> {
    for (let i = 0; i < this.length; i++) yield this.entry(i);
  }

  /** Index of the entry of that segment file, or -1. */
  find(tag: RelTag, segment: number): number {
    return this.#findAdded(tag, segment) ?? this.#findSorted(tag, segment);
  }

  #findSorted(tag: RelTag, segment: number): number {
    let low = 0;
    let high = this.#s.layout.entryCount - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const order = this.#compareEntry(middle, tag, segment);
      if (order === 0) return middle;
      if (order < 0) low = middle + 1;
      else high = middle - 1;
    }
    return -1;
  }

  #findAdded(tag: RelTag, segment: number): number | undefined {
    const { entryCount, added } = this.#s.layout;
    if (added === 0) return undefined;
    if (this.#addedByName === undefined) {
      this.#addedByName = new Map();
      for (let i = entryCount; i < this.length; i++) {
        const entry = this.entry(i);
        this.#addedByName.set(keyOf(entry.tag, entry.segment), i);
      }
    }
    return this.#addedByName.get(keyOf(tag, segment));
  }

  state(index: number, block: number): BlockState {
    return ((this.#statesOf(index, block) >>> ((block % 16) * 2)) & 3) as BlockState;
  }

  /** Used since the clock came by last: read, or written. */
  accessed(index: number, block: number): boolean {
    return ((this.#word(index, block, ACCESSED) >>> (block % CELL_BLOCKS)) & 1) === 1;
  }

  /** Bound on clean blocks until the cache worker has measured; 0: none. */
  setCleanBudget(blocks: number): void {
    writeU64(this.#s.header, blocks, CLEAN_BUDGET_OFFSET);
  }

  anyAccessed(index: number): boolean {
    return !this.accessedBlocks(index).next().done;
  }

  /** Blocks on the local disk that were used since the clock came by last, ascending. Cells without any cost one read. */
  *accessedBlocks(index: number): Generator<number> {
    const { nblocks, dropped } = this.entry(index);
    if (dropped) return;
    for (let first = 0; first < nblocks; first += CELL_BLOCKS) {
      let marks = this.#word(index, first, ACCESSED);
      for (let block = first; marks !== 0 && block < nblocks; block++, marks >>>= 1)
        if ((marks & 1) === 1 && this.state(index, block) >= BLOCK_CLEAN) yield block;
    }
  }

  /** For pages the agent lays down itself before Postgres starts (boot set): the bytes must be in the file before the map is written. */
  setState(index: number, block: number, state: BlockState): void {
    const { header } = this.#s;
    const before = this.state(index, block);
    if ((before === BLOCK_CLEAN) !== (state === BLOCK_CLEAN))
      writeU64(header, readU64(header, CLEAN_BLOCKS_OFFSET) + (state === BLOCK_CLEAN ? 1 : -1), CLEAN_BLOCKS_OFFSET);
    const { bytes, at } = this.#cell(index, block);
    const word = at + ((block >>> 4) & 1) * 4;
    const shift = (block % 16) * 2;
    bytes.writeUInt32LE(((bytes.readUInt32LE(word) & ~(3 << shift)) | (state << shift)) >>> 0, word);
  }

  /** Blocks of one entry in any of `states`, ascending, below the entry's current length. Words without a hit cost one read. */
  *blocks(index: number, ...states: BlockState[]): Generator<number> {
    const { nblocks, dropped } = this.entry(index);
    if (dropped) return;
    const wanted = new Set<number>(states);
    const skipZero = !wanted.has(BLOCK_ABSENT);
    for (let first = 0; first < nblocks; first += 16) {
      let word = this.#statesOf(index, first);
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
    return decodeCounters(this.#s.header);
  }

  #entryOffset(index: number): number {
    if (!Number.isInteger(index) || index < 0 || index >= this.length)
      throw new LakebaseError('INVALID_ARGUMENT', `resident map has ${this.length} entries, not one numbered ${index}`);
    return index * ENTRY_BYTES;
  }

  #statesOf(index: number, block: number): number {
    return this.#word(index, block, (block >>> 4) & 1);
  }

  #word(index: number, block: number, word: number): number {
    const { bytes, at } = this.#cell(index, block);
    return bytes.readUInt32LE(at + word * 4);
  }

  #cell(index: number, block: number): { readonly bytes: Buffer; readonly at: number } {
    const { layout, entries, bitmaps, areas } = this.#s;
    const entry = this.#entryOffset(index);
    const base = entryBase(entries, entry);
    const cell = (from: number): number => ((block - from) >>> 5) * CELL_BYTES;
    if (Number.isInteger(block) && block >= 0 && block < entries.readUInt32LE(entry + 16)) {
      if (block < base) return { bytes: bitmaps, at: entryBitmap(entries, entry) - layout.bitmapsOffset + cell(0) };
      const area = areas.get(index);
      if (area !== undefined) return { bytes: area, at: cell(base) };
    }
    throw new LakebaseError('INVALID_ARGUMENT', `entry ${index} of the resident map has no block ${block}`);
  }

  #compareEntry(index: number, tag: RelTag, segment: number): number {
    const at = index * ENTRY_BYTES;
    const b = this.#s.entries;
    return (
      b.readUInt32LE(at) - tag.spc ||
      b.readUInt32LE(at + 4) - tag.db ||
      b.readUInt32LE(at + 8) - tag.rel ||
      b.readUInt8(at + 12) - tag.fork ||
      b.readUInt16LE(at + 14) - segment
    );
  }
}

/** A map in use without its bitmaps: the shim's counters, entries that it added, and the one word that is ours to change while Postgres runs. */
export class ResidentMapFile implements Disposable {
  readonly #fd: number;
  readonly #header = Buffer.alloc(HEADER_BYTES);

  constructor(path: string) {
    this.#fd = openSync(path, 'r+');
    try {
      this.#layout();
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
  }

  counters(): ShimCounters {
    readSync(this.#fd, this.#header, 0, HEADER_BYTES, 0);
    return decodeCounters(this.#header);
  }

  /** As it is now; undefined when there is none of that number yet. */
  entry(index: number): ResidentEntry | undefined {
    const layout = this.#layout();
    if (!Number.isInteger(index) || index < 0 || index >= layout.entryCount + layout.added) return undefined;
    const bytes = readAt(this.#fd, HEADER_BYTES + index * ENTRY_BYTES, ENTRY_BYTES);
    checkEntry(bytes, 0, index, layout);
    return decodeEntry(bytes, 0, index);
  }

  setWalDelay(ns: number): void {
    const word = Buffer.alloc(8);
    writeU64(word, ns, 0);
    writeSync(this.#fd, word, 0, 8, WAL_DELAY_OFFSET);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #layout(): MapLayout {
    return decodeHeader(readAt(this.#fd, 0, HEADER_BYTES), fstatSync(this.#fd).size);
  }
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

/** CORRUPT when the file is no map. */
function readSnapshot(fd: number): Snapshot {
  const header = readAt(fd, 0, HEADER_BYTES);
  const layout = decodeHeader(header, fstatSync(fd).size);
  const { entryCount, added, bitmapsOffset, lookupOffset, areasOffset } = layout;
  let left = MAX_BYTES;
  const read = (at: number, length: number): Buffer => {
    left -= length;
    if (left < 0) throw new LakebaseError('CORRUPT', 'resident map: more than 4 GiB of it are in use');
    return readAt(fd, at, length);
  };
  const entries = read(HEADER_BYTES, (entryCount + added) * ENTRY_BYTES);
  const bitmaps = read(bitmapsOffset, lookupOffset - bitmapsOffset);
  const areas = new Map<number, Buffer>();
  for (let index = 0, at = 0; index < entryCount + added; index++, at += ENTRY_BYTES) {
    checkEntry(entries, at, index, layout);
    const base = entryBase(entries, at);
    const { nblocks } = decodeEntry(entries, at, index);
    if (nblocks <= base) continue;
    const cells = areasOffset + (entryArea(entries, at) - 1) * AREA_BYTES + cellBytes(base);
    areas.set(index, read(cells, cellBytes(nblocks - base)));
  }
  return { layout, header, entries, bitmaps, areas };
}

function readAt(fd: number, from: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  for (let at = 0; at < length; ) {
    const n = readSync(fd, bytes, at, length - at, from + at);
    if (n === 0) throw new LakebaseError('CORRUPT', `resident map: the file ends at byte ${from + at}`);
    at += n;
  }
  return bytes;
}

function writeAt(fd: number, bytes: Buffer, from: number): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at, bytes.length - at, from + at);
}
