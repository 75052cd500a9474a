/** From a configuration to the bare store of its kind. Only the SDK that is needed is loaded: they cost tens of megabytes and half a second each. */
import { LakebaseError } from '@lakebase/base';
import type { ObjectStoreConfig } from './config.ts';
import { DirectoryStore } from './directory-store.ts';
import type { ObjectStore } from './object-store.ts';

export async function openBareStore(config: ObjectStoreConfig): Promise<ObjectStore> {
  switch (config.kind) {
    case 'directory':
      return new DirectoryStore(config.path);
    default:
      throw new LakebaseError('UNSUPPORTED', `object stores of kind ${config.kind} come next`);
  }
}
