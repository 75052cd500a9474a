/** The whole layer stack against a naive model: random changes, truncations, flushes, merges, image creation and reopening, read at random LSNs. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isCode } from '@lakebase/base';
import { LocalKeys } from '@lakebase/keys';
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import fc from 'fast-check';
import {
  ARG_STOP,
  ENTRY_DELTA,
  ENTRY_IMAGE,
  ENTRY_RECORD,
  ENTRY_VALUE,
  ENTRY_ZERO,
  type Entry,
  type Floors,
  FrameCache,
  KIND_REL_FLOORS,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  type KeyView,
  type LayerDescriptor,
  LayerHandle,
  LayerReader,
  LayerSet,
  NO_FLOORS,
  OpenLayer,
  PageReader,
  type PageRedo,
  SeriesTable,
  type TimelineIndex,
  addFloor,
  createImages,
  encodeFloors,
  encodeKey,
  flushLayer,
  mergeDeltas,
  metaSeries,
  readIndex,
  writeIndex,
} from './index.ts';

const PROJECT = 'a'.repeat(32);
const TIMELINE = 'b'.repeat(32);
const keys = new LocalKeys().project(PROJECT);

/** A record `[x]` makes page[i] depend on everything applied before: order and completeness show. */
const stir = (page: Buffer, bytes: Buffer): void => {
  const x = bytes[0] as number;
  for (let i = 0; i < 4; i++) page[i] = ((page[i] as number) * 3 + x + i) & 255;
};
const fakeRedo: PageRedo = {
  record: (page, bytes) => stir(page, bytes),
  delta: (page, bytes) => stir(page, bytes),
  childBlock: () => undefined,
  freeSpaceAfter: () => undefined,
  setFreeSpace: () => {},
};

class MiniStore implements KeyView {
  readonly dir = mkdtempSync(join(tmpdir(), 'layers-'));
  readonly files = { directory: this.dir, keys, cache: new FrameCache(1 << 20), project: PROJECT, timeline: TIMELINE };
  series = new SeriesTable();
  open = new OpenLayer(this.series, 0 as Lsn);
  set = new LayerSet([]);
  number = 1;
  readonly reader = new PageReader(this, fakeRedo);

  collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean {
    return this.open.collect(key, upTo, floor, out) || this.set.collect(key, upTo, floor, out);
  }
  put(kind: number, rel: number, block: number, entryKind: number, arg: number, lsn: Lsn, bytes: Buffer): void {
    this.open.put(this.series.intern(kind, 1663, 5, rel, 0), block, entryKind, arg, lsn, bytes);
  }
  async flush(lsn: Lsn): Promise<void> {
    const layer = this.open;
    layer.freeze(lsn);
    this.open = new OpenLayer(this.series, lsn);
    if (layer.empty) return;
    const d = await flushLayer(layer, { ...this.files, generation: 0, number: this.number++ });
    this.set = this.set.replaced([], [new LayerHandle(d, this.files)]);
  }
  async merge(): Promise<void> {
    const inputs = this.set.layers.filter((l) => l.descriptor.level === 0).reverse();
    if (inputs.length === 0) return;
    const out = await mergeDeltas(this.set, inputs, fakeRedo, this.options(4096));
    this.set = this.set.replaced(
      inputs,
      out.map((d) => new LayerHandle(d, this.files)),
    );
  }
  async images(): Promise<void> {
    await this.merge();
    const end = this.set.layers[0]?.descriptor.endLsn;
    if (end === undefined) return;
    const out = await createImages(this.set, end, fakeRedo, this.options(100_000));
    this.set = this.set.replaced(
      [],
      out.map((d) => new LayerHandle(d, this.files)),
    );
  }
  reopen(): void {
    const descriptors = JSON.parse(JSON.stringify(this.set.layers.map((l) => l.descriptor))) as LayerDescriptor[];
    this.set.close();
    this.set = LayerSet.open(descriptors, this.files);
    for (const l of this.set.layers) l.verifyPresence();
  }
  options(targetBytes: number) {
    return { files: this.files, generation: 0, number: this.number++, targetBytes, maxRecordsPerPage: 6 };
  }
  close(): void {
    this.set.close();
    rmSync(this.dir, { recursive: true });
  }
}

interface ModelEntry {
  readonly block: number;
  readonly lsn: number;
  readonly kind: number;
  readonly arg: number;
  readonly bytes: Buffer;
}

