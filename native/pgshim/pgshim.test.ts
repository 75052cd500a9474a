/** Runs the shim's own tests, plain and under the sanitizers, with the machine's compiler. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const compiler = ['cc', 'gcc', 'clang'].find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0);
const make = spawnSync('make', ['--version'], { stdio: 'ignore' }).status === 0;

async function run(target: string): Promise<void> {
  const child = spawn('make', ['-s', target, `CC=${compiler}`], { cwd: here, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const code = await new Promise((resolve) => child.once('close', resolve));
  assert.equal(code, 0, output);
}

/** Sanitizer runtimes are packages of their own on some systems. */
function missing(sanitizer: string): boolean {
  const dir = mkdtempSync(join(tmpdir(), 'pgshim-cc-'));
  try {
    writeFileSync(join(dir, 'a.c'), 'int main(void) { return 0; }\n');
    return (
      spawnSync(compiler ?? 'cc', [`-fsanitize=${sanitizer}`, 'a.c', '-o', 'a'], { cwd: dir, stdio: 'ignore' }).status !== 0 ||
      spawnSync(join(dir, 'a')).status !== 0
    );
  } finally {
    rmSync(dir, { recursive: true });
  }
}

const skip = compiler === undefined ? 'no C compiler' : make ? false : 'no make';

test('unit tests', { skip }, () => run('test'));
test(
  'unit tests under the address and undefined-behaviour sanitizers',
  { skip: skip || (missing('address,undefined') && 'no sanitizer runtime') },
  () => run('asan'),
);
test('unit tests under the thread sanitizer', { skip: skip || (missing('thread') && 'no sanitizer runtime') }, () => run('tsan'));
