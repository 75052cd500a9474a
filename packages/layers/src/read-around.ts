/** A local read that waited for the disk says that what lies around it is not in the operating system's memory either: it is brought there beside the
 *  reads, which are synchronous and would each wait as long, with all others behind them. After a restart or a resume on a cold machine a few hundred
 *  large reads take the place of tens of thousands of small ones.
 *  Invariants: advice only, nothing is kept here and nothing fails; one window at a time, as long a rest after each as it took, so that the disk
 *  stays free for what is asked for; a window is read once in a while only. */
import { read } from 'node:fs';
import type { OpenFile } from './layer-bytes.ts';

export const AROUND_BYTES: number = 1 << 20;
/** Nothing in memory takes so long. */
export const SLOW_READ_MS = 1;
/** Remembered as read: 4 GiB of layers. */
const WINDOWS_MAX = 4_096;
const WINDOW_SPAN = 0x10_0000;

export class ReadAround {
  readonly #seen = new Set<number>();
  #buffer: Buffer | undefined;
  #running = false;
  #restUntil = 0;
  /** Windows read so far. */
  count = 0;

  /** A read at `offset` of layer number `layer` was slow. */
  note(file: OpenFile, layer: number, offset: number): void {
    const index = Math.floor(offset / AROUND_BYTES);
    const window = layer * WINDOW_SPAN + index;
    if (this.#running || this.#seen.has(window) || performance.now() < this.#restUntil) return;
    if (this.#seen.size >= WINDOWS_MAX) this.#seen.clear();
    this.#seen.add(window);
    this.#running = true;
    this.count++;
    const began = performance.now();
    file.use();
    this.#buffer ??= Buffer.allocUnsafeSlow(AROUND_BYTES);
    read(file.fd, this.#buffer, 0, AROUND_BYTES, index * AROUND_BYTES, () => {
      file.unuse();
      this.#running = false;
      const now = performance.now();
      this.#restUntil = now + (now - began);
    });
  }
}
