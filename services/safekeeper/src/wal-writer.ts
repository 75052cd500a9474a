/** The way of WAL into a timeline's store: appended, made durable as {@link FlushSchedule} says, and the store healed when that failed.
 *  Invariant: `flushed` is told only of what its fdatasync returned for; after a failure nothing is acknowledged until the store works again. */
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import type { WalStore } from '@lakebase/wal-store';
import { FlushSchedule } from './flush-schedule.ts';

const HEAL_AGAIN_MS = 1_000;

export interface WalWriterOptions {
  readonly store: WalStore;
  readonly log: Logger;
  readonly mayWait: () => boolean;
  readonly flushed: (flushLsn: Lsn, seconds: number, bytes: number) => void;
  readonly failed: (cause: LakebaseError) => void;
  readonly healed: () => void;
}

export class WalWriter {
  readonly #o: WalWriterOptions;
  readonly #store: WalStore;
  readonly #schedule: FlushSchedule;
  #heal: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: WalWriterOptions) {
    this.#o = options;
    this.#store = options.store;
    this.#schedule = new FlushSchedule(() => this.flushOrFail(), options.mayWait);
  }

  append(at: Lsn, bytes: Buffer): void {
    try {
      this.#store.append(at, bytes);
    } catch (error) {
      // A segment that became full was synced, and that failed.
      if (this.#store.broken) this.fail(error);
      throw error;
    }
    this.#schedule.added(bytes.length);
  }

  flush(): Lsn {
    const bytes = this.#schedule.take();
    const before = this.#store.flushLsn;
    const started = performance.now();
    const flushLsn = this.#store.sync();
    if (flushLsn === before && bytes === 0) return flushLsn;
    this.#o.flushed(flushLsn, (performance.now() - started) / 1_000, bytes);
    return flushLsn;
  }

  flushOrFail(): void {
    try {
      this.flush();
    } catch (error) {
      this.fail(error);
    }
  }

  /** Something could not be kept. */
  fail(error: unknown): void {
    this.#schedule.dropped();
    const cause = error instanceof LakebaseError ? error : new LakebaseError('INTERNAL', errorMessage(error), { cause: error });
    this.#o.log.error({ code: cause.code, err: cause.message }, 'cannot make WAL durable; nothing is acknowledged until it works again');
    this.#o.failed(cause);
    this.#healStore();
  }

  /** After a failed fdatasync the segment is rebuilt from what had been durable; until that works nothing is written here. */
  #healStore(): void {
    clearTimeout(this.#heal);
    if (!this.#store.broken || this.#closed) return;
    try {
      this.#store.heal();
      this.#o.healed();
    } catch (error) {
      this.#o.log.error({ err: errorMessage(error) }, 'the WAL segment cannot be rebuilt yet; this member takes no WAL');
      this.#heal = setTimeout(() => this.#healStore(), HEAL_AGAIN_MS).unref();
    }
  }

  /** What was added and is not durable stays that way. */
  drop(): void {
    this.#schedule.take();
  }
  /** No more attempts to heal. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#heal);
  }
}
