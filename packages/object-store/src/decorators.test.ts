/** Retries, deadlines and limits over a store that fails (campaign F22, F23 for one request). */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { LakebaseError, isCode } from '@lakebase/base';
import { type DecorationOptions, decorate } from './decorate.ts';
import { LimitedStore } from './limited-store.ts';
import type { ObjectInfo, ObjectStore, PutOptions } from './object-store.ts';
import type { StoreObservation } from './observed-store.ts';
import { ReplacedObject } from './replaced-object.ts';
import { type Faults, FaultStore, MemoryStore, bytesOf } from './testing/index.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-objectstore-decorators-'));
after(() => rmSync(dir, { recursive: true, force: true }));

const FAST = { baseMs: 1, maxMs: 4, attemptTimeoutMs: 2_000, deadlineMs: 20_000 };

function faulty(faults: Faults, options: DecorationOptions = {}): { memory: MemoryStore; faults: FaultStore; store: ObjectStore } {
  const memory = new MemoryStore();
  const between = new FaultStore(memory, { seed: 1, ...faults });
  return { memory, faults: between, store: decorate(between, { ...FAST, ...options }).store };
}

test('under any mix of faults nothing is lost, nothing is done twice, and every byte is right', async () => {
  const share = fc.double({ min: 0, max: 0.4, noNaN: true });
  const faults = fc.record({
    seed: fc.integer(),
    errors: share,
    throttled: share,
    lostResponses: share,
    truncated: share,
    staleLists: share,
  });
  await fc.assert(
    fc.asyncProperty(faults, async (f) => {
      const { memory, store } = faulty(f, { baseMs: 0.1, maxMs: 0.2 });
      const bodyOf = (i: number, version: number): Buffer => Buffer.from(`${i}:${version}:`.repeat(1 + i));
      for (let i = 0; i < 6; i++) {
        // Each would fail for its own lost answer, were it not recognised.
        const first = await store.put(`k/${i}`, bodyOf(i, 1), { ifAbsent: true });
        const second = await store.put(`k/${i}`, bodyOf(i, 2), { ifMatch: first });
        await assert.rejects(store.put(`k/${i}`, bodyOf(i, 9), { ifAbsent: true }), (e: unknown) => isCode(e, 'ALREADY_EXISTS'));
        await assert.rejects(store.put(`k/${i}`, bodyOf(i, 9), { ifMatch: first }), (e: unknown) => isCode(e, 'CONFLICT'));
        const { bytes, tag } = await store.get(`k/${i}`);
        assert.ok(bytes.equals(bodyOf(i, 2)) && tag === second);
        assert.ok((await store.get(`k/${i}`, { range: { offset: 1, length: 3 } })).bytes.equals(bodyOf(i, 2).subarray(1, 4)));
        assert.ok((await bytesOf((await store.stream(`k/${i}`)).body)).equals(bodyOf(i, 2)));
      }
      await store.delete(['k/0', 'k/none']);
      assert.deepEqual([...memory.objects.keys()].sort(), ['k/1', 'k/2', 'k/3', 'k/4', 'k/5']);
    }),
    { numRuns: 25 },
  );
});

test('a put whose answer was lost: ours by content, of a buffer and of a file; not ours when somebody else was first', async () => {
  const file = join(dir, 'large');
  const bytes = Buffer.alloc(9 * 1024 * 1024, 'content ');
  writeFileSync(file, bytes);
  for (const source of [Buffer.from('small'), bytes, { path: file, size: bytes.length }, Buffer.alloc(0)]) {
    const { memory, faults, store } = faulty({});
    const attempt = async (options: PutOptions): Promise<string> => {
      faults.faults = { lostResponses: 1 };
      const put = store.put('x', source, options);
      while (faults.injected.lostResponses === 0) await new Promise((r) => setImmediate(r));
      faults.faults = {};
      return put;
    };
    const tag = await attempt({ ifAbsent: true });
    assert.equal(tag, memory.objects.get('x')?.tag);
    assert.equal(memory.calls.put, 2, 'the second attempt found it there');
    faults.injected.lostResponses = 0;
    memory.objects.get('x')!.bytes = Buffer.from('before');
    assert.equal(await attempt({ ifMatch: tag }), memory.objects.get('x')?.tag);
  }
  // The first attempt fails before it is applied; then another writer comes.
  const { memory, faults, store } = faulty({});
  faults.storm(1);
  const put = store.put('y', Buffer.from('ours!'), { ifAbsent: true });
  await memory.put('y', Buffer.from('their'));
  await assert.rejects(put, (e: unknown) => isCode(e, 'ALREADY_EXISTS'));
  assert.equal(memory.objects.get('y')?.bytes.toString(), 'their');
});

