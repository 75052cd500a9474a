/** Each protocol mistake of bugs.ts is found within a bounded number of seeds: what the simulator does not find, it does not test. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BUGS, type Bug } from './bugs.ts';
import { findBug } from './mutants.ts';

const SEEDS_MAX = 1_000;
/** Where a long search ends at present: `npm run sim -- --mutants` makes the whole of it. */
const FIRST: Partial<Record<Bug, number>> = {
  'damaged-witness': 900,
  'grant-without-persist': 400,
  'finish-without-terms': 1_300,
  'pages-go-back-a-lineage': 300,
};

for (const bug of BUGS) {
  test(`found: ${bug}`, (t) => {
    const found = findBug(bug, SEEDS_MAX, true, FIRST[bug] ?? 1);
    assert.ok(found !== null, `${SEEDS_MAX} seeds did not find it`);
    t.diagnostic(`seed ${found.seed}: ${found.failure}`);
  });
}
