import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Lsn, Term } from '@lakebase/ids';
import {
  type AcceptorState,
  finishElected,
  handleVote,
  mayCopy,
  mayServePeer,
  mayStream,
  planElected,
  positionOf,
  readableLsn,
  voteOf,
} from './acceptor.ts';
import { staticConfiguration } from './configuration.ts';
import type { Elected, TermHistory } from './types.ts';

const h = (...entries: readonly (readonly [number, number])[]): TermHistory =>
  entries.map(([term, startLsn]) => ({ term: term as Term, startLsn: startLsn as Lsn }));

const ABC = staticConfiguration(['a', 'b', 'c']);
function member(term: number, history: TermHistory, flush: number, more: Partial<AcceptorState> = {}): AcceptorState {
  const lsn = flush as Lsn;
  return {
    self: 'c',
    configuration: ABC,
    term: term as Term,
    history,
    flushLsn: lsn,
    flushRecordLsn: lsn,
    lastRecordLsn: (flush - 8) as Lsn,
    commitLsn: 0 as Lsn,
    damage: null,
    ...more,
  };
}
function elected(term: number, startLsn: number, earlier: TermHistory, voters: readonly string[] = ['a', 'b']): Elected {
  const termHistory = [...earlier, ...h([term, startLsn])];
  const [termStartLsn, lastRecordLsn] = [startLsn as Lsn, (startLsn - 8) as Lsn];
  return { term: term as Term, termStartLsn, lastRecordLsn, termHistory, configuration: ABC, donor: 'a', voters };
}
const DAMAGED = { kind: 'lost', term: 4 as Term, reason: 'frame 7 of segment 3 is damaged' } as const;

test('a term is granted once, and only to a higher one', () => {
  const state = member(4, h([1, 100], [3, 200]), 250);
  const decision = handleVote(state, 6 as Term, ABC);
  assert.ok(decision.granted);
  assert.equal(decision.next.term, 6);
  assert.equal(decision.next.history, state.history);
  for (const term of [6, 5, 0]) {
    const again = handleVote(decision.next, term as Term, ABC);
    assert.ok(!again.granted);
    assert.equal(again.term, 6);
  }
  assert.deepEqual(voteOf(decision.next), {
    voter: 'c',
    term: 6,
    lastLogTerm: 3,
    flushRecordLsn: 250,
    lastRecordLsn: 242,
    commitLsn: 0,
    termHistory: state.history,
  });
});

test('a damaged member does not vote', () => {
  const decision = handleVote(member(4, [], 100, { damage: DAMAGED }), 9 as Term, ABC);
  assert.ok(!decision.granted);
  assert.match(decision.reason, /frame 7 of segment 3/);
});

test('adopting: the donor itself only persists', () => {
  const state = member(6, h([1, 100], [3, 200]), 250);
  assert.deepEqual(planElected(state, elected(6, 250, state.history)), {
    kind: 'adopt',
    raiseTerm: null,
    truncateTo: null,
    history: h([1, 100], [3, 200], [6, 250]),
    copyFrom: 250,
    copyTo: 250,
  });
});

test('adopting: a partial record at the end is cut', () => {
  const state = member(6, h([1, 100]), 250, { flushLsn: 262 as Lsn });
  const plan = planElected(state, elected(6, 250, state.history));
  assert.ok(plan.kind === 'adopt');
  assert.equal(plan.truncateTo, 250);
});

test('adopting: a divergent tail is cut at the common point, a lag is copied', () => {
  const state = member(5, h([1, 100], [5, 200]), 300);
  const plan = planElected(state, elected(6, 260, h([1, 100], [4, 180])));
  assert.ok(plan.kind === 'adopt');
  assert.deepEqual([plan.raiseTerm, plan.truncateTo, plan.copyFrom, plan.copyTo], [6, 180, 180, 260]);
});

test('adopting: a longer log of the same term is cut at the start of the new one', () => {
  const plan = planElected(member(6, h([1, 100]), 300), elected(6, 260, h([1, 100])));
  assert.ok(plan.kind === 'adopt');
  assert.deepEqual([plan.truncateTo, plan.copyFrom, plan.copyTo], [260, 260, 260]);
});

