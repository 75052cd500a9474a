/** WAL whose checksums are right and whose contents lie, through ingest and the catalog: a typed error or entries in proportion to the record, never
 *  a crash, an endless loop or memory out of proportion; and a start bundle that is refused by size instead of built.
 *  `LAKEBASE_FUZZ_CASES` (default 20,000) and `LAKEBASE_FUZZ_SEED` make it longer. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, segmentNumber, walFileName } from '@lakebase/ids';
import { OpenLayer, SeriesTable, scanValues } from '@lakebase/layers';
import { WalDecoder, decodeRecord, newDecodedRecord, readControlFile, recordCrc, recordCrcMatches } from '@lakebase/pg-format';
import { SLRU_MULTIXACT_MEMBERS, SLRU_XACT } from '@lakebase/pg-redo';
import { StockPostgres } from '@lakebase/testkit';
import pg from 'pg';
import { buildStartBundle } from './bundle.ts';
import { Catalog } from './catalog.ts';
import { Ingest } from './ingest.ts';
import { createTimeline, testConfig } from './testing.ts';
import type { Timeline } from './timeline.ts';

const CASES = Number(process.env['LAKEBASE_FUZZ_CASES'] ?? 20_000);
const SEED = Number(process.env['LAKEBASE_FUZZ_SEED'] ?? Date.now() % 0x1_0000_0000);
/** Entries and values one record may file: each names a block, an xid or a segment that the record spells out in at least two bytes. */
const ENTRIES_PER_BYTE = 1;
const SLOW_MS = 250;

