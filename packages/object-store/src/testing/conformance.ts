/** What every object store must do, as a suite to run on any of them. Nothing in it expects more than docs of object-store.ts say. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { after, before, describe, test } from 'node:test';
import { type ErrorCode, LakebaseError } from '@lakebase/base';
import type { ByteRange, ObjectStore } from '../object-store.ts';

export interface ConformanceOptions {
  /** A size for which the store uploads in parts. */
  readonly largeBytes?: number;
  /** What the server under test is known not to do, with the reason. */
  readonly without?: Partial<Record<'ifMatch' | 'concurrentIfAbsent' | 'abort', string>>;
}

const rejectsWith = (promise: Promise<unknown>, ...codes: ErrorCode[]): Promise<void> =>
  assert.rejects(promise, (error: unknown) => {
    assert.ok(error instanceof LakebaseError, `not one of our errors: ${String(error)}`);
    assert.ok(codes.includes(error.code), `${error.code} instead of ${codes.join(' or ')}: ${error.message}`);
    return true;
  });

export async function bytesOf(body: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of body as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

export function registerStoreConformance(name: string, open: () => Promise<ObjectStore>, options: ConformanceOptions = {}): void {
  const { largeBytes = 3 * 1024 * 1024 + 17, without = {} } = options;
  describe(`object store: ${name}`, () => {
    let store: ObjectStore;
    let dir: string;
    // Also where the store is used by others.
    const at = (key: string): string => `conformance-${run}/${key}`;
    const run = randomBytes(6).toString('hex');
    before(async () => {
      store = await open();
      dir = await mkdtemp(join(tmpdir(), 'lb-conformance-'));
    });
    after(async () => {
      await store?.close();
      await rm(dir, { recursive: true, force: true });
    });

    test('what was put is there, whole and in parts', async () => {
      const bytes = randomBytes(100_000);
      const tag = await store.put(at('a/whole'), bytes);
      const info = { key: at('a/whole'), size: bytes.length, tag };
      assert.deepEqual(await store.head(at('a/whole')), info);
      assert.deepEqual(await store.get(at('a/whole')), { ...info, bytes });
      const streamed = await store.stream(at('a/whole'));
      assert.equal(streamed.size, bytes.length);
      assert.equal(streamed.tag, tag);
      assert.deepEqual(await bytesOf(streamed.body), bytes);
      const ranges: [ByteRange, number, number][] = [
        [{ offset: 0, length: 1 }, 0, 1],
        [{ offset: 5, length: 7 }, 5, 12],
        [{ offset: 0, length: 100_000 }, 0, 100_000],
        [{ offset: 99_999, length: 1 }, 99_999, 100_000],
        [{ offset: 99_990, length: 1_000 }, 99_990, 100_000],
        [{ offset: 10, length: 0 }, 10, 10],
        [{ offset: 100_000, length: 5 }, 100_000, 100_000],
        [{ suffix: 8 }, 99_992, 100_000],
        [{ suffix: 0 }, 100_000, 100_000],
        [{ suffix: 200_000 }, 0, 100_000],
      ];
      for (const [range, from, to] of ranges) {
        const got = await store.get(at('a/whole'), { range });
        assert.ok(got.bytes.equals(bytes.subarray(from, to)), `${JSON.stringify(range)}: ${got.bytes.length} bytes`);
        assert.equal(got.size, bytes.length, 'the size is that of the object');
        assert.equal(got.tag, tag);
      }
    });

    test('an empty object', async () => {
      await store.put(at('empty'), Buffer.alloc(0));
      for (const range of [undefined, { suffix: 5 }, { suffix: 0 }, { offset: 0, length: 3 }]) {
        const got = await store.get(at('empty'), range === undefined ? {} : { range });
        assert.deepEqual([got.bytes.length, got.size], [0, 0]);
      }
      assert.equal((await bytesOf((await store.stream(at('empty'))).body)).length, 0);
    });

    test('malformed names and ranges are refused before anything is sent', async () => {
      const long = `${'x'.repeat(250)}/${'y'.repeat(250)}/${'z'.repeat(20)}`;
      for (const key of [
        '',
        '/',
        '/a',
        'a/',
        'a//b',
        '../a',
        'a/../b',
        'a/..',
        '.a',
        'a/.b',
        'a b',
        'a%2fb',
        'a\0b',
        'ä',
        'a\\b',
        long,
        'x'.repeat(256),
      ]) {
        await rejectsWith(store.get(key), 'INVALID_ARGUMENT');
        await rejectsWith(store.put(key, Buffer.alloc(1)), 'INVALID_ARGUMENT');
        await rejectsWith(store.head(key), 'INVALID_ARGUMENT');
        await rejectsWith(store.stream(key), 'INVALID_ARGUMENT');
        await rejectsWith(store.delete([key]), 'INVALID_ARGUMENT');
      }
      await store.put(at('ranges'), Buffer.from('0123456789'));
      const bad: ByteRange[] = [
        { offset: 11, length: 1 },
        { offset: -1, length: 1 },
        { offset: 0, length: -1 },
        { offset: 0.5, length: 1 },
        { offset: Number.NaN, length: 1 },
        { suffix: -3 },
        { offset: 0, length: Number.POSITIVE_INFINITY },
      ];
      for (const range of bad) await rejectsWith(store.get(at('ranges'), { range }), 'INVALID_ARGUMENT');
    });

    test('what is not there is NOT_FOUND, and deleting it is no error', async () => {
      await rejectsWith(store.get(at('none')), 'NOT_FOUND');
      await rejectsWith(store.get(at('none'), { range: { offset: 0, length: 10 } }), 'NOT_FOUND');
      await rejectsWith(store.get(at('none'), { range: { offset: 0, length: 0 } }), 'NOT_FOUND');
      await rejectsWith(store.head(at('none')), 'NOT_FOUND');
      await rejectsWith(store.stream(at('none')), 'NOT_FOUND');
      await store.put(at('gone/1'), Buffer.from('1'));
      await store.put(at('gone/2'), Buffer.from('2'));
      await store.delete([at('gone/1'), at('none'), at('gone/2')]);
      await store.delete([at('gone/1')]);
      await store.delete([]);
      await rejectsWith(store.get(at('gone/1')), 'NOT_FOUND');
      await rejectsWith(store.head(at('gone/2')), 'NOT_FOUND');
      await rejectsWith(store.head(at('gone')), 'NOT_FOUND');
    });

    test('an object is replaced as a whole, and its tag changes with it', async () => {
      const first = await store.put(at('replaced'), Buffer.from('first, and longer'));
      const second = await store.put(at('replaced'), Buffer.from('second'));
      assert.notEqual(first, second);
      assert.deepEqual(await store.get(at('replaced')), { key: at('replaced'), size: 6, tag: second, bytes: Buffer.from('second') });
    });

    test('ifAbsent: only where there is nothing', async () => {
      const tag = await store.put(at('once'), Buffer.from('mine'), { ifAbsent: true });
      await rejectsWith(store.put(at('once'), Buffer.from('theirs'), { ifAbsent: true }), 'ALREADY_EXISTS');
      const { bytes, tag: found } = await store.get(at('once'));
      assert.deepEqual([bytes.toString(), found], ['mine', tag]);
      await store.delete([at('once')]);
      await store.put(at('once'), Buffer.from('again'), { ifAbsent: true });
    });

    test('ifAbsent: of many at once, one succeeds', { skip: without.concurrentIfAbsent ?? false }, async () => {
      const bodies = Array.from({ length: 8 }, (_, i) => Buffer.from(`writer ${i}`));
      const results = await Promise.allSettled(bodies.map((b) => store.put(at('race'), b, { ifAbsent: true })));
      const winners = bodies.filter((_, i) => results[i]?.status === 'fulfilled');
      for (const result of results)
        if (result.status === 'rejected') assert.match((result.reason as LakebaseError).code, /^(ALREADY_EXISTS|UNAVAILABLE)$/);
      assert.equal(winners.length, 1);
      assert.ok((await store.get(at('race'))).bytes.equals(winners[0] as Buffer));
    });

    test('ifMatch: only over the version it names', { skip: without.ifMatch ?? false }, async () => {
      const v1 = await store.put(at('matched'), Buffer.from('v1'));
      const v2 = await store.put(at('matched'), Buffer.from('v2'), { ifMatch: v1 });
      await rejectsWith(store.put(at('matched'), Buffer.from('v3'), { ifMatch: v1 }), 'CONFLICT');
      await rejectsWith(store.put(at('matched-none'), Buffer.from('v1'), { ifMatch: v2 }), 'CONFLICT');
      await rejectsWith(store.head(at('matched-none')), 'NOT_FOUND');
      assert.equal((await store.get(at('matched'))).bytes.toString(), 'v2');
      assert.equal((await store.head(at('matched'))).tag, v2);
    });

    test('ifMatch: increments of many writers are all there', { skip: without.ifMatch ?? false }, async () => {
      await store.put(at('counter'), Buffer.from('0'));
      const increment = async (): Promise<void> => {
        for (;;) {
          try {
            const { bytes, tag } = await store.get(at('counter'));
            await store.put(at('counter'), Buffer.from(String(Number(bytes.toString()) + 1)), { ifMatch: tag });
            return;
          } catch (error) {
            if (!(error instanceof LakebaseError) || (error.code !== 'CONFLICT' && error.code !== 'UNAVAILABLE')) throw error;
          }
        }
      };
      await Promise.all(Array.from({ length: 4 }, () => increment().then(increment).then(increment)));
      assert.equal((await store.get(at('counter'))).bytes.toString(), '12');
    });

    test('files, small and large, also under a condition', async () => {
      for (const size of [0, 1_000, largeBytes]) {
        const path = join(dir, `file-${size}`);
        const bytes = randomBytes(size);
        await writeFile(path, bytes);
        const key = at(`files/${size}`);
        const tag = await store.put(key, { path, size }, { ifAbsent: true });
        const streamed = await store.stream(key);
        const hash = createHash('sha256');
        for await (const chunk of streamed.body as AsyncIterable<Buffer>) hash.update(chunk);
        assert.equal(hash.digest('hex'), createHash('sha256').update(bytes).digest('hex'));
        assert.deepEqual(await store.head(key), { key, size, tag });
        if (size > 100) assert.ok((await store.get(key, { range: { suffix: 100 } })).bytes.equals(bytes.subarray(-100)));
        await rejectsWith(store.put(key, { path, size }, { ifAbsent: true }), 'ALREADY_EXISTS');
      }
      await rejectsWith(store.put(at('files/shorter'), { path: join(dir, 'file-1000'), size: 2_000 }), 'INVALID_ARGUMENT');
      await rejectsWith(store.head(at('files/shorter')), 'NOT_FOUND');
      await rejectsWith(store.put(at('files/missing'), { path: join(dir, 'none'), size: 10 }), 'INVALID_ARGUMENT', 'UNAVAILABLE');
    });

    test('lists: by prefix, in byte order, in pages', async () => {
      const names = ['l/a', 'l/a-b', 'l/a.c', 'l/a0', 'l/a/1', 'l/a/2', 'l/B', 'l/b/c/d', 'l/b/c/e', 'lx'].filter((n) => n !== 'l/a');
      for (const name of names) await store.put(at(name), Buffer.from(name));
      const inOrder = (prefix: string): string[] =>
        names
          .map(at)
          .filter((n) => n.startsWith(prefix))
          .sort((a, b) => (a < b ? -1 : 1));
      for (const prefix of [at('l'), at('l/'), at('l/a'), at('l/a/'), at('l/b/c/d'), at('l/none')]) {
        for (const limit of [undefined, 1, 2, 3]) {
          const found: string[] = [];
          let after: string | undefined;
          do {
            const page = await store.list(prefix, { ...(limit === undefined ? {} : { limit }), ...(after === undefined ? {} : { after }) });
            assert.ok(page.objects.length <= (limit ?? 1_000));
            found.push(...page.objects.map((o) => o.key));
            after = page.next;
          } while (after !== undefined);
          assert.deepEqual(found, inOrder(prefix), `${prefix} by ${limit}`);
        }
      }
      const one = (await store.list(at('l/b/c/d'))).objects[0];
      assert.deepEqual(one, await store.head(at('l/b/c/d')));
      assert.deepEqual(
        (await store.list(at('l/'), { after: at('l/a0') })).objects.map((o) => o.key),
        inOrder(at('l/')).filter((n) => n > at('l/a0')),
      );
    });

    test('a call that is ended ends', { skip: without.abort ?? false }, async () => {
      const ended = AbortSignal.abort(new Error('enough'));
      await rejectsWith(store.get(at('a/whole'), { signal: ended }), 'UNAVAILABLE');
      await rejectsWith(store.put(at('ended'), Buffer.from('x'), { signal: ended }), 'UNAVAILABLE');
      await rejectsWith(store.head(at('a/whole'), { signal: ended }), 'UNAVAILABLE');
      await rejectsWith(store.head(at('ended')), 'NOT_FOUND');
    });
  });
}
