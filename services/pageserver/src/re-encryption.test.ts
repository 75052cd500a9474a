/** Old objects get fresh data keys while reads, flushes and merges go on; a pass that was cut short is gone on with. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLogger } from '@lakebase/base';
import { decodeDekReference } from '@lakebase/envelope';
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import { LocalKeys } from '@lakebase/keys';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_VALUE,
  FrameCache,
  HEADER_BYTES_MAX,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  OpenLayer,
  PageReader,
  SeriesTable,
  decodeHeader,
  isLayerName,
  metaSeries,
  openObject,
  sealObject,
  keyFromText,
} from '@lakebase/layers';
import type { ReEncryptionCount } from '@lakebase/service-kit';
import { runCompaction } from './compaction-job.ts';
import { pageRedo } from './page-redo.ts';
import { reEncrypt } from './re-encryption.ts';
import { TimelineStorage } from './storage.ts';
import { MERGES_BY_HAND, firstIndex } from './testing-storage.ts';

const PROJECT = '3'.repeat(32);
const TIMELINE = '4'.repeat(32);
const MAGIC = 0x4c420001;
const series = new SeriesTable();
const rel = metaSeries(KIND_REL_PAGE, 1663, 5, 16384);

class Bed implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'lb-re-encryption-'));
  readonly source = new LocalKeys();
  readonly files = {
    directory: this.directory,
    keys: this.source.project(PROJECT),
    cache: new FrameCache(1 << 20),
    project: PROJECT,
    timeline: TIMELINE,
  };
  #lsn = 8;

  async create(): Promise<TimelineStorage> {
    await TimelineStorage.create(this.files, firstIndex(PROJECT, TIMELINE));
    return this.open();
  }
  async open(): Promise<TimelineStorage> {
    return (await TimelineStorage.open(this.files, MERGES_BY_HAND, runCompaction, silentLogger)) as TimelineStorage;
  }
  async flush(storage: TimelineStorage): Promise<void> {
    const layer = new OpenLayer(series, this.#lsn as Lsn);
    const end = (this.#lsn += 8);
    layer.put(series.intern(KIND_REL_SIZE, 1663, 5, 16384, 0), 0, ENTRY_VALUE, ARG_STOP, end as Lsn, Buffer.from([0, 0, 0, 20]));
    for (let b = 0; b < 20; b++)
      layer.put(series.internSeries(rel), b, ENTRY_IMAGE, ARG_STOP, end as Lsn, Buffer.alloc(BLCKSZ, end / 8 + b));
    layer.freeze(end as Lsn);
    storage.addFrozen(layer, (end - 8) as Lsn);
    await storage.flush();
  }
  check(storage: TimelineStorage): void {
    const reader = new PageReader(storage, pageRedo(18));
    for (let b = 0; b < 20; b++) assert.equal(reader.page(rel, b, this.#lsn as Lsn)[100], (this.#lsn / 8 + b) & 255);
  }
  /** KEK versions in the headers of the layer files there are: nothing rewrites those. */
  births(): number[] {
    return readdirSync(this.directory)
      .filter(isLayerName)
      .map((name) => {
        const { header } = decodeHeader(readFileSync(join(this.directory, name)).subarray(0, HEADER_BYTES_MAX), name);
        return decodeDekReference(header.keyReference).kekVersion;
      });
  }
  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true });
  }
}

const run = (
  storage: TimelineStorage,
  below: number,
  progress: (count: ReEncryptionCount) => void = () => {},
  signal = new AbortController().signal,
) => reEncrypt([storage], { below, bytesPerSecond: 1e12, progress, signal });

test('every layer and object gets a fresh key; what is written meanwhile has one anyway', async () => {
  using bed = new Bed();
  const storage = await bed.create();
  for (let i = 0; i < 3; i++) await bed.flush(storage);
  await storage.compact();
  for (let i = 0; i < 3; i++) await bed.flush(storage);
  const payload = Buffer.from('state of a suspend');
  await storage.putObject(
    'suspend',
    (name, key) => sealObject(MAGIC, { project: PROJECT, timeline: TIMELINE, name }, payload, key),
    (entry) => ({ suspend: { lsn: 8, ...entry } }),
  );
  const old = readdirSync(bed.directory).filter((name) => name !== 'index');
  const below = bed.source.reEncrypt(PROJECT);
  const counts: ReEncryptionCount[] = [];
  const passing = run(storage, below, (count) => {
    counts.push(count);
    bed.check(storage);
  });
  await bed.flush(storage);
  await storage.compact();
  bed.check(storage);
  const { done, total, bytes } = await passing;
  assert.ok(done > 0 && total === done && bytes > 0, JSON.stringify({ done, total, bytes }));
  assert.ok((counts[0]?.total ?? 0) >= done);
  assert.deepEqual([...new Set(bed.births())], [below]);
  for (const name of old) assert.ok(!readdirSync(bed.directory).includes(name), name);
  assert.equal((await run(storage, below)).done, 0);
  await storage.rewrap(below);
  bed.source.destroy(PROJECT, below); // nothing here needs the old KEK
  await storage.close();
  bed.source.project(PROJECT).lock(new Error('as after a restart') as never);
  bed.source.project(PROJECT).unlock();
  const again = await bed.open();
  bed.check(again);
  const { file, key } = again.index.suspend as { file: string; key: string };
  const stored = readFileSync(join(bed.directory, file));
  assert.deepEqual(
    openObject(MAGIC, { project: PROJECT, timeline: TIMELINE, name: file }, stored, bed.files.keys, file, keyFromText(key)),
    payload,
  );
  await again.close();
});

test('cut short after each object in turn, it goes on where it was', async () => {
  using bed = new Bed();
  let storage = await bed.create();
  for (let i = 0; i < 4; i++) await bed.flush(storage);
  const below = bed.source.reEncrypt(PROJECT);
  for (let round = 4; round > 0; round--) {
    const stop = new AbortController();
    await assert.rejects(
      run(
        storage,
        below,
        ({ done, total }) => {
          assert.equal(total, round);
          if (done === 1) stop.abort(new Error('killed'));
        },
        stop.signal,
      ),
    );
    await storage.close();
    storage = await bed.open();
    bed.check(storage);
    assert.equal(bed.births().filter((version) => version < below).length, round - 1);
  }
  assert.equal((await run(storage, below)).done, 0);
  await storage.close();
});

test('a damaged reference keeps its own layer from being rewritten, no other, and says so', async () => {
  using bed = new Bed();
  const storage = await bed.create();
  for (let i = 0; i < 2; i++) await bed.flush(storage);
  const [first] = storage.index.layers;
  const spoilt = Buffer.from(first?.key ?? '', 'base64');
  spoilt[20] = (spoilt[20] as number) ^ 1;
  await storage.update({ layers: storage.index.layers.map((d) => (d === first ? { ...d, key: spoilt.toString('base64') } : d)) });
  await storage.close();
  const again = await bed.open();
  const below = bed.source.reEncrypt(PROJECT);
  await assert.rejects(run(again, below), { code: 'CORRUPT', message: /key reference/ });
  assert.deepEqual(
    bed.births().sort((a, b) => a - b),
    [1, below],
    'the other one is rewritten',
  );
  await again.close();
});
