import assert from 'node:assert/strict';
import { test } from 'node:test';
import { spareIndex, totalBuckets } from './metapage.ts';

test('buckets are allocated by doubling, and from the tenth doubling on in quarters', () => {
  const steps = Array.from({ length: 16 }, (_, phase) => totalBuckets(phase));
  assert.deepEqual(steps, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 640, 768, 896, 1024, 1280, 1536]);
  assert.equal(totalBuckets(97), 2 ** 31);
});

test('a number of buckets belongs to the first phase that reaches it', () => {
  for (const buckets of [1, 2, 3, 4, 5, 511, 512, 513, 640, 641, 768, 1024, 1025, 1536, 1537, 60_000, 0x4000_0000]) {
    const phase = spareIndex(buckets);
    assert.ok(totalBuckets(phase) >= buckets, `${buckets}`);
    if (phase > 0) assert.ok(totalBuckets(phase - 1) < buckets, `${buckets}`);
  }
});
