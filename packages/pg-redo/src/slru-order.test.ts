/** What truncation of an SLRU removes, in particular around the end of the cycle. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { SLRU_COMMIT_TS, SLRU_MULTIXACT_MEMBERS, SLRU_MULTIXACT_OFFSETS, SLRU_XACT, type SlruKind } from './effects.ts';
import { SLRU_PAGES_PER_SEGMENT, slruPagesInCycle, slruSegmentTruncated } from './slru-order.ts';

const SEGMENT = SLRU_PAGES_PER_SEGMENT;

test('pages in a cycle', () => {
  const kinds = [SLRU_XACT, SLRU_MULTIXACT_OFFSETS, SLRU_MULTIXACT_MEMBERS, SLRU_COMMIT_TS] as const;
  assert.deepEqual(kinds.map(slruPagesInCycle), [131_072, 2_097_152, 2_625_286, 5_244_161]);
});

test('segments wholly before the first kept page go, also over the end of the cycle', () => {
  assert.equal(slruSegmentTruncated(SLRU_XACT, 0, SEGMENT), true);
  assert.equal(slruSegmentTruncated(SLRU_XACT, 0, SEGMENT - 1), false);
  assert.equal(slruSegmentTruncated(SLRU_XACT, 1, SEGMENT), false);
  assert.equal(slruSegmentTruncated(SLRU_XACT, 4095, 0), true);
  assert.equal(slruSegmentTruncated(SLRU_XACT, 0, 131_071), false, 'what comes after the wrap is ahead');
  const kind = fc.constantFrom<SlruKind>(SLRU_XACT, SLRU_MULTIXACT_OFFSETS, SLRU_COMMIT_TS);
  fc.assert(
    fc.property(kind, fc.nat(), fc.nat(), (k, cut, ahead) => {
      const cycle = slruPagesInCycle(k);
      const page = cut % cycle;
      // Live pages are at most half a cycle ahead of the cut.
      const live = (page + (ahead % Math.floor(cycle / 2))) % cycle;
      assert.equal(slruSegmentTruncated(k, Math.floor(live / SEGMENT), page), false);
    }),
  );
});

test('members: the range between the old and the new oldest goes, however full the cycle is', () => {
  const cycle = slruPagesInCycle(SLRU_MULTIXACT_MEMBERS);
  const gone = (page: number, to: number, from: number): boolean =>
    slruSegmentTruncated(SLRU_MULTIXACT_MEMBERS, Math.floor(page / SEGMENT), to, from);
  // Members fill 0.9 of the cycle from page 3200 on; one segment goes. By circular order all beyond 0.5 would be "before" it.
  assert.equal(gone(3200, 3232, 3200), true);
  for (const live of [3232, 3200 + Math.floor(cycle * 0.45), 3200 + Math.floor(cycle * 0.7), 3200 + Math.floor(cycle * 0.9)])
    assert.equal(gone(live, 3232, 3200), false);
  // Three quarters of the cycle go at once.
  assert.equal(gone(100, Math.floor(cycle * 0.75), 0), true);
  // Over the end, whose last segment is not full.
  assert.deepEqual([gone(cycle - 1, 64, cycle - 40), gone(0, 64, cycle - 40), gone(64, 64, cycle - 40)], [true, true, false]);
  assert.equal(gone(100, 100, 100), false);
  fc.assert(
    fc.property(fc.nat(cycle - 1), fc.nat(cycle - 1), fc.nat(cycle - 1), (from, to, page) => {
      const steps = Math.ceil(cycle / SEGMENT);
      const [f, t, p] = [from, to, page].map((n) => Math.floor(n / SEGMENT)) as [number, number, number];
      assert.equal(gone(page, to, from), f <= t ? p >= f && p < t : p >= f || p < t, `of ${steps}`);
    }),
  );
});
