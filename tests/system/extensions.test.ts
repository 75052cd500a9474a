/** Issue 3 section 1: every extension of contrib is created, those that store data store some in a table and an index, and all of it is there after a
 *  suspend: from indexes and from scans. What preloads a library is asked for in the endpoint's settings; a library that is not there, or that writes
 *  WAL of its own kind, is refused at the start and named. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';
import type pg from 'pg';

/** Languages need an interpreter's library of the machine; without it Postgres itself cannot create them. */
const NEEDS_THE_MACHINE = /could not load library .*: cannot open shared object file|could not access file ".*": No such file/;

/** What those that store data are filled with, and asked. Every table is `x_<extension>`; the question is asked with and without indexes. */
const STORES: Readonly<Record<string, { fill: string; ask: string }>> = {
  bloom: {
    fill: 'CREATE TABLE x_bloom AS SELECT i % 100 AS a, i % 77 AS b, i % 13 AS c FROM generate_series(1, 3000) i; CREATE INDEX ON x_bloom USING bloom (a, b, c); INSERT INTO x_bloom SELECT i % 100, i % 77, i % 13 FROM generate_series(1, 500) i; DELETE FROM x_bloom WHERE c = 5; VACUUM x_bloom',
    ask: 'SELECT count(*) FROM x_bloom WHERE a = 17 AND b = 3',
  },
  btree_gin: {
    fill: 'CREATE TABLE x_btree_gin AS SELECT i, i % 50 AS n, now()::date + i % 20 AS d FROM generate_series(1, 2000) i; CREATE INDEX ON x_btree_gin USING gin (n, d)',
    ask: 'SELECT count(*) FROM x_btree_gin WHERE n = 17',
  },
  btree_gist: {
    fill: "CREATE TABLE x_btree_gist (room int, during tsrange, EXCLUDE USING gist (room WITH =, during WITH &&)); INSERT INTO x_btree_gist SELECT i % 9, tsrange('2026-01-01'::timestamp + i * interval '1 day', '2026-01-02'::timestamp + i * interval '1 day') FROM generate_series(1, 900) i",
    ask: 'SELECT count(*), min(lower(during))::text FROM x_btree_gist WHERE room = 4',
  },
  citext: {
    fill: "CREATE TABLE x_citext (name citext PRIMARY KEY); INSERT INTO x_citext SELECT 'Name' || i FROM generate_series(1, 500) i",
    ask: "SELECT name FROM x_citext WHERE name = 'NAME77'",
  },
  cube: {
    fill: 'CREATE TABLE x_cube AS SELECT cube(ARRAY[i % 40, i % 30, i % 20]) AS c FROM generate_series(1, 2000) i; CREATE INDEX ON x_cube USING gist (c)',
    ask: "SELECT count(*) FROM x_cube WHERE c <@ '(5,5,5),(10,10,10)'",
  },
  earthdistance: {
    fill: 'CREATE TABLE x_earthdistance AS SELECT ll_to_earth(i % 80, i % 170) AS p FROM generate_series(1, 1000) i; CREATE INDEX ON x_earthdistance USING gist (p)',
    ask: 'SELECT count(*) FROM x_earthdistance WHERE earth_box(ll_to_earth(40, 40), 500000) @> p',
  },
  hstore: {
    fill: "CREATE TABLE x_hstore AS SELECT hstore(ARRAY['k' || i % 20, 'v' || i % 30, 'id', i::text]) AS h FROM generate_series(1, 2000) i; CREATE INDEX ON x_hstore USING gin (h); CREATE INDEX ON x_hstore USING gist (h)",
    ask: "SELECT count(*) FROM x_hstore WHERE h @> 'k7=>v7'",
  },
  intarray: {
    fill: 'CREATE TABLE x_intarray AS SELECT ARRAY[i % 10, i % 33, i] AS a FROM generate_series(1, 2000) i; CREATE INDEX ON x_intarray USING gist (a gist__int_ops); CREATE INDEX ON x_intarray USING gin (a gin__int_ops); CREATE INDEX ON x_intarray USING gist (a gist__intbig_ops)',
    ask: "SELECT count(*) FROM x_intarray WHERE a @@ '7&(17|18)'::query_int",
  },
  isn: {
    fill: "CREATE TABLE x_isn (n isbn PRIMARY KEY); INSERT INTO x_isn VALUES ('978-0-393-04002-9'), ('978-0-306-40615-7')",
    ask: "SELECT n::text FROM x_isn WHERE n = '978-0-393-04002-9'",
  },
  lo: {
    fill: "CREATE TABLE x_lo (n int, o lo); INSERT INTO x_lo SELECT i, lo_from_bytea(0, convert_to(repeat('large ' || i, 1000), 'UTF8')) FROM generate_series(1, 10) i",
    ask: "SELECT sum(length(lo_get(o))), md5(string_agg(md5(lo_get(o)), ',' ORDER BY n)) FROM x_lo",
  },
  ltree: {
    fill: "CREATE TABLE x_ltree AS SELECT ('top.a' || i % 9 || '.b' || i % 50 || '.c' || i)::ltree AS path FROM generate_series(1, 2000) i; CREATE INDEX ON x_ltree USING gist (path); CREATE INDEX ON x_ltree USING btree (path)",
    ask: "SELECT count(*) FROM x_ltree WHERE path <@ 'top.a4.b13'",
  },
  pg_trgm: {
    fill: "CREATE TABLE x_pg_trgm AS SELECT md5(i::text) || ' some words ' || i AS t FROM generate_series(1, 2000) i; CREATE INDEX ON x_pg_trgm USING gin (t gin_trgm_ops); CREATE INDEX ON x_pg_trgm USING gist (t gist_trgm_ops)",
    ask: "SELECT count(*) FROM x_pg_trgm WHERE t LIKE '%words 77%'",
  },
  pgcrypto: {
    fill: "CREATE TABLE x_pgcrypto AS SELECT i, pgp_sym_encrypt('secret ' || i, 'pass') AS c FROM generate_series(1, 10) i",
    ask: "SELECT string_agg(pgp_sym_decrypt(c, 'pass'), ',' ORDER BY i) FROM x_pgcrypto",
  },
  postgres_fdw: {
    fill: "CREATE TABLE behind AS SELECT generate_series(1, 100) AS n; DO $$ BEGIN EXECUTE format('CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host %L, port %L, dbname %L)', '/', '5432', current_database()); END $$; CREATE USER MAPPING FOR CURRENT_USER SERVER self OPTIONS (user 'lakebase_admin'); CREATE FOREIGN TABLE x_postgres_fdw (n int) SERVER self OPTIONS (table_name 'behind')",
    ask: 'SELECT sum(n) FROM x_postgres_fdw',
  },
  seg: {
    fill: "CREATE TABLE x_seg AS SELECT (i || ' .. ' || i + 3)::seg AS s FROM generate_series(1, 1000) i; CREATE INDEX ON x_seg USING gist (s)",
    ask: "SELECT count(*) FROM x_seg WHERE s && '100 .. 120'",
  },
  unaccent: {
    fill: "CREATE TEXT SEARCH CONFIGURATION plain (COPY = simple); ALTER TEXT SEARCH CONFIGURATION plain ALTER MAPPING FOR hword, hword_part, word WITH unaccent, simple; CREATE TABLE x_unaccent AS SELECT to_tsvector('plain', 'Hôtel numéro ' || i) AS v FROM generate_series(1, 100) i; CREATE INDEX ON x_unaccent USING gin (v)",
    ask: "SELECT count(*) FROM x_unaccent WHERE v @@ 'hotel & 77'::tsquery",
  },
  'uuid-ossp': {
    fill: 'CREATE TABLE x_uuid AS SELECT uuid_generate_v5(uuid_ns_url(), i::text) AS u FROM generate_series(1, 100) i',
    ask: "SELECT md5(string_agg(u::text, ',' ORDER BY u)) FROM x_uuid",
  },
};

