/** Runs every test file with node:test and closes with the line `N passed, N failed, N skipped`.
 *  Unit tests and tests with a stock Postgres (`.pg.test.ts`) run two files at a time; system tests, each of a dozen processes, one at a time: there may be two cores.
 *  Arguments are substrings of paths to select. */
import { once } from 'node:events';
import { globSync } from 'node:fs';
import { join } from 'node:path';
import type { Writable } from 'node:stream';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';

interface Totals {
  passed: number;
  failed: number;
  skipped: number;
  failures: string[];
}

const TEST_MS_MAX = 600_000;
const FILE_MS_MAX = 720_000;

type TestEvent =
  | { type: 'test:pass' | 'test:fail'; data: { name: string; skip?: unknown; todo?: unknown; details: { type?: string } } }
  | { type: 'test:diagnostic'; data: { file?: string; message: string } }
  | { type: 'test:summary'; data: unknown };

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
  const heavy = files.filter((file) => file.startsWith('tests/'));
  const light = files.filter((file) => !heavy.includes(file));
  const totals: Totals = { passed: 0, failed: 0, skipped: 0, failures: [] };
  const running = new Set<string>();
  const close = (): number => {
    process.off('exit', onEarlyExit);
    for (const failure of totals.failures) process.stdout.write(`failed: ${failure}\n`);
    process.stdout.write(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped\n`);
    return totals.failed === 0 && totals.passed > 0 ? 0 : 1;
  };
  // A process with nothing left to wait for ends without a word; so does one that is told to exit.
  const onEarlyExit = (): void => {
    totals.failed++;
    totals.failures.push(`the run itself ended early, during ${[...running].join(', ') || 'no file'}`);
    process.exitCode = close();
  };
  process.on('exit', onEarlyExit);
  await runFiles(root, light, 2, totals, running);
  await runFiles(root, heavy, 1, totals, running);
  return close();
}

async function runFiles(root: string, files: readonly string[], concurrency: number, totals: Totals, running: Set<string>): Promise<void> {
  const waiting = [...files];
  const lane = async (): Promise<void> => {
    for (let file = waiting.shift(); file !== undefined; file = waiting.shift()) {
      running.add(file);
      // One for each file: it keeps a stack of the tests it is in. What runs beside others is printed when its file has ended, so that reports do not mix.
      const report = new spec();
      const lines: string[] = [];
      report.on('data', (chunk: string) => (concurrency === 1 ? process.stdout.write(chunk) : lines.push(chunk)));
      try {
        await runFile(join(root, file), report, totals);
        await new Promise<void>((resolve) => report.end(resolve));
      } catch (error) {
        totals.failed++;
        totals.failures.push(`${file}: its run failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
      }
      process.stdout.write(lines.join(''));
      running.delete(file);
    }
  };
  await Promise.all(Array.from({ length: concurrency }, lane));
}

/** A test that hangs ends at {@link TEST_MS_MAX}; a file that leaves something open ends with its last test; one that neither sees ends, killed, at
 *  {@link FILE_MS_MAX}. Each is a failure, none holds up the others. */
async function runFile(file: string, report: Writable, totals: Totals): Promise<void> {
  const stream = run({
    files: [file],
    timeout: TEST_MS_MAX,
    forceExit: true,
    signal: AbortSignal.timeout(FILE_MS_MAX),
    isolation: 'process',
    execArgv: ['--conditions=lakebase-source', '--disable-warning=ExperimentalWarning'],
  });
  let seen = false;
  for await (const event of stream as AsyncIterable<TestEvent>) {
    // Counts of one file, after each: ours come at the end. Node tells of errors of this process, which it catches while tests run, in the same way.
    if (event.type === 'test:diagnostic' && event.data.message.startsWith('Error:')) {
      totals.failed++;
      totals.failures.push(`${file}: ${event.data.message}`);
    }
    if (event.type === 'test:summary' || (event.type === 'test:diagnostic' && event.data.file === undefined)) continue;
    if (!report.write(event)) await once(report, 'drain');
    if (event.type !== 'test:pass' && event.type !== 'test:fail') continue;
    seen = true;
    if (event.data.details.type === 'suite') continue;
    if (event.type === 'test:fail') {
      totals.failed++;
      totals.failures.push(`${file}: ${event.data.name}`);
    } else if (event.data.skip !== undefined || event.data.todo !== undefined) totals.skipped++;
    else totals.passed++;
  }
  if (seen) return;
  totals.failed++;
  totals.failures.push(`${file}: no test of it ended`);
}
