/** Local disk as a bounded cache of the layers in the object store, for all timelines of a process.
 *  Policy: when layers take more than the budget, those that were used least recently lose their local bytes, whole layers at a time, until 5 % of the
 *  budget is free; only layers that are known to be in the object store, none that a read or a job has pinned. Where nothing can go, or the disk is
 *  full, chunks are fetched into memory (a bounded part of it) and reads go on. Open files and open readers are bounded in the same way.
 *  Invariants: nothing is closed or dropped inside a synchronous read; `usedBytes` is what its layers have on disk. */
import { LakebaseError, errorMessage, failpoint, isCode } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { type ObjectStore, timelineObject } from '@lakebase/object-store';
import { CachedLayer, type CachedFile } from './cached-layer.ts';
import { Limiter } from './limiter.ts';
import { ReadAround } from './read-around.ts';
import { REMOTE_READ_MS } from './remote-miss.ts';

export interface LayerCacheOptions {
  /** Undefined: all layers are local, nothing is ever dropped. */
  readonly store?: ObjectStore | undefined;
  readonly budgetBytes?: number;
  /** What is fetched, marked and dropped on damage at once. */
  readonly chunkBytes?: number;
  readonly openFiles?: number;
  readonly openReaders?: number;
  /** For chunks the disk has no room for. */
  readonly memoryBytes?: number;
  readonly fetchMs?: number;
  /** Told of damage that was found beside a read. */
  readonly onDamage?: (message: string) => void;
}

export const CHUNK_BYTES_DEFAULT: number = 256 * 1024;
/** A run of chunks is fetched with one GET of at most this. */
const GET_BYTES_MAX = 4 << 20;
const GETS_AT_ONCE = 32;
const BACKGROUND_GETS_AT_ONCE = 4;
/** Kept free below the budget once something had to go. */
const SLACK = 0.05;

interface Place {
  readonly directory: string;
  readonly project: string;
  readonly timeline: string;
}

export class LayerCache {
  readonly store: ObjectStore | undefined;
  readonly chunkBytes: number;
  readonly chunksPerGet: number;
  readonly budgetBytes: number;
  readonly onDamage: (message: string) => void;
  readonly counters = { gets: 0, getBytes: 0, failedGets: 0, evictions: 0, evictedBytes: 0, rejected: 0, mismatches: 0, inMemory: 0 };
  readonly around = new ReadAround();
  usedBytes = 0;
  clock = 0;
  readonly #options: Required<Pick<LayerCacheOptions, 'openFiles' | 'openReaders' | 'memoryBytes' | 'fetchMs'>>;
  readonly #layers = new Map<string, CachedLayer>();
  readonly #open = new Set<CachedLayer>();
  readonly #readers = new Set<CachedLayer>();
  readonly #inMemory = new Set<CachedLayer>();
  readonly #foreground = new Limiter(GETS_AT_ONCE);
  readonly #background = new Limiter(BACKGROUND_GETS_AT_ONCE);
  #trimming = false;
  #evicting: Promise<void> | undefined;
  #number = 0;

  constructor(options: LayerCacheOptions = {}) {
    this.store = options.store;
    this.chunkBytes = options.chunkBytes ?? CHUNK_BYTES_DEFAULT;
    this.chunksPerGet = Math.max(1, Math.floor(GET_BYTES_MAX / this.chunkBytes));
    this.budgetBytes = options.budgetBytes ?? Number.POSITIVE_INFINITY;
    this.onDamage = options.onDamage ?? (() => {});
    const { openFiles = 1_024, openReaders = 2_048, memoryBytes = 32 << 20, fetchMs = REMOTE_READ_MS } = options;
    this.#options = { openFiles, openReaders, memoryBytes, fetchMs };
  }

  /** The one object for a layer of this process, also when its timeline was detached and attached again. */
  layer(place: Place, file: CachedFile): CachedLayer {
    const path = `${place.directory}/${file.name}`;
    const known = this.#layers.get(path);
    if (known !== undefined && known.hash === file.hash && known.size === file.bytes) return known;
    if (known !== undefined) this.#drop(known);
    const key = timelineObject(place.project as ProjectUid, place.timeline as TimelineId, file.name);
    const layer = new CachedLayer(this, place.directory, file, key);
    this.#layers.set(path, layer);
    return layer;
  }

