/** Runs the cases of one module in order and keeps what fails, in a form that can be run again without a server. */
import { mutate } from './mutate.ts';
import { attempt, type Case, type Outcome } from './attempt.ts';
import { type Module, READER_MODULE } from './modules.ts';
import { Random } from './random.ts';
import { makeStream, readStream } from './wal-stream.ts';

/** A failed case, ready for tests/fuzz/regressions. */
export interface SavedCase {
  readonly module: string;
  readonly type: string;
  readonly failure: string;
  readonly major: number;
  readonly lsn: number;
  readonly endLsn: number;
  /** Base64; pages by block id, null for a page of zeros. */
  readonly record: string;
  readonly pages: readonly (string | null)[];
  readonly realPages: boolean;
}

export interface ModuleResult {
  readonly name: string;
  readonly cases: number;
  readonly outcomes: Readonly<Record<Outcome, number>>;
  readonly failures: readonly SavedCase[];
  readonly failureCount: number;
  readonly types: number;
  readonly ms: number;
  /** Growth of the heap and of buffers over the second half of the cases, collected before both measurements. */
  readonly grownBytes: number;
}

export interface ModuleRun {
  readonly module: Module;
  readonly index: number;
  readonly major: number;
  readonly seed: number;
  readonly cases: number;
  /** Called now and then with the number of the case that starts. */
  readonly progress?: (done: number) => void;
  readonly collectGarbage?: () => void;
}

const KEPT_FAILURES = 20;
/** What half of the cases may leave behind: a few compiled functions and tables, not something per case. */
export const KEPT_BYTES_MAX: number = 32 << 20;

export function runModule(run: ModuleRun): ModuleResult {
  const { module, index, major, seed, cases } = run;
  const outcomes = { page: 0, refused: 0, undecodable: 0 };
  const failures: SavedCase[] = [];
  /** One of each kind is enough. */
  const kinds = new Set<string>();
  let failureCount = 0;
  const byType = new Map<string, typeof module.samples>();
  for (const sample of module.samples) byType.set(sample.type, [...(byType.get(sample.type) ?? []), sample]);
  const types = [...byType.values()];
  const started = performance.now();
  const half = Math.floor(cases / 2);
  let before = 0;
  for (let n = 0; n < cases; n++) {
    if ((n & 255) === 0) run.progress?.(n);
    if (n === half) before = memoryInUse(run.collectGarbage);
    const r = new Random(seed, index, major, n);
    if (module.name === READER_MODULE) {
      const stream = makeStream(module.samples, major, r);
      try {
        outcomes[readStream(stream, major).refused ? 'refused' : 'page']++;
      } catch (error) {
        failureCount++;
        const failure = error instanceof Error ? (error.stack ?? error.message) : String(error);
        if (failures.length < KEPT_FAILURES)
          failures.push(saved(module.name, 'stream', failure, major, stream.startLsn, 0, stream.bytes, [], false));
      }
      continue;
    }
    const { sample, bytes, realPages } = mutate(r.pick(r.pick(types)), module.samples, r);
    const c: Case = { major, bytes, lsn: sample.lsn, endLsn: sample.endLsn, pages: sample.pages, realPages };
    let { outcome, failure } = attempt(c);
    if (failure !== undefined) ({ outcome, failure } = again(c));
    outcomes[outcome]++;
    if (failure === undefined) continue;
    failureCount++;
    const kind = `${sample.type} ${failure.replaceAll(/[0-9]+/g, '#').slice(0, 200)}`;
    if (kinds.has(kind) || failures.length >= KEPT_FAILURES) continue;
    kinds.add(kind);
    failures.push(saved(module.name, sample.type, failure, major, sample.lsn, sample.endLsn, bytes, sample.pages, realPages));
  }
  const grownBytes = Math.max(0, memoryInUse(run.collectGarbage) - before);
  return { name: module.name, cases, outcomes, failures, failureCount, types: types.length, ms: performance.now() - started, grownBytes };
}

/** Once more with stack traces, which cost more than everything else and are off otherwise. Slow on a busy machine is not slow: only a case
 *  that is so every time is. */
function again(c: Case): { outcome: Outcome; failure?: string } {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 10;
  try {
    let last = attempt(c);
    for (let i = 0; i < 2 && last.failure !== undefined; i++) last = attempt(c);
    return last;
  } finally {
    Error.stackTraceLimit = limit;
  }
}

function memoryInUse(collect: (() => void) | undefined): number {
  // Buffers let go by one collection are counted until the next.
  collect?.();
  collect?.();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

function saved(
  module: string,
  type: string,
  failure: string,
  major: number,
  lsn: number,
  endLsn: number,
  record: Buffer,
  pages: readonly (Buffer | undefined)[],
  realPages: boolean,
): SavedCase {
  return {
    module,
    type,
    failure,
    major,
    lsn,
    endLsn,
    record: record.toString('base64'),
    pages: Array.from(pages, (page) => page?.toString('base64') ?? null),
    realPages,
  };
}
