import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import {
  FAILPOINTS,
  armFailpoint,
  armFailpoints,
  disarmFailpoints,
  failpoint,
  failpointReached,
  failpointStatus,
  failpointSync,
  onFailpointKill,
  releaseFailpoint,
} from './failpoint.ts';

const HERE = 'object-store.put';
afterEach(disarmFailpoints);

test('nothing happens at a place that is not armed, and it costs next to nothing', () => {
  assert.equal(failpoint(HERE), undefined);
  failpointSync(HERE);
  armFailpoint('object-store.get', 'error(UNAVAILABLE)');
  assert.equal(failpoint(HERE), undefined);
  disarmFailpoints();
  const started = performance.now();
  for (let i = 0; i < 1e7; i++) failpointSync(HERE);
  assert.ok(performance.now() - started < 1_000, 'ten million places take well below a second');
});

test('errors by code and by errno, and off again', async () => {
  armFailpoint(HERE, 'error(UNAVAILABLE)');
  await assert.rejects(async () => failpoint(HERE), { code: 'UNAVAILABLE', message: /object-store\.put/ });
  assert.throws(() => failpointSync(HERE), { code: 'UNAVAILABLE' });
  armFailpoint(HERE, 'errno(ENOSPC)');
  assert.throws(() => failpointSync(HERE), { code: 'ENOSPC' });
  armFailpoint(HERE, 'off');
  assert.equal(failpoint(HERE), undefined);
});

test('only the n-th hit, from the n-th on, and a share by seed', () => {
  const pattern = (action: string, hits: number): string => {
    armFailpoint(HERE, action);
    return Array.from({ length: hits }, () => {
      try {
        failpointSync(HERE);
        return '.';
      } catch {
        return 'x';
      }
    }).join('');
  };
  assert.equal(pattern('error(TIMEOUT)@3', 5), '..x..');
  assert.equal(pattern('error(TIMEOUT)@3+', 5), '..xxx');
  const first = pattern('error(TIMEOUT)%0.25:42', 400);
  assert.equal(pattern('error(TIMEOUT)%0.25:42', 400), first);
  assert.notEqual(pattern('error(TIMEOUT)%0.25:43', 400), first);
  const share = first.split('x').length / 400;
  assert.ok(share > 0.15 && share < 0.35, `${share}`);
});

test('a pause holds until it is released, and who waits is told', async () => {
  armFailpoint(HERE, 'pause@2');
  await failpoint(HERE);
  const reached = failpointReached(HERE, 2);
  let through = false;
  const held = Promise.resolve(failpoint(HERE)).then(() => (through = true));
  assert.equal((await reached).hits, 2);
  assert.deepEqual(failpointStatus(), [{ name: HERE, action: 'pause@2', hits: 2, waiting: 1 }]);
  assert.equal(through, false);
  releaseFailpoint(HERE);
  await held;
  assert.equal(failpointStatus()[0]?.waiting, 0);
  armFailpoint(HERE, 'pause');
  const again = failpoint(HERE);
  armFailpoint(HERE, 'off');
  await again;
  await assert.rejects(failpointReached(HERE, 1), { code: 'NOT_FOUND' });
});

test('delays, also where nothing can be awaited; kill is what the process says', async () => {
  armFailpoints(`${HERE}=delay(20); object-store.get=kill`);
  let started = performance.now();
  await failpoint(HERE);
  assert.ok(performance.now() - started >= 18);
  started = performance.now();
  failpointSync(HERE);
  assert.ok(performance.now() - started >= 18);
  onFailpointKill(() => {
    throw new Error('killed');
  });
  assert.throws(() => failpointSync('object-store.get'), /killed/);
});

test('what is not a name or not an action is refused', () => {
  for (const [name, action] of [
    ['object-store.nothing', 'kill'],
    ['__proto__', 'kill'],
    ['toString', 'kill'],
    [HERE, 'error(NOPE)'],
    [HERE, 'error'],
    [HERE, 'delay(-1)'],
    [HERE, 'delay(9999999)'],
    [HERE, 'kill@0'],
    [HERE, 'kill%2:1'],
    [HERE, 'kill%0.5'],
    [HERE, ''],
    [HERE, 'errno(nothing)'],
  ] as const)
    assert.throws(() => armFailpoint(name, action), { code: 'INVALID_ARGUMENT' }, `${name}=${action}`);
  assert.throws(() => armFailpoints('object-store.put'), { code: 'INVALID_ARGUMENT' });
  assert.deepEqual(failpointStatus(), []);
  for (const [name, sentence] of Object.entries(FAILPOINTS)) {
    assert.match(name, /^[a-z-]+(\.[a-z-]+)+$/);
    assert.match(sentence, /^[A-Z].*\.$/);
  }
});

test('every place is in the docs with its sentence', () => {
  const page = readFileSync(new URL('../../../docs/operating/failpoints.md', import.meta.url), 'utf8');
  for (const [name, sentence] of Object.entries(FAILPOINTS)) assert.ok(page.includes(`| \`${name}\` | ${sentence} |`), name);
});

test('every place is somewhere in the code', () => {
  const root = fileURLToPath(new URL('../../../', import.meta.url));
  const sources = globSync('{packages,services}/*/src/**/*.ts', { cwd: root }).filter(
    (f) => !f.endsWith('failpoint.ts') && !f.includes('.test.'),
  );
  const text = sources.map((f) => readFileSync(join(root, f), 'utf8')).join('\n');
  for (const name of Object.keys(FAILPOINTS)) assert.ok(text.includes(`'${name}'`), name);
});
