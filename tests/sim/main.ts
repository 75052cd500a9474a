/** `npm run sim [-- --seeds N] [--first S] [--seed S] [--bug NAME] [--membership] [--recovery] [--trace]`: thousands of seeds, or one with its trace; `--mutants` looks for every mistake of bugs.ts. A failure prints the seed and the commit that replay it. */
import { execFileSync } from 'node:child_process';
import { parseArgs } from 'node:util';
import { errorMessage } from '@lakebase/base';
import { BUGS, type Bug, STALLING_BUGS } from './bugs.ts';
import { findBug } from './mutants.ts';
import { run } from './scenario.ts';

const SEEDS_DEFAULT = 5_000;
const FAILURES_SHOWN = 5;
const MUTANT_SEEDS_DEFAULT = 5_000;

const { values } = parseArgs({
  options: {
    seeds: { type: 'string' },
    seed: { type: 'string' },
    first: { type: 'string' },
    bug: { type: 'string' },
    trace: { type: 'boolean' },
    membership: { type: 'boolean' },
    recovery: { type: 'boolean' },
    mutants: { type: 'boolean' },
  },
});

function number(text: string | undefined, fallback: number, name: string): number {
  if (text === undefined) return fallback;
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0) throw new Error(`--${name} takes a whole number, not ${text}`);
  return value;
}

function commitHash(): string {
  try {
    return execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim();
  } catch {
    return 'unknown';
  }
}

/** Every mistake must do harm that an invariant notices; of {@link STALLING_BUGS} a standstill is enough. */
function mutants(): number {
  const seedsMax = number(values.seeds, MUTANT_SEEDS_DEFAULT, 'seeds');
  let missed = 0;
  for (const bug of BUGS) {
    const stalls = STALLING_BUGS.has(bug);
    const found = findBug(bug, seedsMax, stalls);
    const killed = found !== null && (found.harm || stalls);
    if (!killed) missed++;
    const text = found === null ? `not found in ${seedsMax} seeds` : `seed ${found.seed}: ${found.failure}`;
    console.log(`${killed ? 'killed' : 'MISSED'}  ${bug.padEnd(32)} ${text}`);
  }
  console.log(`${BUGS.length} mutants, ${missed} missed (commit ${commitHash()})`);
  return missed === 0 ? 0 : 1;
}

function main(): number {
  if (values.mutants === true) return mutants();
  const bug = values.bug ?? null;
  if (bug !== null && !BUGS.includes(bug as Bug)) throw new Error(`--bug takes one of: ${BUGS.join(', ')}`);
  const single = values.seed !== undefined;
  const first = single ? number(values.seed, 0, 'seed') : number(values.first, 1, 'first');
  const seeds = single ? 1 : number(values.seeds, SEEDS_DEFAULT, 'seeds');
  const startedAt = Date.now();
  const totals: Record<string, number> = {};
  let events = 0;
  let failures = 0;
  let tried = 0;
  for (let seed = first; seed < first + seeds && failures < FAILURES_SHOWN; seed++) {
    const result = run(seed, {
      bug: bug as Bug | null,
      trace: values.trace ?? false,
      membership: values.membership ?? false,
      ...(values.recovery === true ? { recovery: true } : {}),
    });
    tried++;
    events += result.events;
    for (const [name, count] of Object.entries(result.counts)) totals[name] = (totals[name] ?? 0) + count;
    for (const line of result.trace) console.log(line);
    if (result.failure === null) continue;
    failures++;
    console.log(`seed ${seed}: ${result.failure}`);
    console.log(`  after ${result.virtualMs} virtual ms; replay at commit ${commitHash()}: npm run sim -- --seed ${seed} --trace`);
  }
  const seconds = (Date.now() - startedAt) / 1000;
  console.log(`${tried} seeds, ${events} events, ${failures} failures, ${seconds.toFixed(1)} s (commit ${commitHash()})`);
  console.log(
    Object.entries(totals)
      .map(([name, count]) => `${name} ${count}`)
      .join(', '),
  );
  return failures === 0 ? 0 : 1;
}

try {
  process.exitCode = main();
} catch (error) {
  console.error(`sim: ${errorMessage(error)}`);
  process.exitCode = 2;
}
