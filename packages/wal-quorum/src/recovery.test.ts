import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Lsn, type Term, lsn } from '@lakebase/ids';
import type { Configuration } from './configuration.ts';
import { type MemberState, memberAhead, recoveredConfiguration, recoveredMembers, recoveryVerdict, stateOfHolding } from './recovery.ts';

const THREE: Configuration = { generation: 4, members: ['sk1', 'sk2_g3', 'sk3'], newMembers: null };
const JOINT: Configuration = { ...THREE, newMembers: ['sk1', 'sk2_g3', 'sk4_g4'] };
const STATES: readonly MemberState[] = ['there', 'empty', 'disk lost', 'data lost', 'damaged', 'silent'];

/** Every combination of states of these members. */
function* combinations(ids: readonly string[]): Generator<ReadonlyMap<string, MemberState>> {
  for (let n = 0; n < STATES.length ** ids.length; n++)
    yield new Map(ids.map((id, i) => [id, STATES[Math.floor(n / STATES.length ** i) % STATES.length] as MemberState] as const));
}
const count = (states: ReadonlyMap<string, MemberState>, ids: readonly string[], ...which: MemberState[]): number =>
  ids.filter((id) => which.includes(states.get(id) as MemberState)).length;

test('nothing is given up while a majority is there; unasked only when every disk of the old set is gone', () => {
  for (const configuration of [THREE, JOINT]) {
    for (const states of combinations([...new Set([...configuration.members, ...(configuration.newMembers ?? [])])])) {
      const { unasked, refusal } = recoveryVerdict(configuration, states);
      const { members } = configuration;
      const alive = count(states, members, 'there', 'empty');
      const answering = states.size - count(states, [...states.keys()], 'silent');
      assert.equal(refusal === null, alive < 2 && answering >= 2, JSON.stringify([...states]));
      if (unasked) {
        assert.equal(count(states, members, 'disk lost'), 3);
        if (configuration === JOINT) assert.ok(['disk lost', 'empty'].includes(states.get('sk4_g4') as string));
        assert.equal(refusal, null);
      } else assert.ok(count(states, [...states.keys()], 'disk lost') < states.size);
    }
  }
  assert.match(recoveryVerdict(THREE, new Map()).refusal ?? '', /only 0 of the safekeepers answer/);
});

test('new members have new identities, on nodes that answer as far as there are any', () => {
  const nodes = ['sk1', 'sk2', 'sk3', 'sk4'];
  const states = new Map<string, MemberState>([
    ['sk1', 'disk lost'],
    ['sk2_g3', 'silent'],
    ['sk3', 'silent'],
  ]);
  const members = recoveredMembers(THREE, states, nodes);
  assert.deepEqual(members, [
    { id: 'sk1_g5', absent: false },
    { id: 'sk4_g5', absent: false },
    { id: 'sk3_g5', absent: true },
  ]);
  assert.deepEqual(recoveredConfiguration(THREE, members), { generation: 5, members: ['sk1_g5', 'sk4_g5', 'sk3_g5'], newMembers: null });
});

test('a member that has what its lineage began with has never held anything, whichever lineage it is', () => {
  const fresh = { damaged: false, term: 2_000_000_000 as Term, historyEntries: 0, startLsn: lsn(800), flushLsn: lsn(800) };
  assert.equal(stateOfHolding(fresh, fresh.term), 'empty');
  assert.equal(stateOfHolding({ ...fresh, term: 2_000_000_001 as Term }, fresh.term), 'there', 'it has promised something');
  assert.equal(stateOfHolding({ ...fresh, historyEntries: 1 }, fresh.term), 'there');
  assert.equal(stateOfHolding({ ...fresh, flushLsn: lsn(808) }, fresh.term), 'there');
  assert.equal(stateOfHolding({ ...fresh, damaged: true }, fresh.term), 'damaged');
});

test('a member that knows of committed WAL and puts it is waited for', () => {
  const member = { state: 'there' as MemberState, commitLsn: lsn(900) as Lsn | null, offloads: true };
  assert.equal(memberAhead([member], lsn(899)), member);
  assert.equal(memberAhead([member], lsn(900)), undefined);
  for (const other of [
    { ...member, offloads: false },
    { ...member, commitLsn: null },
    { ...member, state: 'empty' as MemberState },
  ])
    assert.equal(memberAhead([other], lsn(0)), undefined);
});
