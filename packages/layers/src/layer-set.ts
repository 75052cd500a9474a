/** The persistent layers of a timeline, newest first, as one searchable view. Immutable: maintenance builds a new set and swaps it in one step,
 *  so a read (which never awaits) sees one consistent set. Files are opened at first use. A read that misses bytes looks ahead at the layers it would
 *  visit next, so that all they miss is fetched at once.
 *  Order: by end LSN, then start LSN, then number, all descending; an image at LSN I therefore comes before the delta layers that end at I. */
import { statSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import type { CachedLayer } from './cached-layer.ts';
import type { Entry } from './entry.ts';
import type { FrameCache } from './frame-cache.ts';
import type { LayerCache } from './layer-cache.ts';
import { LayerReader } from './layer-reader.ts';
import { layerNumber } from './layer-name.ts';
import type { LayerDescriptor } from './layer-writer.ts';
import { type ObjectKeys, keyFromText } from './object-keys.ts';
import { RemoteMiss, bothMisses, missOf } from './remote-miss.ts';

/** Layers that a read which misses something looks at beyond the first. */
const LOOK_AHEAD_LAYERS = 64;

export interface LayerFiles {
  readonly directory: string;
  readonly keys: ObjectKeys;
  readonly cache: FrameCache;
  /** Identity that every layer file must carry. */
  readonly project: string;
  readonly timeline: string;
  /** Whose local bytes come and go; without it every layer is a whole local file. */
  readonly layers?: LayerCache;
  /** Names of layers that are not local and cannot be waited for (jobs): reading one is {@link NOT_LOCAL}. */
  readonly absent?: ReadonlySet<string>;
}

/** How a job says that it needs layers that are not local. */
export const NOT_LOCAL = 'a layer that the job needs is not local';

/** A layer file by its descriptor; opens itself when first read. */
export class LayerHandle {
  #descriptor: LayerDescriptor;
  readonly keyMin: Buffer;
  readonly keyMax: Buffer;
  readonly number: number;
  readonly #files: LayerFiles;
  readonly #cached: CachedLayer | undefined;
  #reader: LayerReader | undefined;

  constructor(descriptor: LayerDescriptor, files: LayerFiles) {
    this.#descriptor = descriptor;
    this.keyMin = Buffer.from(descriptor.keyMin, 'hex');
    this.keyMax = Buffer.from(descriptor.keyMax, 'hex');
    this.number = layerNumber(descriptor.name);
    this.#files = files;
    this.#cached = files.layers?.layer(files, descriptor);
  }

  get descriptor(): LayerDescriptor {
    return this.#descriptor;
  }
  /** The same key in another wrapping. */
  set key(key: string) {
    this.#descriptor = { ...this.#descriptor, key };
  }

  get path(): string {
    return join(this.#files.directory, this.descriptor.name);
  }

  /** It is known to be in the object store: its local file may be dropped and fetched again. */
  get remote(): boolean {
    return this.#cached?.remote === true;
  }
  set remote(value: boolean) {
    if (this.#cached !== undefined) this.#cached.remote = value;
  }
  /** The whole file is on the local disk. */
  get local(): boolean {
    return this.#cached === undefined || this.#cached.whole;
  }
  /** Its place in the cache. */
  get cached(): CachedLayer | undefined {
    return this.#cached;
  }

  /** Cheap check at attach: the file is there and has its length, or the object store may have it. */
  verifyPresence(): void {
    if (this.#cached !== undefined && (this.#cached.whole || this.#cached.remote)) return;
    let size: number;
    try {
      size = statSync(this.path).size;
    } catch (cause) {
      throw new LakebaseError('CORRUPT', `layer ${this.path} is missing although the index names it`, { cause });
    }
    if (size !== this.descriptor.bytes)
      throw new LakebaseError('CORRUPT', `layer ${this.path} has ${size} bytes, the index says ${this.descriptor.bytes}`);
  }

  reader(): LayerReader {
    const cached = this.#cached;
    if (cached !== undefined) cached.lastUsed = (this.#files.layers as LayerCache).clock++;
    if (this.#reader !== undefined) return this.#reader;
    if (this.#files.absent?.has(this.#descriptor.name) === true) throw new LakebaseError('UNAVAILABLE', NOT_LOCAL);
    const d = this.descriptor;
    const reader = new LayerReader(cached ?? this.path, this.#files.keys, this.#files.cache, keyFromText(d.key), d.frames);
    const h = reader.header;
    if (
      h.project !== this.#files.project ||
      h.timeline !== this.#files.timeline ||
      h.startLsn !== d.startLsn ||
      h.endLsn !== d.endLsn ||
      h.kind !== d.kind ||
      !reader.footer.keyMin.equals(this.keyMin) ||
      !reader.footer.keyMax.equals(this.keyMax)
    ) {
      reader.close();
      throw (
        cached?.reject(0, cached.size) ??
        new LakebaseError('CORRUPT', `layer ${this.path} is not the layer the index names: its header differs`)
      );
    }
    // Of an object header and footer are proven before anything relies on them: damage of theirs is fetched anew, and the reader with it.
    if (cached !== undefined) {
      try {
        reader.prove();
      } catch (error) {
        reader.close();
        throw error;
      }
      cached.closeReader = () => this.close();
      this.#files.layers?.readerOpened(cached);
    }
    this.#reader = reader;
    return reader;
  }

  /** What a search for `key` would miss first of all. */
  missing(key: Buffer, upTo: Lsn): RemoteMiss | undefined {
    if (this.local && this.#reader !== undefined) return undefined;
    let more: RemoteMiss | undefined;
    const miss = missOf(() => {
      more = this.reader().missing(key, upTo);
    });
    return bothMisses(miss, more);
  }

  missingRange(from: Buffer, to: Buffer): RemoteMiss | undefined {
    if (this.local) return undefined;
    return missOf(() => {
      const miss = this.reader().missingRange(from, to);
      if (miss !== undefined) throw miss;
    });
  }

  close(wipe = false): void {
    if (this.#reader === undefined) return;
    this.#reader.close(wipe);
    this.#reader = undefined;
    if (this.#cached === undefined) return;
    this.#cached.closeReader = undefined;
    this.#files.layers?.readerClosed(this.#cached);
  }

  /** Of a layer that no index names any more: its local file goes. */
  async discard(): Promise<void> {
    this.close();
    if (this.#cached !== undefined) await this.#cached.discard();
    else await unlink(this.path).catch(() => {});
  }
}

export class LayerSet {
  readonly layers: readonly LayerHandle[];

  constructor(layers: readonly LayerHandle[]) {
    this.layers = [...layers].sort(newestFirst);
  }

  static open(descriptors: readonly LayerDescriptor[], files: LayerFiles): LayerSet {
    return new LayerSet(descriptors.map((d) => new LayerHandle(d, files)));
  }

  /** See {@link LayerView.collect}. */
  collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean {
    for (let i = 0; i < this.layers.length; i++) {
      const layer = this.layers[i] as LayerHandle;
      const d = layer.descriptor;
      if (d.endLsn <= floor) return false;
      if (d.startLsn > upTo || (d.kind === 'image' && d.endLsn > upTo)) continue;
      if (key.compare(layer.keyMin) < 0 || key.compare(layer.keyMax) > 0) continue;
      try {
        if (layer.reader().collect(key, upTo, floor, out)) return true;
      } catch (error) {
        if (error instanceof RemoteMiss) this.#lookAhead(i, key, upTo, floor, error);
        throw error;
      }
      // An image holds every key of its range: what is not there did not exist then.
      if (d.kind === 'image') return false;
    }
    return false;
  }

  /** Adds to `miss` what the layers from number `from` on would miss, down to the first image. */
  #lookAhead(from: number, key: Buffer, upTo: Lsn, floor: Lsn, miss: RemoteMiss): void {
    let left = LOOK_AHEAD_LAYERS;
    for (let i = from; i < this.layers.length && left > 0; i++) {
      const layer = this.layers[i] as LayerHandle;
      const d = layer.descriptor;
      if (d.endLsn <= floor) return;
      if (d.startLsn > upTo || (d.kind === 'image' && d.endLsn > upTo)) continue;
      if (key.compare(layer.keyMin) < 0 || key.compare(layer.keyMax) > 0) continue;
      bothMisses(miss, layer.missing(key, upTo));
      left--;
      if (d.kind === 'image') return;
    }
  }

  /** What reads at the head of the keys in [from, to] would miss: of the newest images and all that came since. Twice what is missing is asked for:
   *  the first time only the ends of layers may be known. */
  missingRange(from: Buffer, to: Buffer): RemoteMiss | undefined {
    let miss: RemoteMiss | undefined;
    let imageLsn = 0;
    for (const layer of this.layers) {
      const d = layer.descriptor;
      if (d.endLsn < imageLsn || (d.kind === 'delta' && d.endLsn === imageLsn)) break;
      if (to.compare(layer.keyMin) < 0 || from.compare(layer.keyMax) > 0) continue;
      if (d.kind === 'image') imageLsn = d.endLsn;
      miss = bothMisses(miss, layer.missingRange(from, to));
    }
    return miss;
  }

  /** All its bytes are on the local disk. */
  get local(): boolean {
    return this.layers.every((l) => l.local);
  }

  replaced(remove: readonly LayerHandle[], add: readonly LayerHandle[]): LayerSet {
    const gone = new Set(remove);
    return new LayerSet([...this.layers.filter((l) => !gone.has(l)), ...add]);
  }

  close(wipe = false): void {
    for (const layer of this.layers) layer.close(wipe);
  }
}

function newestFirst(a: LayerHandle, b: LayerHandle): number {
  return b.descriptor.endLsn - a.descriptor.endLsn || b.descriptor.startLsn - a.descriptor.startLsn || b.number - a.number;
}
