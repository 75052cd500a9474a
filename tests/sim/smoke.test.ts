/** A few hundred seeds of the election simulator, and that a seed is a run. Thousands: `npm run sim`. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { run } from './scenario.ts';

const SEEDS = 200;

test(`${SEEDS} seeds keep every invariant and recover`, () => {
  const totals = {
    acknowledged: 0,
    leaders: 0,
    divergentTruncations: 0,
    served: 0,
    copied: 0,
    damages: 0,
    wipes: 0,
    crashes: 0,
    replacements: 0,
    aborts: 0,
    puts: 0,
    recoveries: 0,
    accepted: 0,
    pagesAhead: 0,
    lost: 0,
  };
  for (let seed = 1; seed <= SEEDS; seed++) {
    const { failure, counts } = run(seed);
    assert.equal(failure, null, `seed ${seed}; replay: npm run sim -- --seed ${seed} --trace`);
    for (const name of Object.keys(totals) as (keyof typeof totals)[]) totals[name] += counts[name];
  }
  // A simulator in which nothing happens finds nothing.
  for (const [name, count] of Object.entries(totals)) assert.ok(count >= SEEDS / 10, `too little happens: ${name} ${count}`);
});

test('two runs of a seed are identical', () => {
  for (const seed of [1, 7, 42, 2 ** 40 + 5]) {
    const [a, b] = [run(seed, { trace: true }), run(seed, { trace: true })];
    assert.deepEqual(a, b);
    assert.ok(a.trace.length > 100);
    assert.equal(run(seed).digest, a.digest, 'tracing changes nothing');
  }
});

test('another seed is another run', () => {
  assert.notEqual(run(1).digest, run(2).digest);
});
