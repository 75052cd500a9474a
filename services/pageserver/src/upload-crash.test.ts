/** F4: kill -9 at every named place of flush, merge, upload and publication. A child process writes, merges and uploads until it reaches the place;
 *  then: the disk opens, what was flushed before is there, every index in the store names only what is there, nobody was told of more than the store
 *  holds, and going on from this disk or from the store alone ends in the same pages. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { type FailpointName, armFailpoint, onFailpointKill, silentLogger } from '@lakebase/base';
import { plainKeys } from '@lakebase/keys';
import { type Lsn, type ProjectUid, type TimelineId } from '@lakebase/ids';
import { FrameCache, PageReader, namesOf } from '@lakebase/layers';
import { DirectoryStore, indexObject, timelineObject } from '@lakebase/object-store';
import { runCompaction } from './compaction-job.ts';
import { Generations } from './generations.ts';
import { pageRedo } from './page-redo.ts';
import { findIndex } from './remote-index.ts';
import { TimelineStorage } from './storage.ts';
import { FakePlacements } from './testing-placements.ts';
import { Uploader } from './uploader.ts';
import { MERGES_BY_HAND, TEST_RELATION, firstIndex, imagesAt } from './testing-storage.ts';

const PROJECT = '3'.repeat(32) as ProjectUid;
const TIMELINE = '4'.repeat(32) as TimelineId;
const POLICY = { uploadBytes: 1e15, uploadMs: 1e9 };
const BLOCKS = 8;
const filesIn = (directory: string) => ({
  directory,
  keys: plainKeys.project(PROJECT),
  cache: new FrameCache(1 << 20),
  project: PROJECT,
  timeline: TIMELINE,
});

async function open(home: string): Promise<TimelineStorage> {
  const files = filesIn(join(home, 'disk'));
  if (!existsSync(files.directory)) mkdirSync(files.directory, { recursive: true });
  const found = await TimelineStorage.open(files, MERGES_BY_HAND, runCompaction, silentLogger);
  if (found !== undefined) return found;
  await TimelineStorage.create(files, firstIndex(PROJECT, TIMELINE));
  return (await TimelineStorage.open(files, MERGES_BY_HAND, runCompaction, silentLogger)) as TimelineStorage;
}

/** One life of the pageserver: `rounds` of two flushes, an upload, a merge and an upload. Notes what it told others before it goes on. */
async function live(home: string, generation: number, rounds: number): Promise<void> {
  const placements = new FakePlacements();
  placements.add(PROJECT, [TIMELINE]);
  (placements.projects.get(PROJECT) as { generation: number }).generation = generation - 1;
  const generations = new Generations(placements.of('ps'), silentLogger, 3_600_000);
  const storage = await open(home);
  const counters = { puts: 0, putBytes: 0, indexPuts: 0, deletes: 0, failures: 0 };
  const uploader = new Uploader(storage, { store: new DirectoryStore(join(home, 'store')), generations, counters }, POLICY, silentLogger);
  const tell = (): void => writeFileSync(join(home, 'told'), `${storage.diskConsistentLsn} ${uploader.remoteConsistentLsn}`);
  for (let i = 0; i < rounds; i++) {
    for (let k = 0; k < 2; k++) {
      const end = storage.diskConsistentLsn + 8;
      storage.addFrozen(imagesAt(end - 8, end, BLOCKS), storage.diskConsistentLsn);
      await storage.flush();
      tell();
    }
    await uploader.flush();
    tell();
    await storage.compact();
    await uploader.flush();
    tell();
  }
  await generations.stop();
  await uploader.stop();
  await storage.close();
}

async function checkPages(storage: TimelineStorage): Promise<void> {
  const reader = new PageReader(storage, pageRedo(18));
  for (let lsn = 16; lsn <= storage.diskConsistentLsn; lsn += 8)
    for (let b = 0; b < BLOCKS; b++)
      assert.equal(reader.page(TEST_RELATION, b, lsn as Lsn)[100], (lsn / 8 + b) & 255, `block ${b} at ${lsn}`);
}

async function newestIndex(home: string, generation: number) {
  return findIndex(new DirectoryStore(join(home, 'store')), filesIn(home), { below: generation + 1, floor: 1, list: false });
}

