/** A Manager for tests: in this process or in one of its own that can be killed, over a real metadata Postgres and fake services. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ManagerInternalClient, internalToken } from '@lakebase/api';
import { silentLogger, sleep } from '@lakebase/base';
import { Teardown, parseConfig } from '@lakebase/service-kit';
import pg from 'pg';
import { type ManagerConfig, managerConfig } from '../config.ts';
import { type Manager, startManager } from '../manager.ts';
import { EmbeddedPostgres } from '../metadata/embedded-postgres.ts';
import { FakeServices } from './fake-services.ts';

export type Json = Record<string, any>; // oxlint-disable-line no-explicit-any -- answers are read freely in tests

export class TestBed implements AsyncDisposable {
  readonly dir: string;
  readonly secret: string;
  readonly fake: FakeServices;
  readonly #postgres: EmbeddedPostgres;
  #databases = 0;

  private constructor(dir: string, secret: string, fake: FakeServices, postgres: EmbeddedPostgres) {
    this.dir = dir;
    this.secret = secret;
    this.fake = fake;
    this.#postgres = postgres;
  }

  static async create(): Promise<TestBed> {
    const dir = mkdtempSync(join(tmpdir(), 'lb-manager-'));
    const secret = randomBytes(32).toString('hex');
    writeFileSync(join(dir, 'secret'), secret, { mode: 0o600 });
    const postgres = new EmbeddedPostgres({
      dataDir: join(dir, 'metadata'),
      prefix: null,
      password: 'metadata',
      log: silentLogger,
      settings: { fsync: 'off' },
    });
    await postgres.start();
    return new TestBed(dir, secret, await FakeServices.start(secret), postgres);
  }

  /** An empty metadata database; its URL. */
  async newDatabase(): Promise<string> {
    const config = this.#postgres.clientConfig;
    const client = new pg.Client(config as pg.ClientConfig);
    await client.connect();
    const name = `meta${++this.#databases}`;
    await client.query(`CREATE DATABASE ${name}`);
    await client.end();
    return `postgresql://lakebase:metadata@/${name}?host=${encodeURIComponent(String(config.host))}&port=${String(config.port)}`;
  }

  /** As a backup of `from` would be: `to` holds what it holds now. */
  async copyDatabase(from: string, to: string): Promise<void> {
    const nameOf = (url: string): string => new URL(url.replace('@/', '@x/')).pathname.slice(1);
    const client = new pg.Client(this.#postgres.clientConfig as pg.ClientConfig);
    await client.connect();
    try {
      // A template may have no sessions: they are ended, and come back by themselves.
      await client.query(`DROP DATABASE ${nameOf(to)}`);
      await client.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [nameOf(from)]);
      await client.query(`CREATE DATABASE ${nameOf(to)} TEMPLATE ${nameOf(from)}`);
    } finally {
      await client.end();
    }
  }

  config(databaseUrl: string | null, overrides: Partial<ManagerConfig> = {}): ManagerConfig {
    const home = databaseUrl === null ? 'own' : new URL(databaseUrl.replace('@/', '@x/')).pathname.slice(1);
    return parseConfig(
      managerConfig,
      {
        id: 'manager',
        httpPort: 0,
        secretFile: join(this.dir, 'secret'),
        logLevel: 'warn',
        dataDir: join(this.dir, home),
        databaseUrl,
        computeHostUrl: this.fake.url('compute'),
        pageserver: { httpUrl: this.fake.url('pageserver'), pageHost: '127.0.0.1', pagePort: 1 },
        safekeepers: this.fake.safekeepers,
        keyManagerUrl: this.fake.url('keys'),
        localKeysDir: join(this.dir, 'keys'),
        proxyPort: 55_432,
        adminTokenFile: join(this.dir, `${home}-admin-token`),
        credentialsFile: join(this.dir, `${home}-credentials.json`),
        ...overrides,
      },
      'test',
    ) as ManagerConfig;
  }

  async manager(config: ManagerConfig): Promise<RunningManager> {
    const teardown = new Teardown(silentLogger);
    const manager = await startManager({ config, log: silentLogger, teardown, fail: () => {} });
    return new RunningManager(config, manager, teardown, this.secret);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.fake[Symbol.asyncDispose]();
    await this.#postgres.stop();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

class Calls {
  readonly config: ManagerConfig;
  readonly baseUrl: string;
  readonly internal: ManagerInternalClient;

  constructor(config: ManagerConfig, port: number, secret: string) {
    this.config = config;
    this.baseUrl = `http://127.0.0.1:${port}`;
    this.internal = new ManagerInternalClient({ baseUrl: this.baseUrl, token: internalToken(secret, 'service') });
  }

  async call(
    method: string,
    path: string,
    body?: unknown,
    token = readFileSync(this.config.adminTokenFile, 'utf8').trim(),
    headers: Record<string, string> = {},
  ): Promise<{ status: number; body: Json }> {
    const response = await fetch(`${this.baseUrl}/api/2.0/${path}`, {
      method,
      headers: { authorization: `Bearer ${token}`, ...headers, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    return { status: response.status, body: text === '' ? {} : (JSON.parse(text) as Json) };
  }

  /** The finished operation of a call that must be accepted. */
  async operate(method: string, path: string, body?: unknown): Promise<Json> {
    let answer = await this.call(method, `postgres/${path}`, body);
    const metadata = answer.body.metadata as Json;
    if (answer.status !== 200) throw new Error(`${method} ${path}: ${JSON.stringify(answer)}`);
    while (answer.body.done !== true) {
      await sleep(10);
      answer = await this.call('GET', `postgres/${String(answer.body.name)}`);
    }
    return { ...answer.body, metadata };
  }

  async branchReady(project = 'default'): Promise<void> {
    await eventually(
      `branch of ${project}`,
      async () => (await this.call('GET', `postgres/projects/${project}/branches/production`)).body.status?.current_state === 'READY',
    );
  }
  async endpoint(project = 'default'): Promise<Json> {
    return (await this.call('GET', `postgres/projects/${project}/branches/production/endpoints/primary`)).body;
  }
}

export class RunningManager extends Calls implements AsyncDisposable {
  readonly manager: Manager;
  readonly #teardown: Teardown;

  constructor(config: ManagerConfig, manager: Manager, teardown: Teardown, secret: string) {
    super(config, manager.port, secret);
    this.manager = manager;
    this.#teardown = teardown;
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#teardown.run();
  }
}

/** A Manager process that ends by kill -9. */
export class KillableManager extends Calls {
  readonly #child: ChildProcess;

  private constructor(config: ManagerConfig, child: ChildProcess, secret: string) {
    super(config, config.httpPort, secret);
    this.#child = child;
  }

  static async start(bed: TestBed, config: ManagerConfig): Promise<KillableManager> {
    const file = join(bed.dir, `config-${randomBytes(4).toString('hex')}.json`);
    const withPort = { ...config, httpPort: await freePort() };
    writeFileSync(file, JSON.stringify(withPort));
    const main = join(import.meta.dirname, '..', 'main.ts');
    const child = spawn(process.execPath, ['--conditions=lakebase-source', main, '--config', file], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    return new KillableManager(withPort, child, bed.secret);
  }

  async up(): Promise<this> {
    await eventually(
      'manager process',
      async () => {
        if (this.#child.exitCode !== null) throw new Error(`the Manager ended with ${this.#child.exitCode}`);
        return (await fetch(`${this.baseUrl}/healthz`)).ok;
      },
      60_000,
    );
    return this;
  }

  async kill(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill('SIGKILL');
    await once(this.#child, 'exit');
  }
}

export function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer();
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

/** Looks again every few milliseconds: for states of another process, which has no event for us. */
export async function eventually(what: string, check: () => Promise<boolean> | boolean, ms = 20_000): Promise<void> {
  const deadline = Date.now() + ms;
  for (let last: unknown; ; ) {
    try {
      if (await check()) return;
    } catch (error) {
      if (/ended with/.test((error as Error).message)) throw error;
      last = error;
    }
    if (Date.now() > deadline) throw new Error(`not in time: ${what}${last === undefined ? '' : ` (${(last as Error).message})`}`);
    await sleep(10);
  }
}
