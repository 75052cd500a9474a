/** The short form of `npm run conformance`. Without a Postgres source tree: pages, transaction status and the list of relations after our own work,
 *  on the npm build, and that the comparison notices a wrong byte. With one: a handful of Postgres's regression tests on both servers too. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type pg from 'pg';
import { failuresOf, formatCampaign, runCampaign } from './campaign.ts';
import { checkDatabase, PageReport } from './page-check.ts';
import { checkRelations } from './relation-check.ts';
import { checkSlru, headBundle } from './slru-check.ts';
import { findSourceTree } from './source-tree.ts';
import { regressSuite } from './suites.ts';
import { connectTo, OurSystem } from './targets.ts';

const WORK = [
  "CREATE TABLE t (n int PRIMARY KEY, p point, a int[], t text, s text DEFAULT repeat('x', 100))",
  'CREATE SEQUENCE s INCREMENT BY 3',
  'INSERT INTO t SELECT g, point(g % 100, g / 100), ARRAY[g % 50, g % 7], md5(g::text) FROM generate_series(1, 5000) g',
  'CREATE INDEX ON t USING hash (t)',
  'CREATE INDEX ON t USING gin (a)',
  'CREATE INDEX ON t USING gist (p)',
  'CREATE INDEX ON t USING spgist (p)',
  'CREATE INDEX ON t USING brin (n)',
  'DELETE FROM t WHERE n % 3 = 0',
  'VACUUM t',
  'UPDATE t SET t = md5(t), p = point(1, n % 77) WHERE n % 5 = 0',
  "SELECT nextval('s') FROM generate_series(1, 40)",
  'CREATE UNLOGGED TABLE u AS SELECT 1 AS n',
  'BEGIN; SAVEPOINT a; INSERT INTO t (n) VALUES (-1); ROLLBACK TO a; INSERT INTO t (n) VALUES (-2); COMMIT',
  'CREATE MATERIALIZED VIEW m AS SELECT n FROM t WHERE n < 100',
] as const;

/** Each lock by a subtransaction of its own, so that each row gets a multixact of its own. */
const SUBTRANSACTION_LOCKS = `DO $$ BEGIN FOR i IN 1..49 LOOP
  BEGIN PERFORM 1 FROM t WHERE n = i FOR KEY SHARE; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$`;

const tree = findSourceTree(18);
const noTree = typeof tree === 'string' ? tree : undefined;

describe('conformance, short form', () => {
  describe('without a source tree', () => {
    let system: OurSystem;
    let client: pg.Client;
    before(async () => {
      system = await OurSystem.start({ major: 18, prefix: null, tiny: true });
      client = await connectTo(await system.target(), 'databricks_postgres');
      for (const statement of WORK) await client.query(statement);
      const other = await connectTo(await system.target(), 'databricks_postgres');
      await client.query('BEGIN; SELECT n FROM t WHERE n < 50 FOR KEY SHARE');
      await other.query(SUBTRANSACTION_LOCKS);
      await client.query('COMMIT');
      await other.end();
    });
    after(async () => {
      await client?.end();
      await system?.[Symbol.asyncDispose]();
    });

    it('every page, transaction and relation agrees with storage', async () => {
      using source = system.pages();
      const pages = await checkDatabase(client, source);
      assert.deepEqual(pages.mismatches, []);
      assert.ok(pages.pages > 300 && pages.vmPages > 0 && pages.fsmPages > 0 && pages.sequences > 0, JSON.stringify(pages));
      const slru = await checkSlru(client, source, system.head);
      assert.deepEqual(slru.mismatches, []);
      assert.ok(slru.xids > 10 && slru.multixacts > 10, JSON.stringify(slru));
      const others = await Promise.all(['postgres', 'template1'].map(async (db) => connectTo(await system.target(), db)));
      const relations = await checkRelations(await headBundle(source, system.head), [client, ...others]);
      for (const other of others) await other.end();
      assert.deepEqual(relations.mismatches, []);
    });

    it('a wrong byte in one page of any fork is noticed and explained', async () => {
      using source = system.pages();
      const { rows } = await client.query<{ node: number }>("SELECT pg_relation_filenode('public.t')::int AS node");
      const [fresh] = (await client.query<{ at: string }>('SELECT pg_current_wal_lsn() AS at')).rows;
      assert.ok(fresh !== undefined);
      const report = new PageReport();
      report.walStart = system.startLsn;
      await checkDatabase(
        client,
        {
          size: (tag, lsn) => source.size(tag, lsn),
          pages: async (tag, block, count, atLeast) => {
            const pages = await source.pages(tag, block, count, atLeast);
            const at = tag.fork === 2 ? 30 : 8_180;
            if (tag.rel === rows[0]?.node && block === 0) pages[at] = (pages[at] as number) ^ 0x55;
            return pages;
          },
        },
        report,
      );
      assert.deepEqual(
        report.mismatches.map((m) => [m.relation, m.block]),
        [
          ['public.t (main, heap_tableam_handler)', 0],
          ['public.t (vm, heap_tableam_handler)', 0],
        ],
      );
      assert.match(report.mismatches[0]?.records.join('\n') ?? '', /Heap/);
    });
  });

  it('a handful of Postgres regression tests', { skip: noTree === undefined ? false : `no suites to run: ${noTree}` }, async () => {
    if (typeof tree === 'string') return;
    const groups = [['test_setup'], ['point', 'insert', 'insert_conflict', 'sequence', 'truncate', 'hash_index', 'brin_bloom', 'uuid']];
    const report = await runCampaign({ tree, suites: [{ ...regressSuite(tree), groups }], pagesAtEnd: true, restart: false });
    assert.equal(failuresOf(report), 0, formatCampaign(report));
    assert.equal(report.tests.length, groups.flat().length);
  });
});
