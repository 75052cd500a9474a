/** The scenarios of Postgres's src/test/recovery that make sense here, re-expressed: WAL that ends in awkward places, two-phase state, many
 *  subtransactions and multixacts, file names used again, truncation, a huge aborted transaction. After each, a compute that has only storage to
 *  start from must agree with the one before, and every page with storage (tests/conformance/page-check.ts).
 *  Elsewhere: unlogged tables, dropped databases, paths of files: paths.test.ts; synthesised starts at every position: tests/formats/start.pg.test.ts;
 *  ids near wraparound: tests/oracle. LAKEBASE_FULL=1: 80,000 relations in the aborted transaction. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { internalToken } from '@lakebase/api';
import { must } from '@lakebase/base';
import { formatLsn, type Lsn, parseLsn } from '@lakebase/ids';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';
import type pg from 'pg';
import { checkDatabase } from '../conformance/page-check.ts';
import { PageSource } from '../conformance/page-source.ts';

const FULL = process.env['LAKEBASE_FULL'] === '1';
const BULK_RELATIONS = FULL ? 80_000 : 5_000;
const PAGE = 8_192;
const SEGMENT = 16 * 1024 * 1024;
/** A commit beside the bulk transaction may take this long on a busy machine; a stalled one takes longer. */
const COMMIT_STALL_MS = 15_000;

