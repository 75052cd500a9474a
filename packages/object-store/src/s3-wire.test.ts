/** The S3 store against answers no honest server gives: a minimal server here, told what to say. That it speaks the real protocol is shown against
 *  servers of others (tests/interop). */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type IncomingMessage, type ServerResponse, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { crc32 } from 'node:zlib';
import { isCode } from '@lakebase/base';
import { decorate } from './decorate.ts';
import { crc32Header } from './file-parts.ts';
import type { ObjectStore } from './object-store.ts';
import { openBareStore } from './open.ts';
import { bytesOf } from './testing/index.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-objectstore-wire-'));
const seen: string[] = [];
let answer: (request: IncomingMessage, response: ServerResponse, body: Buffer) => void;
const server = createServer((request, response) => {
  seen.push(`${request.method} ${(request.url ?? '').replace(/\?.*/, (q) => q.replace(/x-id=\w+&?/, ''))}`);
  const chunks: Buffer[] = [];
  request.on('data', (c: Buffer) => chunks.push(c)).on('end', () => answer(request, response, Buffer.concat(chunks)));
});
let store: ObjectStore;

before(async () => {
  await new Promise<void>((r) => server.listen(0, '127.0.0.1', r));
  const credentialsFile = join(dir, 'credentials.json');
  writeFileSync(credentialsFile, '{"accessKeyId":"a","secretAccessKey":"b"}', { mode: 0o600 });
  const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  store = await openBareStore(
    { kind: 's3', bucket: 'bucket', prefix: 'p', endpoint, credentialsFile },
    { singleBytesMax: 100, partBytes: 40 },
  );
});
after(async () => {
  await store.close();
  server.closeAllConnections();
  server.close();
  rmSync(dir, { recursive: true, force: true });
});

const TAG = { etag: '"t"' };
const headers = (length: number, more = {}): Record<string, string> => ({ ...TAG, 'content-length': String(length), ...more });

test('bodies that are too short, too long, of another range or of none are never bytes of an object', async () => {
  const lies: [string, () => Promise<unknown>, (response: ServerResponse) => void][] = [
    ['cut off', () => store.get('k'), (r) => (r.writeHead(200, headers(10)).write('12345'), r.destroy())],
    [
      'the whole for a range',
      () => store.get('k', { range: { offset: 2, length: 3 } }),
      (r) => r.writeHead(200, headers(10)).end('0123456789'),
    ],
    [
      'another range',
      () => store.get('k', { range: { offset: 2, length: 3 } }),
      (r) => r.writeHead(206, headers(3, { 'content-range': 'bytes 3-5/10' })).end('345'),
    ],
    [
      'a shorter range',
      () => store.get('k', { range: { offset: 2, length: 3 } }),
      (r) => r.writeHead(206, headers(2, { 'content-range': 'bytes 2-3/10' })).end('23'),
    ],
    [
      'length and range differ',
      () => store.get('k', { range: { offset: 2, length: 3 } }),
      (r) => r.writeHead(206, headers(2, { 'content-range': 'bytes 2-4/10' })).end('23'),
    ],
    ['no ETag', () => store.get('k'), (r) => r.writeHead(200, { 'content-length': '1' }).end('1')],
    [
      'a stream cut off',
      async () => bytesOf((await store.stream('k')).body),
      (r) => (r.writeHead(200, headers(10)).write('12345'), setImmediate(() => r.destroy())),
    ],
    ['a put without ETag', () => store.put('k', Buffer.from('x')), (r) => r.writeHead(200).end()],
    ['a proxy in between', () => store.get('k'), (r) => r.writeHead(404, { 'content-type': 'text/html' }).end('<html>no route</html>')],
    ['a gateway', () => store.get('k'), (r) => r.writeHead(502).end('<html>bad gateway</html>')],
  ];
  for (const [what, call, respond] of lies) {
    answer = (_, response) => respond(response);
    await assert.rejects(call, (e: unknown) => isCode(e, 'UNAVAILABLE'), what);
  }
});

