import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BufferPool } from './buffer-pool.ts';

test('no two users ever share memory, whatever the order of taking, keeping and releasing', () => {
  const step = fc.record({
    what: fc.constantFrom('take', 'retain', 'release'),
    bytes: fc.integer({ min: 1, max: 2_000_000 }),
    which: fc.nat(),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
      const pool = new BufferPool();
      const held: { bytes: Buffer; users: number; mark: number }[] = [];
      let mark = 0;
      for (const { what, bytes, which } of steps) {
        const one = held[which % Math.max(1, held.length)];
        if (what === 'take') {
          const taken = pool.take(bytes);
          assert.equal(taken.length, bytes);
          mark = (mark + 1) % 256;
          taken.fill(mark);
          held.push({ bytes: taken, users: 1, mark });
        } else if (one !== undefined && what === 'retain') {
          pool.retain(one.bytes.subarray(1));
          one.users++;
        } else if (one !== undefined) {
          pool.release(one.bytes);
          if (--one.users === 0) held.splice(held.indexOf(one), 1);
        }
        for (const h of held) assert.ok(h.bytes[0] === h.mark && h.bytes[h.bytes.length - 1] === h.mark);
        assert.ok(pool.freeBytes <= 8 << 20);
      }
    }),
    { numRuns: 60 },
  );
});

test('memory is used again, wiped on demand, and what is not of the pool is left alone', () => {
  const pool = new BufferPool();
  const first = pool.take(100_000);
  first.fill(1);
  pool.release(first);
  pool.wipe();
  const second = pool.take(120_000);
  assert.equal(second.buffer, first.buffer);
  assert.ok(second.every((b) => b === 0));
  pool.release(Buffer.alloc(8_192));
  pool.release(second);
  pool.release(second);
  assert.notEqual(pool.take(100_000).buffer, pool.take(100_000).buffer, 'a release too many changes nothing');
});
