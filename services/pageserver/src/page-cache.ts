/** Materialised pages of a timeline, least recently used first out. An entry says: this is the page as of `lsn`; a read at a later LSN uses it as
 *  the base and applies what came since. Pages are never changed after they are put here. */
import { BLCKSZ } from '@lakebase/ids';
import type { BasePage } from '@lakebase/layers';
import { OpenLayerBudget } from './open-layer-budget.ts';

const SERIES_SPAN = 0x1_0000_0000;
const OPEN_LAYERS_BYTES = 256 << 20;

/** Memory of all timelines together. */
export class CacheBudget {
  /** Of page caches. */
  used = 0;
  readonly limit: number;
  readonly layers: OpenLayerBudget;
  /** With pages in them, the one used longest ago first. */
  readonly #caches = new Set<PageCache>();
  #last: PageCache | undefined;

  constructor(limitBytes: number, openLayersBytes: number = OPEN_LAYERS_BYTES) {
    this.limit = limitBytes;
    this.layers = new OpenLayerBudget(openLayersBytes);
  }

  touch(cache: PageCache): void {
    if (this.#last === cache) return;
    this.#last = cache;
    this.#caches.delete(cache);
    this.#caches.add(cache);
  }
  forget(cache: PageCache): void {
    this.#caches.delete(cache);
    if (this.#last === cache) this.#last = undefined;
  }

  /** Drops pages of timelines that nobody reads before those of the ones in use. */
  shrink(): void {
    while (this.used > this.limit) {
      const [coldest] = this.#caches;
      if (coldest === undefined || !coldest.dropOldest()) {
        if (coldest === undefined || coldest === this.#last) return;
        this.#caches.delete(coldest);
      }
    }
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
    this.#budget.touch(this);
    this.#pages.delete(key);
    this.#pages.set(key, found);
    return found;
  }

  set(series: number, block: number, entry: BasePage): void {
    const key = series * SERIES_SPAN + block;
    if (!this.#pages.delete(key)) this.#budget.used += BLCKSZ;
    this.#pages.set(key, entry);
    this.#budget.touch(this);
    if (this.#budget.used > this.#budget.limit) this.#budget.shrink();
  }

  /** False when there is only the newest, which is just being read. */
  dropOldest(): boolean {
    if (this.#pages.size < 2) return false;
    const [oldest] = this.#pages.keys();
    this.#pages.delete(oldest as number);
    this.#budget.used -= BLCKSZ;
    return true;
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
    this.#budget.forget(this);
    this.#pages.clear();
  }
}
