/** The in-memory layer that ingest fills. Built for insertion: bytes are appended to large chunks, entries are rows of typed arrays, a hash of
 *  (series, block) leads to the newest entry of a page and each entry to the one before it. No object, string or bigint per record.
 *  Looking a page up misses the processor's caches twice, so entries are linked to their pages many at a time, see {@link OpenLayer.link}.
 *  Invariants: entries are filed in LSN order; after {@link freeze} nothing is added; `collect` results stay valid for the layer's life;
 *  whatever reads the keys links first. */
import { assert } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import { ChunkPool } from './chunk-pool.ts';
import { ARG_STOP, type Entry, type LayerView } from './entry.ts';
import { FIRST_PAGE_KIND, decodeKey, writeKey } from './key.ts';
import type { LayerWriter } from './layer-writer.ts';
import { SeriesTable, type SeriesTableMessage } from './series-table.ts';

const CHUNK_BYTES = 1 << 20;
/** Layers of idle timelines stay this small: there may be thousands. */
const FIRST_CHUNK_BYTES = 1 << 16;
const ENTRIES_MIN = 1_024;
const KEYS_MIN = 256;
const POOL = new ChunkPool(CHUNK_BYTES);
/** Zeroes memory of layers that are gone, which waits to be used again. */
export const wipeFreeChunks = (): void => POOL.wipe();
/** `collect`: called when nothing has been written for a while and memory of open layers is garbage. */
export const whenChunksAreLetGo = (collect: () => void): void => void (POOL.onLetGo = collect);
/** Bytes of open layers of this process: in use, and kept to be used again. */
export const openLayerMemory = (): { used: number; free: number } => ({ used: POOL.taken * CHUNK_BYTES, free: POOL.free * CHUNK_BYTES });
/** Bounds the sort key of {@link OpenLayer.sortedKeys} (block * 2^21 + row). */
export const OPEN_LAYER_ENTRIES_MAX: number = 1 << 21;
/** Below this a loop beats Buffer.copy, which makes views of both sides. */
const LOOP_BYTES = 320;
/** A smaller rest is not worth copying at once. */
const SOURCE_BYTES_MIN = 1_024;
const NONE = 0xffff_ffff;
/** Entries linked at a time: enough for many misses to be under way at once, few enough for their rows to stay in the first-level cache. */
const LINK_ENTRIES = 256;
/** No row was found at the first look. */
const UNKNOWN = -1;
const EMPTY = Buffer.alloc(0);
/** A writer with this much in memory is drained before it gets more. */
export const DRAIN_BYTES: number = 512 * 1024;

/** Words of a key's row, and what they hold. */
const ROW = 8;
const SERIES = 0;
const BLOCK = 1;
/** Its newest entry. */
const HEAD = 2;
const ENTRIES = 3;
/** Entries since the last stop entry: what a read would have to apply. */
const PENDING = 4;

/** Over shared memory: the thread that writes a frozen layer reads the tables where they are. */
type U32 = Uint32Array<SharedArrayBuffer>;
type F64 = Float64Array<SharedArrayBuffer>;
type U16 = Uint16Array<SharedArrayBuffer>;
const newU32 = (n: number): U32 => new Uint32Array(new SharedArrayBuffer(n * 4));
const newF64 = (n: number): F64 => new Float64Array(new SharedArrayBuffer(n * 8));
const newU16 = (n: number): U16 => new Uint16Array(new SharedArrayBuffer(n * 2));

/** Told when a read of a page has to apply a multiple of so many entries; see {@link OpenLayer.watchPending}. */
export type PendingReached = (series: number, block: number, pending: number) => void;

/** See {@link OpenLayer.toMessage}. */
export interface OpenLayerMessage {
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  readonly chunks: readonly Uint8Array[];
  readonly entries: {
    readonly pos: U32;
    readonly length: U32;
    readonly lsn: F64;
    readonly previous: U32;
    readonly kind: U16;
    readonly count: number;
  };
  readonly keys: { readonly rows: U32; readonly count: number };
  readonly series: SeriesTableMessage;
}

