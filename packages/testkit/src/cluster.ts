/** The whole system on one machine, as `npm start` runs it, for system tests and benchmarks: real processes, killed by real signals.
 *  A process is found by the configuration file in its command line, so the tests know nothing of the supervisor's inside. */
import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { sleep } from '@lakebase/base';
import pg from 'pg';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');
const CLI = join(root, 'apps', 'cli', 'dist', 'main.js');
const READY_MS = 120_000;

export type ServiceName = 'keymanager' | 'sk1' | 'sk2' | 'sk3' | 'sk4' | 'pageserver' | 'pageserver2' | 'compute' | 'manager' | 'proxy';

export class Cluster implements AsyncDisposable {
  readonly home: string;
  readonly pgPort: number;
  readonly httpPort: number;
  readonly #env: NodeJS.ProcessEnv;
  #child: ChildProcess | undefined;
  #output = '';

  private constructor(home: string, pgPort: number, httpPort: number, env: NodeJS.ProcessEnv) {
    this.#env = env;
    this.home = home;
    this.pgPort = pgPort;
    this.httpPort = httpPort;
  }

  static async start(options: { readonly home?: string; readonly env?: NodeJS.ProcessEnv } = {}): Promise<Cluster> {
    const home = options.home ?? mkdtempSync(join(tmpdir(), 'lb-sys-'));
    chmodSync(home, 0o755); // Postgres's account must be able to enter it
    const cluster = new Cluster(home, await freePort(), await freePort(), options.env ?? {});
    try {
      await cluster.up();
      return cluster;
    } catch (error) {
      // A system that nobody ends keeps its test file from ending.
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Starts (again) on the same directory. */
  async up(): Promise<void> {
    this.#output = '';
    const child = spawn(process.execPath, [CLI, 'up'], { cwd: this.home, env: this.env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    const ready = new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`the system was not ready after ${READY_MS} ms:\n${this.#output}`)), READY_MS);
      const look = (chunk: Buffer): void => {
        this.#output += chunk.toString();
        if (/postgres(?:ql)?:\/\//.test(this.#output)) {
          clearTimeout(timer);
          resolve();
        }
      };
      child.stdout.on('data', look);
      child.stderr.on('data', look);
      child.once('exit', (code) => {
        clearTimeout(timer);
        reject(new Error(`lakebase up ended with ${code}:\n${this.#output}`));
      });
    });
    await ready;
  }

  get env(): NodeJS.ProcessEnv {
    return {
      ...process.env,
      ...this.#env,
      LAKEBASE_HOME: this.home,
      LAKEBASE_PG_PORT: String(this.pgPort),
      LAKEBASE_HTTP_PORT: String(this.httpPort),
    };
  }
  get output(): string {
    return this.#output;
  }
  get supervisorPid(): number {
    return this.#child?.pid ?? 0;
  }

  /** `postgresql://…` of the default project, as printed. */
  get url(): string {
    const match = /postgres(?:ql)?:\/\/\S+/.exec(this.#output);
    if (match === null) throw new Error(`no connection URL in:\n${this.#output}`);
    return match[0];
  }

  async connect(overrides: pg.ClientConfig = {}): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: this.url.replace(/sslmode=\w+/, 'sslmode=disable'), ...overrides });
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  /** Pids whose command line names this service's configuration. */
  pids(service: ServiceName): number[] {
    return processes((argv) => argv.includes(join(this.home, 'config', `${service}.json`)));
  }

  /** Postmasters of computes (not the Manager's own). */
  computePids(): number[] {
    return processes(
      (argv) =>
        /(^|\/)postgres$/.test(argv[0] ?? '') &&
        argv[1] === '-D' &&
        /\/computes\/[^/]+\/pgdata$/.test(argv[2] ?? '') &&
        (argv[2] ?? '').startsWith(this.scratchRoot()),
    );
  }

  scratchRoot(): string {
    const config = JSON.parse(readFileSync(join(this.home, 'config', 'compute.json'), 'utf8')) as { dataDir: string };
    return config.dataDir;
  }

  kill(service: ServiceName | 'postgres', signal: NodeJS.Signals = 'SIGKILL'): number[] {
    const pids = service === 'postgres' ? this.computePids() : this.pids(service);
    for (const pid of pids) process.kill(pid, signal);
    return pids;
  }

  /** Runs the CLI against this system. */
  cli(args: readonly string[]): Promise<{ code: number; stdout: string; stderr: string }> {
    return new Promise((resolve) => {
      const child = spawn(process.execPath, [CLI, ...args], { cwd: this.home, env: this.env, stdio: ['ignore', 'pipe', 'pipe'] });
      let stdout = '';
      let stderr = '';
      child.stdout.on('data', (c: Buffer) => {
        stdout += c.toString();
      });
      child.stderr.on('data', (c: Buffer) => {
        stderr += c.toString();
      });
      child.once('close', (code) => resolve({ code: code ?? 1, stdout, stderr }));
    });
  }

  /** Its standard output; throws with its standard error when it fails. */
  async lakebase(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.cli(args);
    if (code !== 0) throw new Error(`lakebase ${args.join(' ')}: ${stderr}`);
    return stdout;
  }
  async lakebaseJson<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.lakebase(...args, '--json')) as T;
  }

  log(service: ServiceName): string {
    const path = join(this.home, 'logs', `${service}.log`);
    return existsSync(path) ? readFileSync(path, 'utf8') : '';
  }

  /** The last lines of every service, for the message of a test that fails. */
  recentLogs(lines = 25): string {
    const dir = join(this.home, 'logs');
    if (!existsSync(dir)) return '';
    const tail = (name: string): string => readFileSync(join(dir, name), 'utf8').trimEnd().split('\n').slice(-lines).join('\n');
    return readdirSync(dir)
      .filter((name) => name.endsWith('.log'))
      .map((name) => `--- ${name}\n${tail(name)}`)
      .join('\n');
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill(signal);
    await gone;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    rmSync(this.home, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  }
}

export function processes(matches: (argv: readonly string[]) => boolean): number[] {
  const found: number[] = [];
  for (const name of readdirSync('/proc')) {
    if (!/^[0-9]+$/.test(name)) continue;
    try {
      const argv = readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0');
      if (matches(argv)) found.push(Number(name));
    } catch {
      // ended meanwhile
    }
  }
  return found;
}

/** Asks until `check` gives a value; for states that have no event to wait for from outside. */
export async function eventually<T>(what: string, check: () => Promise<T | undefined> | T | undefined, ms = 60_000): Promise<T> {
  const deadline = performance.now() + ms;
  let last: unknown;
  for (;;) {
    try {
      const value = await check();
      if (value !== undefined) return value;
    } catch (error) {
      last = error;
    }
    if (performance.now() > deadline) throw new Error(`not after ${ms} ms: ${what}${last instanceof Error ? ` (${last.message})` : ''}`);
    await sleep(50);
  }
}

export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0));
    });
  });
}
