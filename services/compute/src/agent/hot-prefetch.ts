/** Fetches the hot set in the background after a start: pages come here from the page service a few batches ahead, the cache worker writes them into
 *  the files. Invariants: newest runs first; while backends wait for pages of their own few batches are on their way; it ends when the bound of the
 *  local disk is reached, when everything is there, or when it is stopped, and whatever fails ends it: it is a convenience. */
import { type Logger, errorMessage, isCode } from '@lakebase/base';
import type { BufferPool } from '@lakebase/bytes';
import { BLCKSZ, RELSEG_BLOCKS } from '@lakebase/ids';
import type { ResidentMap } from '../resident-map.ts';
import type { FetchAnswer } from './cache-worker.ts';
import type { HotRun } from './hot-set.ts';

/** What one request carries at most: the dearest part of a page is asking for it. */
export const BATCH_BLOCKS = 128;
const AHEAD_QUIET = 4;
const AHEAD_BUSY = 2;
const TRIES = 3;

/** Blocks of one segment file. */
export interface HotBatch {
  readonly entry: number;
  readonly block: number;
  readonly count: number;
}

export interface HotPrefetchOptions {
  readonly batches: readonly HotBatch[];
  /** From the page service; shorter when the relation ends. */
  readonly pages: (batch: HotBatch) => Promise<Buffer>;
  /** Of those pages. */
  readonly memory: BufferPool;
  readonly worker: { fetch(entry: number, block: number, count: number): Promise<FetchAnswer> };
  /** Whether backends are waiting for pages. */
  readonly busy: () => boolean;
  readonly log: Logger;
}

export class HotPrefetch {
  readonly #o: HotPrefetchOptions;
  readonly #ready = new Map<HotBatch, Promise<Buffer>>();
  #next = 0;
  #stopped = false;
  done: 'running' | 'complete' | 'full' | 'stopped' | 'failed' = 'running';

  constructor(options: HotPrefetchOptions) {
    this.#o = options;
  }

  async run(): Promise<void> {
    const begun = performance.now();
    const { batches, worker, log } = this.#o;
    try {
      for (const batch of batches) {
        this.#reachAhead();
        if ((await this.#install(worker, batch)) === 'full') {
          this.done = 'full';
          break;
        }
        this.#drop(batch);
        if (this.#stopped) break;
      }
      if (this.#stopped) this.done = 'stopped';
      else if (this.done === 'running') this.done = 'complete';
    } catch (error) {
      this.done = 'failed';
      if (!this.#stopped && !isCode(error, 'CLOSED'))
        log.warn({ err: errorMessage(error) }, 'hot pages are not fetched on; they come when they are needed');
    }
    for (const batch of this.#ready.keys()) this.#drop(batch);
    const blocks = batches.reduce((n, b) => n + b.count, 0);
    log.info({ outcome: this.done, blocks, ms: Math.round(performance.now() - begun) }, 'hot pages fetched');
  }

  stop(): void {
    this.#stopped = true;
  }

  /** From now on pages come at a later LSN: what is here or on its way is asked for again when it is needed. */
  forget(): void {
    for (const batch of this.#ready.keys()) this.#drop(batch);
  }

  /** Part of a batch that is here or on its way, retained for the caller; or undefined. */
  take(entry: number, block: number, count: number): Promise<Buffer> | undefined {
    for (const [batch, pages] of this.#ready) {
      if (batch.entry !== entry || block < batch.block || block + count > batch.block + batch.count) continue;
      const from = (block - batch.block) * BLCKSZ;
      return pages.then((bytes) => {
        this.#o.memory.retain(bytes);
        return bytes.subarray(from, from + count * BLCKSZ);
      });
    }
    return undefined;
  }

  async #install(worker: HotPrefetchOptions['worker'], batch: HotBatch): Promise<FetchAnswer> {
    for (let tries = 1; ; tries++) {
      try {
        return await worker.fetch(batch.entry, batch.block, batch.count);
      } catch (error) {
        if (tries === TRIES || this.#stopped) throw error;
        this.#drop(batch); // a batch that failed is asked for again
        await new Promise((resolve) => setTimeout(resolve, 500 * tries).unref());
      }
    }
  }

  /** After all that was taken of it: a promise serves in order. */
  #drop(batch: HotBatch): void {
    const pages = this.#ready.get(batch);
    this.#ready.delete(batch);
    pages?.then(
      (bytes) => this.#o.memory.release(bytes),
      () => {},
    );
  }

  #reachAhead(): void {
    const { batches, pages, busy } = this.#o;
    const depth = busy() ? AHEAD_BUSY : AHEAD_QUIET;
    while (this.#next < batches.length && this.#ready.size < depth) {
      const batch = batches[this.#next++] as HotBatch;
      const coming = pages(batch);
      coming.catch(() => {}); // seen by who takes it
      this.#ready.set(batch, coming);
    }
  }
}

/** The runs as batches of segment files, newest first; what storage does not have at this start is left out. */
export function batchesOf(runs: readonly HotRun[], map: ResidentMap): HotBatch[] {
  const batches: HotBatch[] = [];
  for (const run of [...runs].sort((a, b) => a.age - b.age)) {
    for (let at = run.block; at < run.block + run.count; ) {
      const segment = Math.floor(at / RELSEG_BLOCKS);
      const block = at % RELSEG_BLOCKS;
      const count = Math.min(run.block + run.count - at, BATCH_BLOCKS, RELSEG_BLOCKS - block);
      const entry = map.find(run.tag, segment);
      const nblocks = entry < 0 || map.entry(entry).dropped ? 0 : map.entry(entry).nblocks;
      if (block < nblocks) batches.push({ entry, block, count: Math.min(count, nblocks - block) });
      at += count;
    }
  }
  return batches;
}
