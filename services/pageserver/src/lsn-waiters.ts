/** Reads that wait for ingest to reach an LSN, each with a deadline. */
import { LakebaseError } from '@lakebase/base';
import { type Lsn, formatLsn } from '@lakebase/ids';

interface Waiter {
  readonly lsn: Lsn;
  resolve(): void;
  reject(error: Error): void;
}

export class LsnWaiters {
  readonly #waiting = new Set<Waiter>();
  #lowest = Number.MAX_SAFE_INTEGER;

  get count(): number {
    return this.#waiting.size;
  }

  wait(lsn: Lsn, timeoutMs: number, current: () => Lsn): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(waiter);
        reject(
          new LakebaseError(
            'TIMEOUT',
            `WAL up to ${formatLsn(lsn)} did not arrive within ${timeoutMs} ms; ingested up to ${formatLsn(current())}`,
          ),
        );
      }, timeoutMs);
      const waiter: Waiter = {
        lsn,
        resolve: () => {
          clearTimeout(timer);
          resolve();
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      };
      this.#waiting.add(waiter);
      if (lsn < this.#lowest) this.#lowest = lsn;
    });
  }

  advance(to: Lsn): void {
    if (to < this.#lowest) return;
    let lowest = Number.MAX_SAFE_INTEGER;
    for (const w of this.#waiting) {
      if (w.lsn <= to) {
        this.#waiting.delete(w);
        w.resolve();
      } else if (w.lsn < lowest) lowest = w.lsn;
    }
    this.#lowest = lowest;
  }

  fail(error: Error): void {
    for (const w of this.#waiting) w.reject(error);
    this.#waiting.clear();
    this.#lowest = Number.MAX_SAFE_INTEGER;
  }
}
