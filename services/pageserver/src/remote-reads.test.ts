/** A timeline whose layers are in the object store only, against the same one with whole local files; heat maps; jobs whose inputs are remote. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isCode, silentLogger } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';
import { BLCKSZ, type Lsn, type ProjectUid, type RelTag, type TimelineId } from '@lakebase/ids';
import { LocalKeys } from '@lakebase/keys';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_VALUE,
  FrameCache,
  KIND_CHECKPOINT,
  KIND_CONTROL,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  LayerCache,
  type LayerCacheOptions,
  OpenLayer,
  SeriesTable,
} from '@lakebase/layers';
import { timelineObject } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import { runCompaction } from './compaction-job.ts';
import { HEAT_BLOCKS, HeatMap, decodeHeat, encodeHeat } from './heat.ts';
import { CacheBudget } from './page-cache.ts';
import { TimelineStorage } from './storage.ts';
import { testConfig } from './testing.ts';
import { Timeline } from './timeline.ts';
import { warmUp } from './warm-up.ts';

const root = mkdtempSync(join(tmpdir(), 'lb-remote-reads-'));
after(() => rmSync(root, { recursive: true, force: true }));
const PROJECT = '3'.repeat(32);
const TIMELINE = '4'.repeat(32);
const keys = new LocalKeys().project(PROJECT);
const rel = (n: number): RelTag => ({ spc: 1663, db: 5, rel: n, fork: 0 });
const BLOCKS = 240;
const START = 8;

test('a heat map keeps runs, hot first, within its bound', () => {
  const series = new SeriesTable();
  const heat = new HeatMap();
  const [a, b] = [1, 2].map((n) => series.intern(KIND_REL_PAGE, 1663, 5, n, 0)) as [number, number];
  for (let block = 0; block < 10 * HEAT_BLOCKS; block++) heat.note(a, block);
  heat.note(b, 5);
  heat.note(a, 3);
  const runs = heat.runs(series);
  assert.equal(runs.length, 11);
  assert.deepEqual([runs[0]?.rel, runs[0]?.block], [2, 0]);
  assert.deepEqual(decodeHeat(encodeHeat(runs)), runs);
  for (let block = 0; block < 100_000; block++) heat.note(b, block * HEAT_BLOCKS);
  assert.ok(heat.size <= 16_384 && heat.runs(series).length <= 16_384);
  for (const bytes of [Buffer.alloc(0), Buffer.from([1, 255, 255, 255, 255]), encodeHeat(runs).subarray(0, 20)])
    assert.throws(
      () => decodeHeat(bytes),
      (e: unknown) => isCode(e, 'CORRUPT'),
    );
});

interface Opened {
  readonly timeline: Timeline;
  readonly layers: LayerCache;
  readonly directory: string;
}

async function open(directory: string, store: MemoryStore, options: LayerCacheOptions = {}): Promise<Opened> {
  const layers = new LayerCache({ store, chunkBytes: 32_768, ...options });
  const files = { directory, keys, cache: new FrameCache(1 << 20), layers, project: PROJECT, timeline: TIMELINE };
  const config = testConfig(directory);
  const storage = await TimelineStorage.open(files, { ...config, compactionLayers: 1_000 }, runCompaction, silentLogger);
  assert.ok(storage !== undefined);
  return { timeline: await Timeline.open(storage, config, new CacheBudget(1 << 20), silentLogger), layers, directory };
}

/** A timeline with images of two relations at several LSNs, and its objects. */
async function build(): Promise<{ local: Opened; store: MemoryStore; lsns: Lsn[] }> {
  const directory = join(root, 'local');
  mkdirSync(directory);
  const store = new MemoryStore();
  const base = {
    project: PROJECT,
    timeline: TIMELINE,
    version: 0,
    generation: 1,
    pgVersion: 18,
    systemId: '1',
    startLsn: START,
    startPrevRecordLsn: 0,
  };
  const rest = { diskConsistentLsn: START, prevRecordLsn: 0, nextLayerNumber: 1, layers: [], suspend: null, bootSet: null, extra: {} };
  const files = { directory, keys, cache: new FrameCache(1 << 20), project: PROJECT, timeline: TIMELINE };
  await TimelineStorage.create(files, { ...base, ...rest });
  const storage = await TimelineStorage.open(
    files,
    { compactionLayers: 1_000, layerFileBytes: 1 << 20, maxRecordsPerPage: 200 },
    runCompaction,
    silentLogger,
  );
  assert.ok(storage !== undefined);
  const series = new SeriesTable();
  const lsns: Lsn[] = [];
  let lsn = START as Lsn;
  for (let round = 0; round < 4; round++) {
    const layer = new OpenLayer(series, lsn);
    lsn = (lsn + 8) as Lsn;
    lsns.push(lsn);
    const put = (kind: number, n: number, block: number, bytes: Buffer): void => {
      const id = n === 0 ? series.intern(kind, 0, 0, 0, 0) : series.intern(kind, 1663, 5, n, 0);
      layer.put(id, block, kind === KIND_REL_PAGE ? ENTRY_IMAGE : ENTRY_VALUE, ARG_STOP, lsn, bytes);
    };
    if (round === 0) {
      put(KIND_CHECKPOINT, 0, 0, Buffer.alloc(88));
      put(KIND_CONTROL, 0, 0, control());
    }
    for (const n of [7, 8]) {
      const size = Buffer.alloc(4);
      size.writeUInt32BE(BLOCKS);
      put(KIND_REL_SIZE, n, 0, size);
      for (let b = round; b < BLOCKS; b += round + 1) {
        const page = Buffer.alloc(BLCKSZ);
        // Something that does not compress away, below a page LSN of zero.
        for (let i = 8; i < BLCKSZ; i += 4) page.writeInt32LE(Math.imul(b * 31 + n * 7 + round + i, 0x9e3779b1), i);
        put(KIND_REL_PAGE, n, b, page);
      }
    }
    layer.freeze(lsn);
    storage.addFrozen(layer, lsn);
    await storage.flush();
    if (round === 1) await storage.compact();
  }
  for (const l of storage.set.layers) await store.put(objectOf(l.descriptor.name), readFileSync(l.path));
  await storage.setRemote({
    generation: 1,
    version: storage.index.version,
    diskConsistentLsn: lsn,
    names: storage.index.layers.map((d) => d.name),
  });
  await storage.close();
  return { local: await open(directory, store), store, lsns };
}
const objectOf = (name: string): string => timelineObject(PROJECT as ProjectUid, TIMELINE as TimelineId, name);

