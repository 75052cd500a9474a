/** The two servers the suites run against: a stock one and a compute of a whole system, both of the same build and with the same settings. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ComputeStatus, internalToken, type PageTimelineStatus } from '@lakebase/api';
import { must } from '@lakebase/base';
import { type Lsn, parseLsn, parseProjectUid, parseTimelineId, type ProjectUid, type TimelineId } from '@lakebase/ids';
import { findPostgres } from '@lakebase/service-kit';
import { Cluster, ClusterInternals, eventually, StockPostgres } from '@lakebase/testkit';
import pg from 'pg';
import { SUPERUSER, type Target } from './driver.ts';
import { PageSource } from './page-source.ts';

/** What both servers are told; the rest of the compute's own settings is copied to the stock server. */
export const SUITE_SETTINGS: Readonly<Record<string, string>> = {
  max_prepared_transactions: '10',
  shared_buffers: '128MB',
  max_wal_size: '1GB',
};

/** A compute's settings that a stock server cannot have or that have nothing to do with what queries print. */
const NOT_COPIED = new Set([
  'listen_addresses',
  'unix_socket_directories',
  'port',
  'synchronous_standby_names',
  'lakebase.term',
  'hba_file',
  'ident_file',
  'config_file',
  'data_directory',
  'external_pid_file',
  'shared_preload_libraries',
  'restart_after_crash',
]);

const PROJECT = 'conformance';
const running = new Set<AsyncDisposable>();

/** Stops every server and system that was started here and still runs. */
export async function disposeRunning(): Promise<void> {
  await Promise.allSettled([...running].map((server) => server[Symbol.asyncDispose]()));
}

export async function connectTo(target: Target, database: string): Promise<pg.Client> {
  const client = new pg.Client({ host: target.socketDir, port: target.port, user: SUPERUSER, database });
  client.on('error', () => {});
  await client.connect();
  return client;
}

/** A stock server like the compute: same locale, same settings from its configuration file. */
export async function stockLike(major: number, prefix: string | null, ours: Target): Promise<StockPostgres> {
  const client = await connectTo(ours, 'postgres');
  const { rows } = await client.query<{ name: string; setting: string }>(
    "SELECT name, setting FROM pg_file_settings WHERE applied AND name NOT LIKE '%.%'",
  );
  await client.end();
  const settings = Object.fromEntries(rows.filter((row) => !NOT_COPIED.has(row.name)).map((row) => [row.name, row.setting]));
  const server = await StockPostgres.start({
    installation: findPostgres(major, prefix),
    initdb: ['-U', SUPERUSER, ...(major >= 17 ? ['--locale-provider=builtin', '--builtin-locale=C.UTF-8'] : [])],
    settings,
  });
  running.add(server);
  return server;
}

/** Stock server as a target. */
export const stockTarget = (server: StockPostgres): Target => ({ name: 'stock', socketDir: server.directory, port: server.port });

export interface SystemOptions {
  readonly major: number;
  /** Installation the computes run; null: the npm build. */
  readonly prefix: string | null;
  /** Layers are flushed every megabyte and merged every two. */
  readonly tiny?: boolean;
  /** The pageserver is killed again and again. */
  readonly kill?: boolean;
  readonly home?: string;
}

export class OurSystem implements AsyncDisposable {
  readonly cluster: Cluster;
  readonly inside: ClusterInternals;
  readonly major: number;
  kills = 0;
  /** Of the compute that `target` named last. */
  startLsn = '0/0';
  #killer: NodeJS.Timeout | undefined;
  #branch: { project: ProjectUid; timeline: TimelineId } | undefined;
  #url: string | undefined;

  private constructor(cluster: Cluster, major: number) {
    this.cluster = cluster;
    this.inside = new ClusterInternals(cluster);
    this.major = major;
  }

