import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { LakebaseError, isCode } from '@lakebase/base';
import { checkObjectStoreConfig, objectStoreLocation, parseObjectStoreUrl } from './config.ts';
import { readCredentials } from './credentials.ts';
import { openBareStore } from './open.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-objectstore-config-'));
after(() => rmSync(dir, { recursive: true }));

test('the short form means the long form', () => {
  const cases: Record<string, unknown> = {
    '/srv/objects': { kind: 'directory', path: '/srv/objects' },
    'file:///srv/objects': { kind: 'directory', path: '/srv/objects' },
    's3://bucket': { kind: 's3', bucket: 'bucket' },
    's3://bucket/': { kind: 's3', bucket: 'bucket' },
    's3://bucket/a/b?region=eu-central-1&endpoint=http://127.0.0.1:9000&path-style=true&credentials=/etc/s3.json': {
      kind: 's3',
      bucket: 'bucket',
      prefix: 'a/b',
      region: 'eu-central-1',
      endpoint: 'http://127.0.0.1:9000',
      forcePathStyle: true,
      credentialsFile: '/etc/s3.json',
    },
    'azure://account1/box/x?deadline-ms=5000': { kind: 'azure', account: 'account1', container: 'box', prefix: 'x', deadlineMs: 5_000 },
    'gs://bucket/p?reads-max=4': { kind: 'gcs', bucket: 'bucket', prefix: 'p', readsMax: 4 },
  };
  for (const [url, config] of Object.entries(cases)) assert.deepEqual(parseObjectStoreUrl(url, 'x'), config, url);
  assert.equal(objectStoreLocation(parseObjectStoreUrl('s3://bucket/a/b?region=us-east-1', 'x')), 's3://bucket/a/b');
});

test('what is wrong is named, and what would be right', () => {
  const wrong: [string, RegExp][] = [
    ['objects', /not the URL/],
    ['ftp://host/x', /ftp:\/\/ is no object store/],
    ['s3://key:secret@bucket', /do not belong into the URL/],
    ['s3://bucket?zone=1', /no \?zone=.*region/],
    ['s3://bucket/../x/..%2f..%2fetc', /"prefix"/],
    ['s3://Bucket_1!', /"bucket"/],
    ['s3://bucket?endpoint=ftp://x', /"endpoint"/],
    ['s3://bucket?credentials=here.json', /"credentialsFile" must be an absolute path/],
    ['s3://bucket?reads-max=0', /"readsMax" must be a whole number/],
    ['azure://account1', /"container"/],
    ['s3://bucket#x', /no #/],
  ];
  for (const [url, message] of wrong)
    assert.throws(
      () => parseObjectStoreUrl(url, 'LAKEBASE_OBJECT_STORE'),
      (e: unknown) => isCode(e, 'CONFIG') && message.test(e.message) && e.message.startsWith('LAKEBASE_OBJECT_STORE: '),
      url,
    );
  for (const value of [
    null,
    [],
    's3',
    {},
    { kind: 'nfs' },
    { kind: 's3' },
    { kind: 's3', bucket: 'bucket', secretAccessKey: 'x' },
    { kind: 'directory', path: 'x' },
  ])
    assert.throws(
      () => checkObjectStoreConfig(value, 'objectstore.json'),
      (e: unknown) => isCode(e, 'CONFIG'),
    );
});

test('any text gives a configuration or CONFIG', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.string().map((s) => `s3://${s}`),
        fc.string().map((s) => `gs://bucket/${s}`),
      ),
      (text) => {
        try {
          checkObjectStoreConfig(parseObjectStoreUrl(text, 'x'), 'x');
        } catch (error) {
          assert.ok(error instanceof LakebaseError && error.code === 'CONFIG', String(error));
        }
      },
    ),
  );
});

test('credentials are read only from a file of the owner, and never quoted', () => {
  const file = join(dir, 'credentials.json');
  const read = (body: string, mode = 0o600): unknown => {
    writeFileSync(file, body);
    chmodSync(file, mode);
    return readCredentials(file, [['accessKeyId', 'secretAccessKey', 'sessionToken?']]);
  };
  assert.deepEqual(read('{"accessKeyId":"a","secretAccessKey":"b"}'), { accessKeyId: 'a', secretAccessKey: 'b' });
  assert.throws(() => read('{"accessKeyId":"a","secretAccessKey":"b"}', 0o640), /chmod 600/);
  for (const body of [
    'hunter2',
    '{"accessKeyId":"hunter2"}',
    '{"accessKeyId":"a","secretAccessKey":1}',
    '{"accessKeyId":"a","secretAccessKey":"b","hunter2":"c"}',
  ])
    assert.throws(
      () => read(body),
      (e: unknown) => isCode(e, 'CONFIG') && !`${e.message}${String((e.cause as Error | undefined)?.message)}`.includes('hunter2'),
    );
  assert.throws(() => readCredentials(join(dir, 'none'), []), /ENOENT/);
});

test('a directory needs no SDK', async () => {
  const store = await openBareStore({ kind: 'directory', path: join(dir, 'objects') });
  assert.equal(store.location, `file://${join(dir, 'objects')}`);
  await store.put('a/b', Buffer.from('x'));
  assert.equal((await store.get('a/b')).bytes.toString(), 'x');
});
