/** The regression suite with `wal_consistency_checking = all` on a stock server, and its WAL through the redo oracle: every record's result against
 *  the image in the WAL, and everything at the end against a stock standby's files. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type OracleReport, runOracle } from '../oracle/run.ts';
import { ownedDirectory, runGroup, SUPERUSER } from './driver.ts';
import type { SourceTree } from './source-tree.ts';
import { regressSuite, type Suite } from './suites.ts';

export async function regressThroughOracle(
  tree: SourceTree,
  log: (line: string) => void,
  suite: Suite = regressSuite(tree),
): Promise<OracleReport> {
  const out = ownedDirectory(mkdtempSync(join(tmpdir(), 'lb-conformance-redo-')));
  try {
    const report = await runOracle({
      major: tree.major,
      postgres: tree.prefix,
      log,
      workload: async (server) => {
        const client = await server.client();
        await client.query(`CREATE ROLE ${SUPERUSER} SUPERUSER LOGIN`);
        await server.close(client);
        for (const [i, group] of suite.groups.entries()) {
          const target = { name: 'oracle', socketDir: server.socketDir, port: 5432 };
          const { outcomes, failure, ms } = await runGroup(tree, suite, group, target, out, i === 0);
          if (failure !== undefined) throw new Error(failure);
          const bad = outcomes.filter((o) => !o.ok).map((o) => o.test);
          log(
            `${suite.name} ${i + 1}/${suite.groups.length}: ${Math.round(ms)} ms${bad.length === 0 ? '' : `, not as expected: ${bad.join(' ')}`}`,
          );
        }
      },
    });
    // The suite need not reach every record type, and leaves no prepared transaction whose file could be made wrong.
    const withoutPrepared = report.comparison.twophase === 0;
    return { ...report, notReached: [], blind: report.blind.filter((what) => !(withoutPrepared && what.startsWith('1 of '))) };
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}
