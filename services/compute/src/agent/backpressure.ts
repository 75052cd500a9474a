/** Back-pressure of the writer: how long every page of WAL has to take on the local disk, from how far storage is behind (docs/flows/backpressure.md).
 *  The shim does the waiting; this file decides, a few times a second.
 *
 *  Invariants
 *  - nothing is slowed below the soft bound of lag (a quarter of the hard one) and without pressure of the safekeepers' disks;
 *  - above it the allowed rate falls steadily; in the middle it is what storage takes in, at the hard bound a quarter of that, so the lag turns round;
 *  - a writer that begins is held at storage's own rate, not below it: what is below only makes commits wait longer;
 *  - it never falls below {@link RATE_MIN}: storage that is gone slows a writer down, it does not stop it;
 *  - an idle compute asks nobody anything. */
import { type Logger, errorMessage } from '@lakebase/base';
import { BLCKSZ, type Lsn } from '@lakebase/ids';

export const RATE_MIN = 1 << 20;
const RATE_UNLIMITED = 2 ** 30;
/** The soft bound, as a part of the hard one. */
const SOFT = 1 / 4;
/** Between the bounds: where the allowed rate is storage's own. */
const BALANCE = 0.5;
/** How much less than storage's rate it is from there on, for each part of the way between the bounds; at the hard one SHARE_MIN is reached. */
const SLOPE = 1.5;
const SHARE_MIN = 0.25;
/** Pressure of a majority's disks where slowing begins, and where the least rate is reached. */
const PRESSURE_SOFT = 0.5;
const PRESSURE_HARD = 0.95;
const PRESSURE_RATE_MAX = 256 << 20;
/** Memory of the rate at which storage takes WAL in. */
const RATE_MEMORY_MS = 2_000;
const RATE_AT_FIRST = 64 << 20;
const QUIET_TICK_MS = 500;
const BUSY_TICK_MS = 100;

export interface BackpressureOptions {
  /** End of WAL written locally; 0 while none is. */
  readonly walPosition: () => number;
  readonly setWalDelay: (nsPerPage: number) => void;
  /** How far the pageserver has ingested. */
  readonly ingested: () => Promise<Lsn>;
  readonly startLsn: Lsn;
  readonly maxLagBytes: number;
  /** How many of the safekeepers make a quorum. */
  readonly quorum: number;
  readonly log: Logger;
  readonly now?: () => number;
}

export interface BackpressureState {
  /** WAL that the pageserver is not known to have ingested. */
  readonly ingestLagBytes: number;
  /** WAL that is not known to be in the object store; null: no safekeeper says. */
  readonly offloadLagBytes: number | null;
  /** 0…1, of the disks of a majority. */
  readonly pressure: number;
  /** Null: not slowed. */
  readonly allowedBytesPerSecond: number | null;
}

export class Backpressure {
  readonly #o: BackpressureOptions;
  readonly #now: () => number;
  readonly #pressures = new Map<string, number>();
  readonly #offloaded = new Map<string, number>();
  #ingested: number;
  #asked: number;
  #rate = RATE_AT_FIRST;
  #busySince = 0;
  #asking = false;
  #allowed = RATE_UNLIMITED;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;
  #failing = false;

  constructor(options: BackpressureOptions) {
    this.#o = options;
    this.#now = options.now ?? ((): number => performance.now());
    this.#ingested = options.startLsn;
    this.#asked = this.#now();
  }

  start(): void {
    this.#next(QUIET_TICK_MS);
  }

  /** From now on nothing is slowed: the shutdown checkpoint must not wait. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#allow(RATE_UNLIMITED);
  }

  /** What a safekeeper says of itself. */
  member(id: string, status: { readonly pressure?: number; readonly offloadedLsn?: number }): void {
    if (status.pressure !== undefined) this.#pressures.set(id, status.pressure);
    if (status.offloadedLsn !== undefined) this.#offloaded.set(id, status.offloadedLsn);
  }

