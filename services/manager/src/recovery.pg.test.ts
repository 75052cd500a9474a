/** The Manager is killed with SIGKILL before and after the effect of every call it makes while a project is created and deleted.
 *  Whatever the moment, the next Manager finishes the work: one timeline on every service, or nothing left. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { TimelineId } from '@lakebase/ids';
import { forgetAnnounced } from './store/membership.ts';
import type { Call, FakeServices, Moment } from './testing/fake-services.ts';
import { KillableManager, TestBed, eventually } from './testing/test-manager.ts';

let bed: TestBed;
let fake: FakeServices;
before(async () => {
  bed = await TestBed.create();
  fake = bed.fake;
});
after(async () => bed?.[Symbol.asyncDispose]());

interface Point {
  readonly name: string;
  readonly moment: Moment;
  readonly at: (call: Call) => boolean;
}
const on = (name: string, service: RegExp, method: string, path: RegExp): Point[] =>
  (['before', 'after'] as const).map((moment) => ({
    name: `${moment} ${name}`,
    moment,
    at: (c) => service.test(c.service) && c.method === method && path.test(c.path),
  }));

/** Resolves at the point, which then never answers: the Manager hangs in that very call until it is killed. */
function stopAt(point: Point): Promise<void> {
  const reached = Promise.withResolvers<void>();
  let armed = true;
  fake.gate = (call, moment) => {
    if (!armed || moment !== point.moment || !point.at(call)) return;
    armed = false;
    reached.resolve();
    return new Promise(() => {});
  };
  return reached.promise;
}

const everywhere = (key: string): number =>
  Number(fake.pageTimelines.has(key)) + [...fake.walTimelines.values()].filter((t) => t.has(key)).length;

const CREATE = [
  ...on('the template', /compute/, 'POST', /templates/),
  ...on('the page timeline', /pageserver/, 'PUT', /timelines/),
  ...on('a WAL timeline', /sk2/, 'PUT', /timelines/),
];
for (const point of CREATE) {
  test(`create, killed ${point.name}`, async () => {
    fake.templates.clear();
    fake.pageTimelines.clear();
    for (const t of fake.walTimelines.values()) t.clear();
    const config = bed.config(await bed.newDatabase());
    const reached = stopAt(point);
    const first = await KillableManager.start(bed, config);
    await reached;
    await first.kill();
    fake.gate = () => {};
    const second = await (await KillableManager.start(bed, config)).up();
    await second.branchReady();
    assert.equal(fake.pageTimelines.size, 1);
    const key = [...fake.pageTimelines.keys()][0] as string;
    await eventually('on all members', () => everywhere(key) === 4);
    for (const t of fake.walTimelines.values()) assert.deepEqual([t.size, t.get(key)?.startLsn], [1, '0/1000028']);
    assert.equal((await second.endpoint()).status.current_state, 'IDLE');
    await second.kill();
  });
}

// Each costs two starts of a process: the moments that differ in what is recorded.
const DELETE = [
  ...on('the stop of the compute', /compute/, 'POST', /stop/).slice(1),
  ...on('the page timeline', /pageserver/, 'DELETE', /timelines/),
  ...on('a WAL timeline', /sk1/, 'DELETE', /timelines/).slice(1),
];
for (const point of DELETE) {
  test(`delete, killed ${point.name}`, async () => {
    const config = bed.config(await bed.newDatabase());
    const first = await (await KillableManager.start(bed, config)).up();
    await first.branchReady();
    const made = await first.operate('POST', 'projects?project_id=gone', {});
    const uid = String(made.response.uid).replaceAll('-', '');
    const key = [...fake.pageTimelines.keys()].find((k) => k.startsWith(uid)) as string;
    await eventually('on all members', () => everywhere(key) === 4);
    await first.internal.wake(String((await first.endpoint('gone')).uid));
    const reached = stopAt(point);
    await first.call('DELETE', 'postgres/projects/gone');
    await reached;
    await first.kill();
    fake.gate = () => {};
    const second = await (await KillableManager.start(bed, config)).up();
    await eventually('gone everywhere', () => everywhere(key) === 0);
    await eventually('gone from the API', async () => (await second.call('GET', 'postgres/projects/gone')).status === 404);
    assert.equal(fake.running().filter((c) => c.state === 'RUNNING').length, 0);
    assert.equal((await second.call('GET', 'postgres/projects/default')).status, 200);
    await second.kill();
  });
}

test('safekeepers that moved are announced to the pageserver', async () => {
  const config = bed.config(await bed.newDatabase());
  const first = await bed.manager(config);
  await first.branchReady();
  await first[Symbol.asyncDispose]();
  fake.calls.length = 0;
  const moved = config.safekeepers.map((s) => ({ ...s, pgPort: 2 }));
  await using _ = await bed.manager({ ...config, safekeepers: moved });
  await eventually('told', () =>
    fake.calls.some((c) => c.service === 'pageserver' && c.method === 'PUT' && JSON.stringify(c.body).includes('"pgPort":2')),
  );
});

test('a change that comes while the pageserver is told is told too', async () => {
  const config = bed.config(await bed.newDatabase());
  const m = await bed.manager(config);
  await m.branchReady();
  const { db } = m.manager.context;
  const [branch] = await db.query<{ timeline_id: TimelineId }>('SELECT timeline_id FROM branches');
  assert.ok(branch !== undefined);
  let told = 0;
  fake.gate = async (call, moment) => {
    if (call.service !== 'pageserver' || call.method !== 'PUT' || moment !== 'before') return;
    if (++told === 1) await forgetAnnounced(db.local, branch.timeline_id);
  };
  await forgetAnnounced(db.local, branch.timeline_id);
  await eventually('told again', () => told > 1);
  await eventually('noted', async () => (await db.query('SELECT 1 FROM branches WHERE announced IS NULL')).length === 0);
  fake.gate = () => {};
  await m[Symbol.asyncDispose]();
});

test('a role that is created when the Manager is killed is carried out by the next one', async () => {
  const config = bed.config(await bed.newDatabase());
  const first = await (await KillableManager.start(bed, config)).up();
  await first.branchReady();
  await first.internal.wake(String((await first.endpoint()).uid));
  const path = 'postgres/projects/default/branches/production/roles';
  const reached = stopAt({ name: '', moment: 'before', at: (c) => c.method === 'PATCH' });
  first.call('POST', `${path}?role_id=torn`, { spec: {} }).catch(() => {});
  await reached;
  await first.kill();
  fake.gate = () => {};
  const second = await (await KillableManager.start(bed, config)).up();
  await eventually('carried out', () => fake.roles.has('torn'));
  assert.equal((await second.call('GET', `${path}/torn`)).status, 200);
  await second.kill();
});

test('with one safekeeper away a project is created on the others, and on it when it is back', async () => {
  const config = bed.config(await bed.newDatabase());
  fake.down.add('sk3');
  const m = await bed.manager(config);
  await m.branchReady();
  const made = await m.operate('POST', 'projects?project_id=majority', {});
  assert.ok(made.response.name);
  fake.down.add('sk2');
  const { body } = await m.call('POST', 'postgres/projects?project_id=minority', {});
  assert.equal(body.done, false);
  await eventually('says why', async () =>
    /safekeepers/.test(String((await m.call('GET', 'postgres/projects/minority')).body.status.error)),
  );
  fake.down.clear();
  await m.branchReady('minority');
  const key = [...fake.pageTimelines.keys()].find((k) => k.startsWith(String(made.response.uid).replaceAll('-', ''))) as string;
  await eventually('the third member', () => everywhere(key) === 4);
  await m[Symbol.asyncDispose]();
});
