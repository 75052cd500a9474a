/** Storage benchmarks on real WAL, as a program: `node bench.ts --template DIR --wal DIR [--end LSN] [--warm LSN] [--scratch DIR]` prints one JSON object.
 *  DIR of `template` is a data directory as initdb left it; `wal` holds the segments written from its end on.
 *  Figures: decode and decode+index rate in one thread, whole ingest until all is durable, redo of every record, GetPage over TCP. */
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { LakebaseError, silentLogger } from '@lakebase/base';
import { MAX_LSN, type RelTag, parseLsn } from '@lakebase/ids';
import { OpenLayer, SeriesTable, scanValues } from '@lakebase/layers';
import { WalDecoder, readControlFile } from '@lakebase/pg-format';
import { askPages, pagesWithRecords, randomPages } from './bench-pages.ts';
import { RedoRun } from './bench-redo.ts';
import { walChunks } from './bench-wal.ts';
import { Catalog } from './catalog.ts';
import { Compactor } from './compactor.ts';
import { Ingest } from './ingest.ts';
import { startPageserver } from './server.ts';
import { TEST_PROJECT, TEST_TIMELINE, createTimeline, ingestFiles, testConfig, testServiceKeys } from './testing.ts';
import type { Timeline } from './timeline.ts';

const SECRET = 'cd'.repeat(32);

interface Timing {
  readonly records: number;
  readonly seconds: number;
  readonly perSecond: number;
  /** Of this thread: what a busy machine leaves comparable. */
  readonly perCpuSecond: number;
}

/** The median of three passes, by processor time, after two that only warm up: a pageserver runs for weeks, and the compiling of its code is
 *  not part of what is compared. */
