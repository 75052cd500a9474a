/** A whole safekeeper: starts in order, stops in reverse. `main.ts` runs one per process; tests run several in one. */
import { type AddressInfo } from 'node:net';
import { type PeerAddress, internalToken } from '@lakebase/api';
import type { Logger } from '@lakebase/base';
import { join } from 'node:path';
import {
  type ObjectStore,
  OrphanMemory,
  ScrubJobs,
  type ServiceKeys,
  addInspectRoutes,
  createHttpServer,
  openKeys,
  openObjectStore,
  readGauge,
} from '@lakebase/service-kit';
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { SafekeeperConfig } from './config.ts';
import { DiskBudget } from './disk-budget.ts';
import { FlushWatch } from './flush-watch.ts';
import { addDiskGauges } from './gauges.ts';
import { addRoutes } from './http-routes.ts';
import { inspectWal } from './inspect.ts';
import { Offloader } from './offload.ts';
import { NodeBook } from './node-book.ts';
import { PeerFeed, PeerListener } from './peer-feed.ts';
import { scrubSafekeeper } from './scrub.ts';
import { Timelines } from './timelines.ts';
import { WalService } from './wal-service.ts';
import type { WalTimeline } from './wal-timeline.ts';

export interface Safekeeper {
  readonly timelines: Timelines;
  readonly httpPort: number;
  readonly pgPort: number;
  stop(): Promise<void>;
}

/** Timelines named one by one in /metrics. */
const LABELLED_TIMELINES_MAX = 200;
const BODY_BYTES_MAX = 16 * 1024 * 1024;
/** What a stop may take to put committed WAL into the object store. */
const DRAIN_MS = 5_000;

