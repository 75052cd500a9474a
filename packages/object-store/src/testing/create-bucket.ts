/** Makes the bucket or container of a configuration, on servers for tests. */
import type { ObjectStoreConfig } from '../config.ts';
import { readCredentials } from '../credentials.ts';

export async function createBucket(config: ObjectStoreConfig): Promise<void> {
  const credentials = (forms: readonly string[]): Readonly<Record<string, string>> =>
    readCredentials('credentialsFile' in config ? (config.credentialsFile as string) : '', [forms]);
  switch (config.kind) {
    case 'directory':
      return;
    case 's3': {
      const { CreateBucketCommand, S3Client } = await import('@aws-sdk/client-s3');
      const { accessKeyId = '', secretAccessKey = '' } = credentials(['accessKeyId', 'secretAccessKey']);
      const client = new S3Client({
        region: config.region ?? 'us-east-1',
        forcePathStyle: true,
        credentials: { accessKeyId, secretAccessKey },
        ...(config.endpoint === undefined ? {} : { endpoint: config.endpoint }),
      });
      await client.send(new CreateBucketCommand({ Bucket: config.bucket }));
      client.destroy();
      return;
    }
    case 'azure': {
      const { ContainerClient, StorageSharedKeyCredential } = await import('@azure/storage-blob');
      const { accountKey = '' } = credentials(['accountKey']);
      await new ContainerClient(
        `${config.endpoint}/${config.container}`,
        new StorageSharedKeyCredential(config.account, accountKey),
      ).create();
      return;
    }
    case 'gcs': {
      const response = await fetch(`${config.endpoint}/storage/v1/b?project=test`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ name: config.bucket }),
      });
      if (!response.ok) throw new Error(`cannot create the bucket: ${response.status} ${await response.text()}`);
    }
  }
}
