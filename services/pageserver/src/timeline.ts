/** A timeline in service: ingest at the head, reads at any LSN since its start, flushing and the small objects around it.
 *  LSNs, each advanced here only: `lastRecordLsn`, end of the last record all of whose effects are filed and readable;
 *  `diskConsistentLsn` (storage), what survives kill -9. Invariant: diskConsistentLsn <= lastRecordLsn.
 *  Reads never await between the choice of their LSN's view and the page, so ingest and maintenance may go on beside them. One that needs bytes from
 *  the object store is given up, waits for them, and begins again. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { LakebaseError, type Logger, errorMessage, isCode, sleep } from '@lakebase/base';
import type { PageTimelineStatus } from '@lakebase/api';
import {
  BLCKSZ,
  FORK_FSM,
  FORK_MAIN,
  INVALID_LSN,
  type Lsn,
  MAX_LSN,
  type ProjectUid,
  type RelTag,
  type TimelineId,
  formatLsn,
  relPath,
} from '@lakebase/ids';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  type Entry,
  type Floors,
  KIND_REL_PAGE,
  KIND_SLRU_PAGE,
  OpenLayer,
  PageReader,
  RemoteMiss,
  RemoteRead,
  type SeriesId,
  SeriesTable,
  encodeKey,
  scanValues,
  sealObject,
  withRemote,
} from '@lakebase/layers';
import { type DecodedRecord, WalDecoder, patchControlFile, rmgrName } from '@lakebase/pg-format';
import { ABSENT, Catalog } from './catalog.ts';
import type { PageserverConfig } from './config.ts';
import { copyDatabase } from './database-copy.ts';
import { HEAT_OBJECT_MAGIC, HeatMap, type HeatRun, decodeHeat, encodeHeat } from './heat.ts';
import { readObject } from './bundle.ts';
import { Ingest } from './ingest.ts';
import { LsnWaiters } from './lsn-waiters.ts';
import { type CacheBudget, PageCache } from './page-cache.ts';
import { pageRedo } from './page-redo.ts';
import type { TimelineStorage } from './storage.ts';

/** Ingest waits when more frozen layers than this are not on disk yet. */
const FROZEN_LAYERS_MAX = 1;
/** Longest stretch of work without a turn of the event loop: what it adds to the reads of every other branch. */
const SLICE_MS = 1;
/** Records between two looks at the clock. */
const RECORDS_PER_LOOK = 64;
/** A page with more changes to apply is read in turns of the event loop. */
const CHANGES_AT_ONCE = 1_024;
/** Runs of blocks that were not read before: so many make a heat map worth saving. */
const HEAT_CHANGES = 16;
const HEAT_MS = 15 * 60_000;
/** Asked for of the layer cache when a layer cannot be written because the disk is full. */
const ROOM_BYTES = 256 << 20;

export class Timeline {
  readonly project: ProjectUid;
  readonly id: TimelineId;
  readonly major: number;
  readonly storage: TimelineStorage;
  readonly catalog: Catalog;
  readonly cache: PageCache;
  readonly reader: PageReader;
  /** What has been read lately. */
  readonly heat = new HeatMap();
  readonly log: Logger;
  readonly #config: PageserverConfig;
  readonly #budget: CacheBudget;
  #openBytesMax: number;
  readonly #series: SeriesTable;
  readonly #ingest: Ingest;
  readonly #waiters = new LsnWaiters();
  #open: OpenLayer;
  #lastRecordLsn: Lsn;
  #prevRecordLsn: Lsn;
  #broken: LakebaseError | undefined;
  #closed = false;
  #idleTimer: NodeJS.Timeout | undefined;
  readonly #heatTimer: NodeJS.Timeout;
  #flushing: Promise<void> | undefined;
  readonly #readsInTurns = new Set<object>();
  #retired: { readonly layer: OpenLayer; readonly after: Set<object> }[] = [];
  /** Of ingest, over calls: a caller that has many small pieces at hand may not turn the event loop between them. */
  #lastTurn = 0;
  /** Aborted at close: ends retries. */
  readonly #stop = new AbortController();