export async function startSafekeeper(
  config: SafekeeperConfig,
  secret: string,
  log: Logger,
  keys: ServiceKeys = openKeys(config, secret, log),
  store?: ObjectStore,
): Promise<Safekeeper> {
  const steps: (() => Promise<unknown> | void)[] = [];
  const stop = async (): Promise<void> => {
    for (const step of steps.splice(0).reverse()) await step();
  };
  let feed: PeerFeed | undefined;
  let wal: WalService | undefined;
  const appended = new Counter({ name: 'lakebase_safekeeper_appended_bytes_total', help: 'WAL bytes made durable', registers: [] });
  const flushSeconds = new Histogram({
    name: 'lakebase_safekeeper_flush_seconds',
    help: 'One batch: write and fdatasync',
    buckets: [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1],
    registers: [],
  });
  try {
    const objectStore = store ?? (config.objectStore === null ? undefined : await openObjectStore(config.objectStore, { log }));
    steps.push(() => objectStore?.close());
    const listeners: PeerListener[] = [];
    const puts = new Counter({
      name: 'lakebase_safekeeper_offload_puts_total',
      help: 'WAL objects put',
      labelNames: ['kind'],
      registers: [],
    });
    const offloaded = new Counter({
      name: 'lakebase_safekeeper_offloaded_bytes_total',
      help: 'WAL put into the object store',
      registers: [],
    });
    const stored = new Counter({
      name: 'lakebase_safekeeper_offload_stored_bytes_total',
      help: 'Bytes of the WAL objects put',
      registers: [],
    });
    const offloader = new Offloader({
      memberId: config.id,
      times: {
        idleMs: config.offloadIdleMs,
        ageMs: config.offloadAgeMs,
        tailMs: config.offloadTailMs,
        takeoverMs: config.offloadTakeoverMs,
      },
      livePeers: () => listeners.filter((l) => l.connected).map((l) => l.peerId),
      pressure: () => disk.pressure,
      log,
      onPut: (result, kind) => {
        if (!result.put) return;
        puts.inc({ kind });
        offloaded.inc(result.end - result.start);
        stored.inc(result.storedBytes);
      },
    });
    const flushes = new FlushWatch();
    const token = internalToken(secret, 'service');
    const self = { id: config.id, httpUrl: `http://${config.httpHost}:${config.httpPort}`, pgHost: config.pgHost, pgPort: config.pgPort };
    const nodes = new NodeBook({ self, peers: [...config.peers, ...config.nodes], token, file: NodeBook.fileIn(config.dataDir), log });
    const timelines: Timelines = new Timelines({
      nodes,
      mayGrow: () => disk.check(),
      disk: () => ({ pressure: Number(disk.pressure.toFixed(3)), slowDisk: flushes.slow(performance.now()) }),
      ...(objectStore === undefined ? {} : { objectStore }),
      config,
      secret,
      log,
      keys,
      onMoved: (timeline) => {
        feed?.touch(timeline);
        offloader.touch(timeline);
      },
      onLock: (project) => wal?.end(project),
      onFlush: (seconds, bytes) => {
        appended.inc(bytes);
        flushSeconds.observe(seconds);
        flushes.observe(seconds, performance.now());
      },
    });
    steps.push(async () => {
      await timelines.close();
      await keys.source.stop();
    });
    steps.push(() => offloader.close());
    const disk: DiskBudget = new DiskBudget({
      dir: config.dataDir,
      limitBytes: config.walDiskBytes,
      used: () => timelines.diskBytes,
      log,
      onLook: () => {
        if (disk.pressure > 0) timelines.trimAll();
      },
    });
    await keys.source.start();
    await timelines.open();
    await disk.start();
    steps.push(() => disk.close());
    feed = new PeerFeed(() => timelines);
    steps.push(() => feed?.close());
    const walService = new WalService({
      secret,
      log,
      find: (project, timeline) => timelines.get(project, timeline),
      onPageserverStatus: (timeline, status) => timelines.onPageserverStatus(timeline, status),
    });
    const { app, metrics } = createHttpServer({
      log,
      secret,
      bodyLimitBytes: BODY_BYTES_MAX,
      health: () => ({ timelines: timelines.size, locked: timelines.lockedCount, unusable: timelines.brokenCount, walDiskFull: disk.full }),
    });
    metrics.registerMetric(appended);
    metrics.registerMetric(flushSeconds);
    for (const counter of [puts, offloaded, stored]) metrics.registerMetric(counter);
    addGauges(metrics, timelines, walService);
    readGauge(
      metrics,
      'lakebase_safekeeper_offload_age_seconds',
      'How long the oldest committed WAL that is not in the object store has waited',
      () => offloader.ageSeconds,
    );
    addDiskGauges(metrics, { disk, slow: () => flushes.slow(performance.now()), peers: () => listeners, timelines });
    addRoutes(app, timelines, feed);
    const keysOf = (project: string): ReturnType<typeof keys.source.project> => keys.source.project(project);
    const first = (t: WalTimeline): boolean =>
      !listeners.some((l) => l.connected && l.peerId < config.id && t.peerAt(l.peerId) !== undefined);
    const orphans = new OrphanMemory(join(config.dataDir, 'scrub-orphans.json'), log);
    const scrubs = new ScrubJobs({
      service: config.id,
      config,
      stateFile: join(config.dataDir, 'scrub.json'),
      log,
      run: (job) => scrubSafekeeper({ timelines, first, keysOf, orphans }, job),
    });
    steps.push(() => scrubs.close());
    scrubs.addRoutes(app);
    scrubs.registerMetrics(metrics);
    addInspectRoutes(app, (request) => inspectWal(timelines, keysOf, request));
    scrubs.startSchedule();
    await app.listen({ host: config.httpHost, port: config.httpPort });
    steps.push(() => app.close());
    wal = walService;
    const pgPort = await walService.listen(config.pgHost, config.pgPort);
    steps.push(() => walService.close());
    const follow = (peer: PeerAddress): void => {
      const before = listeners.findIndex((l) => l.peerId === peer.id);
      if (before >= 0) void listeners.splice(before, 1)[0]?.stop();
      const listener = new PeerListener({
        peer,
        token,
        log,
        onStatus: (id, status, position) => timelines.onPeerStatus(id, status, position),
      });
      listeners.push(listener);
    };
    steps.push(() => Promise.all(listeners.map((l) => l.stop())));
    nodes.onNode = follow;
    for (const { address } of nodes.peers) follow(address);
    const httpPort = (app.server.address() as AddressInfo).port;
    nodes.listening(httpPort, pgPort);
    // First of all, while the others can still be heard: WAL ends, and what is committed of it gets into the object store.
    steps.push(async () => {
      await timelines.endStreams();
      await offloader.drain(DRAIN_MS);
    });
    log.info({ httpPort, pgPort, timelines: timelines.size }, 'safekeeper is ready');
    return { timelines, httpPort, pgPort, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

function addGauges(registry: Registry, timelines: Timelines, wal: WalService): void {
  const labelNames = ['project', 'timeline'] as const;
  const perTimeline = (name: string, help: string, value: (t: Timelines extends Iterable<infer T> ? T : never) => number): void => {
    const gauge = new Gauge({
      name,
      help,
      labelNames,
      registers: [registry],
      collect() {
        gauge.reset();
        let n = 0;
        for (const t of timelines) {
          if (n++ >= LABELLED_TIMELINES_MAX) break;
          gauge.set({ project: t.project, timeline: t.timeline }, value(t));
        }
      },
    });
  };
  perTimeline('lakebase_safekeeper_flush_lsn', 'End of durable WAL', (t) => t.flushLsn);
  perTimeline('lakebase_safekeeper_commit_lsn', 'End of committed WAL known here', (t) => t.state.commitLsn);
  perTimeline('lakebase_safekeeper_offloaded_lsn', 'End of WAL in the object store', (t) => t.offloadedLsn);
  perTimeline('lakebase_safekeeper_term', 'Term of this member', (t) => t.term);
  perTimeline('lakebase_safekeeper_streaming', '1 while a compute streams to this member', (t) => (t.feeder === undefined ? 0 : 1));
  perTimeline('lakebase_safekeeper_damaged', '1 while this member does not vote', (t) => (t.control.damage === null ? 0 : 1));
  const gauge = readGauge.bind(undefined, registry);
  gauge('lakebase_safekeeper_timelines', 'Timelines open', () => timelines.size);
  gauge('lakebase_safekeeper_timelines_locked', "Timelines whose project's key may not be used", () => timelines.lockedCount);
  gauge('lakebase_safekeeper_wal_connections', 'Replication connections', () => wal.connections);
}
