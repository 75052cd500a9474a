import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Lsn, Term } from '@lakebase/ids';
import { staticConfiguration } from './configuration.ts';
import { Election, type ElectionAction, chooseDonor, planCandidacy } from './election.ts';
import { lastLogTerm } from './history.ts';
import type { TermHistory, Vote } from './types.ts';

const MEMBERS = ['a', 'b', 'c'];
const h = (...entries: readonly (readonly [number, number])[]): TermHistory =>
  entries.map(([term, startLsn]) => ({ term: term as Term, startLsn: startLsn as Lsn }));
function vote(voter: string, term: number, termHistory: TermHistory, flush: number): Vote {
  const flushRecordLsn = flush as Lsn;
  const lastLog = lastLogTerm(termHistory, flushRecordLsn);
  return {
    voter,
    term: term as Term,
    lastLogTerm: lastLog,
    flushRecordLsn,
    lastRecordLsn: (flush - 8) as Lsn,
    commitLsn: 0 as Lsn,
    termHistory,
  };
}
const candidate = (term: number, commitFloor?: number): Election =>
  new Election({
    configuration: staticConfiguration(MEMBERS),
    term: term as Term,
    ...(commitFloor === undefined ? {} : { commitFloor: commitFloor as Lsn }),
  });
const kinds = (actions: readonly ElectionAction[]): string[] => actions.map((action) => action.kind);
const done = (term: number, lsn: number): { term: Term; flushRecordLsn: Lsn } => ({ term: term as Term, flushRecordLsn: lsn as Lsn });

test('the donor is the most advanced by last log term, then by length', () => {
  assert.equal(chooseDonor([vote('a', 6, h([1, 100]), 900), vote('b', 6, h([1, 100], [3, 200]), 250)]).voter, 'b');
  assert.equal(chooseDonor([vote('a', 6, h([1, 100]), 300), vote('b', 6, h([1, 100]), 350)]).voter, 'b');
  assert.equal(chooseDonor([vote('a', 6, h([1, 100]), 300), vote('b', 6, h([1, 100]), 300)]).voter, 'a');
});

test('a whole election', () => {
  const election = candidate(6);
  assert.deepEqual(election.onVote(vote('b', 6, h([1, 100], [3, 200], [5, 400]), 300)), []);
  const actions = election.onVote(vote('a', 6, h([1, 100], [3, 200]), 280));
  assert.deepEqual(kinds(actions), ['elected', 'elected', 'elected']);
  assert.deepEqual(election.request, {
    term: 6,
    termStartLsn: 300,
    lastRecordLsn: 292,
    termHistory: h([1, 100], [3, 200], [6, 300]),
    configuration: staticConfiguration(MEMBERS),
    donor: 'b',
    voters: ['b', 'a'],
  });
  assert.deepEqual(election.onVote(vote('c', 6, h([1, 100], [4, 200]), 900)), [], 'a late vote changes nothing');
  assert.deepEqual(election.onElected('b', done(6, 300)), []);
  const [won] = election.onElected('c', done(6, 300));
  assert.ok(won?.kind === 'won');
  assert.deepEqual([won.result.startLsn, won.result.adopted, won.result.donor], [300, ['b', 'c'], 'b']);
  assert.deepEqual(election.onElected('a', done(6, 300)), []);
  assert.deepEqual(election.adopted, ['b', 'c', 'a']);
  assert.deepEqual(election.retry('a'), []);
});

test('an empty timeline starts where it was created', () => {
  const election = candidate(1);
  election.onVote(vote('a', 1, [], 100));
  election.onVote(vote('b', 1, [], 100));
  assert.deepEqual(election.request?.termHistory, h([1, 100]));
});

test('lost when no majority is left or a member is at a higher term', () => {
  const election = candidate(6);
  assert.deepEqual(election.onRefusal('a', { reason: 'no answer' }), []);
  const [lost] = election.onRefusal('b', { term: 6 as Term, reason: 'granted to another' });
  assert.ok(lost?.kind === 'lost');
  assert.equal(election.phase, 'lost');
  assert.deepEqual(election.onVote(vote('c', 6, [], 100)), []);

  const outpaced = candidate(6);
  outpaced.onVote(vote('a', 6, [], 100));
  const [stop] = outpaced.onRefusal('b', { term: 9 as Term, reason: 'newer' });
  assert.ok(stop?.kind === 'lost' && stop.highestTerm === 9);
});

test('a refused duplicate of a granted request does no harm', () => {
  const election = candidate(6);
  election.onVote(vote('a', 6, [], 100));
  assert.deepEqual(election.onRefusal('a', { term: 6 as Term, reason: 'already granted' }), []);
  assert.deepEqual(kinds(election.onVote(vote('b', 6, [], 100))), ['elected', 'elected', 'elected']);
});

test('after winning, a member of a higher term is reported and the rest goes on', () => {
  const election = candidate(6);
  for (const id of ['a', 'b']) election.onVote(vote(id, 6, [], 100));
  for (const id of ['a', 'b']) election.onElected(id, done(6, 100));
  assert.equal(election.phase, 'won');
  assert.deepEqual(election.onRefusal('c', { reason: 'no answer' }), []);
  assert.deepEqual(kinds(election.retry('c')), ['elected']);
  assert.deepEqual(election.onRefusal('c', { term: 7 as Term, reason: 'newer' }), [{ kind: 'outpaced', member: 'c', highestTerm: 7 }]);
});

test('answers of other terms, strangers and lies', () => {
  const election = candidate(6);
  assert.deepEqual(election.onVote(vote('a', 5, [], 100)), []);
  assert.throws(() => election.onVote(vote('x', 6, [], 100)), { code: 'INVALID_ARGUMENT' });
  assert.throws(() => election.onVote({ ...vote('a', 6, h([1, 100]), 200), lastLogTerm: 5 as Term }), { code: 'CORRUPT' });
  for (const id of ['a', 'b']) election.onVote(vote(id, 6, [], 100));
  assert.deepEqual(election.onElected('a', done(5, 100)), []);
  assert.throws(() => election.onElected('a', done(6, 90)), { code: 'CORRUPT' });
  assert.throws(() => new Election({ configuration: staticConfiguration(['a', 'a', 'b']), term: 1 as Term }), { code: 'INVALID_ARGUMENT' });
});

test('candidacy: above every term seen, pruned only below what all have committed', () => {
  const status = (term: number, commit: number): { term: Term; commitLsn: Lsn } => ({ term: term as Term, commitLsn: commit as Lsn });
  const all = new Map([
    ['a', status(4, 300)],
    ['b', status(6, 200)],
    ['c', status(2, 250)],
  ]);
  assert.deepEqual(planCandidacy(MEMBERS, all), { term: 7, commitFloor: 200 });
  all.delete('c');
  assert.deepEqual(planCandidacy(MEMBERS, all), { term: 7, commitFloor: 0 });
  const election = candidate(7, 250);
  for (const id of ['a', 'b']) election.onVote(vote(id, 7, h([1, 100], [2, 200], [5, 300]), 400));
  assert.deepEqual(election.request?.termHistory, h([2, 200], [5, 300], [7, 400]));
});
