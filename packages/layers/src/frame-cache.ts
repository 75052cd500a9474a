/** Bounded cache of opened frames, shared by all layers of a process. Least recently used goes first (Map order). */
export interface CachedFrame {
  readonly bytes: Buffer;
  /** Offsets of the key groups in the frame. */
  readonly groups: Uint32Array;
}

export class FrameCache {
  readonly #limit: number;
  #used = 0;
  #map = new Map<number, CachedFrame>();
  hits = 0;
  misses = 0;
  static #nextLayer = 0;

  constructor(limitBytes: number) {
    this.#limit = limitBytes;
  }

  /** Layers get a number each; a frame's cache key is layer * 2^24 + frame. */
  static newLayerNumber(): number {
    return FrameCache.#nextLayer++;
  }

  get(key: number): CachedFrame | undefined {
    const frame = this.#map.get(key);
    if (frame === undefined) {
      this.misses++;
      return undefined;
    }
    this.hits++;
    this.#map.delete(key);
    this.#map.set(key, frame);
    return frame;
  }

  has(key: number): boolean {
    return this.#map.has(key);
  }

  set(key: number, frame: CachedFrame): void {
    this.#map.set(key, frame);
    this.#used += frame.bytes.length;
    for (const [k, f] of this.#map) {
      if (this.#used <= this.#limit || k === key) break;
      this.#map.delete(k);
      this.#used -= f.bytes.length;
    }
  }

  /** Drops frames [from, to). With `wipe` they become zeros: then no read may be under way that looks at them. */
  forget(from: number, to: number, wipe: boolean): void {
    for (const [key, frame] of this.#map) {
      if (key < from || key >= to) continue;
      this.#map.delete(key);
      this.#used -= frame.bytes.length;
      if (wipe) frame.bytes.fill(0);
    }
  }

  get bytes(): number {
    return this.#used;
  }
}
