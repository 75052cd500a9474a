/** Reads through a cache that fetches, evicts and fails equal reads of whole local files; damage on either side is healed or reported, never served. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { LakebaseError, isCode, sleep } from '@lakebase/base';
import type { Lsn, ProjectUid, TimelineId } from '@lakebase/ids';
import { LocalKeys } from '@lakebase/keys';
import { type GetOptions, type ObjectBytes, timelineObject } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import fc from 'fast-check';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_RECORD,
  ENTRY_VALUE,
  type Entry,
  FrameCache,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  type LayerDescriptor,
  LayerCache,
  type LayerCacheOptions,
  LayerSet,
  OpenLayer,
  PART_SUFFIX,
  type ScannedValue,
  SeriesTable,
  encodeKey,
  flushLayer,
  metaSeries,
  scanValues,
  scanValuesInTurns,
  withRemote,
} from './index.ts';

const root = mkdtempSync(join(tmpdir(), 'lb-layer-cache-'));
after(() => rmSync(root, { recursive: true, force: true }));
const PROJECT = 'a'.repeat(32);
const TIMELINE = 'b'.repeat(32);
const keys = new LocalKeys().project(PROJECT);
const rel = metaSeries(KIND_REL_PAGE, 1663, 5, 7);
const CHUNK = 4_096;
let directories = 0;

/** Objects that answer when told to, and fail when told to. */
class RiggedStore extends MemoryStore {
  fail: (key: string, options: GetOptions) => Error | undefined = () => undefined;
  hold: Promise<void> | undefined;
  ranges: string[] = [];
  override async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    this.ranges.push(`${key.split('/').at(-1)} ${JSON.stringify(options.range)}`);
    const error = this.fail(key, options);
    if (error !== undefined) throw error;
    await this.hold;
    return super.get(key, options);
  }
}

interface Fixture {
  readonly store: RiggedStore;
  readonly source: string;
  readonly descriptors: LayerDescriptor[];
  readonly blocks: number;
  readonly end: number;
}

/** `layers` delta layers of random changes, each an object too. */
async function fixture(layers = 4, blocks = 24, seed = 1, timeline = TIMELINE): Promise<Fixture> {
  const source = join(root, `source${directories++}`);
  mkdirSync(source);
  const store = new RiggedStore();
  const descriptors: LayerDescriptor[] = [];
  let random = seed;
  const next = (n: number): number => (random = (Math.imul(random, 1_103_515_245) + 12_345) & 0x7fff_ffff) % n;
  let lsn = 8;
  const series = new SeriesTable();
  for (let number = 1; number <= layers; number++) {
    const open = new OpenLayer(series, lsn as Lsn);
    const id = series.internSeries(rel);
    for (let i = 0; i < 60; i++) {
      lsn += 8;
      const bytes = Buffer.alloc(200 + next(3_000), next(256));
      if (next(6) === 0) open.put(id, next(blocks), ENTRY_IMAGE, ARG_STOP, lsn as Lsn, bytes);
      else open.put(id, next(blocks), ENTRY_RECORD, 0, lsn as Lsn, bytes);
      if (next(8) === 0)
        open.put(series.intern(KIND_REL_SIZE, 1663, 5, next(40), 0), 0, ENTRY_VALUE, ARG_STOP, lsn as Lsn, Buffer.alloc(4, number));
    }
    open.freeze(lsn as Lsn);
    const files = { directory: source, project: PROJECT, timeline, keys };
    const d = await flushLayer(open, { ...files, generation: 1, number });
    descriptors.push(d);
    await store.put(keyOf(d), readFileSync(join(source, d.name)));
  }
  store.calls.put = 0;
  return { store, source, descriptors, blocks, end: lsn };
}
const keyOf = (d: { name: string }, timeline = TIMELINE): string => timelineObject(PROJECT as ProjectUid, timeline as TimelineId, d.name);

