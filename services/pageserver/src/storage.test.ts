/** The stored side of a timeline: the maintenance worker, what a crash may leave behind, failing writes. */
import assert from 'node:assert/strict';
import { chmodSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { LakebaseError, isCode, silentLogger } from '@lakebase/base';
import { LocalKeys } from '@lakebase/keys';
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_VALUE,
  FrameCache,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  OpenLayer,
  PageReader,
  SeriesTable,
  layerName,
  metaSeries,
} from '@lakebase/layers';
import { FRESH_PER_JOB } from './compaction-keys.ts';
import { Compactor } from './compactor.ts';
import { pageRedo } from './page-redo.ts';
import { type RunCompaction, TimelineStorage } from './storage.ts';
import { MERGES_BY_HAND, firstIndex } from './testing-storage.ts';

const OPTIONS = { compactionLayers: 4, layerFileBytes: 1 << 20, maxRecordsPerPage: 200 };

/** `sent`: called when a job has gone to the worker. */
interface Jobs {
  readonly compactor: Compactor;
  sent: () => void;
}

async function withStorage(
  run: (make: () => Promise<TimelineStorage>, directory: string, jobs: Jobs) => Promise<void>,
  options = OPTIONS,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'lb-storage-'));
  const project = '3'.repeat(32);
  const keys = new LocalKeys().project(project);
  const files = { directory, keys, cache: new FrameCache(1 << 22), project, timeline: '4'.repeat(32) };
  const compactor = new Compactor();
  await TimelineStorage.create(files, firstIndex(files.project, files.timeline));
  // As the sockets of a pageserver do: workers do not keep a process alive.
  const alive = setInterval(() => {}, 60_000);
  try {
    const jobs: Jobs = { compactor, sent: () => {} };
    const compact: RunCompaction = (job, more) => {
      const layers = compactor.run(job, more);
      jobs.sent();
      return layers;
    };
    await run(async () => (await TimelineStorage.open(files, options, compact, silentLogger)) as TimelineStorage, directory, jobs);
  } finally {
    clearInterval(alive);
    await compactor.close();
    rmSync(directory, { recursive: true, force: true });
  }
}

const series = new SeriesTable();
const rel = metaSeries(KIND_REL_PAGE, 1663, 5, 16384);

/** A layer that ends at `end` with images of 20 pages that say so. */
function layerAt(start: number, end: number, blocks = 20): OpenLayer {
  const layer = new OpenLayer(series, start as Lsn);
  layer.put(series.intern(KIND_REL_SIZE, 1663, 5, 16384, 0), 0, ENTRY_VALUE, ARG_STOP, end as Lsn, Buffer.from([0, 0, 0, 20]));
  for (let b = 0; b < blocks; b++)
    layer.put(series.internSeries(rel), b, ENTRY_IMAGE, ARG_STOP, end as Lsn, Buffer.alloc(BLCKSZ, end / 8 + b));
  layer.freeze(end as Lsn);
  return layer;
}
const check = (storage: TimelineStorage, lsn: number): void => {
  const reader = new PageReader(storage, pageRedo(18));
  for (let b = 0; b < 20; b++) assert.equal(reader.page(rel, b, lsn as Lsn)[100], (lsn / 8 + b) & 255, `block ${b} at ${lsn}`);
};

test('flush, merge in the worker thread, image layers, and the same reads after opening again', async () => {
  await withStorage(async (make) => {
    let storage = await make();
    let lsn = 8;
    for (let round = 0; round < 4; round++) {
      for (let i = 0; i < 4; i++) {
        storage.addFrozen(layerAt(lsn, lsn + 8), lsn as Lsn);
        lsn += 8;
        check(storage, lsn);
        await storage.flush();
      }
      await storage.compact();
    }
    await storage.settled();
    const kinds = storage.set.layers.map((l) => `${l.descriptor.kind}${l.descriptor.level}`);
    assert.ok(kinds.includes('image1') && !kinds.includes('delta0'), kinds.join(' '));
    for (let at = 16; at <= lsn; at += 8) check(storage, at);
    await storage.close();
    storage = await make();
    assert.equal(storage.diskConsistentLsn, lsn);
    for (let at = 16; at <= lsn; at += 8) check(storage, at);
    await storage.close();
  });
});

