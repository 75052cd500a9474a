/** Runs every test file with node:test and closes with the line `N passed, N failed, N skipped`.
 *  Unit tests run two files at a time; tests with a real Postgres (`.pg.test.ts`) and system tests one at a time, since they share two cores.
 *  Arguments are substrings of paths to select. */
import { globSync } from 'node:fs';
import { join } from 'node:path';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';

interface Totals {
  passed: number;
  failed: number;
  skipped: number;
  failures: string[];
}

export async function runTests(root: string, filters: readonly string[]): Promise<number> {
  const files = globSync(
    [
      'packages/*/src/**/*.test.ts',
      'services/*/src/**/*.test.ts',
      'apps/*/src/**/*.test.ts',
      'tests/**/*.test.ts',
      'bench/**/*.test.ts',
      'native/**/*.test.ts',
      'scripts/*.test.ts',
    ],
    { cwd: root },
  )
    .filter((file) => !file.includes('node_modules') && (filters.length === 0 || filters.some((f) => file.includes(f))))
    .sort();
  const heavy = files.filter((file) => file.endsWith('.pg.test.ts') || file.startsWith('tests/'));
  const light = files.filter((file) => !heavy.includes(file));
  const totals: Totals = { passed: 0, failed: 0, skipped: 0, failures: [] };
  await runFiles(root, light, 2, totals);
  await runFiles(root, heavy, 1, totals);
  for (const failure of totals.failures) process.stdout.write(`failed: ${failure}\n`);
  process.stdout.write(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped\n`);
  return totals.failed === 0 && totals.passed > 0 ? 0 : 1;
}

async function runFiles(root: string, files: readonly string[], concurrency: number, totals: Totals): Promise<void> {
  if (files.length === 0) return;
  const stream = run({
    files: files.map((file) => join(root, file)),
    concurrency,
    timeout: 600_000,
    isolation: 'process',
    execArgv: ['--conditions=lakebase-source', '--disable-warning=ExperimentalWarning'],
  });
  stream.on('test:pass', (event) => {
    if (event.details.type === 'suite') return;
    if (event.skip !== undefined || event.todo !== undefined) totals.skipped++;
    else totals.passed++;
  });
  stream.on('test:fail', (event) => {
    if (event.details.type === 'suite') return;
    totals.failed++;
    totals.failures.push(`${event.file ?? ''}: ${event.name}`);
  });
  await new Promise<void>((resolve, reject) => {
    const out = stream.compose(spec);
    out.on('data', (chunk) => process.stdout.write(chunk as string));
    out.on('end', resolve);
    out.on('error', reject);
  });
}
