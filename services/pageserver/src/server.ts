/** The pageserver put together, without process concerns: what main.ts and tests start. */
import { type PageserverHealth, PlacementClient, internalToken } from '@lakebase/api';
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
} from '@lakebase/service-kit';
import type { PageserverConfig } from './config.ts';
import type { DiskSpace } from './disk-space.ts';
import { Generations, type PlacementCalls } from './generations.ts';
import { registerPlacementRoutes, registerRoutes } from './http.ts';
import { inspectPage, inspectTimeline } from './inspect.ts';
import { registerMetrics } from './metrics.ts';
import { PageListener } from './page-listener.ts';
import { scrubPageserver } from './scrub.ts';
import { scrubHostOf } from './scrub-subject.ts';
import { TimelineStore } from './store.ts';

export interface Pageserver {
  readonly store: TimelineStore;
  readonly httpPort: number;
  readonly pagePort: number;
  close(): Promise<void>;
}

export async function startPageserver(
  config: PageserverConfig,
  secret: string,
  log: Logger,
  keys: ServiceKeys = openKeys(config, secret, log),
  remote?: { readonly store: ObjectStore; readonly calls: PlacementCalls },
): Promise<Pageserver> {
  const far = remote ?? (await openRemote(config, secret, log));
  const target =
    far === undefined
      ? undefined
      : {
          store: far.store,
          generations: new Generations(far.calls, log, config.validateMs),
          counters: { puts: 0, putBytes: 0, indexPuts: 0, deletes: 0, failures: 0 },
        };
  const store = new TimelineStore(config, secret, log, keys, target);
  // Metrics are registered before the listener that reports into them.
  const late: { listener?: PageListener } = {};
  const { app, metrics } = createHttpServer({
    log,
    secret,
    health: () => ({
      ...diskHealth(store.disk),
      timelines: [...store.attached()].length,
      locked: store.locked,
      broken: [...store.attached()].filter((t) => t.timeline.broken !== undefined).length + store.damaged,
    }),
  });
  const pageMetrics = registerMetrics(metrics, store, () => late.listener);
  registerRoutes(app, store);
  registerPlacementRoutes(app, store);
  const orphans = new OrphanMemory(join(config.dataDir, 'scrub-orphans.json'), log);
  const scrubs = new ScrubJobs({
    service: config.id,
    config,
    stateFile: join(config.dataDir, 'scrub.json'),
    log,
    run: (job) => scrubPageserver(scrubHostOf(store), job, orphans),
  });
  scrubs.addRoutes(app);
  scrubs.registerMetrics(metrics);
  addInspectRoutes(
    app,
    (request) => inspectTimeline(store, request),
    (request) => inspectPage(store, request),
  );
  await keys.source.start();
  await store.open();
  target?.generations.start();
  const listener = new PageListener(store, secret, log, pageMetrics);
  late.listener = listener;
  store.onEnd = (project, error, timeline) => listener.end(project, error, timeline);
  const pagePort = await listener.listen(config.pageHost, config.pagePort);
  await app.listen({ host: config.httpHost, port: config.httpPort });
  const address = app.server.address();
  const httpPort = typeof address === 'object' && address !== null ? address.port : config.httpPort;
  scrubs.startSchedule();
  log.info({ httpPort, pagePort, timelines: [...store.attached()].length }, 'pageserver is ready');
  return {
    store,
    httpPort,
    pagePort,
    close: async () => {
      await app.close();
      await scrubs.close();
      await listener.close();
      await store.close();
      await keys.source.stop();
      if (remote === undefined) await far?.store.close();
    },
  };
}

function diskHealth({ capacityBytes, room }: DiskSpace): PageserverHealth {
  return capacityBytes === undefined ? {} : { disk: { capacityBytes, full: room !== undefined } };
}

async function openRemote(
  config: PageserverConfig,
  secret: string,
  log: Logger,
): Promise<{ readonly store: ObjectStore; readonly calls: PlacementCalls } | undefined> {
  if (config.objectStore === null) return undefined;
  if (config.managerUrl === null) {
    log.warn({}, 'objectStore is set and managerUrl is not: without generations nothing is uploaded');
    return undefined;
  }
  const calls = new PlacementClient(config.id, { baseUrl: config.managerUrl, token: internalToken(secret, 'service') });
  return { store: await openObjectStore(config.objectStore, { log }), calls };
}
