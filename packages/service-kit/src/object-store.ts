/** The object store of an installation, as every service opens it (docs/operating/object-store.md). */
import type { Logger } from '@lakebase/base';
import { type ObjectStore, type ObjectStoreConfig, checkObjectStoreConfig, openBareStore } from '@lakebase/object-store';
import type { Registry } from 'prom-client';
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
  readonly metrics?: Registry;
}

/** The store with retries, deadlines, limits and metrics around it. Sends nothing yet. Close it when the service stops. */
export async function openObjectStore(config: ObjectStoreConfig, options: OpenObjectStoreOptions): Promise<ObjectStore> {
  const store = await openBareStore(checkObjectStoreConfig(config, 'objectStore'));
  options.log.info({ location: store.location }, 'object store');
  return store;
}