export class OpenLayer implements LayerView {
  readonly series: SeriesTable;
  readonly startLsn: Lsn;
  endLsn: Lsn;
  frozen = false;
  /** Bytes of changes filed: what the flush threshold looks at. */
  byteCount = 0;
  entryCount = 0;
  keyCount = 0;

  #chunks: Buffer[] = [];
  #chunk: Buffer = Buffer.alloc(0);
  #chunkUsed = 0;
  /** See {@link appendFrom}: the buffer copied last, from where, and the position its start would have. */
  #source: Buffer | undefined;
  #sourceFrom = 0;
  #sourceTo = 0;
  #sourcePosition = 0;

  #entryPos: U32;
  #entryLength: U32;
  #entryLsn: F64;
  #entryPrevious: U32;
  /** kind << 8 | arg */
  #entryKind: U16;

  /** One row of {@link ROW} words per key, so that filing touches one cache line of it. */
  #keys: U32;
  /** Entries of the row that {@link writeRow} is at. */
  #order = new Uint32Array(64);
  #table: Uint32Array;
  #mask: number;
  #recycled = false;

  /** Entries from this one on are not linked yet; where they belong is in the three arrays below. */
  #linked = 0;
  readonly #toSeries = new Uint32Array(LINK_ENTRIES);
  readonly #toBlock = new Uint32Array(LINK_ENTRIES);
  readonly #toRow = new Int32Array(LINK_ENTRIES);
  /** A small integer, so that its remainder is one of integers. */
  #pendingStep = 0x3fff_ffff;
  #pendingReached: PendingReached = () => {};

  /** `before` was filled before this one: its size is the best guess, and tables that need not grow are not copied. */
  constructor(series: SeriesTable, startLsn: Lsn, before?: OpenLayer) {
    this.series = series;
    this.startLsn = startLsn;
    this.endLsn = startLsn;
    const entries = Math.max(ENTRIES_MIN, Math.ceil((before?.entryCount ?? 0) * 1.125));
    this.#entryPos = newU32(entries);
    this.#entryLength = newU32(entries);
    this.#entryLsn = newF64(entries);
    this.#entryPrevious = newU32(entries);
    this.#entryKind = newU16(entries);
    const keys = powerOfTwo(Math.max(KEYS_MIN, before?.keyCount ?? 0));
    this.#keys = newU32(keys * ROW);
    this.#table = new Uint32Array(keys * 2);
    this.#mask = keys * 2 - 1;
  }

  get empty(): boolean {
    return this.entryCount === 0;
  }
  get full(): boolean {
    return this.entryCount >= OPEN_LAYER_ENTRIES_MAX - 4096;
  }

