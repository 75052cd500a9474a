/** The S3 store against servers that we did not write: MinIO (Go) and moto (Python). */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { S3Config } from '@lakebase/object-store';
import { storeInterop } from './object-store-suite.ts';
import { CACHE, findProgram, startServer } from './servers.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-interop-s3-'));
after(() => rmSync(dir, { recursive: true, force: true }));
const credentialsFile = join(dir, 'credentials.json');
writeFileSync(credentialsFile, JSON.stringify({ accessKeyId: 'lakebase', secretAccessKey: 'interop-secret' }), { mode: 0o600 });
const other = join(dir, 'other.json');
writeFileSync(other, JSON.stringify({ accessKeyId: 'lakebase', secretAccessKey: 'another-secret' }), { mode: 0o600 });
const config = (endpoint: string): S3Config => ({ kind: 's3', bucket: 'lakebase-interop', prefix: 'a/b', endpoint, credentialsFile });

const minio = findProgram('minio', 'bin');
if (minio === null)
  test('S3 on MinIO', { skip: `MinIO is not here; get it with: GOBIN=${CACHE}/bin go install github.com/minio/minio@latest` });
else
  storeInterop('S3 on MinIO, independent', {
    start: async () => {
      const server = await startServer(
        minio,
        (port) => ['server', '--quiet', '--address', `127.0.0.1:${port}`, '--console-address', '127.0.0.1:0', join(dir, 'minio')],
        (url) => `${url}/minio/health/ready`,
        { MINIO_ROOT_USER: 'lakebase', MINIO_ROOT_PASSWORD: 'interop-secret', MINIO_BROWSER: 'off' },
      );
      return { server, config: config(server.url) };
    },
    wrongBucket: (c) => ({ ...c, bucket: 'not-there' }) as S3Config,
    wrongCredentials: (c) => ({ ...c, credentialsFile: other }) as S3Config,
  });

const moto = findProgram('moto_server', 'moto/bin');
if (moto === null)
  test('S3 on moto', {
    skip: `moto is not here; get it with: python3 -m venv ${CACHE}/moto && ${CACHE}/moto/bin/pip install 'moto[server]'`,
  });
else
  storeInterop('S3 on moto, independent', {
    start: async () => {
      const server = await startServer(
        moto,
        (port) => ['-H', '127.0.0.1', '-p', String(port)],
        (url) => `${url}/moto-api/`,
      );
      return { server, config: config(server.url) };
    },
    wrongBucket: (c) => ({ ...c, bucket: 'not-there' }) as S3Config,
    wrongCredentials: 'moto checks no signatures here',
  });
