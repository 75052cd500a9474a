/** Keys in the key manager: states by what a KMS says, changes of keys, wiping. Scripted KMS, fake clock. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { KEY_BYTES, REFERENCE_BYTES } from '@lakebase/api';
import { wrapDek, randomSecret } from '@lakebase/envelope';
import type { ProjectUid } from '@lakebase/ids';
import { freshDeks, rewrapReferences, unwrapDeks } from './data-keys.ts';
import { Rig, binding, cmk } from './testing.ts';

const P = 'a'.repeat(32) as ProjectUid;
const Q = 'b'.repeat(32) as ProjectUid;
const ZEROS = Buffer.alloc(KEY_BYTES);

const made = async (): Promise<Rig> => {
  const rig = await new Rig().start();
  await rig.changes.create(P, binding('k1'));
  return rig;
};
/** DEK and reference pairs. */
async function deks(rig: Rig, project: ProjectUid, count: number): Promise<{ dek: Buffer; reference: Buffer }[]> {
  const bytes = await freshDeks(rig.manager, project, count);
  const each = KEY_BYTES + REFERENCE_BYTES;
  return Array.from({ length: count }, (_, i) => ({
    dek: bytes.subarray(i * each, i * each + KEY_BYTES),
    reference: bytes.subarray(i * each + KEY_BYTES, (i + 1) * each),
  }));
}
const state = (rig: Rig, p: ProjectUid = P): string => rig.manager.find(p).state;

it('fresh keys unwrap to themselves; damaged references and those of others yield zeros; batches keep their order', async () => {
  await using rig = await made();
  await rig.changes.create(Q, binding('k1'));
  const [a, b] = (await deks(rig, P, 2)) as [{ dek: Buffer; reference: Buffer }, { dek: Buffer; reference: Buffer }];
  const foreign = (await deks(rig, Q, 1))[0] as { reference: Buffer };
  const damaged = Buffer.from(a.reference);
  damaged[30] = (damaged[30] as number) ^ 1;
  const unknownKek = wrapDek(randomSecret(), 9, 'acc', P, randomSecret());
  const answer = await unwrapDeks(rig.manager, P, Buffer.concat([b.reference, damaged, a.reference, foreign.reference, unknownKek]));
  assert.deepEqual(answer, Buffer.concat([b.dek, ZEROS, a.dek, ZEROS, ZEROS]));
  await assert.rejects(async () => unwrapDeks(rig.manager, P, Buffer.alloc(96)), { code: 'INVALID_ARGUMENT' });
  await assert.rejects(async () => freshDeks(rig.manager, P, 257), { code: 'INVALID_ARGUMENT' });
});

it('one denial is confirmed at once; a denial that does not repeat changes nothing', async () => {
  await using rig = await made();
  rig.kms.next = ['DENIED', 'OK'];
  await rig.manager.probe(P);
  assert.equal(state(rig), 'ACTIVE');
  rig.kms.next = ['DENIED', 'DENIED'];
  await rig.manager.probe(P);
  assert.equal(state(rig), 'REVOKED');
  rig.kms.next = ['UNREACHABLE'];
  await rig.manager.probe(P);
  assert.equal(state(rig), 'REVOKED', 'a KMS that is down opens nothing');
  await rig.manager.probe(P);
  assert.equal(state(rig), 'ACTIVE');
  assert.deepEqual(
    rig.manager.find(P).health.history.map((h) => h.state),
    ['ACTIVE', 'REVOKED', 'ACTIVE'],
  );
});

it('a revoked project gives no keys, its KEK is zeros, and what was under way is not answered', async () => {
  await using rig = await made();
  const [one] = await deks(rig, P, 1);
  const kek = rig.cache.get(P, 1)?.bytes as Buffer;
  assert.notDeepEqual(kek, ZEROS);
  rig.kms.outcome.set('k1', 'DENIED');
  await rig.manager.probe(P);
  assert.deepEqual(kek, ZEROS);
  assert.equal(rig.cache.size, 0);
  assert.deepEqual(rig.told.at(-1)?.state, 'REVOKED');
  await assert.rejects(async () => freshDeks(rig.manager, P, 1), { code: 'KEY_REVOKED', message: /scripted DENIED/ });
  await assert.rejects(async () => unwrapDeks(rig.manager, P, (one as { reference: Buffer }).reference), { code: 'KEY_REVOKED' });

  // An unwrap that waits for the KMS while the project is revoked.
  rig.kms.outcome.delete('k1');
  await rig.manager.probe(P);
  rig.cache.wipe(P);
  const gate = Promise.withResolvers<void>();
  rig.kms.gate = gate.promise;
  const waiting = assert.rejects(unwrapDeks(rig.manager, P, (one as { reference: Buffer }).reference), { code: 'KEY_REVOKED' });
  const shred = rig.changes.shred(P, 'admin');
  gate.resolve();
  await Promise.all([waiting, shred]);
  assert.equal(rig.cache.size, 0);
});