describe('extensions', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  before(async () => {
    cluster = await Cluster.start();
    inside = new ClusterInternals(cluster);
  });
  after(() => cluster[Symbol.asyncDispose]());

  const cli = (...args: string[]): Promise<string> => cluster.lakebase(...args);
  async function restart(...settings: string[]): Promise<void> {
    if (settings.length > 0) await cli('endpoints', 'update', 'primary', ...settings.flatMap((s) => ['--set', s]));
    await cli('suspend');
  }

  async function ask(client: pg.Client, names: readonly string[]): Promise<Record<string, unknown>> {
    const found: Record<string, unknown> = {};
    for (const name of names) {
      const question = STORES[name]?.ask as string;
      await client.query('SET enable_seqscan = off');
      found[name] = (await client.query(question)).rows;
      await client.query(
        'SET enable_seqscan = on; SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off',
      );
      assert.deepEqual((await client.query(question)).rows, found[name], `${name}: a scan of the table says what the index says`);
      await client.query('RESET ALL');
    }
    return found;
  }

  it('all of contrib: created, filled, and the same after a suspend', async () => {
    await restart('shared_preload_libraries=pg_stat_statements');
    await (await cluster.connect()).end();
    const admin = await inside.admin();
    const { rows } = await admin.query<{ name: string }>("SELECT name FROM pg_available_extensions WHERE name <> 'plpgsql' ORDER BY name");
    const created: string[] = [];
    for (const { name } of rows) {
      try {
        await admin.query(`CREATE EXTENSION IF NOT EXISTS "${name}" CASCADE`);
        created.push(name);
      } catch (error) {
        const { message } = error as Error;
        assert.match(message, NEEDS_THE_MACHINE, `CREATE EXTENSION ${name}: ${message}`);
      }
    }
    assert.ok(created.length >= 45, `only ${created.length} of ${rows.length}: ${created.join(' ')}`);
    const stored = Object.keys(STORES).filter((name) => created.includes(name));
    assert.deepEqual(stored, Object.keys(STORES));
    for (const name of stored) await fill(admin, name);
    const answers = await ask(admin, stored);
    await admin.query("SELECT 'remember me' AS pg_stat_statements");
    await admin.end();

    await restart();
    await (await cluster.connect()).end();
    const again = await inside.admin();
    await setSocket(again);
    assert.deepEqual(await ask(again, stored), answers);
    const kept = await again.query("SELECT calls FROM pg_stat_statements WHERE query LIKE '%AS pg_stat_statements'");
    assert.equal(kept.rows.length, 1, 'pg_stat_statements remembers');
    const extensions = await again.query<{ n: string }>('SELECT count(*) AS n FROM pg_extension');
    assert.equal(Number(extensions.rows[0]?.n), created.length + 1);
    await again.end();
  });

  it('a crash after writing through generic WAL loses nothing', async () => {
    await (await cluster.connect()).end();
    const admin = await inside.admin();
    await admin.query('INSERT INTO x_bloom SELECT 7, 8, 9 FROM generate_series(1, 300)');
    await admin.end();
    cluster.kill('postgres');
    await (await eventually('a new compute', () => cluster.connect())).end();
    const again = await inside.admin();
    await again.query('SET enable_seqscan = off');
    assert.ok(Number((await again.query<{ n: string }>('SELECT count(*) AS n FROM x_bloom WHERE a = 7 AND b = 8')).rows[0]?.n) >= 300);
    await again.end();
  });

  it('an owner creates trusted extensions without being superuser', async () => {
    const client = await cluster.connect();
    await client.query('CREATE DATABASE other');
    await client.end();
    const other = await cluster.connect({ connectionString: cluster.url.replace(/\/databricks_postgres/, '/other') });
    await other.query('CREATE EXTENSION hstore; CREATE EXTENSION pg_trgm; CREATE EXTENSION citext');
    await assert.rejects(other.query('CREATE EXTENSION pageinspect'), { code: '42501' });
    await other.end();
  });

  it('a library that is not there, or a path, is refused by name', async () => {
    const path = await cluster.cli(['endpoints', 'update', 'primary', '--set', 'shared_preload_libraries=/tmp/evil.so']);
    assert.notEqual(path.code, 0);
    assert.match(path.stderr, /plain library names/);
    await restart('shared_preload_libraries=no_such_library');
    await assert.rejects(cluster.connect(), /shared_preload_libraries names no_such_library, which this Postgres has not/);
    await cli('endpoints', 'update', 'primary', '--set', 'work_mem=5MB');
    await (await cluster.connect()).end();
  });
});

async function fill(admin: pg.Client, name: string): Promise<void> {
  for (const statement of (STORES[name]?.fill ?? '').split(/; (?=[A-Z])(?![^$]*\$\$;)/)) {
    try {
      await admin.query(statement);
    } catch (error) {
      throw new Error(`${name}: ${statement.slice(0, 120)}: ${(error as Error).message}`, { cause: error });
    }
  }
  if (name === 'postgres_fdw') await setSocket(admin);
}

/** The compute's socket lies elsewhere after every start. */
async function setSocket(admin: pg.Client): Promise<void> {
  const { rows } = await admin.query<{ d: string }>("SELECT current_setting('unix_socket_directories') AS d");
  await admin.query(`ALTER SERVER self OPTIONS (SET host '${rows[0]?.d}')`);
}