function timed(run: () => number, before: () => void = () => {}): Timing {
  const passes: Timing[] = [];
  for (let pass = -2; pass < 3; pass++) {
    before();
    const start = performance.now();
    const cpu = process.threadCpuUsage();
    const records = run();
    const used = process.threadCpuUsage(cpu);
    const seconds = (performance.now() - start) / 1_000;
    const perCpuSecond = Math.round(records / ((used.user + used.system) / 1e6));
    if (pass >= 0) passes.push({ records, seconds: round(seconds), perSecond: Math.round(records / seconds), perCpuSecond });
  }
  return passes.sort((a, b) => a.perCpuSecond - b.perCpuSecond)[1] as Timing;
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
      if (ingest.layer.byteCount > layerBytes) ingest.layer = new OpenLayer(series, record.endLsn, ingest.layer);
    }
    ingest.hot.length = 0;
    ingest.veryHot.length = 0;
    return n;
  });
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
const only = process.env['BENCH_ONLY']?.split(',');
const wanted = (name: string): boolean => only === undefined || only.includes(name);
const directory = mkdtempSync(join(values.scratch ?? tmpdir(), 'lb-psbench-'));
const compactor = new Compactor();
const flusher = new Compactor();
const delay = monitorEventLoopDelay({ resolution: 5 });
try {
  const systemId = String(readControlFile(readFileSync(join(values.template, 'global/pg_control'))).systemId);
  // What merging costs is not what ingest costs; reads see merged layers.
  const config = testConfig(directory, wanted('pages') ? {} : { compactionLayers: 1_000 });
  const timeline = await createTimeline(directory, values.template, systemId, config, compactor.run, flusher.run);
  // What comes before (loading of tables) is ingested but not measured.
  if (values.warm !== undefined) await ingestFiles(timeline, values.wal, parseLsn(values.warm), true);
  await timeline.checkpoint();
  await timeline.storage.settled();
  const end = values.end === undefined ? MAX_LSN : parseLsn(values.end);
  const chunks: Buffer[] = [];
  for await (const chunk of walChunks(values.wal, timeline.lastRecordLsn, end)) chunks.push(chunk);
  const result: Record<string, unknown> = { walBytes: chunks.reduce((n, c) => n + c.length, 0) };
  const drain = (decoder: WalDecoder): number => {
    let n = 0;
    while (decoder.next() !== undefined) n++;
    return n;
  };
  if (wanted('decode')) result['decode'] = timed(() => decodeAll(timeline, chunks, drain));
  if (wanted('index')) result['decodeAndIndex'] = timed(() => indexAll(timeline, chunks, config.openLayerBytes));
  if (wanted('redo')) {
    const run = new RedoRun(timeline.major);
    const first = timeline.newDecoder();
    for (const chunk of chunks) first.push(chunk);
    const pages = await run.load(first, timeline);
    const timing = timed(
      () => decodeAll(timeline, chunks, (decoder) => run.run(decoder)),
      () => run.reset(),
    );
    result['redo'] = { ...timing, applied: run.applied, pages };
  }
  if (wanted('ingest')) {
    const warmed = timeline.recordsIngested;
    delay.enable();
    const start = performance.now();
    const cpu = process.cpuUsage();
    const thread = process.threadCpuUsage();
    const decoder = timeline.newDecoder();
    for (const chunk of chunks) {
      decoder.push(chunk);
      await timeline.ingestFrom(decoder, true);
    }
    const ingestSeconds = (performance.now() - start) / 1_000;
    const ingesting = process.threadCpuUsage(thread);
    // All of it durable in layers; merging, which goes on in its own thread, is not waited for.
    await timeline.checkpoint();
    const used = process.cpuUsage(cpu);
    const seconds = (performance.now() - start) / 1_000;
    delay.disable();
    const records = timeline.recordsIngested - warmed;
    result['ingest'] = {
      records,
      seconds: round(seconds),
      perSecond: Math.round(records / seconds),
      perCpuSecond: Math.round(records / ((used.user + used.system) / 1e6)),
      readableSeconds: round(ingestSeconds),
      readablePerSecond: Math.round(records / ingestSeconds),
      readablePerCpuSecond: Math.round(records / ((ingesting.user + ingesting.system) / 1e6)),
      eventLoopDelayMaxMs: Math.round(delay.max / 1e6),
      layers: timeline.storage.set.layers.length,
    };
  }
  if (wanted('pages')) {
    const byRecords = [0, 1, 10, 100].map((records) => ({ records, requests: pagesWithRecords(timeline, records, 3_000) }));
    let largest: { tag: RelTag; blocks: number } | undefined;
    for (const id of timeline.catalog.relations()) {
      const s = timeline.catalog.series.get(id);
      const blocks = timeline.catalog.blocks(id);
      if (s.fork === 0 && blocks > (largest?.blocks ?? 0)) largest = { tag: { spc: s.spc, db: s.db, rel: s.rel, fork: 0 }, blocks };
    }
    await timeline.close();
    // The same files, served by the real listener.
    mkdirSync(join(directory, 'timelines', TEST_PROJECT), { recursive: true });
    renameSync(join(directory, 'timeline'), join(directory, 'timelines', TEST_PROJECT, TEST_TIMELINE));
    const server = await startPageserver(config, SECRET, silentLogger, testServiceKeys);
    const getPage: Record<string, unknown> = {};
    for (const { records, requests } of byRecords)
      if (requests.length > 0) getPage[`records${records}`] = await askPages(server.pagePort, SECRET, requests, 1);
    if (largest !== undefined) {
      getPage['blocks'] = largest.blocks;
      getPage['coldDepth64'] = await askPages(server.pagePort, SECRET, randomPages(largest.tag, largest.blocks, 5_000), 64);
      const few = randomPages(largest.tag, Math.min(4_000, largest.blocks), 20_000);
      getPage['hotDepth64'] = await askPages(server.pagePort, SECRET, few, 64);
    }
    result['getPage'] = getPage;
    await server.close();
  } else await timeline.close();
  process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
} finally {
  await compactor.close();
  await flusher.close();
  rmSync(directory, { recursive: true, force: true });
}