  /** Fetches what the catalog is made of, if need be. */
  static open(storage: TimelineStorage, config: PageserverConfig, budget: CacheBudget, log: Logger): Promise<Timeline> {
    return withRemote(() => new Timeline(storage, config, budget, log));
  }

  /** Throws RemoteMiss: use {@link open}. */
  constructor(storage: TimelineStorage, config: PageserverConfig, budget: CacheBudget, log: Logger) {
    this.storage = storage;
    this.#config = config;
    this.#budget = budget;
    this.#openBytesMax = config.openLayerBytes;
    this.log = log;
    const index = storage.index;
    this.project = index.project as ProjectUid;
    this.id = index.timeline as TimelineId;
    this.major = index.pgVersion;
    this.#lastRecordLsn = storage.diskConsistentLsn;
    this.#prevRecordLsn = index.prevRecordLsn as Lsn;
    this.#series = new SeriesTable();
    this.catalog = Catalog.load(scanValues([], storage.set, this.#lastRecordLsn), this.#series, this.#lastRecordLsn);
    if (this.catalog.checkpoint === undefined || this.catalog.control.length === 0)
      throw new LakebaseError(
        'CORRUPT',
        `timeline ${this.id}: its layers in ${storage.files.directory} hold no checkpoint or control file`,
      );
    this.catalog.control = patchControlFile(this.catalog.control, { systemId: BigInt(index.systemId) });
    this.#open = new OpenLayer(this.#series, this.#lastRecordLsn);
    this.#ingest = new Ingest(this.#open, this.catalog, this.major, config.hotPageRecords);
    this.cache = new PageCache(budget);
    this.reader = new PageReader(this, pageRedo(this.major));
    storage.onWritten = (layer) => this.#retire(layer);
    this.#armIdleFlush();
    this.#heatTimer = setInterval(() => void this.#saveHeat(), HEAT_MS);
    this.#heatTimer.unref();
  }

  // --- ingest ---------------------------------------------------------------------------------------------------------------------

  get lastRecordLsn(): Lsn {
    return this.#lastRecordLsn;
  }
  get prevRecordLsn(): Lsn {
    return this.#prevRecordLsn;
  }
  get broken(): LakebaseError | undefined {
    return this.#broken;
  }
  get recordsIngested(): number {
    return this.#ingest.records;
  }
  get stopSignal(): AbortSignal {
    return this.#stop.signal;
  }

  /** A decoder that continues where ingest stands. */
  newDecoder(): WalDecoder {
    const index = this.storage.index;
    return new WalDecoder({
      startLsn: this.#lastRecordLsn,
      major: this.major,
      systemId: BigInt(index.systemId),
      ...(this.#prevRecordLsn === INVALID_LSN ? {} : { prevLsn: this.#prevRecordLsn }),
    });
  }

  /** Ingests every whole record the decoder has. Yields to reads now and then, and waits when flushing is behind.
   *  `behind`: much more WAL is waiting, so hot pages are left for later unless they are very hot. */
  async ingestFrom(decoder: WalDecoder, behind = false): Promise<void> {
    if (this.#broken !== undefined) throw this.#broken;
    // The caller may have filled a buffer anew since the last call.
    this.#open.forgetSource();
    for (let n = 1; ; n++) {
      const record = decoder.next();
      if (record === undefined) break;
      this.#applyOrBreak(record);
      if (this.#ingest.copies.length > 0) await this.#runCopies(record);
      this.#lastRecordLsn = record.endLsn;
      this.#prevRecordLsn = record.lsn;
      if (this.#open.byteCount >= this.#openBytesMax || this.#open.full) {
        this.freeze();
        while (this.storage.frozen.length > FROZEN_LAYERS_MAX && !this.#closed) await this.#flushing;
        if (this.#closed) throw new LakebaseError('CLOSED', 'the timeline is shutting down');
      }
      if (n % RECORDS_PER_LOOK === 0 && performance.now() - this.#lastTurn > SLICE_MS) {
        this.#waiters.advance(this.#lastRecordLsn);
        await nextTurn();
        this.#lastTurn = performance.now();
      }
    }
    this.#waiters.advance(this.#lastRecordLsn);
    this.#openBytesMax = Math.min(this.#config.openLayerBytes, this.#budget.layers.share(this, this.#open.byteCount));
    if (this.#ingest.veryHot.length > 0) await this.#imageHotPages(this.#ingest.veryHot);
    if (!behind && this.#ingest.hot.length > 0) await this.#imageHotPages(this.#ingest.hot);
    this.#armIdleFlush();
  }

  #applyOrBreak(record: DecodedRecord): void {
    try {
      this.#ingest.apply(record);
    } catch (error) {
      const code = error instanceof LakebaseError && (error.code === 'UNSUPPORTED' || error.code === 'CORRUPT') ? error.code : 'INTERNAL';
      this.breakIngest(
        new LakebaseError(
          code,
          `ingest stopped at record ${formatLsn(record.lsn)} (${rmgrName(record.rmid)}, info 0x${(record.info & 0xf0).toString(16)}): ${errorMessage(error)}`,
          { cause: error },
        ),
      );
      throw this.#broken;
    }
  }

  /** No more WAL is taken until a restart; reads at or below lastRecordLsn go on. The open layer may hold part of a record: it is never flushed. */
  breakIngest(error: LakebaseError): void {
    this.#broken = error;
    this.log.error(
      { err: error.message, lastRecordLsn: formatLsn(this.#lastRecordLsn) },
      'timeline is broken: WAL cannot be ingested further',
    );
    this.#waiters.fail(error);
  }

  /** Puts images of pages with very many pending records into the open layer, so that no read meets them. */
  async #imageHotPages(hot: number[]): Promise<void> {
    let sliceStart = performance.now();
    while (hot.length > 0 && !this.#closed && this.#broken === undefined) {
      const block = hot.pop() as number;
      const series = hot.pop() as number;
      if (this.#open.pending(series, block) < this.#config.hotPageRecords / 2) continue;
      const lsn = this.#lastRecordLsn;
      const layer = this.#open;
      try {
        const page = (await this.#page(series, block, lsn, CHANGES_AT_ONCE)) ?? (await this.#pageInTurns(series, block, lsn));
        // A freeze (idle, or a checkpoint) may have come between.
        if (this.#open === layer) layer.put(series, block, ENTRY_IMAGE, ARG_STOP, lsn, page);
      } catch (error) {
        // Reads of this page will say so too; it is no reason to stop ingest.
        this.log.error({ err: errorMessage(error) }, 'a hot page cannot be materialised');
      }
      if (performance.now() - sliceStart > SLICE_MS) {
        await nextTurn();
        sliceStart = performance.now();
      }
    }
  }

  async #runCopies(record: DecodedRecord): Promise<void> {
    const lsn = record.endLsn;
    const prev = record.lsn;
    // Until the open layer follows the copy's layer onto disk, nothing may be merged between the two.
    await this.flushed();
    for (const copy of this.#ingest.copies.splice(0)) await copyDatabase(this, copy, lsn);
    this.#lastRecordLsn = lsn;
    this.#prevRecordLsn = prev;
    this.freeze();
    await this.flushed();
  }

  // --- flushing -------------------------------------------------------------------------------------------------------------------

  /** Freezes the open layer at the last record and starts writing it. */
  freeze(): void {
    if (this.#broken !== undefined) return;
    this.#ingest.fileCheckpoint(this.#lastRecordLsn);
    const layer = this.#open;
    layer.freeze(this.#lastRecordLsn);
    this.storage.addFrozen(layer, this.#prevRecordLsn);
    this.#open = new OpenLayer(this.#series, this.#lastRecordLsn, layer);
    this.#ingest.layer = this.#open;
    this.#ingest.hot.length = 0;
    this.#ingest.veryHot.length = 0;
    this.#flushing ??= this.#flushUntilDone().finally(() => {
      this.#flushing = undefined;
    });
  }

  async #flushUntilDone(): Promise<void> {
    for (let attempt = 0; this.storage.frozen.length > 0 && !this.#closed; attempt++) {
      try {
        await this.storage.flush();
        attempt = -1;
      } catch (error) {
        if (this.#closed) return;
        this.log.error({ err: errorMessage(error) }, 'cannot write a layer; trying again');
        if (isCode(error, 'RESOURCE_EXHAUSTED')) await this.storage.files.layers?.makeRoom(ROOM_BYTES);
        await sleep(Math.min(10_000, 250 * 2 ** attempt), this.#stop.signal).catch(() => {});
      }
    }
  }

  /** A layer that is on disk gives its memory back when no read that takes turns can still look at an entry of it: all others end before this runs. */
  #retire(layer: OpenLayer): void {
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

  /** Waits until everything frozen so far is on disk. */
  async flushed(): Promise<void> {
    while (this.#flushing !== undefined) await this.#flushing;
  }

  /** Makes lastRecordLsn durable in layers. */
  async checkpoint(): Promise<void> {
    if (this.storage.diskConsistentLsn < this.#lastRecordLsn || !this.#open.empty) this.freeze();
    await this.flushed();
    // Goes up with what is uploaded now anyway.
    await this.#saveHeat();
  }

  // --- heat -----------------------------------------------------------------------------------------------------------------------

  /** Keeps what was read lately for the next attach, when enough has changed to be worth it. */
  async #saveHeat(): Promise<void> {
    const { heat, project, id: timeline } = this;
    if (this.#closed || this.storage.files.layers?.store === undefined || heat.changes < HEAT_CHANGES) return;
    heat.changes = 0;
    const payload = encodeHeat(heat.runs(this.#series));
    try {
      await this.storage.putObject(
        'heat',
        (name, key) => sealObject(HEAT_OBJECT_MAGIC, { project, timeline, name }, payload, key),
        (entry) => ({ heat: entry }),
      );
    } catch (error) {
      this.log.warn({ err: errorMessage(error) }, 'the heat map cannot be saved');
    }
  }

  /** What was saved, relations that are gone left out; it counts as read lately again. */
  loadHeat(): HeatRun[] {
    const entry = this.storage.index.heat;
    if (entry === null || entry === undefined) return [];
    const runs = decodeHeat(readObject(HEAT_OBJECT_MAGIC, this.storage.files, entry)).filter((run) => {
      const id = this.#series.find(run.kind, run.spc, run.db, run.rel, run.fork);
      return id >= 0 && run.kind === KIND_REL_PAGE && run.block < this.#headBlocks(id);
    });
    for (const run of [...runs].reverse()) this.heat.note(this.#series.internSeries(run), run.block);
    this.heat.changes = 0;
    return runs;
  }

  #headBlocks(id: number): number {
    const blocks = this.catalog.blocks(id);
    return blocks === ABSENT ? 0 : blocks;
  }

  #armIdleFlush(): void {
    clearTimeout(this.#idleTimer);
    if (this.#closed) return;
    this.#idleTimer = setTimeout(() => {
      if (!this.#open.empty) this.freeze();
    }, this.#config.idleFlushMs);
    this.#idleTimer.unref();
  }

  // --- reads ----------------------------------------------------------------------------------------------------------------------

  /** KeyView over memory and files, newest first. */
  collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean {
    return this.#open.collect(key, upTo, floor, out) || this.storage.collect(key, upTo, floor, out);
  }

  /** Layers not on disk yet, newest first. */
  memoryLayers(): OpenLayer[] {
    return [this.#open, ...this.storage.frozen.map((f) => f.layer)];
  }

  /** Resolves once everything up to `lsn` is readable. */
  async waitFor(lsn: Lsn, timeoutMs: number = this.#config.waitLsnTimeoutMs): Promise<void> {
    if (lsn <= this.#lastRecordLsn) return;
    if (this.#broken !== undefined) throw this.#broken;
    await this.#waiters.wait(lsn, timeoutMs, () => this.#lastRecordLsn);
  }

  /** The LSN to answer at, given what the caller promises (docs/protocols/page-service.md). */
  async chooseLsn(requestLsn: Lsn, notModifiedSince: Lsn): Promise<Lsn> {
    if (notModifiedSince > requestLsn) throw new LakebaseError('INVALID_ARGUMENT', 'notModifiedSince is above requestLsn');
    await this.waitFor(notModifiedSince);
    const at = Math.min(requestLsn === MAX_LSN ? Number.MAX_SAFE_INTEGER : requestLsn, this.#lastRecordLsn) as Lsn;
    this.checkReadable(at);
    return at;
  }
  checkReadable(lsn: Lsn): void {
    const start = this.storage.index.startLsn as Lsn;
    if (lsn < start)
      throw new LakebaseError('INVALID_ARGUMENT', `LSN ${formatLsn(lsn)} is before the timeline's start ${formatLsn(start)}`);
  }

  /** Blocks of a fork at `lsn` (<= lastRecordLsn); undefined when it does not exist. Synchronous for the head; of the past it may have to be fetched. */
  relSize(tag: RelTag, lsn: Lsn): number | undefined | Promise<number | undefined> {
    const id = this.#series.find(KIND_REL_PAGE, tag.spc, tag.db, tag.rel, tag.fork);
    if (id >= 0 && lsn >= this.catalog.changedLsn(id)) {
      const blocks = this.catalog.blocks(id);
      return blocks === ABSENT ? undefined : blocks;
    }
    return withRemote(() => this.reader.relSize({ kind: KIND_REL_PAGE, ...tag }, lsn));
  }

  /** Up to `count` pages as of one LSN; fewer when the fork ends before. */
  async pages(tag: RelTag, block: number, count: number, lsn: Lsn): Promise<Buffer[]> {
    const size = this.relSize(tag, lsn);
    const blocks = (size instanceof Promise ? await size : size) ?? 0;
    const end = Math.min(block + count, blocks);
    // Nothing there: a caller must not make us remember every relation it can think of.
    if (block >= end) return [];
    const id = this.#series.intern(KIND_REL_PAGE, tag.spc, tag.db, tag.rel, tag.fork);
    const pages: Buffer[] = [];
    let sliceStart = performance.now();
    for (let b = block; b < end; b++) {
      this.heat.note(id, b);
      const page = tag.fork === FORK_FSM ? undefined : this.#page(id, b, lsn, CHANGES_AT_ONCE, end);
      pages.push((page instanceof Promise ? await page : page) ?? (await this.#pageInTurns(id, b, lsn)));
      if (b + 1 < end && performance.now() - sliceStart > SLICE_MS) {
        await nextTurn();
        sliceStart = performance.now();
      }
    }
    return pages;
  }

  /** A page with very many changes, or a free space map page, whose hints may make us redo thousands of heap pages. */
  async #pageInTurns(series: number, block: number, lsn: Lsn): Promise<Buffer> {
    const base = this.cache.get(series, block);
    if (base?.lsn === lsn) return base.page;
    let sliceStart = performance.now();
    const remote = new RemoteRead();
    this.#readsInTurns.add(remote);
    try {
      const page = await this.reader.pageInTurns(
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
      const now = this.cache.get(series, block);
      if (now === base && (base === undefined || base.lsn < lsn)) this.cache.set(series, block, { page, lsn });
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
  #page(series: number, block: number, lsn: Lsn, limit: number, end = block + 1): Buffer | undefined | Promise<Buffer | undefined> {
    let first: RemoteMiss;
    try {
      return this.#pageWithin(series, block, lsn, limit);
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

  /** One page through the cache; undefined when it takes more than `limit` changes. The result is shared: never change it. */
  #pageWithin(series: number, block: number, lsn: Lsn, limit: number): Buffer | undefined {
    const base = this.cache.get(series, block);
    if (base?.lsn === lsn) return base.page;
    const s = this.#series.get(series);
    let floors: Floors | undefined;
    if (s.kind === KIND_REL_PAGE && lsn >= this.catalog.changedLsn(series)) floors = this.catalog.floors(series);
    if (base !== undefined && base.lsn < lsn && this.#unchanged(series, block, base.lsn, lsn, floors)) {
      this.cache.set(series, block, { page: base.page, lsn });
      return base.page;
    }
    const page = this.reader.pageWithin(s, block, lsn, limit, floors, base);
    if (page === undefined) return undefined;
    checkPageLsn(s, block, page, lsn);
    if (base === undefined || base.lsn < lsn) this.cache.set(series, block, { page, lsn });
    return page;
  }

  /** Cheap test that nothing happened to a page in (from, to]. */
  #unchanged(series: number, block: number, from: Lsn, to: Lsn, floors: Floors | undefined): boolean {
    const s = this.#series.get(series);
    if (s.kind === KIND_REL_PAGE && (floors === undefined || this.catalog.changedLsn(series) > from)) return false;
    const found: Entry[] = [];
    this.collect(encodeKey(s, block), to, from, found);
    return found.length === 0;
  }

  // --- pages from outside WAL -----------------------------------------------------------------------------------------------------

  /** Files page images at exactly lastRecordLsn (a clean suspend). */
  fileImages(pages: Iterable<{ tag: RelTag; block: number; bytes: Buffer }>): void {
    if (this.#broken !== undefined) throw this.#broken;
    const lsn = this.#lastRecordLsn;
    for (const p of pages) {
      const id = this.catalog.relId(p.tag);
      const blocks = this.catalog.blocks(id);
      // A map that WAL replay never had a reason to make is welcome; any other unknown fork was dropped or is not ours to keep.
      if (
        blocks === ABSENT &&
        (p.tag.fork !== FORK_FSM || this.catalog.blocks(this.catalog.relId({ ...p.tag, fork: FORK_MAIN })) === ABSENT)
      )
        continue;
      if (p.bytes.length !== BLCKSZ) throw new LakebaseError('INVALID_ARGUMENT', `a page of ${p.bytes.length} bytes`);
      if (pageLsnOf(p.bytes) > lsn)
        throw new LakebaseError(
          'INVALID_ARGUMENT',
          `${relPath(p.tag)} block ${p.block} has a page LSN after ${formatLsn(lsn)}, where WAL ends`,
        );
      if (blocks === ABSENT || p.block >= blocks) this.catalog.extend(id, p.block + 1, lsn, this.#ingest.valuesAt(lsn));
      this.#open.put(id, p.block, ENTRY_IMAGE, ARG_STOP, lsn, p.bytes);
      this.cache.delete(id, p.block);
    }
  }

  // --- life -----------------------------------------------------------------------------------------------------------------------

  status(): PageTimelineStatus {
    const index = this.storage.index;
    return {
      project: this.project,
      timeline: this.id,
      pgVersion: this.major,
      systemId: index.systemId,
      startLsn: formatLsn(index.startLsn as Lsn),
      startPrevRecordLsn: formatLsn(index.startPrevRecordLsn as Lsn),
      lastRecordLsn: formatLsn(this.#lastRecordLsn),
      diskConsistentLsn: formatLsn(this.storage.diskConsistentLsn),
      logicalSizeBytes: this.catalog.totalBlocks * BLCKSZ,
      state: this.#broken === undefined ? 'ACTIVE' : 'BROKEN',
      error: this.#broken?.message ?? null,
      layers: this.storage.set.layers.length,
    };
  }

  /** Ends ingest and waiting reads; writes nothing more (what is not flushed is ingested again at the next start). With `locked` (why) buffers
   *  with content become zeros: nobody may be sending one. */
  async close(locked?: LakebaseError): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#idleTimer);
    clearInterval(this.#heatTimer);
    this.#budget.layers.leave(this);
    const reason = locked ?? new LakebaseError('CLOSED', 'the pageserver is shutting down');
    this.#stop.abort(reason);
    this.#waiters.fail(reason);
    if (locked !== undefined) this.wipe();
    await this.#flushing;
    await this.storage.close(locked !== undefined);
    // What was under way may have filed or cached something meanwhile.
    if (locked !== undefined) this.wipe();
    this.cache.clear();
  }

  wipe(): void {
    for (const layer of this.memoryLayers()) layer.wipe();
    this.cache.wipe();
  }
}

/** pd_lsn, whatever it is. */
const pageLsnOf = (page: Buffer): number => page.readUInt32LE(0) * 0x1_0000_0000 + page.readUInt32LE(4);

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
