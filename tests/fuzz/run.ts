/** A fuzzing run: one recorded corpus, all its modules, a watchdog over the thread that runs them. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { serialize } from 'node:v8';
import { Worker } from 'node:worker_threads';
import { type Corpus, recordCorpus } from './corpus.ts';
import { modulesOf } from './modules.ts';
import type { ModuleResult } from './run-module.ts';
import type { WorkerInput } from './worker.ts';

export interface FuzzOptions {
  readonly major: number;
  readonly seed: number;
  /** Per module. */
  readonly cases: number;
  /** Names of modules; all when empty. */
  readonly only: readonly string[];
  /** Parts of the oracle's workload to record; all when absent. */
  readonly workload?: readonly string[];
  readonly log: (line: string) => void;
}

export interface FuzzReport {
  readonly modules: readonly ModuleResult[];
  /** The case that did not end, if any. */
  readonly hung: string | undefined;
}

/** Without a sign of life for so long, a case does not end. A sign comes every 256 cases of some microseconds each. */
const HANG_MS = 60_000;
/** Old space of the thread: what redo keeps for itself is a few pages. */
const HEAP_MB = 512;

export async function fuzz(options: FuzzOptions): Promise<FuzzReport> {
  const { major, seed, log } = options;
  const corpus = await recordCorpus({ major, seed, ...(options.workload === undefined ? {} : { only: options.workload }) });
  log(`Postgres ${major}: ${corpus.samples.length} records of ${new Set(corpus.samples.map((s) => s.type)).size} types, seed ${seed}`);
  const dir = mkdtempSync(join(tmpdir(), 'lakebase-fuzz-corpus-'));
  try {
    const corpusPath = join(dir, 'corpus');
    writeFileSync(corpusPath, serialize(corpus));
    return await watch(corpus, { corpusPath, seed, cases: options.cases, only: options.only, progress: new SharedArrayBuffer(8) }, log);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

async function watch(corpus: Corpus, input: WorkerInput, log: (line: string) => void): Promise<FuzzReport> {
  const modules: ModuleResult[] = [];
  const progress = new Int32Array(input.progress);
  const worker = new Worker(new URL('./worker.ts', import.meta.url), {
    workerData: input,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MB },
  });
  let seen = '';
  let since = performance.now();
  let hung: string | undefined;
  const watchdog = setInterval(() => {
    const now = `${Atomics.load(progress, 0)} ${Atomics.load(progress, 1)}`;
    if (now !== seen) {
      seen = now;
      since = performance.now();
    } else if (performance.now() - since > HANG_MS) {
      const name = modulesOf(corpus.samples)[Atomics.load(progress, 0)]?.name;
      hung = `${name}: one of the 256 cases from ${Atomics.load(progress, 1)} on does not end (seed ${input.seed})`;
      void worker.terminate();
    }
  }, 1000);
  try {
    await new Promise<void>((resolve, reject) => {
      worker.on('message', (result: ModuleResult) => {
        modules.push(result);
        log(formatModule(result));
      });
      worker.on('error', reject);
      worker.on('exit', () => resolve());
    });
  } finally {
    clearInterval(watchdog);
  }
  return { modules, hung };
}

export function formatModule(m: ModuleResult): string {
  const { page, refused, undecodable } = m.outcomes;
  const rate = Math.round((m.cases / m.ms) * 1000);
  return `${m.name.padEnd(18)} ${String(m.types).padStart(3)} types ${String(m.cases).padStart(8)} cases: ${page} applied, ${refused} refused, ${undecodable} undecodable, ${m.failureCount} failures; ${rate}/s, ${Math.round(m.grownBytes / 1024)} KiB kept`;
}
