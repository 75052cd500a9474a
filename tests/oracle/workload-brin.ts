/** BRIN: summaries that appear, widen in place, outgrow their page and go away; a range map that outgrows its pages. */
import { each, type Scene } from './workload.ts';

export async function brinWorkload({ db, scale }: Scene): Promise<void> {
  await each(db, [
    // One row per heap page and a summary per page.
    'CREATE TABLE ranges(id int, k int, t text) WITH (fillfactor = 10)',
    'ALTER TABLE ranges ALTER t SET STORAGE PLAIN',
    'CREATE INDEX ranges_k ON ranges USING brin(k) WITH (pages_per_range = 1)',
    `INSERT INTO ranges SELECT i, i * 10, repeat('x', 700) FROM generate_series(1, 300) i`,
    "SELECT brin_summarize_new_values('ranges_k')",
    'UPDATE ranges SET k = k + 1 WHERE id % 5 = 0',
    'INSERT INTO ranges SELECT i, NULL, $$y$$ FROM generate_series(1, 50) i',
    "SELECT brin_desummarize_range('ranges_k', 3), brin_desummarize_range('ranges_k', 40), brin_desummarize_range('ranges_k', 299)",
    "SELECT brin_summarize_range('ranges_k', 3)",
    'VACUUM ranges',
    // More ranges than one map page holds (1360): the map grows over a page of summaries, which move away first.
    `INSERT INTO ranges SELECT i, i * 10, repeat('x', 700) FROM generate_series(1001, ${2200 + 300 * scale}) i`,
    'VACUUM ranges',
    'CREATE INDEX ranges_built ON ranges USING brin(k, id) WITH (pages_per_range = 4)',
    'CHECKPOINT',
    'DELETE FROM ranges WHERE id > 2000',
    'VACUUM (TRUNCATE off) ranges',
    // Summaries of values about as wide as an index tuple may be: two or three per page, so that one that grows must move.
    'CREATE TABLE wide_ranges(id int, t text) WITH (fillfactor = 100)',
    'ALTER TABLE wide_ranges ALTER t SET STORAGE PLAIN',
    'CREATE INDEX wide_ranges_t ON wide_ranges USING brin(t) WITH (pages_per_range = 1)',
    'INSERT INTO wide_ranges SELECT i, chr(65 + i % 26) FROM generate_series(1, 1000) i',
    "SELECT brin_summarize_new_values('wide_ranges_t')",
    "UPDATE wide_ranges SET t = 'a' || repeat(md5(id::text), 60) WHERE id % 40 = 0",
    "INSERT INTO wide_ranges SELECT i, 'zz' || repeat(md5(i::text), 50) FROM generate_series(1, 60) i",
    "SELECT brin_summarize_new_values('wide_ranges_t')",
    "INSERT INTO wide_ranges SELECT i, '!' || repeat(md5(i::text), 60) FROM generate_series(1, 60) i",
    'VACUUM wide_ranges',
    "SELECT brin_desummarize_range('wide_ranges_t', 1)",
    "SELECT brin_summarize_new_values('wide_ranges_t')",
    'CREATE INDEX wide_ranges_multi ON wide_ranges USING brin(id int4_minmax_multi_ops, id int4_bloom_ops) WITH (pages_per_range = 2)',
    'INSERT INTO wide_ranges SELECT i * 1000, $$m$$ FROM generate_series(1, 200) i',
  ]);
}