class Model {
  entries: ModelEntry[] = [];
  truncations: { lsn: number; blocks: number }[] = [];
  read(block: number, lsn: number): Buffer {
    const page = Buffer.alloc(BLCKSZ);
    const floor = Math.max(0, ...this.truncations.filter((t) => t.lsn <= lsn && t.blocks <= block).map((t) => t.lsn));
    for (const e of this.entries) {
      if (e.block !== block || e.lsn > lsn || e.lsn <= floor) continue;
      if (e.kind === ENTRY_ZERO) page.fill(0);
      else if (e.kind === ENTRY_IMAGE) e.bytes.copy(page);
      else {
        if ((e.arg & ARG_STOP) !== 0) page.fill(0);
        stir(page, e.bytes);
      }
    }
    return page;
  }
}

const step = fc.oneof(
  {
    weight: 60,
    arbitrary: fc.record({ op: fc.constant('record' as const), block: fc.nat(7), x: fc.nat(255), init: fc.boolean(), same: fc.boolean() }),
  },
  { weight: 6, arbitrary: fc.record({ op: fc.constant('image' as const), block: fc.nat(7), x: fc.nat(255) }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('zero' as const), block: fc.nat(7) }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('truncate' as const), blocks: fc.nat(7) }) },
  { weight: 8, arbitrary: fc.record({ op: fc.constant('flush' as const) }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('merge' as const) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('images' as const) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('reopen' as const) }) },
);

test('reads equal a naive model across flush, merge, image creation and reopening', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 20, maxLength: 120 }), async (steps) => {
      const store = new MiniStore();
      const model = new Model();
      let lsn = 8;
      let floors: Floors = NO_FLOORS;
      const rel = 16384;
      store.put(KIND_REL_SIZE, rel, 0, ENTRY_VALUE, ARG_STOP, lsn as Lsn, Buffer.from([0, 0, 0, 8]));
      const add = (block: number, kind: number, arg: number, bytes: Buffer): void => {
        store.put(KIND_REL_PAGE, rel, block, kind, arg, lsn as Lsn, bytes);
        model.entries.push({ block, lsn, kind, arg, bytes });
      };
      const compare = (at: number): void => {
        for (let block = 0; block < 8; block++) {
          const got = store.reader.page(metaSeries(KIND_REL_PAGE, 1663, 5, rel), block, at as Lsn);
          assert.ok(got.equals(model.read(block, at)), `block ${block} at ${at} of ${lsn}`);
        }
      };
      try {
        for (const s of steps) {
          if (!(s.op === 'record' && s.same) && s.op !== 'flush') lsn += 8;
          if (s.op === 'record') {
            const init = s.init && s.x % 7 === 0;
            add(s.block, s.x % 5 === 0 ? ENTRY_DELTA : ENTRY_RECORD, init && s.x % 5 !== 0 ? ARG_STOP : 0, Buffer.from([s.x]));
          } else if (s.op === 'image') add(s.block, ENTRY_IMAGE, ARG_STOP, Buffer.alloc(BLCKSZ, s.x));
          else if (s.op === 'zero') add(s.block, ENTRY_ZERO, ARG_STOP, Buffer.alloc(0));
          else if (s.op === 'truncate') {
            floors = addFloor(floors, s.blocks, lsn as Lsn);
            store.put(KIND_REL_FLOORS, rel, 0, ENTRY_VALUE, ARG_STOP, lsn as Lsn, encodeFloors(floors));
            model.truncations.push({ lsn, blocks: s.blocks });
          } else if (s.op === 'flush') {
            await store.flush(lsn as Lsn);
            lsn += 8;
          } else if (s.op === 'merge') await store.merge();
          else if (s.op === 'images') await store.images();
          else store.reopen();
        }
        compare(lsn);
        compare(Math.floor(lsn / 16) * 8);
        compare(Math.floor(lsn / 24) * 8);
        await store.flush(lsn as Lsn);
        await store.merge();
        store.reopen();
        compare(lsn);
        compare(Math.floor(lsn / 16) * 8);
      } finally {
        store.close();
      }
    }),
    { numRuns: 40 },
  );
});

test('a page with base at an earlier LSN reads the same as from scratch', async () => {
  const store = new MiniStore();
  for (let i = 1; i <= 50; i++) {
    store.put(KIND_REL_PAGE, 1, 0, ENTRY_RECORD, 0, (i * 8) as Lsn, Buffer.from([i]));
    if (i % 10 === 0) await store.flush((i * 8) as Lsn);
  }
  const s = metaSeries(KIND_REL_PAGE, 1663, 5, 1);
  const at = (lsn: number): Buffer => store.reader.page(s, 0, lsn as Lsn);
  for (const n of [8, 80, 240, 399]) {
    const page = store.reader.page(s, 0, 400 as Lsn, undefined, { page: at(n), lsn: n as Lsn });
    assert.ok(page.equals(at(400)));
  }
  store.close();
});

