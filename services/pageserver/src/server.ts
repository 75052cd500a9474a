/** The pageserver put together, without process concerns: what main.ts and tests start. */
import type { Logger } from '@lakebase/base';
import { type ServiceKeys, createHttpServer, openKeys } from '@lakebase/service-kit';
import type { PageserverConfig } from './config.ts';
import { registerRoutes } from './http.ts';
import { registerMetrics } from './metrics.ts';
import { PageListener } from './page-listener.ts';
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
): Promise<Pageserver> {
  const store = new TimelineStore(config, secret, log, keys);
  // Metrics are registered before the listener that reports into them.
  const late: { listener?: PageListener } = {};
  const { app, metrics } = createHttpServer({
    log,
    secret,
    health: () => ({
      timelines: [...store.attached()].length,
      locked: store.locked,
      broken: [...store.attached()].filter((t) => t.timeline.broken !== undefined).length + store.damaged,
    }),
  });
  const pageMetrics = registerMetrics(metrics, store, () => late.listener);
  registerRoutes(app, store);
  await keys.source.start();
  await store.open();
  const listener = new PageListener(store, secret, log, pageMetrics);
  late.listener = listener;
  store.onLock = (project, error) => listener.end(project, error);
  const pagePort = await listener.listen(config.pageHost, config.pagePort);
  await app.listen({ host: config.httpHost, port: config.httpPort });
  const address = app.server.address();
  const httpPort = typeof address === 'object' && address !== null ? address.port : config.httpPort;
  log.info({ httpPort, pagePort, timelines: [...store.attached()].length }, 'pageserver is ready');
  return {
    store,
    httpPort,
    pagePort,
    close: async () => {
      await app.close();
      await listener.close();
      await store.close();
      await keys.source.stop();
    },
  };
}
