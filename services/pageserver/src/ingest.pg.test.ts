/** Real WAL in, the same pages out: a stock server runs a workload and is shut down cleanly; its WAL goes through ingest, flushes and merges;
 *  then every page of every relation, every SLRU page and every map must equal the server's own files (hint bits and the like masked). */
import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { decodeStartBundle } from '@lakebase/api';
import { isCode } from '@lakebase/base';
import { BLCKSZ, type Lsn, type RelTag, formatLsn, parseRelPath, relPath } from '@lakebase/ids';
import {
  RM_LOGICALMSG_ID,
  SHUTDOWN_CHECKPOINT_BYTES,
  decodeCheckPoint,
  endOfRecord,
  readControlFile,
  recordCrc,
  recordCrcMatches,
} from '@lakebase/pg-format';
import { StockPostgres } from '@lakebase/testkit';
import pg from 'pg';
import { buildStartBundle } from './bundle.ts';
import { runCompaction, runJob } from './compaction-job.ts';
import type { RunJob } from './storage.ts';
import { createTimeline, ingestFiles, openTimeline, testConfig } from './testing.ts';
import type { Timeline } from './timeline.ts';

const controlOf = (pgdata: string) => readControlFile(readFileSync(join(pgdata, 'global/pg_control')));

async function withClient<T>(server: StockPostgres, database: string, run: (c: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ ...server.clientConfig, database });
  await client.connect();
  try {
    return await run(client);
  } finally {
    await client.end();
  }
}

async function workload(server: StockPostgres): Promise<void> {
  await withClient(server, 'postgres', async (c) => {
    await c.query('create table t (id int primary key, v text, n int)');
    await c.query('create index on t (v)');
    await c.query("insert into t select i, repeat('x', i % 200), i from generate_series(1, 20000) i");
    await c.query('update t set n = n + 1 where id % 3 = 0');
    await c.query('delete from t where id % 5 = 0');
    await c.query('vacuum t');
    await c.query("insert into t select i, repeat('y', i % 300), i from generate_series(30000, 40000) i");
    await c.query('create table doomed as select * from t');
    await c.query('drop table doomed');
    await c.query('create table cut as select * from t');
    await c.query('delete from cut where n > 2000');
    await c.query('vacuum cut');
    await c.query("insert into cut select i, 'again', i from generate_series(100000, 104000) i");
    await c.query('create table emptied as select * from t');
    await c.query('truncate emptied');
    await c.query('insert into emptied select * from t where id < 500');
    await c.query('begin');
    for (let i = 0; i < 40; i++) await c.query(`savepoint s${i}; update t set n = n + 1 where id = ${i * 7 + 1}`);
    await c.query('commit');
    await c.query('begin; select * from t where id < 50 for share; commit');
    await c.query('create unlogged table u (a int); insert into u select generate_series(1, 1000)');
    await c.query('create table hot (id int primary key, n int); insert into hot values (1, 0), (2, 0)');
    await c.query('do $$ begin for i in 1..3000 loop update hot set n = n + 1 where id = 1 + i % 2; end loop; end $$');
    await c.query('create database copied strategy file_copy');
    await c.query('create database logged strategy wal_log');
    await c.query('create database gone strategy file_copy');
    await c.query('drop database gone');
    await c.query('vacuum full t');
    await c.query('create index on t ((id::text || v))');
    await c.query('checkpoint');
  });
  await withClient(server, 'copied', async (c) => {
    await c.query('create table in_copy as select generate_series(1, 5000) a');
    await c.query('delete from in_copy where a % 2 = 0');
    await c.query('vacuum in_copy');
  });
}

/** What a page's relation is, asked from the server before it stops. */
async function relationKinds(server: StockPostgres): Promise<Map<string, string>> {
  const kinds = new Map<string, string>();
  const databases = await withClient(
    server,
    'postgres',
    async (c) => (await c.query('select oid::int, datname from pg_database where datallowconn')).rows as { oid: number; datname: string }[],
  );
  for (const { oid, datname } of databases) {
    await withClient(server, datname, async (c) => {
      const { rows } = await c.query(
        'select pg_relation_filenode(oid)::int8::text f, relkind, relisshared, relpersistence p from pg_class where pg_relation_filenode(oid) is not null',
      );
      for (const r of rows as { f: string; relkind: string; relisshared: boolean; p: string }[])
        kinds.set(`${r.relisshared ? 0 : oid}/${r.f}`, r.p === 'u' ? 'u' : r.relkind);
    });
  }
  return kinds;
}