/** Lays a disk out from the store alone. */
async function layOut(home: string, generation: number): Promise<string> {
  const store = new DirectoryStore(join(home, 'store'));
  const found = await newestIndex(home, generation);
  assert.ok(found !== undefined);
  const other = join(home, 'other');
  rmSync(other, { recursive: true, force: true });
  mkdirSync(join(other, 'disk'), { recursive: true });
  for (const name of namesOf(found.index))
    writeFileSync(join(other, 'disk', name), (await store.get(timelineObject(PROJECT, TIMELINE, name))).bytes);
  await TimelineStorage.create(filesIn(join(other, 'disk')), found.index);
  return other;
}

if (process.env['UPLOAD_CRASH_HOME'] !== undefined) {
  onFailpointKill(() => process.kill(process.pid, 'SIGKILL'));
  armFailpoint(process.env['UPLOAD_CRASH_PLACE'] as string, process.env['UPLOAD_CRASH_ACTION'] as string);
  await live(process.env['UPLOAD_CRASH_HOME'], Number(process.env['UPLOAD_CRASH_GENERATION']), 3);
  process.exit(7);
}

const PLACES: readonly FailpointName[] = [
  'pageserver.flush.before-layer',
  'pageserver.flush.before-index',
  'pageserver.flush.after-index',
  'pageserver.compaction.before-publish',
  'pageserver.compaction.after-publish',
  'pageserver.upload.before-layer',
  'pageserver.upload.after-layer',
  'pageserver.upload.before-index',
  'pageserver.upload.after-index',
  'pageserver.delete.before-objects',
];

test('kill -9 at every step between a page in memory and its deletion from the store', { timeout: 180_000 }, async (t) => {
  for (const place of PLACES)
    await t.test(place, async () => {
      const home = mkdtempSync(join(tmpdir(), 'lb-crash-'));
      try {
        // Twice, each life with a generation of its own; the second begins with what the first left.
        for (const [generation, hit] of [
          [1, 2],
          [2, 1],
        ] as const) {
          const code = await new Promise<string>((resolve) => {
            const child = spawn(process.execPath, ['--conditions=lakebase-source', import.meta.filename], {
              stdio: ['ignore', 'inherit', 'inherit'],
              env: {
                ...process.env,
                NODE_TEST_CONTEXT: '',
                UPLOAD_CRASH_HOME: home,
                UPLOAD_CRASH_PLACE: place,
                UPLOAD_CRASH_ACTION: `kill@${hit}`,
                UPLOAD_CRASH_GENERATION: String(generation),
              },
            });
            child.once('exit', (c, signal) => resolve(signal ?? String(c)));
          });
          assert.equal(code, 'SIGKILL');
          const [flushed, remote] = (existsSync(join(home, 'told')) ? readFileSync(join(home, 'told'), 'utf8') : '0 0')
            .split(' ')
            .map(Number);
          const storage = await open(home);
          assert.ok(storage.diskConsistentLsn >= (flushed as number));
          await checkPages(storage);
          await storage.close();
          const store = new DirectoryStore(join(home, 'store'));
          for (let g = 1; g <= generation; g++) {
            const found = await findIndex(store, filesIn(home), { below: g + 1, floor: g, list: false });
            if (found === undefined) continue;
            for (const name of namesOf(found.index)) await store.head(timelineObject(PROJECT, TIMELINE, name));
          }
          const found = await newestIndex(home, generation);
          assert.ok((found?.index.diskConsistentLsn ?? 0) >= (remote as number), 'nobody was told of more than the store holds');
          if (found === undefined) continue;
          const fromStore = await open(await layOut(home, generation));
          await checkPages(fromStore);
          await fromStore.close();
        }
        // Going on ends whole, with nothing but the last index and what it names, orphans of the crashes apart.
        await live(home, 3, 1);
        const store = new DirectoryStore(join(home, 'store'));
        await store.head(indexObject(PROJECT, TIMELINE, 3));
        await assert.rejects(store.head(indexObject(PROJECT, TIMELINE, 2)));
        const end = await open(await layOut(home, 3));
        await checkPages(end);
        await end.close();
      } finally {
        rmSync(home, { recursive: true, force: true });
      }
    });
});
