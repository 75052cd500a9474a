import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { openKmsKey } from './open.ts';
import { CONTEXT, expectOutcome, soon } from './testing/conformance.ts';
import { LocalHarness } from './testing/index.ts';

const KEK = Buffer.alloc(32, 7);

describe('local key file', () => {
  const harness = new LocalHarness();
  after(() => harness.close());
  const env = harness.environment();
  const root = env.rootKeyPath;

  test('root is made once, 0600, by whoever is first; unwrap never makes it', async () => {
    const key = openKmsKey({ provider: 'LOCAL', key: 'root' }, env);
    await expectOutcome(key.currentVersion(soon()), 'DENIED', /KeyFileMissing/);
    assert.equal(existsSync(root), false);
    const wrapped = await Promise.all([1, 2, 3, 4].map(() => key.wrap(KEK, CONTEXT, soon())));
    assert.equal(new Set(wrapped.map((w) => w.keyVersion)).size, 1);
    assert.equal(statSync(root).mode & 0o777, 0o600);
    assert.match(readFileSync(root, 'utf8'), /^[0-9a-f]{64}\n$/);
    for (const one of wrapped) assert.deepEqual(await key.unwrap(one, CONTEXT, soon()), KEK);
  });

  test('a root key that is gone is not made again: that would hide the loss', async () => {
    const key = openKmsKey({ provider: 'LOCAL', key: 'root' }, env);
    const wrapped = await key.wrap(KEK, CONTEXT, soon());
    const backup = readFileSync(root);
    rmSync(root);
    await expectOutcome(key.wrap(KEK, CONTEXT, soon()), 'DENIED', /KeyFileMissing/);
    await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'DENIED', /KeyFileMissing/);
    assert.equal(existsSync(root), false);
    writeFileSync(root, backup, { mode: 0o600 });
    assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), KEK);
  });

  test('a changed or spoilt file denies what was wrapped, and is invalid for a new binding', async () => {
    const config = harness.createKey();
    const key = openKmsKey(config, env);
    const wrapped = await key.wrap(KEK, CONTEXT, soon());
    writeFileSync(config.key, randomBytes(32).toString('hex'));
    await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'DENIED', /KeyFileChanged/);
    for (const text of ['', 'xyz', 'g'.repeat(64), '0'.repeat(63), '0'.repeat(65), '0'.repeat(1_000)]) {
      writeFileSync(config.key, text);
      await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'DENIED', /KeyFileChanged/);
      await expectOutcome(key.wrap(KEK, CONTEXT, soon()), 'INVALID', /KeyFileMalformed/);
    }
  });

  test('upper case and surrounding blanks at the end are the same key', async () => {
    const config = harness.createKey();
    const key = openKmsKey(config, env);
    const wrapped = await key.wrap(KEK, CONTEXT, soon());
    writeFileSync(config.key, `${readFileSync(config.key, 'utf8').trim().toUpperCase()} \r\n\n`);
    assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), KEK);
  });

  test('a file that others may read is refused with the command to run', async () => {
    const config = harness.createKey();
    const key = openKmsKey(config, env);
    const wrapped = await key.wrap(KEK, CONTEXT, soon());
    harness.makeReadableByAll(config.key);
    const error = await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'INVALID', /KeyFileMode/);
    assert.match(error.message, /chmod 600/);
    chmodSync(config.key, 0o600);
    assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), KEK);
  });

  test('a disk that fails is unreachable', async () => {
    const path = join(harness.directory, 'directory');
    mkdirSync(path, { mode: 0o700 });
    const key = openKmsKey({ provider: 'LOCAL', key: path }, { ...env, attemptsMax: 1 });
    await expectOutcome(key.wrap(KEK, CONTEXT, soon()), 'UNREACHABLE', /IoError/);
  });
});
