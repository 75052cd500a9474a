/** Section 5: every path a stock server takes on its files, then a crash, then a fresh compute that has only storage to read from. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { must } from '@lakebase/base';
import { unprivilegedAccount } from '@lakebase/service-kit';
import { Cluster, ClusterInternals, eventually, findTool } from '@lakebase/testkit';
import pg from 'pg';

const run = promisify(execFile);

/** Statements that leave something behind, each with a query whose answer must be the same on the next compute. */
const STEPS: readonly (readonly [what: string, statements: readonly string[], check: string])[] = [
  [
    'VACUUM FULL',
    [
      'CREATE TABLE vf AS SELECT g AS n, md5(g::text) AS t FROM generate_series(1, 20000) g',
      'DELETE FROM vf WHERE n % 3 = 0',
      'VACUUM FULL vf',
    ],
    'SELECT count(*), sum(n), max(t) FROM vf',
  ],
  [
    'TRUNCATE and refill',
    [
      'CREATE TABLE tr AS SELECT g AS n FROM generate_series(1, 20000) g',
      'TRUNCATE tr',
      'INSERT INTO tr SELECT g FROM generate_series(1, 500) g',
    ],
    'SELECT count(*), sum(n) FROM tr',
  ],
  [
    'truncation by vacuum, then growth',
    [
      "CREATE TABLE tv AS SELECT g AS n, repeat('x', 300) AS f FROM generate_series(1, 20000) g",
      'DELETE FROM tv WHERE n > 500',
      'VACUUM tv',
      "INSERT INTO tv SELECT g, 'y' FROM generate_series(1, 9000) g",
    ],
    'SELECT count(*), sum(n), min(f) FROM tv',
  ],
  [
    'CLUSTER and a rewritten column',
    [
      'CREATE TABLE cl (n int PRIMARY KEY, t text)',
      'INSERT INTO cl SELECT g, md5(g::text) FROM generate_series(10000, 1, -1) g',
      'CLUSTER cl USING cl_pkey',
      'ALTER TABLE cl ALTER n TYPE bigint',
    ],
    'SELECT count(*), sum(n) FROM cl',
  ],
  [
    'TOAST',
    [
      "CREATE TABLE ts AS SELECT g AS n, string_agg(md5((g * 1000 + i)::text), '') AS t FROM generate_series(1, 100) g, generate_series(1, 500) i GROUP BY g",
    ],
    "SELECT count(*), sum(length(t)), md5(string_agg(t, '' ORDER BY n)) FROM ts",
  ],
  [
    'DROP and a table of the same name',
    ['CREATE TABLE dr AS SELECT generate_series(1, 1000) AS n', 'DROP TABLE dr', 'CREATE TABLE dr AS SELECT generate_series(1, 7) AS n'],
    'SELECT count(*), sum(n) FROM dr',
  ],
  [
    'subtransactions and row locks',
    [
      'CREATE TABLE su (n int PRIMARY KEY, v int)',
      'INSERT INTO su SELECT g, 0 FROM generate_series(1, 100) g',
      "DO $$ BEGIN FOR i IN 1..100 LOOP BEGIN UPDATE su SET v = i WHERE n = i; IF i % 2 = 0 THEN RAISE 'undo'; END IF; EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$",
    ],
    'SELECT count(*), sum(v) FROM su',
  ],
  [
    'materialised view and comment',
    ['CREATE MATERIALIZED VIEW mv AS SELECT n, v FROM su', "COMMENT ON TABLE su IS 'kept'"],
    "SELECT count(*), sum(v), obj_description('su'::regclass) FROM mv",
  ],
  ...(['hash', 'gin', 'gist', 'spgist', 'brin'] as const).map(
    (am) =>
      [
        `${am} index`,
        [
          `CREATE TABLE ix_${am} (n int, p point, a int[], t text)`,
          `INSERT INTO ix_${am} SELECT g, point(g % 100, g / 100), ARRAY[g % 50, g % 7], md5(g::text) FROM generate_series(1, 5000) g`,
          `CREATE INDEX ix_${am}_i ON ix_${am} USING ${am} (${{ hash: 't', gin: 'a', gist: 'p', spgist: 'p', brin: 'n' }[am]})`,
          `INSERT INTO ix_${am} SELECT g, point(g % 100, g / 100), ARRAY[g % 50, g % 7], md5(g::text) FROM generate_series(5001, 9000) g`,
          `DELETE FROM ix_${am} WHERE n % 5 = 0`,
          `VACUUM ix_${am}`,
          `INSERT INTO ix_${am} SELECT g, point(g % 100, g / 100), ARRAY[g % 50, g % 7], md5(g::text) FROM generate_series(9001, 10000) g`,
        ],
        `SELECT count(*), sum(n) FROM ix_${am} WHERE ${{ hash: "t = md5('777')", gin: 'a @> ARRAY[3]', gist: "p <@ box '(10,10),(30,30)'", spgist: "p <@ box '(10,10),(30,30)'", brin: 'n BETWEEN 300 AND 900' }[am]}`,
      ] as const,
  ),
];

