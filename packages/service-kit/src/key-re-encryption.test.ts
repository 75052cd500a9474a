/** A pass is repeated until it leaves nothing, what it did adds up, and `finished` is told once. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LakebaseError, silentLogger } from '@lakebase/base';
import { LocalKeys } from '@lakebase/keys';
import { KeyReEncryption } from './key-re-encryption.ts';

const P = '1'.repeat(32);

test('goes on after a failure and after a start; reports what all passes did', async () => {
  const source = new LocalKeys();
  const reports: unknown[] = [];
  let passes = 0;
  const jobs = new KeyReEncryption({
    source,
    log: silentLogger,
    report: async (_project, report) => void reports.push(report),
    run: async (_project, _below, progress) => {
      if (++passes === 1) {
        progress({ done: 2, total: 5, bytes: 20 });
        throw new LakebaseError('UNAVAILABLE', 'the store does not answer');
      }
      return { done: 3, total: 3, bytes: 30 };
    },
  });
  const below = source.reEncrypt(P);
  assert.equal(passes, 0, 'not before the start');
  jobs.start();
  await jobs.settled();
  assert.deepEqual(reports, [
    { below, done: 2, total: 5, bytes: 20, finished: false },
    { below, done: 5, total: 5, bytes: 50, finished: true },
  ]);
  await jobs.close();
});
