/** Reads of a timeline's relations and SLRU pages at any LSN it can answer for.
 *  Invariant: a read never awaits between the choice of its LSN's view and the page, so ingest and maintenance may go on beside it. One that needs
 *  bytes from the object store is given up, waits for them, and begins again; one that takes turns of the event loop keeps the open layers it may
 *  look at from being recycled. A page of the cache is shared: nobody changes it; runs are copies. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { LakebaseError } from '@lakebase/base';
import { BLCKSZ, FORK_FSM, type Lsn, type RelTag, formatLsn, relPath } from '@lakebase/ids';
import {
  type Entry,
  type Floors,
  type FrameCache,
  KIND_REL_PAGE,
  KIND_SLRU_PAGE,
  type KeyView,
  type OpenLayer,
  type PageReader,
  RemoteMiss,
  RemoteRead,
  type SeriesId,
  type SeriesTable,
  encodeKey,
  withRemote,
} from '@lakebase/layers';
import { ABSENT, type Catalog } from './catalog.ts';
import type { HeatMap } from './heat.ts';
import type { PageCache } from './page-cache.ts';
import { runMemory } from './run-memory.ts';
import { SLICE_MS } from './slice.ts';

/** A page with more changes to apply is read in turns of the event loop. */
const CHANGES_AT_ONCE = 1_024;
/** Of a longer run only pages that took much redo are kept: who reads so much reads on, and has the pages now. */
const KEEP_BLOCKS = 16;
const KEEP_CHANGES = 16;

/** Where a page is wanted, and whether it is kept even when it is had again easily. */
interface Target {
  readonly page: Buffer;
  readonly keep: boolean;
}

export interface PageReadsOptions {
  readonly view: KeyView;
  readonly reader: PageReader;
  readonly series: SeriesTable;
  readonly catalog: Catalog;
  readonly cache: PageCache;
  readonly heat: HeatMap;
  readonly frames: FrameCache;
}

export class PageReads {
  readonly #view: KeyView;
  readonly #reader: PageReader;
  readonly #series: SeriesTable;
  readonly #catalog: Catalog;
  readonly #cache: PageCache;
  readonly #heat: HeatMap;
  readonly #frames: FrameCache;
  readonly #readsInTurns = new Set<object>();
  #retired: { readonly layer: OpenLayer; readonly after: Set<object> }[] = [];

  constructor(options: PageReadsOptions) {
    this.#view = options.view;
    this.#reader = options.reader;
    this.#series = options.series;
    this.#catalog = options.catalog;
    this.#cache = options.cache;
    this.#heat = options.heat;
    this.#frames = options.frames;
  }

