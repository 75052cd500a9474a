/** Test rig: a stock Postgres as the compute, three safekeepers in this process, and an election like the agent's. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { appendFileSync, chownSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type PeerAddress, SafekeeperClient, type VoteResponse, type WalTimelineStatus, internalToken } from '@lakebase/api';
import { type Logger, must, silentLogger, sleep } from '@lakebase/base';
import { type Lsn, type ProjectUid, type Term, type TimelineId, formatLsn, newProjectUid, newTimelineId, parseLsn } from '@lakebase/ids';
import { LocalKeys } from '@lakebase/keys';
import { PgConnection, unixSocketPath } from '@lakebase/pg-wire';
import { findPostgres, unprivilegedAccount } from '@lakebase/service-kit';
import {
  type Configuration,
  Election,
  type ElectionAction,
  beginReplacement,
  finishReplacement,
  historyFromJson,
  historyToJson,
  memberIdOf,
  nodeOf,
  staticConfiguration,
  votersOf,
} from '@lakebase/wal-quorum';
import type { SafekeeperConfig } from '../config.ts';
import { type Safekeeper, startSafekeeper } from '../service.ts';
import type { WalTimeline } from '../wal-timeline.ts';

export const SECRET = '5e'.repeat(32);
const PORT = 5432;
const START_MS = 60_000;
/** Of ports that were free a moment ago. */
const PORT_TRIES = 3;

const ended = (child: ChildProcess): boolean => child.exitCode !== null || child.signalCode !== null;

export class StockServer implements AsyncDisposable {
  readonly dir = mkdtempSync(join(tmpdir(), 'lb-sk-pg-'));
  readonly #account = unprivilegedAccount();
  readonly #installation = findPostgres(18);
  #child: ChildProcess | undefined;

  constructor(settings: Readonly<Record<string, string>> = {}) {
    if (this.#account !== undefined) chownSync(this.dir, this.#account.uid, this.#account.gid);
    const args = [
      '-D',
      join(this.dir, 'data'),
      '-U',
      'admin',
      '--auth=trust',
      '--no-sync',
      '--no-data-checksums',
      '--encoding=UTF8',
      '--locale=C',
    ];
    execFileSync(join(this.#installation.binDir, 'initdb'), args, { ...this.#spawnOptions, stdio: 'pipe' });
    this.configure({
      listen_addresses: '',
      unix_socket_directories: this.dir,
      fsync: 'off',
      full_page_writes: 'off',
      wal_sender_timeout: '10s',
      ...settings,
    });
  }

  get #spawnOptions() {
    const env = { ...process.env, LD_LIBRARY_PATH: this.#installation.libDir, LC_ALL: 'C', TZ: 'UTC' };
    return { cwd: '/', env, ...(this.#account === undefined ? {} : { uid: this.#account.uid, gid: this.#account.gid }) };
  }

  configure(settings: Readonly<Record<string, string>>): void {
    appendFileSync(
      join(this.dir, 'data', 'postgresql.conf'),
      Object.entries(settings)
        .map(([k, v]) => `${k} = '${v}'\n`)
        .join(''),
    );
  }

  async start(): Promise<void> {
    this.#child = spawn(join(this.#installation.binDir, 'postgres'), ['-D', join(this.dir, 'data')], {
      ...this.#spawnOptions,
      stdio: 'ignore',
    });
    for (const deadline = performance.now() + START_MS; ; ) {
      if (ended(this.#child)) throw new Error('Postgres did not start');
      if (existsSync(unixSocketPath(this.dir, PORT))) {
        try {
          await (await this.connect()).end();
          return;
        } catch (error) {
          if (performance.now() > deadline) throw error;
        }
      }
      if (performance.now() > deadline) throw new Error(`Postgres did not start within ${START_MS} ms`);
      await sleep(10);
    }
  }

  reload(settings: Readonly<Record<string, string>>): void {
    this.configure(settings);
    this.#child?.kill('SIGHUP');
  }

  connect(): Promise<PgConnection> {
    return PgConnection.connect({ host: this.dir, port: PORT, user: 'admin', database: 'postgres' });
  }

  async stop(signal: NodeJS.Signals = 'SIGINT'): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    // A child that a signal ended has no exit code, and tells of its end but once.
    if (child === undefined || ended(child)) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill(signal);
    await gone;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop('SIGQUIT');
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 });
  }
}

export class Member {
  /** Of its own: each member sees the same key come and go, as processes do, but not at the same instant. */
  readonly keys: LocalKeys;
  readonly address: PeerAddress;
  readonly client: SafekeeperClient;
  readonly config: SafekeeperConfig;
  readonly #log: Logger;
  running: Safekeeper | undefined;
  readonly retired: { project: string; below: number }[] = [];

  constructor(config: SafekeeperConfig, log: Logger, keys = new LocalKeys()) {
    this.keys = keys;
    this.config = config;
    this.#log = log;
    this.address = { id: config.id, httpUrl: `http://127.0.0.1:${config.httpPort}`, pgHost: '127.0.0.1', pgPort: config.pgPort };
    this.client = new SafekeeperClient({ baseUrl: this.address.httpUrl, token: internalToken(SECRET, 'service') });
  }

  async start(): Promise<void> {
    this.running = await startSafekeeper(this.config, SECRET, this.#log, {
      source: this.keys,
      retire: async (project, below) => void this.retired.push({ project, below }),
      client: undefined,
    });
    // The client's pool may still hold connections to the member that was here before.
    await until(`${this.config.id} answers`, () =>
      this.client.http.call('GET', '/healthz').then(
        () => true,
        () => false,
      ),
    );
  }

  async stop(): Promise<void> {
    await this.running?.stop();
    this.running = undefined;
  }
}

export class Quorum implements AsyncDisposable {
  readonly project: ProjectUid = newProjectUid();
  readonly timeline: TimelineId = newTimelineId();
  readonly members: readonly Member[];
  readonly #root: string;