test('one key over many frames is found at every LSN', async () => {
  const store = new MiniStore();
  const big = Buffer.alloc(3000, 7);
  for (let i = 1; i <= 100; i++) store.put(KIND_REL_PAGE, 1, 3, ENTRY_RECORD, 0, (i * 8) as Lsn, Buffer.concat([Buffer.from([i]), big]));
  await store.flush(800 as Lsn);
  const key = encodeKey(metaSeries(KIND_REL_PAGE, 1663, 5, 1), 3);
  for (const n of [1, 9, 10, 11, 12, 50, 99, 100]) {
    const out: Entry[] = [];
    assert.equal(store.set.collect(key, (n * 8) as Lsn, 0 as Lsn, out), false);
    assert.deepEqual(
      out.map((e) => e.bytes[0]),
      Array.from({ length: n }, (_, i) => n - i),
    );
  }
  store.close();
});

test('a flipped byte or a cut layer file is CORRUPT and names the file, never other bytes', async () => {
  const store = new MiniStore();
  for (let i = 1; i <= 200; i++) store.put(KIND_REL_PAGE, 1, i % 20, ENTRY_RECORD, 0, (i * 8) as Lsn, Buffer.alloc(400, i));
  await store.flush(1600 as Lsn);
  const name = readdirSync(store.dir)[0] as string;
  const path = join(store.dir, name);
  const good = readFileSync(path);
  const expected = Array.from({ length: 20 }, (_, b) => store.reader.page(metaSeries(KIND_REL_PAGE, 1663, 5, 1), b, 1600 as Lsn));
  const readAll = (): void => {
    const reader = new LayerReader(path, keys, new FrameCache(1 << 20));
    const pages = new PageReader(reader, fakeRedo);
    try {
      for (let b = 0; b < 20; b++)
        assert.ok(pages.page(metaSeries(KIND_REL_PAGE, 1663, 5, 1), b, 1600 as Lsn).equals(expected[b] as Buffer));
    } finally {
      reader.close();
    }
  };
  readAll();
  for (let i = 0; i < good.length; i += 613) {
    const bad = Buffer.from(good);
    bad[i] = (bad[i] as number) ^ 0x10;
    writeFileSync(path, bad);
    assert.throws(readAll, (e: unknown) => (isCode(e, 'CORRUPT') || isCode(e, 'UNSUPPORTED')) && e.message.includes(name), `byte ${i}`);
  }
  for (const cut of [0, 10, 100, good.length >> 1, good.length - 1]) {
    writeFileSync(path, good.subarray(0, cut));
    assert.throws(readAll, (e: unknown) => isCode(e, 'CORRUPT') && e.message.includes(name), `cut at ${cut}`);
  }
  writeFileSync(path, good);
  readAll();
  store.close();
});

test('the index comes back as written; any damage is CORRUPT and names it', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'index-'));
  const path = join(dir, 'index');
  const index: TimelineIndex = {
    project: PROJECT,
    timeline: TIMELINE,
    version: 0,
    generation: 0,
    pgVersion: 18,
    systemId: '7400000000000000001',
    startLsn: 4096,
    startPrevRecordLsn: 4000,
    diskConsistentLsn: 8192,
    prevRecordLsn: 8000,
    nextLayerNumber: 7,
    layers: [],
    suspend: null,
    bootSet: null,
    extra: { safekeepers: [] },
  };
  assert.equal(await readIndex(path, PROJECT, TIMELINE, keys), undefined);
  await writeIndex(path, index, keys);
  assert.deepEqual((await readIndex(path, PROJECT, TIMELINE, keys))?.index, { ...index, version: 1 });
  const good = readFileSync(path);
  for (let i = 0; i < good.length; i += 7) {
    const bad = Buffer.from(good);
    bad[i] = (bad[i] as number) ^ 1;
    writeFileSync(path, bad);
    await assert.rejects(readIndex(path, PROJECT, TIMELINE, keys), (e: unknown) => isCode(e, 'CORRUPT') && e.message.includes(path));
  }
  writeFileSync(path, good.subarray(0, good.length - 9));
  await assert.rejects(readIndex(path, PROJECT, TIMELINE, keys), (e: unknown) => isCode(e, 'CORRUPT'));
  rmSync(dir, { recursive: true });
});
