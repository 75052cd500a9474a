/** The postmaster of a compute: start, readiness, stop. The agent is its parent; the shim makes it die with us.
 *  Readiness is the status line Postgres writes into postmaster.pid (miscinit.c, pg_ctl.c), so no connection is spent on it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createWriteStream, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, sleep } from '@lakebase/base';

/** pidfile.h LOCK_FILE_LINE_PM_STATUS: the eighth line. */
const STATUS_LINE = 7;
const LOG_TAIL_LINES = 20;

export interface PostgresOptions {
  readonly binDir: string;
  readonly libDir: string;
  readonly pgdata: string;
  readonly logPath: string;
  readonly env: Readonly<Record<string, string>>;
}

export class PostgresProcess {
  readonly #options: PostgresOptions;
  readonly #child: ChildProcess;
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  /** Size of the log when we started: what is before it belongs to earlier computes. */
  readonly #logStart: number;
  #gone: { code: number | null; signal: NodeJS.Signals | null } | undefined;

  private constructor(options: PostgresOptions, child: ChildProcess) {
    this.#options = options;
    this.#logStart = statSync(options.logPath, { throwIfNoEntry: false })?.size ?? 0;
    this.#child = child;
    this.exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        this.#gone = { code, signal };
        resolve(this.#gone);
      });
      child.once('error', () => {
        this.#gone ??= { code: 127, signal: null };
        resolve(this.#gone);
      });
    });
  }

  static start(options: PostgresOptions): PostgresProcess {
    const log = createWriteStream(options.logPath, { flags: 'a' });
    const child = spawn(join(options.binDir, 'postgres'), ['-D', options.pgdata], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin', LD_LIBRARY_PATH: options.libDir, LC_ALL: 'C.UTF-8', ...options.env },
    });
    child.stdout?.pipe(log, { end: false });
    child.stderr?.pipe(log, { end: false });
    child.once('close', () => log.end());
    return new PostgresProcess(options, child);
  }

  get pid(): number | null {
    return this.#child.pid ?? null;
  }
  get gone(): boolean {
    return this.#gone !== undefined;
  }

  async ready(deadlineMs: number): Promise<void> {
    const deadline = performance.now() + deadlineMs;
    const pidFile = join(this.#options.pgdata, 'postmaster.pid');
    for (;;) {
      if (this.#gone !== undefined) throw new LakebaseError('UNAVAILABLE', `Postgres did not start: ${this.logTail()}`);
      if (statusLine(pidFile) === 'ready') return;
      if (performance.now() > deadline)
        throw new LakebaseError('TIMEOUT', `Postgres was not ready after ${deadlineMs} ms: ${this.logTail()}`);
      await sleep(2); // the file changes without an event we could wait for portably
    }
  }

  /** SIGINT is a fast shutdown (checkpoint reaches the quorum), SIGQUIT an immediate one. SIGKILL when even that does not end it. */
  async stop(mode: 'fast' | 'immediate', deadlineMs: number): Promise<boolean> {
    if (this.#gone === undefined) this.#child.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT');
    const timer = setTimeout(() => this.#child.kill('SIGQUIT'), deadlineMs);
    const hard = setTimeout(() => this.#child.kill('SIGKILL'), deadlineMs + 5_000);
    const { code } = await this.exited;
    clearTimeout(timer);
    clearTimeout(hard);
    return mode === 'fast' && code === 0;
  }

  logTail(): string {
    try {
      return readFileSync(this.#options.logPath)
        .subarray(this.#logStart)
        .toString()
        .trimEnd()
        .split('\n')
        .slice(-LOG_TAIL_LINES)
        .join(' | ')
        .slice(-2_000);
    } catch {
      return 'no log';
    }
  }
}

function statusLine(pidFile: string): string | undefined {
  try {
    return readFileSync(pidFile, 'utf8').split('\n')[STATUS_LINE]?.trim();
  } catch {
    return undefined;
  }
}
