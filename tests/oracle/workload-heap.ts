/** Heap, heap2, visibility map, TOAST, sequences, subtransactions and prepared transactions. */
import { each, type Scene } from './workload.ts';

/** Heap blocks one leaf page of the FSM, and one page of the visibility map, stand for. */
const FSM_LEAF_BLOCKS = 4069;
const VM_PAGE_BLOCKS = 32_672;

/** Tables of one row a block that reach past a page of their maps; one stays so, the others shrink to just below the edge, or to nothing. */
export async function manyBlocks({ db, long }: Scene): Promise<void> {
  const edge = long ? VM_PAGE_BLOCKS : FSM_LEAF_BLOCKS;
  const fill = (name: string, blocks: number): string[] => [
    `CREATE TABLE ${name}(id int, pad text) WITH (fillfactor = 10)`,
    `ALTER TABLE ${name} ALTER pad SET STORAGE PLAIN`,
    `INSERT INTO ${name} SELECT i, repeat('b', 800) FROM generate_series(1, ${blocks}) i`,
    `VACUUM (FREEZE) ${name}`,
  ];
  await each(db, [
    ...fill('stays', edge + 150),
    // Old and new version on different map pages, both of them all-visible.
    `UPDATE stays SET pad = repeat('c', 7900) WHERE id BETWEEN ${edge - 5} AND ${edge - 1} OR id BETWEEN 10 AND 15`,
    `DELETE FROM stays WHERE id BETWEEN ${edge - 20} AND ${edge - 10} OR id BETWEEN 100 AND 110`,
    `DELETE FROM stays WHERE id BETWEEN ${edge + 5} AND ${edge + 20}`,
    'VACUUM stays',
    `UPDATE stays SET pad = repeat('d', 3000) WHERE id BETWEEN 20 AND 60 OR id BETWEEN ${edge + 30} AND ${edge + 40}`,
    "INSERT INTO stays SELECT i, repeat('d', 6000) FROM generate_series(1, 40) i",
  ]);
  for (const [name, left] of [
    ['behind_edge', FSM_LEAF_BLOCKS + 30],
    ['at_edge', FSM_LEAF_BLOCKS],
    ['before_edge', FSM_LEAF_BLOCKS - 100],
    ['empty', 0],
  ] as const) {
    await each(db, [
      ...fill(name, FSM_LEAF_BLOCKS + 150),
      `DELETE FROM ${name} WHERE id > ${left} OR id % 10 = 3`,
      `VACUUM ${name}`,
      `INSERT INTO ${name} SELECT i, repeat('e', 1800) FROM generate_series(1, 20) i`,
    ]);
  }
}

