/** Transactions, multixacts and multixact members pass the end of their 32-bit cycles, the transactions into the next epoch: every file of a
 *  standby is still equal, and a prepared transaction is found under its name. Takes a pg_resetwal of the major; the npm builds have none. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findToolOfMajor } from '@lakebase/testkit';
import { formatReport, runOracle } from './run.ts';

// 17 differs from 18 in nothing that is looked at here: `npm run oracle -- --major 17 --wrap PG_RESETWAL`.
for (const major of [18, 16]) {
  const resetwal = findToolOfMajor('pg_resetwal', major);
  const skip = resetwal === undefined ? `no pg_resetwal of major ${major} on this machine` : false;
  test(`redo equals Postgres ${major} when its ids start over`, { timeout: 300_000, skip }, async () => {
    const report = await runOracle({ major, wrapWith: resetwal as string, only: ['fpw_off locks', 'freeze', 'crash'] });
    const text = formatReport(report);
    assert.equal(report.mismatchCount, 0, text);
    assert.equal(report.comparison.differenceCount, 0, text);
    assert.deepEqual([report.counterMismatches, report.missingBlocks], [[], 0], text);
    assert.equal(report.comparison.twophase, 1, text);
    const reached = new Set(report.counts.map((count) => count.name));
    for (const name of ['CLOG/ZEROPAGE', 'CLOG/TRUNCATE', 'CommitTs/TRUNCATE', 'MultiXact/ZERO_MEM_PAGE', 'MultiXact/TRUNCATE_ID'])
      assert.ok(reached.has(name), `${name} was not reached\n${text}`);
    assert.ok(report.wrapped, `the ids did not start over\n${text}`);
  });
}
