/** The systems compared, all on this machine, all up at once: `lakebase` (ours), `stock` (fsync on), `sync` (two streaming standbys, ANY 1:
 *  commits are on two of three copies, as ours). Connections go to the server's own Unix socket, so the proxy is measured apart. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ComputeHostClient, internalToken } from '@lakebase/api';
import { must, sleep } from '@lakebase/base';
import { Cluster, StockPostgres, eventually } from '@lakebase/testkit';
import pg from 'pg';

export interface Arm extends AsyncDisposable {
  readonly name: 'lakebase' | 'plain' | 'stock' | 'sync';
  /** Host (socket directory), port, user and database of the server itself. */
  connection(): Promise<{ host: string; port: number; user: string; database: string }>;
  /** After bulk work: a checkpoint, and no background work of storage left. */
  settle(): Promise<void>;
  /** Leaves nothing of the database in the server's memory: a fresh compute, or a restarted server. */
  cold(): Promise<void>;
}

export const SHARED_BUFFERS = '128MB';
const COMMON = { shared_buffers: SHARED_BUFFERS, max_connections: '200', max_wal_size: '4GB' };

export async function connect(arm: Arm): Promise<pg.Client> {
  const client = new pg.Client(await arm.connection());
  client.on('error', () => {});
  await client.connect();
  return client;
}

export async function query(arm: Arm, sql: string): Promise<void> {
  const client = await connect(arm);
  try {
    await client.query(sql);
  } finally {
    await client.end();
  }
}

class StockArm implements Arm {
  readonly name: 'stock' | 'sync';
  readonly server: StockPostgres;
  readonly #standbys: readonly StockPostgres[];

  constructor(name: 'stock' | 'sync', server: StockPostgres, standbys: readonly StockPostgres[]) {
    this.name = name;
    this.server = server;
    this.#standbys = standbys;
  }
  async connection() {
    return this.server.clientConfig;
  }
  settle(): Promise<void> {
    return query(this, 'CHECKPOINT');
  }
  async cold(): Promise<void> {
    await this.server.stop();
    dropCaches();
    await this.server.start();
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]();
    for (const standby of this.#standbys) await standby[Symbol.asyncDispose]();
  }
}

export async function stockArm(): Promise<Arm> {
  return new StockArm('stock', await StockPostgres.start({ settings: { ...COMMON, fsync: 'on' } }), []);
}

export async function syncArm(): Promise<Arm> {
  const primary = StockPostgres.create({ settings: { ...COMMON, fsync: 'on', wal_keep_size: '1GB' } });
  await primary.start();
  await primary.stop();
  const names = ['s1', 's2'];
  const standbys = names.map((name) => {
    const standby = StockPostgres.copyOf(primary);
    writeFileSync(join(standby.pgdata, 'standby.signal'), '');
    standby.configure({
      primary_conninfo: `host=${primary.directory} port=${primary.port} user=${primary.clientConfig.user} application_name=${name}`,
      synchronous_standby_names: '',
    });
    return standby;
  });
  primary.configure({ synchronous_standby_names: `ANY 1 (${names.join(',')})` });
  await primary.start();
  for (const standby of standbys) await standby.start();
  const arm = new StockArm('sync', primary, standbys);
  const client = await connect(arm);
  await eventually('both standbys stream', async () =>
    (await client.query("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'")).rows.length === 2 ? true : undefined,
  );
  await client.end();
  return arm;
}

export class LakebaseArm implements Arm {
  readonly name: 'lakebase' | 'plain';
  readonly cluster: Cluster;
  readonly #host: ComputeHostClient;

  constructor(cluster: Cluster, name: 'lakebase' | 'plain' = 'lakebase') {
    this.name = name;
    this.cluster = cluster;
    const config = JSON.parse(readFileSync(join(cluster.home, 'config', 'compute.json'), 'utf8')) as {
      httpPort: number;
      secretFile: string;
    };
    const secret = readFileSync(config.secretFile, 'utf8').trim();
    this.#host = new ComputeHostClient({ baseUrl: `http://127.0.0.1:${config.httpPort}`, token: internalToken(secret, 'service') });
  }

  static async start(): Promise<LakebaseArm> {
    return new LakebaseArm(await Cluster.start());
  }
  /** The same with encryption switched off, of storage and of scratch. */
  static async plain(): Promise<LakebaseArm> {
    return new LakebaseArm(await Cluster.start({ env: { LAKEBASE_TEST_PLAINTEXT: '1', LAKEBASE_TEST_SCRATCH_PLAINTEXT: '1' } }), 'plain');
  }

  /** Seconds of processor time of all its processes, ended ones of Postgres included. */
  cpuSeconds(): number {
    const pids = [...CPU_SERVICES.flatMap((service) => this.cluster.pids(service)), ...this.cluster.computePids()];
    return pids.reduce((n, pid) => n + cpuTicks(pid, true), 0) / 100;
  }

  async compute() {
    const { computes } = await this.#host.list();
    return computes.find((c) => c.state === 'RUNNING');
  }

  async connection() {
    if ((await this.compute()) === undefined) await this.wake();
    const compute = must(await this.compute(), 'running compute');
    return {
      host: must(compute.socketDir, 'socket directory'),
      port: compute.port,
      user: 'lakebase_admin',
      database: 'databricks_postgres',
    };
  }

  async wake(): Promise<void> {
    const client = await this.cluster.connect();
    await client.query('SELECT 1');
    await client.end();
  }

  /** The pageserver merges what a load brought: until it used less than a tenth of a core for two seconds. */
  async settle(): Promise<void> {
    await query(this, 'CHECKPOINT');
    const ticks = (): number => this.cluster.pids('pageserver').reduce((n, pid) => n + cpuTicks(pid), 0);
    for (let tries = 0; tries < SETTLE_TRIES_MAX; tries++) {
      const before = ticks();
      await sleep(2_000);
      if (ticks() - before < 20) return;
    }
  }

  async suspend(): Promise<void> {
    const { code, stderr } = await this.cluster.cli(['suspend']);
    if (code !== 0) throw new Error(`lakebase suspend: ${stderr}`);
    await eventually('no compute is left', async () =>
      (await this.#host.list()).computes.some((c) => c.state === 'RUNNING' || c.state === 'STOPPING') ? undefined : true,
    );
  }

  async cold(): Promise<void> {
    await this.suspend();
    dropCaches();
    await this.wake();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.cluster[Symbol.asyncDispose]();
  }
}

/** The operating system's cache, where we may; both sides are treated alike. */
export function dropCaches(): void {
  try {
    writeFileSync('/proc/sys/vm/drop_caches', '3');
  } catch {
    // not root: the cold cases then measure a warm operating system cache on every arm
  }
}

const SETTLE_TRIES_MAX = 45;

const CPU_SERVICES = ['keymanager', 'sk1', 'sk2', 'sk3', 'pageserver', 'compute'] as const;

/** utime + stime of a process in hundredths of a second (proc_pid_stat(5), fields 14 and 15), and of its ended children (16 and 17). */
function cpuTicks(pid: number, children = false): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return Number(fields[11]) + Number(fields[12]) + (children ? Number(fields[13]) + Number(fields[14]) : 0);
}
