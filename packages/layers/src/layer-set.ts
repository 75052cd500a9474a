/** The persistent layers of a timeline, newest first, as one searchable view. Immutable: maintenance builds a new set and swaps it in one step,
 *  so a read (which never awaits) sees one consistent set. Files are opened at first use.
 *  Order: by end LSN, then start LSN, then number, all descending; an image at LSN I therefore comes before the delta layers that end at I. */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import type { Entry } from './entry.ts';
import type { FrameCache } from './frame-cache.ts';
import { LayerReader } from './layer-reader.ts';
import { layerNumber } from './layer-name.ts';
import type { LayerDescriptor } from './layer-writer.ts';
import { type ObjectKeys, keyFromText } from './object-keys.ts';

export interface LayerFiles {
  readonly directory: string;
  readonly keys: ObjectKeys;
  readonly cache: FrameCache;
  /** Identity that every layer file must carry. */
  readonly project: string;
  readonly timeline: string;
}

/** A layer file by its descriptor; opens itself when first read. */
export class LayerHandle {
  #descriptor: LayerDescriptor;
  readonly keyMin: Buffer;
  readonly keyMax: Buffer;
  readonly number: number;
  readonly #files: LayerFiles;
  #reader: LayerReader | undefined;

  constructor(descriptor: LayerDescriptor, files: LayerFiles) {
    this.#descriptor = descriptor;
    this.keyMin = Buffer.from(descriptor.keyMin, 'hex');
    this.keyMax = Buffer.from(descriptor.keyMax, 'hex');
    this.number = layerNumber(descriptor.name);
    this.#files = files;
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

  /** Cheap check at attach: the file is there and has its length. */
  verifyPresence(): void {
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
    if (this.#reader !== undefined) return this.#reader;
    const reader = new LayerReader(this.path, this.#files.keys, this.#files.cache, keyFromText(this.descriptor.key));
    const d = this.descriptor,
      h = reader.header;
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
      throw new LakebaseError('CORRUPT', `layer ${this.path} is not the layer the index names: its header differs`);
    }
    this.#reader = reader;
    return reader;
  }

  close(wipe = false): void {
    this.#reader?.close(wipe);
    this.#reader = undefined;
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
    for (const layer of this.layers) {
      const d = layer.descriptor;
      if (d.endLsn <= floor) return false;
      if (d.startLsn > upTo || (d.kind === 'image' && d.endLsn > upTo)) continue;
      if (key.compare(layer.keyMin) < 0 || key.compare(layer.keyMax) > 0) continue;
      if (layer.reader().collect(key, upTo, floor, out)) return true;
      // An image holds every key of its range: what is not there did not exist then.
      if (d.kind === 'image') return false;
    }
    return false;
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
