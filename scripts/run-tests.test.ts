import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';

const RUNNER = new URL('./run-tests.ts', import.meta.url).href;

/** Runs the runner over one test file, with something that happens to the runner after `ms`. */
function runWith(file: string, ms: number, meanwhile: string): { code: number | null; lines: string[] } {
  const root = mkdtempSync(join(tmpdir(), 'lb-runner-'));
  try {
    mkdirSync(join(root, 'tests'));
    writeFileSync(join(root, 'tests', 'a.test.ts'), `import { test } from 'node:test';\n${file}`);
    writeFileSync(
      join(root, 'main.mjs'),
      `import { runTests } from ${JSON.stringify(RUNNER)};\nsetTimeout(() => {${meanwhile}}, ${ms}).unref();\nprocess.exit(await runTests(${JSON.stringify(root)}, []));`,
    );
    // Of the tests that this one is part of: a run within a run does nothing.
    const { NODE_TEST_CONTEXT: _, ...env } = process.env;
    const { status, stdout } = spawnSync(process.execPath, [join(root, 'main.mjs')], { env, encoding: 'utf8' });
    return { code: status, lines: stdout.trimEnd().split('\n') };
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

describe('the run of all tests closes with its line and an honest exit code', () => {
  for (const [what, file, meanwhile, last, failure] of [
    ['when all pass', "test('a', () => {});", '', '1 passed, 0 failed, 0 skipped', undefined],
    ['when one fails', "test('a', () => { throw new Error('no'); });", '', '0 passed, 1 failed, 0 skipped', /a\.test\.ts: a$/],
    [
      'when the runner is made to exit',
      "test('a', () => new Promise((r) => setTimeout(r, 5_000)));",
      'process.exit(0)',
      '0 passed, 1 failed, 0 skipped',
      /the run itself ended early, during tests\/a\.test\.ts/,
    ],
    [
      'when the runner fails',
      "test('a', () => new Promise((r) => setTimeout(r, 2_000)));",
      "throw new Error('a mistake of the runner')",
      '1 passed, 1 failed, 0 skipped',
      /a mistake of the runner/,
    ],
  ] as const)
    test(what, () => {
      const { code, lines } = runWith(file, 700, meanwhile);
      assert.equal(lines.at(-1), last);
      assert.equal(code, failure === undefined ? 0 : 1);
      if (failure !== undefined) assert.match(lines.at(-2) ?? '', failure);
    });
});
