/** Storage benchmarks on real WAL, as a program: `node bench.ts --template DIR --wal DIR [--end LSN] [--warm LSN] [--scratch DIR]` prints one JSON object.
 *  DIR of `template` is a data directory as initdb left it; `wal` holds the segments written from its end on.
 *  Figures: decode and decode+index rate in one thread, whole ingest with flushing, apply rate of redo, GetPage over TCP at depth 1 and 64. */
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { FrameParser, MSG, encodeHello, encodeRequest, internalToken } from '@lakebase/api';
import { LakebaseError, silentLogger } from '@lakebase/base';
import {
  BLCKSZ,
  type ForkNumber,
  type Lsn,
  MAX_LSN,
  type RelTag,
  WAL_SEGMENT_BYTES,
  parseLsn,
  parseProjectUid,
  parseTimelineId,
} from '@lakebase/ids';
import { OpenLayer, SeriesTable, scanValues } from '@lakebase/layers';
import { WalDecoder, readControlFile } from '@lakebase/pg-format';
import { Catalog } from './catalog.ts';
import { Ingest } from './ingest.ts';
import { startPageserver } from './server.ts';
import { TEST_PROJECT, TEST_TIMELINE, createTimeline, ingestFiles, testConfig } from './testing.ts';
import type { Timeline } from './timeline.ts';

const CHUNK_BYTES = 131_072;
const SECRET = 'cd'.repeat(32);

/** Segments from `from` on, cut to chunks as a walsender would send them; ends at `end` or where the WAL ends. */
function walChunks(walDir: string, from: Lsn, end: Lsn): Buffer[] {
  const chunks: Buffer[] = [];
  const names = readdirSync(walDir)
    .filter((n) => /^[0-9A-F]{24}$/.test(n))
    .sort();
  for (const name of names) {
    const segment = (Number.parseInt(name.slice(8, 16), 16) * 256 + Number.parseInt(name.slice(16), 16)) * WAL_SEGMENT_BYTES;
    if (segment + WAL_SEGMENT_BYTES <= from || segment >= end) continue;
    const bytes = readFileSync(join(walDir, name));
    for (let at = Math.max(0, from - segment); at < bytes.length && segment + at < end; ) {
      const to = Math.min(bytes.length, at + CHUNK_BYTES, end - segment);
      chunks.push(bytes.subarray(at, to));
      at = to;
    }
  }
  return chunks;
}

/** `perCpuSecond` is what a busy machine leaves comparable. */
function timed(run: () => number): { records: number; seconds: number; perSecond: number; perCpuSecond: number } {
  const start = performance.now();
  const cpu = process.cpuUsage();
  const records = run();
  const used = process.cpuUsage(cpu);
  const seconds = (performance.now() - start) / 1_000;
  return {
    records,
    seconds: round(seconds),
    perSecond: Math.round(records / seconds),
    perCpuSecond: Math.round(records / ((used.user + used.system) / 1e6)),
  };
}
const round = (n: number): number => Math.round(n * 1_000) / 1_000;

function decodeAll(timeline: Timeline, chunks: readonly Buffer[], each: (decoder: WalDecoder) => number): number {
  const decoder = timeline.newDecoder();
  let records = 0;
  for (const chunk of chunks) {
    decoder.push(chunk);
    records += each(decoder);
  }
  return records;
}

/** Decode and index without flushing: layers are thrown away when full. */
function indexAll(timeline: Timeline, chunks: readonly Buffer[], layerBytes: number): number {
  const series = new SeriesTable();
  const lsn = timeline.lastRecordLsn;
  const catalog = Catalog.load(scanValues([], timeline.storage.set, lsn), series, lsn);
  const ingest = new Ingest(new OpenLayer(series, lsn), catalog, timeline.major, 1_000);
  return decodeAll(timeline, chunks, (decoder) => {
    let n = 0;
    for (let record = decoder.next(); record !== undefined; record = decoder.next(), n++) {
      ingest.apply(record);
      if (ingest.layer.byteCount > layerBytes) ingest.layer = new OpenLayer(series, record.endLsn);
    }
    ingest.hot.length = 0;
    ingest.veryHot.length = 0;
    return n;
  });
}

async function applyRate(
  timeline: Timeline,
): Promise<{ pages: number; applied: number; seconds: number; perSecond: number; perCpuSecond: number }> {
  timeline.cache.clear();
  const before = timeline.reader.applied;
  const start = performance.now();
  const cpu = process.cpuUsage();
  let pages = 0;
  for (const id of timeline.catalog.relations()) {
    const s = timeline.catalog.series.get(id);
    const blocks = Math.min(timeline.catalog.blocks(id), 3_000);
    if (s.fork !== 0) continue;
    pages += (await timeline.pages({ ...s, fork: s.fork as ForkNumber }, 0, blocks, timeline.lastRecordLsn)).length;
  }
  const seconds = (performance.now() - start) / 1_000;
  const used = process.cpuUsage(cpu);
  const applied = timeline.reader.applied - before;
  return {
    pages,
    applied,
    seconds: round(seconds),
    perSecond: Math.round(applied / seconds),
    perCpuSecond: Math.round(applied / ((used.user + used.system) / 1e6)),
  };
}