test('a body that does not have the checksum the server keeps is CORRUPT', async () => {
  const sum = crc32Header(crc32(Buffer.from('right')));
  answer = (_, r) => r.writeHead(200, headers(5, { 'x-amz-checksum-crc32': sum, 'x-amz-checksum-type': 'FULL_OBJECT' })).end('wrong');
  await assert.rejects(store.get('k'), (e: unknown) => isCode(e, 'CORRUPT'));
  await assert.rejects(
    async () => bytesOf((await store.stream('k')).body),
    (e: unknown) => isCode(e, 'CORRUPT'),
  );
  const { store: retrying } = decorate(store, { baseMs: 1, deadlineMs: 5_000 });
  await assert.rejects(retrying.get('k'), (e: unknown) => isCode(e, 'CORRUPT'));
  let first = true;
  answer = (_, r) => {
    r.writeHead(200, headers(5, { 'x-amz-checksum-crc32': sum, 'x-amz-checksum-type': 'FULL_OBJECT' })).end(first ? 'wrong' : 'right');
    first = false;
  };
  assert.equal((await retrying.get('k')).bytes.toString(), 'right', 'damaged on the way only');
});

test('uploads carry their checksum and their condition; an upload in parts that fails leaves no parts', async () => {
  const puts: Record<string, unknown>[] = [];
  answer = (request, r, body) => {
    puts.push({ ...request.headers, body: body.toString() });
    r.writeHead(200, TAG).end();
  };
  await store.put('k', Buffer.from('bytes'), { ifAbsent: true });
  assert.equal(puts[0]?.['if-none-match'], '*');
  assert.equal(puts[0]?.['x-amz-checksum-crc32'], crc32Header(crc32(Buffer.from('bytes'))));
  const path = join(dir, 'file');
  writeFileSync(path, Buffer.alloc(200, 'f'));
  await store.put('k', { path, size: 200 }, { ifMatch: '"u"' }).catch(() => {});
  seen.length = 0;
  answer = (request, r) => {
    if (request.url?.includes('uploads'))
      r.writeHead(200).end('<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>');
    else if (request.method === 'DELETE') r.writeHead(204).end();
    else if (request.url?.includes('partNumber=3')) r.writeHead(503).end('<Error><Code>SlowDown</Code></Error>');
    else r.writeHead(200, TAG).end();
  };
  await assert.rejects(store.put('k', { path, size: 200 }), (e: unknown) => isCode(e, 'RESOURCE_EXHAUSTED'));
  assert.ok(
    seen.some((line) => /^DELETE .*uploadId=u1/.test(line)),
    seen.join('\n'),
  );
  assert.ok(!seen.some((line) => /^POST .*uploadId=u1/.test(line)), 'never completed');
});

test('a lost answer to a conditional put: what is there is compared', async () => {
  let body: Buffer | undefined;
  answer = (request, r, sent) => {
    if (request.method === 'PUT' && body === undefined) {
      body = sent;
      r.destroy();
    } else if (request.method === 'PUT') r.writeHead(412).end('<Error><Code>PreconditionFailed</Code></Error>');
    else if (request.method === 'HEAD') r.writeHead(200, headers(5)).end();
    else r.writeHead(206, headers(5, { 'content-range': 'bytes 0-4/5' })).end(body);
  };
  const { store: retrying } = decorate(store, { baseMs: 1 });
  assert.equal(await retrying.put('k', Buffer.from('mine!'), { ifAbsent: true }), TAG.etag);
  await assert.rejects(retrying.put('k', Buffer.from('other'), { ifAbsent: true }), (e: unknown) => isCode(e, 'ALREADY_EXISTS'));
});

test('a server that answers nothing is left at the deadline of the attempt', async () => {
  let calls = 0;
  answer = (_, r) => {
    if (++calls === 3) r.writeHead(200, headers(1)).end();
  };
  const { store: retrying } = decorate(store, { baseMs: 1, attemptTimeoutMs: 100 });
  assert.equal((await retrying.head('k')).size, 1);
  assert.equal(calls, 3);
});
