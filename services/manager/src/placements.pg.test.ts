/** Where new projects go, over a real metadata database: to the pageserver with the fewest, never to one that does not answer. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { PlacementClient, internalToken } from '@lakebase/api';
import type { ProjectUid } from '@lakebase/ids';
import { type RunningManager, TestBed } from './testing/test-manager.ts';

let bed: TestBed;
before(async () => {
  bed = await TestBed.create();
});
after(() => bed[Symbol.asyncDispose]());

/** A Manager with two pageservers, the second at `url`. */
async function withSecond(url: string): Promise<RunningManager> {
  const more = [{ id: 'second', httpUrl: url, pageHost: '127.0.0.1', pagePort: 2 }];
  const m = await bed.manager(bed.config(await bed.newDatabase(), { morePageservers: more }));
  await m.branchReady();
  return m;
}

async function uidOf(m: RunningManager, id: string): Promise<ProjectUid> {
  const { body } = await m.call('GET', `postgres/projects/${id}`);
  return String(body.uid).replaceAll('-', '') as ProjectUid;
}

/** Ids of those of the projects that the pageserver owns, as it is told when it attaches them. */
async function ownedBy(m: RunningManager, pageserver: string, ids: readonly string[]): Promise<string[]> {
  const client = new PlacementClient(pageserver, { baseUrl: m.baseUrl, token: internalToken(bed.secret, 'service') });
  const uids = await Promise.all(ids.map((id) => uidOf(m, id)));
  const { attached } = await client.attach({ projects: uids.map((project) => ({ project, seen: 0 })) });
  const owned = new Set(attached.map((a) => a.project));
  return ids.filter((_, i) => owned.has(uids[i] as ProjectUid));
}

test('new projects go to the pageserver with the fewest', async () => {
  await using m = await withSecond(bed.fake.url('pageserver'));
  const ids = ['default', 'one', 'two', 'three'];
  for (const id of ids.slice(1)) await m.operate('POST', `projects?project_id=${id}`, {});
  assert.deepEqual(await ownedBy(m, 'pageserver', ids), ['default', 'two']);
  assert.deepEqual(await ownedBy(m, 'second', ids), ['one', 'three']);
  await m.operate('DELETE', 'projects/one');
  await m.operate('DELETE', 'projects/three');
  // Two at once do not choose the same place twice.
  await Promise.all(['four', 'five'].map((id) => m.operate('POST', `projects?project_id=${id}`, {})));
  assert.deepEqual(await ownedBy(m, 'second', ['default', 'two', 'four', 'five']), ['four', 'five']);
});

test('one that does not answer gets no new project', async () => {
  await using m = await withSecond('http://127.0.0.1:1');
  const ids = ['default', 'one', 'two'];
  for (const id of ids.slice(1)) await m.operate('POST', `projects?project_id=${id}`, {});
  assert.deepEqual(await ownedBy(m, 'pageserver', ids), ids);
});
