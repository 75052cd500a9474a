/** Memory of open layers, used again. Fresh memory costs a page fault for every 4 KiB, which is a large part of what copying WAL into a layer
 *  costs. A block is handed out as a SharedArrayBuffer of its own over the same memory. It comes back when its owner gives it back, knowing that nobody
 *  reads it any more; or else when the collector finds that nobody in this thread holds it, neither layer nor entry nor view. Shared memory is no
 *  reason for the collector to run, so that alone would let dead layers pile up.
 *  Invariants: a block is never handed out while anything can still read it here; another thread may read it only as long as this one keeps
 *  the layer (flush jobs do). Blocks come back with what they held: who takes one reads only what he wrote. */

/** Kept at most, for the whole process: what busy timelines give back and take again. What is not taken for a while is let go. */
const KEPT_BLOCKS = 256;
const KEPT_MS = 30_000;

export class ChunkPool {
  readonly #bytes: number;
  readonly #free: SharedArrayBuffer[] = [];
  readonly #returned: FinalizationRegistry<SharedArrayBuffer>;
  /** Blocks that are out, to their memory. */
  readonly #out = new WeakMap<SharedArrayBuffer, SharedArrayBuffer>();
  #expiry: NodeJS.Timeout | undefined;
  /** Memory was let go: only the collector gives it back to the system, and it has no reason of its own to run. */
  onLetGo: () => void = () => {};
  /** Blocks that were handed out a second time or later. */
  reused = 0;
  /** Blocks that are in use, or that nobody has given back and the collector has not found yet. */
  taken = 0;

  constructor(bytes: number) {
    this.#bytes = bytes;
    this.#returned = new FinalizationRegistry((memory) => this.#keep(memory));
  }

  get free(): number {
    return this.#free.length;
  }

  /** A block, its content undefined. */
  take(): SharedArrayBuffer {
    const kept = this.#free.pop();
    if (kept !== undefined) this.reused++;
    this.taken++;
    const memory = kept ?? new SharedArrayBuffer(this.#bytes);
    // A second object over the same memory, whose end the registry can watch.
    const block = structuredClone(memory);
    this.#returned.register(block, memory, block);
    this.#out.set(block, memory);
    return block;
  }

  /** Nobody reads `block` any more. One that is not of the pool is left to the collector. */
  give(block: SharedArrayBuffer): void {
    const memory = this.#out.get(block);
    if (memory === undefined) return;
    this.#out.delete(block);
    this.#returned.unregister(block);
    this.#keep(memory);
  }

  /** Zeroes what nobody holds: a project that is locked has been here too. */
  wipe(): void {
    for (const memory of this.#free) new Uint8Array(memory).fill(0);
  }

  #keep(memory: SharedArrayBuffer): void {
    this.taken--;
    if (this.#free.length >= KEPT_BLOCKS) return;
    this.#free.push(memory);
    clearTimeout(this.#expiry);
    this.#expiry = setTimeout(() => {
      this.#free.length = 0;
      this.onLetGo();
    }, KEPT_MS);
    this.#expiry.unref();
  }
}