/** Blanks what redo may leave different on a primary's page: LSN, checksum, hints, free space, dead line pointers of indexes. */
function mask(page: Buffer, kind: string): Buffer {
  const p = Buffer.from(page);
  const lower = p.readUInt16LE(12),
    upper = p.readUInt16LE(14);
  p.fill(0, 0, 10);
  p.writeUInt16LE(p.readUInt16LE(10) & ~7, 10);
  p.writeUInt32LE(0, 20);
  if (lower >= 24 && lower <= upper && upper <= BLCKSZ) p.fill(0, lower, upper);
  const items = Math.max(0, Math.floor((lower - 24) / 4));
  for (let i = 0; i < items && lower <= BLCKSZ; i++) {
    const id = p.readUInt32LE(24 + i * 4);
    const at = id & 0x7fff,
      flags = (id >>> 15) & 3,
      length = id >>> 17;
    if (kind === 'i') {
      p.writeUInt32LE((id & ~(3 << 15)) >>> 0, 24 + i * 4);
      continue;
    }
    if (flags !== 1 || at + 24 > BLCKSZ) continue;
    const infomask = p.readUInt16LE(at + 20);
    p.writeUInt16LE((infomask & 0x0300) === 0x0300 ? infomask & ~0x0c00 : infomask & ~0xfff0, at + 20);
    p.writeUInt32LE(0, at + 8);
    p.fill(0, at + length, Math.min(BLCKSZ, at + ((length + 7) & ~7)));
  }
  if (kind === 'i') {
    const opaque = p.readUInt16LE(16);
    if (opaque + 16 <= BLCKSZ) {
      p.writeUInt16LE(p.readUInt16LE(opaque + 12) & ~0x60, opaque + 12);
      p.writeUInt16LE(0, opaque + 14);
    }
  }
  return p;
}

/** Visibility maps are equal, but for CREATE DATABASE … WAL_LOG: it logs map pages as if their content were a hole, so that replay (a standby's
 *  too) has no bit set. A bit that is not set is always safe; one too many never. */
function sameMap(ours: Buffer, theirs: Buffer, mayLackBits: boolean): boolean {
  if (!mayLackBits) return ours.subarray(24).equals(theirs.subarray(24));
  for (let i = 24; i < BLCKSZ; i++) if (((ours[i] as number) & ~(theirs[i] as number)) !== 0) return false;
  return true;
}

async function comparePages(
  timeline: Timeline,
  pgdata: string,
  kinds: Map<string, string>,
  walLogged: number,
): Promise<{ pages: number; relations: number }> {
  const lsn = timeline.lastRecordLsn;
  const differences: string[] = [];
  let pages = 0,
    relations = 0;
  const compareRelation = async (tag: RelTag, bytes: Buffer): Promise<void> => {
    const name = relPath(tag);
    const kind = kinds.get(`${tag.db}/${tag.rel}`) ?? 'r';
    if (tag.fork === 1 || (kind === 'u' && tag.fork !== 3)) return;
    relations++;
    const blocks = bytes.length / BLCKSZ;
    const size = await timeline.relSize(tag, lsn);
    if (size !== blocks) return void differences.push(`${name}: ${size} blocks, the server has ${blocks}`);
    for (let b = 0; b < blocks; b += 128) {
      const got = await timeline.pages(tag, b, 128, lsn);
      for (const [i, page] of got.entries()) {
        const theirs = bytes.subarray((b + i) * BLCKSZ, (b + i + 1) * BLCKSZ);
        pages++;
        if (kind === 'S') continue; // WAL is up to 32 values ahead
        const same = tag.fork === 2 ? sameMap(page, theirs, tag.db === walLogged) : mask(page, kind).equals(mask(theirs, kind));
        if (!same) differences.push(`${name} block ${b + i} (${kind})`);
      }
    }
  };
  for (const dir of ['global', ...readdirSync(join(pgdata, 'base')).map((d) => `base/${d}`)]) {
    for (const file of readdirSync(join(pgdata, dir))) {
      const parsed = parseRelPath(`${dir}/${file}`);
      if (parsed !== undefined) await compareRelation(parsed.tag, readFileSync(join(pgdata, dir, file)));
    }
  }
  for (const id of timeline.catalog.relations()) {
    const s = timeline.catalog.series.get(id);
    const path = join(pgdata, relPath(s as RelTag));
    if (s.fork !== 1 && !readdirSync(join(path, '..')).includes(path.split('/').at(-1) as string))
      differences.push(`${relPath(s as RelTag)}: only we have it`);
  }
  assert.deepEqual(differences.slice(0, 20), [], `${differences.length} differences at ${formatLsn(lsn)}`);
  return { pages, relations };
}

