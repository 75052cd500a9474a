/** The whole system on MinIO: commits go on while it does not answer, and a pageserver whose disk is gone comes back from it. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { sleep } from '@lakebase/base';
import { type S3Config, openBareStore } from '@lakebase/object-store';
import { createBucket } from '@lakebase/object-store/testing';
import { Cluster } from '@lakebase/testkit';
import { CACHE, findProgram, startServer } from './servers.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-interop-system-'));
after(() => rmSync(dir, { recursive: true, force: true }));
const credentialsFile = join(dir, 'credentials.json');
writeFileSync(credentialsFile, JSON.stringify({ accessKeyId: 'lakebase', secretAccessKey: 'interop-secret' }), { mode: 0o600 });

const minio = findProgram('minio', 'bin');
const skip = minio === null ? `MinIO is not here; get it with: GOBIN=${CACHE}/bin go install github.com/minio/minio@latest` : false;

test('the whole system on MinIO: an outage stops no commit, and the pageserver comes back from it', {
  skip,
  timeout: 400_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const server = await startServer(
    minio as string,
    (port) => ['server', '--quiet', '--address', `127.0.0.1:${port}`, '--console-address', '127.0.0.1:0', join(dir, 'minio')],
    (url) => `${url}/minio/health/ready`,
    { MINIO_ROOT_USER: 'lakebase', MINIO_ROOT_PASSWORD: 'interop-secret', MINIO_BROWSER: 'off' },
  );
  stack.defer(() => (server.signal('SIGCONT'), server.stop()));
  const config: S3Config = { kind: 's3', bucket: 'whole-system', prefix: 'one', endpoint: server.url, credentialsFile };
  await createBucket(config);
  const LAKEBASE_OBJECT_STORE = `s3://whole-system/one?endpoint=${server.url}&credentials=${credentialsFile}&attempt-timeout-ms=2000`;
  const cluster = stack.use(await Cluster.start({ env: { LAKEBASE_OBJECT_STORE } }));

  const client = await cluster.connect();
  await client.query('create table t as select g, repeat(md5(g::text), 4) v from generate_series(1, 100000) g');
  server.signal('SIGSTOP');
  const slowest = { ms: 0 };
  for (let i = 0; i < 100; i++) {
    const started = performance.now();
    await client.query('insert into t values ($1, $2)', [-i, 'while the store stood still']);
    slowest.ms = Math.max(slowest.ms, performance.now() - started);
  }
  server.signal('SIGCONT');
  await client.end();
  console.log(`slowest of 100 commits while MinIO stood still: ${Math.round(slowest.ms)} ms`);

  // What was written goes up when it has been quiet for a while; nothing tells when, but the store.
  const store = await openBareStore(config);
  const names = async (): Promise<string[]> =>
    (await store.list('projects/')).objects.map((o) => o.key.replace(/.*\/timelines\/[^/]*\//, ''));
  const deadline = performance.now() + 120_000;
  while (!(await names()).some((n) => n.startsWith('wal/'))) {
    assert.ok(performance.now() < deadline, `no WAL was offloaded: ${(await names()).join(', ')}`);
    await sleep(500);
  }
  await cluster.stop();
  const found = await names();
  await store.close();
  assert.ok(found.some((n) => n.startsWith('index-g')) && found.some((n) => n.endsWith('.layer')), found.join(', '));
  console.log(`objects: ${found.join(', ')}`);

  rmSync(join(cluster.home, 'data', 'pageserver'), { recursive: true });
  const started = performance.now();
  await cluster.up();
  const again = await cluster.connect();
  const { rows } = await again.query('select count(*)::int n, sum(g)::bigint s, count(distinct v)::int d from t');
  assert.deepEqual(rows, [{ n: 100_100, s: String((100_000 * 100_001) / 2 - (99 * 100) / 2), d: 100_001 }]);
  console.log(`start on an empty pageserver, to the answer of a scan: ${Math.round(performance.now() - started)} ms`);
  await again.end();
});
