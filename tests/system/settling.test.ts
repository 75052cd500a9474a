/** Issue 5, section 4: changed and new pages leave the local disk too, once storage has them and no open transaction needs them. A compute with a small disk
 *  and small buffers takes in several times its disk, goes through everything that makes pages differ from what replay gives back, and ends with what a
 *  stock server has that did the same. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { ComputeDisk } from '@lakebase/api';
import { must } from '@lakebase/base';
import { Cluster, ClusterInternals, StockPostgres, eventually } from '@lakebase/testkit';
import pg from 'pg';
import { amcheck } from './amcheck.ts';

const MB = 1 << 20;
const CACHE = 64 * MB;
const ROWS = 20_000;
/** In a prepared or open transaction's hands during the churn, so nobody else's. */
const OPEN_FROM = 16_000;
/** A row of about a KiB. */
const WIDE = `repeat(md5(g::text), 31)`;
type Connect = () => Promise<pg.Client>;

/** One of each access method. */
const indexesOn = (table: string): string[] => [
  `CREATE INDEX ${table}_gin ON ${table} USING gin (tags)`,
  `CREATE INDEX ${table}_gist ON ${table} USING gist (place)`,
  `CREATE INDEX ${table}_spgist ON ${table} USING spgist (word)`,
  `CREATE INDEX ${table}_hash ON ${table} USING hash (balance)`,
  `CREATE INDEX ${table}_brin ON ${table} USING brin (id)`,
  `CREATE INDEX ${table}_btree ON ${table} (word, id)`,
];
const accountsRow = 'g AS id, 0 AS balance, ARRAY[g % 997, g % 499] AS tags, point(g % 1000, g / 1000) AS place, md5(g::text) AS word';

/** There at the start of the compute. */
const LOAD = [
  `CREATE TABLE accounts AS SELECT ${accountsRow}, repeat(md5((g * 7)::text), 6) AS pad FROM generate_series(1, ${ROWS}) g`,
  'ALTER TABLE accounts ADD PRIMARY KEY (id)',
  ...indexesOn('accounts'),
  'CREATE TABLE history (id int, delta int, pad text)',
  `INSERT INTO history SELECT g, 0, repeat('h', 300) FROM generate_series(1, 10000) g`,
  `CREATE TABLE grown AS SELECT g AS id, ${WIDE} AS pad FROM generate_series(1, 1000) g`,
  'CREATE INDEX grown_id ON grown (id)',
  'CREATE TABLE scrap AS SELECT * FROM history',
  'CREATE UNLOGGED TABLE fleeting (LIKE history)',
  'CREATE SEQUENCE counter',
];

async function run(connect: Connect, statements: readonly string[]): Promise<void> {
  const client = await connect();
  for (const sql of statements) await client.query(sql);
  await client.end();
}

/** Several times the disk: growth of what was there, new tables by INSERT, CREATE TABLE AS and COPY, indexes on them, and what comes to nothing. */
async function bulk(connect: Connect, superuser: Connect): Promise<void> {
  for (let i = 0; i < 4; i++)
    await run(connect, [`INSERT INTO grown SELECT g, ${WIDE} FROM generate_series(${1_001 + i * 16_000}, ${17_000 + i * 16_000}) g`]);
  await run(connect, [
    `CREATE TABLE fresh AS SELECT g AS id, ${WIDE} AS pad FROM generate_series(1, 32000) g`,
    `INSERT INTO fresh SELECT g, ${WIDE} FROM generate_series(32001, 64000) g`,
    'ALTER TABLE fresh ADD PRIMARY KEY (id)',
    'CREATE INDEX CONCURRENTLY fresh_pad ON fresh (md5(pad))',
    `CREATE TABLE copied (id int, pad text DEFAULT repeat('c', 300))`,
    `BEGIN; CREATE TABLE lost AS SELECT * FROM fresh WHERE id < 12000; CREATE INDEX ON lost (id); ROLLBACK`,
    'CREATE TABLE doomed AS SELECT * FROM fresh WHERE id < 8000',
    'CREATE INDEX doomed_id ON doomed (id)',
  ]);
  await run(superuser, [`COPY copied (id) FROM PROGRAM 'seq 1 80000'`]);
  await run(connect, [
    'DROP TABLE doomed',
    'UPDATE copied SET id = -id WHERE id % 10 = 0',
    'DELETE FROM grown WHERE id > 50000',
    'VACUUM grown', // its end is cut off
    `INSERT INTO grown SELECT g, ${WIDE} FROM generate_series(50001, 53000) g`,
    'VACUUM fresh',
    'TRUNCATE scrap',
    `INSERT INTO scrap SELECT g, 1, repeat('s', 300) FROM generate_series(1, 30000) g`,
    `BEGIN; TRUNCATE scrap; INSERT INTO scrap SELECT g, 2, repeat('t', 300) FROM generate_series(1, 20000) g; COMMIT`,
    `BEGIN; TRUNCATE scrap; INSERT INTO scrap SELECT g, 3, 'u' FROM generate_series(1, 9000) g; ROLLBACK`,
  ]);
}

