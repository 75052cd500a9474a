/** Fuzzing in short; and every case that once failed, forever. `npm run fuzz` is the long form. */
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Lsn } from '@lakebase/ids';
import { attempt } from './attempt.ts';
import { READER_MODULE } from './modules.ts';
import { fuzz } from './run.ts';
import { KEPT_BYTES_MAX, type SavedCase } from './run-module.ts';
import { readStream } from './wal-stream.ts';

test('cases that failed once', () => {
  const files = globSync(join(import.meta.dirname, 'regressions', '*.json'));
  assert.ok(files.length > 0);
  for (const file of files) {
    const saved = JSON.parse(readFileSync(file, 'utf8')) as SavedCase;
    const bytes = Buffer.from(saved.record, 'base64');
    if (saved.module === READER_MODULE) {
      readStream({ bytes, chunkBytes: 1000, startLsn: saved.lsn as Lsn }, saved.major);
      continue;
    }
    const pages = saved.pages.map((page) => (page === null ? undefined : Buffer.from(page, 'base64')));
    const { failure } = attempt({
      major: saved.major,
      bytes,
      lsn: saved.lsn as Lsn,
      endLsn: saved.endLsn as Lsn,
      pages,
      realPages: saved.realPages,
    });
    assert.equal(failure, undefined, `${file}: ${saved.type}`);
  }
});

test('mutated records of a stock server end in a page or a typed error', { timeout: 200_000 }, async () => {
  const lines: string[] = [];
  const seed = Math.floor(Math.random() * 0x1_0000_0000);
  const workload = [
    'fpw_off heap',
    'fpw_off btree',
    'fpw_off hash',
    'fpw_off gin',
    'fpw_off gist',
    'fpw_off spgist',
    'fpw_off brin',
    'fpw_off cluster',
  ];
  const report = await fuzz({ major: 18, seed, cases: 3000, only: [], workload, log: (line) => lines.push(line) });
  assert.equal(report.hung, undefined);
  assert.deepEqual(
    report.modules.flatMap((module) => module.failures),
    [],
    `seed ${seed}`,
  );
  assert.deepEqual(
    report.modules.filter((module) => module.grownBytes > KEPT_BYTES_MAX),
    [],
  );
  assert.ok(report.modules.length >= 20, lines.join('\n'));
});