  private constructor(members: readonly Member[], root: string) {
    this.members = members;
    this.#root = root;
  }

  /** `first` changes the configuration of sk1 only. */
  static async start(
    log: Logger = silentLogger,
    first: Partial<SafekeeperConfig> = {},
    all: (root: string) => Partial<SafekeeperConfig> = () => ({}),
  ): Promise<Quorum> {
    for (let tries = 1; ; tries++) {
      const quorum = await Quorum.#prepared(log, first, all);
      try {
        for (const member of quorum.members) await member.start();
        return quorum;
      } catch (error) {
        // Members that listen keep their test file from ending.
        await quorum[Symbol.asyncDispose]();
        if (tries === PORT_TRIES || (error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
      }
    }
  }

  static async #prepared(log: Logger, first: Partial<SafekeeperConfig>, all: (root: string) => Partial<SafekeeperConfig>): Promise<Quorum> {
    const root = mkdtempSync(join(tmpdir(), 'lb-sk-'));
    const ports = await freePorts(6);
    const addresses = ['sk1', 'sk2', 'sk3'].map((id, i) => ({
      id,
      httpUrl: `http://127.0.0.1:${ports[i]}`,
      pgHost: '127.0.0.1',
      pgPort: ports[i + 3] as number,
    }));
    let shared: LocalKeys | undefined;
    const members = addresses.map((own, i) => {
      const config: SafekeeperConfig = {
        objectStore: null,
        id: own.id,
        httpHost: '127.0.0.1',
        httpPort: ports[i] as number,
        secretFile: '',
        keyManagerUrl: null,
        logLevel: 'warn',
        pgHost: '127.0.0.1',
        pgPort: own.pgPort,
        dataDir: join(root, own.id),
        peers: addresses.filter((a) => a.id !== own.id),
        nodes: [],
        testPlaintext: false,
        trimAfterBytes: 0,
        walDiskBytes: null,
        offloadIdleMs: 200,
        offloadAgeMs: 5_000,
        offloadTailMs: 0,
        offloadTakeoverMs: 5_000,
        reEncryptBytesPerSecond: 1 << 30,
        ringBytes: 1 << 20,
        scrubIntervalMs: 0,
        scrubBytesPerSecond: 1 << 30,
        scrubOrphanAgeMs: 0,
        ...all(root),
        ...(i === 0 ? first : {}),
      };
      // Objects that one member puts are read by the others.
      const keys = config.objectStore === null || shared === undefined ? new LocalKeys() : new LocalKeys({ sameKeksAs: shared });
      shared ??= keys;
      return new Member(config, log.child({ sk: own.id }), keys);
    });
    return new Quorum(members, root);
  }

  member(i: number): Member {
    return this.members[i] as Member;
  }
  status(i: number): Promise<WalTimelineStatus> {
    return this.member(i).client.status(this.project, this.timeline);
  }

  /** The timeline on a member that runs. */
  running(i: number): WalTimeline {
    return must(this.member(i).running, `sk${i + 1}`).timelines.get(this.project, this.timeline);
  }

  /** Creates the timeline everywhere, beginning at the server's present end of WAL. */
  async create(server: StockServer): Promise<void> {
    const sql = await server.connect();
    await sql.query('CHECKPOINT');
    const [end] = await sql.query(
      'SELECT pg_current_wal_insert_lsn()::text, pg_switch_wal()::text, system_identifier::text FROM pg_control_system()',
    );
    const [row] = await sql.query('SELECT pg_current_wal_insert_lsn()::text');
    await sql.end();
    const startLsn = row?.rows[0]?.[0] as string;
    const body = { systemId: end?.rows[0]?.[2] as string, pgVersion: 18, startLsn, prevRecordLsn: end?.rows[0]?.[0] as string };
    for (const member of this.members) await member.client.create(this.project, this.timeline, body);
  }

  /** By which elections and computes count; {@link replace} moves it on. */
  configuration: Configuration = staticConfiguration(['sk1', 'sk2', 'sk3']);

  /** An election over whoever is up. */
  async elect(term: number, members: readonly Member[] = this.members.filter((m) => m.running !== undefined)): Promise<Lsn> {
    const { configuration } = this;
    const election = new Election({ configuration, term: term as Term });
    const at = (id: string, among: readonly Member[]): Member | undefined => among.find((m) => m.config.id === nodeOf(id));
    let startLsn: Lsn | undefined;
    const perform = async (actions: readonly ElectionAction[]): Promise<void> => {
      for (const action of actions) {
        if (action.kind === 'lost') throw new Error(`election lost: ${action.reason}`);
        if (action.kind === 'won') startLsn = action.result.startLsn;
        if (action.kind !== 'elected') continue;
        const to = at(action.to, members);
        if (to === undefined) continue;
        const answer = await to.client.elected(this.project, this.timeline, {
          term: action.request.term,
          termStartLsn: formatLsn(action.request.termStartLsn),
          lastRecordLsn: formatLsn(action.request.lastRecordLsn),
          termHistory: historyToJson(action.request.termHistory),
          donor: must(at(action.request.donor, this.members), 'donor').address,
          voters: action.request.voters,
          configuration,
        });
        await perform(election.onElected(action.to, { term: answer.term, flushRecordLsn: parseLsn(answer.flushRecordLsn) }));
      }
    };
    for (const id of votersOf(configuration)) {
      const member = at(id, members);
      if (member === undefined) continue;
      const v = await member.client.vote(this.project, this.timeline, { term: term as Term, configuration });
      await perform(v.granted ? election.onVote(voteFrom(id, v)) : election.onRefusal(id, { reason: 'refused' }));
    }
    if (startLsn === undefined) throw new Error('no quorum adopted the term');
    return startLsn;
  }

  /** What the Manager does for a member whose disk is lost, on the same node (docs/protocols/membership.md). */
  async replace(index: number): Promise<void> {
    const leaving = votersOf(this.configuration).find((id) => nodeOf(id) === this.member(index).config.id) as string;
    const others = this.members.filter((_m, i) => i !== index);
    const { client, address } = this.member(index);
    const joining = memberIdOf(address.id, this.configuration.generation + 1);
    const joint = beginReplacement(this.configuration, leaving, joining);
    const nodes = this.members.map((m) => m.address);
    const { startLsn, prevRecordLsn, systemId, pgVersion } = await must(others[0], 'peer').client.status(this.project, this.timeline);
    for (const m of others) await m.client.configure(this.project, this.timeline, { configuration: joint, nodes, make: null });
    const { incarnation } = await client.node();
    const make = { member: joining, incarnation, timeline: { startLsn, prevRecordLsn, systemId, pgVersion } };
    await client.configure(this.project, this.timeline, { configuration: joint, nodes, make });
    await client.catchUp(this.project, this.timeline, must(others[0], 'peer').address);
    this.configuration = finishReplacement(joint);
    for (const m of this.members)
      await m.client.configure(this.project, this.timeline, { configuration: this.configuration, nodes, make: null });
  }

  async subscribe(
    server: StockServer,
    term: number,
    members: readonly Member[] = this.members.filter((m) => m.running !== undefined),
  ): Promise<void> {
    for (const member of members)
      await member.client.subscribe(this.project, this.timeline, {
        term: term as Term,
        host: server.dir,
        port: PORT,
        user: 'admin',
        standbyName: votersOf(this.configuration).find((id) => nodeOf(id) === member.config.id) as string,
        ...(this.configuration.generation > 0 ? { configuration: this.configuration } : {}),
      });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const member of this.members) await member.stop();
    rmSync(this.#root, { recursive: true, force: true });
  }
}

const voteFrom = (voter: string, v: VoteResponse) => ({
  voter,
  term: v.term,
  lastLogTerm: v.lastLogTerm,
  flushRecordLsn: parseLsn(v.flushRecordLsn),
  lastRecordLsn: parseLsn(v.lastRecordLsn),
  commitLsn: parseLsn(v.commitLsn),
  termHistory: historyFromJson(v.termHistory),
});

async function freePorts(n: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: n }, () => {
      const server = createServer();
      return new Promise<typeof server>((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)));
    }),
  );
  const ports = servers.map((s) => (s.address() as { port: number }).port);
  await Promise.all(servers.map((s) => new Promise((resolve) => s.close(resolve))));
  return ports;
}

/** Polls a fact that other processes make true. */
export async function until(what: string, check: () => Promise<boolean> | boolean, ms = 10_000): Promise<void> {
  for (const deadline = performance.now() + ms; performance.now() < deadline; await sleep(10)) if (await check()) return;
  throw new Error(`not within ${ms} ms: ${what}`);
}
