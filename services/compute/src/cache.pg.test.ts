/** A compute's local disk is bounded: Postgres goes on while its clean pages are dropped under it, and a full disk loses those first. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type pg from 'pg';
import { BLCKSZ } from '@lakebase/ids';
import { eventually } from '@lakebase/testkit';
import { ResidentMapFile } from './resident-map.ts';
import { ShimCompute } from './testing/shim-compute.ts';

const MB = 1 << 20;
const ROWS = 60_000;
const SUM = "select count(*) || '/' || sum(hashtext(t::text)) from t";
const SMALL = { min_wal_size: '32MB', max_wal_size: '32MB', shared_buffers: '4MB', max_parallel_workers_per_gather: '0' };

async function fill(connect: () => Promise<pg.Client>): Promise<void> {
  const client = await connect();
  await client.query(`create table t as select g as id, repeat(md5(g::text), 24) as pad from generate_series(1, ${ROWS}) g`); // 47 MiB
  await client.query(
    `create table accounts as select g as id, 100 as balance from generate_series(1, 20000) g; create index on accounts (id)`,
  );
  await client.query('create index on t (id)');
  await client.query('vacuum (analyze)');
  await client.end();
}

/** Random reads and transfers on `clients` connections, for a number of rounds. */
async function work(c: ShimCompute, clients: number, rounds: number): Promise<void> {
  await Promise.all(
    Array.from({ length: clients }, async (_, n) => {
      const client = await c.connect();
      for (let i = 0; i < rounds; i++) {
        const at = 1 + ((n * 7_919 + i * 104_729) % (ROWS - 1_000));
        const { rows } = await client.query<{ ok: boolean }>(
          'select bool_and(pad = repeat(md5(id::text), 24)) and count(*) = 500 as ok from t where id between $1 and $1 + 499',
          [at],
        );
        assert.equal(rows[0]?.ok, true);
        await client.query('update accounts set balance = balance + case id when $1 then 1 else -1 end where id in ($1, $2)', [
          1 + ((at * 3) % 20_000),
          1 + ((at * 3 + 11) % 20_000),
        ]);
      }
      await client.end();
    }),
  );
}

describe('a bound on the local disk', () => {
  let c: ShimCompute;
  let sum: unknown;

  before(async () => {
    c = new ShimCompute({ settings: SMALL });
    await c.makeSource(async (connect) => {
      await fill(connect);
      sum = await c.value(SUM);
    });
    c.prepare();
    await c.start();
  });
  after(() => c[Symbol.asyncDispose]());

  test('reads and writes go on while the worker and backends drop what storage has', async () => {
    using file = new ResidentMapFile(c.mapPath);
    // The least budget there is: 16 MiB of clean pages, a third of the table.
    const worker = c.worker(64 * MB);
    assert.equal(await worker.fetch(0, 0, 1).catch(() => 'ok'), 'ok'); // it has measured by then
    for (let round = 0; round < 3; round++) {
      assert.equal(await c.value(SUM), sum);
      await work(c, 6, 40);
    }
    assert.equal(await c.value(SUM), sum);
    assert.equal(await c.value('select sum(balance)::int from accounts'), 2_000_000);
    const { blocksEvicted, cleanBlocks, cleanBudget, errors, scratchBytes } = file.counters();
    assert.ok(blocksEvicted > 5_000, `${blocksEvicted} dropped`);
    assert.ok(cleanBudget > 0 && cleanBlocks <= cleanBudget + 200, `${cleanBlocks} of ${cleanBudget}`);
    assert.ok(scratchBytes < 100 * MB);
    assert.equal(errors, 0);
    // The worker goes on dropping: the two are equal whenever it rests.
    await eventually('every clean block is counted', async () => (c.map.totals().clean === file.counters().cleanBlocks ? true : undefined));
    worker.stop();
  });
});

describe('a full disk', { skip: process.getuid?.() !== 0 && 'only root can mount a small file system' }, () => {
  let c: ShimCompute;
  let sum: unknown;

  before(async () => {
    c = new ShimCompute({ settings: SMALL, diskBytes: 88 * MB });
    await c.makeSource(async (connect) => {
      await fill(connect);
      sum = await c.value(SUM);
    });
    c.prepare();
    await c.start();
  });
  after(() => c[Symbol.asyncDispose]());

  test('clean pages make room: for pages, WAL and temporary files', async () => {
    using file = new ResidentMapFile(c.mapPath);
    for (let round = 0; round < 2; round++) {
      assert.equal(await c.value(SUM), sum);
      // Spills about 30 MiB beside 47 MiB of clean pages.
      assert.equal(await c.value(`select count(*)::int from (select id, pad from t where id <= 30000 order by md5(pad)) x`), 30_000);
      await work(c, 4, 30);
    }
    assert.ok(file.counters().roomsMade > 0);
    assert.equal(file.counters().errors, 0);
    assert.equal(await c.value('select sum(balance)::int from accounts'), 2_000_000);
  });

  test('with nothing left to drop Postgres gets what it would get, and goes on', async () => {
    using file = new ResidentMapFile(c.mapPath);
    const client = await c.connect();
    await client.query('create temporary table big (x text storage external)');
    await assert.rejects(
      client.query('insert into big select repeat(md5(g::text), 200) from generate_series(1, 40000) g'),
      (error: pg.DatabaseError) => error.code === '53100',
    );
    assert.ok(file.counters().roomsDenied > 0);
    assert.equal((await client.query<{ n: number }>('select count(*)::int as n from accounts')).rows[0]?.n, 20_000);
    await client.end();
    assert.equal(await c.value(SUM), sum);
    assert.doesNotMatch(c.log, /PANIC/);
    assert.ok(file.counters().blocksEvicted * BLCKSZ > 47 * MB);
  });
});