function cached(f: Fixture, options: LayerCacheOptions = {}, directory = join(root, `cache${directories++}`)) {
  mkdirSync(directory, { recursive: true });
  const layers = new LayerCache({ store: f.store, chunkBytes: CHUNK, ...options });
  const files = { directory, project: PROJECT, timeline: TIMELINE, keys, cache: new FrameCache(1), layers };
  const set = LayerSet.open(f.descriptors, files);
  for (const layer of set.layers) {
    layer.verifyPresence();
    layer.remote = true;
  }
  return { set, layers, directory, files };
}
const wholeSet = (f: Fixture): LayerSet =>
  LayerSet.open(f.descriptors, { directory: f.source, project: PROJECT, timeline: TIMELINE, keys, cache: new FrameCache(1 << 20) });

/** What a read of one block gives, as text. */
function read(set: LayerSet, block: number, upTo: number, floor = 0): string {
  const out: Entry[] = [];
  const stopped = set.collect(encodeKey(rel, block), upTo as Lsn, floor as Lsn, out);
  return JSON.stringify([stopped, out.map((e) => [e.kind, e.arg, e.lsn, e.bytes.length, e.bytes[0]])]);
}
const values = (set: LayerSet, lsn: number): string => textOf(scanValues([], set, lsn as Lsn));
const textOf = (found: readonly ScannedValue[]): string => JSON.stringify(found.map((v) => [v.keyBytes.toString('hex'), v.bytes[0]]));
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('random reads through a cache that evicts equal reads of whole local files', async () => {
  const f = await fixture();
  const truth = wholeSet(f);
  const op = fc.record({
    block: fc.nat(f.blocks),
    upTo: fc.nat(f.end + 8),
    floor: fc.nat(f.end),
    kind: fc.nat(9),
    layer: fc.nat(f.descriptors.length - 1),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(op, { minLength: 5, maxLength: 60 }), fc.integer({ min: 3, max: 100 }), async (ops, budgetChunks) => {
      const { set, layers } = cached(f, { budgetBytes: budgetChunks * CHUNK, openFiles: 2, openReaders: 3, memoryBytes: 4 * CHUNK });
      for (const { block, upTo, floor, kind, layer } of ops) {
        const low = Math.min(floor, upTo);
        if (kind === 0) await layers.makeRoom(layers.usedBytes);
        else if (kind === 1) assert.equal(await withRemote(() => values(set, upTo)), values(truth, upTo));
        else if (kind === 2) set.layers[layer]?.close();
        else if (kind === 3) await turn();
        else if (kind === 4) {
          const two = [block, (block * 7) % f.blocks].map((b) => withRemote(() => read(set, b, upTo, low)));
          assert.deepEqual(await Promise.all(two), [read(truth, block, upTo, low), read(truth, (block * 7) % f.blocks, upTo, low)]);
        } else assert.equal(await withRemote(() => read(set, block, upTo, low)), read(truth, block, upTo, low));
        assert.ok(layers.usedBytes >= 0);
      }
      // What is over goes in the background, file by file.
      for (let turns = 0; layers.usedBytes > budgetChunks * CHUNK && turns < 10_000; turns++) await sleep(1);
      assert.ok(layers.usedBytes <= budgetChunks * CHUNK, `${layers.usedBytes} of ${budgetChunks * CHUNK}`);
      assert.equal(layers.counters.mismatches, 0);
      set.close();
    }),
    { numRuns: 40 },
  );
  truth.close();
});

test('the first read asks for all it will need: ends of every layer at once, then all frames at once; neighbours share a fetch', async () => {
  const f = await fixture(6, 4);
  const { set, layers } = cached(f, { chunkBytes: 2_048 });
  const truth = wholeSet(f);
  let rounds = 0;
  const seen: number[] = [];
  await withRemote(() => {
    rounds++;
    seen.push(f.store.ranges.length);
    return read(set, 2, f.end);
  });
  assert.ok(rounds <= 3, `${rounds} rounds, GETs after each: ${seen.join()}`);
  // Single flight: many readers of one place cause one GET.
  await layers.makeRoom(layers.usedBytes);
  set.close();
  const before = f.store.calls.get;
  const all = await Promise.all(Array.from({ length: 20 }, () => withRemote(() => read(set, 2, f.end))));
  assert.ok(all.every((text) => text === read(truth, 2, f.end)));
  assert.ok(f.store.calls.get - before <= seen.at(-1)! + 2, `${f.store.calls.get - before} GETs`);
  set.close();
  truth.close();
});

