/** When appended WAL is made durable: everything of one turn of the event loop with one fdatasync at its end; the reserve of a timeline gathers a
 *  little longer while others carry the quorum (reserve.ts). Invariant: whatever is added is flushed without anybody asking. */
import { RESERVE_BYTES_MAX, RESERVE_DELAY_MS } from './reserve.ts';

export class FlushSchedule {
  readonly #flush: () => void;
  /** Asked when bytes come: may they wait? */
  readonly #mayWait: () => boolean;
  #scheduled: NodeJS.Immediate | undefined;
  #timer: NodeJS.Timeout | undefined;
  #bytes = 0;

  constructor(flush: () => void, mayWait: () => boolean) {
    this.#flush = flush;
    this.#mayWait = mayWait;
  }

  added(bytes: number): void {
    this.#bytes += bytes;
    if (this.#timer !== undefined && this.#bytes < RESERVE_BYTES_MAX) return;
    if (this.#bytes < RESERVE_BYTES_MAX && this.#mayWait()) this.#timer = setTimeout(this.#flush, RESERVE_DELAY_MS);
    else this.#scheduled ??= setImmediate(this.#flush);
  }

  /** What was added is gone. */
  dropped(): void {
    this.#bytes = 0;
  }

  /** A flush happens now, or what was added is gone: nothing is scheduled any more. Returns the bytes it is about. */
  take(): number {
    if (this.#scheduled !== undefined) clearImmediate(this.#scheduled);
    this.#scheduled = undefined;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const bytes = this.#bytes;
    this.#bytes = 0;
    return bytes;
  }
}
