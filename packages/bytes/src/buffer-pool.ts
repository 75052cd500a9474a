/** Memory for runs of pages, used again. V8 counts memory outside its heap and looks through all of its heap whenever 64 MB of it came and went:
 *  for a process that only passes pages on, that costs more than everything else (2026-11: 30 of 45 µs a page).
 *  Invariants: a buffer has one user more for each {@link retain}, and goes back when the last one has released it, or never when one forgets to
 *  (then it is garbage); nobody touches a buffer, or a view of it, after his release; what is free is bounded, and let go when it is not wanted. */

const SMALLEST_BYTES = 8_192;
/** Room for a header before a power of two. */
const EXTRA_BYTES = 64;
const SIZES = 8;
const FREE_BYTES_MAX = 8 << 20;
const KEEP_MS = 10_000;

const sizeBytes = (size: number): number => (SMALLEST_BYTES << size) + EXTRA_BYTES;

export class BufferPool {
  readonly #free: Buffer[][] = Array.from({ length: SIZES }, () => []);
  readonly #users = new WeakMap<ArrayBufferLike, { count: number; readonly size: number }>();
  #freeBytes = 0;
  #expiry: NodeJS.Timeout | undefined;

  get freeBytes(): number {
    return this.#freeBytes;
  }

  /** Its content is undefined; the caller is its one user. */
  take(bytes: number): Buffer {
    let size = 0;
    while (size < SIZES && sizeBytes(size) < bytes) size++;
    if (size === SIZES || bytes < SMALLEST_BYTES) return Buffer.allocUnsafeSlow(bytes);
    let memory = this.#free[size]?.pop();
    if (memory === undefined) memory = Buffer.allocUnsafeSlow(sizeBytes(size));
    else this.#freeBytes -= memory.length;
    this.#users.set(memory.buffer, { count: 1, size });
    return memory.subarray(0, bytes);
  }

  /** Of a buffer, or a view of one. What is not of this pool is left alone, here and in {@link release}. */
  retain(buffer: Buffer): void {
    const users = this.#users.get(buffer.buffer);
    if (users !== undefined) users.count++;
  }

  release(buffer: Buffer): void {
    const users = this.#users.get(buffer.buffer);
    if (users === undefined || --users.count > 0) return;
    this.#users.delete(buffer.buffer);
    const memory = Buffer.from(buffer.buffer);
    if (this.#freeBytes + memory.length > FREE_BYTES_MAX) return;
    this.#free[users.size]?.push(memory);
    this.#freeBytes += memory.length;
    if (this.#expiry === undefined) this.#expiry = this.#expire();
  }

  /** Zeroes what is free. */
  wipe(): void {
    for (const list of this.#free) for (const memory of list) memory.fill(0);
  }

  #expire(): NodeJS.Timeout {
    return setTimeout(() => {
      this.#expiry = undefined;
      for (const list of this.#free) list.length = 0;
      this.#freeBytes = 0;
    }, KEEP_MS).unref();
  }
}
