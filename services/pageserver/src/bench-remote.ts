/** Reads of a timeline whose layers are in the object store, as a program: `node bench-remote.ts --template DIR --wal DIR [--end LSN] [--latency MS]`.
 *  Ingests the WAL, copies the layers into a directory store, and compares: GetPage with whole local layers, with none (a miss each), again once they
 *  came, and after a restart with a warm-up by heat; attach time; GETs and bytes. `--latency` is added to every GET, as an object store has some. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { LakebaseError, silentLogger, sleep } from '@lakebase/base';
import { type Lsn, MAX_LSN, type ProjectUid, type RelTag, type TimelineId, parseLsn } from '@lakebase/ids';
import { FrameCache, LayerCache, layerBytesOf } from '@lakebase/layers';
import { DirectoryStore, type GetOptions, type ObjectBytes, timelineObject } from '@lakebase/object-store';
import { readControlFile } from '@lakebase/pg-format';
import { randomPages } from './bench-pages.ts';
import { walChunks } from './bench-wal.ts';
import { runCompaction } from './compaction-job.ts';
import { CacheBudget } from './page-cache.ts';
import { TimelineStorage } from './storage.ts';
import { TEST_PROJECT, TEST_TIMELINE, createTimeline, testConfig, testKeys } from './testing.ts';
import { Timeline } from './timeline.ts';
import { warmUp } from './warm-up.ts';

const { values } = parseArgs({
  options: {
    template: { type: 'string' },
    wal: { type: 'string' },
    end: { type: 'string' },
    latency: { type: 'string', default: '0' },
    chunk: { type: 'string', default: '262144' },
    requests: { type: 'string', default: '2000' },
    scratch: { type: 'string' },
  },
});
if (values.template === undefined || values.wal === undefined)
  throw new LakebaseError('CONFIG', 'usage: bench-remote.ts --template DIR --wal DIR [--end LSN] [--latency MS] [--chunk BYTES]');
const latency = Number(values.latency);

class SlowStore extends DirectoryStore {
  override async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    if (latency > 0) await sleep(latency);
    return super.get(key, options);
  }
}

const directory = mkdtempSync(join(values.scratch ?? tmpdir(), 'lb-remote-'));
const round = (n: number): number => Math.round(n * 100) / 100;
try {
  const config = testConfig(directory);
  const systemId = String(readControlFile(readFileSync(join(values.template, 'global/pg_control'))).systemId);
  const local = await createTimeline(directory, values.template, systemId, config);
  const end = values.end === undefined ? MAX_LSN : parseLsn(values.end);
  const decoder = local.newDecoder();
  for await (const chunk of walChunks(values.wal, local.lastRecordLsn, end)) {
    decoder.push(chunk);
    await local.ingestFrom(decoder, true);
  }
  await local.checkpoint();
  await local.storage.settled();
  await local.storage.compact();
  const head = local.lastRecordLsn;
  const store = new SlowStore(join(directory, 'objects'));
  const names = local.storage.index.layers.map((d) => d.name);
  for (const d of local.storage.index.layers)
    await store.put(timelineObject(TEST_PROJECT as ProjectUid, TEST_TIMELINE as TimelineId, d.name), {
      path: join(local.storage.files.directory, d.name),
      size: d.bytes,
    });
  const layerBytes = layerBytesOf(local.storage.index);
  await local.storage.setRemote({ generation: 1, version: local.storage.index.version, diskConsistentLsn: head, names });
  let largest: { tag: RelTag; blocks: number } = { tag: { spc: 0, db: 0, rel: 0, fork: 0 }, blocks: 0 };
  for (const id of local.catalog.relations()) {
    const s = local.catalog.series.get(id);
    const blocks = local.catalog.blocks(id);
    if (s.fork === 0 && blocks > largest.blocks) largest = { tag: { spc: s.spc, db: s.db, rel: s.rel, fork: 0 }, blocks };
  }
  const requests = randomPages(largest.tag, largest.blocks, Number(values.requests));

  const quantile = (taken: number[], q: number): number => {
    taken.sort((x, y) => x - y);
    return Math.round((taken[Math.floor(taken.length * q)] ?? 0) * 1_000);
  };
  /** Reads that waited for a GET apart. */
  const reads = async (t: Timeline): Promise<Record<string, number>> => {
    t.cache.clear();
    const counters = t.storage.files.layers?.counters ?? { gets: 0 };
    const hits: number[] = [];
    const misses: number[] = [];
    const started = performance.now();
    for (const { tag, block } of requests) {
      const gets = counters.gets;
      const began = performance.now();
      await t.pages(tag, block, 1, head as Lsn);
      (counters.gets > gets ? misses : hits).push(performance.now() - began);
    }
    const missed = { misses: misses.length, missP50Us: quantile(misses, 0.5), missP99Us: quantile(misses, 0.99) };
    const seconds = round((performance.now() - started) / 1_000);
    return { p50Us: quantile(hits, 0.5), p99Us: quantile(hits, 0.99), ...(misses.length === 0 ? {} : missed), seconds };
  };
  const result: Record<string, unknown> = {
    layers: names.length,
    layerMb: round(layerBytes / 1e6),
    pages: largest.blocks,
    local: await reads(local),
  };
  await local.close();

  const attach = async (name: string): Promise<{ t: Timeline; cache: LayerCache; ms: number }> => {
    const dir = join(directory, name);
    mkdirSync(dir, { recursive: true });
    for (const file of readdirSync(local.storage.files.directory))
      if (!file.endsWith('.layer')) cpSync(join(local.storage.files.directory, file), join(dir, file));
    const cache = new LayerCache({ store, chunkBytes: Number(values.chunk) });
    const began = performance.now();
    const files = {
      directory: dir,
      keys: testKeys.project(TEST_PROJECT),
      cache: new FrameCache(32 << 20),
      layers: cache,
      project: TEST_PROJECT,
      timeline: TEST_TIMELINE,
    };
    const storage = (await TimelineStorage.open(files, config, runCompaction, silentLogger)) as TimelineStorage;
    const t = await Timeline.open(storage, config, new CacheBudget(config.pageCacheBytes), silentLogger);
    return { t, cache, ms: round(performance.now() - began) };
  };
  const figures = (cache: LayerCache): Record<string, number> => ({
    gets: cache.counters.gets,
    getMb: round(cache.counters.getBytes / 1e6),
    getsPerGb: Math.round((cache.counters.gets * 2 ** 30) / cache.counters.getBytes),
  });
  const cold = await attach('cold');
  result['attachMs'] = cold.ms;
  result['attachGets'] = figures(cold.cache);
  result['remote'] = await reads(cold.t);
  result['remoteGets'] = figures(cold.cache);
  result['again'] = await reads(cold.t);
  const heat = cold.t.heat.runs(cold.t.catalog.series);
  await cold.t.close();
  const warm = await attach('warm');
  const warmed = await warmUp(warm.t, [], heat, silentLogger);
  result['warmUp'] = { seconds: round(warmed.seconds), runs: warmed.runs, ...figures(warm.cache) };
  result['warm'] = await reads(warm.t);
  const whole = performance.now();
  for (const l of warm.t.storage.set.layers) await l.cached?.makeWhole();
  result['allLocalSeconds'] = round((performance.now() - whole) / 1_000);
  await warm.t.close();
  process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
} finally {
  rmSync(directory, { recursive: true, force: true });
}