test('a layer that came whole is a plain file after a restart; parts are fetched anew', async () => {
  const f = await fixture(2);
  const { set, layers, directory } = cached(f);
  const [a, b] = set.layers;
  assert.ok(a?.cached !== undefined && b !== undefined);
  a.cached.pin();
  await a.cached.makeWhole();
  assert.deepEqual(readFileSync(a.path), readFileSync(join(f.source, a.descriptor.name)));
  assert.ok(a.local && !b.local);
  await withRemote(() => b.reader().frame(0));
  assert.ok(existsSync(b.path + PART_SUFFIX) && !existsSync(b.path));
  set.close();
  const again = cached(f, {}, directory);
  assert.ok(again.set.layers[0]?.local && again.set.layers[1]?.local === false);
  assert.ok(!existsSync(b.path + PART_SUFFIX));
  assert.equal(again.layers.usedBytes, statSync(a.path).size);
  assert.equal(layers.counters.mismatches, 0);
  again.set.close();
});

test('what may not be in the object store is never dropped, nor what is pinned', async () => {
  const f = await fixture(2);
  const directory = join(root, `cache${directories++}`);
  mkdirSync(directory);
  for (const d of f.descriptors) writeFileSync(join(directory, d.name), readFileSync(join(f.source, d.name)));
  const { set, layers } = cached(f, { budgetBytes: 1 }, directory);
  for (const layer of set.layers) layer.remote = false;
  assert.equal(await layers.makeRoom(1e9), 0);
  await turn();
  const [a, b] = set.layers;
  assert.ok(a !== undefined && b !== undefined && existsSync(a.path) && existsSync(b.path));
  a.remote = b.remote = true;
  a.cached?.pin();
  assert.equal(await layers.makeRoom(1e9), statSync(join(f.source, b.descriptor.name)).size);
  assert.ok(existsSync(a.path) && !existsSync(b.path));
  a.cached?.unpin();
  await layers.makeRoom(1e9);
  assert.deepEqual(readdirSync(directory), []);
  // And it is all there still.
  assert.equal(await withRemote(() => read(set, 1, f.end)), read(wholeSet(f), 1, f.end));
  set.close();
});

test('without room on the disk reads are served from memory, within bounds', async () => {
  const f = await fixture(3);
  const { set, layers } = cached(f, { budgetBytes: 0, memoryBytes: 3 * CHUNK });
  const truth = wholeSet(f);
  for (let block = 0; block < f.blocks; block++) assert.equal(await withRemote(() => read(set, block, f.end)), read(truth, block, f.end));
  assert.equal(layers.usedBytes, 0);
  assert.ok(layers.counters.inMemory > 0);
  assert.ok(layers.memoryBytes < 100 * CHUNK);
  const handle = set.layers[0];
  handle?.cached?.pin();
  await assert.rejects(handle?.cached?.makeWhole() ?? Promise.resolve(), (e: unknown) => isCode(e, 'RESOURCE_EXHAUSTED'));
  set.close();
  truth.close();
});

test('an object store that stalls or fails: local layers are read, others end in UNAVAILABLE naming the object, and heal', async () => {
  const f = await fixture(2);
  const { set } = cached(f);
  const truth = wholeSet(f);
  const [newest] = set.layers;
  newest?.cached?.pin();
  await newest?.cached?.makeWhole();
  let release: () => void = () => {};
  f.store.hold = new Promise((resolve) => (release = resolve));
  const startOfNewest = newest?.descriptor.startLsn ?? 0;
  assert.equal(read(set, 1, f.end, startOfNewest), read(truth, 1, f.end, startOfNewest));
  await assert.rejects(
    withRemote(() => read(set, 1, f.end), 20),
    (e: unknown) => isCode(e, 'UNAVAILABLE') && e.message.includes(set.layers[1]?.descriptor.name ?? '-'),
  );
  release();
  f.store.hold = undefined;
  await turn();
  f.store.fail = () => new LakebaseError('RESOURCE_EXHAUSTED', 'slow down');
  await set.layers[1]?.cached?.evict();
  await assert.rejects(
    withRemote(() => read(set, 1, startOfNewest)),
    (e: unknown) => isCode(e, 'UNAVAILABLE') && e.message.includes('slow down'),
  );
  f.store.fail = () => undefined;
  assert.equal(await withRemote(() => read(set, 1, f.end)), read(truth, 1, f.end));
  set.close();
  truth.close();
});

