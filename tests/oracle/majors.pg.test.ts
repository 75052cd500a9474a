/** The older majors, in short: the parts of the workload whose records differ between majors, and the resource managers with the most
 *  records. The whole workload runs with `npm run oracle -- --smoke --major 16|17`. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatReport, runOracle } from './run.ts';

/** Reached by the parts that run here; these are the ones whose form or meaning another major has changed. */
const DIFFERENT: Readonly<Record<number, readonly string[]>> = {
  16: ['Heap2/PRUNE', 'Heap2/VACUUM', 'Heap2/FREEZE_PAGE', 'Btree/VACUUM', 'Hash/SQUEEZE_PAGE', 'CLOG/ZEROPAGE', 'MultiXact/CREATE_ID'],
  17: [
    'XLOG/CHECKPOINT_REDO',
    'Heap2/PRUNE_ON_ACCESS',
    'Heap2/PRUNE_VACUUM_SCAN',
    'Heap2/PRUNE_VACUUM_CLEANUP',
    'Btree/VACUUM',
    'Hash/SQUEEZE_PAGE',
    'CLOG/ZEROPAGE',
    'MultiXact/CREATE_ID',
  ],
};

for (const major of [17, 16])
  test(`redo equals Postgres ${major}`, { timeout: 300_000 }, async () => {
    const report = await runOracle({ major, only: ['fpw_off heap', 'fpw_off locks', 'fpw_off btree', 'fpw_off hash', 'freeze'] });
    const text = formatReport(report);
    assert.equal(report.mismatchCount, 0, text);
    assert.equal(report.comparison.differenceCount, 0, text);
    assert.deepEqual([report.counterMismatches, report.missingBlocks, report.hostile.failures], [[], 0, []], text);
    const reached = new Set(report.counts.map((count) => count.name));
    for (const name of DIFFERENT[major] ?? []) assert.ok(reached.has(name), `${name} was not reached\n${text}`);
    assert.ok(report.comparison.vmPages > 0 && report.comparison.fsmPages > 0 && report.comparison.slruPages > 0, text);
    assert.equal(report.comparison.twophase, 1, text);
  });
