/** Sections 7.5 and 7.6: real programs through the proxy, unmodified; amcheck and dumps agree after kills. Programs that are not on the
 *  machine are skipped by name. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { Cluster, ClusterInternals, StockPostgres, eventually, findTool } from '@lakebase/testkit';
import { sql } from 'drizzle-orm';
import { drizzle } from 'drizzle-orm/node-postgres';
import { integer, pgTable, text } from 'drizzle-orm/pg-core';
import pg from 'pg';
import postgres from 'postgres';

const run = promisify(execFile);

describe('programs through the proxy', () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await Cluster.start();
  });
  after(() => cluster[Symbol.asyncDispose]());
  const plain = (): string => cluster.url.replace(/\?.*$/, '') + '?sslmode=disable';

  const psql = findTool('psql');
  it('psql, over TLS where it can, and plain', { skip: psql === undefined ? 'no psql on this machine' : false }, async () => {
    for (const mode of ['prefer', 'disable']) {
      const { stdout } = await run(psql as string, [
        '-X',
        '-A',
        '-t',
        '-c',
        'SELECT 6 * 7',
        `${cluster.url.replace(/\?.*$/, '')}?sslmode=${mode}`,
      ]);
      assert.equal(stdout.trim(), '42');
    }
  });

  it('node-postgres over TLS', async () => {
    const client = new pg.Client({ connectionString: plain().replace(/\?.*$/, ''), ssl: { rejectUnauthorized: false } }); // the default certificate is self-signed
    await client.connect();
    assert.equal((await client.query<{ n: number }>('SELECT 6 * 7 AS n')).rows[0]?.n, 42);
    await client.end();
  });

  it('psql with a wrong password, an unknown role, an unknown database: the errors Postgres gives', {
    skip: psql === undefined ? 'no psql on this machine' : false,
  }, async () => {
    const url = new URL(plain());
    const refused = async (change: (u: URL) => void): Promise<string> => {
      const u = new URL(url);
      change(u);
      return run(psql as string, ['-X', '-c', 'SELECT 1', u.toString()]).then(
        () => 'accepted',
        (e: { stderr: string }) => e.stderr,
      );
    };
    assert.match(
      await refused((u) => {
        u.password = 'wrong';
      }),
      /password authentication failed for user "owner"/,
    );
    assert.match(
      await refused((u) => {
        u.username = 'nobody-here';
      }),
      /password authentication failed for user "nobody-here"/,
    );
    assert.match(
      await refused((u) => {
        u.pathname = '/absent';
      }),
      /database "absent" does not exist/,
    );
    assert.match(
      await refused((u) => {
        u.username = 'lakebase_admin';
      }),
      /authentication failed|not permitted|reserved/,
    );
  });

  const pgbench = findTool('pgbench');
  for (const [mode, args] of [
    ['simple', ['-M', 'simple']],
    ['extended', ['-M', 'extended']],
    ['prepared', ['-M', 'prepared']],
    ['select-only', ['-S']],
    ['simple-update', ['-N']],
    ['connect each time', ['-C']],
  ] as const) {
    it(`pgbench, ${mode}`, { skip: pgbench === undefined ? 'no pgbench on this machine' : false }, async () => {
      const env = { ...process.env, PGPASSWORD: decodeURIComponent(new URL(plain()).password), PGSSLMODE: 'disable' };
      const where = ['-h', '127.0.0.1', '-p', String(cluster.pgPort), '-U', 'owner'];
      if (mode === 'simple') await run(pgbench as string, [...where, '-i', '-q', 'databricks_postgres'], { env });
      const { stdout } = await run(pgbench as string, [...where, '-n', '-c', '2', '-t', '20', ...args, 'databricks_postgres'], { env });
      assert.match(stdout, /number of transactions actually processed: 40\/40/);
      assert.match(stdout, /number of failed transactions: 0/);
    });
  }

  it('node-postgres: parameters, a transaction, COPY-sized results, NOTIFY', async () => {
    const client = await cluster.connect();
    const heard = new Promise<string | undefined>((resolve) => client.once('notification', (n) => resolve(n.payload)));
    await client.query('LISTEN news');
    await client.query("NOTIFY news, 'hello'");
    assert.equal(await heard, 'hello');
    const { rows } = await client.query<{ g: number }>('SELECT g FROM generate_series(1, $1::int) g', [50_000]);
    assert.equal(rows.length, 50_000);
    await client.query('BEGIN');
    await client.query('CREATE TABLE np (n int)');
    await client.query('ROLLBACK');
    await assert.rejects(client.query('SELECT * FROM np'), { code: '42P01' });
    await client.end();
  });

  it('node-postgres: cancel reaches the right query', async () => {
    const pool = new pg.Pool({ connectionString: plain(), max: 2 });
    const running = pool.query('SELECT pg_sleep(30)').then(
      () => 'finished',
      (e: { code?: string }) => e.code,
    );
    await eventually('the query runs', async () => {
      const { rows } = await pool.query<{ pid: number }>(
        "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)' AND state = 'active'",
      );
      if (rows[0] === undefined) return undefined;
      await pool.query('SELECT pg_cancel_backend($1)', [rows[0].pid]);
      return true;
    });
    assert.equal(await running, '57014');
    await pool.end();
  });

  it('postgres.js', async () => {
    const q = postgres(plain(), { max: 3, onnotice: () => {} });
    await q`CREATE TABLE pj (n int, t text)`;
    await q`INSERT INTO pj ${q([
      { n: 1, t: 'a' },
      { n: 2, t: 'b' },
    ])}`;
    const rows = await Promise.all([1, 2].map((n) => q<{ t: string }[]>`SELECT t FROM pj WHERE n = ${n}`));
    assert.deepEqual(
      rows.map((r) => r[0]?.t),
      ['a', 'b'],
    );
    await q.end();
  });

  it('drizzle', async () => {
    const pool = new pg.Pool({ connectionString: plain() });
    const db = drizzle(pool);
    const users = pgTable('dz_users', { id: integer('id').primaryKey(), name: text('name') });
    await db.execute(sql`CREATE TABLE dz_users (id int PRIMARY KEY, name text)`);
    await db.insert(users).values([
      { id: 1, name: 'ada' },
      { id: 2, name: 'bob' },
    ]);
    assert.deepEqual(await db.select().from(users).orderBy(users.id), [
      { id: 1, name: 'ada' },
      { id: 2, name: 'bob' },
    ]);
    await pool.end();
  });

  const pgDump = findTool('pg_dump', 18);
  const pgRestore = findTool('pg_restore', 18);
  it('pg_dump | pg_restore into a stock server agrees; amcheck finds nothing, after a crash', {
    skip: pgDump === undefined || pgRestore === undefined ? 'no pg_dump of major 18 on this machine' : false,
  }, async () => {
    cluster.kill('postgres');
    const client = await eventually('a new compute', () => cluster.connect());
    await client.query('DROP TABLE IF EXISTS pj, dz_users');
    await client.end();
    await using stock = await StockPostgres.start();
    const env = { ...process.env, PGPASSWORD: decodeURIComponent(new URL(plain()).password) };
    const from = ['-h', '127.0.0.1', '-p', String(cluster.pgPort), '-U', 'owner', '-d', 'databricks_postgres', '--no-owner', '--no-acl'];
    const to = ['-h', stock.directory, '-p', String(stock.port), '-U', stock.clientConfig.user];
    const custom = `${stock.directory}/dump`;
    await run(pgDump as string, [...from, '-Fc', '-f', custom], { env });
    await run(pgRestore as string, [...to, '-d', 'postgres', '--no-owner', '--no-acl', custom]);
    const text = async (args: readonly string[], e: NodeJS.ProcessEnv): Promise<string> =>
      (
        await run(pgDump as string, [...args, '--no-owner', '--no-acl', '--inserts', '--rows-per-insert=1000'], {
          env: e,
          maxBuffer: 1 << 28,
        })
      ).stdout
        .replaceAll(/^\\(un)?restrict .*$/gm, '')
        .replaceAll(/^-- Dumped .*$/gm, '');
    assert.equal(await text(from, env), await text([...to, '-d', 'postgres'], process.env));
    await checkIndexes(new ClusterInternals(cluster));
  });
});

/** Every B-tree of the database: structure, order and that every heap tuple is indexed; every heap: tuple by tuple. */
async function checkIndexes(inside: ClusterInternals): Promise<void> {
  const admin = await inside.admin();
  await admin.query('CREATE EXTENSION IF NOT EXISTS amcheck');
  const { rows } = await admin.query<{ n: string }>(`
    SELECT count(bt_index_parent_check(c.oid, true, true)) AS n FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam
    WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid`);
  assert.ok(Number(rows[0]?.n) > 100);
  const heaps = await admin.query(
    "SELECT c.oid::regclass, v.* FROM pg_class c, LATERAL verify_heapam(c.oid) v WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'",
  );
  assert.deepEqual(heaps.rows, []);
  await admin.end();
}
