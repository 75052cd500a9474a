/** The audit log survives its disk: lines come back from the object store with their chain, and what is lost is told. */
import assert from 'node:assert/strict';
import { cpSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { it } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import { AUDIT_HEAD_OBJECT, auditSegmentObject } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import { RollbackCheck } from '../record-rollback.ts';
import { RecordStore } from '../store/record-store.ts';
import { Rig, binding } from '../testing.ts';
import { readAudit, verifyAudit } from './audit-file.ts';

const P = '1'.repeat(32) as ProjectUid;
const Q = '2'.repeat(32) as ProjectUid;

async function linesOf(dir: string): Promise<string[]> {
  const lines: string[] = [];
  for await (const text of readAudit(dir, 0)) lines.push(text);
  return lines;
}
async function stop(rig: Rig): Promise<void> {
  await rig.copies?.close();
  await rig.auditCopies?.close();
  await rig.audit.close();
}
const loseDisk = (rig: Rig): void => {
  for (const dir of ['projects', 'audit']) rmSync(join(rig.dir, dir), { recursive: true });
};
async function settle(rig: Rig): Promise<void> {
  await rig.audit.flush();
  while ((rig.copies?.pending ?? 0) > 0) await new Promise((go) => setImmediate(go));
  await rig.auditCopies?.flush();
}

it('every line comes back, over many segments; the chain holds and goes on', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects, segmentBytes: 2_000 });
  await rig.changes.create(P, binding('k1'));
  await rig.changes.create(Q, binding('k2'));
  for (let i = 0; i < 30; i++) await rig.manager.probe(P, 'somebody');
  await rig.changes.rotate(P, 'admin');
  await settle(rig);
  await stop(rig);
  const before = await linesOf(join(rig.dir, 'audit'));
  assert.ok(before.length > 30);
  const segments = [...objects.objects.keys()].filter((k) => /audit\/[0-9]/.test(k));
  assert.ok(segments.length > 3, `${segments.length} segments`);
  for (const [name, { bytes }] of objects.objects) assert.equal(bytes.includes('KEK_ROTATE'), false, name);
  loseDisk(rig);
  await rig.start({ objects, segmentBytes: 2_000 });
  assert.deepEqual(rig.restoredLog, { kind: 'RESTORED', lines: before.length, last: before.length, problem: undefined });
  assert.deepEqual((await linesOf(join(rig.dir, 'audit'))).slice(0, before.length), before);
  assert.equal(rig.audit.problem, undefined);
  assert.equal(rig.manager.find(P).record.keks.length, 2);
  const expect = rig.manager.projects().map((p) => p.record.audit);
  assert.equal(await rig.audit.verifyAll(expect), true);
  // It goes on in the segment where it stopped, and a second loss finds everything again.
  await rig.changes.rotate(Q, 'admin');
  await settle(rig);
  await stop(rig);
  const after = await linesOf(join(rig.dir, 'audit'));
  loseDisk(rig);
  await rig.start({ objects });
  assert.deepEqual((await linesOf(join(rig.dir, 'audit'))).slice(0, after.length), after);
});

it('a disk put back from an earlier day gets the lines that it lacks, so that an older record is known for one', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects });
  await rig.changes.create(P, binding('k1'));
  await settle(rig);
  await stop(rig);
  for (const dir of ['projects', 'audit']) cpSync(join(rig.dir, dir), join(rig.dir, `${dir}.aside`), { recursive: true });
  await rig.start({ objects });
  await rig.changes.rotate(P, 'admin');
  await settle(rig);
  await stop(rig);
  const newest = await linesOf(join(rig.dir, 'audit'));
  for (const dir of ['projects', 'audit']) {
    rmSync(join(rig.dir, dir), { recursive: true });
    cpSync(join(rig.dir, `${dir}.aside`), join(rig.dir, dir), { recursive: true });
  }
  await rig.start({ objects });
  assert.equal(rig.restoredLog?.kind, 'RESTORED');
  assert.deepEqual((await linesOf(join(rig.dir, 'audit'))).slice(0, newest.length), newest);
  const rollbacks = new RollbackCheck();
  assert.equal((await verifyAudit(rig.audit.dir, { onLine: rollbacks.see })).ok, true);
  assert.deepEqual(rollbacks.apply(new RecordStore(join(rig.dir, 'projects'))), [P]);
});

it('a store that does not answer keeps nothing up; the lines follow', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects });
  await rig.changes.create(P, binding('k1'));
  await settle(rig);
  const put = objects.put.bind(objects);
  objects.put = () => Promise.reject(new LakebaseError('UNAVAILABLE', 'blackhole'));
  await rig.manager.probe(P, 'somebody');
  await rig.audit.flush();
  await assert.rejects(rig.auditCopies?.flush() as Promise<void>, { code: 'UNAVAILABLE' });
  assert.ok((rig.auditCopies?.behind ?? 0) > 0);
  objects.put = put;
  await settle(rig);
  assert.equal(rig.auditCopies?.behind, 0);
});

it('a record is never newer in the log that comes back than in its copy', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects });
  await rig.changes.create(P, binding('k1'));
  await settle(rig);
  const put = objects.put.bind(objects);
  // Only copies of records fail.
  objects.put = (name, ...rest) =>
    name.startsWith('keymanager/projects/') ? Promise.reject(new LakebaseError('UNAVAILABLE', 'blackhole')) : put(name, ...rest);
  await rig.changes.setGrace(P, 77, 'admin');
  await rig.audit.flush();
  await rig.auditCopies?.flush();
  const store = new Map(objects.objects);
  objects.put = put;
  await stop(rig);
  objects.objects.clear();
  for (const [name, object] of store) objects.objects.set(name, object);
  loseDisk(rig);
  await rig.start({ objects });
  const rollbacks = new RollbackCheck();
  assert.equal((await verifyAudit(rig.audit.dir, { onLine: rollbacks.see })).ok, true);
  assert.deepEqual(rollbacks.apply(new RecordStore(join(rig.dir, 'projects'))), []);
});

it('damage is found: lines come back up to it, and that is told', async () => {
  const objects = new MemoryStore();
  await using rig = await new Rig().start({ objects, segmentBytes: 1_000 });
  await rig.changes.create(P, binding('k1'));
  for (let i = 0; i < 10; i++) await rig.manager.probe(P, 'somebody');
  await settle(rig);
  await stop(rig);
  const segments = [...objects.objects.keys()].filter((k) => /audit\/[0-9]/.test(k)).toSorted((a, b) => (a < b ? -1 : 1));
  const second = segments[1] as string;
  const object = objects.objects.get(second) as { bytes: Buffer; tag: string };
  const bad = Buffer.from(object.bytes);
  bad[bad.length - 3] = (bad[bad.length - 3] as number) ^ 1;
  objects.objects.set(second, { ...object, bytes: bad });
  loseDisk(rig);
  await rig.start({ objects });
  assert.ok(rig.restoredLog?.kind === 'RESTORED' && rig.restoredLog.problem !== undefined, JSON.stringify(rig.restoredLog));
  assert.equal(auditSegmentObject(rig.restoredLog.last + 1), second);
  assert.equal((await verifyAudit(rig.audit.dir)).ok, true);
  assert.ok(readdirSync(rig.audit.dir).length > 0 && readFileSync(join(rig.dir, 'keys', 'root.key')).length > 0);
  assert.ok(objects.objects.has(AUDIT_HEAD_OBJECT));
});
