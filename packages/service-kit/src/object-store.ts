/** The object store of an installation, as every service opens it (docs/operating/object-store.md). */
import type { Logger } from '@lakebase/base';
import {
  type DecoratedStore,
  type ObjectStore,
  type ObjectStoreConfig,
  checkObjectStoreConfig,
  decorate,
  objectStoreLocation,
  openBareStore,
} from '@lakebase/object-store';
import { Counter, Gauge, Histogram, type Metric, type Registry } from 'prom-client';
import { Type } from 'typebox';

export {
  type ObjectStore,
  type ObjectStoreConfig,
  checkObjectStoreConfig,
  objectStoreLocation,
  parseObjectStoreUrl,
} from '@lakebase/object-store';

/** Spread into the configuration of a service that uses the store. Null: none, as in tests that need none. What is in it is checked by
 *  {@link openObjectStore}, whose errors name the key that is wrong. */
export const objectStoreConfig = {
  objectStore: Type.Unsafe<ObjectStoreConfig | null>({ type: ['object', 'null'], default: null }),
};

export interface OpenObjectStoreOptions {
  readonly log: Logger;
}

/** A store that fails for long would fill the log: one line per operation and code in this time. */
const REPEATED_MS = 10_000;

/** The store with retries, deadlines, limits and metrics around it. Sends nothing yet. Close it when the service stops. */
export async function openObjectStore(given: ObjectStoreConfig, { log }: OpenObjectStoreOptions): Promise<ObjectStore> {
  const config = checkObjectStoreConfig(given, 'objectStore');
  const bare = await openBareStore(config);
  const said = new Map<string, number>();
  const { store, limited } = decorate(bare, {
    attemptTimeoutMs: config.attemptTimeoutMs,
    deadlineMs: config.deadlineMs,
    readsMax: config.readsMax,
    writesMax: config.writesMax,
    observer: ({ operation, outcome, seconds: took, bytes: count }) => {
      requests.inc({ operation, outcome });
      seconds.observe({ operation }, took);
      if (count > 0) bytes.inc({ operation }, count);
    },
    onRetry: ({ operation, key }, error, attempt) => {
      retries.inc({ operation });
      const what = `${operation} ${error.code}`;
      const now = performance.now();
      if (now - (said.get(what) ?? -Infinity) < REPEATED_MS) return;
      said.set(what, now);
      log.warn({ operation, key, attempt, code: error.code, err: error.message }, 'object store: trying again');
    },
  });
  opened.add(limited);
  log.info({ kind: config.kind, location: objectStoreLocation(config) }, 'object store');
  const close = store.close.bind(store);
  store.close = () => {
    opened.delete(limited);
    return close();
  };
  return store;
}

/** Of the whole process: it has one store. */
const opened = new Set<DecoratedStore['limited']>();
const requests = new Counter({
  name: 'lakebase_object_store_requests_total',
  help: 'Requests to the object store, every attempt counted, by operation and outcome',
  labelNames: ['operation', 'outcome'],
  registers: [],
});
const bytes = new Counter({
  name: 'lakebase_object_store_bytes_total',
  help: 'Bytes of objects read and written',
  labelNames: ['operation'],
  registers: [],
});
const seconds = new Histogram({
  name: 'lakebase_object_store_request_seconds',
  help: 'Time of one request to the object store',
  labelNames: ['operation'],
  buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30],
  registers: [],
});
const retries = new Counter({
  name: 'lakebase_object_store_retries_total',
  help: 'Requests to the object store that failed and are made again',
  labelNames: ['operation'],
  registers: [],
});
const waiting = new Gauge({
  name: 'lakebase_object_store_waiting',
  help: 'Requests to the object store that wait for their turn',
  labelNames: ['direction'],
  registers: [],
  collect() {
    if (opened.size === 0) return;
    const all = [...opened].map((limited) => limited.waiting);
    this.set(
      { direction: 'read' },
      all.reduce((sum, w) => sum + w.reads, 0),
    );
    this.set(
      { direction: 'write' },
      all.reduce((sum, w) => sum + w.writes, 0),
    );
  },
});

/** Called for every service by createHttpServer; they stay empty where no store is opened. */
export function registerObjectStoreMetrics(registry: Registry): void {
  for (const metric of [requests, bytes, seconds, retries, waiting]) registry.registerMetric(metric as unknown as Metric);
}
