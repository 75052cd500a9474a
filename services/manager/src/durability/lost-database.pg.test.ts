/** A whole Manager, killed and started on an empty database: what it had answered is there, passwords among it; without its object store it refuses changes
 *  and goes on with everything else. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { PlacementClient, internalToken } from '@lakebase/api';
import type { ManagerConfig } from '../config.ts';
import { type Json, KillableManager, TestBed, eventually } from '../testing/test-manager.ts';

let bed: TestBed;
let objects: string;
before(async () => {
  bed = await TestBed.create();
  objects = join(mkdtempSync(join(tmpdir(), 'lb-catalog-')), 'objects');
});
after(async () => {
  await bed[Symbol.asyncDispose]();
  rmSync(join(objects, '..'), { recursive: true, force: true });
});

const start = async (config: ManagerConfig): Promise<KillableManager> => (await KillableManager.start(bed, config)).up();
const health = async (m: KillableManager): Promise<Json> => (await (await fetch(`${m.baseUrl}/healthz`)).json()) as Json;

test('lost database, lost password file, store away', async () => {
  const shared = { objectStore: { kind: 'directory', path: objects } as const };
  const config = bed.config(await bed.newDatabase(), shared);
  const first = await start(config);
  let generation: number | undefined;
  const roles: string[] = [];
  try {
    await first.branchReady();
    await first.operate('POST', 'projects?project_id=second', { spec: {} });
    await first.operate('POST', 'projects/second/branches/production/roles?role_id=app', { spec: { postgres_role: 'app' } });
    roles.push('app');
    const placements = new PlacementClient('pageserver', { baseUrl: first.baseUrl, token: internalToken(bed.secret, 'service') });
    const project = (await first.call('GET', 'postgres/projects/second')).body['uid'].replaceAll('-', '') as never;
    generation = (await placements.attach({ projects: [{ project, seen: 0 }] })).attached[0]?.generation;
    assert.ok(generation !== undefined && generation > 0);
    // Killed in the middle of changes: of those, what was answered counts.
    const changing = (async () => {
      for (let i = 0; ; i++) {
        const answer = await first.call('POST', `postgres/projects/second/branches/production/roles?role_id=r${i}`, {
          spec: { postgres_role: `r${i}` },
        });
        if (answer.status === 200) roles.push(`r${i}`);
      }
    })().catch(() => {});
    await eventually('some changes', () => roles.length > 5);
    await first.kill();
    await changing;
  } finally {
    await first.kill();
  }
  const passwords = readFileSync(config.credentialsFile, 'utf8');
  rmSync(config.credentialsFile);
  const second = await start({ ...config, databaseUrl: await bed.newDatabase() });
  try {
    const names = ((await second.call('GET', 'postgres/projects')).body['projects'] as Json[]).map((p) => String(p['name']));
    assert.deepEqual(
      names.toSorted((a, b) => (a < b ? -1 : 1)),
      ['projects/default', 'projects/second'],
    );
    const found = (
      (await second.call('GET', 'postgres/projects/second/branches/production/roles?page_size=500')).body['roles'] as Json[]
    ).map((r) => String(r['name']).split('/').at(-1));
    assert.deepEqual(
      roles.filter((r) => !found.includes(r)),
      [],
    );
    assert.deepEqual(JSON.parse(readFileSync(config.credentialsFile, 'utf8')), JSON.parse(passwords));
    const placements = new PlacementClient('pageserver', { baseUrl: second.baseUrl, token: internalToken(bed.secret, 'service') });
    const project = (await second.call('GET', 'postgres/projects/second')).body['uid'].replaceAll('-', '') as never;
    const next = (await placements.attach({ projects: [{ project, seen: 0 }] })).attached[0]?.generation;
    assert.equal(next, (generation as number) + 1);

    renameSync(objects, `${objects}.away`);
    writeFileSync(objects, 'not a directory');
    assert.equal((await second.call('POST', 'postgres/projects?project_id=third', { spec: {} })).status, 503);
    await assert.rejects(placements.attach({ projects: [{ project, seen: 0 }] }), { code: 'UNAVAILABLE' });
    assert.equal((await health(second))['catalogCopy'], 'STORE_AWAY');
    const endpoint = await second.endpoint('second');
    assert.equal((await second.internal.wake(String(endpoint['uid']))).endpointId, endpoint['uid']);
    rmSync(objects);
    renameSync(`${objects}.away`, objects);
    await eventually('the copy', async () => (await health(second))['catalogCopy'] === 'OK');
    await second.operate('POST', 'projects?project_id=third', { spec: {} });
    assert.equal((await placements.attach({ projects: [{ project, seen: 0 }] })).attached[0]?.generation, (generation as number) + 2);
  } finally {
    await second.kill();
  }
});