test('a worker that ends because of another project costs a repetition; one of this project ends its job; a job gets more keys when it needs them', async () => {
  await withStorage(async (make, _directory, jobs) => {
    const sent = () => new Promise<void>((resolve) => (jobs.sent = resolve));
    const { compactor } = jobs;
    const storage = await make();
    let lsn = 8;
    const fill = async (): Promise<void> => {
      for (let i = 0; i < 4; i++) {
        storage.addFrozen(layerAt(lsn, lsn + 8), lsn as Lsn);
        lsn += 8;
        await storage.flush();
      }
    };
    await fill();
    let begun = sent();
    const merged = storage.compact();
    await begun;
    await compactor.forget('9'.repeat(32), new LakebaseError('KEY_REVOKED', 'another project'));
    await merged;
    check(storage, lsn);
    assert.ok(storage.set.layers.every((l) => l.descriptor.level === 1));

    await fill();
    begun = sent();
    const refused = assert.rejects(storage.compact(), (e: unknown) => isCode(e, 'KEY_REVOKED'));
    await begun;
    await compactor.forget('3'.repeat(32), new LakebaseError('KEY_REVOKED', 'this project'));
    await refused;
    check(storage, lsn);
    await storage.compact();
    for (let at = 16; at <= lsn; at += 8) check(storage, at);
    await storage.close();
  }, MERGES_BY_HAND);
  await withStorage(
    async (make) => {
      const storage = await make();
      const { index } = storage;
      storage.addFrozen(layerAt(8, 16, 400), 8 as Lsn);
      await storage.flush();
      await storage.compact();
      assert.ok(storage.index.layers.length > 2 * FRESH_PER_JOB, `${storage.index.layers.length} files of one job`);
      assert.equal(new Set(storage.index.layers.map((d) => d.key)).size, storage.index.layers.length, 'each has a key of its own');
      assert.ok(storage.index.version > index.version);
      check(storage, 16);
      await storage.close();
    },
    { ...MERGES_BY_HAND, layerFileBytes: 1 },
  );
});

test('what a crash leaves beside the index is removed; a missing or cut layer is named', async () => {
  await withStorage(async (make, directory) => {
    let storage = await make();
    storage.addFrozen(layerAt(8, 16), 8 as Lsn);
    await storage.flush();
    const name = storage.index.layers[0]?.name as string;
    await storage.close();
    const stray = [layerName('delta', 16 as Lsn, 24 as Lsn, 2, 0, 0), `${name}.tmp`, 'index.tmp', 'suspend-00000009'];
    for (const s of stray) writeFileSync(join(directory, s), 'left by a crash');
    writeFileSync(join(directory, 'notes.txt'), 'not ours');
    storage = await make();
    check(storage, 16);
    await storage.close();
    assert.deepEqual(readdirSync(directory).sort(), [name, 'index', 'notes.txt'].sort());
    const bytes = readFileSync(join(directory, name));
    writeFileSync(join(directory, name), bytes.subarray(0, 100));
    await assert.rejects(make(), (e: unknown) => isCode(e, 'CORRUPT') && e.message.includes(name));
    rmSync(join(directory, name));
    await assert.rejects(make(), (e: unknown) => isCode(e, 'CORRUPT') && e.message.includes(name));
  });
});

test('a failed flush keeps the layer in memory and succeeds when tried again', async () => {
  await withStorage(async (make, directory) => {
    const storage = await make();
    storage.addFrozen(layerAt(8, 16), 8 as Lsn);
    // A directory in the way of the file fails the write also for root.
    const { mkdirSync } = await import('node:fs');
    const inTheWay = join(directory, `${layerName('delta', 8 as Lsn, 16 as Lsn, 1, 0, 0)}.tmp`);
    mkdirSync(inTheWay);
    chmodSync(inTheWay, 0o700);
    await assert.rejects(storage.flush(), (e: unknown) => isCode(e, 'UNAVAILABLE') && e.message.includes('.layer'));
    assert.equal(storage.diskConsistentLsn, 8);
    check(storage, 16);
    rmSync(inTheWay, { recursive: true });
    await storage.flush();
    assert.equal(storage.diskConsistentLsn, 16);
    assert.equal(storage.frozen.length, 0);
    assert.ok(existsSync(join(directory, storage.index.layers[0]?.name as string)));
    check(storage, 16);
    await storage.close();
  });
});
