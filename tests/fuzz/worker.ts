/** Runs modules in a thread of its own, so that a case that never ends can be ended and named from outside. */
import { readFileSync } from 'node:fs';
import { deserialize, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { parentPort, workerData } from 'node:worker_threads';
import type { Corpus } from './corpus.ts';
import { modulesOf } from './modules.ts';
import { runModule } from './run-module.ts';

export interface WorkerInput {
  readonly corpusPath: string;
  readonly seed: number;
  readonly cases: number;
  readonly only: readonly string[];
  /** Two 32-bit numbers: the module's index and the case it is at. */
  readonly progress: SharedArrayBuffer;
}

const input = workerData as WorkerInput;
Error.stackTraceLimit = 0;
setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;
const corpus = deserialize(readFileSync(input.corpusPath)) as Corpus;
const progress = new Int32Array(input.progress);
for (const [index, module] of modulesOf(corpus.samples).entries()) {
  if (input.only.length > 0 && !input.only.includes(module.name)) continue;
  Atomics.store(progress, 0, index);
  const result = runModule({
    module,
    index,
    major: corpus.major,
    seed: input.seed,
    cases: input.cases,
    progress: (done) => Atomics.store(progress, 1, done),
    collectGarbage,
  });
  parentPort?.postMessage(result);
}
