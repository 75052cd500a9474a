/** `npm run test:interop`: the KMS adapters against servers that we did not write. Whatever is not on the machine is skipped, with how to get it.
 *  Arguments are substrings of file names to select. docs/operating/kms.md, "Interop tests". */
import { globSync } from 'node:fs';
import { join } from 'node:path';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';

const filters = process.argv.slice(2);
const files = globSync('*.interop.ts', { cwd: import.meta.dirname })
  .filter((file) => filters.length === 0 || filters.some((f) => file.includes(f)))
  .sort();
const stream = run({
  files: files.map((file) => join(import.meta.dirname, file)),
  concurrency: 1,
  timeout: 600_000,
  execArgv: ['--conditions=lakebase-source', '--disable-warning=ExperimentalWarning'],
});
let failed = 0;
stream.on('test:fail', (event) => {
  if (event.details.type !== 'suite') failed++;
});
stream.on('end', () => {
  process.exitCode = failed === 0 ? 0 : 1;
});
stream.compose(new spec()).pipe(process.stdout);
