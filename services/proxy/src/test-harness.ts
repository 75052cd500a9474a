/** For the proxy's tests: a stock Postgres on a Unix socket, a Manager that answers from memory, and a proxy between them. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { chmodSync, chownSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { LakebaseError, silentLogger } from '@lakebase/base';
import { type ResolvedEndpoint, type RoleSecret, ManagerInternalClient, type TokenIdentity, internalToken } from '@lakebase/api';
import { PgConnection, buildVerifier, formatVerifier } from '@lakebase/pg-wire';
import { createHttpServer, findPostgres, parseConfig, unprivilegedAccount } from '@lakebase/service-kit';
import { Registry } from 'prom-client';
import { type ProxyConfig, proxyConfigSchema } from './config.ts';
import { ProxyServer } from './proxy-server.ts';

const run = promisify(execFile);
export const SECRET: string = '5a'.repeat(32);
const PORT_IN_NAME = 6000;

/** A stock server with roles alice (password), tok (no password) and postgres (superuser); trust on the socket, no TCP. */
export class TestPostgres {
  readonly dir: string;
  readonly port = PORT_IN_NAME;
  #process: ChildProcess | undefined;
  readonly #installation = findPostgres(18, process.env['LAKEBASE_TEST_PG'] ?? null);
  readonly #account = unprivilegedAccount();

  constructor() {
    // Short: a Unix socket path has 107 bytes.
    this.dir = mkdtempSync('/tmp/lbproxy-');
    chmodSync(this.dir, 0o755);
    if (this.#account !== undefined) chownSync(this.dir, this.#account.uid, this.#account.gid);
  }

  get #spawnOptions(): { uid?: number; gid?: number; env: NodeJS.ProcessEnv; cwd: string } {
    const env = { PATH: process.env['PATH'], LC_ALL: 'C', LD_LIBRARY_PATH: this.#installation.libDir };
    return { env, cwd: this.dir, ...(this.#account === undefined ? {} : { uid: this.#account.uid, gid: this.#account.gid }) };
  }

  async init(): Promise<void> {
    const { binDir } = this.#installation;
    await run(
      join(binDir, 'initdb'),
      ['-D', join(this.dir, 'data'), '-U', 'postgres', '--auth=trust', '--no-sync', '-E', 'UTF8'],
      this.#spawnOptions,
    );
    await this.start();
    const c = await this.connect();
    for (const sql of [
      'create role alice login createdb',
      'create role tok login',
      'create role nologin',
      'create database app owner alice',
    ])
      await c.query(sql);
    await c.end();
  }

  /** Resolves when the server accepts connections. */
  async start(): Promise<void> {
    const { binDir } = this.#installation;
    const settings = {
      listen_addresses: '',
      unix_socket_directories: this.dir,
      port: `${this.port}`,
      fsync: 'off',
      max_connections: '200',
      shared_buffers: '32MB',
      wal_level: 'logical',
    };
    const args = ['-D', join(this.dir, 'data'), ...Object.entries(settings).flatMap(([k, v]) => ['-c', `${k}=${v}`])];
    const child = spawn(join(binDir, 'postgres'), args, { ...this.#spawnOptions, stdio: ['ignore', 'ignore', 'pipe'] });
    this.#process = child;
    let log = '';
    await new Promise<void>((resolve, reject) => {
      child.stderr?.on('data', (text: Buffer) => {
        log += text.toString();
        if (log.includes('ready to accept connections')) resolve();
        if (log.length > 100_000) log = log.slice(-50_000);
      });
      child.once('exit', (code) => reject(new Error(`postgres exited with ${code}: ${log}`)));
    });
  }

  connect(user = 'postgres', database = 'postgres'): Promise<PgConnection> {
    return PgConnection.connect({ host: this.dir, port: this.port, user, database });
  }

  async stop(signal: NodeJS.Signals = 'SIGINT'): Promise<void> {
    const child = this.#process;
    this.#process = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill(signal);
    await gone;
  }

  async remove(): Promise<void> {
    await this.stop('SIGQUIT');
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** A Manager from memory, over real HTTP. */
export class FakeManager {
  readonly endpoints: Map<string, ResolvedEndpoint> = new Map();
  defaultEndpoint: string | null = null;
  readonly roles: Map<string, RoleSecret> = new Map();
  readonly tokens: Map<string, TokenIdentity> = new Map();
  /** Answers or throws what the wake call answers. */
  onWake: (endpointId: string) => Promise<{ socketDir: string; port: number }> = async () => {
    throw new LakebaseError('UNAVAILABLE', 'no wake handler');
  };
  readonly calls = { resolve: 0, role: 0, token: 0, wake: 0 };
  url = '';
  #server = this.#create();

  #create(): ReturnType<typeof createHttpServer> {
    const server = createHttpServer({ log: silentLogger, secret: SECRET });
    const { app } = server;
    app.post('/internal/v1/resolve', async (request) => {
      this.calls.resolve++;
      const { endpoint } = request.body as { endpoint: string | null };
      const found = this.endpoints.get(endpoint ?? this.defaultEndpoint ?? '');
      if (found === undefined) throw new LakebaseError('NOT_FOUND', 'no such endpoint');
      return found;
    });
    app.post('/internal/v1/role', async (request) => {
      this.calls.role++;
      const found = this.roles.get((request.body as { role: string }).role);
      if (found === undefined) throw new LakebaseError('NOT_FOUND', 'no such role');
      return found;
    });
    app.post('/internal/v1/token', async (request) => {
      this.calls.token++;
      return this.tokens.get((request.body as { token: string }).token) ?? { valid: false, reason: null };
    });
    app.post('/internal/v1/wake', async (request) => {
      this.calls.wake++;
      const { endpointId } = request.body as { endpointId: string };
      return { endpointId, computeId: 'c1', stages: {}, ...(await this.onWake(endpointId)) };
    });
    return server;
  }

  addEndpoint(endpointId: string, more: Partial<ResolvedEndpoint> = {}): void {
    this.endpoints.set(endpointId, { endpointId, state: 'IDLE', disabled: false, ...more });
  }

  async addRole(name: string, password: string | null, login = true): Promise<void> {
    const verifier = password === null ? null : formatVerifier(await buildVerifier(password));
    this.roles.set(name, { name, verifier, login });
  }

  async start(): Promise<void> {
    const port = this.url === '' ? 0 : Number(new URL(this.url).port);
    this.url = await this.#server.app.listen({ host: '127.0.0.1', port });
  }

  async stop(): Promise<void> {
    await this.#server.app.close();
    this.#server = this.#create();
  }
}

export function proxyConfig(managerUrl: string, dataDir: string, more: Partial<ProxyConfig> = {}): ProxyConfig {
  const raw = { id: 'proxy', httpPort: 0, secretFile: '/nonexistent', listenPort: 0, managerUrl, dataDir, logLevel: 'error', ...more };
  return parseConfig(proxyConfigSchema, raw, 'test') as ProxyConfig;
}

export function startProxy(config: ProxyConfig): Promise<ProxyServer> {
  const manager = new ManagerInternalClient({ baseUrl: config.managerUrl, token: internalToken(SECRET, 'service') });
  return ProxyServer.start({ config, log: silentLogger, manager, secret: SECRET, registry: new Registry() });
}

export function temporaryDirectory(): string {
  const dir = mkdtempSync('/tmp/lbproxy-');
  writeFileSync(join(dir, '.keep'), '');
  return dir;
}