/** As much of a control file as anybody here looks at. */
function control(): Buffer {
  const bytes = Buffer.alloc(8_192);
  bytes.writeUInt32LE(1_800, 8);
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, 292)), 292);
  return bytes;
}

/** The same index, no layers. */
function emptied(from: string, name: string): string {
  const directory = join(root, name);
  mkdirSync(directory);
  for (const file of readdirSync(from)) if (!file.endsWith('.layer')) writeFileSync(join(directory, file), readFileSync(join(from, file)));
  return directory;
}

const samePages = async (a: Timeline, b: Timeline, lsns: readonly Lsn[]): Promise<void> => {
  for (const lsn of lsns)
    for (const n of [7, 8])
      for (let block = 0; block < BLOCKS; block += 80) {
        const [x, y] = await Promise.all([a, b].map((t) => t.pages(rel(n), block, 80, lsn)));
        assert.equal(x?.length, 80);
        assert.ok(
          x?.every((page, i) => page.equals(y?.[i] as Buffer)),
          `pages ${n}/${block} at ${lsn}`,
        );
      }
};

test('a timeline without local layers: attach, reads at every LSN, a merge, images, eviction, restart', async () => {
  const { local, store, lsns } = await build();
  store.calls.get = 0;
  const began = performance.now();
  const directory = emptied(local.directory, 'remote');
  let remote = await open(directory, store, { budgetBytes: 4 << 20 });
  const attachGets = store.calls.get;
  // Ends of each layer and their values; nothing of the pages.
  assert.ok(
    remote.layers.counters.getBytes < 2 << 20,
    `attached after ${remote.layers.counters.getBytes} bytes in ${attachGets} GETs, ${performance.now() - began} ms`,
  );
  await samePages(local.timeline, remote.timeline, lsns);
  await new Promise((resolve) => setImmediate(resolve));
  assert.ok(remote.layers.usedBytes <= 4 << 20);
  assert.ok(remote.layers.counters.evictions > 0, 'the budget is less than the layers');
  assert.equal(await remote.timeline.relSize(rel(7), lsns[0] as Lsn), BLOCKS);
  assert.equal(await remote.timeline.relSize(rel(9), lsns[0] as Lsn), undefined);

  // A run of blocks that are all remote costs few round trips.
  await remote.layers.makeRoom(1e9);
  remote.timeline.cache.clear();
  store.calls.get = 0;
  await remote.timeline.pages(rel(8), 0, 64, lsns[3] as Lsn);
  assert.ok(store.calls.get < 40, `${store.calls.get} GETs for 64 pages of ${remote.timeline.storage.set.layers.length} layers`);

  // Jobs fetch what they read; what is damaged on this disk only is no obstacle.
  await remote.layers.makeRoom(1e9);
  const input = remote.timeline.storage.set.layers.find((l) => l.descriptor.level === 0);
  assert.ok(input?.cached !== undefined);
  input.cached.pin();
  await input.cached.makeWhole();
  const damaged = readFileSync(input.path);
  damaged[damaged.length >> 1] = (damaged[damaged.length >> 1] as number) ^ 4;
  writeFileSync(input.path, damaged);
  input.cached.unpin();
  await remote.timeline.storage.compact();
  assert.ok(remote.layers.counters.rejected > 0);
  assert.ok(remote.timeline.storage.set.layers.every((l) => l.descriptor.level > 0));
  await samePages(local.timeline, remote.timeline, lsns);
  await remote.timeline.close();
  remote = await open(directory, store);
  await samePages(local.timeline, remote.timeline, lsns);
  await remote.timeline.close();
  await local.timeline.close();
});

