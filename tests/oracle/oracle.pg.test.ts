/** Smoke run of the redo oracle: zero differences, every record type reached that a short run can reach. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { failures, formatReport, runOracle } from './run.ts';

test('redo equals Postgres: every page image in WAL, and every file of a standby', { timeout: 550_000 }, async () => {
  const report = await runOracle();
  const text = formatReport(report);
  assert.equal(report.mismatchCount, 0, text);
  assert.equal(report.comparison.differenceCount, 0, text);
  assert.deepEqual(report.notReached, [], text);
  assert.equal(failures(report), 0, text);
  assert.ok(report.comparison.vmPages > 0 && report.comparison.fsmPages > 0 && report.comparison.slruPages > 0, text);
});
