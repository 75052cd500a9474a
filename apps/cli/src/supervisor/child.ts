/** One service as a child process: started, watched, started again with a growing delay when it dies, stopped in order.
 *  Invariants: at most one process at a time; after stop() none; its output goes to its log file, never to our terminal. */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, renameSync, statSync } from 'node:fs';
import { backoffDelay, sleep } from '@lakebase/base';

/** A process that lived this long starts its delays from the beginning. */
const STEADY_MS = 10_000;
const RESTART_MS_MAX = 5_000;
const LOG_BYTES_MAX = 32 * 1024 * 1024;
/** Exit code of a service whose configuration is wrong. */
export const EXIT_CONFIG = 2;

export interface ChildOptions {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly cwd: string;
  readonly logFile: string;
  readonly env?: NodeJS.ProcessEnv;
  /** Told of every death that was not asked for, and of every start again. */
  readonly onEvent?: (event: ChildEvent) => void;
  readonly restartBaseMs?: number;
}
export type ChildEvent =
  | { readonly type: 'died'; readonly name: string; readonly how: string; readonly restartInMs: number }
  | { readonly type: 'restarted'; readonly name: string; readonly pid: number };

export class SupervisedChild {
  readonly #o: ChildOptions;
  readonly #stop = new AbortController();
  #process: ChildProcess | undefined;
  #loop: Promise<void> = Promise.resolve();
  #lastExit: { code: number | null; signal: NodeJS.Signals | null } | undefined;
  #deaths = 0;

  constructor(options: ChildOptions) {
    this.#o = options;
  }

  get name(): string {
    return this.#o.name;
  }
  get pid(): number | undefined {
    return this.#process?.pid;
  }
  get deaths(): number {
    return this.#deaths;
  }
  /** How the last process ended, if one did. */
  get lastExit(): { code: number | null; signal: NodeJS.Signals | null } | undefined {
    return this.#lastExit;
  }

  start(): void {
    this.#loop = this.#run();
  }

  /** SIGTERM, then SIGKILL after `graceMs`. Resolves when nothing of it runs. */
  async stop(graceMs: number): Promise<void> {
    this.#stop.abort(new Error('stopping'));
    this.#process?.kill('SIGTERM');
    const timer = setTimeout(() => this.#process?.kill('SIGKILL'), graceMs);
    await this.#loop;
    clearTimeout(timer);
  }

  kill(signal: NodeJS.Signals): void {
    this.#process?.kill(signal);
  }

  async #run(): Promise<void> {
    for (let attempt = 0; !this.#stop.signal.aborted; ) {
      const startedAt = Date.now();
      const how = await this.#once(attempt > 0);
      if (this.#stop.signal.aborted) return;
      this.#deaths++;
      if (Date.now() - startedAt > STEADY_MS) attempt = 0;
      const restartInMs = Math.round(backoffDelay(attempt++, { baseMs: this.#o.restartBaseMs ?? 100, maxMs: RESTART_MS_MAX }));
      this.#o.onEvent?.({ type: 'died', name: this.#o.name, how, restartInMs });
      await sleep(restartInMs, this.#stop.signal).catch(() => {});
    }
  }

  /** Runs one process to its end and says how it ended. */
  #once(again: boolean): Promise<string> {
    rotate(this.#o.logFile);
    const log = openSync(this.#o.logFile, 'a', 0o600);
    return new Promise((resolve) => {
      // Detached: Ctrl-C in the terminal is for the supervisor, which stops its children in order.
      const child = spawn(this.#o.command, this.#o.args, {
        cwd: this.#o.cwd,
        env: this.#o.env ?? process.env,
        stdio: ['ignore', log, log],
        detached: true,
      });
      closeSync(log);
      this.#process = child;
      if (child.pid !== undefined && again) this.#o.onEvent?.({ type: 'restarted', name: this.#o.name, pid: child.pid });
      const ended = (how: string): void => {
        if (this.#process === child) this.#process = undefined;
        resolve(how);
      };
      child.once('error', (error) => ended(error.message));
      child.once('exit', (code, signal) => {
        this.#lastExit = { code, signal };
        ended(signal === null ? `exit code ${code}` : `signal ${signal}`);
      });
    });
  }
}

function rotate(path: string): void {
  try {
    if (statSync(path).size > LOG_BYTES_MAX) renameSync(path, `${path}.1`);
  } catch {
    /* no log yet */
  }
}