/** mulberry32. */
function randomOf(seed: number): (below: number) => number {
  let a = seed >>> 0;
  return (below) => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

const EXTREMES = [0, 1, 2, 7, 8, 0x7f, 0xff, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];

function mutated(record: Buffer, random: (below: number) => number): Buffer {
  const out = Buffer.from(record);
  for (let n = 1 + random(3); n > 0; n--) {
    // Behind the length, which the reader of WAL answers for; the header's xid and info are part of the game.
    const at = 4 + random(out.length - 4);
    const value = random(2) === 0 ? (EXTREMES[random(EXTREMES.length)] as number) : random(0x1_0000_0000);
    if (random(2) === 0 || at + 4 > out.length) out[at] = value;
    else out.writeUInt32LE(value, at);
  }
  out.writeUInt32LE(recordCrc(out, 0, out.length), 20);
  return out;
}

describe('hostile WAL', () => {
  let directory: string;
  let timeline: Timeline;
  const records: { bytes: Buffer; lsn: Lsn; endLsn: Lsn }[] = [];

  before(async () => {
    directory = mkdtempSync(join(tmpdir(), 'lb-hostile-'));
    const server = await StockPostgres.start({
      settings: { wal_level: 'logical', track_commit_timestamp: 'on', max_prepared_transactions: '5' },
    });
    try {
      const client = new pg.Client({ ...server.clientConfig, database: 'postgres' });
      await client.connect();
      for (const sql of [
        'create table t (id int primary key, v text)',
        "insert into t select i, repeat('x', i % 90) from generate_series(1, 3000) i",
        'update t set v = v || 1 where id % 3 = 0; delete from t where id % 7 = 0; vacuum t',
        'create database copied strategy wal_log; ',
        'create database filed strategy file_copy',
        'drop database filed',
        'begin; select * from t where id < 40 for share; savepoint a; update t set v = 1 where id < 20; commit',
        "begin; insert into t values (-1, 'p'); prepare transaction 'one'",
        "commit prepared 'one'",
        'create table cut as select * from t; delete from cut where id > 200; vacuum cut; truncate cut; drop table cut',
        "create sequence s; select nextval('s') from generate_series(1, 100)",
        "select pg_logical_emit_message(true, 'a', repeat('b', 100))",
        "select pg_replication_origin_create('o')",
        'checkpoint',
      ])
        for (const one of sql.split('; ').filter((s) => s.trim() !== '')) await client.query(one);
      await client.end();
      await server.stop();
      const control = readControlFile(readFileSync(join(server.pgdata, 'global/pg_control')));
      const config = testConfig(directory);
      timeline = await createTimeline(directory, server.pgdata, String(control.systemId), config);
      recordsOf(server.pgdata, control.systemId);
    } finally {
      await server[Symbol.asyncDispose]();
    }
  });
  after(async () => {
    await timeline?.close();
    rmSync(directory, { recursive: true, force: true });
  });

  function recordsOf(pgdata: string, systemId: bigint): void {
    const file = join(pgdata, 'pg_wal', walFileName(1));
    const bytes = readFileSync(file);
    const decoder = new WalDecoder({ startLsn: (WAL_SEGMENT_BYTES + 40) as Lsn, major: 18, systemId });
    assert.equal(segmentNumber(WAL_SEGMENT_BYTES), 1);
    decoder.push(bytes.subarray(40));
    try {
      for (let r = decoder.next(); r !== undefined; r = decoder.next()) {
        const copy = Buffer.from(r.buf.subarray(r.offset, r.offset + r.length));
        if (recordCrcMatches(copy, 0, copy.length)) records.push({ bytes: copy, lsn: r.lsn, endLsn: r.endLsn });
      }
    } catch (error) {
      // The unused rest of the segment.
      assert.ok(records.length > 0, String(error));
    }
  }

  const freshCatalog = (): Catalog =>
    Catalog.load(scanValues([], timeline.storage.set, timeline.lastRecordLsn), new SeriesTable(), timeline.lastRecordLsn);

  test(`${CASES} records, seed ${SEED}`, () => {
    assert.ok(records.length > 2_000, `${records.length} records`);
    // Of each kind as many: most records are inserts.
    const kinds = new Map<number, typeof records>();
    for (const r of records) {
      const kind = ((r.bytes[17] as number) << 8) | ((r.bytes[16] as number) & 0xf0);
      kinds.set(kind, [...(kinds.get(kind) ?? []).slice(-200), r]);
    }
    const lists = [...kinds.values()];
    const random = randomOf(SEED);
    const scratch = newDecodedRecord();
    let catalog = freshCatalog();
    let lsn = timeline.lastRecordLsn;
    let ingest = new Ingest(new OpenLayer(catalog.series, lsn), catalog, 18, 512);
    let refused = 0;
    for (let n = 0; n < CASES; n++) {
      const list = lists[random(lists.length)] as typeof records;
      const { bytes } = list[random(list.length)] as (typeof records)[number];
      const hostile = mutated(bytes, random);
      const start = lsn;
      lsn = (lsn + ((hostile.length + 7) & ~7)) as Lsn;
      const entries = ingest.layer.entryCount;
      const series = catalog.series.count;
      const apply = (): number => {
        const started = performance.now();
        try {
          ingest.apply(decodeRecord(hostile, 0, hostile.length, start, lsn, scratch));
        } catch (error) {
          assert.ok(isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED'), `case ${n}, seed ${SEED}: ${(error as Error).stack}`);
          refused++;
        }
        return performance.now() - started;
      };
      const took = apply();
      const filed = ingest.layer.entryCount - entries + catalog.series.count - series;
      const proportional = 64 + hostile.length * ENTRIES_PER_BYTE;
      // Dropping a database files the end of each of its relations.
      const drops = ingest.copies.length > 0 || hostile[17] === 4;
      assert.ok(drops || filed <= proportional, `case ${n}, seed ${SEED}: ${filed} entries and series from ${hostile.length} bytes`);
      // The machine may have been busy elsewhere: only what is slow every time is slow.
      if (took > SLOW_MS) assert.ok(Math.min(apply(), apply()) < SLOW_MS, `case ${n}, seed ${SEED}: takes ${Math.round(took)} ms`);
      ingest.copies.length = 0;
      ingest.hot.length = 0;
      ingest.veryHot.length = 0;
      if (ingest.layer.full || n % 5_000 === 4_999) {
        catalog = freshCatalog();
        ingest = new Ingest(new OpenLayer(catalog.series, lsn), catalog, 18, 512);
      }
    }
    assert.ok(refused > CASES / 100 && refused < CASES, `${refused} of ${CASES} refused`);
  });

  test('a start bundle with absurd transaction status is refused by its size, before memory is taken for it', async () => {
    const before = await buildStartBundle(timeline, timeline.lastRecordLsn, []);
    for (const kind of [SLRU_XACT, SLRU_MULTIXACT_MEMBERS]) {
      const segments = timeline.catalog.slru[kind] as Map<number, number>;
      const kept = new Map(segments);
      for (let segment = 0; segment < 4_096; segment++) segments.set(segment, 32);
      await assert.rejects(buildStartBundle(timeline, timeline.lastRecordLsn, []), /RESOURCE_EXHAUSTED|transaction status|too large/);
      segments.clear();
      for (const [segment, pages] of kept) segments.set(segment, pages);
    }
    assert.equal((await buildStartBundle(timeline, timeline.lastRecordLsn, [])).length, before.length);
  });
});
