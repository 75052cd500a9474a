/** `npm run fuzz [-- --cases N] [--major 16|17|18] [--seed N] [--module NAME]… [--save DIR]`: mutated real WAL through the reader, the decoder,
 *  effects and redo, per resource manager. Failures go to DIR as regression cases; exit code 1 when there are any. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { fuzz } from './run.ts';
import { KEPT_BYTES_MAX } from './run-module.ts';

const { values } = parseArgs({
  options: {
    cases: { type: 'string' },
    major: { type: 'string' },
    seed: { type: 'string' },
    module: { type: 'string', multiple: true },
    save: { type: 'string' },
  },
});
const seed = Number(values.seed ?? Math.floor(Math.random() * 0x1_0000_0000));
const report = await fuzz({
  major: Number(values.major ?? 18),
  seed,
  cases: Number(values.cases ?? 1_000_000),
  only: values.module ?? [],
  log: (line) => process.stdout.write(`${line}\n`),
});
const failures = report.modules.flatMap((module) => module.failures);
for (const [i, failure] of failures.entries()) {
  process.stdout.write(`FAILURE ${failure.module} ${failure.type}: ${failure.failure}\n`);
  if (values.save === undefined) continue;
  mkdirSync(values.save, { recursive: true });
  writeFileSync(join(values.save, `${failure.module}-${seed}-${i}.json`), `${JSON.stringify(failure)}\n`);
}
const growing = report.modules.filter((module) => module.grownBytes > KEPT_BYTES_MAX);
for (const module of growing) process.stdout.write(`GROWS ${module.name}: ${module.grownBytes} bytes kept\n`);
if (report.hung !== undefined) process.stdout.write(`HUNG ${report.hung}\n`);
process.exitCode = failures.length === 0 && growing.length === 0 && report.hung === undefined ? 0 : 1;
