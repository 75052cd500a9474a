import assert from 'node:assert/strict';
import { test } from 'node:test';
import { copyOffHeap, offHeap } from './off-heap.ts';

test('key material lies outside the heap, where nothing moves it', () => {
  const kept: Buffer[] = [];
  const outside = (make: () => Buffer): number => {
    const before = process.memoryUsage().arrayBuffers;
    for (let i = 0; i < 4_000; i++) kept.push(make());
    return process.memoryUsage().arrayBuffers - before;
  };
  const three = Buffer.from([1, 2, 3]);
  assert.ok(outside(() => offHeap(32)) >= 4_000 * 32);
  assert.ok(outside(() => copyOffHeap(three)) >= 4_000 * 3);
  assert.ok(outside(() => Buffer.allocUnsafeSlow(32)) < 4_000 * 32, 'this is what it is for: if Node has changed, it may go');
  assert.deepEqual(kept[4_000], three);
});
