/** Counters and full transaction ids around the end of the 32-bit cycle. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { CheckPoint } from '@lakebase/pg-format';
import fc from 'fast-check';
import { advancePastXid, applyCounters, fullXidAt } from './counters.ts';

const CYCLE = 0x1_0000_0000;
/** 2^53 is the last whole number we can count to: epochs up to 2^21. */
const nextFull = fc.integer({ min: 3, max: 2 ** 52 }).map((n) => (n % CYCLE < 3 ? n + 3 : n));

test('the next xid passes the end of the cycle into the next epoch, over the special xids', () => {
  const end = 5 * CYCLE + 0xffff_ffff;
  assert.equal(advancePastXid(end - 1, 0xffff_fffe), end);
  assert.equal(advancePastXid(end, 0xffff_ffff), 6 * CYCLE + 3);
  assert.equal(advancePastXid(end, 3), 6 * CYCLE + 4);
  assert.equal(advancePastXid(6 * CYCLE + 3, 0xffff_fff0), 6 * CYCLE + 3);
  for (const special of [0, 1, 2]) assert.equal(advancePastXid(end, special), end);
});

test('the full xid of a 32-bit one is the last with these bits before the next', () => {
  assert.equal(fullXidAt(6 * CYCLE + 3, 0xffff_ffff), 5 * CYCLE + 0xffff_ffff);
  assert.equal(fullXidAt(6 * CYCLE + 9, 8), 6 * CYCLE + 8);
  assert.equal(fullXidAt(900, 899), 899);
  fc.assert(
    fc.property(nextFull, fc.integer({ min: 1, max: 2 ** 31 - 1 }), (next, back) => {
      const full = next - back;
      fc.pre(full >= 3 && full % CYCLE >= 3);
      assert.equal(fullXidAt(next, full % CYCLE), full);
      // What was seen is behind us, and one that lies ahead moves the counter to just behind it.
      assert.equal(advancePastXid(next, full % CYCLE), next);
      const ahead = next + back - 1;
      fc.pre(ahead % CYCLE >= 3);
      const moved = advancePastXid(next, ahead % CYCLE);
      assert.ok(moved === ahead + 1 || (moved === ahead + 4 && (ahead + 1) % CYCLE === 0), `${next} ${back}: ${moved}`);
      assert.equal(fullXidAt(moved, ahead % CYCLE), ahead);
    }),
  );
});

test('multixacts, their members and horizons move on in circular order', () => {
  const c = {
    nextFullXid: 900,
    nextMulti: 0xffff_fff0,
    nextMultiOffset: 0xffff_ff00,
    oldestXid: 0xffff_0000,
    oldestMulti: 0xffff_0000,
  } as CheckPoint;
  applyCounters(c, { nextMulti: 5, nextMultiOffset: 9, oldestXid: 4, oldestMulti: 1 });
  assert.deepEqual([c.nextMulti, c.nextMultiOffset, c.oldestXid, c.oldestMulti], [5, 9, 4, 1]);
  applyCounters(c, { nextMulti: 0xffff_fff1, nextMultiOffset: 0xffff_ff01, oldestXid: 0xffff_0001, oldestMulti: 0xffff_ffff });
  assert.deepEqual([c.nextMulti, c.nextMultiOffset, c.oldestXid, c.oldestMulti], [5, 9, 4, 1]);
});
