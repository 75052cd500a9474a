/** Records on disk: what is damaged is never used or written over, and an older copy is known by the audit log. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { it } from 'node:test';
import type { ProjectUid } from '@lakebase/ids';
import { verifyAudit } from '../audit/audit-file.ts';
import { RollbackCheck } from '../record-rollback.ts';
import { Rig, binding } from '../testing.ts';
import { decodeRecord, encodeRecord } from './project-record.ts';
import { RecordStore } from './record-store.ts';

const P = '1'.repeat(32) as ProjectUid;
const Q = '2'.repeat(32) as ProjectUid;
const pathOf = (rig: Rig, project: ProjectUid): string => join(rig.dir, 'projects', `${project}.json`);

it('every flipped byte, every truncation, and the record of another project are refused', async () => {
  await using rig = await new Rig().start();
  await rig.changes.create(P, binding('k1'));
  const bytes = readFileSync(pathOf(rig, P));
  assert.deepEqual(encodeRecord(decodeRecord(bytes, P)), bytes);
  for (let at = 0; at < bytes.length; at += 3) {
    const bad = Buffer.from(bytes);
    bad[at] = (bad[at] as number) ^ 0x11;
    assert.throws(() => decodeRecord(bad, P), { code: 'CORRUPT' }, `byte ${at}`);
    assert.throws(() => decodeRecord(bytes.subarray(0, at), P), { code: 'CORRUPT' }, `cut at ${at}`);
  }
  assert.throws(() => decodeRecord(bytes, Q), { code: 'CORRUPT' });
});

it('a damaged record locks its project only, and nothing is written over it', async () => {
  await using rig = await new Rig().start();
  await rig.changes.create(P, binding('k1'));
  await rig.changes.create(Q, binding('k1'));
  const bytes = readFileSync(pathOf(rig, P));
  const bad = bytes.subarray(0, bytes.length - 5);
  writeFileSync(pathOf(rig, P), bad);
  await rig.audit.close();
  await rig.start();
  assert.equal(rig.manager.find(Q).state, 'ACTIVE');
  assert.throws(() => rig.manager.find(P), { code: 'CORRUPT', message: /backup/ });
  await assert.rejects(rig.changes.create(P, binding('k1')), { code: 'CORRUPT' });
  assert.deepEqual(readFileSync(pathOf(rig, P)), bad);
});

it('a record put back from before a change, a shredding even, is condemned', async () => {
  await using rig = await new Rig().start();
  await rig.changes.create(P, binding('k1'));
  await rig.changes.create(Q, binding('k1'));
  const former = readFileSync(pathOf(rig, P));
  await rig.changes.shred(P, 'admin');
  const check = async (): Promise<string[]> => {
    const rollbacks = new RollbackCheck();
    await verifyAudit(rig.audit.dir, { onLine: rollbacks.see });
    return rollbacks.apply(new RecordStore(join(rig.dir, 'projects')));
  };
  assert.deepEqual(await check(), []);
  writeFileSync(pathOf(rig, P), former);
  assert.deepEqual(await check(), [P]);
});