test('what was read lately is remembered and fetched first after the disk was lost', async () => {
  rmSync(join(root, 'local'), { recursive: true, force: true });
  const { local, store, lsns } = await build();
  const head = lsns.at(-1) as Lsn;
  const first = await open(emptied(local.directory, 'heat1'), store);
  await first.timeline.pages(rel(8), 128, 100, head);
  first.timeline.heat.changes = 100;
  await first.timeline.checkpoint();
  const entry = first.timeline.storage.index.heat;
  assert.ok(entry !== undefined && entry !== null && existsSync(join(first.directory, entry.file)));
  await first.timeline.close();

  const second = await open(emptied(first.directory, 'heat2'), store);
  const runs = second.timeline.loadHeat();
  assert.deepEqual(
    runs.map((r) => [r.rel, r.block]),
    [[8, 128]],
  );
  const figures = await warmUp(second.timeline, [{ tag: rel(7), block: 3 }], runs, silentLogger);
  assert.deepEqual([figures.blocks, figures.runs], [1, 1]);
  store.calls.get = 0;
  await second.timeline.pages(rel(8), 128, 100, head);
  await second.timeline.pages(rel(7), 3, 1, head);
  assert.equal(store.calls.get, 0);
  assert.ok(second.layers.counters.getBytes > 0 && second.timeline.storage.set.layers.some((l) => !l.local), 'not all was fetched');
  await second.timeline.close();
  await local.timeline.close();
});
