/** Where new projects go, over a real metadata database: to the pageserver with the least bytes for its disk, never to one that does not answer or is full. */
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { PlacementClient, internalToken } from '@lakebase/api';
import type { ProjectUid } from '@lakebase/ids';
import { PROJECT_BYTES_MIN } from './model/least-loaded.ts';
import { type RunningManager, TestBed, eventually } from './testing/test-manager.ts';

let bed: TestBed;
before(async () => {
  bed = await TestBed.create();
});
afterEach(() => {
  bed.fake.health.clear();
  bed.fake.down.clear();
});
after(() => bed[Symbol.asyncDispose]());

/** A Manager with two pageservers, the second at `url`. */
async function withSecond(url = bed.fake.url('second')): Promise<RunningManager> {
  const more = [{ id: 'second', httpUrl: url, pageHost: '127.0.0.1', pagePort: 2 }];
  const m = await bed.manager(bed.config(await bed.newDatabase(), { morePageservers: more }));
  await m.branchReady();
  return m;
}

const create = (m: RunningManager, id: string): Promise<unknown> => m.operate('POST', `projects?project_id=${id}`, {});
const placementsOf = (m: RunningManager, pageserver: string): PlacementClient =>
  new PlacementClient(pageserver, { baseUrl: m.baseUrl, token: internalToken(bed.secret, 'service') });

async function uidOf(m: RunningManager, id: string): Promise<ProjectUid> {
  const { body } = await m.call('GET', `postgres/projects/${id}`);
  return String(body.uid).replaceAll('-', '') as ProjectUid;
}

/** Ids of those of the projects that the pageserver owns, as it is told when it attaches them. */
async function ownedBy(m: RunningManager, pageserver: string, ids: readonly string[]): Promise<string[]> {
  const uids = await Promise.all(ids.map((id) => uidOf(m, id)));
  const { attached } = await placementsOf(m, pageserver).attach({ projects: uids.map((project) => ({ project, seen: 0 })) });
  const owned = new Set(attached.map((a) => a.project));
  return ids.filter((_, i) => owned.has(uids[i] as ProjectUid));
}

/** `by` confirms the owner's generation of the project, and says how large it is. */
async function tell(m: RunningManager, id: string, layerBytes: number, owner: string, by = owner): Promise<void> {
  const project = await uidOf(m, id);
  const [attached] = (await placementsOf(m, owner).attach({ projects: [{ project, seen: 0 }] })).attached;
  assert.ok(attached !== undefined && attached.timelines.length === 1);
  const sizes = attached.timelines.map(({ timeline }) => ({ timeline, layerBytes }));
  await placementsOf(m, by).validate({ projects: [{ project, generation: attached.generation, published: [], sizes }] });
}

test('new projects, of which nothing is known yet, spread evenly', async () => {
  await using m = await withSecond();
  const ids = ['default', 'one', 'two', 'three'];
  for (const id of ids.slice(1)) await create(m, id);
  assert.deepEqual(await ownedBy(m, 'pageserver', ids), ['default', 'two']);
  assert.deepEqual(await ownedBy(m, 'second', ids), ['one', 'three']);
  await m.operate('DELETE', 'projects/one');
  await m.operate('DELETE', 'projects/three');
  // Two at once do not choose the same place twice.
  await Promise.all(['four', 'five'].map((id) => create(m, id)));
  assert.deepEqual(await ownedBy(m, 'second', ['default', 'two', 'four', 'five']), ['four', 'five']);
});

test('a new project goes where the least bytes are, however many projects that is', async () => {
  await using m = await withSecond();
  // Small ones count alike, whether or not they were measured.
  await tell(m, 'default', 1_000, 'pageserver');
  await create(m, 'one');
  assert.deepEqual(await ownedBy(m, 'second', ['default', 'one']), ['one']);
  await tell(m, 'default', 4 * PROJECT_BYTES_MIN, 'pageserver');
  // Not its project: its word does not count.
  await tell(m, 'one', 100 * PROJECT_BYTES_MIN, 'second', 'pageserver');
  const more = ['two', 'three', 'four', 'five'];
  for (const id of more) await create(m, id);
  assert.deepEqual(await ownedBy(m, 'second', ['one', ...more]), ['one', 'two', 'three', 'four']);
  assert.deepEqual(await ownedBy(m, 'pageserver', more), ['five']);
});

test('a larger disk takes more', async () => {
  bed.fake.health.set('pageserver', { disk: { capacityBytes: 1e11, full: false } });
  bed.fake.health.set('second', { disk: { capacityBytes: 3e11, full: false } });
  await using m = await withSecond();
  const ids = ['default', 'one', 'two', 'three'];
  for (const id of ids.slice(1)) await create(m, id);
  assert.equal((await ownedBy(m, 'second', ids)).length, 3);
});

test('while no pageserver takes a new project it waits, and may be deleted; it goes to the first that has room again', async () => {
  await using m = await withSecond();
  const full = { disk: { capacityBytes: 1e11, full: true } };
  bed.fake.health.set('pageserver', full);
  bed.fake.down.add('second');
  await m.call('POST', 'postgres/projects?project_id=one', {});
  const problem = async (): Promise<string> =>
    String(((await m.call('GET', 'postgres/projects/one')).body['status'] as { error?: string } | undefined)?.error);
  await eventually('it says why', async () =>
    /no pageserver takes a new project: pageserver has a full disk, second does not answer/.test(await problem()),
  );
  bed.fake.down.delete('second');
  await m.branchReady('one');
  assert.deepEqual(await ownedBy(m, 'second', ['default', 'one']), ['one']);
  bed.fake.health.set('second', full);
  await m.call('POST', 'postgres/projects?project_id=two', {});
  await m.operate('DELETE', 'projects/two');
});

test('one that does not answer gets no new project', async () => {
  await using m = await withSecond('http://127.0.0.1:1');
  const ids = ['default', 'one', 'two'];
  for (const id of ids.slice(1)) await create(m, id);
  assert.deepEqual(await ownedBy(m, 'pageserver', ids), ids);
});