it('an unreachable KMS is ridden out for the grace, on the cached KEK for as long as that lasts, then suspends; an answer ends it', async () => {
  await using rig = await made();
  rig.kms.outcome.set('k1', 'UNREACHABLE');
  await rig.manager.probe(P);
  assert.equal(state(rig), 'UNREACHABLE');
  await deks(rig, P, 1);
  rig.clock.advance(301);
  rig.manager.tick();
  assert.equal(rig.cache.size, 0, 'five minutes after the last success the KEK is gone');
  await assert.rejects(async () => freshDeks(rig.manager, P, 1), { code: 'UNAVAILABLE' });
  assert.equal(state(rig), 'UNREACHABLE');

  await rig.start(); // a restart does not start the grace again
  assert.equal(state(rig), 'UNREACHABLE');
  rig.clock.advance(298);
  await rig.manager.probe(P);
  assert.equal(state(rig), 'UNREACHABLE');
  rig.clock.advance(2);
  rig.manager.tick();
  assert.equal(state(rig), 'SUSPENDED');
  assert.match(rig.told.at(-1)?.reason ?? '', /longer than the grace of 600 s/);
  await rig.manager.probe(P);
  assert.equal(state(rig), 'SUSPENDED');
  await rig.start();
  assert.equal(state(rig), 'SUSPENDED');
  rig.kms.outcome.delete('k1');
  await rig.manager.probe(P);
  assert.equal(state(rig), 'ACTIVE');
  await deks(rig, P, 1);
});

it('the grace of a project can be changed while an outage runs, without a KMS, and survives a restart', async () => {
  await using rig = await made();
  rig.kms.outcome.set('k1', 'UNREACHABLE');
  await rig.manager.probe(P);
  const before = rig.kms.calls;
  await rig.changes.setGrace(P, 5, 'admin');
  assert.equal(rig.kms.calls, before);
  rig.clock.advance(4);
  rig.manager.tick();
  assert.equal(state(rig), 'UNREACHABLE');
  rig.clock.advance(2);
  rig.manager.tick();
  assert.equal(state(rig), 'SUSPENDED');
  await rig.start();
  assert.equal(rig.manager.statusOf(rig.manager.find(P)).graceSeconds, 5);
});

it('an outage that is interrupted by one answer starts a new grace; denied during an outage revokes', async () => {
  await using rig = await made();
  rig.kms.next = ['UNREACHABLE', 'OK', 'UNREACHABLE'];
  await rig.manager.probe(P);
  rig.clock.advance(599);
  await rig.manager.probe(P);
  assert.equal(state(rig), 'ACTIVE');
  rig.clock.advance(5);
  await rig.manager.probe(P);
  assert.equal(state(rig), 'UNREACHABLE');
  rig.kms.outcome.set('k1', 'DENIED');
  await rig.manager.probe(P);
  assert.equal(state(rig), 'REVOKED');
  await rig.start();
  assert.equal(state(rig), 'REVOKED', 'a restart opens nothing');
});

it('another key than the one that was wrapped, from the KMS, is refused', async () => {
  await using rig = await made();
  rig.kms.next = ['WRONG', 'WRONG'];
  await rig.manager.probe(P);
  assert.equal(state(rig), 'REVOKED');
  assert.match(rig.manager.find(P).health.reason, /another key/);
});

it('a new KEK: new objects under it, old ones readable, re-wrapped, and the old KEK destroyed when every service says so', async () => {
  await using rig = await made();
  const [old] = (await deks(rig, P, 1)) as [{ dek: Buffer; reference: Buffer }];
  const status = await rig.changes.rotate(P, 'admin');
  assert.deepEqual(
    status.keks.map((k) => k.state),
    ['OLD', 'CURRENT'],
  );
  assert.equal(rig.told.at(-1)?.kekVersion, 2);
  const [young] = (await deks(rig, P, 1)) as [{ dek: Buffer; reference: Buffer }];
  assert.equal(young.reference.readUInt32BE(1), 2);
  const fresh = await rewrapReferences(rig.manager, P, old.reference);
  assert.equal(fresh.readUInt32BE(1), 2);
  assert.deepEqual(await unwrapDeks(rig.manager, P, Buffer.concat([fresh, old.reference])), Buffer.concat([old.dek, old.dek]));

  await rig.changes.retire(P, 'sk1', 2);
  assert.equal(rig.manager.find(P).record.keks[0]?.state, 'OLD', 'the pageserver has not said so');
  await assert.rejects(async () => rig.changes.retire(P, 'stranger', 2), { code: 'INVALID_ARGUMENT' });
  await rig.changes.retire(P, 'pageserver', 7);
  assert.deepEqual(
    rig.manager.find(P).record.keks.map((k) => [k.state, k.wrapped === null]),
    [
      ['DESTROYED', true],
      ['CURRENT', false],
    ],
  );
  assert.deepEqual(await unwrapDeks(rig.manager, P, Buffer.concat([old.reference, fresh])), Buffer.concat([ZEROS, old.dek]));
});

