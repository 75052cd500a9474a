/** The local disk of a compute as the agent sees it: the header of the resident map, the cache worker, and the hot set (docs/protocols/shim-agent.md).
 *  Invariants: everything here is a convenience, so nothing here fails a compute; after {@link LocalDisk.stop} nothing touches the data directory. */
import type { BundleFile, ComputeDisk } from '@lakebase/api';
import { type Logger, errorMessage } from '@lakebase/base';
import { BLCKSZ } from '@lakebase/ids';
import { ResidentMap, ResidentMapFile, type ShimCounters } from '../resident-map.ts';
import { CacheWorker, type CacheWorkerOptions } from './cache-worker.ts';
import { HotPrefetch, batchesOf } from './hot-prefetch.ts';
import { HOT_SET_FILE, type HotRun, collectHotSet, decodeHotSet, encodeHotSet } from './hot-set.ts';
import { type PageRelay, type RelayEntry, relayEntry } from './page-relay.ts';
import { Settling, type SettlingOptions } from './settling.ts';

/** The hot set is also kept while Postgres runs, for a start after a crash. */
const KEEP_HOT_MS = 5 * 60_000;

export interface LocalDiskOptions {
  readonly pgdata: string;
  /** Written already. */
  readonly mapPath: string;
  /** Of the start bundle: the last hot set may be among them. */
  readonly files: readonly BundleFile[];
  readonly log: Logger;
}

export interface LocalDiskStart extends Omit<CacheWorkerOptions, 'log'> {
  /** Where pages come from; null: the hot set is not fetched. */
  readonly prefetchFrom: Pick<PageRelay, 'fetch' | 'busy' | 'memory'> | null;
  /** Gets the hot set from time to time. */
  readonly keep: (file: BundleFile) => void;
  /** What rounds of settling ask; null: changed pages stay, as on a compute that writes no WAL. */
  readonly settleWith: Pick<SettlingOptions, 'row' | 'rule' | 'ingested' | 'raise' | 'relSize'> | null;
}

export class LocalDisk {
  readonly file: ResidentMapFile;
  readonly #o: LocalDiskOptions;
  readonly #previous: readonly HotRun[];
  #worker: CacheWorker | undefined;
  #prefetch: HotPrefetch | undefined;
  #settling: Settling | undefined;
  #timer: NodeJS.Timeout | undefined;
  #keptAt = 0;
  #stopped = false;

  constructor(options: LocalDiskOptions) {
    this.#o = options;
    this.file = new ResidentMapFile(options.mapPath);
    this.#previous = this.#decode(options.files.find((f) => f.path === HOT_SET_FILE));
  }

  /** Once Postgres runs. */
  start(options: LocalDiskStart): void {
    if (this.#stopped) return;
    const { log } = this.#o;
    const worker = new CacheWorker({ ...options, log });
    this.#worker = worker;
    worker.start();
    if (options.settleWith !== null) this.#settle(worker, options.settleWith);
    this.#timer = setInterval(() => this.#keep(options.keep), KEEP_HOT_MS);
    this.#timer.unref();
    const from = options.prefetchFrom;
    if (from === null || this.#previous.length === 0) return;
    const batches = batchesOf(this.#previous, ResidentMap.open(this.#o.mapPath));
    this.#prefetch = new HotPrefetch({
      pages: (batch) => from.fetch(batch),
      busy: () => from.busy,
      memory: from.memory,
      batches,
      worker,
      log,
    });
    void this.#prefetch.run();
  }

  /** Pages of the hot set that are here already, retained for the caller. */
  take(entry: number, block: number, count: number): Promise<Buffer> | undefined {
    return this.#prefetch?.take(entry, block, count);
  }

  /** An entry that came to the map since the start. */
  added(index: number): RelayEntry | undefined {
    const entry = this.file.entry(index);
    return entry === undefined ? undefined : relayEntry(entry);
  }

  counters(): ShimCounters | undefined {
    return this.#stopped ? undefined : this.file.counters();
  }

  status(): ComputeDisk | undefined {
    const c = this.counters();
    if (c === undefined) return undefined;
    return {
      scratchBytes: c.scratchBytes,
      cleanBytes: c.cleanBlocks * BLCKSZ,
      cleanBudgetBytes: c.cleanBudget === 0 ? null : c.cleanBudget * BLCKSZ,
      droppedBytes: c.blocksEvicted * BLCKSZ,
      prefetchedBytes: c.blocksPrefetched * BLCKSZ,
      prefetch: this.#prefetch?.done ?? null,
      roomsMade: c.roomsMade,
      roomsDenied: c.roomsDenied,
      rounds: c.rounds,
      settledBytes: c.blocksSettled * BLCKSZ,
      adoptedBytes: c.blocksAdopted * BLCKSZ,
    };
  }

  /** What the next compute fetches ahead; undefined when there is nothing to say. */
  hotSet(): BundleFile | undefined {
    try {
      const runs = collectHotSet(this.#o.pgdata, ResidentMap.open(this.#o.mapPath), this.#previous);
      return runs.length === 0 ? undefined : { path: HOT_SET_FILE, bytes: encodeHotSet(runs) };
    } catch (error) {
      this.#o.log.warn({ err: errorMessage(error) }, 'the hot set is not kept: the next start begins cold');
      return undefined;
    }
  }

  /** Before Postgres is stopped: no more work in the background. */
  quiet(): void {
    clearInterval(this.#timer);
    this.#prefetch?.stop();
    this.#settling?.stop();
    this.#worker?.stop();
  }

  stop(): void {
    if (this.#stopped) return;
    this.quiet();
    this.#worker?.kill();
    this.#stopped = true;
    this.file[Symbol.dispose]();
  }

  #settle(worker: CacheWorker, { raise, ...storage }: NonNullable<LocalDiskStart['settleWith']>): void {
    this.#settling = new Settling({
      ...storage,
      counters: () => this.counters(),
      entry: (index) => this.file.entry(index),
      worker,
      // In one step: nobody may ask in between.
      raise: (lsn) => {
        raise(lsn);
        this.#prefetch?.forget();
      },
      log: this.#o.log,
    });
    this.#settling.start();
  }

  #keep(keep: (file: BundleFile) => void): void {
    const { blocksFetched, blocksWritten } = this.file.counters();
    if (blocksFetched + blocksWritten === this.#keptAt) return;
    this.#keptAt = blocksFetched + blocksWritten;
    const file = this.hotSet();
    if (file !== undefined) keep(file);
  }

  #decode(file: BundleFile | undefined): HotRun[] {
    if (file === undefined) return [];
    try {
      return decodeHotSet(file.bytes);
    } catch (error) {
      this.#o.log.warn({ err: errorMessage(error) }, 'the hot set of the last compute cannot be read; this one starts cold');
      return [];
    }
  }
}
