/** The hot set: what is collected from a map, that ages pass, and that bytes from anywhere do no harm. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { BufferPool, DecodeError } from '@lakebase/bytes';
import { silentLogger } from '@lakebase/base';
import { BLCKSZ, type RelTag } from '@lakebase/ids';
import fc from 'fast-check';
import { BLOCK_CLEAN, ResidentMap } from '../resident-map.ts';
import { ShimSide } from '../testing/shim-side.ts';
import type { FetchAnswer } from './cache-worker.ts';
import { BATCH_BLOCKS, HotPrefetch, batchesOf } from './hot-prefetch.ts';
import { AGE_MAX, HOT_SET_BYTES_MAX, type HotRun, collectHotSet, decodeHotSet, encodeHotSet } from './hot-set.ts';

const tag = (rel: number, fork: 0 | 1 = 0): RelTag => ({ spc: 1663, db: 5, rel, fork });

/** A map in a file, as the shim leaves it after `use`. */
function used(map: ResidentMap, use: (shim: ShimSide) => void): ResidentMap {
  const dir = mkdtempSync(join(tmpdir(), 'hot-map-'));
  try {
    const path = join(dir, 'map');
    map.write(path);
    using shim = new ShimSide(path);
    use(shim);
    return ResidentMap.open(path);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

function read(shim: ShimSide, index: number, blocks: readonly number[]): void {
  for (const block of blocks) {
    shim.setState(index, block, BLOCK_CLEAN);
    shim.touch(index, block);
  }
}

function dataDirectory(): string {
  const pgdata = mkdtempSync(join(tmpdir(), 'hot-data-'));
  for (const dir of ['global', 'base', 'base/5', 'pg_tblspc']) mkdirSync(join(pgdata, dir));
  return pgdata;
}

test('used blocks are hot, near ones are one run, unused ones are forgotten after some computes', () => {
  const pgdata = dataDirectory();
  try {
    const map = used(
      ResidentMap.build([
        { tag: tag(1), segment: 0, nblocks: 300 },
        { tag: tag(2), segment: 0, nblocks: 40 },
      ]),
      (shim) => read(shim, 0, [3, 4, 7, 100, 299]),
    );
    let runs = collectHotSet(pgdata, map, [
      { tag: tag(2), block: 5, count: 10, age: 0 },
      { tag: tag(1), block: 90, count: 20, age: 1 },
    ]);
    assert.deepEqual(runs, [
      { tag: tag(1), block: 3, count: 5, age: 0 },
      { tag: tag(1), block: 90, count: 10, age: 2 },
      { tag: tag(1), block: 100, count: 1, age: 0 },
      { tag: tag(1), block: 101, count: 9, age: 2 },
      { tag: tag(1), block: 299, count: 1, age: 0 },
      { tag: tag(2), block: 5, count: 10, age: 1 },
    ]);
    const cold = ResidentMap.build([
      { tag: tag(1), segment: 0, nblocks: 300 },
      { tag: tag(2), segment: 0, nblocks: 12 },
    ]);
    runs = collectHotSet(pgdata, cold, runs);
    assert.deepEqual(
      runs.find((r) => r.tag.rel === 2),
      { tag: tag(2), block: 5, count: 7, age: 2 },
    );
    for (let i = 0; i <= AGE_MAX; i++) runs = collectHotSet(pgdata, cold, runs);
    assert.deepEqual(runs, []);
    // A new file, and one that has grown, are local: all of the new part.
    writeFileSync(join(pgdata, 'base/5/9'), '');
    truncateSync(join(pgdata, 'base/5/9'), 50 * BLCKSZ);
    writeFileSync(join(pgdata, 'base/5/1'), '');
    truncateSync(join(pgdata, 'base/5/1'), 310 * BLCKSZ);
    writeFileSync(join(pgdata, 'base/5/t3_9'), 'temporary');
    runs = collectHotSet(pgdata, cold, []).sort((a, b) => a.tag.rel - b.tag.rel);
    assert.deepEqual(runs, [
      { tag: tag(1), block: 300, count: 10, age: 0 },
      { tag: tag(9), block: 0, count: 50, age: 0 },
    ]);
  } finally {
    rmSync(pgdata, { recursive: true });
  }
});

test('what rounds took into the map is hot where it was used; what they have not seen yet is hot whole', () => {
  const pgdata = dataDirectory();
  try {
    const file = (name: string, blocks: number): void => {
      writeFileSync(join(pgdata, 'base/5', name), '');
      truncateSync(join(pgdata, 'base/5', name), blocks * BLCKSZ);
    };
    file('1', 900); // grown to 800 in the map
    file('2', 60); // new, all of it in the map
    file('3', 20); // new, dropped and made again
    const map = used(ResidentMap.build([{ tag: tag(1), segment: 0, nblocks: 40 }]), (shim) => {
      shim.grow(0, 800);
      read(shim, 0, [39, 700]);
      read(shim, shim.adopt(tag(2), 0, 60), [5]);
      shim.drop(shim.adopt(tag(3), 0, 30));
    });
    const runs = collectHotSet(pgdata, map, []).sort((a, b) => a.tag.rel - b.tag.rel || a.block - b.block);
    assert.deepEqual(runs, [
      { tag: tag(1), block: 39, count: 1, age: 0 },
      { tag: tag(1), block: 700, count: 1, age: 0 },
      { tag: tag(1), block: 800, count: 100, age: 0 },
      { tag: tag(2), block: 5, count: 1, age: 0 },
      { tag: tag(3), block: 0, count: 20, age: 0 },
    ]);
    assert.deepEqual(decodeHotSet(encodeHotSet(runs)), runs);
  } finally {
    rmSync(pgdata, { recursive: true });
  }
});

const runsArbitrary = fc
  .array(
    fc.tuple(
      fc.integer({ min: 1, max: 5 }),
      fc.array(fc.tuple(fc.integer({ min: 0, max: 100_000 }), fc.integer({ min: 1, max: 300_000 }), fc.integer({ min: 0, max: AGE_MAX }))),
    ),
    { maxLength: 5 },
  )
  .map((relations) => {
    const out: HotRun[] = [];
    for (const [i, [, list]] of relations.entries()) {
      let end = 0;
      for (const [gap, count, age] of list) {
        out.push({ tag: tag(i + 1), block: end + gap, count, age });
        end += gap + count;
      }
    }
    return out;
  });

test('the codec is exact, and refuses what it did not write', () => {
  fc.assert(
    fc.property(runsArbitrary, (runs) => assert.deepEqual(decodeHotSet(encodeHotSet(runs)), runs)),
    { numRuns: 100 },
  );
  const good = encodeHotSet([{ tag: tag(1), block: 7, count: 300, age: 1 }]);
  for (let n = 0; n < good.length; n++) assert.throws(() => decodeHotSet(good.subarray(0, n)), DecodeError);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      assert.throws(() => decodeHotSet(Buffer.from(bytes)), DecodeError);
    }),
  );
});

