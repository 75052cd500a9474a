/** The lock of a home directory. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { HomeLock, processStartTime } from './lock.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-lock-'));
after(() => rmSync(dir, { recursive: true, force: true }));

test('a second holder is refused with what to do; after release it may', () => {
  const path = join(dir, 'a');
  const lock = HomeLock.acquire(path);
  assert.equal(HomeLock.holder(path), process.pid);
  assert.throws(() => HomeLock.acquire(path), {
    code: 'CONFIG',
    message: /already running on this directory \(process \d+\): stop it first, or set LAKEBASE_HOME/,
  });
  lock.release();
  assert.equal(existsSync(path), false);
  HomeLock.acquire(path).release();
});

test('a lock whose owner is gone is taken, also when the pid lives again as another process', async () => {
  const path = join(dir, 'b');
  const child = spawn('sleep', ['100']);
  await once(child, 'spawn');
  const pid = child.pid as number;
  const held = HomeLock.acquire(path, pid);
  assert.throws(() => HomeLock.acquire(path), /already running/);
  child.kill('SIGKILL');
  await once(child, 'exit');
  HomeLock.acquire(path).release();
  held.release();
  writeFileSync(path, JSON.stringify({ pid: process.pid, startTime: '1' }));
  assert.notEqual(processStartTime(process.pid), '1');
  HomeLock.acquire(path).release();
});

test("a torn or foreign lock file is taken; a release never removes somebody else's", () => {
  const path = join(dir, 'c');
  for (const text of ['', '{"pid":', 'null', '[]', '{"pid":"x"}']) {
    writeFileSync(path, text);
    const lock = HomeLock.acquire(path);
    assert.match(readFileSync(path, 'utf8'), new RegExp(`"pid":${process.pid}`));
    lock.release();
  }
  const lock = HomeLock.acquire(path);
  writeFileSync(path, '{"pid":1,"startTime":"1"}');
  lock.release();
  assert.ok(existsSync(path));
  assert.deepEqual(
    readdirSync(dir).filter((f) => /stale|\.\d+$/.test(f)),
    [],
  );
});

test('of many at once, over a stale lock, exactly one gets it', async () => {
  const path = join(dir, 'd');
  writeFileSync(path, '{"pid":4194304,"startTime":"1"}');
  const module = join(import.meta.dirname, 'lock.ts');
  // Each holds it until told to end, so that two holders would show.
  const code = `import { HomeLock } from ${JSON.stringify(module)}; try { HomeLock.acquire(${JSON.stringify(path)}); console.log('got'); } catch { console.log('not'); } process.stdin.resume();`;
  const children = Array.from({ length: 6 }, () =>
    spawn(process.execPath, ['--conditions=lakebase-source', '--input-type=module', '-e', code], { stdio: ['pipe', 'pipe', 'inherit'] }),
  );
  const said = await Promise.all(children.map(async (child) => String((await once(child.stdout, 'data'))[0]).trim()));
  for (const child of children) child.kill();
  assert.deepEqual(
    said.filter((s) => s === 'got'),
    ['got'],
  );
});
