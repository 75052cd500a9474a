/** Rounds of settling: changed pages become droppable once storage has them (docs/protocols/shim-agent.md, Rounds). The cache worker does what concerns
 *  the resident map; here is when, and what storage and Postgres have to say in between.
 *
 *  Invariants
 *  - the LSN of a round is read from Postgres after the round is quiet, and sweeping begins after storage has ingested it and pages are fetched at it;
 *  - a round that cannot be finished is given up: everything stays as it is;
 *  - a compute whose changed pages are fewer than the clean ones it may have runs none. */
import { LakebaseError, type Logger, errorMessage, sleep } from '@lakebase/base';
import { BLCKSZ, type Lsn, parseLsn } from '@lakebase/ids';
import type { ShimCounters } from '../resident-map.ts';
import type { CacheWorker } from './cache-worker.ts';

const LOOK_MS = 500;
/** After a round that found little. */
const PAUSE_MAX_MS = 16_000;
const LITTLE_BLOCKS = 512;
const QUIET_MS = 10_000;
/** How long open transactions are waited for; then the pages say themselves which of them need them. */
const OPEN_TRANSACTIONS_MS = 1_000;
const INGEST_MS = 60_000;
const POLL_MS = 20;
/** Changed blocks since the last round that make another one worth its while. */
const CHANGED_BLOCKS_MIN = 256;

export interface SettlingOptions {
  readonly counters: () => ShimCounters | undefined;
  readonly worker: Pick<CacheWorker, 'beginRound' | 'isQuiet' | 'openRound' | 'sweep'>;
  /** First row of a query, on a connection of our own. */
  readonly row: (sql: string) => Promise<Readonly<Record<string, string>>>;
  readonly ingested: () => Promise<Lsn>;
  /** From now on every page is fetched at this LSN. */
  readonly raise: (lsn: Lsn) => void;
  readonly log: Logger;
}

export class Settling {
  readonly #o: SettlingOptions;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;
  #pauseMs = LOOK_MS;
  #writtenBefore = 0;
  #failing = false;

  constructor(options: SettlingOptions) {
    this.#o = options;
  }

  start(): void {
    this.#next(LOOK_MS);
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  /** Whether changed pages take more of the disk than clean ones may. */
  needed(counters: ShimCounters): boolean {
    const { scratchBytes, cleanBlocks, cleanBudget, blocksWritten } = counters;
    if (cleanBudget === 0 || blocksWritten - this.#writtenBefore < CHANGED_BLOCKS_MIN) return false;
    return scratchBytes - cleanBlocks * BLCKSZ > cleanBudget * BLCKSZ;
  }

  /** One round; how many blocks became clean. */
  async round(): Promise<number> {
    const { worker } = this.#o;
    const round = await worker.beginRound();
    if (round === undefined) throw new LakebaseError('UNAVAILABLE', 'a write that began two rounds ago is not over');
    await this.#until(() => worker.isQuiet(round), QUIET_MS, 'a write takes longer than it may');
    const openFrom = await this.#openTransactions();
    // Its own commit makes WAL go beyond it, so that it gets to storage whatever else happens.
    const row = await this.#o.row('SELECT pg_current_wal_insert_lsn()::text AS lsn, pg_current_xact_id()::text AS xid');
    const lsn = parseLsn(String(row['lsn']));
    await this.#until(async () => (await this.#o.ingested()) >= lsn, INGEST_MS, 'storage has not ingested the WAL of the round');
    if (this.#stopped) return 0;
    this.#o.raise(lsn);
    await worker.openRound(round);
    let settled = 0;
    for (;;) {
      const swept = await worker.sweep(round, lsn, openFrom);
      settled += swept.settled;
      if (!swept.more || this.#stopped) return settled;
    }
  }

  /** Undefined when every transaction that had begun to write has ended; else the first that may be open, 32 bits of it. */
  async #openTransactions(): Promise<number | undefined> {
    // Not the end of a snapshot: a transaction may be open that is newer than all that have ended.
    const now = Number((await this.#o.row('SELECT pg_current_xact_id()::text AS xid'))['xid']);
    const deadline = performance.now() + OPEN_TRANSACTIONS_MS;
    for (;;) {
      const oldest = Number((await this.#o.row('SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS xid'))['xid']);
      if (!Number.isSafeInteger(now) || !Number.isSafeInteger(oldest)) throw new LakebaseError('INTERNAL', 'no transaction ids');
      if (oldest >= now) return undefined;
      if (performance.now() > deadline) return oldest % 2 ** 32;
      await sleep(POLL_MS);
    }
  }

  async #until(done: () => Promise<boolean>, ms: number, otherwise: string): Promise<void> {
    const deadline = performance.now() + ms;
    while (!(await done())) {
      if (this.#stopped || performance.now() > deadline) throw new LakebaseError('UNAVAILABLE', otherwise);
      await sleep(POLL_MS);
    }
  }

  async #look(): Promise<void> {
    const counters = this.#o.counters();
    if (counters === undefined || !this.needed(counters)) return;
    const begun = performance.now();
    try {
      const settled = await this.round();
      this.#writtenBefore = counters.blocksWritten;
      this.#pauseMs = settled < LITTLE_BLOCKS ? Math.min(this.#pauseMs * 2, PAUSE_MAX_MS) : LOOK_MS;
      this.#failing = false;
      this.#o.log.debug({ settled, ms: Math.round(performance.now() - begun) }, 'changed pages settled');
    } catch (error) {
      this.#pauseMs = Math.min(this.#pauseMs * 2, PAUSE_MAX_MS);
      if (!this.#failing && !this.#stopped)
        this.#o.log.warn({ err: errorMessage(error) }, 'changed pages stay on the local disk for now: the next round tries again');
      this.#failing = true;
    }
  }

  #next(ms: number): void {
    this.#timer = setTimeout(() => {
      void this.#look().finally(() => {
        if (!this.#stopped) this.#next(this.#pauseMs);
      });
    }, ms);
    this.#timer.unref();
  }
}
