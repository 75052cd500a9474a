/** Reads ahead of a sequential scan: while Postgres works on one run of blocks, the next ones are already on their way from the page service.
 *  When pages are asked for at a later LSN from now on, what was read ahead is forgotten ({@link ReadAhead.forget}): who asks after that gets none of it.
 *
 *  Invariants: at most {@link RUNS_MAX} runs of {@link RUN_BLOCKS} blocks are held, for the relations scanned last; what is not taken within
 *  {@link KEEP_MS} is dropped; a run that fails is forgotten and its blocks are asked for again when they are needed. */
import type { BufferPool } from '@lakebase/bytes';
import { BLCKSZ, type RelTag } from '@lakebase/ids';

export const RUN_BLOCKS = 128;
const RUNS_MAX = 16;
/** Runs ahead of one scan. */
const DEPTH = 2;
/** A request shorter than this is no scan. */
const SCAN_BLOCKS_MIN = 16;
const SKEW_BLOCKS = 64;
const KEEP_MS = 2_000;

export type Fetch = (tag: RelTag, block: number, count: number) => Promise<Buffer>;

interface Run {
  readonly key: string;
  readonly first: number;
  readonly pages: Promise<Buffer>;
  readonly expires: number;
  /** Requests that wait for it or are about to keep a part of it. */
  takers: number;
  dropped: boolean;
}

export class ReadAhead {
  readonly #fetch: Fetch;
  readonly #memory: BufferPool;
  readonly #now: () => number;
  /** Where the last request of a relation ended. */
  readonly #ends = new Map<string, number>();
  #runs: Run[] = [];
  #expiry: NodeJS.Timeout | undefined;

  /** `memory`: of what `fetch` resolves with. */
  constructor(fetch: Fetch, memory: BufferPool, now: () => number = () => performance.now()) {
    this.#fetch = fetch;
    this.#memory = memory;
    this.#now = now;
  }

  /** The caller releases the answer. */
  async get(tag: RelTag, first: number, count: number): Promise<Buffer> {
    const key = `${tag.spc}/${tag.db}/${tag.rel}/${tag.fork}`;
    // I/O workers share a scan, so its requests come in nearly, not exactly, the order of their blocks.
    const end = this.#ends.get(key);
    const sequential = end !== undefined && Math.abs(first - end) <= SKEW_BLOCKS && count >= SCAN_BLOCKS_MIN;
    this.#remember(key, sequential ? Math.max(end, first + count) : first + count);
    const pages = this.#collect(key, tag, first, first + count);
    if (sequential) this.#startRuns(key, tag, first + count);
    return pages;
  }

  /** Whoever takes part of a run already asked before now. */
  forget(): void {
    this.#keep(() => false);
  }

  /** From the runs that hold some of it; what none holds is asked for. */
  async #collect(key: string, tag: RelTag, first: number, end: number): Promise<Buffer> {
    const parts: Promise<Buffer>[] = [];
    const held = this.#runs.filter((r) => r.key === key && r.first < end && r.first + RUN_BLOCKS > first).sort((a, b) => a.first - b.first);
    let at = first;
    for (const run of held) {
      if (run.first > at) parts.push(this.#fetch(tag, at, run.first - at));
      at = Math.max(at, run.first);
      const to = Math.min(end, run.first + RUN_BLOCKS);
      if (to > at) parts.push(this.#take(run, tag, at, to - at));
      at = Math.max(at, to);
    }
    if (at < end) parts.push(this.#fetch(tag, at, end - at));
    if (parts.length === 1) return parts[0] as Promise<Buffer>;
    // A part that is short is where the relation ends: what comes after it is empty.
    const pages = await Promise.all(parts);
    const whole = Buffer.concat(pages);
    for (const part of pages) this.#memory.release(part);
    return whole;
  }

  async #take(run: Run, tag: RelTag, first: number, count: number): Promise<Buffer> {
    const from = (first - run.first) * BLCKSZ;
    run.takers++;
    try {
      const pages = await run.pages;
      this.#memory.retain(pages);
      return pages.subarray(from, from + count * BLCKSZ);
    } catch {
      return this.#fetch(tag, first, count);
    } finally {
      run.takers--;
      this.#settle(run);
    }
  }

  /** Keeps only the runs that are `wanted`. */
  #keep(wanted: (run: Run) => boolean): void {
    const all = this.#runs;
    this.#runs = all.filter(wanted);
    for (const run of all) {
      if (this.#runs.includes(run)) continue;
      run.dropped = true;
      this.#settle(run);
    }
  }

  /** Of a dropped run nobody takes a part any more. */
  #settle(run: Run): void {
    if (!run.dropped || run.takers > 0) return;
    run.dropped = false;
    run.pages.then(
      (pages) => this.#memory.release(pages),
      () => {},
    );
  }

  #startRuns(key: string, tag: RelTag, from: number): void {
    const now = this.#now();
    this.#keep((r) => r.expires > now && !(r.key === key && r.first + RUN_BLOCKS + SKEW_BLOCKS <= from));
    const ahead = this.#runs.filter((r) => r.key === key && r.first + RUN_BLOCKS > from);
    let next = Math.max(from, ...ahead.map((r) => r.first + RUN_BLOCKS));
    for (let i = ahead.length; i < DEPTH; i++, next += RUN_BLOCKS) {
      const run: Run = { key, first: next, pages: this.#fetch(tag, next, RUN_BLOCKS), expires: now + KEEP_MS, takers: 0, dropped: false };
      run.pages.catch(() => {
        this.#keep((r) => r !== run);
      });
      this.#runs.push(run);
    }
    const surplus = this.#runs.slice(0, Math.max(0, this.#runs.length - RUNS_MAX));
    if (surplus.length > 0) this.#keep((r) => !surplus.includes(r));
    if (this.#expiry === undefined) this.#expireLater();
  }

  #expire(): void {
    this.#expiry = undefined;
    const now = this.#now();
    this.#keep((r) => r.expires > now);
    if (this.#runs.length > 0) this.#expireLater();
  }

  #expireLater(): void {
    this.#expiry = setTimeout(() => this.#expire(), KEEP_MS + 10).unref();
  }

  #remember(key: string, end: number): void {
    this.#ends.delete(key);
    this.#ends.set(key, end);
    for (const old of this.#ends.keys()) {
      if (this.#ends.size <= RUNS_MAX) break;
      this.#ends.delete(old);
    }
  }
}
