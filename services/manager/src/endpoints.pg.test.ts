/** Waking, suspending, restarting and adopting computes. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import type { FakeServices } from './testing/fake-services.ts';
import { KillableManager, type RunningManager, TestBed, eventually } from './testing/test-manager.ts';

let bed: TestBed;
let fake: FakeServices;

before(async () => {
  bed = await TestBed.create();
  fake = bed.fake;
});
after(async () => bed?.[Symbol.asyncDispose]());
beforeEach(() => {
  fake.gate = () => {};
  fake.down.clear();
  fake.computes.clear();
  fake.calls.length = 0;
});

async function fresh(overrides: Parameters<TestBed['config']>[1] = {}): Promise<{ m: RunningManager; uid: string }> {
  const m = await bed.manager(bed.config(await bed.newDatabase(), overrides));
  await m.branchReady();
  return { m, uid: (await m.internal.resolve({ endpoint: null })).endpointId };
}

test('many wakes, one start; a second wake goes to the same compute', async () => {
  const { m, uid } = await fresh();
  await using _ = m;
  const woken = await Promise.all(Array.from({ length: 20 }, () => m.internal.wake(uid)));
  assert.equal(new Set(woken.map((w) => w.computeId)).size, 1);
  assert.equal(fake.count('compute', 'PUT', /computes/), 1);
  assert.equal((await m.endpoint()).status.current_state, 'ACTIVE');
  assert.equal((await m.internal.wake(uid)).computeId, woken[0]?.computeId);
});

test('suspends after the timeout, not while active, and wakes again with a fresh id', async () => {
  const { m, uid } = await fresh({ suspendTimeoutSeconds: 1 });
  await using _ = m;
  const first = await m.internal.wake(uid);
  fake.setActivity({ active: true, lastActiveAt: null, reason: 'client: active' });
  const busyUntil = Date.now() + 1_600;
  await eventually('busy time is over', () => Date.now() > busyUntil);
  assert.equal(fake.running().length, 1, 'an active compute is left alone');
  fake.setActivity({ active: false, lastActiveAt: new Date().toISOString(), reason: null });
  await eventually('suspended', async () => (await m.endpoint()).status.current_state === 'IDLE');
  assert.deepEqual(fake.calls.find((c) => /stop$/.test(c.path))?.body, { mode: 'fast' });
  assert.notEqual((await m.internal.wake(uid)).computeId, first.computeId);
});

test('a connection that arrives while the compute is being stopped waits and gets a new one', async () => {
  const { m, uid } = await fresh();
  await using _ = m;
  const first = await m.internal.wake(uid);
  const held = Promise.withResolvers<void>();
  fake.gate = (call, moment) => (/stop$/.test(call.path) && moment === 'before' ? held.promise : undefined);
  const suspended = m.operate('POST', 'projects/default/branches/production/endpoints/primary/suspend');
  await eventually('stopping', () => fake.count('compute', 'POST', /stop$/) === 1);
  const waiting = m.internal.wake(uid);
  held.resolve();
  await suspended;
  assert.notEqual((await waiting).computeId, first.computeId);
  assert.equal(fake.running().length, 1);
});

test('a compute that dies is started again at once', async () => {
  const { m, uid } = await fresh();
  await using _ = m;
  const first = await m.internal.wake(uid);
  fake.kill(first.computeId);
  await eventually('running again', () => fake.running().length === 1);
  await eventually('active', async () => (await m.endpoint()).status.current_state === 'ACTIVE');
  const second = await m.internal.wake(uid);
  assert.notEqual(second.computeId, first.computeId);
});

test('a wake soon after a death does not answer with the dead compute', async () => {
  const { m, uid } = await fresh();
  await using _ = m;
  const first = await m.internal.wake(uid);
  // The manager's own look may be up to a second away; a client that comes 600 ms later must not be sent to a dead socket.
  const later = Date.now() + 600;
  await eventually('later', () => Date.now() > later);
  fake.kill(first.computeId);
  assert.notEqual((await m.internal.wake(uid)).computeId, first.computeId);
});

test('services that do not answer for a moment are waited out; the client sees nothing', async () => {
  const { m, uid } = await fresh();
  await using _ = m;
  let failures = 3;
  fake.gate = (call, moment) => {
    if (call.method === 'PUT' && call.service === 'compute' && moment === 'before' && failures-- > 0)
      throw new LakebaseError('UNAVAILABLE', 'no quorum of safekeepers');
  };
  await m.internal.wake(uid);
  assert.equal(fake.count('compute', 'PUT', /computes/), 4);
});

test('a start that fails for good says why, backs off, and works again once the reason is gone', async () => {
  const { m, uid } = await fresh();
  await using _ = m;
  let broken = true;
  fake.gate = (call, moment) => {
    if (broken && call.method === 'PUT' && call.service === 'compute' && moment === 'before')
      throw new LakebaseError('CORRUPT', 'pg_control of the bundle is damaged');
  };
  await assert.rejects(m.internal.wake(uid), { code: 'CORRUPT', message: /pg_control of the bundle is damaged/ });
  const endpoint = await m.endpoint();
  assert.equal(endpoint.status.current_state, 'IDLE');
  assert.match(endpoint.status.last_error, /damaged/);
  broken = false;
  await m.internal.wake(uid);
  assert.equal((await m.endpoint()).status.last_error, undefined);
});

test('changes of the catalog during a start are carried out when it is up', async () => {
  const { m, uid } = await fresh();
  await using _ = m;
  const held = Promise.withResolvers<void>();
  fake.gate = (call, moment) => (call.method === 'PUT' && call.service === 'compute' && moment === 'before' ? held.promise : undefined);
  const waking = m.internal.wake(uid);
  await eventually('starting', () => fake.count('compute', 'PUT', /computes/) === 1);
  const created = m.operate('POST', 'projects/default/branches/production/roles?role_id=late', { spec: {} });
  held.resolve();
  await waking;
  await created;
  assert.ok(fake.roles.has('late'));
});

test('an ordered stop suspends; the next Manager finds the endpoint idle', async () => {
  const { m, uid } = await fresh();
  await m.internal.wake(uid);
  await m[Symbol.asyncDispose]();
  assert.equal(fake.running().length, 0);
  await using again = await bed.manager(m.config);
  assert.equal((await again.endpoint()).status.current_state, 'IDLE');
});

test('a killed Manager comes back, adopts what runs and stops what nobody wants', async () => {
  const config = bed.config(await bed.newDatabase());
  const first = await (await KillableManager.start(bed, config)).up();
  await first.branchReady();
  const { endpointId } = await first.internal.resolve({ endpoint: null });
  const woken = await first.internal.wake(endpointId);
  await first.kill();
  const [stray] = [...fake.computes.values()];
  assert.ok(stray);
  fake.computes.set('compute-stray', { spec: stray.spec, status: { ...stray.status, computeId: 'compute-stray' } });
  const second = await (await KillableManager.start(bed, config)).up();
  assert.equal((await second.internal.wake(endpointId)).computeId, woken.computeId);
  await eventually('stray stopped', () => fake.computes.get('compute-stray')?.status.state === 'STOPPED');
  assert.equal(fake.running().length, 1);
  await second.kill();
});

test('a Manager killed while a compute starts never leaves two', async () => {
  const config = bed.config(await bed.newDatabase());
  const first = await (await KillableManager.start(bed, config)).up();
  await first.branchReady();
  const { endpointId } = await first.internal.resolve({ endpoint: null });
  const started = Promise.withResolvers<void>();
  fake.gate = (call, moment) => {
    if (call.method === 'PUT' && call.service === 'compute' && moment === 'after') started.resolve();
  };
  first.internal.wake(endpointId).catch(() => {});
  await started.promise;
  await first.kill();
  fake.gate = () => {};
  const second = await (await KillableManager.start(bed, config)).up();
  await second.internal.wake(endpointId);
  await eventually('one', () => fake.running().length === 1);
  await second.kill();
});

test('while the compute host is away after a restart, wakes wait and nothing is started blindly', async () => {
  const config = bed.config(await bed.newDatabase(), { suspendOnStop: false });
  const m = await bed.manager(config);
  await m.branchReady();
  const { endpointId } = await m.internal.resolve({ endpoint: null });
  const woken = await m.internal.wake(endpointId);
  await m[Symbol.asyncDispose]();
  fake.down.add('compute');
  await using again = await bed.manager(config);
  const waiting = again.internal.wake(endpointId);
  fake.down.clear();
  assert.equal((await waiting).computeId, woken.computeId);
  assert.equal(fake.running().length, 1);
});