/** One of several clients; what it does commutes with what the others do. */
async function churn(connect: Connect, n: number, rounds: number): Promise<void> {
  const client = await connect();
  for (let i = 0; i < rounds; i++) {
    const ids = Array.from({ length: 40 }, (_, k) => ((n * 7_919 + i * 104_729 + k * 15_485_863) % (OPEN_FROM / 4)) * 4 + (n % 4));
    await client.query('UPDATE accounts SET balance = balance + 1, tags = ARRAY[id % 997, id % 499, id % 13] WHERE id = ANY ($1)', [ids]);
    await client.query(`INSERT INTO history SELECT g, $1, repeat('n', 300) FROM generate_series(1, 20) g`, [n]);
    if (i % 10 === 3) await client.query("SELECT nextval('counter')");
    if (i % 20 === 7)
      await client.query(`BEGIN; UPDATE accounts SET balance = -1 WHERE id % 4 = ${n % 4} AND id % 10 = 3 AND id < ${OPEN_FROM}; ROLLBACK`);
    if (i % 20 === 11 && n === 1) await client.query('VACUUM accounts');
    if (i % 20 === 15 && n === 2) await client.query('VACUUM history');
  }
  await client.end();
}

/** Tuples of several commands of one open transaction, a cursor that must see those of the first ones only, and a table and indexes of its own. */
async function openTransaction(connect: Connect, name: string, meanwhile: () => Promise<void>): Promise<void> {
  const client = await connect();
  await client.query('BEGIN');
  await client.query(`INSERT INTO accounts SELECT g, 5, '{1}', point(1, 1), 'w', repeat('i', 200) FROM generate_series(200001, 210000) g`);
  await client.query(`UPDATE accounts SET balance = balance + 1 WHERE id BETWEEN 200001 AND 205000`);
  await client.query(`DELETE FROM accounts WHERE id BETWEEN 200001 AND 200500`);
  await client.query('DECLARE c CURSOR FOR SELECT id, balance FROM accounts WHERE id > 200000');
  await client.query(`UPDATE accounts SET balance = balance + 100 WHERE id > 202500`);
  await client.query(`DELETE FROM accounts WHERE id > 209500`);
  await client.query(`CREATE TABLE ${name} AS SELECT ${accountsRow}, repeat('y', 200) AS pad FROM generate_series(1, 15000) g`);
  for (const sql of indexesOn(name)) await client.query(sql);
  await client.query(`INSERT INTO ${name} SELECT ${accountsRow}, repeat('z', 200) FROM generate_series(15001, 22000) g`);
  await meanwhile();
  await client.query(`UPDATE ${name} SET balance = 3 WHERE word < '4'`);
  const { rows } = await client.query<{ id: number; balance: number }>('FETCH ALL FROM c');
  assert.equal(rows.length, 9_500);
  assert.equal(
    rows.reduce((sum, row) => sum + row.balance, 0),
    4_500 * 6 + 5_000 * 5,
  );
  // Sees each of its tuples once.
  assert.equal((await client.query('UPDATE accounts SET balance = balance + 1000 WHERE id > 200000')).rowCount, 9_000);
  await client.query('COMMIT');
  await client.end();
}

