/** Packs that were opened and whose frames are not read yet: a pack is opened once for a run of reads, not once for each of its frames.
 *  Invariants: a pack's memory is the holder's; it becomes zeros and goes back when others take its place or it is forgotten; nobody keeps a view of it. */
import { wipeAndGiveBack } from '@lakebase/bytes';

interface Held {
  readonly key: number;
  readonly bytes: Buffer;
}

export class OpenPacks {
  readonly #places: number;
  /** Used last comes last. */
  readonly #held: Held[] = [];

  constructor(places: number) {
    this.#places = places;
  }

  get(key: number): Buffer | undefined {
    const at = this.#held.findIndex((h) => h.key === key);
    if (at < 0) return undefined;
    const found = this.#held[at] as Held;
    if (at < this.#held.length - 1) {
      this.#held.splice(at, 1);
      this.#held.push(found);
    }
    return found.bytes;
  }

  /** Takes `bytes` over. */
  set(key: number, bytes: Buffer): void {
    if (this.#held.length >= this.#places) drop(this.#held.shift());
    this.#held.push({ key, bytes });
  }

  /** Drops packs [from, to). */
  forget(from = 0, to: number = Number.POSITIVE_INFINITY): void {
    for (let i = this.#held.length - 1; i >= 0; i--) {
      const { key } = this.#held[i] as Held;
      if (key >= from && key < to) drop(this.#held.splice(i, 1)[0]);
    }
  }
}

function drop(held: Held | undefined): void {
  if (held !== undefined) wipeAndGiveBack(held.bytes);
}