export async function heapWorkload({ db, scale }: Scene): Promise<void> {
  const rows = 1200 * scale;
  await each(db, [
    'CREATE TABLE t(id int primary key, k int, v text, pad text) WITH (fillfactor = 85)',
    'CREATE INDEX t_k ON t(k)',
    `INSERT INTO t SELECT i, i % 100, 'v' || i, repeat('p', (i * 7) % 300) FROM generate_series(1, ${rows}) i`,
    // HOT chains on the page, then reads that prune them.
    ...[1, 2, 3, 4].flatMap((n) => [
      `UPDATE t SET v = 'hot${n}' || id WHERE id % 4 = ${n % 4}`,
      'SELECT count(*), max(length(pad)) FROM t',
    ]),
    // Not HOT: the key changes; the row grows and moves to another page.
    'UPDATE t SET k = k + 1000 WHERE id % 10 = 0',
    "UPDATE t SET pad = pad || repeat('q', 900) WHERE id % 17 = 0",
    // Prefix and suffix shared with the old version, and nothing shared.
    "UPDATE t SET v = v || 'x' WHERE id % 3 = 0",
    'UPDATE t SET v = NULL, pad = NULL WHERE id % 29 = 0',
    'DELETE FROM t WHERE id % 7 = 0',
    'SELECT count(*) FROM t WHERE k < 50',
    'VACUUM t',
    // Pages are all-visible now: each kind of change must clear the map.
    "UPDATE t SET v = 'after vacuum' WHERE id BETWEEN 10 AND 40",
    'DELETE FROM t WHERE id BETWEEN 100 AND 110',
    `INSERT INTO t SELECT i, i, 'new', NULL FROM generate_series(${rows + 1}, ${rows + 50}) i`,
    'VACUUM (FREEZE) t',
    'SELECT id FROM t WHERE id % 50 = 1 FOR UPDATE',
    'VACUUM (FREEZE) t',
    // From one all-visible page to another: both bits of one map page.
    "UPDATE t SET pad = repeat('z', 1500), k = 5 WHERE id % 40 = 3",
    'VACUUM t',
    `DELETE FROM t WHERE id > ${Math.floor(rows / 3)}`,
    'VACUUM t', // truncates the tail
    `INSERT INTO t SELECT i, i % 10, 'again', repeat('p', 100) FROM generate_series(${rows + 100}, ${rows + 700}) i`,
  ]);
  await each(db, [
    // Multi-insert: into new pages, into pages with room, and frozen.
    'CREATE TABLE c(i int)',
    `COPY c FROM PROGRAM 'seq 1 ${3000 * scale}'`,
    'DELETE FROM c WHERE i % 3 = 0',
    'VACUUM c',
    `COPY c FROM PROGRAM 'seq 1 ${1200 * scale}'`,
    'BEGIN',
    'CREATE TABLE cf(i int)',
    "COPY cf FROM PROGRAM 'seq 1 2000' (FREEZE)",
    'COMMIT',
    'DELETE FROM cf WHERE i < 300',
    'VACUUM cf',
    "COPY cf FROM PROGRAM 'seq 1 300'",
    'CREATE TABLE cta AS SELECT i, i::text AS t FROM generate_series(1, 1000) i',
    // A table without an index: dead items become unused at once.
    'CREATE TABLE noindex(i int, t text)',
    `INSERT INTO noindex SELECT i, repeat('n', i % 50) FROM generate_series(1, 2000) i`,
    'DELETE FROM noindex WHERE i % 2 = 0',
    'VACUUM noindex',
    'TRUNCATE cta',
    'TRUNCATE noindex RESTART IDENTITY CASCADE',
    "INSERT INTO noindex VALUES (1, 'x')",
  ]);
  await each(db, [
    'CREATE TABLE toasted(id int primary key, big text)',
    'ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL',
    'INSERT INTO toasted SELECT i, repeat(md5(i::text), 200 + i * 10) FROM generate_series(1, 40) i',
    "UPDATE toasted SET big = repeat('T', 9000) WHERE id % 2 = 0",
    'DELETE FROM toasted WHERE id % 5 = 0',
    'VACUUM toasted',
    'CREATE TABLE upsert(k int primary key, n int)',
    'INSERT INTO upsert SELECT i % 50, 1 FROM generate_series(1, 50) i ON CONFLICT (k) DO UPDATE SET n = upsert.n + 1',
    'INSERT INTO upsert SELECT i % 70, 1 FROM generate_series(1, 70) i ON CONFLICT (k) DO UPDATE SET n = upsert.n + 1',
    'CREATE TABLE part(k int, v int) PARTITION BY LIST (k)',
    'CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1)',
    'CREATE TABLE part2 PARTITION OF part FOR VALUES IN (2)',
    'INSERT INTO part SELECT 1, i FROM generate_series(1, 20) i',
    'UPDATE part SET k = 2 WHERE v % 2 = 0',
    'CREATE SEQUENCE s',
    'SELECT count(nextval($$s$$)) FROM generate_series(1, 200)',
    "SELECT setval('s', 10000)",
    'ALTER SEQUENCE s INCREMENT 5',
    'SELECT nextval($$s$$)',
    'ANALYZE t', // in-place update of pg_class
    'CREATE UNLOGGED TABLE ul(i int primary key, t text)',
    "INSERT INTO ul SELECT i, 'u' FROM generate_series(1, 500) i",
    'CREATE TEMP TABLE tmp(i int)',
    'INSERT INTO tmp SELECT generate_series(1, 100)',
    'SELECT lo_from_bytea(0, decode(repeat($$ab$$, 5000), $$hex$$))',
    // Rows that come and go within one transaction; a rolled back one.
    'BEGIN',
    "INSERT INTO t SELECT i, 1, 'own', NULL FROM generate_series(900001, 900100) i",
    "UPDATE t SET v = 'own2' WHERE id > 900000",
    'DELETE FROM t WHERE id > 900050',
    'COMMIT',
    'BEGIN',
    "UPDATE t SET v = 'gone', k = 7 WHERE id % 2 = 0",
    'ROLLBACK',
    'SELECT count(*) FROM t',
    'VACUUM t',
  ]);
  await each(db, [
    // More than 64 subtransactions with ids of their own: assignment records; some abort.
    `DO $$ BEGIN FOR i IN 1..200 LOOP BEGIN INSERT INTO upsert VALUES (1000 + i, i); IF i % 3 = 0 THEN RAISE EXCEPTION 'x'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$`,
    'BEGIN',
    'CREATE TABLE dropped_in_prepared(i int)',
    'SAVEPOINT a',
    'INSERT INTO upsert VALUES (5000, 1)',
    'RELEASE a',
    'INSERT INTO t VALUES (910001, 1, $$2pc$$, NULL)',
    "PREPARE TRANSACTION 'one'",
    'CHECKPOINT',
    "COMMIT PREPARED 'one'",
    'BEGIN',
    'INSERT INTO t VALUES (910002, 1, $$2pc$$, NULL)',
    'CREATE TABLE made_in_aborted(i int)',
    "PREPARE TRANSACTION 'two'",
    "ROLLBACK PREPARED 'two'",
    'BEGIN',
    'DROP TABLE dropped_in_prepared',
    "PREPARE TRANSACTION 'three'",
    "COMMIT PREPARED 'three'",
    // One commit with many dropped relations.
    'DO $$ BEGIN FOR i IN 1..25 LOOP EXECUTE format($q$CREATE TABLE many%s(i int primary key)$q$, i); END LOOP; END $$',
    'DO $$ BEGIN FOR i IN 1..25 LOOP EXECUTE format($q$DROP TABLE many%s$q$, i); END LOOP; END $$',
    'BEGIN',
    'CREATE TABLE rolled_back(i int primary key)',
    'INSERT INTO rolled_back SELECT generate_series(1, 100)',
    'ROLLBACK',
  ]);
}
