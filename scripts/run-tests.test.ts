import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, test } from 'node:test';

const RUNNER = new URL('./run-tests.ts', import.meta.url).href;

/** Runs the runner over test files (path → text), with something that happens to the runner after `ms`. */
function runWith(files: Readonly<Record<string, string>>, ms: number, meanwhile: string): { code: number | null; lines: string[] } {
  const root = mkdtempSync(join(tmpdir(), 'lb-runner-'));
  try {
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(root, path)), { recursive: true });
      writeFileSync(join(root, path), `import { describe, test } from 'node:test';\n${text}`);
    }
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
      const { code, lines } = runWith({ 'tests/a.test.ts': file }, 700, meanwhile);
      assert.equal(lines.at(-1), last);
      assert.equal(code, failure === undefined ? 0 : 1);
      if (failure !== undefined) assert.match(lines.at(-2) ?? '', failure);
    });

  test('when files that run beside each other are inside of suites at the same time', () => {
    const suite = (name: string, ms: number): string =>
      `describe('${name}', () => { for (let i = 0; i < 10; i++) describe('inner', () => { for (let j = 0; j < 3; j++)
         test('${name} ' + i + j, () => new Promise((r) => setTimeout(r, ${ms}))); }); });`;
    const files = { 'packages/p/src/a.test.ts': suite('one', 11), 'packages/p/src/b.test.ts': suite('two', 13) };
    const { code, lines } = runWith(files, 700, '');
    assert.equal(lines.at(-1), '60 passed, 0 failed, 0 skipped');
    assert.equal(code, 0);
    // Each report in one piece.
    assert.deepEqual(
      lines.filter((l) => l.startsWith('▶')).map((l) => l.split(' ')[1]),
      lines.filter((l) => /^✔ (one|two) \(/.test(l)).map((l) => l.split(' ')[1]),
    );
  });
});
