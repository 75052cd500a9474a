/** Tells a disk that is slow from one that is not, by what flushes take. Pure: time comes from the caller. A commit follows the second fastest member,
 *  so one slow disk is not felt; it is only seen here. */

/** One flush of this length, or their running mean above the other. */
const STALL_SECONDS = 1;
const MEAN_SECONDS = 0.1;
const WEIGHT = 0.1;
/** For this long after it was seen last. */
const REMEMBERED_MS = 60_000;

export class FlushWatch {
  #mean = 0;
  #slowUntil = Number.NEGATIVE_INFINITY;

  observe(seconds: number, now: number): void {
    this.#mean += (seconds - this.#mean) * WEIGHT;
    if (seconds >= STALL_SECONDS || this.#mean >= MEAN_SECONDS) this.#slowUntil = now + REMEMBERED_MS;
  }

  slow(now: number): boolean {
    return now < this.#slowUntil;
  }
}
