/** The control file of an open timeline: written at once where the election protocol asks for it, and a while after what is only good to know.
 *  Invariant: `control` is what is durable. */
import { type Logger, errorMessage } from '@lakebase/base';
import type { ControlFile } from '@lakebase/wal-quorum';
import { writeControl } from './control-store.ts';

const LAZY_MS = 1_000;

/** What only rises, and is written with everything else. */
export type Known = Pick<ControlFile, 'flushHint' | 'commitLsn' | 'offloadedLsn' | 'pagesLsn'>;

export class ControlKeeper {
  readonly #dir: string;
  readonly #known: () => Known;
  readonly #log: Logger;
  #control: ControlFile;
  #lazy: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(dir: string, control: ControlFile, known: () => Known, log: Logger) {
    this.#dir = dir;
    this.#control = control;
    this.#known = known;
    this.#log = log;
  }

  get control(): ControlFile {
    return this.#control;
  }

  /** With these changes and what else is known now. Throws with nothing changed when that fails. */
  write(changes: Partial<ControlFile>): void {
    const next: ControlFile = { ...this.#control, ...this.#known(), ...changes };
    writeControl(this.#dir, next);
    this.#control = next;
  }

  /** Soon. */
  touch(): void {
    this.#lazy ??= setTimeout(() => {
      this.#lazy = undefined;
      this.writeIfChanged();
    }, LAZY_MS).unref();
  }

  writeIfChanged(): void {
    const c = this.#control;
    const known = this.#known();
    if (this.#stopped || (Object.keys(known) as (keyof Known)[]).every((name) => known[name] === c[name])) return;
    try {
      this.write({});
    } catch (error) {
      this.#log.warn({ err: errorMessage(error) }, 'cannot write the control file; trying again with the next change');
    }
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#lazy);
  }
}
