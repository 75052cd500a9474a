/** Stock Postgres on sparse files: what it reads through the shim is what the source directory holds, and what it writes is never lost. */
import assert from 'node:assert/strict';
import { closeSync, fstatSync, mkdirSync, openSync, readSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BLCKSZ, RELSEG_BLOCKS, relPath } from '@lakebase/ids';
import type pg from 'pg';
import tar from 'tar-stream';
import { BLOCK_ABSENT, BLOCK_CLEAN } from './resident-map.ts';
import { ShimCompute } from './testing/shim-compute.ts';

const SUMS = `select (select count(*) || '/' || sum(hashtext(t::text)) from t) || ' ' || (select count(*) || '/' || sum(length(body)) || '/' || sum(hashtext(body)) from docs)
  || ' ' || (select count(*) from logs) || ' ' || (select last_value from numbers)`;
const OTHER_SUM = `select count(*) || '/' || sum(hashtext(h)) from o`;

/** Data no test below changes is in t, docs and database other; each changing test has a table of its own. */
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
    create table rewritten as select * from t;
    create table emptied as select * from t;
    create table dropped as select g as id from generate_series(1, 10000) g;
    create table accounts as select g as id, 100 as balance, repeat('y', 200) as pad from generate_series(1, 20000) g;
    create index accounts_id on accounts (id);
    create table unread as select * from t;
    create table long as select g as id, repeat('z', 1000) as pad from generate_series(1, 700) g`);
  await client.query('vacuum (analyze)');
  await client.query('create database other');
  await client.end();
  const other = await connect('other');
  await other.query('create table o as select g as id, md5(g::text) as h from generate_series(1, 20000) g');
  await other.end();
}

/** Every clean block on the compute's disk must be the source's block. */
function assertCleanBlocksMatch(c: ShimCompute): number {
  const map = c.map;
  const [ours, theirs] = [Buffer.alloc(BLCKSZ), Buffer.alloc(BLCKSZ)];
  let compared = 0;
  for (const entry of map.entries()) {
    if (entry.dropped || !entry.laid) continue;
    const path = relPath(entry.tag, entry.segment);
    const [a, b] = [
      openSync(join(c.pgdata, path), 'r'),
      openSync(join(c.source, relPath({ ...entry.tag, fork: entry.sourceFork }, entry.segment)), 'r'),
    ];
    const { ino } = fstatSync(a, { bigint: true });
    for (const block of map.blocks(entry.index, BLOCK_CLEAN)) {
      readSync(a, ours, 0, BLCKSZ, block * BLCKSZ);
      readSync(b, theirs, 0, BLCKSZ, block * BLCKSZ);
      const plain = c.cipher?.decrypt(ino, block * BLCKSZ, ours) ?? ours;
      assert.ok(plain.equals(theirs), `${path} block ${block} is marked clean but differs from storage`);
      compared++;
    }
    closeSync(a);
    closeSync(b);
  }
  return compared;
}

/** Postgres's own base backup, over the replication protocol, unpacked into `directory`. */
async function takeBaseBackup(c: ShimCompute, directory: string): Promise<void> {
  const client = await c.connect('postgres', { replication: 'true' } as pg.ClientConfig);
  const extract = tar.extract();
  const unpacked = (async () => {
    for await (const entry of extract) {
      const path = join(directory, entry.header.name);
      const parts: Buffer[] = [];
      for await (const part of entry) parts.push(part as Buffer);
      mkdirSync(entry.header.type === 'directory' ? path : dirname(path), { recursive: true, mode: 0o700 });
      if (entry.header.type === 'file') writeFileSync(path, Buffer.concat(parts), { mode: 0o600 });
    }
  })();
  const { connection } = client as unknown as {
    connection: { on(event: 'copyData', listener: (message: { chunk: Buffer }) => void): void };
  };
  connection.on('copyData', ({ chunk }) => {
    if (chunk[0] === 0x64) extract.write(Buffer.from(chunk.subarray(1)));
  });
  await client.query(`BASE_BACKUP (LABEL 'shim', CHECKPOINT 'fast', WAL true, MANIFEST 'no')`);
  await client.end();
  extract.end(null);
  await unpacked;
}

describe('a compute whose pages come through the shim', () => {
  let c: ShimCompute;
  let sums: unknown;
  let otherSum: unknown;
  let longPath: string;

  before(async () => {
    c = new ShimCompute();
    await c.makeSource(async (connect) => {
      await fill(connect);
      sums = String(await c.value(SUMS)).replace(/ 1000 1000$/, ' 0 1000'); // an unlogged table starts empty
      otherSum = await c.value(OTHER_SUM, 'other');
      longPath = String(await c.value(`select pg_relation_filepath('long')`));
    });
    // A relation over 1 GiB without writing one: a hole of empty pages as the first segment, the real pages as the second.
    for (const fork of ['_fsm', '_vm']) rmSync(join(c.source, `${longPath}${fork}`), { force: true });
    renameSync(join(c.source, longPath), join(c.source, `${longPath}.1`));
    writeFileSync(join(c.source, longPath), '');
    truncateSync(join(c.source, longPath), RELSEG_BLOCKS * BLCKSZ);
    c.prepare();
    await c.start();
  });
  after(() => c[Symbol.asyncDispose]());

  test('it starts with few faults', () => {
    assert.ok(c.faults.length < 150, `${c.faults.length} faults`);
    assert.equal(c.map.counters().faultRequests, c.faults.length);
    const laid = [...c.map.entries()].filter((e) => e.laid).length;
    assert.ok(laid < c.map.length / 3, `${laid} of ${c.map.length} files were created`);
  });

  test('scans give the sums of the source, and a second scan asks for nothing', async () => {
    assert.equal(await c.value(SUMS), sums);
    assert.equal(await c.value(OTHER_SUM, 'other'), otherSum);
    const scans = c.faults.length;
    assert.equal(await c.value(SUMS), sums);
    assert.equal(c.faults.length, scans);
    // A scan asks for whole reads and a little more: reading further ahead is the agent's work, and I/O workers would fetch it several times.
    const longest = Math.max(...c.faults.map((f) => f.count));
    assert.ok(longest >= 16, `a scan should ask for runs, not at most ${longest} blocks`);
    const asked = c.faults.reduce((n, f) => n + f.count, 0);
    const distinct = new Set(c.faults.flatMap((f) => Array.from({ length: f.count }, (_, i) => `${f.path} ${f.block + i}`))).size;
    assert.ok(asked <= distinct * 1.3, `${asked} blocks asked for to get ${distinct}`);
  });

  test('CREATE DATABASE copies absent pages with every strategy', async () => {
    await c.run([
      `create database copied_log template other strategy wal_log`,
      `create database copied_file template other strategy file_copy`,
    ]);
    await c.run([`set file_copy_method = clone`, `create database copied_clone template other strategy file_copy`]);
    for (const database of ['copied_log', 'copied_file', 'copied_clone'])
      assert.equal(await c.value(OTHER_SUM, database), otherSum, database);
    const size = statSync(join(c.source, String(await c.value(`select pg_relation_filepath('unread')`)))).size;
    assert.equal(await c.value(`select pg_relation_size('unread')::int`), size, 'the size of a relation nobody opened');
    await c.run(['drop database copied_file', 'create database copied_again template template1 strategy file_copy']);
    assert.equal(await c.value(`select count(*) > 300 from pg_class`, 'copied_again'), true);
  });

  test('VACUUM FULL rewrites an absent table', async () => {
    const before = await c.value('select sum(hashtext(rewritten::text)) from t as rewritten');
    await c.run(['vacuum full rewritten', 'checkpoint']);
    assert.equal(await c.value('select sum(hashtext(rewritten::text)) from rewritten'), before);
  });

  test('TRUNCATE, rolled back and committed', async () => {
    await c.run(['begin', 'truncate emptied', `insert into emptied values (1, 1, 'x')`, 'rollback']);
    assert.equal(await c.value('select count(*)::int from emptied'), 60_000);
    await c.run(['truncate emptied', `insert into emptied select g, 1, 'x' from generate_series(1, 5000) g`, 'checkpoint']);
    assert.equal(await c.value('select count(*)::int from emptied'), 5_000);
  });

  test('a tail cut off by VACUUM stays cut off when the table grows again', async () => {
    await c.run(['delete from shrinks where id > 5000', 'vacuum (truncate on) shrinks']);
    const path = await c.value(`select pg_relation_filepath('shrinks')`);
    const entry = [...c.map.entries()].find((e) => relPath(e.tag, e.segment) === path);
    assert.equal(await c.value(`select pg_relation_size('shrinks')::int`), (entry?.nblocks ?? 0) * BLCKSZ);
    await c.run([`insert into shrinks select g, repeat('y', 500) from generate_series(1, 20000) g`, 'checkpoint']);
    assert.equal(await c.value(`select count(*) || ' ' || count(*) filter (where pad like 'y%') from shrinks`), '25000 20000');
  });

  test('a dropped relation is gone and its successor is local', async () => {
    await c.run(['drop table dropped', 'checkpoint', 'create table dropped as select g as id from generate_series(1, 100) g']);
    assert.equal(await c.value('select count(*)::int from dropped'), 100);
    assert.ok([...c.map.entries()].some((e) => e.dropped));
  });

  test('unlogged and temporary tables', async () => {
    await c.run([`insert into logs select g, 'new' from generate_series(1, 2000) g`, 'checkpoint']);
    assert.equal(await c.value('select count(*)::int from logs where id > 500'), 1_500);
    await c.run([
      `create temporary table scratch as select * from t`,
      `create index on scratch (grp)`,
      `do $$ begin if (select count(*) from scratch where grp = 7) <> 600 then raise 'temporary table is wrong'; end if; end $$`,
    ]);
  });

  test('an index is built from absent pages', async () => {
    await c.run([
      'create index unread_pad on unread (pad)',
      'set enable_seqscan = off',
      `do $$ begin if (select count(*) from unread where pad = repeat(md5('77'), 4)) <> 1 then raise 'index is wrong'; end if; end $$`,
    ]);
    assert.equal(
      await c.value('select sum(hashtext(unread::text)) from unread'),
      await c.value('select sum(hashtext(unread::text)) from t as unread'),
    );
  });

  test('segments beyond the first', async () => {
    const tail = `from long where ctid >= '(${RELSEG_BLOCKS},0)'`;
    assert.equal(await c.value(`select count(*) || '/' || sum(id) ${tail}`), `700/${(700 * 701) / 2}`);
    assert.ok(c.faults.some((f) => f.path === `${longPath}.1`));
    assert.ok(!c.faults.some((f) => f.path === longPath && f.count > 2), 'the hole was not scanned');
    await c.run([`insert into long select g, 'w' from generate_series(1, 5000) g`, 'checkpoint']);
    assert.equal(await c.value(`select count(*)::int ${tail}`), 5_700);
    await c.run(['truncate long', 'checkpoint', 'insert into long values (1)']);
    assert.equal(await c.value('select count(*)::int from long'), 1);
  });

  test('concurrent faults, updates and checkpoints lose nothing', async () => {
    const workers = Array.from({ length: 6 }, async (_, w) => {
      const client = await c.connect();
      for (let i = 0; i < 60; i++) {
        const [from, to] = [((w * 7919 + i * 613) % 20_000) + 1, ((w * 104_729 + i * 3571) % 20_000) + 1];
        await client.query(
          `begin; update accounts set balance = balance - 1 where id = ${Math.min(from, to)}; update accounts set balance = balance + 1 where id = ${Math.max(from, to)}; commit`,
        );
        if (i % 20 === w) await client.query('checkpoint');
        if (i % 30 === w) await client.query('select sum(balance) from accounts');
      }
      await client.end();
    });
    await Promise.all(workers);
    assert.equal(
      await c.value(`select count(*) || '/' || sum(balance) || '/' || count(*) filter (where pad = repeat('y', 200)) from accounts`),
      '20000/2000000/20000',
    );
  });

  test('a base backup of the compute is complete', async () => {
    const directory = join(c.directory, 'backup');
    await takeBaseBackup(c, directory);
    const unread = [...c.map.entries()].filter(
      (e) => e.sourceFork === e.tag.fork && c.map.blocks(e.index, BLOCK_ABSENT).next().done !== true,
    );
    assert.deepEqual(unread, [], 'the backup read every page but those of unlogged relations');
    const backup = new ShimCompute({ adopt: directory });
    try {
      await backup.startPlain();
      assert.equal(await backup.value(SUMS), String(sums).replace(/ 0 1000$/, ' 0 1000'));
      assert.equal(await backup.value(OTHER_SUM, 'other'), otherSum);
    } finally {
      await backup[Symbol.asyncDispose]();
    }
  });

  test('clean blocks are exactly those of the source; written ones are marked', () => {
    assert.ok(assertCleanBlocksMatch(c) > 3_000);
    const { busy, dirty } = c.map.totals();
    assert.equal(busy, 0);
    assert.ok(dirty > 100);
    assert.equal(c.map.counters().errors, 0);
    assert.doesNotMatch(c.log, /PANIC|pgshim|could not read|invalid page/);
  });
});

describe('a compute whose storage fails', () => {
  let c: ShimCompute;

  before(async () => {
    c = new ShimCompute();
    await c.makeSource(async (connect) => {
      const client = await connect();
      await client.query(
        `create table a as select g as id from generate_series(1, 20000) g; create table b as select * from a; create table d as select * from a`,
      );
      await client.query('vacuum (analyze)');
      await client.end();
    });
    c.prepare();
    await c.start({ LAKEBASE_SHIM_RETRY_SECONDS: '1', LAKEBASE_SHIM_LAYOUT: '1' });
  });
  after(() => c[Symbol.asyncDispose]());

  test('an error of the agent is an I/O error of that query, with a reason in the log', async () => {
    const path = String(await c.value(`select pg_relation_filepath('a')`));
    c.refuse = (fault) => (fault.path === path ? 5 : undefined);
    const client = await c.connect();
    await assert.rejects(
      client.query('select count(*) from a'),
      (error: pg.DatabaseError) => error.code === '58030' && /could not read blocks?.*Input\/output error/.test(error.message),
    );
    c.refuse = () => undefined;
    assert.equal(
      (await client.query<{ n: number }>('select count(*)::int as n from a')).rows[0]?.n,
      20_000,
      'the same session reads it once storage is back',
    );
    await client.end();
    assert.match(
      c.log,
      /pgshim\[\d+\]: cannot fetch \d+ blocks? from block 0 of segment 0 of relation \d+\/\d+ fork 0: Input\/output error/,
    );
  });

  test('an agent that comes back within the limit is not noticed by the query', async () => {
    const client = await c.connect();
    await client.query('select 1');
    await c.stopAgent();
    const reading = client.query<{ n: number }>('select count(*)::int as n from b');
    await c.startAgent();
    assert.equal((await reading).rows[0]?.n, 20_000);
    await client.end();
  });

  test('an agent that stays away fails the query, and the compute lives on', async () => {
    const client = await c.connect();
    await client.query('select 1');
    await c.stopAgent();
    await assert.rejects(client.query('select count(*) from d'), { code: '58030' });
    assert.equal(
      (await client.query<{ n: number }>('select count(*)::int as n from b')).rows[0]?.n,
      20_000,
      'what is resident still reads',
    );
    await c.startAgent();
    assert.equal((await client.query<{ n: number }>('select count(*)::int as n from d')).rows[0]?.n, 20_000);
    await client.end();
    assert.ok(c.map.counters().errors >= 2);
    assert.doesNotMatch(c.log, /PANIC|terminated by signal/);
  });
});
