/** Bounds the memory of the open layers of all timelines together: the more of them take WAL, the smaller each one's layer gets before it is written. */

/** A timeline with less is not counted: it stays as it is. */
const COUNTED_BYTES = 1 << 20;
const SHARE_MIN = 2 << 20;

export class OpenLayerBudget {
  readonly #limit: number;
  readonly #writers = new Set<object>();

  constructor(limitBytes: number) {
    this.#limit = limitBytes;
  }

  /** What `owner`, whose open layer has `bytes`, may have before it freezes it. Half is for layers that are being written. */
  share(owner: object, bytes: number): number {
    if (bytes > COUNTED_BYTES) this.#writers.add(owner);
    else this.#writers.delete(owner);
    return Math.max(SHARE_MIN, this.#limit / 2 / Math.max(1, this.#writers.size));
  }
  leave(owner: object): void {
    this.#writers.delete(owner);
  }
  get writers(): number {
    return this.#writers.size;
  }
}