/** Reads everything; the text, or the code it ended with. */
async function outcome(set: LayerSet, f: Fixture): Promise<string> {
  try {
    const all: string[] = [];
    for (let block = 0; block < f.blocks; block++) all.push(await withRemote(() => read(set, block, f.end)));
    return all.join('\n');
  } catch (error) {
    // UNSUPPORTED: the bit was in the version.
    if (isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED')) {
      assert.match(error.message, /\.layer/);
      return 'CORRUPT';
    }
    throw error;
  }
}

test('bits that flip in the local cache heal from the object; bits that flip in the object are CORRUPT, never other bytes', async () => {
  const f = await fixture(1, 12);
  const [d] = f.descriptors as [LayerDescriptor];
  const truth = await outcome(wholeSet(f), f);
  const good = readFileSync(join(f.source, d.name));
  const flip = (at: number, bit: number): Buffer => {
    const bad = Buffer.from(good);
    bad[at] = (bad[at] as number) ^ (1 << bit);
    return bad;
  };
  const places = fc.record({
    at: fc.oneof(fc.nat(good.length - 1), fc.nat(300), fc.integer({ min: good.length - 200, max: good.length - 1 })),
    bit: fc.nat(7),
  });
  await fc.assert(
    fc.asyncProperty(places, fc.constantFrom('whole', 'part', 'object'), async ({ at, bit }, where) => {
      const directory = join(root, `cache${directories++}`);
      mkdirSync(directory);
      if (where === 'whole') writeFileSync(join(directory, d.name), flip(at, bit));
      await f.store.put(keyOf(d), where === 'object' ? flip(at, bit) : good);
      const { set, layers } = cached(f, {}, directory);
      if (where === 'part') {
        // All but the last chunk, so that it stays a part; then the disk goes bad.
        const cache = set.layers[0]?.cached;
        const chunks = Math.ceil(good.length / CHUNK);
        await cache?.fetch(
          Array.from({ length: chunks - 1 }, (_, i) => i),
          false,
        );
        const part = join(directory, d.name + PART_SUFFIX);
        const bytes = readFileSync(part);
        if (at < bytes.length) bytes[at] = (bytes[at] as number) ^ (1 << bit);
        writeFileSync(part, bytes);
      }
      const got = await outcome(set, f);
      assert.equal(got, where === 'object' ? 'CORRUPT' : truth, `${where} ${at}.${bit}`);
      if (where === 'object') assert.ok(layers.counters.gets < 40, `${layers.counters.gets} GETs`);
      set.close();
      rmSync(directory, { recursive: true });
    }),
    { numRuns: 120 },
  );
  await f.store.put(keyOf(d), good);
});

test('objects that are cut short, swapped, of another timeline or gone are CORRUPT naming the object', async () => {
  const f = await fixture(2, 4);
  const g = await fixture(1, 4, 99, 'c'.repeat(32));
  const [a, b] = f.descriptors as [LayerDescriptor, LayerDescriptor];
  const [bytesA, bytesB] = [a, b].map((d) => readFileSync(join(f.source, d.name))) as [Buffer, Buffer];
  const theirs = readFileSync(join(g.source, (g.descriptors[0] as LayerDescriptor).name));
  const truth = await outcome(wholeSet(f), f);
  const refused = async (what: string, content: Buffer | undefined): Promise<void> => {
    if (content === undefined) await f.store.delete([keyOf(a)]);
    else await f.store.put(keyOf(a), content);
    const { set, directory } = cached(f);
    assert.equal(await outcome(set, f), 'CORRUPT', what);
    set.close();
    rmSync(directory, { recursive: true });
  };
  for (let n = 0; n < bytesA.length; n += n < 330 || n > bytesA.length - 200 ? 1 : Math.min(4_999, bytesA.length - 199 - n))
    await refused(`cut to ${n}`, bytesA.subarray(0, n));
  const fitted = (other: Buffer): Buffer => Buffer.concat([other, Buffer.alloc(bytesA.length)]).subarray(0, bytesA.length);
  await refused('the other layer', bytesB);
  await refused('the other layer at this length', fitted(bytesB));
  await refused('of another timeline', theirs);
  await refused('of another timeline at this length', fitted(theirs));
  await refused('own header, frames of the other', Buffer.concat([bytesA.subarray(0, 300), fitted(bytesB).subarray(300)]));
  await refused('longer', Buffer.concat([bytesA, bytesA]));
  await refused('gone', undefined);
  await f.store.put(keyOf(a), bytesA);
  const { set } = cached(f);
  assert.equal(await outcome(set, f), truth);
  set.close();
});

