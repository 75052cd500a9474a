/** The few frames that reads of pages are at: places of memory that are filled again and again.
 *  Invariant: a place is not filled again before the page after the one that used it last. */
import type { CachedFrame } from './frame-cache.ts';

const PLACES = 32;
/** Larger frames hold one large value: rare, and not part of a run of pages. */
const PLACE_BYTES = 40_960;

interface Place {
  readonly memory: Buffer;
  key: number;
  frame: CachedFrame | undefined;
  page: number;
}

export class FrameWindow {
  readonly #places: Place[] = [];
  #page = 0;

  nextPage(): void {
    this.#page++;
  }

  get(key: number): CachedFrame | undefined {
    for (const place of this.#places) {
      if (place.key !== key || place.frame === undefined) continue;
      place.page = this.#page;
      return place.frame;
    }
    return undefined;
  }

  /** Undefined when this page needs all places already. Until {@link set} the place holds nothing. */
  room(bytes: number): Buffer | undefined {
    if (bytes > PLACE_BYTES) return undefined;
    let oldest: Place | undefined;
    for (const place of this.#places) if (oldest === undefined || place.page < oldest.page) oldest = place;
    if (oldest === undefined || this.#places.length < PLACES) {
      oldest = { memory: Buffer.allocUnsafeSlow(PLACE_BYTES), key: -1, frame: undefined, page: 0 };
      this.#places.push(oldest);
    } else if (oldest.page === this.#page) return undefined;
    oldest.frame = undefined;
    oldest.page = this.#page;
    return oldest.memory;
  }

  /** `frame` lies in memory that {@link room} gave. */
  set(key: number, frame: CachedFrame): void {
    const place = this.#places.find((p) => p.memory.buffer === frame.bytes.buffer);
    if (place === undefined) return;
    place.key = key;
    place.frame = frame;
  }

  /** Frames [from, to) become zeros: nobody may be able to say later whose they were. */
  forget(from: number, to: number): void {
    for (const place of this.#places) {
      const gone = place.frame !== undefined && place.key >= from && place.key < to;
      if (gone) place.frame = undefined;
      // Of one that failed a check nobody knows.
      if (place.frame === undefined) place.memory.fill(0);
    }
  }
}