it('a new CMK version: KEKs re-wrapped, the old version may go; another CMK and the root key likewise', async () => {
  await using rig = await made();
  const [one] = (await deks(rig, P, 1)) as [{ dek: Buffer; reference: Buffer }];
  await rig.changes.rotate(P, 'admin');
  rig.kms.newVersion('k1');
  await rig.changes.rewrapKek(P, 'admin');
  rig.kms.disabled.add('k1/1');
  rig.cache.wipe(P);
  assert.deepEqual(await unwrapDeks(rig.manager, P, one.reference), one.dek);
  assert.deepEqual(
    rig.manager.find(P).record.keks.map((k) => k.keyVersion),
    ['2', '2'],
  );
  await rig.changes.rebind(P, binding('k2'));
  rig.kms.outcome.set('k1', 'DENIED');
  rig.cache.wipe(P);
  await rig.manager.probe(P);
  assert.equal(state(rig), 'ACTIVE', 'the former CMK is of no account any more');
  assert.deepEqual(await unwrapDeks(rig.manager, P, one.reference), one.dek);
  await rig.changes.rebind(P, binding('root', { configurationId: null, kms: { provider: 'LOCAL', key: 'root' } }));
  assert.equal(rig.manager.statusOf(rig.manager.find(P)).configurationId, null);
  assert.deepEqual(await unwrapDeks(rig.manager, P, one.reference), one.dek);
  await assert.rejects(rig.changes.rebind(P, binding('k2', { account: 'other' })), { code: 'INVALID_ARGUMENT' });
  rig.kms.outcome.set('k3', 'DENIED');
  await assert.rejects(rig.changes.rebind(P, binding('k3')), { code: 'KEY_REVOKED' });
  assert.equal(state(rig), 'ACTIVE', 'a refused key changes nothing');
});

it('an answer about a binding that was changed meanwhile is ignored', async () => {
  await using rig = await made();
  const gate = Promise.withResolvers<void>();
  rig.kms.gate = gate.promise;
  rig.kms.next = ['DENIED', 'DENIED'];
  const probing = rig.manager.probe(P);
  rig.kms.gate = Promise.resolve();
  // The probe holds the two denials back behind the gate only for its own first call; take them out of the rebind's way.
  const denials = rig.kms.next.splice(0);
  const rebound = rig.changes.rebind(P, binding('k2'));
  await rebound;
  rig.kms.next = denials;
  gate.resolve();
  await probing;
  assert.equal(state(rig), 'ACTIVE');
});

it('shredding needs no KMS, leaves no wrapped key, is final and idempotent', async () => {
  await using rig = await made();
  const [one] = (await deks(rig, P, 1)) as [{ dek: Buffer; reference: Buffer }];
  rig.kms.outcome.set('k1', 'UNREACHABLE');
  const report = await rig.changes.shred(P, 'admin');
  assert.equal(report.destroyedKeks.length, 1);
  assert.match(report.destroyedKeks[0]?.sha256 ?? '', /^[0-9a-f]{64}$/);
  assert.deepEqual(await rig.changes.shred(P, 'somebody'), report);
  await rig.start();
  assert.equal(state(rig), 'SHREDDED');
  assert.ok(rig.manager.find(P).record.keks.every((k) => k.wrapped === null));
  await assert.rejects(async () => unwrapDeks(rig.manager, P, one.reference), { code: 'KEY_REVOKED' });
  await assert.rejects(rig.changes.create(P, binding('k1')), { code: 'CONFLICT' });
  await assert.rejects(async () => rig.changes.rotate(P, 'admin'), { code: 'KEY_REVOKED' });
  await rig.manager.probe(P);
  assert.equal(state(rig), 'SHREDDED');
});

