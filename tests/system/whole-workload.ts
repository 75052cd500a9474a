/** SQL that leaves something of every kind in a database (every index type, sequences, TOAST, multixacts, prepared transactions, truncation, vacuum,
 *  database copies), and the questions whose answers must not change when the compute is replaced. */
import type pg from 'pg';

/** Kept small: a few seconds on a busy machine. Needs max_prepared_transactions. */
export async function work(client: pg.Client): Promise<void> {
  await client.query(`
    CREATE TABLE item (id bigserial PRIMARY KEY, k int NOT NULL, word text COLLATE "C", box box, tags int[], doc tsvector, span int4range, addr inet, filler text);
    INSERT INTO item (k, word, box, tags, doc, span, addr, filler)
      SELECT i % 97, 'word ' || md5(i::text), box(point(i, i % 50), point(i + 3, i % 50 + 2)), ARRAY[i % 7, i % 31, i], to_tsvector('simple', 'a' || i % 11 || ' b' || i % 101),
             int4range(i, i + 5), ('10.0.' || i % 250 || '.' || i % 7)::inet, repeat('f', i % 90)
      FROM generate_series(1, 3000) i;
    CREATE INDEX item_btree ON item (k, word);
    CREATE INDEX item_hash ON item USING hash (word);
    CREATE INDEX item_gin ON item USING gin (tags);
    CREATE INDEX item_fts ON item USING gin (doc) WITH (fastupdate = on);
    CREATE INDEX item_gist ON item USING gist (box);
    CREATE INDEX item_spgist ON item USING spgist (word);
    CREATE INDEX item_spgist_inet ON item USING spgist (addr inet_ops);
    CREATE INDEX item_gist_range ON item USING gist (span);
    CREATE INDEX item_brin ON item USING brin (id) WITH (pages_per_range = 4);
    INSERT INTO item (k, word, box, tags, doc, span, addr, filler)
      SELECT i % 97, 'later ' || md5(i::text), box(point(i, i % 50), point(i + 3, i % 50 + 2)), ARRAY[i % 7, i % 31, i], to_tsvector('simple', 'a' || i % 11 || ' c' || i % 101),
             int4range(i, i + 5), '2001:db8::1', 'x' FROM generate_series(1, 1000) i;
    UPDATE item SET k = k + 1, filler = filler || 'u' WHERE id % 5 = 0;
    DELETE FROM item WHERE id % 13 = 0;
    CREATE TABLE long_values (id int PRIMARY KEY, big text, packed text);
    ALTER TABLE long_values ALTER packed SET STORAGE EXTENDED, ALTER big SET STORAGE EXTERNAL;
    INSERT INTO long_values SELECT i, repeat(md5(i::text), 400), repeat('abc' || i, 3000) FROM generate_series(1, 40) i;
    CREATE TABLE truncated (n int); INSERT INTO truncated SELECT generate_series(1, 5000); TRUNCATE truncated; INSERT INTO truncated VALUES (42);
    CREATE TABLE shrunk (n int, f text); INSERT INTO shrunk SELECT i, repeat('s', 100) FROM generate_series(1, 5000) i;
    CREATE TABLE part (d int, v text) PARTITION BY RANGE (d);
    CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (50); CREATE TABLE part_2 PARTITION OF part DEFAULT;
    INSERT INTO part SELECT i % 100, 'p' || i FROM generate_series(1, 500) i;
    CREATE SEQUENCE counter INCREMENT 3; SELECT nextval('counter') FROM generate_series(1, 40);
    CREATE UNLOGGED TABLE scratch (n int); INSERT INTO scratch VALUES (1);
    CREATE MATERIALIZED VIEW summary AS SELECT k, count(*) AS c FROM item GROUP BY k`);
  await client.query('DELETE FROM shrunk WHERE n > 500');
  await client.query('VACUUM shrunk'); // gives its tail back
  await client.query('VACUUM (FREEZE, ANALYZE) item');
  await client.query('CLUSTER item USING item_btree');
  await client.query('VACUUM FULL part_1');
  await client.query('REINDEX TABLE long_values');
  // Row locks of several transactions at once make multixacts: subtransactions are enough.
  await client.query(
    'BEGIN; SELECT 1 FROM long_values WHERE id = 1 FOR KEY SHARE; SAVEPOINT a; SELECT 1 FROM long_values WHERE id = 1 FOR UPDATE; SAVEPOINT b',
  );
  await client.query("UPDATE long_values SET big = 'changed' WHERE id = 1; ROLLBACK TO b; RELEASE a; COMMIT");
  await client.query(
    "BEGIN; INSERT INTO truncated VALUES (43); SELECT 1 FROM item WHERE id = 1 FOR UPDATE; PREPARE TRANSACTION 'kept open'",
  );
}

