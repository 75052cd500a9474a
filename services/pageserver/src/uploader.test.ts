/** The way into the object store: order, retries, generations, what is deleted and when, batching. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { LakebaseError, isCode, silentLogger } from '@lakebase/base';
import { LocalKeys } from '@lakebase/keys';
import { type ProjectUid, type TimelineId } from '@lakebase/ids';
import { FrameCache, namesOf } from '@lakebase/layers';
import { type ObjectStore, indexObject, timelineObject } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import { runCompaction } from './compaction-job.ts';
import { Generations, type PlacementCalls } from './generations.ts';
import { findIndex } from './remote-index.ts';
import { TimelineStorage } from './storage.ts';
import { FakePlacements } from './testing-placements.ts';
import { Uploader } from './uploader.ts';
import { MERGES_BY_HAND, firstIndex, imagesAt } from './testing-storage.ts';

const PROJECT = '3'.repeat(32) as ProjectUid;
const TIMELINE = '4'.repeat(32) as TimelineId;
/** Only when asked. */
const NEVER = { uploadBytes: 1e15, uploadMs: 1e9 };
const keySource = new LocalKeys();

async function grow(storage: TimelineStorage): Promise<void> {
  const from = storage.diskConsistentLsn;
  storage.addFrozen(imagesAt(from, from + 8, 20), from);
  await storage.flush();
}

class Rig implements AsyncDisposable {
  readonly directory: string = mkdtempSync(join(tmpdir(), 'lb-upload-'));
  readonly store = new MemoryStore();
  readonly placements = new FakePlacements();
  readonly #generations: Generations[] = [];
  readonly #uploaders: Uploader[] = [];
  readonly #storages: TimelineStorage[] = [];