  /** Counts the local file of a timeline that is not attached: all of it is in the object store, so it may go. */
  adopt(place: Place, file: CachedFile): void {
    if (this.store === undefined || this.#layers.has(`${place.directory}/${file.name}`)) return;
    const layer = this.layer(place, file);
    layer.remote = true;
  }

  get layers(): number {
    return this.#layers.size;
  }
  get openFiles(): number {
    return this.#open.size;
  }
  get openReaders(): number {
    return this.#readers.size;
  }
  get memoryBytes(): number {
    let n = 0;
    for (const layer of this.#inMemory) n += layer.memoryBytes;
    return n;
  }
  get full(): boolean {
    return this.usedBytes >= this.budgetBytes;
  }

  /** The directory is gone, with everything in it. */
  forgetDirectory(directory: string): void {
    for (const [path, layer] of this.#layers) if (path.startsWith(`${directory}/`)) this.#drop(layer);
  }

  /** Of one that has no files any more, or files that another one looks after. */
  #drop(layer: CachedLayer): void {
    layer.discarded = true;
    this.grew(-layer.localBytes);
    layer.forgetMemory();
    layer.closeFile();
    this.forget(layer);
  }

  // --- for CachedLayer and LayerHandle --------------------------------------------------------------------------------------------

  nextNumber(): number {
    return this.#number++;
  }
  forget(layer: CachedLayer): void {
    if (this.#layers.get(layer.path) === layer) this.#layers.delete(layer.path);
    this.#inMemory.delete(layer);
    this.#readers.delete(layer);
  }
  opened(layer: CachedLayer): void {
    this.#open.add(layer);
    if (this.#open.size > this.#options.openFiles) this.#trimSoon();
  }
  closed(layer: CachedLayer): void {
    this.#open.delete(layer);
  }
  readerOpened(layer: CachedLayer): void {
    this.#readers.add(layer);
    if (this.#readers.size > this.#options.openReaders) this.#trimSoon();
  }
  readerClosed(layer: CachedLayer): void {
    this.#readers.delete(layer);
  }

  grew(bytes: number): void {
    this.usedBytes += bytes;
    if (bytes > 0) this.keepWithin();
  }
  /** There is more, or a layer may be dropped that could not before: nobody else may ever look again. */
  keepWithin(): void {
    if (this.usedBytes > this.budgetBytes) this.#trimSoon();
  }

  limited<T>(background: boolean, run: () => Promise<T>): Promise<T> {
    return (background ? this.#background : this.#foreground).run(run);
  }

  /** Bytes of a layer's object, as many as asked for. */
  async get(layer: CachedLayer, offset: number, length: number): Promise<Buffer> {
    const store = this.store as ObjectStore;
    const key = layer.objectKey;
    const { counters } = this;
    counters.gets++;
    try {
      await failpoint('pageserver.layer.fetch');
      const found = await store.get(key, { range: { offset, length }, signal: AbortSignal.timeout(this.#options.fetchMs) });
      if (found.size !== layer.size)
        throw new LakebaseError('CORRUPT', `object ${key} has ${found.size} bytes, the index says ${layer.size}`);
      if (found.bytes.length !== length)
        throw new LakebaseError('UNAVAILABLE', `object ${key}: ${found.bytes.length} bytes came of ${length}`);
      counters.getBytes += length;
      return found.bytes;
    } catch (error) {
      counters.failedGets++;
      if (isCode(error, 'CORRUPT')) throw error;
      if (isCode(error, 'NOT_FOUND') || isCode(error, 'INVALID_ARGUMENT'))
        throw new LakebaseError('CORRUPT', `object ${key} is missing or cut short although the index names it: ${error.message}`, {
          cause: error,
        });
      throw new LakebaseError('UNAVAILABLE', `object ${key} cannot be fetched from ${store.location}: ${errorMessage(error)}`, {
        cause: error,
      });
    }
  }

  /** Runs `write` when there is, or can be made, room for `bytes`; false when there is none. */
  async onDisk(bytes: number, write: () => Promise<void>): Promise<boolean> {
    if (this.usedBytes + bytes > this.budgetBytes) {
      await this.#evict(bytes);
      if (this.usedBytes + bytes > this.budgetBytes) return false;
    }
    for (let tries = 0; ; tries++) {
      try {
        await write();
        return true;
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        const full = code === 'ENOSPC' || code === 'EDQUOT';
        if (full && tries === 0 && (await this.makeRoom(Math.max(bytes, this.usedBytes * SLACK))) > 0) continue;
        if (!full) this.onDamage(`layer cache: ${errorMessage(error)}`);
        return false;
      }
    }
  }

  keptInMemory(layer: CachedLayer): void {
    this.#inMemory.delete(layer);
    this.#inMemory.add(layer);
    this.counters.inMemory++;
    let used = this.memoryBytes;
    for (const old of this.#inMemory) {
      if (used <= this.#options.memoryBytes) break;
      if (old === layer || old.pinned) continue;
      used -= old.memoryBytes;
      old.forgetMemory();
      this.#inMemory.delete(old);
    }
  }

  // --- room -----------------------------------------------------------------------------------------------------------------------

  /** Drops local bytes that are in the object store too; resolves with how many, when the disk has them back. For a disk that is full. */
  async makeRoom(bytes: number): Promise<number> {
    return this.#evictDown(this.usedBytes - bytes);
  }

  async #evict(bytes: number): Promise<void> {
    while (this.#evicting !== undefined) await this.#evicting;
    if (this.usedBytes + bytes <= this.budgetBytes) return;
    this.#evicting = this.#evictDown(this.budgetBytes * (1 - SLACK) - bytes).then(() => {
      this.#evicting = undefined;
    });
    await this.#evicting;
  }

  async #evictDown(target: number): Promise<number> {
    const candidates = [...this.#layers.values()].filter((l) => l.evictable).sort((a, b) => a.lastUsed - b.lastUsed);
    const gone: Promise<void>[] = [];
    let freed = 0;
    for (const layer of candidates) {
      if (this.usedBytes <= target) break;
      const bytes = layer.localBytes;
      freed += bytes;
      this.counters.evictions++;
      this.counters.evictedBytes += bytes;
      gone.push(layer.evict());
    }
    await Promise.all(gone);
    return freed;
  }

  /** In a turn of its own: a read under way may hold what is closed here. */
  #trimSoon(): void {
    if (this.#trimming) return;
    this.#trimming = true;
    setImmediate(() => {
      this.#trimming = false;
      for (const layer of oldest(this.#open, this.#options.openFiles)) layer.closeFile();
      for (const layer of oldest(this.#readers, this.#options.openReaders)) layer.closeReader?.();
      if (this.usedBytes > this.budgetBytes) void this.#evict(0);
    });
  }
}

/** Those to close, so that an eighth of the limit is free. */
function oldest(layers: ReadonlySet<CachedLayer>, limit: number): CachedLayer[] {
  if (layers.size <= limit) return [];
  return [...layers].sort((a, b) => a.lastUsed - b.lastUsed).slice(0, layers.size - Math.floor(limit * 0.875));
}
