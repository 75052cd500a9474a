import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Lsn, Term } from '@lakebase/ids';
import { handleConfiguration, handleVote, mayStream, planElected } from './acceptor.ts';
import type { AcceptorState } from './acceptor.ts';
import { quorumCommit } from './commit.ts';
import {
  type Configuration,
  abortReplacement,
  beginReplacement,
  chooseRule,
  compareConfigurations,
  configurationFromJson,
  finishProblem,
  finishReplacement,
  type MemberReport,
  isQuorum,
  quorumLsn,
  standbyRules,
  staticConfiguration,
  votersOf,
} from './configuration.ts';
import { Election } from './election.ts';

const ABC: Configuration = { generation: 4, members: ['a', 'b', 'c'], newMembers: null };
const JOINT = beginReplacement(ABC, 'c', 'd');
const subsets = (ids: readonly string[]): string[][] =>
  Array.from({ length: 1 << ids.length }, (_, bits) => ids.filter((_id, i) => (bits & (1 << i)) !== 0));
const p = (term: number, lastLogTerm: number, lsn: number, generation = 5): MemberReport => ({
  term: term as Term,
  lastLogTerm: lastLogTerm as Term,
  flushRecordLsn: lsn as Lsn,
  generation,
  damaged: false,
});
const state = (self: string, more: Partial<AcceptorState> = {}): AcceptorState => ({
  self,
  configuration: JOINT,
  term: 6 as Term,
  history: [{ term: 6 as Term, startLsn: 100 as Lsn }],
  flushLsn: 200 as Lsn,
  flushRecordLsn: 200 as Lsn,
  lastRecordLsn: 190 as Lsn,
  commitLsn: 100 as Lsn,
  damage: null,
  ...more,
});

test('a replacement: joint, then final, or back', () => {
  assert.deepEqual(JOINT, { generation: 5, members: ['a', 'b', 'c'], newMembers: ['a', 'b', 'd'] });
  assert.deepEqual(votersOf(JOINT), ['a', 'b', 'c', 'd']);
  assert.deepEqual(finishReplacement(JOINT), { generation: 6, members: ['a', 'b', 'd'], newMembers: null });
  assert.deepEqual(abortReplacement(JOINT), { generation: 6, members: ['a', 'b', 'c'], newMembers: null });
  assert.throws(() => beginReplacement(JOINT, 'a', 'e'), { code: 'CONFLICT' });
  assert.throws(() => beginReplacement(ABC, 'x', 'e'), { code: 'NOT_FOUND' });
  assert.throws(() => beginReplacement(ABC, 'c', 'a'), { code: 'ALREADY_EXISTS' });
});

test('every two quorums that may meet share a member: old with joint, joint with joint, joint with new', () => {
  const quorums = (c: Configuration): string[][] => subsets(votersOf(c)).filter((ids) => isQuorum(c, ids));
  for (const [x, y] of [
    [ABC, JOINT],
    [JOINT, JOINT],
    [JOINT, finishReplacement(JOINT)],
    [JOINT, abortReplacement(JOINT)],
  ] as const) {
    for (const left of quorums(x))
      for (const right of quorums(y))
        assert.ok(
          left.some((id) => right.includes(id)),
          `${left.join()} and ${right.join()}`,
        );
  }
});

test('what Postgres is told: each rule is safe alone, together they allow every quorum', () => {
  for (const n of [1, 2, 3, 4, 5, 7]) {
    const members = Array.from({ length: n }, (_, i) => `m${i}`);
    const plain = staticConfiguration(members);
    const joint = beginReplacement(plain, 'm0', 'new');
    for (const configuration of [plain, joint, finishReplacement(joint)]) {
      const rules = standbyRules(configuration);
      const allows = (rule: (typeof rules)[number], ids: string[]): boolean =>
        rule.names.filter((id) => ids.includes(id)).length >= rule.count;
      for (const ids of subsets(votersOf(configuration))) {
        const allowed = rules.some((rule) => allows(rule, ids));
        assert.equal(allowed, isQuorum(configuration, ids), `${n} members: ${ids.join()}`);
        // The agent picks a rule by who streams: never one that these cannot satisfy when another could be.
        assert.equal(allows(chooseRule(configuration, new Set(ids)), ids), allowed);
      }
    }
  }
  assert.deepEqual(standbyRules(JOINT), [
    { count: 2, names: ['a', 'b'] },
    { count: 3, names: ['a', 'b', 'c', 'd'] },
  ]);
  assert.throws(() => standbyRules({ generation: 1, members: ['a', 'b', 'c'], newMembers: ['a', 'd', 'e'] }), { code: 'UNSUPPORTED' });
});

test('ANY 2 of the union would not do', () => {
  assert.ok(!isQuorum(JOINT, ['c', 'd']) && !isQuorum(JOINT, ['a', 'c']) && isQuorum(JOINT, ['a', 'b']));
});

test('the LSN a quorum has reached', () => {
  const lsns = new Map([
    ['a', 400],
    ['b', 100],
    ['c', 300],
  ]);
  assert.equal(quorumLsn(ABC, lsns), 300);
  assert.equal(quorumLsn(JOINT, lsns), 100, 'of the new set only a and b have told');
  assert.equal(quorumLsn(JOINT, new Map([...lsns, ['d', 350]])), 300);
  assert.equal(
    quorumLsn(
      JOINT,
      new Map([
        ['a', 400],
        ['c', 300],
      ]),
    ),
    undefined,
  );
});

