/** Materialised pages of a timeline, least recently used first out. An entry says: this is the page as of `lsn`; a read at a later LSN uses it as
 *  the base and applies what came since. Pages are never changed after they are put here. */
import { BLCKSZ } from '@lakebase/ids';
import type { BasePage } from '@lakebase/layers';

const SERIES_SPAN = 0x1_0000_0000;

/** Shared bound of all timelines' caches. */
export class CacheBudget {
  used = 0;
  readonly limit: number;
  constructor(limitBytes: number) {
    this.limit = limitBytes;
  }
}

export class PageCache {
  readonly #budget: CacheBudget;
  readonly #pages = new Map<number, BasePage>();
  hits = 0;
  misses = 0;

  constructor(budget: CacheBudget) {
    this.#budget = budget;
  }

  get(series: number, block: number): BasePage | undefined {
    const key = series * SERIES_SPAN + block;
    const found = this.#pages.get(key);
    if (found === undefined) {
      this.misses++;
      return undefined;
    }
    this.hits++;
    this.#pages.delete(key);
    this.#pages.set(key, found);
    return found;
  }

  set(series: number, block: number, entry: BasePage): void {
    const key = series * SERIES_SPAN + block;
    if (!this.#pages.delete(key)) this.#budget.used += BLCKSZ;
    this.#pages.set(key, entry);
    for (const old of this.#pages.keys()) {
      if (this.#budget.used <= this.#budget.limit || old === key) break;
      this.#pages.delete(old);
      this.#budget.used -= BLCKSZ;
    }
  }

  delete(series: number, block: number): void {
    if (this.#pages.delete(series * SERIES_SPAN + block)) this.#budget.used -= BLCKSZ;
  }

  /** {@link clear}, and the pages are zeros: nobody may be sending one. */
  wipe(): void {
    for (const { page } of this.#pages.values()) page.fill(0);
    this.clear();
  }

  clear(): void {
    this.#budget.used -= this.#pages.size * BLCKSZ;
    this.#pages.clear();
  }
}
