/** A stock Postgres on sparse files behind the preload shim, for tests: its pages come from the files of another, cleanly stopped data
 *  directory, served by a fake agent in this process. Everything lies in one temporary directory that `await using` removes.
 *  Invariant: the source directory is never written after it was stopped, so it is the truth to compare with. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  rmSync,
  statSync,
} from 'node:fs';
import { type Server, type Socket, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { silentLogger } from '@lakebase/base';
import { BLCKSZ, FORK_INIT, FORK_MAIN, parseRelPath, relPath } from '@lakebase/ids';
import { type PostgresInstallation, accountName, findPostgres, unprivilegedAccount } from '@lakebase/service-kit';
import pg from 'pg';
import type { Writable } from 'node:stream';
import { CacheWorker } from '../agent/cache-worker.ts';
import { ResidentMap, type ResidentSegment } from '../resident-map.ts';
import { ScratchCipher, readScratchFile, writeScratchFile } from '../scratch-cipher.ts';

const SUPERUSER = 'shim_test';
const SHIM = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..', '..', 'native', 'pgshim');

const account = unprivilegedAccount();
const runAs = account === undefined ? {} : { uid: account.uid, gid: account.gid };

/** One Postgres in its own process, started straight (no pg_ctl), stopped by signal. */
class Postmaster {
  readonly #child: ChildProcess;
  readonly #gone: Promise<number | null>;

  constructor(installation: PostgresInstallation, pgdata: string, log: string, env: Readonly<Record<string, string>>, key: Buffer | null) {
    // Straight into the file: what a dying server said is there when its exit is seen.
    const out = openSync(log, 'a');
    this.#child = spawn(join(installation.binDir, 'postgres'), ['-D', pgdata], {
      cwd: '/',
      env: { ...baseEnv(installation), ...env },
      stdio: ['ignore', out, out, ...(key === null ? [] : ['pipe' as const])],
      ...runAs,
    });
    closeSync(out);
    if (key !== null) (this.#child.stdio[3] as unknown as Writable).on('error', () => {}).end(key);
    this.#gone = new Promise((resolve) => this.#child.once('close', resolve));
  }

  get pid(): number {
    return this.#child.pid as number;
  }
  get exited(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }
  get gone(): Promise<number | null> {
    return this.#gone;
  }
  async stop(signal: NodeJS.Signals): Promise<void> {
    if (!this.exited) this.#child.kill(signal);
    await this.#gone;
  }
}

const baseEnv = (installation: PostgresInstallation): Record<string, string> => ({
  PATH: process.env['PATH'] ?? '/usr/bin:/bin',
  LD_LIBRARY_PATH: installation.libDir,
  LC_ALL: 'C',
  TZ: 'UTC',
  USER: accountName(account?.uid ?? process.getuid?.() ?? 0),
});

export interface FaultSeen {
  readonly path: string;
  readonly block: number;
  readonly count: number;
}

export interface ShimComputeOptions {
  readonly installation?: PostgresInstallation;
  readonly settings?: Readonly<Record<string, string>>;
  /** Scratch is not encrypted. */
  readonly plaintext?: boolean;
  /** An existing data directory to use as the source; see {@link ShimCompute.startPlain}. */
  readonly adopt?: string;
  /** The compute's data directory lies on a file system of its own, of this size (root only). */
  readonly diskBytes?: number;
}

export class ShimCompute implements AsyncDisposable {
  readonly directory: string;
  readonly installation: PostgresInstallation;
  readonly source: string;
  readonly pgdata: string;
  readonly mapPath: string;
  /** Of the compute's scratch; null: plaintext. */
  readonly cipher: ScratchCipher | null;
  /** Every request the fake agent answered. */
  readonly faults: FaultSeen[] = [];
  /** errno to answer for a fault, or undefined to serve it. */
  refuse: (fault: FaultSeen) => number | undefined = () => undefined;
  /** How long the agent takes for each answer, as a stand-in for the network and the pageserver. */
  answerDelayMs = 0;
  readonly #settings: Readonly<Record<string, string>>;
  readonly #disk: string | undefined;
  readonly #sockets = new Set<Socket>();
  #server: Postmaster | undefined;
  #agent: Server | undefined;
  #map: ResidentMap | undefined;
  #paths: { path: string; source: string }[] = [];

