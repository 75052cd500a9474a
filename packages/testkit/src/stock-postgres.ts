/** A stock Postgres server for tests and benchmarks: initdb, start, stop, in a directory of its own under the system's temporary directory,
 *  run under an unprivileged account when we are root. `await using` stops it and removes the directory. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { appendFileSync, chownSync, createWriteStream, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { sleep } from '@lakebase/base';
import { DEFAULT_POSTGRES_MAJOR, type PostgresInstallation, accountName, findPostgres, unprivilegedAccount } from '@lakebase/service-kit';

export const STOCK_SUPERUSER = 'stock_admin';

export interface StockPostgresOptions {
  readonly installation?: PostgresInstallation;
  /** Of the npm binaries; 18 when neither this nor an installation is given. */
  readonly major?: number;
  readonly settings?: Readonly<Record<string, string>>;
  /** Extra initdb arguments. */
  readonly initdb?: readonly string[];
}

export class StockPostgres implements AsyncDisposable {
  readonly directory: string;
  readonly pgdata: string;
  readonly port = 5432;
  readonly installation: PostgresInstallation;
  readonly #account = unprivilegedAccount();
  #child: ChildProcess | undefined;

  private constructor(options: StockPostgresOptions) {
    this.installation = options.installation ?? findPostgres(options.major ?? DEFAULT_POSTGRES_MAJOR);
    this.directory = mkdtempSync(join(tmpdir(), 'lb-pg-'));
    this.pgdata = join(this.directory, 'data');
    if (this.#account !== undefined) chownSync(this.directory, this.#account.uid, this.#account.gid);
  }

  /** initdb without starting. Local connections are trusted; the socket lies in `directory`. */
  static create(options: StockPostgresOptions = {}): StockPostgres {
    const server = new StockPostgres(options);
    server.tool('initdb', [
      '-D',
      server.pgdata,
      '-U',
      STOCK_SUPERUSER,
      '--auth=trust',
      '--no-sync',
      ...(server.installation.major >= 18 ? ['--no-data-checksums'] : []), // the default before
      '--encoding=UTF8',
      '--locale=C',
      ...(options.initdb ?? []),
    ]);
    server.configure({ listen_addresses: '', unix_socket_directories: server.directory, ...options.settings });
    return server;
  }

  /** A second server on a copy of `source`'s data directory; `source` must be stopped. */
  static copyOf(source: StockPostgres): StockPostgres {
    const server = new StockPostgres({ installation: source.installation });
    execFileSync('cp', ['-a', source.pgdata, server.pgdata]);
    server.configure({ unix_socket_directories: server.directory });
    return server;
  }

  static async start(options: StockPostgresOptions = {}): Promise<StockPostgres> {
    const server = StockPostgres.create(options);
    await server.start();
    return server;
  }

  configure(settings: Readonly<Record<string, string>>): void {
    appendFileSync(
      join(this.pgdata, 'postgresql.conf'),
      Object.entries(settings)
        .map(([k, v]) => `${k} = '${v.replaceAll("'", "''")}'\n`)
        .join(''),
    );
  }

  /** Runs one of the installation's programs as the server's account; returns its output. */
  tool(name: string, args: readonly string[], env: Readonly<Record<string, string>> = {}): string {
    return execFileSync(join(this.installation.binDir, name), args, {
      encoding: 'utf8',
      cwd: '/',
      env: { ...this.#env(), ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      maxBuffer: 1 << 28,
      ...(this.#account === undefined ? {} : { uid: this.#account.uid, gid: this.#account.gid }),
    });
  }

  async start(): Promise<void> {
    const log = createWriteStream(this.logPath, { flags: 'a' });
    const child = spawn(join(this.installation.binDir, 'postgres'), ['-D', this.pgdata], {
      stdio: ['ignore', 'pipe', 'pipe'],
      cwd: '/',
      env: this.#env(),
      ...(this.#account === undefined ? {} : { uid: this.#account.uid, gid: this.#account.gid }),
    });
    child.stdout?.pipe(log, { end: false });
    child.stderr?.pipe(log, { end: false });
    child.once('close', () => log.end());
    this.#child = child;
    while (this.#status() !== 'ready' && this.#status() !== 'standby') {
      if (child.exitCode !== null || child.signalCode !== null)
        throw new Error(`Postgres did not start: ${readFileSync(this.logPath, 'utf8').slice(-2_000)}`);
      await sleep(5);
    }
  }

  async stop(signal: 'SIGINT' | 'SIGQUIT' | 'SIGKILL' = 'SIGINT'): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill(signal);
    await gone;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }
  get logPath(): string {
    return join(this.directory, 'server.log');
  }
  /** For `pg`: connects over the Unix socket. */
  get clientConfig(): { host: string; port: number; user: string; database: string } {
    return { host: this.directory, port: this.port, user: STOCK_SUPERUSER, database: 'postgres' };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop('SIGQUIT');
    rmSync(this.directory, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 });
  }

  #env(): Record<string, string> {
    return {
      PATH: process.env['PATH'] ?? '/usr/bin:/bin',
      LD_LIBRARY_PATH: this.installation.libDir,
      LC_ALL: 'C',
      TZ: 'UTC',
      USER: accountName(this.#account?.uid ?? process.getuid?.() ?? 0),
    };
  }

  #status(): string | undefined {
    try {
      return readFileSync(join(this.pgdata, 'postmaster.pid'), 'utf8').split('\n')[7]?.trim();
    } catch {
      return undefined;
    }
  }
}