test('a whole file that is not what the index says does not get its name; a job that needs it is told', async () => {
  const f = await fixture(1, 4);
  const [d] = f.descriptors as [LayerDescriptor];
  const bad = readFileSync(join(f.source, d.name));
  bad[1_000] = (bad[1_000] as number) ^ 1;
  await f.store.put(keyOf(d), bad);
  const told: string[] = [];
  const { set, layers } = cached(f, { onDamage: (message) => told.push(message) });
  const cache = set.layers[0]?.cached;
  cache?.pin();
  await assert.rejects(cache?.makeWhole() ?? Promise.resolve(), (e: unknown) => isCode(e, 'CORRUPT') && e.message.includes(d.name));
  assert.ok(!existsSync(set.layers[0]?.path ?? ''));
  assert.ok(told.some((m) => m.includes(d.name)) && layers.counters.mismatches > 0);
  set.close();
});

test('a layer that is discarded while it is fetched holds nobody up', async () => {
  const f = await fixture(2, 4);
  const { set, directory, files } = cached(f);
  let release: () => void = () => {};
  f.store.hold = new Promise((resolve) => (release = resolve));
  let now = set;
  const reading = withRemote(() => read(now, 1, f.end));
  await turn();
  await Promise.all(set.layers.map((layer) => layer.discard()));
  for (const d of f.descriptors) writeFileSync(join(directory, d.name), readFileSync(join(f.source, d.name)));
  now = LayerSet.open(f.descriptors, files);
  f.store.fail = () => new LakebaseError('UNAVAILABLE', 'down');
  release();
  assert.equal(await reading, read(wholeSet(f), 1, f.end));
  now.close();
});

test('small values scanned in turns are those scanned at once, also when the cache loses everything in every turn', async () => {
  const source = join(root, `source${directories++}`);
  mkdirSync(source);
  const store = new RiggedStore();
  const descriptors: LayerDescriptor[] = [];
  const series = new SeriesTable();
  for (let number = 1; number <= 3; number++) {
    const start = number * 8_000;
    const open = new OpenLayer(series, start as Lsn);
    for (let i = 0; i < 600; i++)
      open.put(
        series.intern(KIND_REL_SIZE, 1663, 5, number * 200 + i, 0),
        0,
        ENTRY_VALUE,
        ARG_STOP,
        (start + 8 + i) as Lsn,
        Buffer.alloc(4, number),
      );
    open.freeze((start + 8_000) as Lsn);
    const d = await flushLayer(open, { directory: source, project: PROJECT, timeline: TIMELINE, keys, generation: 1, number });
    descriptors.push(d);
    await store.put(keyOf(d), readFileSync(join(source, d.name)));
  }
  const f: Fixture = { store, source, descriptors, blocks: 0, end: 32_000 };
  const { set, layers } = cached(f);
  let turns = 0;
  const found = await scanValuesInTurns(set, f.end as Lsn, async () => {
    turns++;
    await layers.makeRoom(layers.usedBytes);
  });
  assert.equal(textOf(found), values(wholeSet(f), f.end));
  assert.equal(found.length, 1_000);
  assert.ok(turns >= 1_000 / 64 - 1, `${turns} turns`);
});
