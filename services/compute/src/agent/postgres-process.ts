/** The postmaster of a compute: start, readiness, stop. The agent is its parent; the shim makes it die with us.
 *  Readiness is the status line Postgres writes into postmaster.pid (miscinit.c, pg_ctl.c), so no connection is spent on it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Writable } from 'node:stream';
import { LakebaseError, sleep } from '@lakebase/base';
import type { PostgresLog } from './postgres-log.ts';

/** pidfile.h LOCK_FILE_LINE_PM_STATUS: the eighth line. */
const STATUS_LINE = 7;
const REASON_LINES = 20;
/** Where the child finds the pipe with the scratch key: the first descriptor after the standard ones. */
const KEY_FD = 3;

export interface PostgresOptions {
  readonly binDir: string;
  readonly libDir: string;
  readonly pgdata: string;
  readonly log: PostgresLog;
  /** Key of this boot's scratch; null: plaintext, for tests. */
  readonly scratchKey: Buffer | null;
  readonly env: Readonly<Record<string, string>>;
}

export class PostgresProcess {
  readonly #options: PostgresOptions;
  readonly #child: ChildProcess;
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  #gone: { code: number | null; signal: NodeJS.Signals | null } | undefined;

  private constructor(options: PostgresOptions, child: ChildProcess) {
    this.#options = options;
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
    const { scratchKey, log } = options;
    const child = spawn(join(options.binDir, 'postgres'), ['-D', options.pgdata], {
      stdio: ['ignore', 'pipe', 'pipe', ...(scratchKey === null ? [] : ['pipe' as const])],
      env: {
        PATH: process.env['PATH'] ?? '/usr/bin:/bin',
        LD_LIBRARY_PATH: options.libDir,
        LC_ALL: 'C.UTF-8',
        ...(scratchKey === null ? { LAKEBASE_SHIM_PLAINTEXT: '1' } : { LAKEBASE_SHIM_KEY_FD: String(KEY_FD) }),
        ...options.env,
      },
    });
    if (scratchKey !== null) {
      const pipe = child.stdio[KEY_FD] as Writable | null | undefined;
      pipe?.on('error', () => {}); // a child that died at once: its exit says so
      pipe?.end(scratchKey);
    }
    child.stdout?.on('data', (chunk: Buffer) => log.push(chunk));
    child.stderr?.on('data', (chunk: Buffer) => log.push(chunk));
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
      if (this.#gone !== undefined) throw new LakebaseError('UNAVAILABLE', `Postgres did not start: ${this.reason()}`);
      if (statusLine(pidFile) === 'ready') {
        this.#options.log.ready();
        return;
      }
      if (performance.now() > deadline)
        throw new LakebaseError('TIMEOUT', `Postgres was not ready after ${deadlineMs} ms: ${this.reason()}`);
      await sleep(2); // the file changes without an event we could wait for portably
    }
  }

  /** Has it read its configuration files again, soon. By signal: a connection could be waiting for the very setting that is to change. */
  reload(): void {
    this.#child.kill('SIGHUP');
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

  /** What Postgres said last, as far as it may leave this process. */
  reason(): string {
    return this.#options.log.reason(REASON_LINES);
  }
}

function statusLine(pidFile: string): string | undefined {
  try {
    return readFileSync(pidFile, 'utf8').split('\n')[STATUS_LINE]?.trim();
  } catch {
    return undefined;
  }
}
