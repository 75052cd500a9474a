/** Bounded cache of opened frames, shared by all layers of a process. Least recently used goes first (Map order).
 *  Reads of pages pass through compressed frames: between {@link FrameCache.startPassing} and {@link FrameCache.endPassing} these are put into a few places
 *  that are used again, enough for neighbours and scans, so that reads neither push out everything else nor make garbage of several times their size.
 *  Invariant: while passing, a frame stays as it is until the next page is begun; nobody who passes keeps a view beyond that. */
import { FrameWindow } from './frame-window.ts';
import { OpenPacks } from './open-packs.ts';

/** What scans of a few layers at a time need. */
const PACKS = 8;

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
  readonly #window = new FrameWindow();
  #passing = false;
  /** Keyed as frames are, by the pack's number. */
  readonly packs: OpenPacks = new OpenPacks(PACKS);
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
      const passed = this.#passing ? this.#window.get(key) : undefined;
      if (passed === undefined) this.misses++;
      else this.hits++;
      return passed;
    }
    this.hits++;
    this.#map.delete(key);
    this.#map.set(key, frame);
    return frame;
  }

  /** A page is read, synchronously, as one of many in a row. */
  startPassing(): void {
    this.#passing = true;
    this.#window.nextPage();
  }
  endPassing(): void {
    this.#passing = false;
  }
  /** Memory for a frame of `bytes` that is passed through; undefined when it is to be kept. */
  roomToPass(bytes: number): Buffer | undefined {
    return this.#passing ? this.#window.room(bytes) : undefined;
  }
  /** `frame` lies in memory of {@link roomToPass}. */
  passed(key: number, frame: CachedFrame): void {
    this.#window.set(key, frame);
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
    this.#window.forget(from, to);
    this.packs.forget(from, to);
  }

  get bytes(): number {
    return this.#used;
  }
}