it('creation is idempotent, and a KMS that denies leaves nothing behind', async () => {
  await using rig = await made();
  const [before] = rig.manager.find(P).record.keks;
  await rig.changes.create(P, binding('k2'));
  assert.deepEqual(rig.manager.find(P).record.keks[0], before);
  rig.kms.outcome.set('k9', 'DENIED');
  await assert.rejects(rig.changes.create(Q, binding('k9')), { code: 'KEY_REVOKED' });
  assert.equal(rig.manager.peek(Q), undefined);
  assert.deepEqual(await rig.manager.check({ account: 'acc', kms: cmk('k9'), actor: 'admin' }), {
    ok: false,
    outcome: 'DENIED',
    message: 'scripted DENIED',
    keyId: '',
    keyVersion: '',
  });
  assert.equal((await rig.manager.check({ account: 'acc', kms: cmk('k2'), actor: 'admin' })).ok, true);
});

it('a KEK is not used beyond its limit of wraps, counted over restarts', async () => {
  await using rig = await made();
  await deks(rig, P, 1);
  await rig.start();
  await deks(rig, P, 1);
  const p = rig.manager.find(P);
  assert.ok(p.wraps > 2 ** 20, 'what was reserved counts as used');
  p.wraps = 2 ** 32 - 2 ** 21;
  await assert.rejects(deks(rig, P, 1), { code: 'RESOURCE_EXHAUSTED' });
  await rig.changes.rotate(P, 'limit of wraps');
  await deks(rig, P, 1);
});

it('a key that was not checked for too long counts as unreachable until it is', async () => {
  await using rig = await made();
  rig.clock.advance(20);
  rig.manager.overdue(rig.manager.find(P), 25_000);
  assert.equal(state(rig), 'ACTIVE');
  rig.clock.advance(6);
  rig.manager.overdue(rig.manager.find(P), 25_000);
  assert.equal(state(rig), 'UNREACHABLE');
  await rig.manager.probe(P);
  assert.equal(state(rig), 'ACTIVE');
});

it('a revocation is in force also when neither record nor audit line can be written', async () => {
  let full = false;
  await using rig = await new Rig().start({
    hook: () => {
      if (full) throw new Error('ENOSPC');
    },
  });
  await rig.changes.create(P, binding('k1'));
  full = true;
  await rig.audit.close(); // every append fails from here
  rig.kms.outcome.set('k1', 'DENIED');
  await rig.manager.probe(P);
  assert.equal(state(rig), 'REVOKED');
  assert.equal(rig.cache.size, 0);
  assert.equal(rig.told.at(-1)?.state, 'REVOKED');
});

it('10,000 references re-wrapped (printed, not asserted)', async (t) => {
  await using rig = await made();
  const dek = randomSecret();
  const reference = await rig.manager.withKeks(rig.manager.find(P), [1], (keks) => wrapDek(keks.get(1)?.bytes as Buffer, 1, 'acc', P, dek));
  await rig.changes.rotate(P, 'admin');
  const batch = Buffer.concat(Array.from({ length: 1_000 }, () => reference));
  const startedAt = performance.now();
  for (let i = 0; i < 10; i++) await rewrapReferences(rig.manager, P, batch);
  t.diagnostic(`10,000 references re-wrapped in ${Math.round(performance.now() - startedAt)} ms`);
});

it('re-encryption: a new KEK and a standing request, until every storage service has finished; asking again meanwhile changes nothing', async () => {
  await using rig = await new Rig().start();
  await rig.changes.create(P, binding('k1'));
  const asked = await rig.changes.reEncrypt(P, 'admin');
  assert.equal(asked.reEncryption?.below, 2);
  assert.deepEqual(asked.reEncryption.waitingFor, ['sk1', 'pageserver']);
  assert.equal(rig.told.at(-1)?.reEncryptBelow, 2);
  assert.equal((await rig.changes.reEncrypt(P, 'admin')).keks.length, 2);
  const report = { below: 2, done: 3, total: 10, bytes: 300, finished: false };
  await rig.changes.reportReEncryption(P, { service: 'pageserver', ...report, below: 1, finished: true }); // of an earlier request
  await assert.rejects(rig.changes.reportReEncryption(P, { service: 'proxy', ...report }), { code: 'INVALID_ARGUMENT' });
  const under = await rig.changes.reportReEncryption(P, { service: 'pageserver', ...report });
  assert.equal(under.reEncryption?.services['pageserver']?.done, 3);
  await rig.changes.reportReEncryption(P, { service: 'sk1', ...report, done: 0, total: 0, finished: true });
  // A restart forgets how far they were, not who has finished.
  await rig.audit.close();
  await rig.start();
  const { reEncryption } = rig.manager.statusOf(rig.manager.find(P));
  assert.deepEqual([reEncryption?.finishTime, reEncryption?.waitingFor], [null, ['pageserver']]);
  const done = await rig.changes.reportReEncryption(P, { service: 'pageserver', ...report, done: 10, finished: true });
  assert.ok(done.reEncryption?.finishTime);
  assert.equal((await rig.changes.reEncrypt(P, 'admin')).reEncryption?.below, 3);
});
