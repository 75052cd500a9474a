import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isCode, silentLogger } from '@lakebase/base';
import { Registry } from 'prom-client';
import { Type } from 'typebox';
import { parseConfig } from './config.ts';
import { probeObjectStore } from './object-store-probe.ts';
import { objectStoreConfig, openObjectStore, registerObjectStoreMetrics } from './object-store.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-objectstore-kit-'));
after(() => rmSync(dir, { recursive: true, force: true }));

test('a service may have no store, or one, and every request of it is counted', async () => {
  const schema = Type.Object(objectStoreConfig, { additionalProperties: false });
  assert.equal(parseConfig(schema, {}, 'x').objectStore, null);
  assert.throws(() => parseConfig(schema, { objectStore: 's3://bucket' }, 'x'), /objectStore/);
  const { objectStore } = parseConfig(schema, { objectStore: { kind: 'directory', path: join(dir, 'objects') } }, 'x');
  assert.ok(objectStore !== null);
  const metrics = new Registry();
  registerObjectStoreMetrics(metrics);
  const store = await openObjectStore(objectStore, { log: silentLogger });
  await store.put('a', Buffer.alloc(1_000));
  await store.get('a', { range: { suffix: 10 } });
  await assert.rejects(store.head('b'), (e: unknown) => isCode(e, 'NOT_FOUND'));
  const text = await metrics.metrics();
  for (const line of [
    'lakebase_object_store_requests_total{operation="put",outcome="ok"} 1',
    'lakebase_object_store_requests_total{operation="get",outcome="ok"} 1',
    'lakebase_object_store_requests_total{operation="head",outcome="NOT_FOUND"} 1',
    'lakebase_object_store_bytes_total{operation="put"} 1000',
    'lakebase_object_store_bytes_total{operation="get"} 10',
    'lakebase_object_store_waiting{direction="read"} 0',
  ])
    assert.ok(text.includes(`${line}\n`), line);
  await store.close();
  await assert.rejects(
    openObjectStore({ kind: 's3' } as never, { log: silentLogger }),
    (e: unknown) => isCode(e, 'CONFIG') && /"bucket" is missing/.test(e.message),
  );
});

test('a store is probed by using it, and nothing stays behind', async () => {
  const path = join(dir, 'probed');
  await probeObjectStore({ kind: 'directory', path });
  assert.deepEqual(readdirSync(join(path, 'probe')), []);
});