test('what does not fit loses the oldest first', () => {
  const many = (age: number, rel: number): HotRun[] =>
    Array.from({ length: 300_000 }, (_, i) => ({ tag: tag(rel), block: i * 200, count: 1, age }));
  const both = encodeHotSet([...many(0, 1), ...many(1, 2)]);
  assert.ok(both.length <= HOT_SET_BYTES_MAX);
  assert.ok(decodeHotSet(both).every((r) => r.age === 0));
  const few = encodeHotSet([...many(0, 1).slice(0, 1_000), ...many(2, 2)]);
  assert.equal(decodeHotSet(few).length, 1_000);
});

test('batches are of one segment, newest first, and within what storage has', () => {
  const map = ResidentMap.build([
    { tag: tag(1), segment: 0, nblocks: 131_072 },
    { tag: tag(1), segment: 1, nblocks: 100 },
    { tag: tag(2), segment: 0, nblocks: 5 },
  ]);
  const batches = batchesOf(
    [
      { tag: tag(2), block: 0, count: 9, age: 1 },
      { tag: tag(1), block: 131_000, count: 300, age: 0 },
      { tag: tag(7), block: 0, count: 1, age: 0 },
    ],
    map,
  );
  assert.ok(batches.every((b) => b.count <= BATCH_BLOCKS));
  assert.deepEqual(batches.at(-1), { entry: 2, block: 0, count: 5 });
  assert.equal(
    batches.filter((b) => b.entry === 0).reduce((n, b) => n + b.count, 0),
    72,
  );
  assert.equal(
    batches.filter((b) => b.entry === 1).reduce((n, b) => n + b.count, 0),
    100,
  );
});

test('pages come ahead of the worker, fewer batches while backends wait, and the end of the room is the end', async () => {
  const batches = Array.from({ length: 20 }, (_, i) => ({ entry: 0, block: i * 128, count: 128 }));
  let underWay = 0;
  let most = 0;
  let busy = false;
  const prefetch = new HotPrefetch({
    memory: new BufferPool(),
    batches,
    pages: async (batch) => {
      most = Math.max(most, ++underWay);
      await new Promise((resolve) => setImmediate(resolve));
      return Buffer.alloc(batch.count * BLCKSZ, batch.block / 128);
    },
    worker: {
      async fetch(entry, block, count): Promise<FetchAnswer> {
        const pages = await prefetch.take(entry, block + 3, count - 3);
        assert.deepEqual(pages, Buffer.alloc((count - 3) * BLCKSZ, block / 128));
        underWay--;
        if (block === 9 * 128) {
          assert.ok(most > 1);
          busy = true;
          most = 0;
        }
        if (block === 15 * 128) assert.ok(underWay <= 2);
        return block === 18 * 128 ? 'full' : 'ok';
      },
    },
    busy: () => busy,
    log: silentLogger,
  });
  await prefetch.run();
  assert.equal(prefetch.done, 'full');
});
