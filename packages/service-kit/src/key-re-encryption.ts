/** Follows requests to rewrite old objects of projects under fresh data keys in a storage service, in the background (docs/flows/key-path.md).
 *  Invariants: nothing happens before {@link KeyReEncryption.start}; one pass per project at a time; `finished` is reported only after a pass
 *  that found nothing left; whatever fails is done again, also after a restart: what is left is known from the objects themselves. */
import { type Logger, SerialQueue, backoffDelay, errorMessage, sleep } from '@lakebase/base';
import type { KeySource } from '@lakebase/keys';
import type { ReportReEncryption } from './keys.ts';

export interface ReEncryptionCount {
  /** Objects rewritten. */
  readonly done: number;
  /** Those and the ones that are left. */
  readonly total: number;
  /** Written. */
  readonly bytes: number;
}

export interface KeyReEncryptionOptions {
  readonly source: KeySource;
  readonly report: ReportReEncryption | undefined;
  readonly log: Logger;
  /** Rewrites every object of the project whose DEK was made under a KEK older than `below`. Resolves when none is left; rejects when something
   *  could not be reached. Counts are of this call. */
  readonly run: (
    project: string,
    below: number,
    progress: (count: ReEncryptionCount) => void,
    signal: AbortSignal,
  ) => Promise<ReEncryptionCount>;
}

const RETRY = { baseMs: 500, maxMs: 30_000 };
const REPORT_MS = 1_000;
const NOTHING: ReEncryptionCount = { done: 0, total: 0, bytes: 0 };

export class KeyReEncryption {
  readonly #o: KeyReEncryptionOptions;
  readonly #stop = new AbortController();
  readonly #queues = new Map<string, SerialQueue>();
  readonly #asked = new Map<string, number>();
  readonly #running = new Set<Promise<void>>();
  #started = false;

  constructor(options: KeyReEncryptionOptions) {
    this.#o = options;
    options.source.onReEncryption((project, below) => {
      this.#asked.set(project, below);
      if (this.#started) this.#begin(project);
    });
  }

  /** Call when everything on disk is known to `run`. */
  start(): void {
    this.#started = true;
    for (const project of this.#asked.keys()) this.#begin(project);
  }

  /** Waits until nothing is left to do, for tests. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  close(): Promise<void> {
    this.#stop.abort(new Error('closed'));
    return this.settled();
  }

  #begin(project: string): void {
    let queue = this.#queues.get(project);
    if (queue === undefined) this.#queues.set(project, (queue = new SerialQueue()));
    const run: Promise<void> = queue.run(() => this.#run(project)).finally(() => this.#running.delete(run));
    this.#running.add(run);
  }

  async #run(project: string): Promise<void> {
    const { source, log, run } = this.#o;
    const below = this.#asked.get(project) as number;
    const keys = source.project(project);
    // What earlier passes did that failed in the end.
    let before = NOTHING;
    for (let attempt = 0; !this.#stop.signal.aborted && this.#asked.get(project) === below; attempt++) {
      let last = NOTHING;
      let reportedAt = -Infinity;
      try {
        await keys.ready(1_000);
        const count = await run(
          project,
          below,
          (now) => {
            last = now;
            if (performance.now() - reportedAt < REPORT_MS) return;
            reportedAt = performance.now();
            this.#report(project, below, sum(before, now), false).catch(() => {}); // the next one says more
          },
          this.#stop.signal,
        );
        last = count;
        await this.#report(project, below, sum(before, count), true);
        log.info({ project, below, ...sum(before, count) }, 'old objects are encrypted anew');
        return;
      } catch (error) {
        if (this.#stop.signal.aborted || keys.locked?.code === 'CLOSED') return;
        before = { ...sum(before, last), total: before.done + last.done };
        if (attempt === 0 && keys.usable)
          log.warn({ project, below, err: errorMessage(error) }, 'old objects are not all encrypted anew yet; going on');
        await sleep(backoffDelay(attempt, RETRY), this.#stop.signal).catch(() => {});
      }
    }
  }

  async #report(project: string, below: number, count: ReEncryptionCount, finished: boolean): Promise<void> {
    await this.#o.report?.(project, { below, ...count, finished });
  }
}

const sum = (a: ReEncryptionCount, b: ReEncryptionCount): ReEncryptionCount => ({
  done: a.done + b.done,
  total: a.done + b.total,
  bytes: a.bytes + b.bytes,
});
