/** The bytes of one layer file of a {@link LayerCache}: a whole local file, or a sparse one beside it (`<name>.part`) with the chunks fetched so far.
 *  Invariants: a chunk is marked there only after all its bytes are; a part file becomes the layer's file only when its SHA-256 is that of the
 *  descriptor; the local file of a layer that may not be in the object store is never dropped; reads never wait. A part file does not outlive
 *  the process: which of its chunks are there is known in memory only. */
import { createHash } from 'node:crypto';
import { fdatasync, openSync, read, renameSync, rmSync, statSync, write } from 'node:fs';
import { unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { LakebaseError, errorMessage, isCode } from '@lakebase/base';
import { ChunkMap, runsOf } from './chunk-map.ts';
import { TEMP_SUFFIX } from './durable.ts';
import { type LayerBytes, OpenFile, openLayerFile, readFully } from './layer-bytes.ts';
import type { LayerCache } from './layer-cache.ts';
import type { LayerDescriptor } from './layer-writer.ts';
import { SLOW_READ_MS } from './read-around.ts';
import { RemoteMiss, type RemoteLayer } from './remote-miss.ts';

export const PART_SUFFIX = '.part';
const HASH_BYTES = 512 * 1024;
/** A chunk that failed its check twice within this is reported, and not fetched again until it has passed. */
const STRIKE_MS = 10_000;

const readAt = promisify(read);
const writeAt = promisify(write);
const syncFd = promisify(fdatasync);

/** What the cache needs to know of a descriptor. */
export type CachedFile = Pick<LayerDescriptor, 'name' | 'bytes' | 'hash'>;

export class CachedLayer implements LayerBytes, RemoteLayer {
  readonly path: string;
  readonly objectKey: string;
  readonly size: number;
  readonly hash: string;
  readonly #cache: LayerCache;
  readonly #number: number;
  /** Undefined: the local file is whole. */
  #part: ChunkMap | undefined;
  /** Chunks for which the disk has no room; views of nothing. */
  readonly #memory = new Map<number, Buffer>();
  readonly #fetching = new Map<number, Promise<void>>();
  readonly #strikes = new Map<number, number>();
  #file: OpenFile | undefined;
  #completing: Promise<void> | undefined;
  #pins = 0;
  #remote = false;
  /** The content is not what the index says: no use in trying to complete it. */
  #mismatch = false;
  lastUsed = 0;
  discarded = false;
  /** Closes what reads through here: its memory is wanted. */
  closeReader: (() => void) | undefined;

  constructor(cache: LayerCache, directory: string, file: CachedFile, objectKey: string) {
    this.#cache = cache;
    this.#number = cache.nextNumber();
    this.path = join(directory, file.name);
    this.objectKey = objectKey;
    this.size = file.bytes;
    this.hash = file.hash;
    const local = statSync(this.path, { throwIfNoEntry: false });
    if (local?.size === this.size) this.#cache.grew(this.size);
    else {
      // Another length: damaged, and no use to anybody when there is another copy.
      if (cache.store !== undefined) {
        if (local !== undefined) rmSync(this.path, { force: true });
        this.#remote = true;
      }
      this.#part = new ChunkMap(this.size, cache.chunkBytes);
    }
    rmSync(this.path + PART_SUFFIX, { force: true });
  }

  /** It is known to be in the object store: the local copy may go. */
  get remote(): boolean {
    return this.#remote;
  }
  set remote(value: boolean) {
    this.#remote = value && this.#cache.store !== undefined;
  }
  get whole(): boolean {
    return this.#part === undefined;
  }
  /** On the local disk. */
  get localBytes(): number {
    return this.#part === undefined ? this.size : this.#part.bytes;
  }
  get memoryBytes(): number {
    let n = 0;
    for (const chunk of this.#memory.values()) n += chunk.length;
    return n;
  }
  get pinned(): boolean {
    return this.#pins > 0;
  }
  get evictable(): boolean {
    return this.#remote && this.#pins === 0 && this.#completing === undefined && this.localBytes > 0;
  }

  pin(): void {
    this.#pins++;
  }
  unpin(): void {
    this.#pins--;
    if (this.#pins === 0) this.#cache.keepWithin();
  }

  read(offset: number, length: number, into?: Buffer): Buffer {
    this.lastUsed = ++this.#cache.clock;
    const miss = this.missing(offset, length);
    if (miss !== undefined) throw miss;
    if (this.#memory.size > 0) return this.#readMixed(offset, length);
    const began = performance.now();
    try {
      const bytes = readFully(this.#opened().fd, offset, length, this.path, into);
      if (performance.now() - began > SLOW_READ_MS) this.#cache.around.note(this.#opened(), this.#number, offset);
      return bytes;
    } catch (error) {
      // Gone, shorter, or the disk cannot read it: the other copy will do.
      if (!isCode(error, 'CORRUPT') || !this.#canFetch()) throw error;
      void this.#dropLocal();
      throw this.missing(offset, length) ?? error;
    }
  }

  missing(offset: number, length: number): RemoteMiss | undefined {
    const part = this.#part;
    if (part === undefined) return undefined;
    let wanted: number[] | undefined;
    for (const c of part.missing(offset, length)) if (!this.#memory.has(c)) (wanted ??= []).push(c);
    if (wanted === undefined) return undefined;
    if (!this.#canFetch()) throw new LakebaseError('CORRUPT', `layer ${this.path} is missing although the index names it`);
    return RemoteMiss.of(this, wanted);
  }

  reject(offset: number, length: number): RemoteMiss | undefined {
    if (!this.#canFetch()) return undefined;
    const part = (this.#part ??= this.#demote());
    const now = performance.now();
    const chunks = [...part.of(offset, length)];
    if (chunks.some((c) => now - (this.#strikes.get(c) ?? Number.NEGATIVE_INFINITY) < STRIKE_MS)) return undefined;
    this.#cache.counters.rejected++;
    for (const c of chunks) {
      this.#strikes.set(c, now);
      this.#memory.delete(c);
      if (!part.has(c)) continue;
      part.remove(c);
      this.#cache.grew(-part.bytesOf(c));
    }
    return RemoteMiss.of(this, chunks);
  }

  /** A whole file with a damaged place becomes a part file with all the others. */
  #demote(): ChunkMap {
    const part = new ChunkMap(this.size, this.#cache.chunkBytes);
    try {
      renameSync(this.path, this.path + PART_SUFFIX);
      part.fill();
    } catch {
      this.#cache.grew(-this.size);
    }
    this.closeFile();
    return part;
  }

  #canFetch(): boolean {
    return this.#remote && this.#cache.store !== undefined;
  }

  fetch(chunks: Iterable<number>, background: boolean): Promise<void> {
    const waitFor = new Set<Promise<void>>();
    const wanted: number[] = [];
    for (const c of chunks) {
      const underWay = this.#fetching.get(c);
      if (underWay !== undefined) waitFor.add(underWay);
      else if (this.#part?.has(c) === false && !this.#memory.has(c)) wanted.push(c);
    }
    for (const [first, count] of runsOf(wanted, this.#cache.chunksPerGet)) {
      const fetched = this.#cache
        .limited(background, () => this.#get(first, count))
        .finally(() => {
          for (let c = first; c < first + count; c++) this.#fetching.delete(c);
        });
      for (let c = first; c < first + count; c++) this.#fetching.set(c, fetched);
      waitFor.add(fetched);
    }
    return Promise.all(waitFor).then(() => {});
  }

  async #get(first: number, count: number): Promise<void> {
    const part = this.#part;
    if (part === undefined || this.discarded) return;
    const offset = first * part.chunkBytes;
    const length = Math.min(count * part.chunkBytes, this.size - offset);
    const bytes = await this.#cache.get(this, offset, length);
    if (this.#part !== part || this.discarded) return;
    const stored = await this.#cache.onDisk(bytes.length, () => this.#write(bytes, offset));
    if (this.#part !== part || this.discarded) return;
    for (let c = first; c < first + count; c++) {
      const at = c * part.chunkBytes - offset;
      if (!stored) this.#memory.set(c, Buffer.from(bytes.subarray(at, at + part.bytesOf(c))));
      else if (!part.has(c)) {
        part.add(c);
        this.#cache.grew(part.bytesOf(c));
      }
    }
    if (!stored) this.#cache.keptInMemory(this);
    else if (part.complete && !this.#mismatch) void this.#complete(part);
  }

  async #write(bytes: Buffer, offset: number): Promise<void> {
    const file = this.#opened();
    file.use();
    try {
      for (let done = 0; done < bytes.length; )
        done += (await writeAt(file.fd, bytes, done, bytes.length - done, offset + done)).bytesWritten;
    } finally {
      file.unuse();
    }
  }

  #complete(part: ChunkMap): Promise<void> {
    this.#completing ??= this.#completeNow(part).finally(() => {
      this.#completing = undefined;
      this.#cache.keepWithin();
    });
    return this.#completing;
  }

  /** All chunks are there: when they are what the index says, the part file is the layer. */
  async #completeNow(part: ChunkMap): Promise<void> {
    const current = (): boolean => this.#part === part && part.complete && !this.discarded;
    if (!current()) return;
    const file = this.#opened();
    file.use();
    try {
      const good = (await this.#hashOf(file)) === this.hash;
      if (good) await syncFd(file.fd);
      if (!current()) return;
      if (good) {
        renameSync(this.path + PART_SUFFIX, this.path);
        this.#part = undefined;
        this.#strikes.clear();
        return;
      }
      this.#mismatch = true;
      this.#cache.counters.mismatches++;
      this.#cache.onDamage(`object ${this.objectKey} does not have the content that the index says`);
    } catch (error) {
      if (current()) this.#cache.onDamage(`layer ${this.path} cannot be completed: ${errorMessage(error)}`);
    } finally {
      file.unuse();
    }
  }

  async #hashOf(file: OpenFile): Promise<string> {
    const hash = createHash('sha256');
    const buffer = Buffer.allocUnsafeSlow(Math.min(HASH_BYTES, this.size));
    for (let at = 0; at < this.size; ) {
      const { bytesRead } = await readAt(file.fd, buffer, 0, Math.min(HASH_BYTES, this.size - at), at);
      if (bytesRead === 0) break;
      hash.update(buffer.subarray(0, bytesRead));
      at += bytesRead;
    }
    return hash.digest('hex');
  }

  /** Looks at the whole local file, and fetches it anew when it is damaged. True when that was so. The caller has pinned it. */
  async heal(): Promise<boolean> {
    if (this.#part !== undefined || !this.#canFetch()) return false;
    let good = false;
    try {
      const file = this.#opened();
      file.use();
      try {
        good = (await this.#hashOf(file)) === this.hash;
      } finally {
        file.unuse();
      }
    } catch (error) {
      this.#cache.onDamage(`layer ${this.path} cannot be read: ${errorMessage(error)}`);
    }
    if (good || this.#part !== undefined) return false;
    this.#cache.counters.rejected++;
    this.#cache.onDamage(`layer ${this.path} is damaged; it is fetched anew`);
    await this.#dropLocal();
    await this.makeWhole();
    return true;
  }

  /** Makes the file whole under its name. The caller has pinned it. */
  async makeWhole(): Promise<void> {
    for (let tries = 0; this.#part !== undefined; tries++) {
      if (!this.#canFetch()) throw new LakebaseError('CORRUPT', `layer ${this.path} is missing although the index names it`);
      if (this.#mismatch || this.#memory.size > 0) {
        // Once more from the start: it may have been this disk.
        await this.#dropLocal();
        this.#memory.clear();
        this.#mismatch = false;
      }
      await this.fetch(this.#part.missing(), true);
      await this.#complete(this.#part);
      if (this.#part === undefined) return;
      if (this.discarded) throw new LakebaseError('CLOSED', `layer ${this.path} is gone`);
      if (tries === 0) continue;
      if (this.#memory.size > 0) throw new LakebaseError('RESOURCE_EXHAUSTED', `the disk is full: no room for layer ${this.path}`);
      throw new LakebaseError('CORRUPT', `object ${this.objectKey} does not have the content that the index says`);
    }
  }

  /** Gives the disk space back; resolves when it is. */
  evict(): Promise<void> {
    return this.#dropLocal();
  }

  /** From now on nothing of it is local. */
  #dropLocal(): Promise<void> {
    const path = this.#part === undefined ? this.path : this.path + PART_SUFFIX;
    this.#cache.grew(-this.localBytes);
    this.#part = new ChunkMap(this.size, this.#cache.chunkBytes);
    this.closeFile();
    // The name is free at once, for the chunks that are fetched next; what a crash leaves is removed with other temporary files.
    const aside = `${path}.${this.#cache.nextNumber()}${TEMP_SUFFIX}`;
    try {
      renameSync(path, aside);
    } catch {
      return Promise.resolve();
    }
    return unlink(aside).catch(() => {});
  }

  forgetMemory(): void {
    this.#memory.clear();
  }

  /** No index names the layer any more: its local files go. */
  async discard(): Promise<void> {
    if (this.discarded) return;
    this.discarded = true;
    this.#cache.forget(this);
    this.#memory.clear();
    await this.#dropLocal();
  }

  /** Not the end: what is on disk stays, and the next read opens it again. */
  closeFile(): void {
    const file = this.#file;
    this.#file = undefined;
    if (file === undefined) return;
    this.#cache.closed(this);
    file.close();
  }
  close(): void {}

  #opened(): OpenFile {
    if (this.#file !== undefined) return this.#file;
    if (this.#part === undefined) this.#file = new OpenFile(openLayerFile(this.path));
    else
      try {
        this.#file = new OpenFile(openSync(this.path + PART_SUFFIX, this.#part.count === 0 ? 'w+' : 'r+', 0o600));
      } catch (cause) {
        if (this.#part.count === 0) throw cause;
        throw new LakebaseError('CORRUPT', `layer ${this.path} cannot be opened: ${errorMessage(cause)}`, { cause });
      }
    this.#cache.opened(this);
    return this.#file;
  }

  #readMixed(offset: number, length: number): Buffer {
    const bytes = Buffer.allocUnsafeSlow(length);
    const chunkBytes = this.#cache.chunkBytes;
    for (let at = offset; at < offset + length; ) {
      const c = Math.floor(at / chunkBytes);
      const end = Math.min(offset + length, (c + 1) * chunkBytes);
      const kept = this.#memory.get(c);
      if (kept !== undefined) kept.copy(bytes, at - offset, at - c * chunkBytes, end - c * chunkBytes);
      else readFully(this.#opened().fd, at, end - at, this.path).copy(bytes, at - offset);
      at = end;
    }
    return bytes;
  }
}