describe('paths of a stock server', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  before(async () => {
    cluster = await Cluster.start();
    inside = new ClusterInternals(cluster);
  });
  after(() => cluster[Symbol.asyncDispose]());

  async function freshCompute(): Promise<pg.Client> {
    cluster.kill('postgres');
    return eventually('a new compute', () => cluster.connect());
  }

  it('each leaves the same answer on the next compute, by index and by scan', async () => {
    const client = await cluster.connect();
    const answers = new Map<string, unknown>();
    for (const [what, statements, check] of STEPS) {
      for (const statement of statements) await client.query(statement);
      answers.set(what, (await client.query(check)).rows);
    }
    await client.end();
    const next = await freshCompute();
    for (const scan of ['on', 'off'] as const) {
      await next.query(`SET enable_seqscan = ${scan}`);
      for (const [what, , check] of STEPS)
        assert.deepEqual((await next.query(check)).rows, answers.get(what), `${what}, sequential scans ${scan}`);
    }
    await next.end();
  });

  it('CREATE DATABASE by file copy and by WAL, then DROP DATABASE', async () => {
    const admin = await inside.admin();
    await admin.query('CREATE DATABASE source_db');
    const source = await inside.admin(undefined, 'source_db');
    await source.query('CREATE TABLE s AS SELECT g AS n FROM generate_series(1, 3000) g');
    await source.end();
    await admin.query('CREATE DATABASE by_copy TEMPLATE source_db STRATEGY file_copy');
    await admin.query('CREATE DATABASE by_wal TEMPLATE source_db STRATEGY wal_log');
    await admin.query('CREATE DATABASE gone TEMPLATE source_db STRATEGY file_copy');
    await admin.query('DROP DATABASE gone');
    await admin.end();
    await (await freshCompute()).end();
    for (const name of ['source_db', 'by_copy', 'by_wal']) {
      const db = await inside.admin(undefined, name);
      assert.deepEqual(
        (await db.query<{ c: string; s: string }>('SELECT count(*) AS c, sum(n) AS s FROM s')).rows,
        [{ c: '3000', s: '4501500' }],
        name,
      );
      await db.query('INSERT INTO s VALUES (0)');
      await db.end();
    }
    await assert.rejects(inside.admin(undefined, 'gone'), { code: '3D000' });
  });

  it('unlogged tables are empty on the next compute and work; temporary ones end with the session', async () => {
    const client = await cluster.connect();
    await client.query('CREATE UNLOGGED TABLE ul (n int PRIMARY KEY)');
    await client.query('INSERT INTO ul SELECT generate_series(1, 1000)');
    await client.query('CREATE TEMPORARY TABLE tmp AS SELECT generate_series(1, 1000) AS n');
    assert.equal((await client.query('SELECT 1 FROM ul, tmp WHERE ul.n = tmp.n')).rows.length, 1_000);
    await client.end();
    const next = await freshCompute();
    assert.equal((await next.query('SELECT 1 FROM ul')).rows.length, 0);
    await next.query('INSERT INTO ul SELECT generate_series(1, 10)');
    assert.equal((await next.query('SELECT 1 FROM ul WHERE n = 7')).rows.length, 1);
    await next.end();
  });

  it('a storage error is an I/O error of that query, and the compute lives on', async () => {
    const client = await cluster.connect();
    await client.query("CREATE TABLE io AS SELECT g AS n, repeat('x', 500) AS f FROM generate_series(1, 5000) g");
    await client.end();
    const next = await freshCompute();
    const { rows } = await next.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    cluster.kill('pageserver', 'SIGSTOP');
    const slow = next.query('SELECT count(*) FROM io');
    const held = await Promise.race([slow.then(() => 'answered'), new Promise((resolve) => setTimeout(() => resolve('held'), 1_500))]);
    assert.equal(held, 'held', 'the query waits while storage does not answer');
    cluster.kill('pageserver', 'SIGCONT');
    assert.equal(((await slow) as pg.QueryResult<{ count: string }>).rows[0]?.count, '5000');
    assert.deepEqual((await next.query('SELECT pg_backend_pid() AS pid')).rows, rows);
    await next.end();
  });

  const basebackup = findTool('pg_basebackup', 18);
  const amcheck = findTool('pg_amcheck', 18);
  const postgres = findTool('postgres', 18);
  it('pg_basebackup taken from a compute starts as a stock server with the same data', {
    skip: basebackup === undefined || postgres === undefined ? 'no pg_basebackup of major 18 on this machine' : false,
  }, async () => {
    const admin = await inside.admin();
    const { rows } = await admin.query<{ c: string; s: string }>('SELECT count(*) AS c, sum(n) AS s FROM vf');
    await admin.end();
    const compute = must(await inside.running(), 'compute');
    const account = unprivilegedAccount();
    const dir = mkdtempSync(join(tmpdir(), 'lb-bb-'));
    chmodSync(dir, 0o777);
    const ids = account === undefined ? {} : { uid: account.uid, gid: account.gid };
    try {
      await run(
        must(basebackup, 'pg_basebackup'),
        [
          '-h',
          must(compute.socketDir, 'socket'),
          '-p',
          String(compute.port),
          '-U',
          'lakebase_admin',
          '-D',
          join(dir, 'data'),
          '-X',
          'stream',
          '--checkpoint=fast',
        ],
        { ...ids, cwd: '/' },
      );
      const tools = must(postgres, 'postgres').replace(/\/postgres$/, '');
      writeFileSync(join(dir, 'hba'), 'local all all trust\n', { mode: 0o644 });
      await run(
        `${tools}/pg_ctl`,
        [
          '-D',
          join(dir, 'data'),
          '-w',
          '-o',
          `-c listen_addresses= -c unix_socket_directories=${dir} -c synchronous_standby_names= -c hba_file=${join(dir, 'hba')}`,
          '-l',
          join(dir, 'log'),
          'start',
        ],
        { ...ids, cwd: '/' },
      );
      const copy = new pg.Client({ host: dir, port: 5432, user: 'lakebase_admin', database: 'databricks_postgres' });
      await copy.connect();
      assert.deepEqual((await copy.query('SELECT count(*) AS c, sum(n) AS s FROM vf')).rows, rows);
      await copy.end();
      if (amcheck !== undefined)
        await run(amcheck, ['-h', dir, '-U', 'lakebase_admin', '--install-missing', '--heapallindexed', '-d', 'databricks_postgres'], {
          cwd: '/',
        });
      await run(`${tools}/pg_ctl`, ['-D', join(dir, 'data'), '-m', 'immediate', 'stop'], { ...ids, cwd: '/' });
    } finally {
      rmSync(dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
    }
  });
});
