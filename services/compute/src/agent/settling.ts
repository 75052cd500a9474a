/** Rounds of settling: changed pages become droppable once storage has them, new ones come into the resident map (docs/protocols/shim-agent.md, Rounds).
 *  The cache worker does what concerns the map; here is when, and what storage and Postgres have to say in between.
 *
 *  Invariants
 *  - the LSN of a round is read from Postgres after its begin, which waited for every write under way; blocks are looked at after storage has ingested it
 *    and pages are fetched at it;
 *  - it is on a quorum under our own term by then: storage that got so far with the WAL of a newer compute has other pages;
 *  - a block is looked at only when its relation reaches that far at this LSN in storage;
 *  - a round that cannot be finished is given up: everything stays as it is;
 *  - a compute whose changed pages are fewer than the clean ones it may have runs none, and one whose pages do not change ends its rounds. */
import { LakebaseError, type Logger, errorMessage, sleep } from '@lakebase/base';
import { BLCKSZ, type Lsn, RELSEG_BLOCKS, type RelTag, formatLsn, parseLsn } from '@lakebase/ids';
import type { StandbyRule } from '@lakebase/wal-quorum';
import type { ResidentEntry, ShimCounters } from '../resident-map.ts';
import type { CacheWorker } from './cache-worker.ts';

const LOOK_MS = 500;
/** After rounds that found little; earlier when what cannot be dropped has grown by GROWTH_BYTES since. */
const PAUSE_MAX_MS = 16_000;
const GROWTH_BYTES = 16 << 20;
const LITTLE_BLOCKS = 512;
const BEGIN_TRIES = 5;
const BEGIN_AGAIN_MS = 40;
/** How long open transactions are waited for; then the pages say themselves which of them need them. */
const OPEN_TRANSACTIONS_MS = 1_000;
const STORED_MS = 60_000;
const POLL_MS = 20;
/** Changes since the last round that make another one worth its while. */
const CHANGED_BLOCKS_MIN = 256;

export interface SettlingOptions {
  readonly counters: () => ShimCounters | undefined;
  readonly worker: Pick<CacheWorker, 'beginRound' | 'openRound' | 'nextEntry' | 'sweep'>;
  /** Of the resident map. */
  readonly entry: (index: number) => ResidentEntry | undefined;
  /** First row of a query, on a connection of our own. */
  readonly row: (sql: string) => Promise<Readonly<Record<string, string>>>;
  /** Whose flush reports a commit waits for. */
  readonly rule: () => StandbyRule;
  readonly ingested: () => Promise<Lsn>;
  /** Blocks of a relation in storage; undefined: it does not exist there. */
  readonly relSize: (tag: RelTag, lsn: Lsn) => Promise<number | undefined>;
  /** From now on every page is fetched at this LSN. */
  readonly raise: (lsn: Lsn) => void;
  readonly log: Logger;
  readonly now?: () => number;
  readonly pause?: (ms: number) => Promise<void>;
}

/** What a round did. `openFrom`: transactions from there on may have kept pages from settling; undefined: none did. */
export interface RoundResult {
  readonly settled: number;
  readonly openFrom: number | undefined;
}

/** On the local disk and not to be dropped: changed and new pages, WAL, temporary files. */
const keptBytes = ({ scratchBytes, cleanBlocks }: ShimCounters): number => Math.max(0, scratchBytes - cleanBlocks * BLCKSZ);

export class Settling {
  readonly #o: SettlingOptions;
  readonly #now: () => number;
  readonly #pause: (ms: number) => Promise<void>;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;
  #failing = false;
  #pauseMs = LOOK_MS;
  #dueAt = 0;
  /** When the last round began, and after it. */
  #writtenBefore = 0;
  #walBefore = 0;
  #keptAfter = 0;
  /** The last round left something that the next one may settle though nothing is changed meanwhile. */
  #unfinished = false;

  constructor(options: SettlingOptions) {
    this.#o = options;
    this.#now = options.now ?? ((): number => performance.now());
    this.#pause = options.pause ?? sleep;
  }