/** GetPage over the socket: random blocks of one relation at a given depth. */
async function getPages(
  port: number,
  tag: RelTag,
  blocks: number,
  depth: number,
  requests: number,
): Promise<{ perSecond: number; medianUs: number; p99Us: number }> {
  const socket = connect(port, '127.0.0.1');
  socket.setNoDelay(true);
  const parser = new FrameParser(1 << 24);
  const sent = new Float64Array(requests + 1);
  const taken: number[] = [];
  let next = 1;
  let seed = 1;
  const random = (): number => (seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fff_ffff);
  const send = (): void => {
    if (next > requests) return;
    sent[next] = performance.now();
    socket.write(
      encodeRequest({
        type: 'getPages',
        id: next++,
        tag,
        block: random() % blocks,
        count: 1,
        requestLsn: MAX_LSN,
        notModifiedSince: 0 as Lsn,
      }),
    );
  };
  const start = performance.now();
  await new Promise<void>((resolve, reject) => {
    socket.on('error', reject);
    socket.on('data', (chunk: Buffer) =>
      parser.push(chunk, (frame) => {
        if (frame.type === MSG.HELLO_OK) {
          for (let i = 0; i < depth; i++) send();
          return;
        }
        if (frame.type !== MSG.PAGES || frame.payload.length !== 2 + BLCKSZ)
          return reject(new LakebaseError('INTERNAL', 'a request failed'));
        taken.push(performance.now() - (sent[frame.id] as number));
        if (taken.length === requests) resolve();
        else send();
      }),
    );
    socket.write(
      encodeHello({
        token: internalToken(SECRET, 'service'),
        project: parseProjectUid(TEST_PROJECT),
        timeline: parseTimelineId(TEST_TIMELINE),
      }),
    );
  });
  const seconds = (performance.now() - start) / 1_000;
  socket.destroy();
  taken.sort((a, b) => a - b);
  const at = (q: number): number => Math.round((taken[Math.floor(taken.length * q)] as number) * 1_000);
  return { perSecond: Math.round(requests / seconds), medianUs: at(0.5), p99Us: at(0.99) };
}

const { values } = parseArgs({
  options: {
    template: { type: 'string' },
    wal: { type: 'string' },
    end: { type: 'string' },
    warm: { type: 'string' },
    scratch: { type: 'string' },
  },
});
if (values.template === undefined || values.wal === undefined)
  throw new LakebaseError('CONFIG', 'usage: bench.ts --template DIR --wal DIR [--end LSN] [--warm LSN] [--scratch DIR]');
const directory = mkdtempSync(join(values.scratch ?? tmpdir(), 'lb-psbench-'));
try {
  const systemId = String(readControlFile(readFileSync(join(values.template, 'global/pg_control'))).systemId);
  const config = testConfig(directory);
  const timeline = await createTimeline(directory, values.template, systemId, config);
  // What comes before (loading of tables) is ingested but not measured.
  if (values.warm !== undefined) await ingestFiles(timeline, values.wal, parseLsn(values.warm), true);
  const end = values.end === undefined ? MAX_LSN : parseLsn(values.end);
  const chunks = walChunks(values.wal, timeline.lastRecordLsn, end);
  const walBytes = chunks.reduce((n, c) => n + c.length, 0);
  const count = (decoder: WalDecoder): number => {
    let n = 0;
    while (decoder.next() !== undefined) n++;
    return n;
  };
  const result: Record<string, unknown> = { walBytes };
  result['decode'] = timed(() => decodeAll(timeline, chunks, count));
  if (process.env['BENCH_ONLY'] === 'index')
    for (let i = 0; i < 5; i++) console.error(timed(() => indexAll(timeline, chunks, config.openLayerBytes)));
  result['decodeAndIndex'] = timed(() => indexAll(timeline, chunks, config.openLayerBytes));
  const warmed = timeline.recordsIngested;
  const start = performance.now();
  const cpu = process.cpuUsage();
  await ingestFiles(timeline, values.wal, end, true);
  const used = process.cpuUsage(cpu);
  const ingestSeconds = (performance.now() - start) / 1_000;
  await timeline.checkpoint();
  result['ingest'] = {
    records: timeline.recordsIngested - warmed,
    seconds: round(ingestSeconds),
    perSecond: Math.round((timeline.recordsIngested - warmed) / ingestSeconds),
    perCpuSecond: Math.round((timeline.recordsIngested - warmed) / ((used.user + used.system) / 1e6)),
    withFlushSeconds: round((performance.now() - start) / 1_000),
    layers: timeline.storage.set.layers.length,
  };
  result['apply'] = await applyRate(timeline);
  let largest: { tag: RelTag; blocks: number } | undefined;
  for (const id of timeline.catalog.relations()) {
    const s = timeline.catalog.series.get(id);
    const blocks = timeline.catalog.blocks(id);
    if (s.fork === 0 && blocks > (largest?.blocks ?? 0)) largest = { tag: { spc: s.spc, db: s.db, rel: s.rel, fork: 0 }, blocks };
  }
  await timeline.close();
  if (largest !== undefined) {
    // The same files, served by the real listener.
    const { mkdirSync, renameSync } = await import('node:fs');
    mkdirSync(join(directory, 'timelines', TEST_PROJECT), { recursive: true });
    renameSync(join(directory, 'timeline'), join(directory, 'timelines', TEST_PROJECT, TEST_TIMELINE));
    const server = await startPageserver(config, SECRET, silentLogger);
    result['getPage'] = {
      blocks: largest.blocks,
      coldDepth64: await getPages(server.pagePort, largest.tag, largest.blocks, 64, 20_000),
      depth1: await getPages(server.pagePort, largest.tag, largest.blocks, 1, 10_000),
      depth64: await getPages(server.pagePort, largest.tag, largest.blocks, 64, 40_000),
      hotDepth64: await getPages(server.pagePort, largest.tag, Math.min(4_000, largest.blocks), 64, 40_000),
    };
    await server.close();
  }
  process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
} finally {
  rmSync(directory, { recursive: true, force: true });
}
