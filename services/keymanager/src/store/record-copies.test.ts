/** The key manager's disk is lost: every key comes back from the object store, and none that was destroyed. */
import assert from 'node:assert/strict';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { it } from 'node:test';
import { KEY_BYTES } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import { KEY_MANIFEST_OBJECT, keyRecordObject } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import { freshDeks, unwrapDeks } from '../data-keys.ts';
import { Rig, binding } from '../testing.ts';

const P = '1'.repeat(32) as ProjectUid;
const Q = '2'.repeat(32) as ProjectUid;

async function loseDisk(rig: Rig): Promise<void> {
  await rig.copies?.close();
  await rig.auditCopies?.close();
  await rig.audit.close();
  for (const dir of ['projects', 'audit']) rmSync(join(rig.dir, dir), { recursive: true });
}

it('after the loss of the disk every project opens what it ever sealed, and the audit log goes on', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects });
  await rig.changes.create(P, binding('k1'));
  await rig.changes.create(Q, binding('k2'));
  const given: Buffer[] = [await freshDeks(rig.manager, P, 1)];
  await rig.changes.rotate(P, 'admin');
  given.push(await freshDeks(rig.manager, P, 1));
  await rig.changes.rebind(P, binding('k2'));
  await loseDisk(rig);
  await rig.start({ objects });
  assert.deepEqual([...rig.restored].sort(), [P, Q]);
  for (const bytes of given) assert.deepEqual(await unwrapDeks(rig.manager, P, bytes.subarray(KEY_BYTES)), bytes.subarray(0, KEY_BYTES));
  assert.equal(rig.manager.find(P).record.kms.key, 'k2');
  assert.equal(rig.audit.problem, undefined);
  assert.ok(rig.audit.head.sequence > 5, 'numbers go on');
  assert.equal(await rig.audit.verifyAll(rig.manager.projects().map((p) => p.record.audit)), true);
});

it('only what is missing is restored, and what is on the disk is never replaced', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects });
  await rig.changes.create(P, binding('k1'));
  await rig.changes.create(Q, binding('k1'));
  await rig.copies?.close();
  rmSync(join(rig.dir, 'projects', `${P}.json`));
  writeFileSync(join(rig.dir, 'projects', `${Q}.json`), 'spoilt');
  await rig.start({ objects });
  assert.deepEqual(rig.restored, [P]);
  assert.throws(() => rig.manager.find(Q), { code: 'CORRUPT' });
});

it('a shredded project stays shredded', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects });
  await rig.changes.create(P, binding('k1'));
  const before = objects.objects.get(keyRecordObject(P))?.bytes as Buffer;
  await rig.changes.shred(P, 'admin');
  await loseDisk(rig);
  await rig.start({ objects });
  assert.equal(rig.manager.find(P).state, 'SHREDDED');
  // Somebody puts the former object back: the manifest knows a newer one.
  await loseDisk(rig);
  await objects.put(keyRecordObject(P), before);
  await rig.start({ objects });
  assert.deepEqual(rig.restored, []);
});

it('no new key is in use before its copy is; a store that does not answer changes nothing', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects });
  await rig.changes.create(P, binding('k1'));
  const put = objects.put.bind(objects);
  objects.put = () => Promise.reject(new LakebaseError('UNAVAILABLE', 'blackhole'));
  await assert.rejects(rig.changes.rotate(P, 'admin'), { code: 'UNAVAILABLE', message: /object store/ });
  await assert.rejects(rig.changes.create(Q, binding('k1')), { code: 'UNAVAILABLE' });
  assert.equal(rig.manager.find(P).record.keks.length, 1);
  assert.equal(rig.manager.peek(Q), undefined);
  // Destroying does not wait for the store, and its copy follows.
  await rig.changes.shred(P, 'admin');
  assert.ok((rig.copies?.pending ?? 0) > 0);
  objects.put = put;
  await rig.changes.create(Q, binding('k1'));
  await rig.copies?.close();
  await loseDisk(rig);
  await rig.start({ objects });
  assert.equal(rig.manager.find(P).state, 'SHREDDED');
  assert.equal(rig.manager.find(Q).state, 'ACTIVE');
});

it('copies are sealed: no wrapped key, account or key name in them; without the root key nothing starts and nothing is overwritten', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects });
  await rig.changes.create(
    P,
    binding('k1-marker', { kms: { provider: 'AWS_KMS', key: 'k1-marker', options: { secret: 'marker-secret' } } }),
  );
  const blob = rig.manager.find(P).record.keks[0]?.wrapped?.blob as string;
  for (const { bytes } of objects.objects.values())
    for (const marker of [blob, 'k1-marker', 'marker-secret']) assert.equal(bytes.includes(marker), false);
  await loseDisk(rig);
  const copies = new Map(objects.objects);
  rmSync(join(rig.dir, 'keys'), { recursive: true });
  await assert.rejects(rig.start({ objects }), { code: 'CONFIG', message: /root key/ });
  mkdirSync(join(rig.dir, 'keys'), { mode: 0o700 });
  writeFileSync(join(rig.dir, 'keys', 'root.key'), `${'ab'.repeat(32)}\n`, { mode: 0o600 });
  await assert.rejects(rig.start({ objects }), { code: 'CONFIG', message: /fingerprint/ });
  assert.deepEqual(objects.objects, copies);
});

it('every flipped byte of a copy is found', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects });
  await rig.changes.create(P, binding('k1'));
  await loseDisk(rig);
  const good = objects.objects.get(keyRecordObject(P))?.bytes as Buffer;
  for (let at = good.indexOf(0x0a); at < good.length; at += 97) {
    const bad = Buffer.from(good);
    bad[at] = (bad[at] as number) ^ 1;
    await objects.put(keyRecordObject(P), bad);
    await rig.start({ objects });
    assert.deepEqual(rig.restored, []);
    await loseDisk(rig);
  }
  // The manifest in the place of a record, and the other way round.
  await objects.put(keyRecordObject(P), objects.objects.get(KEY_MANIFEST_OBJECT)?.bytes as Buffer);
  await assert.rejects(rig.start({ objects }), { code: 'CONFIG' });
  await objects.put(keyRecordObject(P), good);
  await rig.start({ objects });
  assert.deepEqual(rig.restored, [P]);
});
