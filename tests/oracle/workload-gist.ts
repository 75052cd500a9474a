/** GiST: splits up to the root, several levels, deletion of items and pages, reuse of deleted pages, dead items removed on insertion. */
import { each, type Scene } from './workload.ts';

export async function gistWorkload({ db, scale }: Scene): Promise<void> {
  await each(db, [
    'CREATE TABLE spots(id int, p point) WITH (fillfactor = 20)',
    'CREATE INDEX spots_p ON spots USING gist(p)',
    `INSERT INTO spots SELECT i, point(i * 37 % 101, i * 53 % 103) FROM generate_series(1, ${900 * scale}) i`,
    // Wide signatures: a handful of tuples per inner page, so a few hundred rows make a deep tree.
    'CREATE TABLE words(id int, v tsvector)',
    'CREATE INDEX words_v ON words USING gist(v tsvector_ops(siglen = 1500))',
    `INSERT INTO words SELECT i, (SELECT string_agg(md5((i * n)::text), ' ') FROM generate_series(1, 40) n)::tsvector FROM generate_series(1, ${150 * scale}) i`,
    'CHECKPOINT',
    'DELETE FROM words WHERE id % 3 <> 0',
    'VACUUM words',
    // A region empties: its pages are deleted, and reused once no snapshot can still be on its way to them.
    'DELETE FROM spots WHERE p[0] < 70',
    'VACUUM spots',
    'SELECT txid_current()',
    'SELECT txid_current()',
    'VACUUM spots',
    'VACUUM spots',
    `INSERT INTO spots SELECT i, point(i * 37 % 71, i * 53 % 103) FROM generate_series(1, ${900 * scale}) i`,
    'CHECKPOINT',
    // Built at once, by sorting and by insertion; an exclusion constraint; then used.
    'CREATE INDEX spots_sorted ON spots USING gist(p)',
    'CREATE INDEX spots_inserted ON spots USING gist(p) WITH (buffering = on)',
    'CREATE TABLE booked(during int4range, EXCLUDE USING gist (during WITH &&))',
    'INSERT INTO booked SELECT int4range(i * 10, i * 10 + 5) FROM generate_series(1, 400) i',
    'UPDATE spots SET p = point(p[0] + 100, p[1]) WHERE id < 100',
    'VACUUM spots',
    // Items a scan found dead. Redo of this deletion marks the page as one from which tuples were deleted, the primary does not (gistprunepage):
    // a stock standby stops at its image. So these pages go unchecked here and are compared with the standby's files at the end.
    "SET wal_consistency_checking = 'heap, heap2, btree'",
    'CREATE TABLE killed(id int, p point)',
    'CREATE INDEX killed_p ON killed USING gist(p)',
    'INSERT INTO killed SELECT i, point(i % 50, i / 50) FROM generate_series(1, 800) i',
    'DELETE FROM killed WHERE id % 2 = 0',
    'SET enable_seqscan = off',
    'SET enable_bitmapscan = off',
    "SELECT count(*) FROM killed WHERE p <@ box '((-1,-1),(60,60))'",
    "SELECT count(*) FROM killed WHERE p <@ box '((-1,-1),(60,60))'",
    'RESET enable_seqscan',
    'RESET enable_bitmapscan',
    'INSERT INTO killed SELECT i, point(i % 50, i / 50) FROM generate_series(1, 800) i',
    'VACUUM killed',
    'RESET wal_consistency_checking',
  ]);
}
