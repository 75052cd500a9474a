/** Scheduled rotation: by the age of the newest KEK, on the key manager's clock. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { silentLogger } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import { Prober } from './prober.ts';
import { Rig, binding } from './testing.ts';

const P = 'a'.repeat(32) as ProjectUid;
const Q = 'b'.repeat(32) as ProjectUid;
const DAY = 86_400;

async function scene(rotateKekDays: number): Promise<{ rig: Rig; prober: Prober }> {
  const rig = await new Rig().start();
  await rig.changes.create(P, binding('k1'));
  return { rig, prober: new Prober({ manager: rig.manager, changes: rig.changes, log: silentLogger, intervalMs: 5_000, rotateKekDays }) };
}
/** Time goes by, and the key is found good at the end of it. */
async function pass(rig: Rig, prober: Prober, seconds: number): Promise<void> {
  rig.clock.advance(seconds);
  for (const p of rig.manager.projects()) await rig.manager.probe(p.project);
  await prober.tick();
}
const kek = (rig: Rig, p: ProjectUid = P): number => rig.manager.find(p).watched.kekVersion;

it('a KEK older than the schedule is replaced once, each project by its own age', async () => {
  const { rig, prober } = await scene(90);
  await using _ = rig;
  await pass(rig, prober, 30 * DAY);
  await rig.changes.create(Q, binding('k2'));
  await pass(rig, prober, 59 * DAY);
  assert.deepEqual([kek(rig), kek(rig, Q)], [1, 1]);
  await pass(rig, prober, 2 * DAY);
  assert.deepEqual([kek(rig), kek(rig, Q)], [2, 1]);
  await pass(rig, prober, 1);
  assert.deepEqual([kek(rig), kek(rig, Q)], [2, 1]);
  await pass(rig, prober, 30 * DAY);
  assert.deepEqual([kek(rig), kek(rig, Q)], [2, 2]);
});

it('no schedule, no rotation; a locked project is left alone; one that fails is tried again a minute later', async () => {
  const never = await scene(0);
  await using _ = never.rig;
  await pass(never.rig, never.prober, 4_000 * DAY);
  assert.equal(kek(never.rig), 1);

  const { rig, prober } = await scene(1);
  await using __ = rig;
  rig.kms.outcome.set('k1', 'DENIED');
  await pass(rig, prober, 2 * DAY);
  assert.equal(kek(rig), 1);

  // May unwrap, may not wrap.
  rig.kms.outcome.delete('k1');
  await rig.manager.probe(P);
  rig.kms.next = ['DENIED'];
  await prober.tick();
  assert.equal(kek(rig), 1);
  await pass(rig, prober, 30);
  assert.equal(kek(rig), 1);
  await pass(rig, prober, 31);
  assert.equal(kek(rig), 2);
});
