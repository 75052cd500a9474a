import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Lsn, Term } from '@lakebase/ids';
import fc from 'fast-check';
import {
  appendTerm,
  commonPoint,
  historyFromJson,
  historyToJson,
  historyUpTo,
  lastLogTerm,
  pruneHistory,
  validateHistory,
} from './history.ts';
import type { TermHistory } from './types.ts';

const h = (...entries: readonly (readonly [number, number])[]): TermHistory =>
  entries.map(([term, startLsn]) => ({ term: term as Term, startLsn: startLsn as Lsn }));
const at = (n: number): Lsn => n as Lsn;

test('the last log term counts an entry that begins exactly at the end', () => {
  const history = h([1, 100], [3, 200], [4, 300]);
  assert.equal(lastLogTerm(history, at(99)), 0);
  assert.equal(lastLogTerm(history, at(100)), 1);
  assert.equal(lastLogTerm(history, at(299)), 3);
  assert.equal(lastLogTerm(history, at(300)), 4);
  assert.deepEqual(historyUpTo(history, at(250)), h([1, 100], [3, 200]));
});

test('appending drops what the log does not reach and terms that wrote nothing', () => {
  assert.deepEqual(appendTerm(h([1, 100], [3, 200], [4, 300]), 7 as Term, at(250)), h([1, 100], [3, 200], [7, 250]));
  assert.deepEqual(appendTerm(h([1, 100], [3, 200]), 7 as Term, at(200)), h([1, 100], [7, 200]));
  assert.throws(() => appendTerm(h([1, 100], [7, 200]), 7 as Term, at(300)), { code: 'INVALID_ARGUMENT' });
});

test('common points', () => {
  const other = h([1, 100], [2, 200], [5, 300]);
  assert.equal(commonPoint(h([1, 100], [2, 200]), at(250), other), 250, 'a shorter log of the same term is a prefix');
  assert.equal(commonPoint(h([1, 100], [2, 200]), at(350), other), 300, 'term 2 ended at 300 there');
  assert.equal(commonPoint(h([1, 100], [2, 200], [3, 260]), at(350), other), 260, 'term 3 diverges where it begins');
  assert.equal(commonPoint(h([1, 100], [3, 150]), at(350), other), 150);
  assert.equal(commonPoint(h([1, 100], [2, 200], [3, 400]), at(350), other), 300, 'an entry the log does not reach does not count');
  assert.equal(commonPoint([], at(100), other), 100, 'an empty log');
  assert.equal(commonPoint(h([1, 100]), at(180), h([2, 100])), 100, 'nothing in common but the start');
  assert.equal(commonPoint(h([1, 100]), at(150), h([4, 200], [5, 300])), 150, 'a stub of a log whose beginning was pruned');
  assert.equal(commonPoint(h([5, 300], [6, 400]), at(250), other), 250, 'a stub of a log whose own history was pruned beyond its end');
  assert.throws(() => commonPoint(h([1, 100], [2, 200]), at(250), h([1, 100], [2, 210])), { code: 'CORRUPT' });
});

test('the common point is symmetric in length and never beyond either log', () => {
  const entries = fc.array(fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 50 })), { minLength: 1, maxLength: 6 });
  // Two logs grown from one stem, each then going its own way in its own terms (odd and even).
  fc.assert(
    fc.property(entries, entries, entries, (stem, left, right) => {
      const grow = (base: { terms: [number, number][]; end: number; term: number }, steps: [number, number][], parity: number) => {
        const out = { terms: [...base.terms], end: base.end, term: base.term };
        for (const [gap, length] of steps) {
          out.term += gap;
          if (parity >= 0 && out.term % 2 !== parity) out.term++;
          out.terms.push([out.term, out.end]);
          out.end += length;
        }
        return out;
      };
      const base = grow({ terms: [], end: 0, term: 0 }, stem, -1);
      const [a, b] = [grow(base, left, 0), grow(base, right, 1)];
      assert.equal(commonPoint(h(...a.terms), at(a.end), h(...b.terms)), base.end);
      assert.equal(commonPoint(h(...b.terms), at(b.end), h(...a.terms)), base.end);
      for (let floor = 0; floor <= base.end; floor += 7) {
        const pruned = pruneHistory(h(...b.terms), at(floor));
        assert.equal(commonPoint(h(...a.terms), at(a.end), pruned), base.end, 'pruning below a shared point changes nothing');
      }
    }),
  );
});

test('pruning keeps the entry that covers the byte before the floor', () => {
  const history = h([1, 100], [2, 200], [5, 300]);
  assert.deepEqual(pruneHistory(history, at(200)), history);
  assert.deepEqual(pruneHistory(history, at(201)), h([2, 200], [5, 300]));
  assert.deepEqual(pruneHistory(history, at(9999)), h([5, 300]));
  assert.deepEqual(pruneHistory([], at(5)), []);
});

test('JSON form', () => {
  const history = h([1, 0x1_0000_0028], [2, 0x1_0000_0030]);
  assert.deepEqual(historyToJson(history), [
    { term: 1, startLsn: '1/28' },
    { term: 2, startLsn: '1/30' },
  ]);
  assert.deepEqual(historyFromJson(historyToJson(history)), history);
  for (const bad of [
    null,
    {},
    [null],
    [{ term: 1 }],
    [{ term: -1, startLsn: '0/1' }],
    [{ term: 1, startLsn: 'x' }],
    [{ term: 1.5, startLsn: '0/1' }],
  ]) {
    assert.throws(() => historyFromJson(bad), { name: 'LakebaseError' });
  }
  assert.throws(() => validateHistory(h([2, 100], [2, 200])), { code: 'INVALID_ARGUMENT' });
  assert.throws(() => validateHistory(h([2, 100], [3, 50])), { code: 'INVALID_ARGUMENT' });
});
