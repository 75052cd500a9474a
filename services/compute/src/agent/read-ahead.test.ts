import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BLCKSZ } from '@lakebase/ids';
import fc from 'fast-check';
import { ReadAhead } from './read-ahead.ts';

const tag = { spc: 1663, db: 5, rel: 16384, fork: 0 } as const;
const BLOCKS = 1_000;

/** A relation whose page n begins with n; short at its end, as the page service answers. */
function relation(): { fetch: (t: typeof tag, first: number, count: number) => Promise<Buffer>; calls: [number, number][] } {
  const calls: [number, number][] = [];
  return {
    calls,
    fetch: async (_t, first, count) => {
      calls.push([first, count]);
      const n = Math.max(0, Math.min(count, BLOCKS - first));
      const pages = Buffer.alloc(n * BLCKSZ);
      for (let i = 0; i < n; i++) pages.writeUInt32LE(first + i, i * BLCKSZ);
      return pages;
    },
  };
}

test('whatever the requests, the pages are the ones asked for', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ jump: fc.option(fc.nat(BLOCKS - 1), { freq: 3 }), count: fc.integer({ min: 1, max: 128 }) }), { maxLength: 30 }),
      async (requests) => {
        const { fetch } = relation();
        const ahead = new ReadAhead(fetch as never);
        let at = 0;
        for (const { jump, count } of requests) {
          if (jump !== null) at = jump;
          const pages = await ahead.get(tag, at, count);
          assert.equal(pages.length, Math.max(0, Math.min(count, BLOCKS - at)) * BLCKSZ);
          for (let i = 0; i * BLCKSZ < pages.length; i++) assert.equal(pages.readUInt32LE(i * BLCKSZ), at + i);
          at = at + count >= BLOCKS ? 0 : at + count;
        }
      },
    ),
    { numRuns: 50 },
  );
});

test('a scan finds its next run on the way; single blocks read nothing ahead', async () => {
  const { fetch, calls } = relation();
  const ahead = new ReadAhead(fetch as never);
  for (const first of [0, 128, 256, 384]) await ahead.get(tag, first, 128);
  assert.deepEqual(
    calls.map(([first]) => first),
    [0, 128, 256, 384, 512, 640],
    'no block twice',
  );
  const single = relation();
  const quiet = new ReadAhead(single.fetch as never);
  for (let i = 0; i < 20; i++) await quiet.get(tag, i, 1);
  assert.equal(single.calls.length, 20);
});

test('a run that fails is asked for again', async () => {
  let fail = false;
  const { fetch } = relation();
  const ahead = new ReadAhead((async (t: typeof tag, first: number, count: number) => {
    if (fail && first >= 256) throw new Error('away');
    return fetch(t, first, count);
  }) as never);
  await ahead.get(tag, 0, 128);
  fail = true;
  await ahead.get(tag, 128, 128);
  fail = false;
  assert.equal((await ahead.get(tag, 256, 128)).readUInt32LE(0), 256);
});
