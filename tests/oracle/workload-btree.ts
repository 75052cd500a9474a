/** B-trees: several levels, splits at both ends, deduplication, posting lists, deletion of items and pages, and growth after shrinking. */
import { each, type Scene } from './workload.ts';

export async function btreeWorkload({ db, server, scale }: Scene): Promise<void> {
  await each(db, [
    // Wide keys: few per page, so that a few thousand rows make four levels.
    'CREATE TABLE wide(id int, key text)',
    'CREATE UNIQUE INDEX wide_key ON wide(key)',
    `INSERT INTO wide SELECT i, md5((i * 7919)::text) || repeat(md5(i::text), 25) FROM generate_series(1, ${700 * scale}) i`,
    'DELETE FROM wide WHERE id % 5 <> 0',
    'VACUUM wide',
    `INSERT INTO wide SELECT i, md5((i * 7919)::text) || repeat(md5(i::text), 25) FROM generate_series(10001, ${10000 + 300 * scale}) i`,
    // Ascending and descending.
    'CREATE TABLE ordered(id int, key text)',
    'CREATE INDEX ordered_key ON ordered(key)',
    "INSERT INTO ordered SELECT i, lpad(i::text, 700, '0') FROM generate_series(1, 300) i",
    "INSERT INTO ordered SELECT i, lpad(i::text, 650, '0') FROM generate_series(900, 500, -1) i",
    // Everything goes but the right edge: pages are deleted, the fast root sinks; then the tree must grow again from there.
    'DELETE FROM ordered WHERE id < 898',
    'VACUUM ordered',
    'SELECT txid_current()',
    'VACUUM ordered',
    "INSERT INTO ordered SELECT i, lpad(i::text, 700, '0') FROM generate_series(1000, 1100) i",
    'VACUUM ordered',
    "INSERT INTO ordered SELECT i, lpad(i::text, 700, '0') FROM generate_series(1101, 1400) i",
  ]);
  await each(db, [
    // Duplicates: deduplication, then insertion into the middle of a posting list through recycled heap positions.
    'CREATE TABLE dup(id int, k int, f int) WITH (fillfactor = 90)',
    'CREATE INDEX dup_k ON dup(k)',
    `INSERT INTO dup SELECT i, i % 5, 0 FROM generate_series(1, ${1500 * scale}) i`,
    'DELETE FROM dup WHERE id % 11 = 3',
    'VACUUM dup',
    `INSERT INTO dup SELECT i, i % 5, 1 FROM generate_series(1, ${500 * scale}) i`,
    'DELETE FROM dup WHERE k = 2 AND id % 2 = 0',
    'VACUUM dup',
    `INSERT INTO dup SELECT i, 2, 1 FROM generate_series(1, ${300 * scale}) i`,
    // A key range goes away as a whole, with its posting lists.
    'DELETE FROM dup WHERE k = 4',
    'VACUUM (INDEX_CLEANUP on) dup',
    // Version churn of one row: bottom-up deletion.
    'CREATE TABLE churn(id int primary key, a int, b int)',
    'CREATE INDEX churn_a ON churn(a)',
    'CREATE INDEX churn_b ON churn(b)',
    'INSERT INTO churn SELECT i, i, i FROM generate_series(1, 300) i',
  ]);
  for (let i = 0; i < 12; i++)
    await each(db, [`UPDATE churn SET a = a + 1 WHERE id % 2 = ${i % 2}`, 'SELECT count(*) FROM churn WHERE a > 0']);
  await each(db, [
    // Index entries a scan found dead are removed when the page fills up.
    'CREATE TABLE dead(id int primary key, v text)',
    'INSERT INTO dead SELECT i FROM generate_series(1, 1000) i',
    'DELETE FROM dead WHERE id BETWEEN 100 AND 300',
    'SET enable_seqscan = off',
    'SET enable_bitmapscan = off',
    'SELECT count(*) FROM dead WHERE id BETWEEN 50 AND 400',
    'SELECT count(*) FROM dead WHERE id BETWEEN 50 AND 400',
    'INSERT INTO dead SELECT i FROM generate_series(100, 300) i',
    'DELETE FROM dead WHERE id BETWEEN 100 AND 300',
    'SELECT count(*) FROM dead WHERE id BETWEEN 50 AND 400',
    'INSERT INTO dead SELECT i FROM generate_series(1001, 2000) i',
    'INSERT INTO dead SELECT i FROM generate_series(100, 300) i',
    'RESET enable_seqscan',
    'RESET enable_bitmapscan',
    // Built at once, narrow fill, then filled.
    'CREATE INDEX CONCURRENTLY dead_v ON dead(v, id) WITH (fillfactor = 30)',
    'UPDATE dead SET v = $$w$$ WHERE id % 3 = 0',
    'REINDEX TABLE dead',
    'CREATE TABLE empty_index(i int primary key)',
    'CREATE TABLE inc(i int, t text)',
    'CREATE UNIQUE INDEX inc_i ON inc(i) INCLUDE (t)',
    "INSERT INTO inc SELECT i, repeat('i', 40) FROM generate_series(1, 900) i",
    'DELETE FROM inc WHERE i < 700',
    'VACUUM inc',
  ]);
  // Pages deleted above are reused once their deletion is old enough for every snapshot.
  const b = await server.client();
  await each(b, ['SELECT txid_current()', 'SELECT txid_current()']);
  await server.close(b);
  await each(db, [
    'VACUUM wide',
    'VACUUM ordered',
    'VACUUM inc',
    'VACUUM dup',
    `INSERT INTO wide SELECT i, md5((i * 7919)::text) || repeat(md5(i::text), 25) FROM generate_series(20001, ${20000 + 500 * scale}) i`,
    'INSERT INTO inc SELECT i, $$r$$ FROM generate_series(2000, 3200) i',
    `DELETE FROM wide WHERE id < 10150`,
    'VACUUM wide',
    'SELECT txid_current()',
    'VACUUM wide',
    'VACUUM wide',
  ]);
}