test('adopting never cuts committed WAL', () => {
  const state = member(5, h([1, 100], [5, 200]), 300, { commitLsn: 190 as Lsn });
  assert.throws(() => planElected(state, elected(6, 260, h([1, 100], [4, 180]))), {
    code: 'CORRUPT',
    message: /committed up to 0\/BE/,
  });
  // What was lost cannot be cut: a commit LSN beyond the end of the log is no obstacle to repair.
  const lost = member(5, h([1, 100]), 150, { commitLsn: 190 as Lsn, damage: DAMAGED });
  assert.equal(planElected(lost, elected(6, 260, h([1, 100], [4, 180]))).kind, 'adopt');
  assert.equal(readableLsn(lost), 150);
});

test('adopting: an older term is refused, a repeat resumes or is done', () => {
  const state = member(6, h([1, 100], [6, 250]), 250);
  const request = elected(6, 250, h([1, 100]));
  assert.equal(planElected(state, elected(5, 250, h([1, 100]))).kind, 'refused');
  assert.deepEqual(planElected(state, request), { kind: 'adopted' });
  // Streaming has moved on, in the middle of a record: nothing may be cut.
  assert.deepEqual(planElected(member(6, state.history, 400, { flushLsn: 409 as Lsn }), request), { kind: 'adopted' });
  const half = planElected(member(6, state.history, 180, { flushLsn: 190 as Lsn }), request);
  assert.ok(half.kind === 'adopt');
  assert.deepEqual([half.truncateTo, half.copyFrom, half.copyTo], [null, 190, 250]);
});

test('a request whose history does not end with its term is refused', () => {
  const request = elected(6, 250, h([1, 100]));
  for (const bad of [
    { ...request, termHistory: [] },
    { ...request, termStartLsn: 240 as Lsn },
    { ...request, termHistory: h([7, 100], [6, 250]) },
  ]) {
    assert.throws(() => planElected(member(5, [], 100), bad), { code: 'INVALID_ARGUMENT' });
  }
});

test('streaming and copying are bound to the term', () => {
  const copying = member(6, h([1, 100], [6, 250]), 180);
  assert.ok(mayCopy(copying, 6 as Term) && !mayStream(copying, 6 as Term, 0));
  const adopted = member(6, h([1, 100], [6, 250]), 250);
  assert.ok(mayStream(adopted, 6 as Term, 0) && mayServePeer(adopted, 6 as Term));
  const fenced = { ...adopted, term: 7 as Term };
  for (const allowed of [mayStream, mayCopy, mayServePeer]) assert.ok(!allowed(fenced, 6 as Term, 0) && !allowed(fenced, 5 as Term, 0));
  assert.ok(!mayStream(fenced, 7 as Term, 0), 'granted is not adopted');
  assert.deepEqual(positionOf(fenced), { term: 7, lastLogTerm: 6, flushRecordLsn: 250, generation: 0 });
});

test('damage is repaired by a later term only', () => {
  const adopted = member(6, h([1, 100], [6, 250]), 250);
  const request = elected(6, 250, h([1, 100]));
  assert.equal(finishElected({ ...adopted, damage: DAMAGED }, request).damage, null);
  const inTerm = { ...adopted, damage: { ...DAMAGED, term: 6 as Term } };
  assert.equal(finishElected(inTerm, request), inTerm, 'what it acknowledged in term 6 may be gone');
  assert.throws(() => finishElected({ ...adopted, flushRecordLsn: 240 as Lsn }, request), { name: 'AssertionFailed' });
});

test('a rebuilt member joins only a term that all others granted, and streams only then', () => {
  const rebuilt = member(0, [], 100, { damage: { kind: 'rebuilt', term: 0 as Term, reason: 'new disk' } });
  assert.equal(planElected(rebuilt, elected(6, 250, h([1, 100]), ['a', 'c'])).kind, 'refused');
  assert.equal(planElected(rebuilt, elected(6, 250, h([1, 100]), ['a'])).kind, 'refused');
  assert.equal(planElected(rebuilt, elected(6, 250, h([1, 100]), ['a', 'b'])).kind, 'adopt');
  const copied = { ...member(6, h([1, 100], [6, 250]), 250), damage: rebuilt.damage };
  assert.ok(!mayStream(copied, 6 as Term, 0));
  assert.ok(mayStream(finishElected(copied, elected(6, 250, h([1, 100]))), 6 as Term, 0));
});