test('only reports made under the configuration itself count', () => {
  const positions = new Map([
    ['a', p(6, 6, 400)],
    ['b', p(6, 6, 300, 4)],
    ['c', p(6, 6, 350)],
    ['d', p(6, 6, 390)],
  ]);
  assert.deepEqual(quorumCommit(positions, JOINT), { term: 6, lsn: 350 });
  positions.set('d', p(6, 6, 390, 6));
  assert.deepEqual(quorumCommit(positions, JOINT), { term: 0, lsn: 0 });
});

test('leaving the joint configuration takes a majority of both sets', () => {
  const reports = new Map([['a', p(6, 6, 400)]]);
  assert.match(finishProblem(JOINT, reports) ?? '', /1 of 3 old members/);
  reports.set('b', p(6, 6, 300, 4));
  assert.match(finishProblem(JOINT, reports) ?? '', /1 of 3 old members/, 'b still goes by the old one');
  reports.set('b', p(6, 6, 300));
  assert.match(finishProblem(JOINT, reports) ?? '', /1 of 3 new members/);
  reports.set('d', p(6, 6, 390));
  assert.match(finishProblem(JOINT, reports) ?? '', /1 of 3 new members/, 'd still lacks WAL that a and c may have committed');
  reports.set('d', p(6, 6, 400));
  assert.equal(finishProblem(JOINT, reports), null);
  reports.set('c', { ...p(6, 6, 400), damaged: true });
  reports.delete('b');
  assert.match(finishProblem(JOINT, reports) ?? '', /1 of 3 old members/, 'c has lost WAL: it is no witness of what was committed');
  reports.set('b', p(7, 6, 300));
  assert.match(finishProblem(JOINT, reports) ?? '', /0 of 3 new members/, 'term 7 is granted, and could be granted again');
  assert.match(finishProblem(ABC, reports) ?? '', /no change/);
});

test('a member follows newer configurations, refuses older ones and never two of one generation', () => {
  const older = handleConfiguration(state('a'), ABC);
  assert.ok(older.kind === 'older' && older.configuration === JOINT);
  assert.equal(handleConfiguration(state('a'), { ...JOINT, newMembers: ['d', 'b', 'a'] }).kind, 'same');
  const newer = handleConfiguration(state('a'), finishReplacement(JOINT));
  assert.ok(newer.kind === 'newer' && newer.next.configuration.generation === 6);
  assert.throws(() => compareConfigurations(JOINT, { ...JOINT, newMembers: ['a', 'b', 'e'] }), { code: 'CONFLICT' });
});

test('votes, adoptions and streams belong to one generation', () => {
  const refused = handleVote(state('a'), 9 as Term, ABC);
  assert.ok(!refused.granted && refused.configuration === JOINT);
  const granted = handleVote(state('a'), 9 as Term, finishReplacement(JOINT));
  assert.ok(granted.granted && granted.next.configuration.generation === 6 && granted.next.term === 9);
  const replaced = handleVote(state('c'), 9 as Term, finishReplacement(JOINT));
  assert.ok(!replaced.granted && /no member/.test(replaced.reason));

  const termHistory = [{ term: 7 as Term, startLsn: 200 as Lsn }];
  const request = { term: 7 as Term, termStartLsn: 200 as Lsn, lastRecordLsn: 190 as Lsn, termHistory, donor: 'a', voters: ['a', 'b'] };
  const late = planElected(state('a'), { ...request, configuration: ABC });
  assert.ok(late.kind === 'refused' && late.configuration === JOINT);
  assert.equal(planElected(state('a'), { ...request, configuration: JOINT }).kind, 'adopt');
  assert.ok(mayStream(state('d'), 6 as Term, 5) && !mayStream(state('d'), 6 as Term, 4) && !mayStream(state('x'), 6 as Term, 5));
});

test('an election under a joint configuration needs both majorities and ends when a member knows a newer one', () => {
  const vote = (voter: string) => ({
    voter,
    term: 9 as Term,
    lastLogTerm: 0 as Term,
    flushRecordLsn: 100 as Lsn,
    lastRecordLsn: 0 as Lsn,
    commitLsn: 0 as Lsn,
    termHistory: [],
  });
  const election = new Election({ configuration: JOINT, term: 9 as Term });
  for (const id of ['a', 'c']) assert.deepEqual(election.onVote(vote(id)), []);
  assert.deepEqual(
    election.onVote(vote('d')).map((action) => action.kind === 'elected' && action.to),
    ['a', 'b', 'c', 'd'],
  );
  const done = { term: 9 as Term, flushRecordLsn: 100 as Lsn };
  for (const id of ['a', 'd']) assert.deepEqual(election.onElected(id, done), []);
  const newer = finishReplacement(JOINT);
  const [lost] = election.onRefusal('b', { configuration: newer, reason: 'over' });
  assert.ok(lost?.kind === 'lost' && lost.configuration === newer);
});

test('JSON form', () => {
  assert.deepEqual(configurationFromJson(JSON.parse(JSON.stringify(JOINT))), JOINT);
  for (const bad of [
    null,
    {},
    { generation: -1, members: ['a'], newMembers: null },
    { generation: 1, members: [], newMembers: null },
    { generation: 1, members: ['a', 'a'], newMembers: null },
    { generation: 1, members: ['../x'], newMembers: null },
    { generation: 1, members: Array.from({ length: 17 }, (_, i) => `m${i}`), newMembers: null },
  ])
    assert.throws(() => configurationFromJson(bad), { code: 'INVALID_ARGUMENT' });
});