  constructor() {
    this.placements.add(PROJECT, [TIMELINE]);
  }
  files(name = 'a') {
    return {
      directory: join(this.directory, name),
      keys: keySource.project(PROJECT),
      cache: new FrameCache(1 << 20),
      project: PROJECT,
      timeline: TIMELINE,
    };
  }
  async storage(name = 'a', fresh = true): Promise<TimelineStorage> {
    const files = this.files(name);
    const { mkdirSync } = await import('node:fs');
    if (fresh) {
      mkdirSync(files.directory, { recursive: true });
      await TimelineStorage.create(files, firstIndex(PROJECT, TIMELINE));
    }
    const storage = (await TimelineStorage.open(files, MERGES_BY_HAND, runCompaction, silentLogger)) as TimelineStorage;
    this.#storages.push(storage);
    return storage;
  }
  generations(id = 'ps'): Generations {
    const g = new Generations(this.placements.of(id), silentLogger, 3_600_000);
    this.#generations.push(g);
    return g;
  }
  uploader(storage: TimelineStorage, generations: Generations, policy = NEVER, store: ObjectStore = this.store): Uploader {
    const counters = { puts: 0, putBytes: 0, indexPuts: 0, deletes: 0, failures: 0 };
    const uploader = new Uploader(storage, { store, generations, counters }, policy, silentLogger);
    this.#uploaders.push(uploader);
    return uploader;
  }
  /** Every index that can be read names only what is there. */
  async complete(): Promise<void> {
    for (const key of this.store.objects.keys()) {
      const match = /index-g([0-9a-f]{8})$/.exec(key);
      if (match === null) continue;
      const generation = Number.parseInt(match[1] as string, 16);
      const found = await findIndex(this.store, this.files(), { below: generation + 1, floor: generation, list: false });
      for (const name of namesOf((found as NonNullable<typeof found>).index))
        assert.ok(this.store.objects.has(timelineObject(PROJECT, TIMELINE, name)), `${key} names ${name}, which is not there`);
    }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    for (const g of this.#generations) await g.stop();
    for (const u of this.#uploaders) await u.stop();
    for (const s of this.#storages) await s.close();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

test('files, then the index, then the confirmation, then deletions', async () => {
  await using rig = new Rig();
  const storage = await rig.storage();
  const uploader = rig.uploader(storage, rig.generations());
  for (let i = 0; i < 4; i++) await grow(storage);
  assert.equal(rig.store.calls.put, 0);
  assert.equal(uploader.remoteConsistentLsn, 0);
  await uploader.flush();
  assert.equal(rig.store.calls.put, 5);
  assert.equal(uploader.remoteConsistentLsn, storage.diskConsistentLsn);
  assert.ok(storage.index.layers.every((d) => storage.isRemote(d.name)));
  const published = (): unknown => rig.placements.projects.get(PROJECT)?.timelines.get(TIMELINE);
  assert.deepEqual(published(), { generation: 1, version: storage.index.remote?.version });
  const before = storage.index.layers.map((d) => d.name);
  await storage.compact();
  assert.ok(storage.index.layers.every((d) => !storage.isRemote(d.name)));
  // The index in the store still names the merged files' inputs, so they are there.
  await rig.complete();
  await uploader.flush();
  await rig.complete();
  for (const name of before) assert.ok(!rig.store.objects.has(timelineObject(PROJECT, TIMELINE, name)), `${name} is gone`);
  assert.ok(uploader.clean);
  assert.deepEqual(published(), { generation: 1, version: storage.index.remote?.version });
});

test('without the Manager nothing is put; without a confirmation nothing may be trimmed or deleted', async () => {
  await using rig = new Rig();
  const storage = await rig.storage();
  rig.placements.down = true;
  const uploader = rig.uploader(storage, rig.generations());
  await grow(storage);
  const flushed = uploader.flush();
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(rig.store.calls.put, 0);
  rig.placements.down = false;
  await flushed;
  const at = uploader.remoteConsistentLsn;
  await grow(storage);
  await storage.compact();
  // The Manager goes away exactly between the put of the index and the question.
  const put = rig.store.put.bind(rig.store);
  rig.store.put = async (key, ...rest) => {
    if (key.includes('index-g')) rig.placements.down = true;
    return put(key, ...rest);
  };
  const deletes = rig.store.calls.delete;
  const second = uploader.flush();
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(uploader.remoteConsistentLsn, at);
  assert.equal(rig.store.calls.delete, deletes);
  rig.placements.down = false;
  rig.store.put = put;
  await second;
  assert.equal(uploader.remoteConsistentLsn, storage.diskConsistentLsn);
  await rig.complete();
});

test('F25: one that was paused while another attached can neither publish for readers, nor delete, nor let WAL be trimmed', async () => {
  await using rig = new Rig();
  const storage = await rig.storage();
  const uploader = rig.uploader(storage, rig.generations('ps'));
  await grow(storage);
  await uploader.flush();
  const at = uploader.remoteConsistentLsn;
  const published = storage.index.layers.map((d) => d.name);
  // Another one is given the project.
  const project = rig.placements.projects.get(PROJECT) as { owner: string; serving: string };
  project.owner = project.serving = 'other';
  const other = rig.generations('other');
  const taken = await other.attach(PROJECT);
  assert.equal(taken.generation, 2);
  assert.equal(taken.timelines[0]?.published.generation, 1);
  // The old one wakes up and goes on.
  await grow(storage);
  await storage.compact();
  const flush = uploader.flush();
  const ended = flush.then(
    () => 'done',
    () => 'refused',
  );
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(uploader.remoteConsistentLsn, at);
  for (const name of published)
    assert.ok(rig.store.objects.has(timelineObject(PROJECT, TIMELINE, name)), 'what the new one reads is there');
  await rig.complete();
  await uploader.stop();
  assert.equal(await ended, 'refused');
  // And when the project comes back to it, its disk is stale as soon as the other one has published.
  await rig.store.put(indexObject(PROJECT, TIMELINE, 2), await sealedCopy(rig, 1, 2));
  project.owner = project.serving = 'ps';
  let stale = false;
  const again = rig.uploader(storage, rig.generations('ps'));
  again.onStale = () => (stale = true);
  again.hurry();
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.ok(stale);
});

async function sealedCopy(rig: Rig, from: number, generation: number): Promise<Buffer> {
  const { sealIndex } = await import('@lakebase/layers');
  const found = await findIndex(rig.store, rig.files(), { below: from + 1, floor: from, list: false });
  const index = { ...(found as NonNullable<typeof found>).index, generation };
  return (await sealIndex(index, indexObject(PROJECT, TIMELINE, generation).split('/').at(-1) as string, rig.files().keys)).bytes;
}

test('a store that fails for a while costs nothing but time; nothing is put twice without need', async () => {
  await using rig = new Rig();
  const storage = await rig.storage();
  const put = rig.store.put.bind(rig.store);
  let fail = 2;
  rig.store.put = async (key, ...rest) => {
    if (fail-- > 0) throw new LakebaseError('UNAVAILABLE', 'the store is away');
    return put(key, ...rest);
  };
  const uploader = rig.uploader(storage, rig.generations());
  await grow(storage);
  await uploader.flush();
  assert.equal(rig.store.objects.size, 2);
  assert.ok(uploader.clean);
  await rig.complete();
  await uploader.stop();
  // A restart knows what is there.
  const puts = rig.store.calls.put;
  await storage.close();
  const reopened = await rig.storage('a', false);
  const next = rig.uploader(reopened, rig.generations());
  assert.ok(next.clean);
  assert.equal(next.remoteConsistentLsn, reopened.diskConsistentLsn);
  await grow(reopened);
  await next.flush();
  assert.equal(rig.store.calls.put - puts, 2, 'one layer and the index of generation 2');
  assert.ok(!rig.store.objects.has(indexObject(PROJECT, TIMELINE, 1)), 'the index of generation 1 is gone');
  await rig.complete();
});

test('a generation that was in use already is refused: the Manager has gone back in time', async () => {
  await using rig = new Rig();
  const storage = await rig.storage();
  const first = rig.uploader(storage, rig.generations());
  await grow(storage);
  await first.flush();
  await first.stop();
  await storage.close();
  // The Manager's database was restored, and the pageserver's disk is of before the upload.
  (rig.placements.projects.get(PROJECT) as { generation: number }).generation = 0;
  const other = await rig.storage('b');
  const generations = rig.generations();
  const uploader = rig.uploader(other, generations);
  let stale = false;
  uploader.onStale = () => (stale = true);
  uploader.hurry();
  await new Promise((resolve) => setTimeout(resolve, 600));
  assert.ok(stale);
  assert.equal(generations.attached(PROJECT)?.generation, 2);
});

test('what is put while a confirmation is on its way is told with the next one', async () => {
  await using rig = new Rig();
  const calls = rig.placements.of('ps');
  const asked = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<void>();
  const validate: PlacementCalls['validate'] = async (body) => {
    const said = await calls.validate(body);
    asked.resolve();
    await answer.promise;
    return said;
  };
  const generations = new Generations({ ...calls, validate }, silentLogger, 3_600_000);
  await generations.attach(PROJECT);
  generations.published(PROJECT, TIMELINE, { generation: 1, version: 1 });
  const first = generations.validate(PROJECT);
  await asked.promise;
  generations.published(PROJECT, TIMELINE, { generation: 1, version: 2 });
  answer.resolve();
  await first;
  await generations.validate(PROJECT);
  const newest = () => generations.newestIndex(PROJECT, TIMELINE);
  assert.deepEqual(await newest(), { generation: 1, version: 2 });
  // What was put under a generation that is gone is not told as an index of the next one: the store has none.
  generations.published(PROJECT, TIMELINE, { generation: 1, version: 3 });
  generations.refuse(PROJECT, 1);
  assert.equal((await generations.attach(PROJECT)).generation, 2);
  await generations.validate(PROJECT);
  assert.deepEqual(await newest(), { generation: 1, version: 2 });
  generations.published(PROJECT, TIMELINE, { generation: 2, version: 1 });
  await generations.validate(PROJECT);
  assert.deepEqual(await newest(), { generation: 2, version: 1 });
  await generations.stop();
});

test('changes gather until they are many or old', async () => {
  await using rig = new Rig();
  const storage = await rig.storage();
  const uploader = rig.uploader(storage, rig.generations(), { uploadBytes: 40, uploadMs: 1e9 });
  for (let i = 0; i < 3; i++) await grow(storage);
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.equal(rig.store.calls.put, 0);
  await grow(storage);
  await grow(storage);
  await uploader.flush();
  // Five layers, and the index once or, when the fourth was enough already, twice.
  assert.ok([6, 7].includes(rig.store.calls.put), 'six or seven puts');
  const aged = rig.uploader(await rig.storage('a', false), rig.generations(), { uploadBytes: 1e15, uploadMs: 30 });
  assert.ok(aged.clean);
  assert.ok(isCode(new LakebaseError('FENCED', ''), 'FENCED'));
});