async function workload(connect: Connect, round: number): Promise<void> {
  const two = await connect();
  for (const sql of [
    'BEGIN',
    `UPDATE accounts SET balance = balance + 7 WHERE id > ${OPEN_FROM} AND id <= ${ROWS}`,
    `UPDATE accounts SET word = 'p' || id WHERE id > ${OPEN_FROM} AND id % 3 = 0 AND id <= ${ROWS}`,
    `CREATE TABLE prepared_${round} AS SELECT * FROM history WHERE id <= 8000`,
    `CREATE INDEX prepared_${round}_id ON prepared_${round} (id)`,
    `PREPARE TRANSACTION 'held'`,
    `DELETE FROM accounts WHERE id > 200000`,
  ])
    await two.query(sql);
  await openTransaction(connect, `nursery_${round}`, async () => {
    await Promise.all([1, 2, 3, 4].map((n) => churn(connect, n + round * 4, 20)));
  });
  for (const sql of [
    `COMMIT PREPARED 'held'`,
    'DELETE FROM scrap WHERE id % 2 = 0',
    'VACUUM scrap',
    'INSERT INTO scrap SELECT id, delta, pad FROM history WHERE id < 5000',
    `INSERT INTO fleeting SELECT g, ${round}, repeat('u', 300) FROM generate_series(1, 4000) g`,
    'UPDATE fleeting SET delta = delta + 1',
    'DROP INDEX accounts_gin, accounts_gist, accounts_spgist, accounts_hash, accounts_brin, accounts_btree',
    ...indexesOn('accounts'),
    'VACUUM accounts',
  ])
    await two.query(sql);
  await two.end();
}

/** Of every table but the unlogged one, and of that. */
async function contents(connect: Connect): Promise<{ kept: unknown[]; fleeting: unknown }> {
  const client = await connect();
  const { rows: tables } = await client.query<{ name: string }>(
    "SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace ORDER BY 1",
  );
  const sum = async (table: string): Promise<unknown> =>
    (
      await client.query(
        `SELECT '${table}' AS t, count(*)::int AS n, sum(hashtextextended(t::text, 0)::numeric)::text AS sum FROM ${table} t`,
      )
    ).rows[0];
  const kept: unknown[] = [];
  for (const { name } of tables) kept.push(await sum(name));
  kept.push((await client.query('SELECT balance, count(*)::int AS n FROM accounts GROUP BY 1 ORDER BY 1')).rows);
  const out = { kept, fleeting: await sum('fleeting') };
  await client.end();
  return out;
}

/** By index and without: the same rows. */
async function indexesAgree(connect: Connect, table: string): Promise<void> {
  const client = await connect();
  const both = async (where: string): Promise<void> => {
    const ask = async (byIndex: boolean): Promise<unknown> => {
      const [scan, index] = byIndex ? ['off', 'on'] : ['on', 'off'];
      await client.query(`SET enable_seqscan = ${scan}; SET enable_indexscan = ${index}; SET enable_bitmapscan = ${index}`);
      return (await client.query(`SELECT count(*)::int AS n, sum(id)::text AS s FROM ${table} WHERE ${where}`)).rows[0];
    };
    assert.deepEqual(await ask(true), await ask(false), `${table}: ${where}`);
  };
  for (let i = 0; i < 4; i++) {
    await both(`tags @> ARRAY[${(i * 137) % 997}]`);
    await both(`tags @> ARRAY[${i % 13}]`);
    await both(`place <@ box '((${i * 150},0),(${i * 150 + 40},40))'`);
    await both(`word ^@ '${i.toString(16).padStart(2, '0')}'`);
    await both(`balance = ${i * 7 - 1}`);
    await both(`id BETWEEN ${i * 4_000} AND ${i * 4_000 + 900}`);
  }
  await client.end();
}