  get state(): BackpressureState {
    const end = this.#end;
    const offloaded = Math.max(0, ...this.#offloaded.values());
    return {
      ingestLagBytes: Math.max(0, end - this.#ingested),
      offloadLagBytes: offloaded === 0 ? null : Math.max(0, end - offloaded),
      pressure: this.#pressure,
      allowedBytesPerSecond: this.#allowed >= RATE_UNLIMITED ? null : Math.round(this.#allowed),
    };
  }

  /** One look; public for tests. */
  tick(): void {
    const lag = this.#end - this.#ingested;
    const soft = this.#o.maxLagBytes * SOFT;
    // Half the soft bound: what is known is old by up to a tick and a request.
    if (lag > soft / 2 && !this.#asking) this.#ask();
    this.#allow(Math.min(this.#byLag((lag - soft) / (this.#o.maxLagBytes - soft)), this.#byPressure(this.#pressure)));
  }

  get #end(): number {
    return Math.max(this.#o.walPosition(), this.#o.startLsn);
  }

  /** The one that decides whether a quorum has room: a single full member only drops out. */
  get #pressure(): number {
    const ascending = [...this.#pressures.values()].sort((a, b) => a - b);
    return ascending[this.#o.quorum - 1] ?? 0;
  }

  #byLag(between: number): number {
    if (between <= 0) return RATE_UNLIMITED;
    // Below the balance steep, so that a writer that begins meets storage's own rate before it gets there; above it gentle, because whatever is
    // below storage's rate only makes commits wait longer.
    const share = between < BALANCE ? (BALANCE / between) ** 2 : Math.max(SHARE_MIN, 1 - SLOPE * (between - BALANCE));
    return Math.max(RATE_MIN, this.#rate * share);
  }

  #byPressure(pressure: number): number {
    const between = (pressure - PRESSURE_SOFT) / (PRESSURE_HARD - PRESSURE_SOFT);
    if (between <= 0) return RATE_UNLIMITED;
    return Math.max(RATE_MIN, PRESSURE_RATE_MAX * (1 - Math.min(between, 1)) ** 2);
  }

  #allow(rate: number): void {
    const slowed = rate < RATE_UNLIMITED;
    if (!slowed && this.#allowed >= RATE_UNLIMITED) return;
    if (slowed && this.#allowed >= RATE_UNLIMITED)
      this.#o.log.info({ ...this.state, bytesPerSecond: Math.round(rate) }, 'storage is behind: WAL is slowed');
    if (!slowed) this.#o.log.info({}, 'storage has caught up: WAL is not slowed');
    this.#allowed = rate;
    this.#o.setWalDelay(slowed ? Math.round((BLCKSZ / rate) * 1e9) : 0);
  }

  #ask(): void {
    this.#asking = true;
    this.#o
      .ingested()
      .then(
        (lsn) => {
          this.#learn(lsn);
          this.#failing = false;
        },
        (error: unknown) => {
          if (!this.#failing) this.#o.log.warn({ err: errorMessage(error) }, 'the pageserver does not say how far it is');
          this.#failing = true;
          this.#learn(this.#ingested as Lsn);
        },
      )
      .finally(() => {
        this.#asking = false;
      });
  }

  #learn(lsn: Lsn): void {
    const now = this.#now();
    const ms = now - this.#asked;
    // Only while it has more to do than it did: else this is the writer's rate, not storage's. Never by a first answer after a quiet time.
    const busy = this.#end - this.#ingested > (this.#o.maxLagBytes * SOFT) / 2;
    if (!busy || ms >= 4 * RATE_MEMORY_MS) this.#busySince = now;
    else if (ms > 0) {
      // The mean of what was seen since it has so much to do; after a while of the last seconds only.
      const weight = Math.max(1 - Math.exp(-ms / RATE_MEMORY_MS), Math.min(1, ms / (now - this.#busySince)));
      this.#rate += weight * ((Math.max(0, lsn - this.#ingested) / ms) * 1_000 - this.#rate);
    }
    this.#asked = now;
    this.#ingested = Math.max(this.#ingested, lsn);
  }

  #next(ms: number): void {
    this.#timer = setTimeout(() => {
      if (this.#stopped) return;
      this.tick();
      this.#next(
        this.#end - this.#ingested > (this.#o.maxLagBytes * SOFT) / 2 || this.#allowed < RATE_UNLIMITED ? BUSY_TICK_MS : QUIET_TICK_MS,
      );
    }, ms);
    this.#timer.unref();
  }
}
