/** The catalog's copy put together from the configuration, the database already brought to where the chain ends. */
import { LakebaseError, type Logger } from '@lakebase/base';
import { type Teardown, installationOf, openObjectStore } from '@lakebase/service-kit';
import type pg from 'pg';
import type { ManagerConfig } from '../config.ts';
import { Database } from '../metadata/database.ts';
import { CatalogChain } from './catalog-chain.ts';
import { CatalogCopy } from './catalog-copy.ts';
import { type RootKeyClient, RootKeys } from './root-keys.ts';

export interface OpenOptions {
  readonly config: ManagerConfig;
  /** The metadata database. */
  readonly client: pg.PoolConfig;
  /** The installation's secret, hex. */
  readonly secret: string;
  readonly keys: RootKeyClient;
  readonly log: Logger;
  readonly teardown: Teardown;
  readonly fail: (error: unknown) => void;
}

export async function openCatalogCopy({ config, client, secret, keys, log, teardown, fail }: OpenOptions): Promise<CatalogCopy> {
  if (config.objectStore === null) throw new LakebaseError('INTERNAL', 'a copy needs an object store');
  const store = await openObjectStore(config.objectStore, { log });
  teardown.add('object store', () => store.close());
  // Its own connections: all others may be waiting for it.
  const db = new Database(client, log, { connectionsMax: 2 });
  teardown.add('connections of the catalog copy', () => db.close());
  const rootKeys = new RootKeys(keys);
  teardown.add('keys of the catalog copy', () => rootKeys.close());
  const installation = installationOf(secret);
  const copy = new CatalogCopy({ db, chain: new CatalogChain({ store, keys: rootKeys, installation }), installation, log, fail });
  await copy.restore();
  teardown.add('catalog copy', () => copy.stop());
  return copy;
}