describe('changed and new pages on a small disk', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  let stock: StockPostgres;
  const onCluster: Connect = () => cluster.connect();
  const onStock: Connect = async () => {
    const client = new pg.Client(stock.clientConfig);
    await client.connect();
    return client;
  };
  const onBoth = async (what: (connect: Connect, superuser: Connect) => Promise<void>): Promise<void> => {
    await Promise.all([what(onStock, onStock), what(onCluster, () => inside.admin())]);
  };

  before(async () => {
    cluster = await Cluster.start({ env: { LAKEBASE_CACHE_BYTES: String(CACHE) } });
    inside = new ClusterInternals(cluster);
    stock = await StockPostgres.start({ settings: { fsync: 'off', max_prepared_transactions: '4', autovacuum: 'off' } });
    const settings = ['shared_buffers=4MB', 'max_prepared_transactions=4', 'max_wal_size=64MB', 'min_wal_size=32MB', 'autovacuum=off'];
    const { code, stderr } = await cluster.cli(['endpoints', 'update', 'primary', ...settings.flatMap((s) => ['--set', s])]);
    assert.equal(code, 0, stderr);
    await onBoth((connect) => run(connect, LOAD));
    await resume();
  });
  after(async () => {
    await cluster[Symbol.asyncDispose]();
    await stock[Symbol.asyncDispose]();
  });

  async function resume(): Promise<void> {
    const { code, stderr } = await cluster.cli(['suspend']);
    assert.equal(code, 0, stderr);
    await eventually('no compute is left', async () => ((await inside.running()) === undefined ? true : undefined));
    await (await cluster.connect()).end();
  }
  async function look(): Promise<ComputeDisk> {
    const { computeId } = must(await inside.running(), 'a running compute');
    return must((await inside.host.status(computeId, true)).disk, 'disk');
  }
  /** On the local disk, but for WAL: the bound is below what Postgres keeps of that. */
  async function withoutWal(): Promise<number> {
    const admin = await inside.admin();
    try {
      const { rows } = await admin.query<{ bytes: number }>('SELECT sum(size)::float8 AS bytes FROM pg_ls_waldir()');
      return (await look()).scratchBytes - must(rows[0], 'a row').bytes;
    } finally {
      await admin.end();
    }
  }

  it('several times the disk is taken in, and leaves it again', async () => {
    const client = await cluster.connect();
    assert.equal((await client.query('SHOW shared_buffers')).rows[0]?.shared_buffers, '4MB');
    await client.end();
    const begun = await look();
    await onBoth(bulk);
    const written = 3 * CACHE; // and a little more
    await eventually('the disk is near its bound', async () => ((await withoutWal()) < CACHE + 16 * MB ? true : undefined));
    const disk = await look();
    assert.ok(disk.rounds - begun.rounds > 3, JSON.stringify(disk));
    assert.ok(disk.settledBytes > written / 2 && disk.adoptedBytes > written / 2, JSON.stringify(disk));
    assert.ok(disk.droppedBytes > written / 2, JSON.stringify(disk));
    assert.equal(disk.roomsDenied, 0);
    assert.deepEqual(await contents(onCluster), await contents(onStock));
  });

  it('a stock server that did the same has the same', async () => {
    const begun = await look();
    for (let round = 0; round < 2; round++) await onBoth((connect) => workload(connect, round));
    assert.deepEqual(await contents(onCluster), await contents(onStock));
    for (const table of ['accounts', 'nursery_0']) await indexesAgree(onCluster, table);
    const disk = await look();
    assert.ok(disk.rounds - begun.rounds > 3 && disk.settledBytes - begun.settledBytes > 20 * MB, JSON.stringify(disk));
    await amcheck(cluster);
    await resume();
    assert.deepEqual((await contents(onCluster)).kept, (await contents(onStock)).kept);
  });
});
