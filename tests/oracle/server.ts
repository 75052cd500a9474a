/** A stock Postgres for the oracle: initdb, start, stop, clients. Runs under an unprivileged account when we are root.
 *  Invariant: a server that was started is gone after `stop` or `kill`: both wait for the process to end. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { appendFileSync, chmodSync, chownSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import { findPostgres, type PostgresInstallation, unprivilegedAccount } from '@lakebase/service-kit';
import pg from 'pg';

const START_TIMEOUT_MS = 60_000;

export class OracleServer {
  readonly dataDir: string;
  readonly socketDir: string;
  readonly installation: PostgresInstallation;
  readonly #account = unprivilegedAccount();
  #child: ChildProcess | undefined;
  #log = '';
  #clients: pg.Client[] = [];

  constructor(dataDir: string, socketDir: string, major = 18, prefix: string | null = null) {
    this.dataDir = dataDir;
    this.socketDir = socketDir;
    this.installation = findPostgres(major, prefix);
    for (const dir of [dataDir, socketDir]) {
      mkdirSync(dir, { recursive: true });
      this.own(dir);
      chmodSync(dir, 0o700);
    }
  }

  /** Hands a path to the account the server runs as. */
  own(path: string): void {
    if (this.#account !== undefined) chownSync(path, this.#account.uid, this.#account.gid);
  }

  #spawnOptions(): { uid?: number; gid?: number; env: NodeJS.ProcessEnv; cwd: string } {
    const env = { ...process.env, LD_LIBRARY_PATH: this.installation.libDir, TZ: 'UTC' };
    const account = this.#account;
    return account === undefined ? { env, cwd: '/' } : { env, cwd: '/', uid: account.uid, gid: account.gid };
  }

  initdb(): void {
    const args = ['-D', this.dataDir, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '-N'];
    if (this.installation.major >= 18) args.push('--no-data-checksums');
    const result = spawnSync(join(this.installation.binDir, 'initdb'), args, { ...this.#spawnOptions(), encoding: 'utf8' });
    if (result.status !== 0) throw new LakebaseError('INTERNAL', `initdb failed: ${result.error?.message ?? result.stderr}`);
  }

  /** Runs a program to its end as the server's account. */
  run(program: string, args: readonly string[]): void {
    const result = spawnSync(program, args, { ...this.#spawnOptions(), encoding: 'utf8' });
    if (result.status !== 0) throw new LakebaseError('INTERNAL', `${program} failed: ${result.error?.message ?? result.stderr}`);
  }

  configure(settings: Readonly<Record<string, string>>): void {
    const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value}'`);
    appendFileSync(join(this.dataDir, 'postgresql.conf'), `${lines.join('\n')}\n`);
  }

  writeFile(name: string, content: string): void {
    writeFileSync(join(this.dataDir, name), content);
    this.own(join(this.dataDir, name));
  }

  /** Everything the server has logged since its last start. */
  get log(): string {
    return this.#log;
  }

  #spawn(): ChildProcess {
    this.#log = '';
    const child = spawn(join(this.installation.binDir, 'postgres'), ['-D', this.dataDir, '-k', this.socketDir], {
      ...this.#spawnOptions(),
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    child.stderr?.setEncoding('utf8');
    this.#child = child;
    return child;
  }

  async start(): Promise<void> {
    const child = this.#spawn();
    await new Promise<void>((resolve, reject) => {
      const fail = (why: string): void => reject(new LakebaseError('INTERNAL', `Postgres did not start (${why}):\n${this.#log}`));
      const timer = setTimeout(() => fail('timeout'), START_TIMEOUT_MS);
      child.on('exit', (code) => fail(`exit ${code}`));
      child.stderr?.on('data', (text: string) => {
        this.#log += text;
        if (!this.#log.includes('ready to accept connections')) return;
        clearTimeout(timer);
        resolve();
      });
    });
  }

  /** Starts a server that ends by itself (recovery target with action shutdown) and waits for that. */
  async runToEnd(): Promise<void> {
    const child = this.#spawn();
    child.stderr?.on('data', (text: string) => {
      this.#log += text;
    });
    await new Promise<void>((resolve) => child.once('close', () => resolve()));
    this.#child = undefined;
  }

  /** SIGINT: fast shutdown with a shutdown checkpoint. */
  async stop(signal: 'SIGINT' | 'SIGQUIT' | 'SIGKILL' = 'SIGINT'): Promise<void> {
    const child = this.#child;
    for (const client of this.#clients.splice(0)) await client.end().catch(() => {});
    if (child === undefined) return;
    this.#child = undefined;
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
    child.kill(signal);
    await ended;
  }

  async client(database = 'postgres'): Promise<pg.Client> {
    const client = new pg.Client({ host: this.socketDir, port: 5432, user: 'postgres', database });
    client.on('error', () => {}); // a killed server; the query in flight rejects
    await client.connect();
    this.#clients.push(client);
    return client;
  }

  async close(client: pg.Client): Promise<void> {
    this.#clients = this.#clients.filter((other) => other !== client);
    await client.end();
  }
}
