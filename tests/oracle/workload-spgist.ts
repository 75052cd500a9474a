/** SP-GiST: radix and quad trees, nulls, chains that move and split, inner tuples that grow, split and move, and what VACUUM does to all. */
import { each, type Scene } from './workload.ts';

export async function spgistWorkload({ db, scale }: Scene): Promise<void> {
  await each(db, [
    // Root that is a leaf, for values and for nulls.
    'CREATE TABLE small(id int, t text)',
    'CREATE INDEX small_t ON small USING spgist(t)',
    "INSERT INTO small SELECT i, 'v' || i FROM generate_series(1, 30) i",
    'INSERT INTO small SELECT i, NULL FROM generate_series(1, 30) i',
    'DELETE FROM small WHERE id % 2 = 0',
    'VACUUM small',
    // Common prefixes that later break up, first characters one after another.
    'CREATE TABLE radix(id int, t text) WITH (fillfactor = 20)',
    'CREATE INDEX radix_t ON radix USING spgist(t)',
    `INSERT INTO radix SELECT i, 'https://example.org/' || md5(i::text) || repeat('/x', 20) FROM generate_series(1, ${500 * scale}) i`,
    "INSERT INTO radix SELECT i, 'https://' || md5(i::text) FROM generate_series(1, 100) i",
    // Inner tuples of the second level begin small on one page, then get more nodes than it has room for, and move.
    'INSERT INTO radix SELECT i, chr(65 + i % 14) || chr(33 + i / 14) || repeat(md5(i::text), 7) FROM generate_series(0, 559) i',
    'CHECKPOINT',
    "INSERT INTO radix SELECT i, chr(65 + i % 14) || chr(72 + i / 14) || 't' FROM generate_series(0, 755) i",
    "INSERT INTO radix SELECT i, chr(65 + i % 14) || chr(150 + 64 * (i / 14)) || 't' FROM generate_series(0, 391) i",
    'INSERT INTO radix SELECT i, NULL FROM generate_series(1, 500) i',
    "INSERT INTO radix SELECT i, 'same' FROM generate_series(1, 700) i",
    'DELETE FROM radix WHERE id % 3 = 0',
    'VACUUM radix',
    `INSERT INTO radix SELECT i, 'https://example.com/' || md5((i * 3)::text) FROM generate_series(1, ${300 * scale}) i`,
    'DELETE FROM radix WHERE id % 2 = 0',
    'SELECT txid_current()',
    'VACUUM radix',
    'SELECT txid_current()',
    'VACUUM radix',
    'INSERT INTO radix SELECT i, md5(i::text) FROM generate_series(1, 300) i',
    // Two kinds of tree over points.
    'CREATE TABLE points(id int, p point) WITH (fillfactor = 20)',
    'CREATE INDEX points_quad ON points USING spgist(p)',
    'CREATE INDEX points_kd ON points USING spgist(p kd_point_ops)',
    `INSERT INTO points SELECT i, point(i * 37 % 1009, i * 53 % 1013) FROM generate_series(1, ${500 * scale}) i`,
    'DELETE FROM points WHERE p[0] < 500',
    'VACUUM points',
    'SELECT txid_current()',
    'VACUUM points',
    'INSERT INTO points SELECT i, point(i, i) FROM generate_series(1, 300) i',
    'CREATE INDEX radix_built ON radix USING spgist(t)',
    "INSERT INTO radix SELECT i, 'after the build ' || i FROM generate_series(1, 200) i",
    'DELETE FROM radix',
    'VACUUM radix',
    'SELECT txid_current()',
    'VACUUM radix',
  ]);
}
