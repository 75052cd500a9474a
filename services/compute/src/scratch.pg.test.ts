/** Nothing a running compute has on its disk can be read: markers planted wherever Postgres puts bytes, then every file of its data directory
 *  searched while it is stopped in its tracks. The same search finds them all when encryption is off, so it looks in the right places. */
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import type pg from 'pg';
import { ShimCompute } from './testing/shim-compute.ts';

const word = (what: string): string => `MARKER${what}MARKER`;

/** What must be found, without encryption, in files whose path matches. */
const PLACES: Record<string, RegExp> = {
  table: /^base\//,
  toast: /^base\//,
  index: /^base\//,
  wal: /^pg_wal\//,
  twophase: /^pg_(twophase|wal)\//,
  sort: /^base\/pgsql_tmp\//,
  snapshot: /^pg_logical|^pg_replslot|^pg_wal\//,
  setting: /^postgresql\.conf$/,
};

async function plant(c: ShimCompute): Promise<pg.Client[]> {
  const client = await c.connect();
  await client.query(`
    create table planted (id int, what text);
    alter table planted alter column what set storage plain;
    create index planted_what on planted (what);
    create table toasted (body text);
    alter table toasted alter column body set storage external;
    insert into planted values (1, '${word('table')}');
    insert into toasted values (repeat('${word('toast')}', 500));
    create table indexed (what text); create index indexed_what on indexed (what);
    insert into indexed values ('${word('index')}');
    select pg_logical_emit_message(true, 'marker', '${word('wal')}');
    create table prepared_too (what text)`);
  await client.query(`begin; insert into prepared_too values ('${word('twophase')}'); prepare transaction '${word('twophase')}'`);
  await client.query(`select pg_logical_emit_message(true, 'marker', '${word('snapshot')}')`);
  await client.query('checkpoint');
  // A cursor over a sort that does not fit keeps its temporary files as long as it is open.
  const sorting = await c.connect();
  await sorting.query(`set work_mem = '64kB'; begin;
    declare sorted cursor for select repeat(md5(g::text), 4) || '${word('sort')}' as k from generate_series(1, 20000) g order by k`);
  await sorting.query('fetch 10 from sorted');
  return [client, sorting];
}

interface Found {
  readonly markers: Set<string>;
  readonly files: number;
  /** Files in which something of ours or of Postgres's own texts was seen. */
  readonly readable: string[];
}

function search(c: ShimCompute): Found {
  const markers = new Set<string>();
  const readable: string[] = [];
  let files = 0;
  for (const entry of readdirSync(c.pgdata, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    const bytes = readFileSync(path);
    const relative = path.slice(c.pgdata.length + 1);
    files++;
    for (const [what, where] of Object.entries(PLACES)) if (where.test(relative) && bytes.includes(word(what))) markers.add(what);
    if (bytes.includes('MARKER') || bytes.includes('pg_catalog') || bytes.includes('PostgreSQL')) readable.push(relative);
  }
  return { markers, files, readable };
}

/** Also where the key must not be: command line and environment of every process of the compute. */
function processTexts(c: ShimCompute): Buffer[] {
  const own = readFileSync(`/proc/${c.pid}/task/${c.pid}/children`, 'utf8').trim().split(' ');
  return [String(c.pid), ...own].flatMap((pid) =>
    ['cmdline', 'environ'].flatMap((name) => {
      try {
        return [readFileSync(`/proc/${pid}/${name}`)];
      } catch {
        return []; // gone, or not ours to read: the shim made it so
      }
    }),
  );
}

function stopInItsTracks(c: ShimCompute, signal: 'STOP' | 'CONT'): void {
  const children = readFileSync(`/proc/${c.pid}/task/${c.pid}/children`, 'utf8').trim().split(' ');
  for (const pid of [...children, String(c.pid)]) process.kill(Number(pid), `SIG${signal}`);
}

async function run(plaintext: boolean, check: (found: Found, c: ShimCompute) => void | Promise<void>): Promise<void> {
  await using c = new ShimCompute({
    plaintext,
    settings: { max_prepared_transactions: '4', 'lakebase.marker': word('setting'), log_temp_files: '-1' },
  });
  await c.makeSource(async () => {});
  c.prepare();
  await c.start();
  const clients = await plant(c);
  stopInItsTracks(c, 'STOP');
  let found: Found;
  try {
    found = search(c);
    await check(found, c);
  } finally {
    stopInItsTracks(c, 'CONT');
  }
  for (const client of clients) await client.end();
}

describe('scratch of a running compute', () => {
  test('with encryption: no file holds a marker, or anything readable', () =>
    run(false, (found, c) => {
      assert.ok(found.files > 60, `${found.files} files`);
      assert.deepEqual([...found.markers], []);
      assert.deepEqual(found.readable, []);
      const key = c.cipher?.key ?? Buffer.alloc(0);
      for (const text of processTexts(c))
        for (const form of [key, Buffer.from(key.toString('hex')), Buffer.from(key.toString('base64'))])
          assert.ok(!text.includes(form), 'the key is in a command line or an environment');
      assert.match(readFileSync(`/proc/${c.pid}/limits`, 'utf8'), /Max core file size\s+0\s+0/);
      for (const file of readdirSync(c.pgdata, { recursive: true, withFileTypes: true }))
        if (file.isFile()) assert.ok(!readFileSync(join(file.parentPath, file.name)).includes(key.subarray(0, 32)), 'the key is in a file');
    }));

  test('without: the same search finds every one', () =>
    run(true, (found) => {
      assert.deepEqual([...found.markers].sort(), Object.keys(PLACES).sort());
      assert.ok(found.readable.length > 3);
    }));

  test('a program that Postgres runs reads nothing', async () => {
    await using c = new ShimCompute();
    await c.makeSource(async () => {});
    c.prepare();
    await c.start();
    const client = await c.connect();
    await client.query('create temporary table seen (line text)');
    await assert.rejects(client.query(`copy seen from program 'cat PG_VERSION'`), /failed|exit/);
    await client.query(`copy seen from program 'env; echo done'`);
    const { rows } = await client.query<{ line: string }>(`select line from seen`);
    assert.ok(rows.some((r) => r.line === 'done'));
    assert.ok(!rows.some((r) => r.line.includes('KEY')), 'not even the number of the descriptor');
    await client.end();
  });

  test('without a key Postgres does not start, and says why', async () => {
    await using c = new ShimCompute();
    await c.makeSource(async () => {});
    c.prepare();
    await assert.rejects(c.start({ LAKEBASE_SHIM_KEY_FD: '77' }), /the scratch key ends after 0 of 64 bytes/);
  });
});
