/** From a configuration to the bare store of its kind. Only the SDK that is needed is loaded: they cost tens of megabytes and half a second each. */
import type { ObjectStoreConfig } from './config.ts';
import { DirectoryStore } from './directory-store.ts';
import type { ObjectStore, UploadSizes } from './object-store.ts';

export async function openBareStore(config: ObjectStoreConfig, sizes: UploadSizes = {}): Promise<ObjectStore> {
  switch (config.kind) {
    case 'directory':
      return new DirectoryStore(config.path);
    case 's3':
      return new (await import('./s3-store.ts')).S3Store(config, sizes);
    case 'azure':
      return new (await import('./azure-store.ts')).AzureStore(config, sizes);
    case 'gcs':
      return new (await import('./gcs-store.ts')).GcsStore(config);
  }
}
