import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Lsn, Term } from '@lakebase/ids';
import type { AcceptorState } from './acceptor.ts';
import { commitLsn, memberCommitLsn, quorumCommit } from './commit.ts';
import { staticConfiguration } from './configuration.ts';
import type { MemberPosition } from './types.ts';

const p = (term: number, lastLogTerm: number, lsn: number): MemberPosition => ({
  term: term as Term,
  lastLogTerm: lastLogTerm as Term,
  flushRecordLsn: lsn as Lsn,
  generation: 0,
});
const ZERO = 0 as Lsn;
const ABC = staticConfiguration(['a', 'b', 'c']);
const by = (...positions: readonly MemberPosition[]): Map<string, MemberPosition> =>
  new Map(positions.map((p, i) => ['abc'[i] as string, p]));

test('the second highest position of the members that adopted the term', () => {
  assert.equal(commitLsn(by(p(3, 3, 300), p(3, 3, 280), p(3, 3, 250)), ZERO, ABC), 280);
  assert.equal(commitLsn(by(p(3, 3, 300), p(3, 3, 280)), ZERO, ABC), 280);
  assert.equal(commitLsn(by(p(3, 3, 300)), ZERO, ABC), 0, 'one is no quorum');
  assert.equal(commitLsn(by(p(3, 3, 300), p(3, 3, 200)), 250 as Lsn, ABC), 250, 'never falls');
});

test('the highest term with a quorum counts, older reports stay facts', () => {
  assert.deepEqual(quorumCommit(by(p(5, 5, 200), p(4, 4, 300), p(4, 4, 310)), ABC), { term: 4, lsn: 300 });
  assert.deepEqual(quorumCommit(by(p(5, 5, 400), p(5, 5, 350), p(4, 4, 310)), ABC), { term: 5, lsn: 350 });
});

test('older-term WAL alone is never counted', () => {
  // Both hold term 2 up to 300, but have granted term 4 and not adopted it: a leader that never saw that WAL may still win.
  assert.equal(commitLsn(by(p(4, 2, 300), p(4, 2, 300), p(3, 3, 250)), ZERO, ABC), 0);
  assert.equal(commitLsn(by(p(4, 4, 300), p(4, 2, 300)), ZERO, ABC), 0);
  assert.equal(commitLsn(by(p(4, 4, 300), p(4, 4, 300)), ZERO, ABC), 300, 'adoption by a majority commits all of it');
});

test('a member learns only what its own log is known to hold', () => {
  const state = (history: [number, number][], term: number, flush: number, commit = 0): AcceptorState => ({
    self: 'c',
    configuration: ABC,
    term: term as Term,
    history: history.map(([t, l]) => ({ term: t as Term, startLsn: l as Lsn })),
    flushLsn: flush as Lsn,
    flushRecordLsn: flush as Lsn,
    lastRecordLsn: ZERO,
    commitLsn: commit as Lsn,
    damage: null,
  });
  const quorum = by(p(5, 5, 400), p(5, 5, 380));
  assert.equal(
    memberCommitLsn(
      state(
        [
          [1, 0],
          [4, 200],
        ],
        4,
        300,
        210,
      ),
      quorum,
    ),
    210,
    'its term 4 tail may diverge',
  );
  assert.equal(
    memberCommitLsn(
      state(
        [
          [1, 0],
          [5, 200],
        ],
        5,
        300,
        210,
      ),
      quorum,
    ),
    300,
    'not more than it has',
  );
  assert.equal(
    memberCommitLsn(
      state(
        [
          [1, 0],
          [5, 200],
        ],
        5,
        500,
      ),
      quorum,
    ),
    400,
  );
  assert.equal(
    memberCommitLsn(
      state(
        [
          [1, 0],
          [5, 200],
          [6, 390],
        ],
        6,
        390,
      ),
      quorum,
    ),
    380,
    'a later term contains what term 5 committed',
  );
});
