/** GIN: the pending list and its flush, entry tree splits, posting lists that become trees, grow, shrink and lose pages. */
import { each, type Scene } from './workload.ts';

export async function ginWorkload({ db, scale }: Scene): Promise<void> {
  await each(db, [
    // About 0.6 kB that do not compress.
    "CREATE FUNCTION noise(i int) RETURNS text IMMUTABLE LANGUAGE sql RETURN (SELECT string_agg(md5(i::text || ':' || n), '') FROM generate_series(1, 18) n)",
    // Entry tree: wide keys split leaves, inner pages and the root.
    'CREATE TABLE entries(id int, a text[])',
    'CREATE INDEX entries_a ON entries USING gin(a) WITH (fastupdate = off)',
    `INSERT INTO entries SELECT i, ARRAY[noise(i), (i % 7)::text] FROM generate_series(1, ${260 * scale}) i`,
    'CHECKPOINT',
    'DELETE FROM entries WHERE id % 3 = 0',
    'VACUUM entries',
    `INSERT INTO entries SELECT i, ARRAY[noise(i), NULL] FROM generate_series(1001, ${1000 + 60 * scale}) i`,
    "INSERT INTO entries VALUES (1, '{}'), (2, NULL)",
    // Pending list: pages of many rows, rows of several pages, flush by size, on request and by VACUUM.
    'CREATE TABLE pending(id int, a int[])',
    'CREATE INDEX pending_a ON pending USING gin(a) WITH (fastupdate = on, gin_pending_list_limit = 64)',
    `INSERT INTO pending SELECT i, ARRAY[i % 3, i, i * 7] FROM generate_series(1, ${800 * scale}) i`,
    'INSERT INTO pending SELECT -i, ARRAY(SELECT generate_series(i, i + 900)) FROM generate_series(1, 3) i',
    'INSERT INTO pending SELECT i, ARRAY[1, 2] FROM generate_series(1, 300) i',
    "SELECT gin_clean_pending_list('pending_a')",
    'INSERT INTO pending SELECT i, ARRAY[1, 5] FROM generate_series(1, 100) i',
    'DELETE FROM pending WHERE id % 2 = 0',
    'VACUUM pending',
    // A list becomes a tree row by row: about 2.7 kB of distances.
    'CREATE TABLE list(id int, a int[], pad text) WITH (fillfactor = 10)',
    'CREATE INDEX list_a ON list USING gin(a) WITH (fastupdate = off)',
    `INSERT INTO list SELECT i, ARRAY[1], repeat('p', 300) FROM generate_series(1, 2300) i`,
    // Trees of several leaves from the start, full to the brim: updates add rows in their middle and split them.
    'CREATE TABLE tree WITH (fillfactor = 10) AS SELECT i AS id, ARRAY[1] AS a FROM generate_series(1, 24000) i',
    'CREATE INDEX tree_a ON tree USING gin(a) WITH (fastupdate = off)',
    'UPDATE tree SET a = ARRAY[1, 2] WHERE id % 40 = 0',
    // Rows go in stripes and as a block of whole leaves; the space is then used again, row by row and from the pending list.
    'DELETE FROM tree WHERE id BETWEEN 4000 AND 18000 OR id % 10 = 1',
    'VACUUM tree',
    'SELECT txid_current()',
    'VACUUM tree',
    `INSERT INTO tree SELECT i, ARRAY[1, 2] FROM generate_series(50001, ${50000 + 500 * scale}) i`,
    'ALTER INDEX tree_a SET (fastupdate = on, gin_pending_list_limit = 100000)',
    'INSERT INTO tree SELECT i, ARRAY[1, 3] FROM generate_series(60001, 61500) i',
    'VACUUM tree',
    'DELETE FROM tree WHERE id BETWEEN 60001 AND 61000',
    'CHECKPOINT',
    'VACUUM tree',
    'DROP FUNCTION noise',
  ]);
}
