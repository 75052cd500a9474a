/** Stock Postgres on sparse files: what it reads through the shim is what the source directory holds, and what it writes is never lost. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type pg from 'pg';
import { BLOCK_ABSENT } from './resident-map.ts';
import { ShimCompute } from './testing/shim-compute.ts';

const SUMS = `select (select count(*) || '/' || sum(hashtext(t::text)) from t) || ' ' || (select count(*) || '/' || sum(length(body)) || '/' || sum(hashtext(body)) from docs)
  || ' ' || (select count(*) from logs) || ' ' || (select last_value from numbers)`;

async function fill(connect: (database?: string) => Promise<pg.Client>): Promise<void> {
  const client = await connect();
  await client.query(`
    create table t (id int primary key, grp int, pad text);
    insert into t select g, g % 100, repeat(md5(g::text), 4) from generate_series(1, 60000) g;
    create index t_grp on t (grp);
    create table docs (id int, body text);
    alter table docs alter column body set storage external;
    insert into docs select g, repeat(md5(g::text), 300) from generate_series(1, 400) g;
    create unlogged table logs (id int primary key, note text);
    insert into logs select g, 'gone' from generate_series(1, 1000) g;
    create sequence numbers;
    select setval('numbers', 1000);
    create table shrinks as select g as id, repeat('x', 500) as pad from generate_series(1, 20000) g;
    create table drops as select g as id from generate_series(1, 10000) g`);
  await client.query('vacuum analyze');
  await client.query('create database other');
  await client.end();
  const other = await connect('other');
  await other.query('create table o as select g as id, md5(g::text) as h from generate_series(1, 20000) g');
  await other.end();
}

const OTHER_SUM = `select count(*) || '/' || sum(hashtext(h)) from o`;

describe('a compute whose pages come through the shim', () => {
  let c: ShimCompute;
  let sums: unknown;
  let otherSum: unknown;

  before(async () => {
    c = new ShimCompute();
    await c.makeSource(async (connect) => {
      await fill(connect);
      sums = String(await c.value(SUMS)).replace(/ 1000 1000$/, ' 0 1000'); // the unlogged table starts empty
      otherSum = await c.value(OTHER_SUM, 'other');
    });
    c.prepare();
    await c.start();
  });
  after(() => c[Symbol.asyncDispose]());

  test('starts with few faults and answers a query', async () => {
    assert.equal(await c.value('select 1'), 1);
    console.log(c.faults.length, c.map.counters());
  });

  test('scans have the same sums as the source', async () => {
    const t0 = performance.now();
    assert.equal(await c.value(SUMS), sums);
    console.log(performance.now() - t0, c.faults.length, c.map.counters(), c.map.totals());
    assert.equal(await c.value(OTHER_SUM, 'other'), otherSum);
    const faults = c.faults.length;
    assert.equal(await c.value(SUMS), sums);
    assert.equal(c.faults.length, faults);
  });
});