  static async start(options: SystemOptions): Promise<OurSystem> {
    if (options.prefix !== null) process.env[`LAKEBASE_POSTGRES_${options.major}`] = options.prefix;
    process.env['LAKEBASE_SUSPEND_SECONDS'] = '86400';
    const cluster = await Cluster.start({ home: options.home ?? mkdtempSync(join(tmpdir(), 'lb-conformance-')) });
    const system = new OurSystem(cluster, options.major);
    running.add(system);
    const before = new Set(system.#timelines().map((t) => t.timeline));
    await system.#cli('projects', 'create', PROJECT, '--pg-version', String(options.major));
    system.#branch = system.#timelines().find((t) => !before.has(t.timeline));
    system.#url = (await system.#cli('connection-string', '--project', PROJECT)).replace(/sslmode=\w+/, 'sslmode=disable');
    const settings = Object.entries(SUITE_SETTINGS).flatMap(([name, value]) => ['--set', `${name}=${value}`]);
    await system.#cli('endpoints', 'update', 'primary', '--project', PROJECT, ...settings);
    if (options.tiny === true) await system.#configurePageserver({ openLayerBytes: 1 << 20, compactionLayers: 2, layerFileBytes: 1 << 20 });
    await system.restartCompute();
    if (options.kill === true) system.#killPageserver();
    return system;
  }

  async #cli(...args: string[]): Promise<string> {
    return (await this.cluster.lakebase(...args)).trim();
  }

  #timelines(): { project: ProjectUid; timeline: TimelineId }[] {
    const dir = join(this.cluster.home, 'data', 'pageserver', 'timelines');
    if (!existsSync(dir)) return [];
    return readdirSync(dir).flatMap((project) =>
      readdirSync(join(dir, project)).map((timeline) => ({ project: parseProjectUid(project), timeline: parseTimelineId(timeline) })),
    );
  }

  async #configurePageserver(change: Readonly<Record<string, number>>): Promise<void> {
    const path = join(this.cluster.home, 'config', 'pageserver.json');
    const config = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
    writeFileSync(path, JSON.stringify({ ...config, ...change }), { mode: 0o600 });
    this.cluster.kill('pageserver');
    await eventually('the pageserver is back', () => this.status());
  }

  /** Each life is long enough to get something done: the supervisor waits longer and longer before it starts what keeps dying. */
  #killPageserver(): void {
    this.#killer = setTimeout(
      () => {
        this.kills += this.cluster.kill('pageserver').length;
        const back = eventually('the pageserver is back', () => this.status(), 300_000);
        void back
          .catch(() => {})
          .then(() => {
            if (this.#killer !== undefined) this.#killPageserver();
          });
      },
      3_000 + Math.random() * 12_000,
    );
  }

  /** From here on it lives: before what needs the system at rest. */
  stopKilling(): void {
    clearTimeout(this.#killer);
    this.#killer = undefined;
  }

  branch(): { project: ProjectUid; timeline: TimelineId } {
    return must(this.#branch, 'the branch of the project');
  }

  status(): Promise<PageTimelineStatus> {
    const { project, timeline } = this.branch();
    return this.inside.pageserver.status(project, timeline);
  }

  head = async (): Promise<Lsn> => {
    const status = await eventually('the pageserver answers', () => this.status());
    if (status.state === 'BROKEN') throw new Error(`storage of the branch is broken: ${status.error}`);
    return parseLsn(status.lastRecordLsn);
  };

  pages(): PageSource {
    const { pageHost, pagePort } = this.inside.manager.pageserver;
    return new PageSource({ host: pageHost, port: pagePort, token: internalToken(this.inside.secret, 'service'), ...this.branch() });
  }

  /** Ends the compute and starts a fresh one from storage. */
  async restartCompute(how: 'suspend' | 'kill' = 'suspend'): Promise<Target> {
    if (how === 'kill') this.cluster.kill('postgres');
    else await this.#cli('suspend', '--project', PROJECT);
    await eventually('no compute', async () => ((await this.inside.running()) === undefined ? true : undefined));
    return this.target();
  }

  /** As the project's owner, through the proxy. */
  async connect(): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: must(this.#url, 'connection string') });
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  /** The running compute, woken when there is none. */
  async target(): Promise<Target> {
    const client = await eventually('a compute', () => this.connect());
    await client.end();
    const compute: ComputeStatus = await eventually('it is listed', () => this.inside.running());
    this.startLsn = compute.startLsn ?? '0/0';
    return { name: 'compute', socketDir: must(compute.socketDir, 'socket directory'), port: compute.port };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.stopKilling();
    running.delete(this);
    await this.cluster[Symbol.asyncDispose]();
  }
}
