/** The Manager's own metadata database: a stock Postgres under dataDir, reached over a Unix socket only.
 *  Invariants: fsync stays on; the directory is used by one postmaster, which is our child (one left by a killed Manager is stopped first);
 *  a postmaster that dies is started again. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, type Logger, backoffDelay, sleep } from '@lakebase/base';
import { type Account, type PostgresInstallation, findPostgres, unprivilegedAccount } from '@lakebase/service-kit';
import pg from 'pg';

const MAJOR = 18;
const PORT = 5432;
/** Postgres gets its directories as open descriptors, named through /proc: the path to them may then be longer than a socket address
 *  (107 bytes), and may lead through directories its account may not enter (a checkout in /root). */
const DATA_FD = 3;
const RUN_FD = 4;
const viaFd = (fd: number): string => `/proc/self/fd/${fd}`;
const START_MS_MAX = 60_000;

export interface EmbeddedPostgresOptions {
  readonly dataDir: string;
  readonly prefix: string | null;
  /** Password of the metadata role; the socket directory is 0700 besides. */
  readonly password: string;
  readonly log: Logger;
  /** Only for tests: settings on top of ours. */
  readonly settings?: Readonly<Record<string, string>>;
}

export class EmbeddedPostgres {
  readonly #options: EmbeddedPostgresOptions;
  readonly #account: Account | undefined;
  readonly #installation: PostgresInstallation;
  readonly #data: string;
  readonly #socketDir: string;
  #child: ChildProcess | undefined;
  #socketDirFd: number | undefined;
  #stopping = new AbortController();
  #supervision: Promise<void> = Promise.resolve();

  constructor(options: EmbeddedPostgresOptions) {
    this.#options = options;
    this.#account = unprivilegedAccount();
    this.#installation = findPostgres(MAJOR, options.prefix);
    this.#data = join(options.dataDir, 'pgdata');
    this.#socketDir = join(options.dataDir, 'run');
  }

