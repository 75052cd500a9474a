/** Walks the key groups of a layer file in key order, frame by frame, past the frame cache. A key whose entries fill several frames comes as
 *  several groups. `key` and entry bytes are views of the current frame: copy what must outlive {@link LayerCursor.next}. */
import type { Entry } from './entry.ts';
import type { CachedFrame } from './frame-cache.ts';
import { KEY_BYTES } from './key.ts';
import { type LayerReader, forEachEntry } from './layer-reader.ts';
import { OpenPacks } from './open-packs.ts';

export class LayerCursor {
  readonly #layer: LayerReader;
  readonly #packs = new OpenPacks(1);
  #frameNumber: number;
  #frame: CachedFrame | undefined;
  #group = -1;
  /** Undefined at the end. */
  key: Buffer | undefined;

  /** Stands on the first group with key >= from. */
  constructor(layer: LayerReader, from?: Buffer) {
    this.#layer = layer;
    this.#frameNumber = from === undefined ? 0 : layer.frameAtOrBefore(from);
    this.next();
    while (from !== undefined && this.key !== undefined && this.key.compare(from) < 0) this.next();
  }

  next(): void {
    this.#group++;
    if (this.#frame === undefined || this.#group >= this.#frame.groups.length) {
      if (this.#frame !== undefined) this.#frameNumber++;
      if (this.#frameNumber >= this.#layer.frames) {
        this.key = undefined;
        this.#frame = undefined;
        this.#packs.forget();
        return;
      }
      this.#frame = this.#layer.loadFrame(this.#frameNumber, this.#packs);
      this.#group = 0;
    }
    const at = this.#frame.groups[this.#group] as number;
    this.key = this.#frame.bytes.subarray(at, at + KEY_BYTES);
  }

  /** Entries of the current group, oldest first. */
  entries(visit: (entry: Entry) => boolean): void {
    const frame = this.#frame;
    if (frame !== undefined) forEachEntry(frame.bytes, frame.groups[this.#group] as number, visit);
  }
}
