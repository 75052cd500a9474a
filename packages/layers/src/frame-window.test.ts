import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FrameCache } from './frame-cache.ts';

const GROUPS = new Uint32Array(0);

test('what a page has seen stays as it is until the next page, whatever passes', () => {
  const frames = fc.array(fc.record({ key: fc.nat(30), bytes: fc.integer({ min: 1, max: 50_000 }) }), { minLength: 1, maxLength: 20 });
  fc.assert(
    fc.property(fc.array(frames, { maxLength: 20 }), (pages) => {
      const cache = new FrameCache(1 << 20);
      for (const wanted of pages) {
        const seen: { bytes: Buffer; key: number }[] = [];
        cache.startPassing();
        for (const { key, bytes } of wanted) {
          let frame = cache.get(key);
          if (frame === undefined) {
            const room = cache.roomToPass(bytes);
            frame = { bytes: (room?.subarray(0, bytes) ?? Buffer.alloc(bytes)).fill(key), groups: GROUPS };
            if (room === undefined) cache.set(key, frame);
            else cache.passed(key, frame);
          }
          seen.push({ bytes: frame.bytes, key });
          for (const s of seen) assert.ok(s.bytes[0] === s.key && s.bytes.at(-1) === s.key);
        }
        cache.endPassing();
        assert.equal(cache.roomToPass(1), undefined, 'others keep what they read');
      }
    }),
    { numRuns: 40 },
  );
});

test('a frame that passed is seen by those who pass, and by nobody once it is forgotten', () => {
  const cache = new FrameCache(1 << 20);
  cache.startPassing();
  const room = cache.roomToPass(100) as Buffer;
  const frame = { bytes: room.subarray(0, 100).fill(7), groups: GROUPS };
  cache.passed(5, frame);
  cache.endPassing();
  assert.equal(cache.get(5), undefined);
  cache.startPassing();
  assert.equal(cache.get(5), frame);
  cache.forget(5, 6, false);
  assert.equal(cache.get(5), undefined);
  assert.ok(frame.bytes.every((b) => b === 0));
  cache.endPassing();
});

test('a frame that could not be read leaves no trace of another one', () => {
  const cache = new FrameCache(1 << 20);
  cache.startPassing();
  cache.passed(1, { bytes: (cache.roomToPass(10) as Buffer).subarray(0, 10).fill(1), groups: GROUPS });
  cache.startPassing();
  for (let i = 0; i < 32; i++) cache.roomToPass(10)?.fill(9); // and then a check fails
  assert.equal(cache.get(1), undefined);
  cache.endPassing();
});