describe('recovery', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  before(async () => {
    cluster = await Cluster.start();
    inside = new ClusterInternals(cluster);
    const { code, stderr } = await cluster.cli([
      'endpoints',
      'update',
      'primary',
      '--set',
      'max_prepared_transactions=10',
      '--set',
      'autovacuum=off',
      '--set',
      `max_locks_per_transaction=${Math.max(64, Math.ceil((BULK_RELATIONS * 1.5) / 200))}`,
    ]);
    assert.equal(code, 0, stderr);
  });
  after(() => cluster[Symbol.asyncDispose]());

  async function freshCompute(): Promise<pg.Client> {
    cluster.kill('postgres');
    await (await eventually('a new compute', () => cluster.connect())).end();
    return inside.admin();
  }

  async function admin(): Promise<pg.Client> {
    await (await eventually('a compute', () => cluster.connect())).end();
    return inside.admin();
  }

  /** Every page of the database as the compute sees it is what storage has. */
  async function agreesWithStorage(client: pg.Client): Promise<void> {
    const { pageHost, pagePort } = inside.manager.pageserver;
    using source = new PageSource({ host: pageHost, port: pagePort, token: internalToken(inside.secret, 'service'), ...inside.branch() });
    const report = await checkDatabase(client, source);
    assert.deepEqual(report.mismatches, []);
    assert.ok(report.pages > 100);
  }

  /** One flushed record that takes `bytes` (a multiple of 8 from 72 on) when it crosses no page. */
  const emit = (client: pg.Client, bytes: number): Promise<unknown> =>
    client.query("SELECT pg_logical_emit_message(false, 'p', repeat('x', $1))", [bytes - (bytes > 320 ? 56 : 53) - 2]);

  const insertLsn = async (client: pg.Client): Promise<number> =>
    parseLsn(must((await client.query<{ at: string }>('SELECT pg_current_wal_insert_lsn() AS at')).rows[0], 'row').at);

  /** Nothing here waits for the quorum by itself: neither messages outside a transaction nor pg_switch_wal. */
  async function received(client: pg.Client): Promise<void> {
    const at = await insertLsn(client);
    const end = at % PAGE <= 40 ? at - (at % PAGE) : at; // behind a page header, where the next record goes
    await eventually('the quorum has the end of WAL', async () => {
      const { rows } = await client.query<{ c: number }>(
        "SELECT count(*)::int AS c FROM pg_stat_replication WHERE flush_lsn - '0/0' >= $1",
        [end],
      );
      return (rows[0]?.c ?? 0) >= 2 ? true : undefined;
    });
  }

  /** Fills WAL so that the last record ends exactly with the page. */
  async function endWithPage(client: pg.Client): Promise<void> {
    for (let attempt = 0; attempt < 50; attempt++) {
      const left = PAGE - ((await insertLsn(client)) % PAGE);
      if (left < 72) {
        await emit(client, 400); // on to the next page
        continue;
      }
      // Long records have a longer header: come close with one, end with a short one.
      await emit(client, left > 400 ? Math.floor((left - 200) / 8) * 8 : left);
      if ((await insertLsn(client)) % PAGE <= 40 && left <= 400) return;
    }
    assert.fail('WAL would not end with a page');
  }

  async function fillSegment(client: pg.Client): Promise<void> {
    for (;;) {
      const left = SEGMENT - ((await insertLsn(client)) % SEGMENT);
      if (left <= 3 * PAGE) break;
      await client.query("SELECT pg_logical_emit_message(false, 'p', repeat('x', $1))", [Math.min(4_000_000, left - 3 * PAGE)]);
    }
    for (let pages = SEGMENT - ((await insertLsn(client)) % SEGMENT); pages > PAGE; pages = SEGMENT - ((await insertLsn(client)) % SEGMENT))
      await emit(client, 400);
    await endWithPage(client);
  }

  const ENDS: readonly (readonly [string, (client: pg.Client) => Promise<void>, (end: number) => boolean])[] = [
    ['with a page', endWithPage, (end) => end % PAGE === 0 || end % PAGE === 24 || end % PAGE === 40],
    ['with a segment', fillSegment, (end) => end % SEGMENT === 0 || end % SEGMENT === 40],
    [
      'after pg_switch_wal',
      async (client) => {
        await client.query('SELECT pg_switch_wal()');
      },
      (end) => end % SEGMENT === 0 || end % SEGMENT === 40,
    ],
    [
      'some bytes before a page end, too few for a record header',
      async (client) => {
        await endWithPage(client);
        for (;;) {
          const left = PAGE - ((await insertLsn(client)) % PAGE);
          if (left <= 16) return;
          if (left >= 88 && left <= 400) await emit(client, left - 16);
          else await emit(client, left > 600 ? 200 : left < 88 ? 80 : 72);
        }
      },
      (end) => PAGE - (end % PAGE) <= 24,
    ],
  ];

  it('a compute starts wherever WAL ends', async () => {
    let client = await admin();
    await client.query('CREATE TABLE ends (n int PRIMARY KEY, what text)');
    let rows = 0;
    for (const [what, make, isSo] of ENDS) {
      let reached = false;
      let ended = '';
      for (let attempt = 0; attempt < 4 && !reached; attempt++) {
        await client.query('INSERT INTO ends VALUES ($1, $2)', [++rows, what]);
        await make(client);
        await received(client);
        const before = (await insertLsn(client)) as Lsn;
        await client.end();
        client = await freshCompute();
        const start = parseLsn(must((await inside.running())?.startLsn ?? undefined, 'start LSN'));
        reached = isSo(start); // background processes may have written on
        ended = `at ${formatLsn(start)}, asked for behind ${formatLsn(before)}`;
        const { rows: found } = await client.query<{ c: number }>('SELECT count(*)::int AS c FROM ends');
        assert.equal(found[0]?.c, rows, what);
      }
      assert.ok(reached, `WAL ended ${what} in none of four attempts; the last ${ended}`);
    }
    await agreesWithStorage(client);
    await client.end();
  });

  it('a compute killed inside a record that spans segments starts before it', async () => {
    const client = await admin();
    await client.query('INSERT INTO ends SELECT g, $1 FROM generate_series(101, 200) g', ['before the long record']);
    const from = await insertLsn(client);
    const { project, timeline } = inside.branch();
    const { rows: pids } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    const long = client.query("SELECT pg_logical_emit_message(false, 'p', repeat('x', 300000000))").catch(() => {});
    const safekeeper = inside.safekeeper('sk1');
    while (parseLsn((await safekeeper.status(project, timeline)).flushLsn) < from + SEGMENT);
    process.kill(must(pids[0], 'pid').pid, 'SIGSTOP'); // before anything else: it would be done in a moment
    const next = await freshCompute();
    process.kill(must(pids[0], 'pid').pid, 'SIGKILL');
    await long;
    const start = parseLsn(must((await inside.running())?.startLsn ?? undefined, 'start LSN'));
    assert.ok(start < from + SEGMENT, `${start} lies behind the record that began near ${from}`);
    assert.equal((await next.query<{ c: number }>('SELECT count(*)::int AS c FROM ends WHERE n > 100')).rows[0]?.c, 100);
    await next.query('INSERT INTO ends SELECT g, $1 FROM generate_series(201, 300) g', ['over the long record']);
    await next.end();
    const last = await freshCompute();
    assert.equal((await last.query<{ c: number }>('SELECT count(*)::int AS c FROM ends WHERE n > 100')).rows[0]?.c, 200);
    await last.end();
  });

  it('prepared transactions keep their locks and their subtransactions across computes', async () => {
    let client = await admin();
    await client.query('CREATE TABLE tp (n int PRIMARY KEY, v int); INSERT INTO tp SELECT g, 0 FROM generate_series(1, 100) g');
    const prepare = async (name: string, n: number): Promise<void> => {
      await client.query('BEGIN');
      await client.query('UPDATE tp SET v = 1 WHERE n = $1', [n]);
      await client.query(
        `DO $$ BEGIN FOR i IN 1..200 LOOP BEGIN INSERT INTO tp VALUES (${n * 1000} + i, 2); IF i % 2 = 0 THEN RAISE 'undo'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$`,
      );
      await client.query(`PREPARE TRANSACTION '${name}'`);
    };
    await prepare('to commit', 1);
    await prepare('to roll back', 2);
    await client.query('CHECKPOINT');
    await prepare('after the checkpoint', 3);
    await client.end();
    client = await freshCompute();
    await client.query("SET lock_timeout = '200ms'");
    for (const n of [1, 2, 3]) await assert.rejects(client.query('UPDATE tp SET v = 9 WHERE n = $1', [n]), { code: '55P03' });
    await client.query("COMMIT PREPARED 'to commit'");
    await client.end();
    client = await freshCompute();
    await client.query("ROLLBACK PREPARED 'to roll back'");
    await client.query("COMMIT PREPARED 'after the checkpoint'");
    await client.end();
    client = await freshCompute();
    const { rows } = await client.query<{ v: number; c: number }>('SELECT v, count(*)::int AS c FROM tp GROUP BY v ORDER BY v');
    assert.deepEqual(rows, [
      { v: 0, c: 98 },
      { v: 1, c: 2 },
      { v: 2, c: 200 },
    ]);
    assert.equal((await client.query('SELECT 1 FROM pg_prepared_xacts')).rowCount, 0);
    await agreesWithStorage(client);
    await client.end();
  });

  it('more subtransactions and multixacts than their pages hold', async () => {
    let client = await admin();
    await client.query('CREATE TABLE sx (n int)');
    // 40,000 xids: the transaction status goes over a page, and half of the subtransactions abort.
    await client.query(
      `DO $$ BEGIN FOR i IN 1..40000 LOOP BEGIN INSERT INTO sx VALUES (i); IF i % 2 = 0 THEN RAISE 'undo'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$`,
    );
    await client.query('CREATE TABLE mx (n int PRIMARY KEY); INSERT INTO mx SELECT generate_series(1, 3000)');
    const other = await inside.admin();
    // 3,000 multixacts of two members: offsets go over a page (2,048), members over three (1,636). The same two transactions would share one
    // multixact, so the second lock of each row is a subtransaction's.
    await client.query('BEGIN; SELECT n FROM mx FOR KEY SHARE');
    await other.query(
      `DO $$ BEGIN FOR i IN 1..3000 LOOP BEGIN PERFORM 1 FROM mx WHERE n = i FOR KEY SHARE; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$`,
    );
    await client.query('COMMIT');
    const members = async (c: pg.Client): Promise<unknown> =>
      (
        await c.query(
          'SELECT count(*)::int AS rows, sum((SELECT count(*) FROM pg_get_multixact_members(xmax)))::int AS members, count(DISTINCT xmax::text)::int AS multixacts, md5(string_agg(xmax::text, $1 ORDER BY n)) AS ids FROM mx',
          [','],
        )
      ).rows;
    const expected = await members(client);
    const [counted] = expected as { members: number; multixacts: number }[];
    assert.deepEqual([counted?.members, counted?.multixacts], [6_000, 3_000]);
    await client.end();
    await other.end();
    client = await freshCompute();
    assert.equal((await client.query<{ c: number }>('SELECT count(*)::int AS c FROM sx')).rows[0]?.c, 20_000);
    assert.deepEqual(await members(client), expected);
    await client.query('BEGIN; SELECT n FROM mx FOR UPDATE; DELETE FROM mx WHERE n > 10; COMMIT');
    assert.equal((await client.query<{ c: number }>('SELECT count(*)::int AS c FROM mx')).rows[0]?.c, 10);
    await agreesWithStorage(client);
    await client.end();
  });

  it('a database of the same identity made again, and again: its files are the new ones', async () => {
    let client = await admin();
    await client.query('CREATE DATABASE again_template OID = 60000');
    for (const round of [1, 2, 3]) {
      const template = await inside.admin(undefined, 'again_template');
      await template.query('DROP TABLE IF EXISTS big');
      // The same relation numbers in every round would need luck: VACUUM FULL moves them on, the copy has whatever the template has.
      await template.query(`CREATE TABLE big AS SELECT ${round} AS round, g AS n FROM generate_series(1, ${round * 1000}) g`);
      await template.query('VACUUM FULL pg_class');
      await template.end();
      const strategy = round % 2 === 0 ? 'wal_log' : 'file_copy';
      await client.query(`CREATE DATABASE again TEMPLATE again_template OID = 60001 STRATEGY ${strategy}`);
      const copy = await inside.admin(undefined, 'again');
      await copy.query('UPDATE big SET n = -n WHERE n % 7 = 0');
      const answer = await copy.query('SELECT round, count(*), sum(n) FROM big GROUP BY round');
      await copy.end();
      await client.end();
      client = await freshCompute();
      const same = await inside.admin(undefined, 'again');
      assert.deepEqual((await same.query('SELECT round, count(*), sum(n) FROM big GROUP BY round')).rows, answer.rows, strategy);
      await agreesWithStorage(same);
      await same.end();
      await client.query('DROP DATABASE again');
    }
    await client.query('DROP DATABASE again_template');
    await client.end();
  });

  it('truncation of heap, free space map and visibility map', async () => {
    let client = await admin();
    // Wide enough that both maps have several pages' worth of heap below them, small enough to be quick.
    await client.query("CREATE TABLE trunc (n int, f text); INSERT INTO trunc SELECT g, repeat('x', 800) FROM generate_series(1, 60000) g");
    await client.query('CREATE INDEX ON trunc (n)');
    await client.query('VACUUM (FREEZE) trunc');
    await client.query('DELETE FROM trunc WHERE n > 20');
    await client.query('VACUUM trunc');
    const size = async (c: pg.Client): Promise<unknown> => (await c.query("SELECT pg_relation_size('trunc') AS heap")).rows;
    const small = await size(client);
    await client.query("INSERT INTO trunc SELECT g, repeat('y', 800) FROM generate_series(1001, 3000) g");
    await client.end();
    client = await freshCompute();
    await client.query('SET enable_seqscan = off');
    const { rows } = await client.query<{ c: number }>('SELECT count(*)::int AS c FROM trunc WHERE n > 0');
    assert.equal(rows[0]?.c, 2_020);
    await client.query('SET enable_seqscan = on');
    assert.equal((await client.query<{ c: number }>('SELECT count(*)::int AS c FROM trunc')).rows[0]?.c, 2_020);
    await client.query('DELETE FROM trunc WHERE n > 20');
    await client.query('VACUUM trunc');
    assert.deepEqual(await size(client), small);
    await agreesWithStorage(client);
    await client.end();
  });

  it('tablespaces in place: tables, indexes, a database, an empty one, and after they are dropped', async () => {
    let client = await admin();
    await client.query('SET allow_in_place_tablespaces = on');
    await client.query("CREATE TABLESPACE own LOCATION ''");
    await client.query("CREATE TABLESPACE empty LOCATION ''");
    await client.query('CREATE TABLE ts (n int PRIMARY KEY USING INDEX TABLESPACE own, f text) TABLESPACE own');
    await client.query("INSERT INTO ts SELECT g, repeat('x', 100) FROM generate_series(1, 5000) g");
    await client.query('CREATE UNLOGGED TABLE ts_unlogged (n int) TABLESPACE own');
    await client.query('CREATE DATABASE in_own TABLESPACE own STRATEGY file_copy');
    const inOwn = await inside.admin(undefined, 'in_own');
    await inOwn.query('CREATE TABLE there AS SELECT generate_series(1, 100) AS n');
    await inOwn.end();
    await client.query('CREATE EXTENSION bloom; CREATE UNLOGGED TABLE bl (n int); CREATE INDEX bl_i ON bl USING bloom (n)');
    for (const how of ['suspend', 'kill']) {
      await client.end();
      if (how === 'suspend') assert.equal((await cluster.cli(['suspend'])).code, 0);
      client = how === 'kill' ? await freshCompute() : await admin();
      const { rows } = await client.query<{ c: number }>('SELECT count(*)::int AS c FROM ts');
      assert.equal(rows[0]?.c, 5_000, how);
      await client.query('SET enable_seqscan = off');
      assert.equal((await client.query('SELECT 1 FROM ts WHERE n = 4321')).rowCount, 1);
      assert.equal((await client.query('SELECT 1 FROM ts_unlogged')).rowCount, 0);
      // Bloom's init fork is in no WAL; it is kept when a compute suspends.
      await client.query('INSERT INTO bl SELECT generate_series(1, 100)');
      assert.equal((await client.query('SELECT 1 FROM bl WHERE n = 7')).rowCount, 1, how);
      const there = await inside.admin(undefined, 'in_own');
      assert.equal((await there.query<{ c: number }>('SELECT count(*)::int AS c FROM there')).rows[0]?.c, 100);
      await agreesWithStorage(there);
      await there.end();
      await client.query('CREATE TABLE in_empty AS SELECT 1 AS n');
      await client.query('ALTER TABLE in_empty SET TABLESPACE empty');
      await agreesWithStorage(client);
      await client.query('DROP TABLE in_empty');
    }
    await client.query('DROP DATABASE in_own');
    await client.query('DROP TABLE ts, ts_unlogged');
    await client.query('CHECKPOINT'); // files of dropped relations go with it
    await client.query('DROP TABLESPACE own');
    await client.query('DROP TABLESPACE empty');
    await client.end();
    client = await freshCompute();
    assert.equal((await client.query("SELECT 1 FROM pg_tablespace WHERE spcname IN ('own', 'empty')")).rowCount, 0);
    await client.end();
  });

  it(`an aborted transaction with ${BULK_RELATIONS} relations: ingest does not stall, and nothing of it stays`, async (t) => {
    let client = await admin();
    await client.query('CREATE DATABASE bystander');
    const bystander = await inside.admin(undefined, 'bystander');
    await bystander.query('CREATE TABLE ticks (n int)');
    const { project, timeline } = inside.branch();
    const stored = async (at: number): Promise<void> => {
      await eventually(
        'storage has the commit',
        async () => (parseLsn((await inside.pageserver.status(project, timeline)).lastRecordLsn) + PAGE >= at ? true : undefined),
        60_000,
      );
    };
    // The relations of the new database are among those of before.
    await stored(await insertLsn(bystander));
    const relationsBefore = await relationCount();
    const bulk = await inside.admin();
    const { rows: pids } = await bulk.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    let done = false;
    const work = (async () => {
      await bulk.query('BEGIN');
      await bulk.query(`DO $$ BEGIN FOR i IN 1..${BULK_RELATIONS} LOOP EXECUTE 'CREATE TABLE bulk_' || i || ' (n int)'; END LOOP; END $$`);
      await bulk.query('ROLLBACK');
    })().finally(() => {
      done = true;
    });
    let [ticks, slowest, lag] = [0, 0, 0];
    while (!done) {
      const started = performance.now();
      await bystander.query('INSERT INTO ticks VALUES ($1)', [++ticks]);
      slowest = Math.max(slowest, performance.now() - started);
      // Storage keeps up: what was just committed can be read there.
      const at = await insertLsn(bystander);
      const asked = performance.now();
      await stored(at);
      lag = Math.max(lag, performance.now() - asked);
    }
    await work;
    assert.ok(must(pids[0], 'pid').pid > 0);
    t.diagnostic(
      `${ticks} commits beside it, the slowest took ${Math.round(slowest)} ms; storage was at most ${Math.round(lag)} ms behind one`,
    );
    assert.ok(slowest < COMMIT_STALL_MS, `a commit beside it took ${Math.round(slowest)} ms`);
    assert.ok(lag < 2 * COMMIT_STALL_MS, `storage was ${Math.round(lag)} ms behind`);
    assert.ok(ticks > 2, `${ticks} commits went on beside it`);
    await bulk.end();
    await bystander.end();
    await client.end();
    client = await freshCompute();
    assert.equal((await client.query("SELECT 1 FROM pg_class WHERE relname LIKE 'bulk\\_%'")).rowCount, 0);
    const again = await inside.admin(undefined, 'bystander');
    assert.equal((await again.query<{ c: number }>('SELECT count(*)::int AS c FROM ticks')).rows[0]?.c, ticks);
    await again.end();
    assert.ok((await relationCount()) - relationsBefore < 100, 'the relations are gone from storage too');
    await client.end();

    async function relationCount(): Promise<number> {
      const { pageHost, pagePort } = inside.manager.pageserver;
      using source = new PageSource({ host: pageHost, port: pagePort, token: internalToken(inside.secret, 'service'), project, timeline });
      return eventually('a start bundle', async () => {
        const { lastRecordLsn } = await inside.pageserver.status(project, timeline);
        return (await source.startBundle(parseLsn(lastRecordLsn))).relations.length;
      });
    }
  });
});