async function compareBundle(timeline: Timeline, pgdata: string): Promise<void> {
  const started = performance.now();
  const bundle = decodeStartBundle(await buildStartBundle(timeline, timeline.lastRecordLsn, []));
  const ms = performance.now() - started;
  const files = new Map(bundle.files.map((f) => [f.path, f.bytes]));
  for (const dir of ['pg_xact', 'pg_multixact/offsets', 'pg_multixact/members']) {
    for (const name of readdirSync(join(pgdata, dir))) {
      const ours = files.get(`${dir}/${name}`);
      const theirs = readFileSync(join(pgdata, dir, name));
      assert.ok(ours !== undefined && ours.subarray(0, theirs.length).equals(theirs.subarray(0, ours.length)), `${dir}/${name}`);
    }
  }
  for (const [path, bytes] of files)
    if (path.endsWith('pg_filenode.map') || path.endsWith('PG_VERSION')) assert.ok(readFileSync(join(pgdata, path)).equals(bytes), path);
  const control = controlOf(pgdata);
  const ours = decodeCheckPoint(bundle.checkpoint);
  const theirs = control.checkPointCopy;
  assert.equal(bundle.prevRecordLsn, control.checkPoint);
  for (const field of [
    'nextFullXid',
    'nextOid',
    'nextMulti',
    'nextMultiOffset',
    'oldestXid',
    'oldestXidDb',
    'oldestMulti',
    'oldestMultiDb',
  ] as const)
    assert.equal(ours[field], theirs[field], field);
  assert.ok(bundle.relations.length > 900);
  console.log(`bundle: ${bundle.relations.length} relations, ${ms.toFixed(1)} ms`);
}