  /** Copies bytes into the layer; the position is good for several {@link file} calls. */
  append(bytes: Buffer, offset: number, length: number): number {
    if (length === 0) return 0;
    if (this.#chunkUsed + length > this.#chunk.length) this.#addChunk(length);
    const at = this.#chunkUsed;
    if (length < LOOP_BYTES) {
      const chunk = this.#chunk;
      for (let i = 0; i < length; i++) chunk[at + i] = bytes[offset + i] as number;
    } else {
      bytes.copy(this.#chunk, at, offset, offset + length);
    }
    this.#chunkUsed = at + length;
    this.byteCount += length;
    return (this.#chunks.length - 1) * CHUNK_BYTES + at;
  }

  /** {@link append} for one of many records that lie in one buffer: the next `reach` bytes from `offset` on are copied at once, and the records
   *  after this one are found there. `reach` ends where such records end: what comes through append is not to be copied twice. The buffer must
   *  stay as it is until {@link forgetSource}, and one that is filled anew must come through append. */
  appendFrom(bytes: Buffer, offset: number, length: number, reach: number): number {
    if (bytes !== this.#source || offset < this.#sourceFrom || offset + length > this.#sourceTo) {
      const end = Math.min(bytes.length, offset + reach);
      const rest = end - offset;
      if (rest < SOURCE_BYTES_MIN || rest < length || rest > CHUNK_BYTES / 4) return this.append(bytes, offset, length);
      if (this.#chunkUsed + rest > this.#chunk.length) this.#addChunk(rest);
      bytes.copy(this.#chunk, this.#chunkUsed, offset, end);
      this.#source = bytes;
      this.#sourceFrom = offset;
      this.#sourceTo = end;
      this.#sourcePosition = (this.#chunks.length - 1) * CHUNK_BYTES + this.#chunkUsed - offset;
      this.#chunkUsed += rest;
    }
    this.byteCount += length;
    return this.#sourcePosition + offset;
  }
  forgetSource(): void {
    this.#source = undefined;
  }

  #addChunk(need: number): void {
    const small = this.#chunks.length === 0 && need <= FIRST_CHUNK_BYTES;
    // Shared, so that the thread that writes the layer needs no copy.
    const memory = small ? new SharedArrayBuffer(FIRST_CHUNK_BYTES) : need <= CHUNK_BYTES ? POOL.take() : new SharedArrayBuffer(need);
    this.#chunk = Buffer.from(memory);
    this.#chunks.push(this.#chunk);
    this.#chunkUsed = 0;
    assert(this.#chunks.length < 4096, 'open layer has too many chunks; it should have been frozen long ago');
  }

  /** Files an entry whose bytes lie at `pos`. */
  file(series: number, block: number, kind: number, arg: number, lsn: Lsn, pos: number, length: number): void {
    assert(!this.frozen, 'a frozen layer takes no entries');
    if (this.entryCount - this.#linked === LINK_ENTRIES) this.link();
    const entry = this.entryCount++;
    if (entry === this.#entryPos.length) this.#growEntries();
    this.#entryPos[entry] = pos;
    this.#entryLength[entry] = length;
    this.#entryLsn[entry] = lsn;
    this.#entryKind[entry] = (kind << 8) | arg;
    const at = entry - this.#linked;
    this.#toSeries[at] = series;
    this.#toBlock[at] = block;
    this.byteCount += 32;
    if (lsn > this.endLsn) this.endLsn = lsn;
  }

  put(series: number, block: number, kind: number, arg: number, lsn: Lsn, bytes: Buffer): void {
    this.file(series, block, kind, arg, lsn, this.append(bytes, 0, bytes.length), bytes.length);
  }

  /** `reached` is called, while entries are linked, for every page whose pending entries come to a multiple of `step`. */
  watchPending(step: number, reached: PendingReached): void {
    this.#pendingStep = step;
    this.#pendingReached = reached;
  }

  /** Links the entries filed last to their pages. Three passes whose iterations do not wait for each other: the processor has many misses under
   *  way at once, where looking up one page at a time waits for each in turn (in profiles 97 ns an entry then, under 70 so). */
  link(): void {
    const first = this.#linked;
    const n = this.entryCount - first;
    if (n === 0) return;
    const toSeries = this.#toSeries;
    const toBlock = this.#toBlock;
    const toRow = this.#toRow;
    this.#firstLook(n);
    const previous = this.#entryPrevious;
    const kinds = this.#entryKind;
    const step = this.#pendingStep;
    for (let i = 0; i < n; i++) {
      const series = toSeries[i] as number;
      const block = toBlock[i] as number;
      const found = toRow[i] as number;
      const row = found === UNKNOWN ? this.#rowOf(series, block) : found;
      // Another array when a key was added.
      const keys = this.#keys;
      previous[first + i] = keys[row + HEAD] as number;
      keys[row + HEAD] = first + i;
      keys[row + ENTRIES] = (keys[row + ENTRIES] as number) + 1;
      const pending = ((kinds[first + i] as number) & ARG_STOP) !== 0 ? 0 : (keys[row + PENDING] as number) + 1;
      keys[row + PENDING] = pending;
      if (pending >= step && pending % step === 0) this.#pendingReached(series, block, pending);
    }
    this.#linked = first + n;
  }

  /** Rows of the first `n` entries to link, of those whose key is there and lies where it is looked for first. */
  #firstLook(n: number): void {
    const toSeries = this.#toSeries;
    const toBlock = this.#toBlock;
    const toRow = this.#toRow;
    const table = this.#table;
    const keys = this.#keys;
    const mask = this.#mask;
    for (let i = 0; i < n; i++) toRow[i] = ((table[hash2(toSeries[i] as number, toBlock[i] as number) & mask] as number) - 1) * ROW;
    for (let i = 0; i < n; i++) {
      const row = toRow[i] as number;
      if (row < 0 || keys[row + BLOCK] !== toBlock[i] || keys[row + SERIES] !== toSeries[i]) toRow[i] = UNKNOWN;
    }
  }

  /** Row of a key, which is added when it is not there. */
  #rowOf(series: number, block: number): number {
    let at = hash2(series, block) & this.#mask;
    for (;;) {
      const slot = this.#table[at] as number;
      if (slot === 0) return this.#addKey(series, block, at) * ROW;
      const row = (slot - 1) * ROW;
      if (this.#keys[row + BLOCK] === block && this.#keys[row + SERIES] === series) return row;
      at = (at + 1) & this.#mask;
    }
  }

  freeze(endLsn: Lsn): void {
    this.link();
    this.frozen = true;
    this.#source = undefined;
    if (endLsn > this.endLsn) this.endLsn = endLsn;
  }

  /** Zeroes the content, for every thread that has it: the layer is of no use afterwards. */
  wipe(): void {
    this.#source = undefined;
    for (const chunk of this.#chunks) chunk.fill(0);
  }

  /** Gives the memory back. The layer is on disk and out of every view, nobody reads an entry of it any more: what is read now would be another's. */
  recycle(): void {
    assert(this.frozen, 'only a frozen layer is given back');
    if (this.#recycled) return;
    this.#recycled = true;
    for (const chunk of this.#chunks) if (chunk.buffer instanceof SharedArrayBuffer) POOL.give(chunk.buffer);
    this.#chunks = [];
  }

  /** A frozen layer as a message for another thread: nothing is copied. */
  toMessage(): OpenLayerMessage {
    assert(this.frozen, 'only a frozen layer leaves its thread');
    const { startLsn, endLsn, series, entryCount, keyCount } = this;
    return {
      startLsn,
      endLsn,
      chunks: this.#chunks.map((c) => new Uint8Array(c.buffer, c.byteOffset, c.length)),
      entries: {
        pos: this.#entryPos,
        length: this.#entryLength,
        lsn: this.#entryLsn,
        previous: this.#entryPrevious,
        kind: this.#entryKind,
        count: entryCount,
      },
      keys: { rows: this.#keys, count: keyCount },
      series: series.toMessage(),
    };
  }

  /** The layer again, in the other thread: good for {@link sortedKeys} and {@link writeRow}; it cannot be searched. */
  static fromMessage(m: OpenLayerMessage): OpenLayer {
    const layer = new OpenLayer(SeriesTable.fromMessage(m.series), m.startLsn);
    layer.#chunks = m.chunks.map((c) => Buffer.from(c.buffer, c.byteOffset, c.length));
    layer.#entryPos = m.entries.pos;
    layer.#entryLength = m.entries.length;
    layer.#entryLsn = m.entries.lsn;
    layer.#entryPrevious = m.entries.previous;
    layer.#entryKind = m.entries.kind;
    layer.#keys = m.keys.rows;
    layer.entryCount = m.entries.count;
    layer.#linked = m.entries.count;
    layer.keyCount = m.keys.count;
    layer.freeze(m.endLsn);
    return layer;
  }

  /** The next record changes nothing: the layer still covers it. */
  advance(endLsn: Lsn): void {
    this.endLsn = endLsn;
  }

  collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean {
    const k = decodeKey(key);
    const series = this.series.find(k.kind, k.spc, k.db, k.rel, k.fork);
    return series < 0 ? false : this.collectBlock(series, k.block, upTo, floor, out);
  }

  /** {@link collect} for a caller that holds the series id. */
  collectBlock(series: number, block: number, upTo: Lsn, floor: Lsn, out: Entry[]): boolean {
    this.link();
    const key = this.#find(series, block);
    if (key < 0) return false;
    assert(!this.#recycled, 'a layer is read whose memory was given back');
    for (let e = this.#keys[key * ROW + HEAD] as number; e !== NONE; e = this.#entryPrevious[e] as number) {
      const lsn = this.#entryLsn[e] as Lsn;
      if (lsn > upTo) continue;
      if (lsn <= floor) return false;
      const entry = this.#entry(e);
      out.push(entry);
      if ((entry.arg & ARG_STOP) !== 0) return true;
    }
    return false;
  }

  pending(series: number, block: number): number {
    this.link();
    const key = this.#find(series, block);
    return key < 0 ? 0 : (this.#keys[key * ROW + PENDING] as number);
  }

  #entry(e: number): Entry {
    const pos = this.#entryPos[e] as number;
    const length = this.#entryLength[e] as number;
    const chunk = this.#chunks[Math.floor(pos / CHUNK_BYTES)] as Buffer;
    const at = pos % CHUNK_BYTES;
    const kindArg = this.#entryKind[e] as number;
    return {
      kind: kindArg >>> 8,
      arg: kindArg & 0xff,
      lsn: this.#entryLsn[e] as Lsn,
      bytes: length === 0 ? EMPTY : chunk.subarray(at, at + length),
    };
  }

  /** Key rows in key order. Blocks are sorted as numbers in typed arrays, series by series. */
  sortedKeys(): Uint32Array {
    this.link();
    const bySeries = new Map<number, number>();
    for (let k = 0; k < this.keyCount; k++) {
      const s = this.#keys[k * ROW + SERIES] as number;
      bySeries.set(s, (bySeries.get(s) ?? 0) + 1);
    }
    const order = [...bySeries.keys()].map((id) => ({ id, key: Buffer.alloc(20) }));
    for (const o of order) writeKey(o.key, 0, this.series.get(o.id), 0);
    order.sort((a, b) => a.key.compare(b.key));
    const buckets = new Map<number, { values: Float64Array; used: number }>();
    for (const [id, n] of bySeries) buckets.set(id, { values: new Float64Array(n), used: 0 });
    for (let k = 0; k < this.keyCount; k++) {
      const bucket = buckets.get(this.#keys[k * ROW + SERIES] as number) as { values: Float64Array; used: number };
      bucket.values[bucket.used++] = (this.#keys[k * ROW + BLOCK] as number) * OPEN_LAYER_ENTRIES_MAX + k;
    }
    const out = new Uint32Array(this.keyCount);
    let n = 0;
    for (const { id } of order) {
      const values = (buckets.get(id) as { values: Float64Array }).values.sort();
      for (const v of values) out[n++] = v % OPEN_LAYER_ENTRIES_MAX;
    }
    return out;
  }

  /** Key rows of the small values, in no order. */
  valueRows(): number[] {
    this.link();
    const rows: number[] = [];
    for (let k = 0; k < this.keyCount; k++)
      if ((this.series.kindFork[this.#keys[k * ROW + SERIES] as number] as number) >>> 8 < FIRST_PAGE_KIND) rows.push(k);
    return rows;
  }

  /** Entries of a key row, oldest first. */
  entriesOf(row: number): Entry[] {
    const out: Entry[] = new Array(this.#keys[row * ROW + ENTRIES] as number);
    let at = out.length;
    for (let e = this.#keys[row * ROW + HEAD] as number; e !== NONE; e = this.#entryPrevious[e] as number) out[--at] = this.#entry(e);
    return out;
  }
  /** Hands the entries of a key row from number `from` on, oldest first, to a writer: {@link entriesOf} without an object for each.
   *  Stops when the writer has much to drain; returns where to go on, or -1 at the end. Frozen layers only. */
  writeRow(row: number, key: Buffer, writer: LayerWriter, from: number): number {
    const n = this.#keys[row * ROW + ENTRIES] as number;
    let order = this.#order;
    if (from === 0) {
      if (n > order.length) this.#order = order = new Uint32Array(n * 2);
      let k = n;
      for (let e = this.#keys[row * ROW + HEAD] as number; e !== NONE; e = this.#entryPrevious[e] as number) order[--k] = e;
    }
    for (let k = from; k < n; ) {
      const e = order[k] as number;
      const pos = this.#entryPos[e] as number;
      const kindArg = this.#entryKind[e] as number;
      const chunk = (this.#chunks[Math.floor(pos / CHUNK_BYTES)] ?? EMPTY) as Buffer;
      const lsn = this.#entryLsn[e] as Lsn;
      writer.addFrom(key, k > 0, lsn, kindArg >>> 8, kindArg & 0xff, chunk, pos % CHUNK_BYTES, this.#entryLength[e] as number);
      k++;
      if (k < n && writer.pendingBytes >= DRAIN_BYTES) return k;
    }
    return -1;
  }
  writeKeyOf(row: number, into: Buffer): void {
    writeKey(into, 0, this.series.get(this.#keys[row * ROW + SERIES] as number), this.#keys[row * ROW + BLOCK] as number);
  }

  #find(series: number, block: number): number {
    let at = hash2(series, block) & this.#mask;
    for (;;) {
      const slot = this.#table[at] as number;
      if (slot === 0) return -1;
      if (this.#keys[(slot - 1) * ROW + BLOCK] === block && this.#keys[(slot - 1) * ROW + SERIES] === series) return slot - 1;
      at = (at + 1) & this.#mask;
    }
  }

  #addKey(series: number, block: number, at: number): number {
    const key = this.keyCount++;
    const row = key * ROW;
    if (row === this.#keys.length) this.#keys = grow(this.#keys);
    this.#keys[row + SERIES] = series;
    this.#keys[row + BLOCK] = block;
    this.#keys[row + HEAD] = NONE;
    this.#table[at] = key + 1;
    if (this.keyCount * 2 > this.#table.length) {
      const size = this.#table.length * 4;
      this.#table = new Uint32Array(size);
      this.#mask = size - 1;
      for (let k = 0; k < this.keyCount; k++) {
        let slot = hash2(this.#keys[k * ROW + SERIES] as number, this.#keys[k * ROW + BLOCK] as number) & this.#mask;
        while (this.#table[slot] !== 0) slot = (slot + 1) & this.#mask;
        this.#table[slot] = k + 1;
      }
    }
    return key;
  }

  #growEntries(): void {
    this.#entryPos = grow(this.#entryPos);
    this.#entryLength = grow(this.#entryLength);
    this.#entryPrevious = grow(this.#entryPrevious);
    const lsn = newF64(this.#entryLsn.length * 2);
    lsn.set(this.#entryLsn);
    this.#entryLsn = lsn;
    const kind = newU16(this.#entryKind.length * 2);
    kind.set(this.#entryKind);
    this.#entryKind = kind;
  }
}

function grow(a: U32): U32 {
  const b = newU32(a.length * 2);
  b.set(a);
  return b;
}

const powerOfTwo = (n: number): number => 2 ** Math.ceil(Math.log2(n));

/** An odd multiplier spreads neighbouring blocks of a series over different slots. */
function hash2(series: number, block: number): number {
  const h = Math.imul(block ^ Math.imul(series, 0x85ebca6b), 0x9e3779b1);
  return (h ^ (h >>> 15)) >>> 0;
}
