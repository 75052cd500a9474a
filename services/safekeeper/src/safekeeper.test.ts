/** Members without a Postgres: synthetic WAL goes in where a compute's would; peers, readers and elections are real. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { SafekeeperClient, internalToken, timelineScope } from '@lakebase/api';
import { LakebaseError, errorMessage, isCode } from '@lakebase/base';
import { type Lsn, type Term, WAL_SEGMENT_BYTES, formatLsn, lsn, parseLsn } from '@lakebase/ids';
import { PgConnection } from '@lakebase/pg-wire';
import { controlPath } from './control-store.ts';
import { Quorum, SECRET, until } from './testing/rig.ts';
import { syntheticWal } from '@lakebase/wal-store';
import type { WalTimeline } from './wal-timeline.ts';

const START = lsn(3 * WAL_SEGMENT_BYTES - 50_000);
const CREATE = { systemId: '7000000000000000001', pgVersion: 18, startLsn: formatLsn(START), prevRecordLsn: formatLsn(lsn(START - 100)) };

async function quorum(): Promise<Quorum> {
  const q = await Quorum.start();
  for (const m of q.members) await m.client.create(q.project, q.timeline, CREATE);
  assert.equal(await q.elect(1), START);
  return q;
}

const timelineOf = (q: Quorum, i: number): WalTimeline => {
  const found = q.member(i).running?.timelines.get(q.project, q.timeline);
  assert.ok(found !== undefined);
  return found;
};

function append(q: Quorum, i: number, bytes: Buffer, from: Lsn, term = 1): void {
  const timeline = timelineOf(q, i);
  for (let at = 0; at < bytes.length; at += 100_000)
    timeline.appendFromCompute(term as Term, lsn(from + at), bytes.subarray(at, at + 100_000));
  timeline.flush();
}

test('the commit LSN follows from what members tell each other; nothing beyond it is served', async () => {
  await using q = await quorum();
  const wal = syntheticWal(START, 30_000, 1);
  const middle = wal.records.find((r) => r > START + 15_000) as Lsn;
  append(q, 0, wal.bytes, START);
  append(q, 1, wal.bytes.subarray(0, middle - START + 5), START);
  for (const i of [0, 1]) await until(`sk${i + 1} commits`, async () => parseLsn((await q.status(i)).commitLsn) === middle);
  assert.equal((await q.status(2)).commitLsn, formatLsn(START), 'sk3 has nothing of it');
  assert.equal(timelineOf(q, 0).read(START, 1 << 20).length, middle - START);
  assert.throws(
    () => timelineOf(q, 0).read(START, 100, 2 as Term),
    (e: unknown) => isCode(e, 'FENCED'),
  );
  assert.throws(
    () => timelineOf(q, 0).truncate(START),
    (e: unknown) => isCode(e, 'CORRUPT'),
  );
});

test('a vote fences appends of the lower term at once', async () => {
  await using q = await quorum();
  const wal = syntheticWal(START, 30_000, 1);
  append(q, 0, wal.bytes.subarray(0, 10_000), START);
  const timeline = timelineOf(q, 0);
  timeline.appendFromCompute(1 as Term, timeline.appendLsn, wal.bytes.subarray(10_000, 12_000));
  const answer = await q.member(0).client.vote(q.project, q.timeline, { term: 4 as Term });
  assert.ok(answer.granted);
  assert.equal((await q.status(0)).flushLsn, formatLsn(lsn(START + 12_000)), 'bytes that had arrived count');
  assert.throws(
    () => timeline.appendFromCompute(1 as Term, timeline.appendLsn, wal.bytes.subarray(12_000, 13_000)),
    (e: unknown) => isCode(e, 'FENCED'),
  );
  await q.member(0).stop();
  await q.member(0).start();
  const status = await q.status(0);
  assert.equal(status.term, 4);
  assert.equal(status.flushRecordLsn, answer.flushRecordLsn);
  assert.equal((await q.member(0).client.vote(q.project, q.timeline, { term: 4 as Term })).granted, false);
});

test('a new member begins where the donor, having trimmed, begins', async () => {
  await using q = await quorum();
  const wal = syntheticWal(START, 2 * WAL_SEGMENT_BYTES, 2);
  for (const i of [0, 1, 2]) append(q, i, wal.bytes, START);
  for (const i of [0, 1]) await until(`sk${i + 1} commits`, async () => parseLsn((await q.status(i)).commitLsn) === wal.end);
  for (const i of [0, 1]) timelineOf(q, i).trim(lsn(4 * WAL_SEGMENT_BYTES + 100));
  assert.equal(timelineOf(q, 0).firstLsn, 4 * WAL_SEGMENT_BYTES);
  await q.member(2).stop();
  rmSync(q.member(2).config.dataDir, { recursive: true });
  await q.member(2).start();
  await assert.rejects(q.member(2).client.create(q.project, q.timeline, CREATE), /join again as a new member/);
  await q.replace(2);
  assert.equal(await q.elect(2), wal.end);
  const copy = timelineOf(q, 2);
  assert.equal(
    copy.firstLsn,
    wal.records.find((r) => r > 4 * WAL_SEGMENT_BYTES),
  );
  const healed = await q.status(2);
  assert.equal(healed.damaged, null);
  assert.equal(healed.lastRecordLsn, formatLsn(wal.starts.at(-1) as Lsn));
  await until('the copy is committed', async () => parseLsn((await q.status(2)).commitLsn) === wal.end);
  for (let at: number = copy.firstLsn; at < wal.end; ) {
    const part = copy.read(lsn(at), 1 << 20);
    assert.ok(part.equals(wal.bytes.subarray(at - START, at - START + part.length)));
    at += part.length;
  }
  // A pageserver that needs older WAL is told that it is gone, never given stand-in bytes.
  const c = await PgConnection.connect({
    host: '127.0.0.1',
    port: q.member(2).address.pgPort,
    user: 'x',
    password: internalToken(SECRET, 'service'),
    replication: 'physical',
    parameters: { options: `-c lakebase.project=${q.project} -c lakebase.timeline=${q.timeline}` },
  });
  await assert.rejects(
    c.startReplication({ startLsn: lsn(4 * WAL_SEGMENT_BYTES) }, { onXLogData: () => assert.fail('stand-in bytes') }),
    /already been removed/,
  );
  await c.end();
});

test('a member whose control file is unreadable says that it is lost, takes no part, and a new member takes its place', async () => {
  await using q = await quorum();
  await q.member(2).stop();
  const dir = join(q.member(2).config.dataDir, q.project, q.timeline);
  const control = readFileSync(controlPath(dir));
  control[30] = (control[30] as number) ^ 1;
  writeFileSync(controlPath(dir), control);
  await q.member(2).start();
  await assert.rejects(
    q.status(2),
    (e: unknown) => e instanceof LakebaseError && e.code === 'CORRUPT' && e.message.includes(controlPath(dir)),
  );
  await assert.rejects(q.member(2).client.vote(q.project, q.timeline, { term: 3 as Term }), (e: unknown) => isCode(e, 'CORRUPT'));
  const { lost, incarnation } = await q.member(2).client.node();
  assert.deepEqual(lost, [{ project: q.project, timeline: q.timeline, member: 'sk3' }]);
  await q.replace(2);
  assert.equal((await q.member(2).client.node()).incarnation, incarnation, 'the disk is the same, the member is not');
  assert.deepEqual((await q.member(2).client.node()).lost, []);
  const status = await q.status(2);
  assert.deepEqual([status.member, status.generation, status.damaged], ['sk3_g1', 2, null]);
});

test('a disk is who it was: not another after a loss, and no member twice', async () => {
  await using q = await quorum();
  const member = q.member(2);
  const before = (await member.client.node()).incarnation;
  await member.stop();
  await member.start();
  assert.equal((await member.client.node()).incarnation, before);
  await member.stop();
  rmSync(member.config.dataDir, { recursive: true });
  await member.start();
  assert.notEqual((await member.client.node()).incarnation, before);
  await assert.rejects(
    member.client.create(q.project, q.timeline, { ...CREATE, incarnation: before }),
    (e: unknown) => isCode(e, 'CONFLICT') && /this disk is/.test(errorMessage(e)),
  );
  await q.replace(2);
  // Late requests of that change, or of one before it, do nothing.
  const joint = { generation: 1, members: ['sk1', 'sk2', 'sk3'], newMembers: ['sk1', 'sk2', 'sk3_g1'] };
  const make = { member: 'sk3_g1', incarnation: (await member.client.node()).incarnation, timeline: CREATE };
  await assert.rejects(member.client.configure(q.project, q.timeline, { configuration: joint, nodes: [], make }), /is over/);
  const other = { ...make, member: 'sk3_g9' };
  await assert.rejects(
    member.client.configure(q.project, q.timeline, {
      configuration: { ...joint, newMembers: ['sk1', 'sk2', 'sk3_g9'] },
      nodes: [],
      make: other,
    }),
    (e: unknown) => isCode(e, 'CONFLICT'),
  );
  await member.stop();
  rmSync(join(member.config.dataDir, q.project), { recursive: true });
  await member.start();
  await assert.rejects(member.client.configure(q.project, q.timeline, { configuration: q.configuration, nodes: [], make }), /is lost/);
});

test('votes and streams belong to a configuration', async () => {
  await using q = await quorum();
  const old = q.configuration;
  await q.member(2).stop();
  rmSync(q.member(2).config.dataDir, { recursive: true });
  await q.member(2).start();
  await q.replace(2);
  const late = await q.member(0).client.vote(q.project, q.timeline, { term: 9 as Term, configuration: old });
  assert.equal(late.granted, false);
  assert.equal(late.newer?.configuration.generation, 2);
  assert.deepEqual(
    late.newer?.addresses.map((a) => [a.id, a.pgPort]),
    [
      ['sk1', q.member(0).address.pgPort],
      ['sk2', q.member(1).address.pgPort],
      ['sk3_g1', q.member(2).address.pgPort],
    ],
  );
  const subscribe = { term: 1 as Term, host: '/tmp', port: 5432, user: 'x', standbyName: 'sk1', configuration: old };
  await assert.rejects(q.member(0).client.subscribe(q.project, q.timeline, subscribe), (e: unknown) => isCode(e, 'CONFLICT'));
  const timeline = timelineOf(q, 0);
  assert.throws(
    () => timeline.appendFromCompute(1 as Term, timeline.appendLsn, Buffer.alloc(8), old.generation),
    (e: unknown) => isCode(e, 'FENCED'),
  );
  // It survives a restart.
  await q.member(0).stop();
  await q.member(0).start();
  assert.equal((await q.status(0)).generation, 2);
});

test('creation is idempotent, deletion is final, odd requests are refused', async () => {
  await using q = await quorum();
  const { client } = q.member(0);
  assert.equal((await client.create(q.project, q.timeline, CREATE)).term, 1);
  await assert.rejects(client.create(q.project, q.timeline, { ...CREATE, systemId: '1' }), (e: unknown) => isCode(e, 'ALREADY_EXISTS'));
  const [fresh, tooLarge] = ['e'.repeat(32) as never, { ...CREATE, systemId: '18446744073709551616' }];
  await assert.rejects(client.create(q.project, fresh, tooLarge), (e: unknown) => isCode(e, 'INVALID_ARGUMENT'));
  await assert.rejects(client.status(q.project, fresh), (e: unknown) => isCode(e, 'NOT_FOUND'), 'nothing of it was made');
  // What a compute holds reads and elects; it neither makes nor destroys.
  const own = { baseUrl: q.member(0).address.httpUrl, token: internalToken(SECRET, timelineScope(q.project, q.timeline)) };
  const compute = new SafekeeperClient(own);
  assert.equal((await compute.status(q.project, q.timeline)).term, 1);
  await assert.rejects(compute.remove(q.project, q.timeline), (e: unknown) => isCode(e, 'UNAUTHENTICATED'));
  await assert.rejects(compute.create(q.project, q.timeline, CREATE), (e: unknown) => isCode(e, 'UNAUTHENTICATED'));
  const noPath = await fetch(`${own.baseUrl}/v1/timelines/%zz/x`);
  assert.equal(noPath.status, 400);
  assert.match(await noPath.text(), /^\{"error_code":"INVALID_ARGUMENT","message":"the path of the request is malformed/);
  await assert.rejects(client.vote(q.project, q.timeline, { term: -1 as Term }), (e: unknown) => isCode(e, 'INVALID_ARGUMENT'));
  await assert.rejects(
    client.status('../../etc' as never, q.timeline),
    (e: unknown) => isCode(e, 'INVALID_ARGUMENT') || isCode(e, 'NOT_FOUND') || isCode(e, 'INVALID_ID'),
  );
  await assert.rejects(
    client.subscribe(q.project, q.timeline, { term: 1 as Term, host: '/tmp', port: 5432, user: 'x', standbyName: "x'; --" }),
    (e: unknown) => isCode(e, 'INVALID_ARGUMENT'),
  );
  await client.remove(q.project, q.timeline);
  await assert.rejects(client.status(q.project, q.timeline), (e: unknown) => isCode(e, 'NOT_FOUND'));
  // Half a creation: a directory without a control file.
  const other = join(q.member(0).config.dataDir, 'c'.repeat(32), 'd'.repeat(32));
  mkdirSync(other, { recursive: true });
  await q.member(0).stop();
  await q.member(0).start();
  await assert.rejects(client.status('c'.repeat(32) as never, 'd'.repeat(32) as never), (e: unknown) => isCode(e, 'NOT_FOUND'));
});
