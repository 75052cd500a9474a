/** Follows the KEK versions of projects in a storage service: whenever there is a newer one, has the references of existing objects wrapped
 *  again in the background and tells the key manager when none of an older version is left (docs/flows/key-path.md, rotation).
 *  Invariants: nothing happens before {@link KeyRotation.start}, when all there is on disk is known; one pass per project at a time; `retire` only after a pass that left nothing, and that began when the new version was known
 *  here (so keys taken from the pool since are of that version); whatever fails is done again, also after a restart. */
import { type Logger, SerialQueue, backoffDelay, errorMessage, sleep } from '@lakebase/base';
import type { KeySource } from '@lakebase/keys';
import type { Retire } from './keys.ts';

export interface KeyRotationOptions {
  readonly source: KeySource;
  readonly retire: Retire;
  readonly log: Logger;
  /** Leaves no reference of the project wrapped by a KEK older than `kekVersion`; resolves with how many there were. Rejects when something
   *  could not be reached. */
  readonly rewrap: (project: string, kekVersion: number) => Promise<number>;
}

const RETRY = { baseMs: 500, maxMs: 30_000 };

export class KeyRotation {
  readonly #options: KeyRotationOptions;
  readonly #stop = new AbortController();
  readonly #queues = new Map<string, SerialQueue>();
  /** Versions of which the key manager was told. */
  readonly #retired = new Map<string, number>();
  readonly #running = new Set<Promise<void>>();
  /** Seen before the start. */
  #early: Set<string> | undefined = new Set();

  constructor(options: KeyRotationOptions) {
    this.#options = options;
    options.source.onRotation((project) => this.check(project));
  }

  /** Call when everything on disk is known to `rewrap`: what it does not know of would lose its key. */
  start(): void {
    const early = this.#early ?? [];
    this.#early = undefined;
    for (const project of early) this.check(project);
  }

  /** There may be something to do for this project. */
  check(project: string): void {
    if (this.#early !== undefined) return void this.#early.add(project);
    const keys = this.#options.source.project(project);
    if (this.#stop.signal.aborted || !keys.usable || keys.kekVersion <= Math.max(1, this.#retired.get(project) ?? 0)) return;
    let queue = this.#queues.get(project);
    if (queue === undefined) this.#queues.set(project, (queue = new SerialQueue()));
    const run: Promise<void> = queue.run(() => this.#run(project)).finally(() => this.#running.delete(run));
    this.#running.add(run);
  }

  /** Waits until nothing is left to do, for tests. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  async #run(project: string): Promise<void> {
    const { source, retire, log, rewrap } = this.#options;
    const keys = source.project(project);
    for (let attempt = 0; !this.#stop.signal.aborted && keys.usable; attempt++) {
      const version = keys.kekVersion;
      if (version <= Math.max(1, this.#retired.get(project) ?? 0)) return;
      try {
        const started = performance.now();
        const references = await rewrap(project, version);
        await retire(project, version);
        this.#retired.set(project, version);
        log.info(
          { project, kekVersion: version, references, ms: Math.round(performance.now() - started) },
          'keys are wrapped by the newest KEK',
        );
        return;
      } catch (error) {
        if (this.#stop.signal.aborted || !keys.usable) return;
        log.warn({ project, kekVersion: version, err: errorMessage(error) }, 'keys are not all wrapped anew yet; trying again');
        await sleep(backoffDelay(attempt, RETRY), this.#stop.signal).catch(() => {});
      }
    }
  }

  close(): Promise<void> {
    this.#stop.abort(new Error('closed'));
    return this.settled();
  }
}