test('an object that is replaced again and again never goes back, however late an old request comes; a plain put does', async () => {
  const share = fc.double({ min: 0, max: 0.4, noNaN: true });
  const faults = fc.record({ seed: fc.integer(), latePuts: share, lostResponses: share, errors: share });
  const options = { baseMs: 0.1, maxMs: 0.2 };
  await fc.assert(
    fc.asyncProperty(faults, async (f) => {
      const { memory, faults: between, store } = faulty(f, options);
      const object = new ReplacedObject(store, 'index');
      for (let version = 1; version <= 12; version++) {
        await object.put(Buffer.from(`version ${version}`));
        assert.equal(memory.objects.get('index')?.bytes.toString(), `version ${version}`);
      }
      await between.arriveAll();
      assert.equal(memory.objects.get('index')?.bytes.toString(), 'version 12');
    }),
    { numRuns: 40 },
  );
  // What it is for.
  const { memory, faults: between, store } = faulty({ latePuts: 0.4, seed: 5 } as Faults, options);
  for (let version = 1; version <= 12; version++) await store.put('index', Buffer.from(`version ${version}`));
  await between.arriveAll();
  assert.notEqual(memory.objects.get('index')?.bytes.toString(), 'version 12');
});

test('503 storms are waited out, with delays that grow and differ; an outage longer than the deadline is said, with its reason', async () => {
  const retries: string[] = [];
  const { faults, store } = faulty(
    {},
    { onRetry: ({ operation }, error, attempt) => retries.push(`${operation} ${error.code} ${attempt}`) },
  );
  faults.storm(5);
  await store.put('a', Buffer.from('x'));
  assert.deepEqual(
    retries,
    [0, 1, 2, 3, 4].map((n) => `put RESOURCE_EXHAUSTED ${n}`),
  );
  const down = faulty({ errors: 1 }, { deadlineMs: 60 });
  const started = performance.now();
  await assert.rejects(down.store.get('a'), (e: unknown) => isCode(e, 'UNAVAILABLE') && /injected: 500/.test(e.message));
  assert.ok(performance.now() - started >= 55);
  assert.ok(down.faults.injected.errors > 5);
});

test('what cannot pass is not tried again', async () => {
  const { memory, store } = faulty({});
  await assert.rejects(store.get('none'), (e: unknown) => isCode(e, 'NOT_FOUND'));
  await assert.rejects(store.get('../etc'), (e: unknown) => isCode(e, 'INVALID_ARGUMENT'));
  await assert.rejects(store.put('x', { path: join(dir, 'missing'), size: 1 }), (e: unknown) => isCode(e, 'INVALID_ARGUMENT'));
  assert.ok(memory.calls.get <= 2 && memory.calls.put === 1, JSON.stringify(memory.calls));
});

test('a store that does not answer: one attempt ends at its deadline, the next is made; the caller can end it all', async () => {
  const { faults, store } = faulty({}, { attemptTimeoutMs: 30, deadlineMs: 10_000 });
  await store.put('a', Buffer.from('x'));
  const hole = faults.blackhole();
  const get = store.get('a', { range: { offset: 0, length: 1 } });
  while (faults.injected.blackhole < 3) await new Promise((r) => setImmediate(r));
  hole.release();
  assert.equal((await get).bytes.toString(), 'x');
  faults.blackhole();
  const abort = new AbortController();
  const ended = store.get('a', { signal: abort.signal });
  abort.abort();
  await assert.rejects(ended, (e: unknown) => isCode(e, 'UNAVAILABLE'));
});

