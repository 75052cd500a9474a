/** The scrubber on a timeline with an object store: bit rot in every kind of object and file, missing ones, orphans, and what repairs and what must not. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ScrubFinding } from '@lakebase/api';
import { LakebaseError, silentLogger } from '@lakebase/base';
import { LocalKeys } from '@lakebase/keys';
import { BLCKSZ, type Lsn, type ProjectUid, type TimelineId } from '@lakebase/ids';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_VALUE,
  FrameCache,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  OpenLayer,
  SeriesTable,
  metaSeries,
  namesOf,
  sealObject,
} from '@lakebase/layers';
import { indexObject, timelineObject, timelinePrefix } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import { OrphanMemory, type ScrubJob } from '@lakebase/service-kit';
import { runCompaction } from './compaction-job.ts';
import { SUSPEND_OBJECT_MAGIC } from './bundle.ts';
import { Generations } from './generations.ts';
import { scrubPageserver } from './scrub.ts';
import { subjectOf } from './scrub-subject.ts';
import { scrubTemplate } from './scrub-template.ts';
import { scrubTimeline } from './scrub-timeline.ts';
import { TimelineStorage } from './storage.ts';
import { FakePlacements } from './testing-placements.ts';
import { Uploader } from './uploader.ts';
import { MERGES_BY_HAND, firstIndex } from './testing-storage.ts';

const PROJECT = '3'.repeat(32) as ProjectUid;
const TIMELINE = '4'.repeat(32) as TimelineId;
const keySource = new LocalKeys();
const series = new SeriesTable();
const rel = metaSeries(KIND_REL_PAGE, 1663, 5, 16384);

class Rig implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'lb-scrub-'));
  readonly data = join(this.directory, 'data');
  readonly store = new MemoryStore();
  readonly placements = new FakePlacements();
  readonly generations: Generations;
  storage!: TimelineStorage;
  uploader!: Uploader;
  memory = new OrphanMemory(join(this.directory, 'orphans.json'), silentLogger);

  constructor() {
    this.placements.add(PROJECT, [TIMELINE]);
    this.generations = new Generations(this.placements.of('ps'), silentLogger, 3_600_000);
  }

  static async make(): Promise<Rig> {
    const rig = new Rig();
    const keys = keySource.project(PROJECT);
    await keys.ready();
    mkdirSync(rig.data);
    const files = { directory: rig.data, keys, cache: new FrameCache(1 << 20), project: PROJECT, timeline: TIMELINE };
    await TimelineStorage.create(files, firstIndex(PROJECT, TIMELINE));
    rig.storage = (await TimelineStorage.open(files, MERGES_BY_HAND, runCompaction, silentLogger)) as TimelineStorage;
    const counters = { puts: 0, putBytes: 0, indexPuts: 0, deletes: 0, failures: 0 };
    const target = { store: rig.store, generations: rig.generations, counters };
    rig.uploader = new Uploader(rig.storage, target, { uploadBytes: 1e15, uploadMs: 1e9 }, silentLogger);
    for (const end of [16, 24]) await rig.grow(end);
    const seal = (name: string, key: ReturnType<typeof keys.create>): Buffer =>
      sealObject(SUSPEND_OBJECT_MAGIC, { project: PROJECT, timeline: TIMELINE, name }, Buffer.alloc(3_000, 7), key);
    await rig.storage.putObject('suspend', seal, (entry) => ({ suspend: { lsn: 24, ...entry } }));
    await rig.uploader.flush();
    return rig;
  }

  async grow(end: number): Promise<void> {
    const layer = new OpenLayer(series, this.storage.diskConsistentLsn);
    layer.put(series.intern(KIND_REL_SIZE, 1663, 5, 16384, 0), 0, ENTRY_VALUE, ARG_STOP, end as Lsn, Buffer.from([0, 0, 0, 20]));
    for (let b = 0; b < 20; b++) layer.put(series.internSeries(rel), b, ENTRY_IMAGE, ARG_STOP, end as Lsn, Buffer.alloc(BLCKSZ, end + b));
    layer.freeze(end as Lsn);
    this.storage.addFrozen(layer, this.storage.diskConsistentLsn);
    await this.storage.flush();
  }

  get names(): string[] {
    return namesOf(this.storage.index);
  }
  key(name: string): string {
    return timelineObject(PROJECT, TIMELINE, name);
  }
  get remoteIndex(): string {
    return indexObject(PROJECT, TIMELINE, this.storage.index.generation);
  }
  flipObject(key: string, at: number): void {
    const object = this.store.objects.get(key) as { bytes: Buffer };
    object.bytes[at] = (object.bytes[at] as number) ^ 0x20;
  }
  flipFile(name: string, at: number): void {
    const bytes = readFileSync(join(this.data, name));
    bytes[at] = (bytes[at] as number) ^ 0x20;
    writeFileSync(join(this.data, name), bytes);
  }
  sizeOf(name: string): number {
    return readFileSync(join(this.data, name)).length;
  }

  async scrub(repair = false, more: Partial<ScrubJob> = {}): Promise<ScrubFinding[]> {
    const found: ScrubFinding[] = [];
    await scrubTimeline(this.subject, this.job(repair, { found: (f) => void found.push(f), ...more }), this.memory);
    return found;
  }
  job(repair: boolean, more: Partial<ScrubJob>): ScrubJob {
    return {
      project: null,
      repair,
      deleteOrphans: repair,
      knownProjects: null,
      orphanAgeMs: 0,
      signal: new AbortController().signal,
      spent: async () => {},
      object: () => {},
      found: () => {},
      timelines: () => {},
      skipped: () => {},
      ...more,
    };
  }
  /** This very directory, as if it were a template. */
  async scrubTemplate(repair: boolean, alone = (): void => {}): Promise<{ found: ScrubFinding[]; removed: number }> {
    const found: ScrubFinding[] = [];
    let removed = 0;
    await scrubTemplate(
      {
        major: 18,
        files: this.storage.files,
        alone: (run) => (alone(), run()),
        remove: async () => void removed++,
      },
      this.job(repair, { found: (f) => void found.push(f) }),
    );
    return { found, removed };
  }
  get subject() {
    return subjectOf(this.storage, { store: this.store, generations: this.generations, uploader: this.uploader });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.uploader.stop();
    await this.generations.stop();
    await this.storage.close();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

const shape = (found: readonly ScrubFinding[]): string[] =>
  found.map((f) => `${f.kind} ${f.where} ${f.outcome} ${f.name.split('/').at(-1)}`);

test('nothing is wrong with what is as it was written', async () => {
  await using rig = await Rig.make();
  assert.equal(rig.names.length, 3);
  assert.deepEqual(await rig.scrub(), []);
  assert.deepEqual(await rig.scrub(true), []);
});

test('a flipped bit anywhere in an object is found, by name; repaired from the local file', async () => {
  await using rig = await Rig.make();
  for (const name of rig.names)
    for (const share of [0, 0.2, 0.5, 0.8, 1]) {
      rig.flipObject(rig.key(name), Math.floor((rig.sizeOf(name) - 1) * share));
      assert.deepEqual(shape(await rig.scrub()), [`damaged store left ${name}`]);
      assert.deepEqual(shape(await rig.scrub(true)), [`damaged store repaired ${name}`], `${name} at ${share}`);
      assert.deepEqual(await rig.scrub(), []);
    }
});

test('a flipped bit anywhere in a local file is found; repaired from the object; reads are right afterwards', async () => {
  await using rig = await Rig.make();
  for (const name of rig.names)
    for (const share of [0, 0.3, 0.6, 1]) {
      const whole = readFileSync(join(rig.data, name));
      rig.flipFile(name, Math.floor((whole.length - 1) * share));
      assert.deepEqual(shape(await rig.scrub()), [`damaged disk left ${name}`]);
      assert.deepEqual(shape(await rig.scrub(true)), [`damaged disk repaired ${name}`]);
      assert.ok(readFileSync(join(rig.data, name)).equals(whole));
      assert.deepEqual(await rig.scrub(), []);
    }
  assert.deepEqual(
    readdirSync(rig.data).filter((f) => f.endsWith('.tmp')),
    [],
  );
});

test('both copies damaged: said, nothing replaced', async () => {
  await using rig = await Rig.make();
  const name = rig.names[0] as string;
  rig.flipObject(rig.key(name), 5_000);
  rig.flipFile(name, 6_000);
  const before = Buffer.from(rig.store.objects.get(rig.key(name))?.bytes as Buffer);
  const found = await rig.scrub(true);
  assert.deepEqual(shape(found), [`damaged store left ${name}`, `damaged disk left ${name}`]);
  assert.match(found[0]?.detail ?? '', /frame/);
  assert.ok(rig.store.objects.get(rig.key(name))?.bytes.equals(before));
});

test('missing objects and files; a file that is only in the store is no finding', async () => {
  await using rig = await Rig.make();
  const [first, second] = rig.names as [string, string];
  rig.store.objects.delete(rig.key(first));
  rmSync(join(rig.data, second));
  assert.deepEqual(shape(await rig.scrub()), [`missing store left ${first}`]);
  assert.deepEqual(shape(await rig.scrub(true)), [`missing store repaired ${first}`]);
  assert.deepEqual(await rig.scrub(), []);
  rig.store.objects.delete(rig.key(second));
  assert.deepEqual(shape(await rig.scrub(true)), [`missing store left ${second}`]);
});

test('another valid layer under the name is found: swapped, or an older life of the name', async () => {
  await using rig = await Rig.make();
  const [first, second] = rig.names as [string, string];
  const a = rig.store.objects.get(rig.key(first)) as { bytes: Buffer; tag: string };
  rig.store.objects.set(rig.key(first), rig.store.objects.get(rig.key(second)) as typeof a);
  assert.deepEqual(shape(await rig.scrub(true)), [`damaged store repaired ${first}`]);
});

test('indexes: damaged, missing or put back, here and there; written anew from what is open', async () => {
  await using rig = await Rig.make();
  const older = Buffer.from(rig.store.objects.get(rig.remoteIndex)?.bytes as Buffer);
  await rig.grow(32);
  await rig.uploader.flush();
  rig.flipObject(rig.remoteIndex, 100);
  assert.deepEqual(shape(await rig.scrub(true)), ['damaged store repaired index-g00000001']);
  rig.store.objects.delete(rig.remoteIndex);
  assert.deepEqual(shape(await rig.scrub(true)), ['missing store repaired index-g00000001']);
  rig.store.objects.set(rig.remoteIndex, { bytes: older, tag: 'older' });
  assert.deepEqual(shape(await rig.scrub(true)), ['damaged store repaired index-g00000001']);
  rig.flipFile('index', 90);
  assert.deepEqual(shape(await rig.scrub(true)), ['damaged disk repaired index']);
  assert.deepEqual(await rig.scrub(), []);
});

test('orphans: only old ones, only with repair, only under a confirmed generation; WAL and newer generations are not touched', async () => {
  await using rig = await Rig.make();
  const prefix = timelinePrefix(PROJECT, TIMELINE);
  const layer = 'delta-0000000000000001-0000000000000009-00000063.0000-g00000001.layer';
  const foreign = 'delta-0000000000000001-0000000000000009-00000063.0000-g00000009.layer';
  for (const name of [layer, foreign, 'wal/0000000000000000-8', 'index-g00000000', 'index-g00000009', 'suspend-00000063-g00000001'])
    await rig.store.put(prefix + name, Buffer.from('x'));
  const old = [`orphan store left ${layer}`, 'orphan store left index-g00000000', 'orphan store left suspend-00000063-g00000001'].sort();
  assert.deepEqual(await rig.scrub(true, { orphanAgeMs: 86_400_000 }), [], 'young ones are left alone');
  assert.deepEqual(shape(await rig.scrub()).sort(), old);
  rig.placements.projects.get(PROJECT)!.generation = 7;
  assert.deepEqual(await rig.scrub(true), [], 'a superseded pageserver deletes nothing, and cannot say what an orphan is');
  assert.equal(rig.store.objects.has(prefix + layer), true);
});

test('orphans are deleted once they are old', async () => {
  await using rig = await Rig.make();
  const prefix = timelinePrefix(PROJECT, TIMELINE);
  let now = 1_000_000;
  const path = join(rig.directory, 'orphans.json');
  rig.memory = new OrphanMemory(path, silentLogger, () => now);
  await rig.store.put(`${prefix}bootset-00000063-g00000001`, Buffer.from('x'));
  const day = { orphanAgeMs: 86_400_000 };
  assert.deepEqual(await rig.scrub(true, day), []);
  rig.memory.save();
  now += 86_400_000;
  rig.memory = new OrphanMemory(path, silentLogger, () => now);
  assert.deepEqual(
    shape(await rig.scrub(true, { ...day, deleteOrphans: false })),
    ['orphan store left bootset-00000063-g00000001'],
    'on schedule',
  );
  assert.deepEqual(shape(await rig.scrub(true, day)), ['orphan store deleted bootset-00000063-g00000001']);
  assert.deepEqual(await rig.scrub(), []);
  assert.equal(rig.store.objects.size, 4, 'everything that is named is there');
});

test('a store that fails says nothing about the objects', async () => {
  await using rig = await Rig.make();
  const get = rig.store.get.bind(rig.store);
  rig.store.get = () => Promise.reject(new LakebaseError('UNAVAILABLE', 'away'));
  const found = await rig.scrub(true);
  assert.ok(found.length >= 3 && found.every((f) => f.kind === 'unreadable' && f.outcome === 'left'), JSON.stringify(shape(found)));
  rig.store.get = get;
  assert.deepEqual(await rig.scrub(), []);
});

test('a layer that is merged away while it is read is not missed', async () => {
  await using rig = await Rig.make();
  const name = rig.names[0] as string;
  let merged = false;
  const found = await rig.scrub(true, {
    spent: async () => {
      if (merged) return;
      merged = true;
      await rig.storage.compact();
      await rig.uploader.flush();
    },
  });
  assert.deepEqual(shape(found), []);
  assert.ok(!rig.names.includes(name));
});

test('projects that the Manager does not know are reported and left; a locked timeline is skipped', async () => {
  await using rig = await Rig.make();
  await rig.store.put(`projects/${'9'.repeat(32)}/timelines/${TIMELINE}/index-g00000001`, Buffer.from('x'));
  const found: ScrubFinding[] = [];
  const skipped: string[] = [];
  const job: ScrubJob = {
    project: null,
    repair: true,
    deleteOrphans: true,
    knownProjects: [PROJECT],
    orphanAgeMs: 0,
    signal: new AbortController().signal,
    spent: async () => {},
    object: () => {},
    found: (f) => void found.push(f),
    timelines: () => {},
    skipped: (t) => void skipped.push(t),
  };
  const locked = '5'.repeat(32) as TimelineId;
  await scrubPageserver(
    {
      store: rig.store,
      templates: () => [],
      timelines: async () => [
        { project: PROJECT, timeline: locked },
        { project: PROJECT, timeline: TIMELINE },
      ],
      open: async (_, timeline) => {
        if (timeline === locked) throw new LakebaseError('KEY_REVOKED', 'revoked');
        return { subject: rig.subject, release: () => {} };
      },
      restore: async () => false,
    },
    job,
    rig.memory,
  );
  assert.deepEqual(shape(found), ['unknown store left ']);
  assert.equal(skipped.length, 1);
  assert.equal(rig.store.objects.size, 5);
});

test('a template that is not as it was written is found, and taken away on repair', async () => {
  await using rig = await Rig.make();
  assert.deepEqual(await rig.scrubTemplate(true), { found: [], removed: 0 });
  const layer = rig.names.find((name) => name.endsWith('.layer')) as string;
  for (const name of [layer, 'index']) {
    rig.flipFile(name, 100);
    const seen = await rig.scrubTemplate(false);
    assert.deepEqual(shape(seen.found), ['damaged disk left template 18']);
    assert.equal(seen.removed, 0);
    const repaired = await rig.scrubTemplate(true);
    assert.deepEqual(shape(repaired.found), ['damaged disk repaired template 18']);
    assert.equal(repaired.removed, 1);
    // One that was being replaced meanwhile is no finding.
    assert.deepEqual(await rig.scrubTemplate(true, () => rig.flipFile(name, 100)), { found: [], removed: 0 });
  }
  rmSync(join(rig.data, layer));
  assert.deepEqual(shape((await rig.scrubTemplate(true)).found), ['missing disk repaired template 18']);
});
