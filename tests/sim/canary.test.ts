/** Each protocol mistake of bugs.ts is found within a bounded number of seeds: what the simulator does not find, it does not test. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BUGS } from './bugs.ts';
import { findBug } from './mutants.ts';

const SEEDS_MAX = 1_000;

for (const bug of BUGS) {
  test(`found: ${bug}`, (t) => {
    const found = findBug(bug, SEEDS_MAX, true);
    assert.ok(found !== null, `${SEEDS_MAX} seeds did not find it`);
    t.diagnostic(`seed ${found.seed}: ${found.failure}`);
  });
}