  start(): void {
    this.#timer = setTimeout(() => {
      void this.look().finally(() => {
        if (!this.#stopped) this.start();
      });
    }, LOOK_MS);
    this.#timer.unref();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  /** Whether what cannot be dropped takes more of the disk than clean pages may, and there is something new to settle. A page is changed when it becomes a
   *  written one of the map, or, beyond the map, with its WAL. */
  needed(counters: ShimCounters): boolean {
    const { cleanBudget, blocksWritten, walPosition } = counters;
    if (cleanBudget === 0 || keptBytes(counters) <= cleanBudget * BLCKSZ) return false;
    const changed = Math.max(blocksWritten - this.#writtenBefore, (walPosition - this.#walBefore) / BLCKSZ);
    return this.#unfinished || changed >= CHANGED_BLOCKS_MIN;
  }

  /** A round, when one is needed and it is time. */
  async look(): Promise<void> {
    const counters = this.#o.counters();
    if (counters === undefined || !this.needed(counters)) return;
    const begun = this.#now();
    if (begun < this.#dueAt && keptBytes(counters) < this.#keptAfter + GROWTH_BYTES) return;
    let settled = 0;
    try {
      const result = await this.round();
      settled = result.settled;
      this.#writtenBefore = counters.blocksWritten;
      this.#walBefore = counters.walPosition;
      this.#unfinished = settled >= LITTLE_BLOCKS || result.openFrom !== undefined;
      this.#failing = false;
      this.#o.log.debug({ settled, ms: Math.round(this.#now() - begun) }, 'changed pages settled');
    } catch (error) {
      if (!this.#failing && !this.#stopped)
        this.#o.log.warn({ err: errorMessage(error) }, 'changed pages stay on the local disk for now: the next round tries again');
      this.#failing = true;
    }
    this.#pauseMs = settled < LITTLE_BLOCKS ? Math.min(this.#pauseMs * 2, PAUSE_MAX_MS) : LOOK_MS;
    this.#dueAt = this.#now() + this.#pauseMs;
    this.#keptAfter = keptBytes(this.#o.counters() ?? counters);
  }

  /** One round. */
  async round(): Promise<RoundResult> {
    const { worker, row, raise } = this.#o;
    const round = await this.#begin();
    // Its own commit makes WAL go beyond it, so that it gets to storage whatever else happens. It waits for no quorum: that is looked at below, and
    // without one everything else that this connection is for would wait as well.
    const mark = await row(
      "SELECT set_config('synchronous_commit', 'local', true), pg_current_wal_insert_lsn()::text AS lsn, pg_current_xact_id()::text AS xid",
    );
    const lsn = parseLsn(String(mark['lsn']));
    const openFrom = await this.#openTransactions(transactionId(mark));
    await this.#stored(lsn);
    raise(lsn);
    await worker.openRound(round);
    const blocks = this.#limits(lsn);
    let settled = 0;
    for (let entry = await worker.nextEntry(round); entry !== undefined && !this.#stopped; entry = await worker.nextEntry(round)) {
      const limit = await blocks(entry);
      if (limit > 0) settled += await worker.sweep(round, { entry, limit, lsn, openFrom });
    }
    return { settled, openFrom };
  }

  async #begin(): Promise<number> {
    for (let tries = 1; ; tries++) {
      const round = await this.#o.worker.beginRound();
      if (round !== undefined) return round;
      if (this.#stopped || tries === BEGIN_TRIES)
        throw new LakebaseError('UNAVAILABLE', 'writes take longer than a round may wait for them');
      await this.#pause(BEGIN_AGAIN_MS);
    }
  }

  /** Undefined when every transaction that had begun to write before `own` has ended; else the first that may be open, 32 bits of it. `own` is of now:
   *  the end of a snapshot would not do, since a transaction may be open that is newer than all that have ended. */
  async #openTransactions(own: number): Promise<number | undefined> {
    let oldest = 0;
    const ended = await this.#until(async () => {
      oldest = transactionId(await this.#o.row('SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS xid'));
      return oldest >= own;
    }, OPEN_TRANSACTIONS_MS);
    return ended ? undefined : oldest % 2 ** 32;
  }

  async #stored(lsn: Lsn): Promise<void> {
    const { ingested, row, rule } = this.#o;
    const stored = await this.#until(async () => {
      if ((await ingested()) < lsn) return false;
      const { count, names } = rule();
      const of = names.map((name) => `'${name}'`).join(',');
      const flushed = `application_name IN (${of}) AND flush_lsn >= '${formatLsn(lsn)}'`;
      return Number((await row(`SELECT count(*)::text AS n FROM pg_stat_replication WHERE ${flushed}`))['n']) >= count;
    }, STORED_MS);
    if (!stored) throw new LakebaseError('UNAVAILABLE', 'storage has not got the WAL of the round');
  }

  /** How many blocks of an entry's segment storage has; each relation is asked for once. */
  #limits(lsn: Lsn): (index: number) => Promise<number> {
    const sizes = new Map<string, number>();
    return async (index) => {
      const entry = this.#o.entry(index);
      if (entry === undefined) throw new LakebaseError('INTERNAL', `the resident map has no entry ${index}`);
      const { tag, sourceFork, segment } = entry;
      if (sourceFork !== tag.fork) return 0; // unlogged
      const key = `${tag.spc}/${tag.db}/${tag.rel}/${tag.fork}`;
      const size = sizes.get(key) ?? (await this.#o.relSize(tag, lsn)) ?? 0;
      sizes.set(key, size);
      return Math.min(Math.max(size - segment * RELSEG_BLOCKS, 0), RELSEG_BLOCKS);
    };
  }

  /** False when it is not so in time. */
  async #until(done: () => Promise<boolean>, ms: number): Promise<boolean> {
    const deadline = this.#now() + ms;
    while (!(await done())) {
      if (this.#stopped) throw new LakebaseError('CLOSED', 'the compute is stopping');
      if (this.#now() > deadline) return false;
      await this.#pause(POLL_MS);
    }
    return true;
  }
}

function transactionId(row: Readonly<Record<string, string>>): number {
  const id = Number(row['xid']);
  if (!Number.isSafeInteger(id) || id < 3) throw new LakebaseError('INTERNAL', `'${row['xid']}' is no transaction id`);
  return id;
}
