import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BufferPool } from '@lakebase/bytes';
import { BLCKSZ } from '@lakebase/ids';
import fc from 'fast-check';
import { ReadAhead } from './read-ahead.ts';

const tag = { spc: 1663, db: 5, rel: 16384, fork: 0 } as const;
const BLOCKS = 1_000;

/** A relation whose page n begins with n; short at its end, as the page service answers. */
function relation(): {
  fetch: (t: typeof tag, first: number, count: number) => Promise<Buffer>;
  calls: [number, number][];
  memory: BufferPool;
} {
  const calls: [number, number][] = [];
  const memory = new BufferPool();
  return {
    calls,
    memory,
    fetch: async (_t, first, count) => {
      calls.push([first, count]);
      const n = Math.max(0, Math.min(count, BLOCKS - first));
      const pages = memory.take(n * BLCKSZ).fill(0);
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
        const { fetch, memory } = relation();
        const ahead = new ReadAhead(fetch as never, memory);
        const held: { pages: Buffer; at: number }[] = [];
        const check = ({ pages, at }: { pages: Buffer; at: number }): void => {
          for (let i = 0; i * BLCKSZ < pages.length; i++) assert.equal(pages.readUInt32LE(i * BLCKSZ), at + i);
        };
        let at = 0;
        for (const { jump, count } of requests) {
          if (jump !== null) at = jump;
          const from = at;
          // Two at a time, as I/O workers ask; some answers are kept while others come.
          const both = [ahead.get(tag, from, count), ahead.get(tag, Math.min(from + count, BLOCKS - 1), count)] as const;
          const pages = await both[0];
          assert.equal(pages.length, Math.max(0, Math.min(count, BLOCKS - from)) * BLCKSZ);
          held.push({ pages, at: from }, { pages: await both[1], at: Math.min(from + count, BLOCKS - 1) });
          for (const one of held) check(one);
          while (held.length > 4) memory.release((held.shift() as { pages: Buffer }).pages);
          at = at + count >= BLOCKS ? 0 : at + count;
        }
      },
    ),
    { numRuns: 50 },
  );
});

test('a scan finds its next run on the way; single blocks read nothing ahead', async () => {
  const { fetch, calls, memory } = relation();
  const ahead = new ReadAhead(fetch as never, memory);
  for (const first of [0, 128, 256, 384]) await ahead.get(tag, first, 128);
  assert.deepEqual(
    calls.map(([first]) => first),
    [0, 128, 256, 384, 512, 640],
    'no block twice',
  );
  const single = relation();
  const quiet = new ReadAhead(single.fetch as never, single.memory);
  for (let i = 0; i < 20; i++) await quiet.get(tag, i, 1);
  assert.equal(single.calls.length, 20);
});

test('a run that fails is asked for again', async () => {
  let fail = false;
  const { fetch, memory } = relation();
  const ahead = new ReadAhead(
    (async (t: typeof tag, first: number, count: number) => {
      if (fail && first >= 256) throw new Error('away');
      return fetch(t, first, count);
    }) as never,
    memory,
  );
  await ahead.get(tag, 0, 128);
  fail = true;
  await ahead.get(tag, 128, 128);
  fail = false;
  assert.equal((await ahead.get(tag, 256, 128)).readUInt32LE(0), 256);
});

test('a run that crosses a border of what is held is asked for only where nothing is', async () => {
  const { fetch, calls, memory } = relation();
  const ahead = new ReadAhead(fetch as never, memory);
  await ahead.get(tag, 0, 48);
  await ahead.get(tag, 48, 48); // a scan: runs from 96 on
  const asked = calls.length;
  const pages = await ahead.get(tag, 96 + 112, 32);
  for (let i = 0; i < 32; i++) assert.equal(pages.readUInt32LE(i * BLCKSZ), 208 + i);
  assert.ok(
    calls.slice(asked).every(([first]) => first >= 96 + 256),
    'only further ahead',
  );
});
