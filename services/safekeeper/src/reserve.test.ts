import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Term } from '@lakebase/ids';
import { FRESH_MS, PeerPulse, reserveOf } from './reserve.ts';

test('every timeline has one reserve, the same for all members, spread over them', () => {
  const members = ['sk3', 'sk1', 'sk2'];
  const chosen = new Set<string | undefined>();
  for (let i = 0; i < 30; i++) {
    const timeline = i.toString(16).padStart(8, '0').padEnd(32, '0');
    assert.equal(reserveOf(timeline, members), reserveOf(timeline, [...members].reverse()));
    chosen.add(reserveOf(timeline, members));
  }
  assert.deepEqual(chosen, new Set(['sk1', 'sk2', 'sk3']));
  assert.equal(reserveOf('00000000', ['only']), undefined);
});

test('the quorum is carried only while enough peers move in this term', () => {
  const pulse = new PeerPulse();
  const term = 4 as Term;
  pulse.heard('a', 100, 4, 0);
  assert.equal(pulse.carried(2, term, 1), false);
  pulse.heard('b', 90, 4, 10);
  assert.equal(pulse.carried(2, term, 11), true);
  assert.equal(pulse.carried(2, 5 as Term, 11), false, 'another term');
  pulse.heard('a', 100, 4, 50); // says it is there, but has not moved
  assert.equal(pulse.carried(2, term, FRESH_MS + 1), false);
  pulse.heard('a', 120, 4, FRESH_MS + 2);
  assert.equal(pulse.carried(2, term, FRESH_MS + 3), true);
});
