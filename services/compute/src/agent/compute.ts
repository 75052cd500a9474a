/** One compute, from start to stop: the agent's state machine.
 *
 *    STARTING ── elect → bundle → lay out → Postgres → catalog ──► RUNNING ── stop / crash / fenced ──► STOPPED | FAILED
 *
 *  Invariants
 *  - a compute starts once: every start is a fresh start in an empty directory under a new term;
 *  - Postgres runs only after a majority adopted that term;
 *  - when the compute is fenced it is stopped at once, without a checkpoint: nothing it writes can be acknowledged;
 *  - after a fast stop that succeeded, the suspend state is durable in storage before the stop is answered. */
import { join } from 'node:path';
import {
  type BundleFile,
  type ComputeChange,
  type ComputeStatus,
  type PostgresLogTail,
  type RoleSecret,
  type StartBundle,
} from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage, must, sleep } from '@lakebase/base';
import { formatLsn, parseLsn, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { configurationFromJson, staticConfiguration } from '@lakebase/wal-quorum';
import { Client } from 'pg';
import { ScratchCipher, writeScratchFile } from '../scratch-cipher.ts';
import { AGENT_APPLICATION, type Activity, readActivity } from './activity.ts';
import { Backpressure } from './backpressure.ts';
import { BootSet } from './boot-set.ts';
import { type CatalogSpec, applyCatalog, readRoleSecret } from './catalog.ts';
import { layOut, writeWal } from './data-directory.ts';
import { type ElectionResult, elect } from './elect.ts';
import { HOT_SET_FILE } from './hot-set.ts';
import { LocalDisk, type LocalDiskStart } from './local-disk.ts';
import { PageClient } from './page-client.ts';
import { PageRelay } from './page-relay.ts';
import { PostgresLog } from './postgres-log.ts';
import { PeriodicStatistics, STATISTICS_FILE } from './periodic-statistics.ts';
import { PostgresProcess } from './postgres-process.ts';
import { fetchSlotWal } from './older-wal.ts';
import { checkPreloadLibraries } from './preload-libraries.ts';
import type { AgentSetup, AgentStart } from './protocol.ts';
import { slotsAt } from './replication-slots.ts';
import { RunningState } from './running-state.ts';
import { ADMIN_ROLE, COMPUTE_PORT, pgHbaConf, pgIdentConf, postgresqlConf } from './settings.ts';
import { StorageCalls } from './storage-calls.ts';
import { WalMembers, membersAt } from './wal-members.ts';

const BUNDLE_WAIT_MS = 30_000;
const READY_MS = 60_000;
const STOP_MS = 60_000;
const ACTIVITY_POLL_MS = 2_000;
const BOOT_SET_AFTER_MS = 4_000;
const OWN_CONNECTION_AFTER_MS = 250;

export class Compute {
  readonly #setup: AgentSetup;
  readonly #start: AgentStart;
  readonly #log: Logger;
  readonly #onStatus: (status: ComputeStatus) => void;
  readonly #pages: PageClient;
  readonly #storage: StorageCalls;
  readonly #pgdata: string;
  readonly #mapPath: string;
  readonly #begun = performance.now();
  /** The key of this boot; null: plaintext, for tests. */
  readonly #cipher: ScratchCipher | null;
  readonly #postgresLog = new PostgresLog();
  #state: ComputeStatus['state'] = 'STARTING';
  #error: string | null = null;
  #stages: Record<string, number> = {};
  #activity: Activity = { active: false, lastActiveAt: null, reason: null };
  #election: ElectionResult | undefined;
  #spec: AgentStart['spec'];
  #postgres: PostgresProcess | undefined;
  #disk: LocalDisk | undefined;
  #relay: PageRelay | undefined;
  #walMembers: WalMembers | undefined;
  #sql: Promise<Client> | undefined;
  #backpressure: Backpressure | undefined;
  #bootSet: BootSet | undefined;
  #runningState: RunningState | undefined;
  #periodic: PeriodicStatistics | undefined;
  #logicalSlots = false;
  #statistics: readonly BundleFile[] = [];
  #timers: NodeJS.Timeout[] = [];
  #stopping: Promise<void> | undefined;

  constructor(setup: AgentSetup, start: AgentStart, log: Logger, onStatus: (status: ComputeStatus) => void) {
    this.#setup = setup;
    this.#start = start;
    this.#spec = start.spec;
    this.#log = log;
    this.#onStatus = onStatus;
    this.#cipher = setup.plaintextScratch ? null : new ScratchCipher();
    if (setup.plaintextScratch) log.warn({}, 'LAKEBASE_TEST_SCRATCH_PLAINTEXT is set: scratch is NOT encrypted; this is for tests only');
    this.#postgresLog.onPublicLine = (line) => log.info({ line }, 'Postgres');
    this.#pgdata = join(start.directory, 'pgdata');
    this.#mapPath = join(start.directory, 'resident.map');
    const { pageHost, pagePort } = start.spec.pageserver;
    this.#pages = new PageClient({
      host: pageHost,
      port: pagePort,
      token: start.token,
      project: this.#project,
      timeline: this.#timeline,
      log,
    });
    this.#storage = new StorageCalls({
      baseUrl: () => this.#spec.pageserver.httpUrl,
      token: start.token,
      project: this.#project,
      timeline: this.#timeline,
      log,
    });
  }

  get #project() {
    return parseProjectUid(this.#start.spec.projectUid);
  }
  get #timeline() {
    return parseTimelineId(this.#start.spec.timelineId);
  }

  status(): ComputeStatus {
    const running = this.#state === 'RUNNING';
    return {
      computeId: this.#start.computeId,
      endpointId: this.#spec.endpointId,
      state: this.#state,
      error: this.#error,
      term: this.#election?.term ?? null,
      startLsn: this.#election === undefined ? null : formatLsn(this.#election.startLsn),
      socketDir: running ? this.#start.socketDir : null,
      port: COMPUTE_PORT,
      pid: this.#postgres?.pid ?? null,
      stages: { ...this.#stages, ...this.#faults() },
      activity: this.#activity,
      ...this.#measures(),
    };
  }

  async start(): Promise<ComputeStatus> {
    try {
      checkPreloadLibraries(this.#spec.settings, this.#start.postgres.libDir);
      this.#pages.warm();
      const { safekeepers, walConfiguration } = this.#spec;
      const election = await elect({
        members: membersAt(safekeepers, this.#start.token),
        configuration:
          walConfiguration === undefined ? staticConfiguration(safekeepers.map((s) => s.id)) : configurationFromJson(walConfiguration),
        branch: { project: this.#project, timeline: this.#timeline },
        lastTerm: this.#start.lastTerm,
        token: this.#start.token,
        log: this.#log,
      });
      this.#election = election;
      const walMembers = this.#quorumOf(election);
      this.#walMembers = walMembers;
      this.#stage('elected');
      const bundle = await this.#pages.getStartBundle(election.startLsn, BUNDLE_WAIT_MS);
      this.#stage('bundle');
      await this.#layOut(bundle, election);
      this.#stage('laidOut');
      await this.#startPostgres();
      this.#stage('postgres');
      walMembers.start();
      const work = hasWork(this.#catalog());
      // With nothing to apply, clients neither wait for our own connection nor share the processor with its start.
      const catalog = work ? this.#openCatalog() : sleep(OWN_CONNECTION_AFTER_MS).then(() => this.#openCatalog());
      this.#sql = catalog;
      if (work) await catalog;
      else catalog.catch((error: unknown) => this.#log.warn({ err: errorMessage(error) }, 'no connection for activity and roles'));
      this.#stage('catalog');
      this.#enter('RUNNING');
      this.#watch();
      return this.status();
    } catch (error) {
      this.#log.error({ err: errorMessage(error) }, 'compute did not start');
      this.#error = errorMessage(error);
      await this.#tearDown();
      this.#enter('FAILED');
      throw error;
    }
  }

  #quorumOf({ configuration, members, term }: ElectionResult): WalMembers {
    return new WalMembers({
      configuration,
      members,
      project: this.#project,
      timeline: this.#timeline,
      term,
      token: this.#start.token,
      connection: this.#connection,
      log: this.#log,
      onFenced: (newer) => this.#fenced(newer),
      onStatus: (member, { pressure, offloadedLsn }) =>
        this.#backpressure?.member(member, {
          ...(pressure === undefined ? {} : { pressure }),
          ...(offloadedLsn === undefined ? {} : { offloadedLsn: parseLsn(offloadedLsn) }),
        }),
      applySettings: () => this.#reload(),
    });
  }

  #reload(): void {
    const postgres = must(this.#postgres, 'Postgres');
    writeScratchFile(this.#cipher, join(this.#pgdata, 'postgresql.conf'), this.#conf(must(this.#election, 'election')));
    postgres.reload();
  }

  async change(change: ComputeChange): Promise<ComputeStatus> {
    this.#spec = { ...this.#spec, ...change };
    if (change.pageserver !== undefined) {
      this.#pages.moveTo(change.pageserver.pageHost, change.pageserver.pagePort);
      if (Object.keys(change).length === 1) return this.status();
    }
    const sql = await must(this.#sql, 'connection to Postgres');
    if (change.settings !== undefined) this.#reload();
    await applyCatalog(sql, this.#catalog());
    return this.status();
  }

  log(lines: number): PostgresLogTail {
    return { lines: this.#postgresLog.tail(lines) };
  }

  /** The status with activity read now. */
  async look(): Promise<ComputeStatus> {
    await this.#readActivity();
    return this.status();
  }

  async role(name: string): Promise<RoleSecret> {
    if (this.#sql === undefined) throw new LakebaseError('CONFLICT', 'the compute is not running');
    return readRoleSecret(await this.#sql, name);
  }

  async stop(mode: 'fast' | 'immediate'): Promise<ComputeStatus> {
    if (this.#state === 'FAILED') return this.status();
    this.#stopping ??= this.#stop(mode, 'STOPPED');
    await this.#stopping;
    return this.status();
  }

  async #stop(mode: 'fast' | 'immediate', end: 'STOPPED' | 'FAILED'): Promise<void> {
    this.#enter('STOPPING');
    for (const timer of this.#timers) clearInterval(timer);
    this.#backpressure?.stop();
    this.#disk?.quiet();
    await this.#periodic?.stop();
    await this.#runningState?.stop();
    await this.#sql?.then((sql) => sql.end()).catch(() => {});
    const clean = (await this.#postgres?.stop(mode, STOP_MS)) ?? false;
    this.#walMembers?.stop();
    if (clean)
      await this.#keepState().catch((error: unknown) =>
        this.#log.warn({ err: errorMessage(error) }, 'suspend state not kept: statistics and exact sequence values are lost, data is not'),
      );
    await this.#tearDown();
    this.#enter(end);
  }

  async #keepState(): Promise<void> {
    await this.#storage.keepBootSet(this.#bootSet);
    const hot = this.#disk?.hotSet();
    const files = hot === undefined ? [] : [hot];
    await this.#storage.keepSuspendState({ pgdata: this.#pgdata, mapPath: this.#mapPath, cipher: this.#cipher, files });
  }

  async #layOut(bundle: StartBundle, election: ElectionResult): Promise<void> {
    const slots = slotsAt(bundle.files, election.startLsn);
    this.#logicalSlots = slots.logical;
    this.#statistics = slots.files.filter((file) => file.path.startsWith('pg_stat/'));
    const layout = layOut({
      pgdata: this.#pgdata,
      mapPath: this.#mapPath,
      bundle: { ...bundle, files: slots.files.filter((f) => f.path !== HOT_SET_FILE), prevRecordLsn: election.lastRecordLsn },
      cipher: this.#cipher,
      cacheBytes: this.#setup.cacheBytes,
      conf: { postgresql: this.#conf(election), hba: pgHbaConf(), ident: pgIdentConf(this.#setup.trustedAccounts) },
    });
    this.#disk = new LocalDisk({ pgdata: this.#pgdata, mapPath: this.#mapPath, files: bundle.files, log: this.#log });
    const disk = this.#disk;
    if (slots.walFrom !== undefined)
      await fetchSlotWal(
        {
          members: this.#spec.safekeepers,
          project: this.#project,
          timeline: this.#timeline,
          token: this.#start.token,
          from: slots.walFrom,
          to: election.startLsn,
          write: (at, bytes) => writeWal(this.#pgdata, at, bytes, this.#cipher),
        },
        this.#log,
      );
    const bootSet = new BootSet(bundle.bootPages, performance.now());
    this.#bootSet = bootSet;
    this.#relay = new PageRelay({
      socketPath: join(this.#start.socketDir, 'agent.sock'),
      entries: layout.entries,
      pages: this.#pages,
      lsn: election.startLsn,
      log: this.#log,
      onFault: (tag, block, count) => bootSet.record(tag, block, count, performance.now()),
      prefetched: (entry, block, count) => disk.take(entry, block, count),
      added: (index) => disk.added(index),
    });
    await this.#relay.listen();
  }

  #conf(election: ElectionResult): string {
    return postgresqlConf({
      major: this.#spec.pgVersion,
      term: election.term,
      socketDir: this.#start.socketDir,
      rule: must(this.#walMembers, 'members').rule,
      generation: must(this.#walMembers, 'members').generation,
      sharedBuffers: this.#setup.sharedBuffers,
      settings: this.#spec.settings,
      logicalSlots: this.#logicalSlots,
    });
  }

  #catalog(): CatalogSpec {
    const { roles, databases, droppedRoles = [], droppedDatabases = [] } = this.#spec;
    return { roles, databases, droppedRoles, droppedDatabases };
  }

  get #shimEnv(): Record<string, string> {
    return {
      LD_PRELOAD: this.#setup.shimPath,
      LAKEBASE_SHIM_DATADIR: this.#pgdata,
      LAKEBASE_SHIM_MAP: this.#mapPath,
      LAKEBASE_SHIM_SOCKET: join(this.#start.socketDir, 'agent.sock'),
    };
  }

  async #startPostgres(): Promise<void> {
    this.#postgres = PostgresProcess.start({
      ...this.#start.postgres,
      pgdata: this.#pgdata,
      log: this.#postgresLog,
      scratchKey: this.#cipher?.key ?? null,
      env: { ...this.#shimEnv, LAKEBASE_SHIM_LAYOUT: 'lazy', LAKEBASE_SHIM_PARENT: String(process.pid) },
    });
    void this.#postgres.exited.then(({ code, signal }) => this.#postgresGone(code, signal));
    await this.#postgres.ready(READY_MS);
  }

  get #connection() {
    return { host: this.#start.socketDir, port: COMPUTE_PORT, user: ADMIN_ROLE, application_name: AGENT_APPLICATION };
  }

  /** One connection for our own work, kept for the compute's life. */
  async #openCatalog(): Promise<Client> {
    if (this.#stopping !== undefined) throw new LakebaseError('CLOSED', 'the compute is stopping');
    const sql = new Client({ ...this.#connection, database: 'postgres' });
    sql.on('error', () => {}); // its end is seen through the postmaster's exit
    await sql.connect();
    const changed = await applyCatalog(sql, this.#catalog());
    if (changed > 0) this.#log.info({ statements: changed }, 'roles and databases applied');
    return sql;
  }

  async #readActivity(): Promise<void> {
    if (this.#sql === undefined) return;
    const names = must(this.#walMembers, 'members').names;
    this.#activity = await readActivity(await this.#sql, names, this.#activity);
    this.#onStatus(this.status());
  }

  /** Storage that cannot follow slows the writer. */
  #watchLag({ file }: LocalDisk): void {
    this.#backpressure = new Backpressure({
      walPosition: () => file.counters().walPosition,
      setWalDelay: (ns) => file.setWalDelay(ns),
      ingested: () => this.#storage.ingestedLsn(),
      startLsn: must(this.#election, 'election').startLsn,
      maxLagBytes: this.#setup.maxIngestLagBytes,
      quorum: Math.floor(this.#spec.safekeepers.length / 2) + 1,
      log: this.#log,
    });
    this.#backpressure.start();
  }

  #startDisk(disk: LocalDisk, running: RunningState): void {
    const relay = must(this.#relay, 'relay');
    const { binDir, libDir } = this.#start.postgres;
    disk.start({
      program: join(binDir, 'postgres'),
      env: { ...this.#shimEnv, LD_LIBRARY_PATH: libDir, PATH: process.env['PATH'] ?? '/usr/bin:/bin' },
      scratchKey: () => this.#cipher?.key ?? null,
      cacheBytes: this.#setup.cacheBytes,
      prefetchFrom: this.#setup.prefetch ? relay : null,
      keep: (file) => running.replace(file),
      settleWith: this.#setup.settle ? this.#settleWith(relay) : null,
    });
  }

  #settleWith(relay: PageRelay): LocalDiskStart['settleWith'] {
    return {
      row: async (text) => {
        const sql = await must(this.#sql, 'connection to Postgres');
        return (await sql.query<Record<string, string>>(text)).rows[0] ?? {};
      },
      rule: () => must(this.#walMembers, 'members').rule,
      ingested: () => this.#storage.ingestedLsn(),
      raise: (lsn) => relay.raise(lsn),
      relSize: (tag, lsn) => this.#pages.getRelSize(tag, lsn),
    };
  }

  #watch(): void {
    const disk = must(this.#disk, 'local disk');
    this.#watchLag(disk);
    this.#activity = { ...this.#activity, lastActiveAt: new Date().toISOString() };
    let reading = false;
    this.#timers.push(
      setInterval(() => {
        if (reading) return;
        reading = true;
        this.#readActivity()
          .catch(() => {})
          .finally(() => {
            reading = false;
          });
      }, ACTIVITY_POLL_MS),
    );
    this.#runningState = new RunningState(
      this.#pgdata,
      this.#statistics,
      (body) => this.#storage.putSuspendState(body),
      this.#log,
      this.#cipher,
    );
    this.#runningState.start();
    const keep = this.#runningState;
    this.#periodic = new PeriodicStatistics({
      major: this.#spec.pgVersion,
      connection: this.#connection,
      sql: () => must(this.#sql, 'connection to Postgres'),
      base: this.#statistics.find((file) => file.path === STATISTICS_FILE)?.bytes,
      onFile: (bytes) => keep.replace({ path: STATISTICS_FILE, bytes }),
      log: this.#log,
    });
    this.#periodic.start();
    this.#timers.push(setTimeout(() => void this.#storage.keepBootSet(this.#bootSet), BOOT_SET_AFTER_MS));
    this.#startDisk(disk, keep);
  }

  #fenced(term: number): void {
    if (this.#stopping !== undefined) return;
    this.#log.error({ term }, 'fenced by a newer compute of this branch: stopping without a checkpoint');
    this.#error = `fenced by term ${term}: a newer compute of this branch has started`;
    this.#stopping = this.#stop('immediate', 'FAILED');
  }

  #postgresGone(code: number | null, signal: string | null): void {
    if (this.#stopping !== undefined || this.#state !== 'RUNNING') return;
    this.#error = `Postgres ended by itself (${signal ?? `exit code ${code}`}): ${this.#postgres?.reason() ?? ''}`;
    this.#log.error({ err: this.#error }, 'compute crashed');
    this.#stopping = this.#tearDown().then(() => this.#enter('FAILED'));
  }

  async #tearDown(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    this.#backpressure?.stop();
    void this.#periodic?.stop();
    void this.#runningState?.stop();
    this.#walMembers?.stop();
    if (this.#postgres !== undefined && !this.#postgres.gone) await this.#postgres.stop('immediate', 5_000);
    this.#relay?.close();
    this.#pages.close();
    this.#disk?.stop();
    this.#disk = undefined;
    this.#backpressure = undefined;
    this.#sql = undefined;
    this.#postgresLog.clear();
    this.#cipher?.wipe();
  }

  #faults(): Record<string, number> {
    const counters = this.#disk?.counters();
    return counters === undefined ? {} : { faultRequests: counters.faultRequests, blocksFetched: counters.blocksFetched };
  }

  #measures(): Pick<ComputeStatus, 'disk' | 'backpressure'> {
    const disk = this.#disk?.status();
    if (disk === undefined) return {};
    const lag = this.#backpressure?.state;
    if (lag === undefined) return { disk };
    return { disk, backpressure: { ...lag, sleptMs: Math.round((this.#disk?.counters()?.walSleptNs ?? 0) / 1e6) } };
  }

  #stage(name: string): void {
    this.#stages[name] = Math.round((performance.now() - this.#begun) * 10) / 10;
  }

  #enter(state: ComputeStatus['state']): void {
    this.#state = state;
    this.#log.info({ state, ...this.#stages }, 'compute state');
    this.#onStatus(this.status());
  }
}

const hasWork = (spec: CatalogSpec): boolean =>
  spec.roles.length + spec.databases.length + spec.droppedRoles.length + spec.droppedDatabases.length > 0;
