/** The object store of an installation, as every service opens it (docs/operating/object-store.md). */
import type { Logger } from '@lakebase/base';
import {
  type ObjectStore,
  type ObjectStoreConfig,
  type StoreObserver,
  checkObjectStoreConfig,
  decorate,
  objectStoreLocation,
  openBareStore,
} from '@lakebase/object-store';
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
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
  /** One store for each registry. */
  readonly metrics?: Registry;
}

/** A store that fails for long would fill the log: one line per operation and code in this time. */
const REPEATED_MS = 10_000;

/** The store with retries, deadlines, limits and metrics around it. Sends nothing yet. Close it when the service stops. */
export async function openObjectStore(given: ObjectStoreConfig, { log, metrics }: OpenObjectStoreOptions): Promise<ObjectStore> {
  const config = checkObjectStoreConfig(given, 'objectStore');
  const bare = await openBareStore(config);
  const instruments = metrics === undefined ? undefined : register(metrics);
  const said = new Map<string, number>();
  const { store, limited } = decorate(bare, {
    attemptTimeoutMs: config.attemptTimeoutMs,
    deadlineMs: config.deadlineMs,
    readsMax: config.readsMax,
    writesMax: config.writesMax,
    ...(instruments === undefined ? {} : { observer: instruments.observer }),
    onRetry: ({ operation, key }, error, attempt) => {
      instruments?.retries.inc({ operation });
      const what = `${operation} ${error.code}`;
      const now = performance.now();
      if (now - (said.get(what) ?? -Infinity) < REPEATED_MS) return;
      said.set(what, now);
      log.warn({ operation, key, attempt, code: error.code, err: error.message }, 'object store: trying again');
    },
  });
  instruments?.waiting(() => limited.waiting);
  log.info({ kind: config.kind, location: objectStoreLocation(config) }, 'object store');
  return store;
}

interface Instruments {
  readonly observer: StoreObserver;
  readonly retries: Counter<'operation'>;
  readonly waiting: (read: () => { readonly reads: number; readonly writes: number }) => void;
}

function register(registry: Registry): Instruments {
  const registers = [registry];
  const requests = new Counter({
    name: 'lakebase_object_store_requests_total',
    help: 'Requests to the object store, every attempt counted, by operation and outcome',
    labelNames: ['operation', 'outcome'],
    registers,
  });
  const bytes = new Counter({
    name: 'lakebase_object_store_bytes_total',
    help: 'Bytes of objects read and written',
    labelNames: ['operation'],
    registers,
  });
  const seconds = new Histogram({
    name: 'lakebase_object_store_request_seconds',
    help: 'Time of one request',
    labelNames: ['operation'],
    buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30],
    registers,
  });
  return {
    observer: ({ operation, outcome, seconds: took, bytes: count }) => {
      requests.inc({ operation, outcome });
      seconds.observe({ operation }, took);
      if (count > 0) bytes.inc({ operation }, count);
    },
    retries: new Counter({
      name: 'lakebase_object_store_retries_total',
      help: 'Requests that failed and are made again',
      labelNames: ['operation'],
      registers,
    }),
    waiting: (read) =>
      void new Gauge({
        name: 'lakebase_object_store_waiting',
        help: 'Requests that wait for their turn',
        labelNames: ['direction'],
        registers,
        collect() {
          const { reads, writes } = read();
          this.set({ direction: 'read' }, reads);
          this.set({ direction: 'write' }, writes);
        },
      }),
  };
}
