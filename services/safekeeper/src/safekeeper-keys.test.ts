/** The project's key goes, comes back and changes, under running members: what was acknowledged stays, nothing else is served, neighbours do not
 *  notice, and a locked member is not taken for a lost one. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { internalToken } from '@lakebase/api';
import { LakebaseError, isCode, silentLogger } from '@lakebase/base';
import { decodeDekReference } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type Term, WAL_SEGMENT_BYTES, formatLsn, lsn, newProjectUid, parseLsn } from '@lakebase/ids';
import { PgConnection } from '@lakebase/pg-wire';
import { SEGMENT_HEADER_BYTES, decodeSegmentHeader, storedReferences, syntheticWal } from '@lakebase/wal-store';
import { Quorum, SECRET, until } from './testing/rig.ts';
import { loadWalKeys } from './wal-keys.ts';
import type { WalTimeline } from './wal-timeline.ts';

const START = lsn(3 * WAL_SEGMENT_BYTES - 50_000);
const CREATE = { systemId: '7000000000000000001', pgVersion: 18, startLsn: formatLsn(START), prevRecordLsn: formatLsn(lsn(START - 100)) };
const WAL = syntheticWal(START, 300_000, 1);
const revoked = (e: unknown): boolean => isCode(e, 'KEY_REVOKED');

async function quorum(): Promise<Quorum> {
  const q = await Quorum.start();
  for (const m of q.members) await m.client.create(q.project, q.timeline, CREATE);
  assert.equal(await q.elect(1), START);
  return q;
}
function timelineOf(q: Quorum, i: number, project: ProjectUid = q.project): WalTimeline {
  const found = q.member(i).running?.timelines.get(project, q.timeline);
  assert.ok(found !== undefined);
  return found;
}
function append(q: Quorum, i: number, to: number, project?: ProjectUid): void {
  const timeline = timelineOf(q, i, project);
  for (let at: number = timeline.appendLsn; at < to; at += 40_000) {
    timeline.appendFromCompute(1 as Term, lsn(at), WAL.bytes.subarray(at - START, Math.min(to, at + 40_000) - START));
    timeline.flush();
  }
}
function readAll(timeline: WalTimeline): Buffer {
  const parts: Buffer[] = [];
  for (let at: number = START; at < timeline.readableLsn; at += (parts.at(-1) as Buffer).length) parts.push(timeline.read(lsn(at), 30_000));
  return Buffer.concat(parts);
}
const upTo = (from: number): Lsn => WAL.records.findLast((r) => r <= START + from) as Lsn;
const lockedCount = (q: Quorum, i: number): number => q.member(i).running?.timelines.lockedCount ?? -1;

test('locked members refuse and forget; opened again they have all that was acknowledged; neighbours go on', async () => {
  await using q = await quorum();
  const neighbour = newProjectUid();
  for (const m of q.members) await m.client.create(neighbour, q.timeline, CREATE);
  const end = upTo(200_000);
  for (const i of [0, 1, 2]) append(q, i, end);
  for (const i of [0, 1, 2]) await until('committed', () => timelineOf(q, i).readableLsn === end);

  const { pgHost: host, pgPort: port } = q.member(0).address;
  const options = `-c lakebase.project=${q.project} -c lakebase.timeline=${q.timeline}`;
  const connect = () =>
    PgConnection.connect({
      host,
      port,
      user: 'reader',
      password: internalToken(SECRET, 'service'),
      replication: 'physical',
      parameters: { options },
    });
  const reader = await connect();
  let got = 0;
  const stream = await reader.startReplication({ startLsn: START, timeline: 1 }, { onXLogData: (m) => void (got += m.data.length) });
  await until('the reader has all', () => got === end - START);

  // Not acknowledged yet: it may be lost, and nothing of it may stay.
  timelineOf(q, 0).appendFromCompute(1 as Term, end, WAL.bytes.subarray(end - START, end - START + 1_000));
  const old = [0, 1, 2].map((i) => timelineOf(q, i));
  for (const m of q.members) m.keys.revoke(q.project);
  const ended = await Promise.race([
    stream.ended.then(
      () => 'ended',
      (e: unknown) => e,
    ),
    reader.closed.then(() => 'closed'),
  ]);
  assert.ok(ended !== undefined);
  for (const [i, m] of q.members.entries()) {
    await assert.rejects(m.client.status(q.project, q.timeline), revoked);
    await assert.rejects(m.client.vote(q.project, q.timeline, { term: 5 as Term }), revoked);
    await assert.rejects(m.client.create(q.project, q.timeline, CREATE), revoked);
    assert.equal(lockedCount(q, i), 1);
    assert.throws(() => (old[i] as WalTimeline).read(START, 100), revoked);
    assert.throws(() => (old[i] as WalTimeline).appendFromCompute(1 as Term, end, Buffer.alloc(8)), revoked);
    assert.throws(() => (old[i] as WalTimeline).persist(), revoked);
  }
  const refused = await connect();
  await assert.rejects(refused.query('IDENTIFY_SYSTEM'));
  refused.destroy();

  assert.equal((await q.member(0).client.vote(neighbour, q.timeline, { term: 3 as Term })).granted, true);

  q.member(0).keys.restore(q.project);
  await until('the first is back', () => lockedCount(q, 0) === 0);
  // The others are locked, not lost: nobody is to be put in their place.
  for (const m of q.members) assert.deepEqual((await m.client.node()).lost, []);
  for (const m of q.members.slice(1)) m.keys.restore(q.project);
  for (const i of [0, 1, 2]) await until('all are back', () => lockedCount(q, i) === 0);
  for (const i of [0, 1, 2]) {
    const status = await q.status(i);
    assert.equal(status.flushRecordLsn, formatLsn(end));
    assert.equal(status.damaged, null);
    assert.equal(status.term, 1, 'no vote was given while it was locked');
    assert.ok(readAll(timelineOf(q, i)).equals(WAL.bytes.subarray(0, end - START)));
    append(q, i, WAL.end);
  }
  await until('it goes on', () => timelineOf(q, 0).readableLsn === WAL.end);
});

test('a member that starts while the key is away lists the timeline as locked and opens it later', async () => {
  await using q = await quorum();
  for (const i of [0, 1, 2]) append(q, i, upTo(200_000));
  const m = q.member(2);
  m.keys.revoke(q.project);
  await m.stop();
  await m.start();
  assert.equal(lockedCount(q, 2), 1);
  await assert.rejects(m.client.status(q.project, q.timeline), revoked);
  for (const i of [0, 1]) append(q, i, WAL.end);
  m.keys.restore(q.project);
  await until('it is open', () => lockedCount(q, 2) === 0);
  const status = await q.status(2);
  assert.equal(parseLsn(status.flushLsn), upTo(200_000));
  assert.equal(status.damaged, null);
  await q.elect(2);
  assert.equal(parseLsn((await q.status(2)).flushLsn), WAL.end);
});

test('a key that goes and is back while its timeline is opened: what was opened before is not used', async () => {
  await using q = await quorum();
  let end = upTo(100_000);
  for (const i of [0, 1, 2]) append(q, i, end);
  const m = q.member(1);
  for (let turns = 0; turns < 6; turns++) {
    for (const more of [turns, 0]) {
      m.keys.revoke(q.project);
      m.keys.restore(q.project);
      for (let i = 0; i < more; i++) await new Promise((resolve) => setImmediate(resolve));
    }
    await until('it is open', () => lockedCount(q, 1) === 0);
    const read = readAll(timelineOf(q, 1));
    assert.ok(read.length > 0 && read.equals(WAL.bytes.subarray(0, read.length)));
    append(q, 1, (end = upTo(100_000 + (turns + 1) * 5_000)));
  }
});

test('rotation: references are wrapped anew, no segment is written, the old KEK is not needed; a kill in between changes nothing', async () => {
  await using q = await quorum();
  for (const i of [0, 1, 2]) append(q, i, WAL.end);
  const m = q.member(0);
  const dir = join(m.config.dataDir, q.project, q.timeline, 'wal');
  const segments = (): Map<string, Buffer> =>
    new Map(
      readdirSync(dir)
        .filter((n) => /^0{7}1/.test(n))
        .map((n) => [n, readFileSync(join(dir, n))]),
    );
  const before = segments();
  m.keys.rotate(q.project);
  await until('the key manager is told', () => m.retired.some((r) => r.project === q.project && r.below === 2));
  m.keys.destroy(q.project, 2);
  for (const [name, bytes] of segments()) assert.ok(bytes.equals(before.get(name) as Buffer), name);
  await m.stop();
  await m.start();
  assert.equal((await q.status(0)).damaged, null);
  assert.equal(parseLsn((await q.status(0)).flushLsn), WAL.end);
  await until('peers are heard', () => timelineOf(q, 0).readableLsn === WAL.end);
  assert.ok(readAll(timelineOf(q, 0)).equals(WAL.bytes.subarray(0, WAL.end - START)));
  // One that was cut off before it began goes on at the next start.
  m.keys.rotate(q.project);
  await m.stop();
  await m.start();
  await until('the key manager is told', () => m.retired.some((r) => r.project === q.project && r.below === 3));
  m.keys.destroy(q.project, 3);
  await m.stop();
  await m.start();
  assert.equal((await q.status(0)).damaged, null);
});

test('a segment that came after the start is readable soon, or damaged: its key is loaded when it is first asked for', async () => {
  await using q = await Quorum.start();
  const keys = q.member(0).keys.project(q.project);
  await keys.reserve(1);
  const { reference } = keys.take();
  const spoilt = Buffer.from(reference);
  spoilt[30] = (spoilt[30] as number) ^ 1;
  keys.lock(new LakebaseError('UNAVAILABLE', 'forgets what is cached'));
  keys.unlock();
  const ciphers = await loadWalKeys(q.member(0).config.dataDir, keys, silentLogger);
  const restore = (r: Buffer) => () => ciphers.restore(1, r);
  for (const r of [reference, spoilt]) assert.throws(restore(r), { code: 'UNAVAILABLE' });
  await until('its key is there', () => keys.dek(reference) !== undefined);
  assert.ok(ciphers.restore(1, reference).keyReference.equals(reference));
  await until('it is known for damaged', () => {
    try {
      restore(spoilt)();
    } catch (error) {
      return isCode(error, 'CORRUPT');
    }
    return false;
  });
});

test('re-encryption: every segment gets a fresh data key while WAL comes; what was set aside keeps a key that opens', async () => {
  await using q = await quorum();
  for (const i of [0, 1, 2]) append(q, i, upTo(200_000));
  const m = q.member(0);
  const dir = join(m.config.dataDir, q.project, q.timeline);
  const aside = `${dir}.unusable-1`;
  cpSync(dir, aside, { recursive: true });
  m.keys.reEncrypt(q.project);
  append(q, 0, WAL.end);
  await until('nothing is left under old keys', () => births(dir).every((version) => version === 2));
  assert.deepEqual([...new Set(births(aside))], [1]);
  await until('keys are wrapped anew', () => m.retired.some((r) => r.project === q.project && r.below === 2));
  m.keys.destroy(q.project, 2);
  const references = storedReferences(join(aside, 'wal'), silentLogger);
  await m.keys.project(q.project).load(references);
  for (const reference of references) assert.ok(m.keys.project(q.project).dek(reference) !== undefined);
  await m.stop();
  await m.start();
  assert.equal((await q.status(0)).damaged, null);
  await until('peers are heard', () => timelineOf(q, 0).readableLsn >= upTo(200_000));
  assert.equal(parseLsn((await q.status(0)).flushLsn), WAL.end);
  await m.client.remove(q.project, q.timeline);
  assert.ok(!existsSync(aside));
});

/** KEK versions that the data keys of the segments were made under. */
const births = (dir: string): number[] =>
  readdirSync(join(dir, 'wal'))
    .filter((name) => /^[0-9A-F]{24}$/.test(name))
    .map((name) => decodeSegmentHeader(readFileSync(join(dir, 'wal', name)).subarray(0, SEGMENT_HEADER_BYTES)))
    .map(({ keyReference }) => decodeDekReference(keyReference).kekVersion);