test('writes never keep reads waiting, and waiting is ended by its signal', async () => {
  const gate = Promise.withResolvers<void>();
  class Slow extends MemoryStore {
    override async put(...args: Parameters<ObjectStore['put']>): Promise<string> {
      await gate.promise;
      return super.put(...args);
    }
  }
  const slow = new Slow();
  slow.objects.set('a', { bytes: Buffer.from('x'), tag: 't' });
  const store = new LimitedStore(slow, { readsMax: 2, writesMax: 3 });
  const puts = Array.from({ length: 10 }, (_, i) => store.put(`p/${i}`, Buffer.from('x')));
  assert.deepEqual(store.waiting, { reads: 0, writes: 7 });
  const reads = await Promise.all(Array.from({ length: 10 }, () => store.get('a')));
  assert.equal(reads.length, 10);
  const abort = new AbortController();
  const eleventh = store.put('p/10', Buffer.from('x'), { signal: abort.signal });
  abort.abort();
  await assert.rejects(eleventh, (e: unknown) => isCode(e, 'UNAVAILABLE'));
  assert.equal(store.waiting.writes, 7);
  gate.resolve();
  await Promise.all(puts);
  assert.deepEqual(store.waiting, { reads: 0, writes: 0 });
});

test('a stream that breaks off goes on with ranges of the same version, or fails', async () => {
  const bytes = Buffer.alloc(300_000, 'abcdefg');
  for (let seed = 0; seed < 20; seed++) {
    const { memory, store } = faulty({ seed, truncated: 0.7 } as Faults);
    await memory.put('s', bytes);
    assert.ok((await bytesOf((await store.stream('s')).body)).equals(bytes));
  }
  const { memory, faults, store } = faulty({ truncated: 1 });
  await memory.put('s', bytes);
  const { body } = await store.stream('s');
  faults.faults = {};
  await memory.put('s', Buffer.alloc(300_000, 'another'));
  await assert.rejects(bytesOf(body), (e: unknown) => isCode(e, 'UNAVAILABLE'));
});

test('a stream nobody feeds ends; one nobody reads costs no slot', async () => {
  class Stuck extends MemoryStore {
    override async stream(): Promise<ObjectInfo & { readonly body: Readable }> {
      return { key: 's', size: 10, tag: 't', body: new Readable({ read: () => {} }) };
    }
    override async get(): Promise<never> {
      throw new LakebaseError('UNAVAILABLE', 'down');
    }
  }
  const { store } = decorate(new Stuck(), { ...FAST, attemptTimeoutMs: 40, deadlineMs: 80, readsMax: 1 });
  const streams = await Promise.all([store.stream('s'), store.stream('s'), store.stream('s')]);
  await assert.rejects(bytesOf(streams[0].body), (e: unknown) => isCode(e, 'UNAVAILABLE') && /down/.test(e.message));
  const abort = new AbortController();
  const { body } = await store.stream('s', { signal: abort.signal });
  const ended = assert.rejects(bytesOf(body), (e: unknown) => isCode(e, 'UNAVAILABLE'));
  abort.abort();
  await ended;
  for (const { body: other } of streams.slice(1)) {
    other.destroy();
    await once(other, 'close');
  }
});

test('every request is observed, failures too', async () => {
  const seen: StoreObservation[] = [];
  const { faults, store } = faulty({}, { observer: (o) => seen.push(o) });
  faults.storm(1);
  await store.put('a', Buffer.alloc(10));
  await store.get('a', { range: { suffix: 4 } });
  await assert.rejects(store.head('b'));
  assert.deepEqual(
    seen.map((o) => [o.operation, o.outcome, o.bytes]),
    [
      ['put', 'RESOURCE_EXHAUSTED', 0],
      ['put', 'ok', 10],
      ['get', 'ok', 4],
      ['head', 'NOT_FOUND', 0],
    ],
  );
});

test('a flipped bit is nobody’s business here: what is read is opened by its key above', async () => {
  const { memory, store } = faulty({ flipped: 1 });
  await memory.put('a', Buffer.alloc(100));
  assert.ok(!(await store.get('a', { range: { offset: 0, length: 100 } })).bytes.equals(Buffer.alloc(100)));
});
