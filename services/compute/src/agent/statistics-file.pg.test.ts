/** Statistics files against stock servers of every major: what we write is what Postgres reads, and what Postgres wrote we understand whole. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { createLogger } from '@lakebase/service-kit';
import { StockPostgres } from '@lakebase/testkit';
import pg from 'pg';
import { PeriodicStatistics } from './periodic-statistics.ts';
import { withTables } from './statistics-file.ts';

const ASK = `SELECT relname, seq_scan, n_tup_ins, n_tup_upd, n_tup_del, n_live_tup, n_dead_tup, n_mod_since_analyze, last_analyze::text, analyze_count, vacuum_count
  FROM pg_stat_all_tables WHERE relname IN ('counted', 'later', 'pg_database') ORDER BY relname`;

for (const major of [18, 17, 16]) {
  test(`Postgres ${major}: counters read by SQL come back through its own statistics file`, async () => {
    await using server = await StockPostgres.start({ major, settings: { autovacuum: 'off', fsync: 'off' } });
    const path = join(server.pgdata, 'pg_stat', 'pgstat.stat');
    const connect = async (): Promise<pg.Client> => {
      const client = new pg.Client(server.clientConfig);
      client.on('error', () => {});
      await client.connect();
      return client;
    };
    const first = await connect();
    await first.query(
      'CREATE TABLE counted (n int); INSERT INTO counted SELECT generate_series(1, 300); UPDATE counted SET n = 0 WHERE n < 10',
    );
    await first.query('VACUUM (ANALYZE) counted');
    await first.query('SELECT pg_stat_force_next_flush()');
    await first.end();
    await server.stop();
    const written = readFileSync(path);
    assert.ok(withTables(written, major, 1, []) !== undefined, 'a file of this build is understood to its end');
    assert.equal(withTables(Buffer.concat([written, Buffer.from([0])]), major, 1, []), undefined);
    assert.equal(withTables(written.subarray(0, -1), major, 1, []), undefined);

    for (const base of [written, undefined]) {
      await server.start();
      const client = await connect();
      await client.query(
        'DROP TABLE IF EXISTS later; CREATE TABLE later (n int); INSERT INTO later SELECT generate_series(1, 77); DELETE FROM later WHERE n = 1; SELECT pg_stat_force_next_flush()',
      );
      await client.query('SELECT count(*) FROM counted');
      await client.query('SELECT pg_stat_force_next_flush()');
      let before: unknown;
      const file = await new Promise<Buffer>((resolve) => {
        const periodic = new PeriodicStatistics({
          major,
          connection: server.clientConfig,
          sql: async () => {
            before = (await client.query(ASK)).rows;
            return client;
          },
          base,
          onFile: resolve,
          log: createLogger('test', 'error'),
          firstMs: 1,
        });
        periodic.start();
      });
      await client.end();
      await server.stop();
      writeFileSync(path, file);
      await server.start();
      const again = await connect();
      const rows = (await again.query(ASK)).rows as { relname: string }[];
      const ours = (all: unknown): unknown => (all as { relname: string }[]).filter((r) => r.relname !== 'pg_database');
      assert.deepEqual(ours(rows), ours(before));
      assert.equal(rows.length, 3, 'shared catalogs too');
      await again.end();
      await server.stop();
      assert.doesNotMatch(readFileSync(server.logPath, 'utf8'), /corrupted statistics|WARNING/);
    }
  });
}