  get clientConfig(): pg.PoolConfig {
    return { host: this.#clientSocketDir(), port: PORT, user: 'lakebase', password: this.#options.password, database: 'postgres' };
  }

  async start(): Promise<void> {
    mkdirSync(this.#socketDir, { recursive: true, mode: 0o700 });
    this.#give(this.#socketDir);
    if (!existsSync(join(this.#data, 'PG_VERSION'))) await this.#initdb();
    await this.#stopLeftover();
    await this.#launch();
    this.#supervision = this.#supervise();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    if (this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null) {
      const exited = once(this.#child, 'exit');
      this.#child.kill('SIGINT');
      await exited;
    }
    await this.#supervision;
  }

  /** Made beside and renamed into place, so a killed initdb leaves nothing that looks like a cluster. */
  async #initdb(): Promise<void> {
    const fresh = `${this.#data}.new`;
    const passwordFile = join(this.#socketDir, 'initdb-password');
    rmSync(fresh, { recursive: true, force: true });
    mkdirSync(fresh, { mode: 0o700 });
    this.#give(fresh);
    writeFileSync(passwordFile, this.#options.password, { mode: 0o600 });
    this.#give(passwordFile);
    const pwfile = `${viaFd(RUN_FD)}/initdb-password`;
    try {
      const args = [
        '-D',
        viaFd(DATA_FD),
        '-U',
        'lakebase',
        '--auth=scram-sha-256',
        `--pwfile=${pwfile}`,
        '--encoding=UTF8',
        '--locale=C',
        '--no-instructions',
      ];
      const child = this.#spawn('initdb', args, fresh, 'pipe');
      let output = '';
      child.stdout?.on('data', (chunk) => (output += String(chunk)));
      child.stderr?.on('data', (chunk) => (output += String(chunk)));
      const [code] = (await once(child, 'close')) as [number | null];
      if (code !== 0)
        throw new LakebaseError(
          'CONFIG',
          `cannot create the metadata database in ${fresh}: ${output.trim().split('\n').slice(-3).join(' ')}`,
        );
    } finally {
      rmSync(passwordFile, { force: true });
    }
    rmSync(this.#data, { recursive: true, force: true });
    renameSync(fresh, this.#data);
  }

  /** Stops the postmaster a killed Manager left behind; fast shutdown, its commits are durable anyway. */
  async #stopLeftover(): Promise<void> {
    const pidFile = join(this.#data, 'postmaster.pid');
    if (!existsSync(pidFile)) return;
    const pid = Number(readFileSync(pidFile, 'utf8').split('\n')[0]);
    if (!Number.isInteger(pid) || pid <= 1 || !this.#isOurPostmaster(pid)) return;
    this.#options.log.warn({ pid }, 'stopping the metadata database that an earlier Manager left running');
    for (let waited = 0; this.#isOurPostmaster(pid); waited += 50) {
      if (waited % 5_000 === 0) process.kill(pid, waited < 10_000 ? 'SIGINT' : 'SIGQUIT');
      if (waited > 30_000)
        throw new LakebaseError('UNAVAILABLE', `the metadata database (pid ${pid}) does not stop; end it and start again`);
      await sleep(50);
    }
  }

  #isOurPostmaster(pid: number): boolean {
    try {
      return readlinkSync(`/proc/${pid}/cwd`) === realpathSync(this.#data);
    } catch {
      return false;
    }
  }

  #give(path: string): void {
    if (this.#account !== undefined) chownSync(path, this.#account.uid, this.#account.gid);
  }

  /** A socket address holds 107 bytes; a longer path is reached through a descriptor of our own as well. */
  #clientSocketDir(): string {
    if (Buffer.byteLength(join(this.#socketDir, `.s.PGSQL.${PORT}`)) <= 107) return this.#socketDir;
    this.#socketDirFd ??= openSync(this.#socketDir, 'r');
    return viaFd(this.#socketDirFd);
  }

  /** Detached: a Ctrl-C in the terminal must not reach it before the Manager has finished with it. */
  #spawn(tool: string, args: readonly string[], dataDir: string, output: 'pipe' | number): ChildProcess {
    const dataFd = openSync(dataDir, 'r');
    const runFd = openSync(this.#socketDir, 'r');
    try {
      return spawn(join(this.#installation.binDir, tool), args, {
        stdio: ['ignore', output, output, dataFd, runFd],
        cwd: '/',
        detached: true,
        env: { PATH: process.env.PATH ?? '', LC_ALL: 'C', LD_LIBRARY_PATH: this.#installation.libDir },
        ...(this.#account === undefined ? {} : { uid: this.#account.uid, gid: this.#account.gid }),
      });
    } finally {
      closeSync(dataFd);
      closeSync(runFd);
    }
  }

  async #launch(): Promise<void> {
    const settings = {
      listen_addresses: '',
      unix_socket_directories: viaFd(RUN_FD),
      unix_socket_permissions: '0700',
      port: PORT,
      fsync: 'on',
      max_connections: 25,
      shared_buffers: '16MB',
      wal_level: 'minimal',
      max_wal_senders: 0,
      io_method: 'sync',
      jit: 'off',
      max_logical_replication_workers: 0,
      min_wal_size: '32MB',
      max_wal_size: '64MB',
      log_line_prefix: '%m [%p] ',
      autovacuum_worker_slots: 2,
      autovacuum_max_workers: 1,
      ...this.#options.settings,
    };
    const logFile = openSync(join(this.#options.dataDir, 'postgres.log'), 'a', 0o600);
    const args = ['-D', viaFd(DATA_FD), ...Object.entries(settings).flatMap(([k, v]) => ['-c', `${k}=${v}`])];
    const child = this.#spawn('postgres', args, this.#data, logFile);
    closeSync(logFile);
    this.#child = child;
    let exited: string | undefined;
    child.once('exit', (code, signal) => (exited = `exit ${code ?? signal}`));
    child.once('error', (error) => (exited = error.message));
    for (let attempt = 0, started = Date.now(); ; attempt++) {
      if (exited !== undefined)
        throw new LakebaseError(
          'UNAVAILABLE',
          `the metadata database did not start (${exited}); see ${join(this.#options.dataDir, 'postgres.log')}`,
        );
      if (await this.#answers()) return;
      if (Date.now() - started > START_MS_MAX)
        throw new LakebaseError('TIMEOUT', 'the metadata database did not accept connections in time');
      await sleep(Math.min(100, 10 * (attempt + 1)));
    }
  }

  async #answers(): Promise<boolean> {
    const client = new pg.Client({ ...this.clientConfig, connectionTimeoutMillis: 2_000 } as pg.ClientConfig);
    client.on('error', () => {});
    try {
      await client.connect();
      await client.query('SELECT 1');
      return true;
    } catch {
      return false;
    } finally {
      await client.end().catch(() => {});
    }
  }

  async #supervise(): Promise<void> {
    for (let attempt = 0; !this.#stopping.signal.aborted; ) {
      const child = this.#child as ChildProcess;
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
      if (this.#stopping.signal.aborted) return;
      this.#options.log.error({ code: child.exitCode, signal: child.signalCode }, 'the metadata database ended; starting it again');
      try {
        await this.#launch();
        attempt = 0;
      } catch (error) {
        this.#options.log.error({ err: (error as Error).message }, 'the metadata database does not start');
        await sleep(backoffDelay(attempt++, { baseMs: 200 }), this.#stopping.signal).catch(() => {});
      }
    }
  }
}
