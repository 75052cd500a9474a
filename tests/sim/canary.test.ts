/** Each protocol mistake of bugs.ts is found within a bounded number of seeds: what the simulator does not find, it does not test. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BUGS } from './bugs.ts';
import { run } from './scenario.ts';

const SEEDS_MAX = 1_000;

for (const bug of BUGS) {
  test(`found: ${bug}`, (t) => {
    for (let seed = 1; seed <= SEEDS_MAX; seed++) {
      const { failure } = run(seed, { bug });
      if (failure === null) continue;
      t.diagnostic(`seed ${seed}: ${failure}`);
      return;
    }
    assert.fail(`${SEEDS_MAX} seeds did not find it`);
  });
}