/** Both ways to copy a database. */
export async function copyDatabases(client: pg.Client): Promise<void> {
  for (const strategy of ['wal_log', 'file_copy'])
    await client.query(`CREATE DATABASE by_${strategy} TEMPLATE template0 STRATEGY ${strategy}`);
}

const QUESTIONS = [
  "SELECT count(*), sum(k), sum(length(filler)), md5(string_agg(word, ',' ORDER BY id)) FROM item",
  "SELECT count(*) FROM item WHERE k BETWEEN 10 AND 20 AND word > 'word 5'",
  'SELECT count(*) FROM item WHERE word = (SELECT word FROM item ORDER BY id LIMIT 1)',
  'SELECT count(*) FROM item WHERE tags @> ARRAY[3, 17]',
  "SELECT count(*) FROM item WHERE doc @@ 'a3 & b7'::tsquery",
  'SELECT count(*) FROM item WHERE box && box(point(100, 10), point(200, 20))',
  "SELECT count(*) FROM item WHERE word ^@ 'word 3f'",
  "SELECT count(*) FROM item WHERE addr << '10.0.17.0/24'",
  'SELECT count(*) FROM item WHERE span && int4range(400, 420)',
  'SELECT count(*) FROM item WHERE id BETWEEN 100 AND 300',
  "SELECT sum(length(big)), sum(length(packed)), md5(string_agg(big || packed, '' ORDER BY id)) FROM long_values",
  'SELECT * FROM truncated ORDER BY n',
  "SELECT count(*), sum(n), pg_relation_size('shrunk') FROM shrunk",
  'SELECT tableoid::regclass::text, count(*), sum(d) FROM part GROUP BY 1 ORDER BY 1',
  'SELECT sum(k), sum(c) FROM summary',
  'SELECT gid FROM pg_prepared_xacts',
  "SELECT count(*), sum(relpages) FROM pg_class WHERE relname LIKE 'item%'",
];

/** Answers with indexes where there are some; the same in a sequential scan is asked by {@link agree}. */
export async function answers(client: pg.Client, sequential = false): Promise<unknown[]> {
  const off = sequential ? 'enable_indexscan, enable_bitmapscan, enable_indexonlyscan' : 'enable_seqscan';
  for (const name of off.split(', ')) await client.query(`SET ${name} = off`);
  const out: unknown[] = [];
  for (const question of QUESTIONS) out.push((await client.query(question)).rows);
  for (const name of off.split(', ')) await client.query(`RESET ${name}`);
  return out;
}

/** Every btree of user tables and catalogs against its heap, and every heap, by contrib's amcheck. Needs a superuser. */
export async function checkStructures(admin: pg.Client): Promise<number> {
  await admin.query('CREATE EXTENSION IF NOT EXISTS amcheck');
  const { rows } = await admin.query<{ n: string }>(`
    SELECT count(bt_index_parent_check(i.indexrelid, heapallindexed => true, rootdescend => true)) AS n FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid AND c.relkind = 'i'`);
  const bad = await admin.query(
    `SELECT c.oid::regclass::text AS relation, v.* FROM pg_class c, verify_heapam(c.oid, check_toast => true) v WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'`,
  );
  if (bad.rows.length > 0) throw new Error(`amcheck: ${JSON.stringify(bad.rows.slice(0, 5))}`);
  return Number(rows[0]?.n);
}