test('pages, sizes, SLRUs and counters equal those of a stock server after the same WAL', { timeout: 180_000 }, async () => {
  await using server = StockPostgres.create({
    settings: {
      full_page_writes: 'off',
      wal_keep_size: '4GB',
      max_wal_size: '2GB',
      shared_buffers: '64MB',
      fsync: 'off',
      autovacuum: 'off',
      wal_level: 'replica',
    },
  });
  const directory = mkdtempSync(join(tmpdir(), 'lb-ps-'));
  try {
    const config = testConfig(directory, { openLayerBytes: 8 << 20, layerFileBytes: 8 << 20, maxRecordsPerPage: 50, hotPageRecords: 100 });
    let started = performance.now();
    const flushed: number[] = [];
    const flush: RunJob = async (job, more) => {
      const layers = await runJob(job, more);
      flushed.push(...layers.map((l) => l.bytes));
      return layers;
    };
    const { systemId } = controlOf(server.pgdata);
    const timeline = await createTimeline(directory, server.pgdata, String(systemId), config, runCompaction, flush);
    console.log(`template and timeline: ${(performance.now() - started).toFixed(0)} ms`);

    await server.start();
    await workload(server);
    const kinds = await relationKinds(server);
    const walLogged = await withClient(server, 'logged', async (c) =>
      Number((await c.query('select oid from pg_database where datname = current_database()')).rows[0].oid),
    );
    await server.stop();
    const control = controlOf(server.pgdata);
    const end = endOfRecord(control.checkPoint, SHUTDOWN_CHECKPOINT_BYTES) as Lsn;

    started = performance.now();
    // What is on disk at some instants in the middle, flushes and merges under way: as a kill -9 would leave it.
    const walDir = join(server.pgdata, 'pg_wal');
    const begin = timeline.lastRecordLsn;
    const crashed: string[] = [];
    for (const part of [0.37, 0.81]) {
      await ingestFiles(timeline, walDir, (Math.floor((begin + (end - begin) * part) / 8192) * 8192) as Lsn);
      const copy = mkdtempSync(join(tmpdir(), 'lb-psc-'));
      cpSync(join(directory, 'timeline'), join(copy, 'timeline'), { recursive: true });
      crashed.push(copy);
    }
    await ingestFiles(timeline, walDir, end);
    assert.equal(timeline.lastRecordLsn, end);
    // Also of records with the images of many pages, which lie in a layer once for every page.
    assert.ok(flushed.length > 3 && Math.max(...flushed) < 2.5 * config.openLayerBytes, `layers of ${flushed.join(', ')} bytes`);
    console.log(
      `ingest: ${timeline.recordsIngested} records in ${(performance.now() - started).toFixed(0)} ms, ${timeline.storage.set.layers.length} layers`,
    );
    await compareBundle(timeline, server.pgdata);
    const first = await comparePages(timeline, server.pgdata, kinds, walLogged);
    console.log(`${first.pages} pages of ${first.relations} forks equal`);

    await timeline.checkpoint();
    await timeline.storage.compact();
    await timeline.close();
    const again = await openTimeline(directory, config);
    assert.equal(again.lastRecordLsn, end);
    await comparePages(again, server.pgdata, kinds, walLogged);
    await compareBundle(again, server.pgdata);
    await again.close();

    for (const copy of crashed) {
      const revived = await openTimeline(copy, config);
      assert.ok(revived.lastRecordLsn < end);
      await ingestFiles(revived, walDir, end);
      await comparePages(revived, server.pgdata, kinds, walLogged);
      await revived.close();
      rmSync(copy, { recursive: true });
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

test('a record without redo breaks only what follows it: named in the error, earlier reads go on, a restart tries again', {
  timeout: 120_000,
}, async () => {
  await using server = StockPostgres.create({
    settings: { full_page_writes: 'off', wal_keep_size: '1GB', fsync: 'off', autovacuum: 'off' },
  });
  const directory = mkdtempSync(join(tmpdir(), 'lb-psb-'));
  try {
    const config = testConfig(directory);
    const timeline = await createTimeline(directory, server.pgdata, String(controlOf(server.pgdata).systemId), config);
    await server.start();
    const tag = await withClient(server, 'postgres', async (c) => {
      await c.query('create table t (a int); insert into t values (1)');
      await c.query("select pg_logical_emit_message(false, 'lakebase', 'the record that becomes a stranger')");
      await c.query('insert into t select generate_series(1, 500)');
      const { rows } = await c.query(
        "select pg_relation_filenode('t')::int rel, (select oid::int from pg_database where datname = 'postgres') db",
      );
      return { spc: 1663, db: rows[0].db as number, rel: rows[0].rel as number, fork: 0 as const };
    });
    await server.stop();
    const end = endOfRecord(controlOf(server.pgdata).checkPoint, SHUTDOWN_CHECKPOINT_BYTES);
    // A record of an extension's resource manager, which we cannot know.
    makeForeign(join(server.pgdata, 'pg_wal'), 'the record that becomes a stranger');
    for (let round = 0; round < 2; round++) {
      const t = round === 0 ? timeline : await openTimeline(directory, config);
      await assert.rejects(
        ingestFiles(t, join(server.pgdata, 'pg_wal'), end),
        (e: unknown) => isCode(e, 'UNSUPPORTED') && /record [0-9A-F]+\/[0-9A-F]+ \(custom200/.test(e.message),
      );
      assert.equal(t.status().state, 'BROKEN');
      assert.match(t.status().error ?? '', /custom200/);
      assert.ok((await t.pages(tag, 0, 1, t.lastRecordLsn)).length === 1, 'reads at or below the last good record go on');
      await assert.rejects(t.waitFor(end), (e: unknown) => isCode(e, 'UNSUPPORTED'));
      await t.checkpoint();
      await t.close();
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

/** Gives the logical message with this text to a resource manager of an extension: its id and checksum change, nothing else. */
function makeForeign(walDir: string, text: string): void {
  for (const name of readdirSync(walDir).filter((n) => /^[0-9A-F]{24}$/.test(n))) {
    const bytes = readFileSync(join(walDir, name));
    const at = bytes.indexOf(text, 0, 'latin1');
    if (at < 0) continue;
    // Headers: record 24, long or short data header, then the message's own 32 and its prefix with the zero.
    for (let offset = (at & ~7) - 128; offset < at; offset += 8) {
      const length = bytes.readUInt32LE(offset);
      if (length < at - offset || length > 200 || bytes[offset + 17] !== RM_LOGICALMSG_ID || !recordCrcMatches(bytes, offset, length))
        continue;
      bytes[offset + 17] = 200;
      bytes.writeUInt32LE(recordCrc(bytes, offset, length), offset + 20);
      writeFileSync(join(walDir, name), bytes);
      return;
    }
  }
  assert.fail('the message is not in the WAL, or lies on two pages');
}
