/** A timeline in service: ingest at the head, reads at any LSN since its start, flushing and the small objects around it.
 *  LSNs, each advanced here only: `lastRecordLsn`, end of the last record all of whose effects are filed and readable;
 *  `diskConsistentLsn` (storage), what survives kill -9. Invariant: diskConsistentLsn <= lastRecordLsn.
 *  How a page is read: page-reads.ts. */
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
import { ARG_STOP, ENTRY_IMAGE, type Entry, OpenLayer, PageReader, SeriesTable, scanValuesInTurns } from '@lakebase/layers';
import { type DecodedRecord, WalDecoder, patchControlFile, rmgrName } from '@lakebase/pg-format';
import { ABSENT, Catalog } from './catalog.ts';
import type { PageserverConfig } from './config.ts';
import { copyDatabase } from './database-copy.ts';
import type { HeatMap, HeatRun } from './heat.ts';
import { Ingest } from './ingest.ts';
import { LsnWaiters } from './lsn-waiters.ts';
import { type CacheBudget, PageCache } from './page-cache.ts';
import { PageReads, pageLsnOf } from './page-reads.ts';
import { pageRedo } from './page-redo.ts';
import { SavedHeat } from './saved-heat.ts';
import { SLICE_MS, turns } from './slice.ts';
import type { TimelineStorage } from './storage.ts';

/** Ingest waits when more frozen layers than this are not on disk yet. */
const FROZEN_LAYERS_MAX = 1;
/** Records between two looks at the clock, or bytes of them: those with page images take longer. */
const RECORDS_PER_LOOK = 64;
const BYTES_PER_LOOK = 65_536;
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
  #flushing: Promise<void> | undefined;
  readonly #heat: SavedHeat;
  readonly #reads: PageReads;
  /** Of ingest, over calls: a caller that has many small pieces at hand may not turn the event loop between them. */
  #lastTurn = 0;
  /** Aborted at close: ends retries. */
  readonly #stop = new AbortController();

  /** Fetches what the catalog is made of, if need be. */
  static async open(storage: TimelineStorage, config: PageserverConfig, budget: CacheBudget, log: Logger): Promise<Timeline> {
    const lsn = storage.diskConsistentLsn;
    const turn = turns();
    const values = await scanValuesInTurns(storage.set, lsn, turn);
    return new Timeline(storage, await Catalog.loadInTurns(values, new SeriesTable(), lsn, turn), config, budget, log);
  }

  private constructor(storage: TimelineStorage, catalog: Catalog, config: PageserverConfig, budget: CacheBudget, log: Logger) {
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
    this.#series = catalog.series;
    this.catalog = catalog;
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
    this.#heat = new SavedHeat(storage, this.#series, this.catalog, log);
    this.#reads = new PageReads({
      view: this,
      reader: this.reader,
      series: this.#series,
      catalog: this.catalog,
      cache: this.cache,
      heat: this.heat,
      frames: storage.files.cache,
    });
    storage.onWritten = (layer) => this.#reads.retire(layer);
    this.#armIdleFlush();
  }

  /** What has been read lately. */
  get heat(): HeatMap {
    return this.#heat.map;
  }
  /** What was saved of it, relations that are gone left out. */
  loadHeat(): HeatRun[] {
    return this.#heat.load();
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
    for (let n = 1, bytes = 0; ; n++) {
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
      bytes += record.length;
      if (n % RECORDS_PER_LOOK !== 0 && bytes < BYTES_PER_LOOK) continue;
      bytes = 0;
      if (performance.now() - this.#lastTurn > SLICE_MS) {
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
        const page = await this.#reads.page(series, block, lsn);
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

  /** Waits until everything frozen so far is on disk. */
  async flushed(): Promise<void> {
    while (this.#flushing !== undefined) await this.#flushing;
  }

  /** Makes lastRecordLsn durable in layers. */
  async checkpoint(): Promise<void> {
    if (this.storage.diskConsistentLsn < this.#lastRecordLsn || !this.#open.empty) this.freeze();
    await this.flushed();
    // Goes up with what is uploaded now anyway.
    await this.#heat.save();
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
    return this.#reads.relSize(tag, lsn);
  }

  /** Up to `count` pages as of one LSN; fewer when the fork ends before. */
  pages(tag: RelTag, block: number, count: number, lsn: Lsn): Promise<Buffer[]> {
    return this.#reads.pages(tag, block, count, lsn);
  }
  /** {@link pages} in one buffer, after `headBytes` of room. */
  run(tag: RelTag, block: number, count: number, lsn: Lsn, headBytes: number): Promise<Buffer> {
    return this.#reads.run(tag, block, count, lsn, headBytes);
  }

  slruPage(kind: number, page: number, lsn: Lsn): Promise<Buffer> {
    return this.#reads.slruPage(kind, page, lsn);
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

  /** Of all relations at the head. */
  get logicalBytes(): number {
    return this.catalog.totalBlocks * BLCKSZ;
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
      logicalSizeBytes: this.logicalBytes,
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
    this.#heat.close();
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
    this.#ingest.wipe();
    this.cache.wipe();
  }
}