  /** Blocks of a fork at `lsn` (<= lastRecordLsn); undefined when it does not exist. Synchronous for the head; of the past it may have to be fetched. */
  relSize(tag: RelTag, lsn: Lsn): number | undefined | Promise<number | undefined> {
    const id = this.#series.find(KIND_REL_PAGE, tag.spc, tag.db, tag.rel, tag.fork);
    if (id >= 0 && lsn >= this.#catalog.changedLsn(id)) {
      const blocks = this.#catalog.blocks(id);
      return blocks === ABSENT ? undefined : blocks;
    }
    return withRemote(() => this.#reader.relSize({ kind: KIND_REL_PAGE, ...tag }, lsn));
  }

  /** Up to `count` pages as of one LSN; fewer when the fork ends before. */
  async pages(tag: RelTag, block: number, count: number, lsn: Lsn): Promise<Buffer[]> {
    const run = await this.run(tag, block, count, lsn);
    return Array.from({ length: run.length / BLCKSZ }, (_, i) => run.subarray(i * BLCKSZ, (i + 1) * BLCKSZ));
  }

  /** {@link pages} one after the other in one buffer of {@link runMemory}, after `headBytes` of room. */
  async run(tag: RelTag, block: number, count: number, lsn: Lsn, headBytes = 0): Promise<Buffer> {
    const size = this.relSize(tag, lsn);
    const blocks = (size instanceof Promise ? await size : size) ?? 0;
    const end = Math.min(block + count, blocks);
    // Nothing there: a caller must not make us remember every relation it can think of.
    if (block >= end) return Buffer.alloc(headBytes);
    const id = this.#series.intern(KIND_REL_PAGE, tag.spc, tag.db, tag.rel, tag.fork);
    const run = runMemory.take(headBytes + (end - block) * BLCKSZ);
    let sliceStart = performance.now();
    for (let b = block, at = headBytes; b < end; b++, at += BLCKSZ) {
      this.#heat.note(id, b);
      const into = run.subarray(at, at + BLCKSZ);
      const page =
        tag.fork === FORK_FSM ? undefined : this.#page(id, b, lsn, CHANGES_AT_ONCE, end, { page: into, keep: count <= KEEP_BLOCKS });
      const got = (page instanceof Promise ? await page : page) ?? (await this.#pageInTurns(id, b, lsn));
      if (got !== into) got.copy(into);
      if (b + 1 < end && performance.now() - sliceStart > SLICE_MS) {
        await nextTurn();
        sliceStart = performance.now();
      }
    }
    return run;
  }

  /** Of a series' id; in turns of the event loop when it takes long. */
  async page(series: number, block: number, lsn: Lsn): Promise<Buffer> {
    return (await this.#page(series, block, lsn, CHANGES_AT_ONCE)) ?? (await this.#pageInTurns(series, block, lsn));
  }

  /** A page with very many changes, or a free space map page, whose hints may make us redo thousands of heap pages. */
  async #pageInTurns(series: number, block: number, lsn: Lsn): Promise<Buffer> {
    const base = this.#cache.get(series, block);
    if (base?.lsn === lsn) return base.page;
    let sliceStart = performance.now();
    const remote = new RemoteRead();
    this.#readsInTurns.add(remote);
    try {
      const page = await this.#reader.pageInTurns(
        this.#series.get(series),
        block,
        lsn,
        (miss) => {
          if (miss !== undefined) return remote.fetch(miss);
          remote.done();
          if (performance.now() - sliceStart < SLICE_MS) return undefined;
          return nextTurn().then(() => {
            sliceStart = performance.now();
          });
        },
        base,
      );
      checkPageLsn(this.#series.get(series), block, page, lsn);
      const now = this.#cache.get(series, block);
      if (now === base && (base === undefined || base.lsn < lsn)) this.#cache.set(series, block, { page, lsn });
      return page;
    } finally {
      remote.done();
      this.#readEnded(remote);
    }
  }

  slruPage(kind: number, page: number, lsn: Lsn): Promise<Buffer> {
    const series = this.#series.intern(KIND_SLRU_PAGE, 0, 0, kind, 0);
    return withRemote(() => this.#pageWithin(series, page, lsn, Number.POSITIVE_INFINITY) as Buffer);
  }

  /** {@link #pageWithin}, at once when all it needs is local. What it misses is fetched together with what the blocks up to `end` miss. */
  #page(
    series: number,
    block: number,
    lsn: Lsn,
    limit: number,
    end = block + 1,
    into?: Target,
  ): Buffer | undefined | Promise<Buffer | undefined> {
    let first: RemoteMiss;
    try {
      return this.#pageWithin(series, block, lsn, limit, into);
    } catch (error) {
      if (!(error instanceof RemoteMiss)) throw error;
      first = error;
    }
    const began = performance.now();
    for (let b = block + 1; b < end && performance.now() - began < SLICE_MS; b++) {
      try {
        this.#pageWithin(series, b, lsn, limit);
      } catch (error) {
        // What else fails will fail when its turn comes.
        if (error instanceof RemoteMiss) first.merge(error);
      }
    }
    return this.#pageAfter(first, series, block, lsn, limit);
  }

  async #pageAfter(first: RemoteMiss, series: number, block: number, lsn: Lsn, limit: number): Promise<Buffer | undefined> {
    const remote = new RemoteRead();
    try {
      await remote.fetch(first);
      return await withRemote(() => this.#pageWithin(series, block, lsn, limit));
    } finally {
      remote.done();
    }
  }

  /** One page through the cache; undefined when it takes more than `limit` changes. The result may be shared: never change it. With `into` it may
   *  be there or, from the cache, elsewhere. */
  #pageWithin(series: number, block: number, lsn: Lsn, limit: number, into?: Target): Buffer | undefined {
    const base = this.#cache.get(series, block);
    if (base?.lsn === lsn) return base.page;
    const s = this.#series.get(series);
    let floors: Floors | undefined;
    if (s.kind === KIND_REL_PAGE && lsn >= this.#catalog.changedLsn(series)) floors = this.#catalog.floors(series);
    if (base !== undefined && base.lsn < lsn && this.#unchanged(series, block, base.lsn, lsn, floors)) {
      this.#cache.set(series, block, { page: base.page, lsn });
      return base.page;
    }
    const before = this.#reader.applied;
    const page =
      into === undefined
        ? this.#reader.pageWithin(s, block, lsn, limit, floors, base)
        : this.#pass(s, block, lsn, limit, floors, base, into.page);
    if (page === undefined) return undefined;
    checkPageLsn(s, block, page, lsn);
    if (base !== undefined && base.lsn >= lsn) return page;
    if (into === undefined) this.#cache.set(series, block, { page, lsn });
    else if (into.keep || this.#reader.applied - before >= KEEP_CHANGES) this.#cache.set(series, block, { page: Buffer.from(page), lsn });
    return page;
  }

  #pass(...page: Parameters<PageReader['pageWithin']>): Buffer | undefined {
    this.#frames.startPassing();
    try {
      return this.#reader.pageWithin(...page);
    } finally {
      this.#frames.endPassing();
    }
  }

  /** Cheap test that nothing happened to a page in (from, to]. */
  #unchanged(series: number, block: number, from: Lsn, to: Lsn, floors: Floors | undefined): boolean {
    const s = this.#series.get(series);
    if (s.kind === KIND_REL_PAGE && (floors === undefined || this.#catalog.changedLsn(series) > from)) return false;
    const found: Entry[] = [];
    this.#view.collect(encodeKey(s, block), to, from, found);
    return found.length === 0;
  }

  /** A layer that is on disk gives its memory back when no read that takes turns can still look at an entry of it: all others end before this runs. */
  retire(layer: OpenLayer): void {
    if (this.#readsInTurns.size === 0) layer.recycle();
    else this.#retired.push({ layer, after: new Set(this.#readsInTurns) });
  }
  #readEnded(read: object): void {
    this.#readsInTurns.delete(read);
    this.#retired = this.#retired.filter(({ layer, after }) => {
      after.delete(read);
      if (after.size === 0) layer.recycle();
      return after.size > 0;
    });
  }
}

/** pd_lsn, whatever it is. */
export const pageLsnOf = (page: Buffer): number => page.readUInt32LE(0) * 0x1_0000_0000 + page.readUInt32LE(4);

/** A page cannot have been changed after the LSN it is read at: such a page is reported, never served or kept. */
function checkPageLsn(s: SeriesId, block: number, page: Buffer, lsn: Lsn): void {
  if (s.kind !== KIND_REL_PAGE || pageLsnOf(page) <= lsn) return;
  const high = page.readUInt32LE(0).toString(16).toUpperCase();
  const low = page.readUInt32LE(4).toString(16).toUpperCase();
  throw new LakebaseError(
    'CORRUPT',
    `${relPath(s as RelTag)} block ${block} read as of ${formatLsn(lsn)} has the page LSN ${high}/${low}, which is later; look at it with lakebase inspect page`,
  );
}
