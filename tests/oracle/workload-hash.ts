/** Hash indexes: bucket splits, overflow chains that grow, are squeezed and are vacuumed, dead items removed on insertion. */
import { each, type Scene } from './workload.ts';

export async function hashWorkload({ db, scale }: Scene): Promise<void> {
  await each(db, [
    // Few entries per bucket: many splits, each of which leaves a cleanup to the next one or to VACUUM.
    'CREATE TABLE split(id int, k int)',
    // Now it is known to be empty: two buckets to start with.
    'VACUUM split',
    'CREATE INDEX split_k ON split USING hash(k) WITH (fillfactor = 10)',
    `INSERT INTO split SELECT i, i * 7919 FROM generate_series(1, ${700 * scale}) i`,
    'CHECKPOINT',
    'VACUUM split',
    'CHECKPOINT',
    `INSERT INTO split SELECT i, i * 7919 FROM generate_series(10001, ${10000 + 300 * scale}) i`,
    'CREATE INDEX split_id ON split USING hash(id) WITH (fillfactor = 20)',
    // A build that expects many rows allocates buckets in phases: the metapage's arithmetic.
    'CREATE TABLE expected(i int)',
    'INSERT INTO expected VALUES (1)',
    "UPDATE pg_class SET reltuples = 60000, relpages = 1 WHERE oid = 'expected'::regclass",
    'CREATE INDEX expected_i ON expected USING hash(i) WITH (fillfactor = 10)',
    // One key: a chain of overflow pages, thinned out so that VACUUM moves what is left towards the bucket page and frees the rest.
    'CREATE TABLE chain(id int, k int)',
    'CREATE INDEX chain_k ON chain USING hash(k)',
    `INSERT INTO chain SELECT i, 42 FROM generate_series(1, 2600) i`,
    'CHECKPOINT',
    'DELETE FROM chain WHERE id % 10 < 3 OR id BETWEEN 900 AND 1100',
    'VACUUM chain',
    'INSERT INTO chain SELECT i, 42 FROM generate_series(3001, 3400) i',
    'DELETE FROM chain WHERE id > 100 AND id % 20 <> 0',
    'VACUUM chain',
    // Entries that a scan finds dead make room for new ones.
    'INSERT INTO chain SELECT i, 42 FROM generate_series(4001, 4900) i',
    'DELETE FROM chain WHERE id > 4100',
    'SET enable_seqscan = off',
    'SET enable_bitmapscan = off',
    'SELECT count(*) FROM chain WHERE k = 42',
    'SELECT count(*) FROM chain WHERE k = 42',
    'INSERT INTO chain SELECT i, 42 FROM generate_series(5001, 5300) i',
    'RESET enable_seqscan',
    'RESET enable_bitmapscan',
    'VACUUM chain',
  ]);
}
