/** The newest WAL bytes in memory, so that readers that keep up never touch the disk. The byte at LSN x lives at x modulo the size.
 *  Invariant: holds exactly the bytes [start, end). Memory is allocated at the first write and given back by {@link release}. */
import type { Lsn } from '@lakebase/ids';

export class WalRing {
  readonly #size: number;
  #buffer: Buffer | undefined;
  start = 0;
  end = 0;

  constructor(size: number) {
    this.#size = size;
  }

  write(at: Lsn, bytes: Buffer): void {
    if (this.#size === 0) return;
    this.#buffer ??= Buffer.allocUnsafeSlow(this.#size);
    if (at !== this.end || this.start === this.end) {
      this.start = at;
      this.end = at;
    }
    const skip = Math.max(0, bytes.length - this.#size);
    let position = (at + skip) % this.#size;
    for (let offset = skip; offset < bytes.length; ) {
      const n = Math.min(bytes.length - offset, this.#size - position);
      bytes.copy(this.#buffer, position, offset, offset + n);
      offset += n;
      position = (position + n) % this.#size;
    }
    this.end = at + bytes.length;
    this.start = Math.max(this.start, this.end - this.#size);
  }

  /** A copy of at most `max` bytes of [from, limit); undefined when `from` is not held. */
  read(from: number, max: number, limit: number): Buffer | undefined {
    const end = Math.min(this.end, limit);
    if (this.#buffer === undefined || from < this.start || from >= end) return undefined;
    const out = Buffer.allocUnsafe(Math.min(max, end - from));
    const position = from % this.#size;
    const first = Math.min(out.length, this.#size - position);
    this.#buffer.copy(out, 0, position, position + first);
    this.#buffer.copy(out, first, 0, out.length - first);
    return out;
  }

  truncate(end: Lsn): void {
    if (end < this.end) this.end = Math.max(end, this.start);
    if (end < this.start) this.release();
  }

  wipe(): void {
    this.#buffer?.fill(0);
    this.release();
  }

  release(): void {
    this.#buffer = undefined;
    this.start = 0;
    this.end = 0;
  }
}