  constructor(options: ShimComputeOptions = {}) {
    this.installation = options.installation ?? findPostgres(18);
    this.directory = mkdtempSync(join(tmpdir(), 'lb-shim-'));
    this.source = options.adopt ?? join(this.directory, 'source');
    this.#disk = options.diskBytes === undefined ? undefined : join(this.directory, 'disk');
    this.pgdata = join(this.#disk ?? this.directory, 'compute');
    this.mapPath = join(this.directory, 'resident.map');
    this.#settings = options.settings ?? {};
    this.cipher = options.plaintext === true ? null : new ScratchCipher();
    this.#own(this.directory);
    chmodSync(this.directory, 0o700);
    if (this.#disk === undefined) return;
    mkdirSync(this.#disk);
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${options.diskBytes}`, 'tmpfs', this.#disk]);
    this.#own(this.#disk);
  }

  get logPath(): string {
    return join(this.directory, 'server.log');
  }
  get log(): string {
    return existsSync(this.logPath) ? readFileSync(this.logPath, 'utf8') : '';
  }
  get map(): ResidentMap {
    this.#map?.refresh(this.mapPath);
    return this.#map as ResidentMap;
  }
  get pid(): number {
    return this.#server?.pid ?? 0;
  }
  get gone(): Promise<number | null> {
    return this.#server?.gone ?? Promise.resolve(null);
  }

  /** initdb, the workload, a clean stop. */
  async makeSource(workload: (connect: (database?: string) => Promise<pg.Client>) => Promise<void>): Promise<void> {
    execFileSync(
      join(this.installation.binDir, 'initdb'),
      [
        ...['-D', this.source, '-U', SUPERUSER, '--auth=trust', '--no-sync', '--encoding=UTF8', '--locale=C'],
        ...(this.installation.major >= 18 ? ['--no-data-checksums'] : []), // the default before
      ],
      {
        cwd: '/',
        env: baseEnv(this.installation),
        stdio: 'pipe',
        ...runAs,
      },
    );
    this.#configure(this.source, {});
    await this.#startServer(this.source, {}, null);
    await workload((database) => this.connect(database));
    await this.stop();
  }

  /** Starts the source directory itself, without shim. */
  async startPlain(): Promise<void> {
    this.#own(this.source);
    for (const name of readdirSync(this.source, { recursive: true, encoding: 'utf8' })) this.#own(join(this.source, name));
    this.#configure(this.source, {});
    await this.#startServer(this.source, {}, null);
  }

  /** Lays out the second directory: small files copied, segments left to the shim, the map written. */
  prepare(): ResidentMap {
    const segments: ResidentSegment[] = [];
    const walk = (relative: string): void => {
      mkdirSync(join(this.pgdata, relative), { mode: 0o700 });
      this.#own(join(this.pgdata, relative));
      const names = readdirSync(join(this.source, relative), { withFileTypes: true });
      for (const entry of names) {
        const path = relative === '' ? entry.name : `${relative}/${entry.name}`;
        if (entry.isDirectory()) walk(path);
        else if (parseRelPath(path) === undefined) this.#copy(path);
      }
      for (const entry of names) {
        const parsed = parseRelPath(relative === '' ? entry.name : `${relative}/${entry.name}`);
        if (parsed === undefined) continue;
        const { tag, segment } = parsed;
        const init = { ...tag, fork: FORK_INIT } as const;
        const unlogged = tag.fork !== FORK_INIT && existsSync(join(this.source, relPath(init)));
        if (unlogged && (tag.fork !== FORK_MAIN || segment !== 0)) continue; // a fresh unlogged relation has only its init fork's blocks
        const sourceFork = unlogged ? FORK_INIT : tag.fork;
        const nblocks = statSync(join(this.source, relPath({ ...tag, fork: sourceFork }, segment))).size / BLCKSZ;
        segments.push({ tag, segment, nblocks, sourceFork });
      }
    };
    walk('');
    const map = ResidentMap.build(segments);
    map.write(this.mapPath);
    this.#own(this.mapPath);
    this.#map = map;
    this.#paths = [...map.entries()].map((e) => ({
      path: relPath(e.tag, e.segment),
      source: relPath({ ...e.tag, fork: e.sourceFork }, e.segment),
    }));
    this.#configure(this.pgdata, { restart_after_crash: 'off', ...this.#settings });
    return map;
  }

  get socketPath(): string {
    return join(this.directory, 'agent.sock');
  }

  async startAgent(): Promise<void> {
    const agent = createServer((socket) => this.#serve(socket));
    await new Promise<void>((resolve, reject) => {
      agent.once('error', reject);
      agent.listen(this.socketPath, resolve);
    });
    this.#own(this.socketPath);
    this.#agent = agent;
  }

  /** As if the agent had been killed: the socket file stays, connections break. */
  async stopAgent(): Promise<void> {
    const agent = this.#agent;
    this.#agent = undefined;
    if (agent === undefined) return;
    const closed = new Promise((resolve) => agent.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
    rmSync(this.socketPath, { force: true });
  }

  async start(env: Readonly<Record<string, string>> = {}): Promise<void> {
    if (this.#agent === undefined) await this.startAgent();
    const shim = join(this.directory, 'pgshim.so');
    if (!existsSync(shim)) copyFileSync(buildShim(), shim);
    chmodSync(shim, 0o755);
    const key = this.cipher?.key ?? null;
    const server = {
      ...(key === null ? { LAKEBASE_SHIM_PLAINTEXT: '1' } : { LAKEBASE_SHIM_KEY_FD: '3' }),
      LD_PRELOAD: shim,
      LAKEBASE_SHIM_DATADIR: this.pgdata,
      LAKEBASE_SHIM_MAP: this.mapPath,
      LAKEBASE_SHIM_SOCKET: this.socketPath,
      LAKEBASE_SHIM_LAYOUT: 'lazy',
      LAKEBASE_SHIM_PARENT: String(process.pid),
      ...env,
    };
    await this.#startServer(this.pgdata, server, key);
  }

  /** The cache worker beside this compute, as an agent starts it. */
  worker(cacheBytes: number | null): CacheWorker {
    const worker = new CacheWorker({
      program: join(this.installation.binDir, 'postgres'),
      env: {
        ...baseEnv(this.installation),
        LD_PRELOAD: join(this.directory, 'pgshim.so'),
        LAKEBASE_SHIM_DATADIR: this.pgdata,
        LAKEBASE_SHIM_MAP: this.mapPath,
        LAKEBASE_SHIM_SOCKET: this.socketPath,
      },
      scratchKey: () => this.cipher?.key ?? null,
      cacheBytes,
      log: silentLogger,
    });
    worker.start();
    return worker;
  }

  async stop(signal: NodeJS.Signals = 'SIGINT'): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    await server?.stop(signal);
  }

  async connect(database = 'postgres', extra: pg.ClientConfig = {}): Promise<pg.Client> {
    const client = new pg.Client({ host: this.directory, port: 5432, user: SUPERUSER, database, ...extra });
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  /** First column of the first row, on a connection of its own. */
  async value(sql: string, database?: string): Promise<unknown> {
    const client = await this.connect(database);
    try {
      const result = await client.query({ text: sql, rowMode: 'array' });
      return (result.rows[0] as unknown[] | undefined)?.[0];
    } finally {
      await client.end();
    }
  }

  async run(statements: readonly string[], database?: string): Promise<void> {
    const client = await this.connect(database);
    try {
      for (const sql of statements) await client.query(sql);
    } finally {
      await client.end();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop('SIGQUIT');
    await this.stopAgent();
    if (this.#disk !== undefined) execFileSync('umount', [this.#disk]);
    if (process.env['KEEP_SHIM_TEST'] === undefined)
      rmSync(this.directory, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 });
  }

  #own(path: string): void {
    if (account !== undefined) chownSync(path, account.uid, account.gid);
  }

  #copy(path: string): void {
    if (path === 'postmaster.pid' || path === 'postmaster.opts') return;
    writeScratchFile(this.cipher, join(this.pgdata, path), readFileSync(join(this.source, path)));
    this.#own(join(this.pgdata, path));
  }

  #configure(pgdata: string, settings: Readonly<Record<string, string>>): void {
    const all = {
      listen_addresses: '',
      unix_socket_directories: this.directory,
      fsync: 'off',
      shared_buffers: '16MB',
      max_connections: '40',
      autovacuum: 'off',
      ...settings,
    };
    const lines = Object.entries(all)
      .map(([k, v]) => `${k} = '${v}'\n`)
      .join('');
    const path = join(pgdata, 'postgresql.conf');
    const cipher = pgdata === this.pgdata ? this.cipher : null;
    writeScratchFile(cipher, path, Buffer.concat([readScratchFile(cipher, path), Buffer.from(lines)]));
  }

  async #startServer(pgdata: string, env: Readonly<Record<string, string>>, key: Buffer | null): Promise<void> {
    const server = new Postmaster(this.installation, pgdata, this.logPath, env, key);
    this.#server = server;
    const deadline = Date.now() + 30_000;
    for (;;) {
      if (server.exited || Date.now() > deadline) throw new Error(`Postgres did not start:\n${this.log.slice(-3_000)}`);
      try {
        await (await this.connect()).end();
        return;
      } catch (error) {
        // Not listening yet, or still starting: Postgres offers no event for it, a connection attempt is the probe.
        if (!/ECONNREFUSED|ENOENT|starting up|not yet accepting/.test(String(error))) throw error;
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    socket.on('error', () => socket.destroy());
    let pending = Buffer.alloc(0);
    socket.on('data', (chunk) => {
      pending = Buffer.concat([pending, chunk]);
      for (; pending.length >= 32; pending = pending.subarray(32)) {
        const answer = this.#answer(pending.subarray(0, 32));
        if (this.answerDelayMs === 0) socket.write(answer);
        else setTimeout(() => socket.write(answer), this.answerDelayMs);
      }
    });
  }

  #answer(request: Buffer): Buffer {
    const file = this.#paths[request.readUInt32LE(4)];
    const block = request.readUInt32LE(8);
    const count = request.readUInt16LE(12);
    if (request.readUInt32LE(0) !== 0x4c425251 || file === undefined || count < 1 || count > 128)
      throw new Error('the shim sent a bad request');
    const fault = { path: file.path, block, count };
    this.faults.push(fault);
    const errno = this.refuse(fault);
    const answer = Buffer.alloc(24 + (errno === undefined ? count * BLCKSZ : 0));
    answer.writeUInt32LE(0x4c425253, 0);
    answer.writeUInt32LE(errno ?? 0, 4);
    request.copy(answer, 8, 16, 24);
    if (errno !== undefined) return answer;
    answer.writeUInt32LE(count, 16);
    const fd = openSync(join(this.source, file.source), 'r');
    try {
      const length = readSync(fd, answer, 24, count * BLCKSZ, block * BLCKSZ);
      if (length !== count * BLCKSZ) throw new Error(`the shim asked beyond the end of ${file.path}: block ${block}+${count}`);
    } finally {
      closeSync(fd);
    }
    return answer;
  }
}

let built: string | undefined;

/** Builds the shim with the machine's compiler; once per process. */
export function buildShim(): string {
  if (built === undefined) {
    execFileSync('sh', [join(SHIM, 'build.sh')], { stdio: 'pipe' });
    built = join(SHIM, 'build', 'pgshim.so');
  }
  return built;
}
