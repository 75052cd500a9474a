/** A kill at every step of every write of every change of keys: after the restart the old keys or the new ones are there, every reference
 *  that was ever given out still opens, and the audit log's chain holds. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { KEY_BYTES, REFERENCE_BYTES } from '@lakebase/api';
import type { ProjectUid } from '@lakebase/ids';
import { verifyAudit } from './audit/audit-file.ts';
import { freshDeks, rewrapReferences, unwrapDeks } from './data-keys.ts';
import { Rig, binding } from './testing.ts';

const P = 'c'.repeat(32) as ProjectUid;
class Killed extends Error {}

/** Throws at the n-th step it is told of; counts them all. */
class Bomb {
  steps = 0;
  #at = Infinity;
  arm(n: number): void {
    this.steps = 0;
    this.#at = n;
  }
  readonly hook = (): void => {
    if (++this.steps === this.#at) throw new Killed();
  };
}

async function give(rig: Rig): Promise<{ dek: Buffer; reference: Buffer }> {
  const bytes = await freshDeks(rig.manager, P, 1);
  return { dek: bytes.subarray(0, KEY_BYTES), reference: bytes.subarray(KEY_BYTES) };
}

interface Scene {
  readonly name: string;
  readonly change: (rig: Rig) => Promise<unknown>;
  /** After the change, or what it left, and the change again: how things must be. */
  readonly done: (rig: Rig) => void;
}

const keks = (rig: Rig): string[] => rig.manager.find(P).record.keks.map((k) => `${k.version} ${k.state} ${k.keyId} ${k.keyVersion}`);
const scenes: readonly Scene[] = [
  {
    name: 'rotation',
    change: async (rig) => {
      if (rig.manager.find(P).record.keks.length === 1) await rig.changes.rotate(P, 'admin');
    },
    done: (rig) => assert.deepEqual(keks(rig), ['1 OLD k1 1', '2 CURRENT k1 1']),
  },
  {
    name: 're-wrapping under a new version of the CMK',
    change: async (rig) => {
      if (rig.kms.versions('k1').length === 1) rig.kms.newVersion('k1');
      await rig.changes.rewrapKek(P, 'admin');
    },
    done: (rig) => assert.deepEqual(keks(rig), ['1 CURRENT k1 2']),
  },
  {
    name: 'rebinding',
    change: (rig) => rig.changes.rebind(P, binding('k2')),
    done: (rig) => {
      assert.deepEqual(keks(rig), ['1 CURRENT k2 1']);
      assert.equal(rig.manager.find(P).record.kms.key, 'k2');
    },
  },
];

for (const { name, change, done } of scenes) {
  it(`${name}: a kill at every step`, async () => {
    for (let n = 1; ; n++) {
      const bomb = new Bomb();
      await using rig = await new Rig().start({ hook: bomb.hook });
      await rig.changes.create(P, binding('k1'));
      const given = await give(rig);
      const before = keks(rig);
      bomb.arm(n);
      let killed = false;
      try {
        await change(rig);
      } catch (error) {
        if (!(error instanceof Killed)) throw error;
        killed = true;
      }
      bomb.arm(Infinity);
      await rig.audit.close();
      await rig.start({ hook: bomb.hook });
      assert.equal(rig.audit.problem, undefined);
      const found = keks(rig);
      if (killed && JSON.stringify(found) !== JSON.stringify(before)) done(rig);
      assert.deepEqual(await unwrapDeks(rig.manager, P, given.reference), given.dek, `killed at step ${n}`);
      await change(rig);
      done(rig);
      assert.deepEqual(await unwrapDeks(rig.manager, P, given.reference), given.dek);
      const again = await rewrapReferences(rig.manager, P, given.reference);
      assert.equal(again.length, REFERENCE_BYTES);
      assert.deepEqual(await unwrapDeks(rig.manager, P, again), given.dek);
      await rig.audit.flush();
      assert.equal((await verifyAudit(rig.audit.dir)).ok, true);
      if (!killed) {
        assert.ok(n > 7, 'there were steps to be killed at');
        return;
      }
    }
  });
}

it('creation, retirement and shredding: a kill at every step', async () => {
  let reached = 0;
  for (let n = 1; ; n++) {
    const bomb = new Bomb();
    await using rig = await new Rig().start({ hook: bomb.hook });
    bomb.arm(n);
    const story = async (): Promise<void> => {
      await rig.changes.create(P, binding('k1'));
      if (rig.manager.find(P).record.keks.length === 1) await rig.changes.rotate(P, 'admin');
      for (const service of rig.storageServices) await rig.changes.retire(P, service, 2);
      await rig.changes.shred(P, 'admin');
    };
    let killed = false;
    try {
      await story();
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
      killed = true;
    }
    reached = bomb.steps;
    bomb.arm(Infinity);
    await rig.audit.close();
    await rig.start({ hook: bomb.hook });
    assert.equal(rig.audit.problem, undefined);
    if (rig.manager.peek(P)?.state !== 'SHREDDED') await story();
    const { record } = rig.manager.find(P);
    assert.ok(record.keks.every((k) => k.wrapped === null && k.state === 'DESTROYED'));
    assert.notEqual(record.shred, null);
    if (!killed) break;
  }
  assert.ok(reached > 30, String(reached));
});
