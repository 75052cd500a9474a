/** Where new projects go, over a real metadata database: to the pageserver with the least bytes for its disk, never to one that does not answer or is full; and
 *  what was published is known. */
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { type PublishedAnswer, PlacementClient, internalToken } from '@lakebase/api';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
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
  const sizes = attached.timelines.map(({ timeline }) => ({ timeline, layerBytes, logicalBytes: 2 * layerBytes }));
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

test('a project and its branches say how large they are, once that has been told', async () => {
  await using m = await withSecond();
  const sizes = async (): Promise<unknown[]> => {
    const shown = ['projects/default', 'projects/default/branches/production'].map(
      async (name) => (await m.call('GET', `postgres/${name}`)).body,
    );
    const [project, branch] = (await Promise.all(shown)).map((body) => body['status'] as Record<string, unknown>);
    return [project?.['synthetic_storage_size_bytes'], branch?.['logical_size_bytes']];
  };
  assert.deepEqual(await sizes(), [0, 0]);
  await tell(m, 'default', 5_000_000_000, 'pageserver');
  assert.deepEqual(await sizes(), [5_000_000_000, 10_000_000_000]);
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

test('the newest index that was put is known until an administrator accepts an older store', async () => {
  await using m = await bed.manager(bed.config(await bed.newDatabase()));
  await m.branchReady();
  const project = await uidOf(m, 'default');
  const client = new PlacementClient('pageserver', { baseUrl: m.baseUrl, token: internalToken(bed.secret, 'service') });
  const attach = async () => (await client.attach({ projects: [{ project, seen: 0 }] })).attached[0];
  const first = await attach();
  assert.ok(first !== undefined);
  const timeline = first.timelines[0]?.timeline as TimelineId;
  assert.deepEqual(first.timelines[0]?.published, { generation: 0, version: 0 });
  const put = (generation: number, version: number) =>
    client.validate({ projects: [{ project, generation, published: [{ timeline, version }] }] });
  const places = (answer: PublishedAnswer | undefined) => answer?.timelines.map((t) => t.published);
  const { generation } = first;
  assert.deepEqual((await put(generation, 7)).valid, [project]);
  // Of a call that was on its way for long.
  await put(generation, 6);
  assert.deepEqual(places(await client.published(project)), [{ generation, version: 7 }]);
  const second = await attach();
  assert.deepEqual(places(second), [{ generation, version: 7 }]);
  // A lower version of a higher generation is newer; what one that was superseded still put is not.
  await put(generation + 1, 3);
  assert.deepEqual((await put(generation, 9)).valid, []);
  assert.deepEqual(places(await client.published(project)), [{ generation: generation + 1, version: 3 }]);

  const accept = (token?: string) => m.call('POST', 'lakebase/projects/default/accept-older-store', {}, token);
  assert.equal((await accept('nobody')).status, 401);
  const accepted = await accept();
  assert.equal(accepted.status, 200);
  assert.deepEqual(accepted.body['branches'], [{ branch: 'production', generation: generation + 1, version: 3 }]);
  assert.deepEqual(places(await client.published(project)), [{ generation: 1, version: 0 }]);
  await put(generation + 1, 4);
  assert.deepEqual(places(await attach()), [{ generation: generation + 1, version: 4 }]);
});
