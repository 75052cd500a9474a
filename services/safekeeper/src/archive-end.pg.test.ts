/** WAL comes back from the object store when no member is left: how far it reaches, a new lineage from there on, and what an older one may not do to it
 *  (docs/protocols/wal-recovery.md). */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type ArchiveEnd, internalToken } from '@lakebase/api';
import { silentLogger } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn, lsn, parseLsn } from '@lakebase/ids';
import { PgConnection } from '@lakebase/pg-wire';
import { memberIdOf } from '@lakebase/wal-quorum';
import { Quorum, SECRET, StockServer, until } from './testing/rig.ts';

const SEG = WAL_SEGMENT_BYTES;
const objects = mkdtempSync(join(tmpdir(), 'lb-archive-end-'));

describe('WAL without a member', () => {
  let server: StockServer;
  let quorum: Quorum;
  let start: Lsn;
  let end: Lsn;
  let whole: ArchiveEnd;
  let digest: Buffer;

  before(async () => {
    server = new StockServer({ 'lakebase.term': '1' });
    await server.start();
    quorum = await Quorum.start(silentLogger, {}, () => ({ objectStore: { kind: 'directory', path: objects } }));
    await quorum.create(server);
    await quorum.elect(1);
    await quorum.subscribe(server, 1);
    server.reload({ synchronous_standby_names: 'ANY 2 (sk1,sk2,sk3)' });
    const sql = await server.connect();
    await sql.query('CREATE TABLE t (id int, pad text)');
    for (let i = 0; i < 3; i++) {
      await sql.query('INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 2000) i');
      await sql.query('SELECT pg_switch_wal()');
    }
    await sql.query('INSERT INTO t VALUES (0)');
    const [row] = await sql.query('SELECT pg_current_wal_flush_lsn()::text');
    sql.destroy();
    // Nothing more is written from here on.
    await server.stop('SIGQUIT');
    const first = quorum.member(0).running?.timelines.get(quorum.project, quorum.timeline);
    assert.ok(first !== undefined);
    start = first.control.startLsn;
    end = parseLsn(row?.rows[0]?.[0] as string);
    await until('all of it is offloaded', () => first.tailLsn >= end && first.offloadedLsn >= lsn(Math.floor(end / SEG) * SEG), 60_000);
    end = first.readableLsn;
    digest = await read(0, start, end);
  });
  after(async () => {
    await quorum[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
    rmSync(objects, { recursive: true, force: true });
  });

  const walDir = (): string => join(objects, 'projects', quorum.project, 'timelines', quorum.timeline, 'wal');
  const request = async () => {
    const { systemId, pgVersion, prevRecordLsn } = quorum.running(0).control;
    return {
      systemId: String(systemId),
      pgVersion,
      lineages: [{ number: 0, startLsn: formatLsn(start) }],
      from: formatLsn(start),
      prevRecordLsn: formatLsn(prevRecordLsn),
    };
  };
  let asked: Awaited<ReturnType<typeof request>>;
  const ask = (change: object = {}): Promise<ArchiveEnd> =>
    quorum.member(1).client.archiveEnd(quorum.project, quorum.timeline, { ...asked, ...change }, 30_000);

  async function read(i: number, from: Lsn, to: Lsn, lineage?: number, name = 'reader'): Promise<Buffer> {
    const named = lineage === undefined ? '' : ` -c lakebase.lineage=${lineage}`;
    const c = await PgConnection.connect({
      host: '127.0.0.1',
      port: quorum.member(i).address.pgPort,
      user: 'reader',
      password: internalToken(SECRET, 'service'),
      replication: 'physical',
      parameters: {
        application_name: name,
        options: `-c lakebase.project=${quorum.project} -c lakebase.timeline=${quorum.timeline}${named}`,
      },
    });
    const parts: Buffer[] = [];
    try {
      await new Promise<void>((resolve, reject) => {
        let at: number = from;
        c.startReplication(
          { startLsn: from },
          {
            onXLogData: (m) => {
              parts.push(Buffer.from(m.data.subarray(0, to - at)));
              at += m.data.length;
              if (at >= to) resolve();
            },
          },
        )
          .then((stream) => stream.ended.then(() => reject(new Error('ended'))))
          .catch(reject);
        c.closed.then((e) => reject(e ?? new Error('closed')), reject);
      });
    } finally {
      c.destroy();
    }
    return Buffer.concat(parts);
  }

  test('its end is that of the last whole record, and the last commit is told', async () => {
    asked = await request();
    whole = await ask();
    assert.deepEqual([whole.endLsn, whole.problem], [formatLsn(end), null]);
    assert.ok(Math.abs(Date.parse(whole.lastCommitTime ?? '') - Date.now()) < 300_000, String(whole.lastCommitTime));
    // From where it ends there is nothing more.
    const none = await ask({ from: whole.endLsn, prevRecordLsn: whole.lastRecordLsn });
    assert.deepEqual(none, { endLsn: whole.endLsn, lastRecordLsn: whole.lastRecordLsn, lastCommitTime: null, problem: null });
    // A place that is no record boundary is said, not guessed at.
    assert.match((await ask({ from: formatLsn(lsn(start + 8)) })).problem ?? '', /./);
    // Without the tail it ends before, at a record.
    renameSync(join(walDir(), 'tail'), join(objects, 'tail'));
    const shorter = await ask();
    assert.equal(shorter.problem, null);
    assert.ok(parseLsn(shorter.endLsn) < end && parseLsn(shorter.endLsn) > lsn(start + SEG));
    renameSync(join(objects, 'tail'), join(walDir(), 'tail'));
  });

  test('a hole and damage are said, with what comes before them', async () => {
    const second = readdirSync(walDir())
      .filter((n) => /^[0-9a-f]{16}-[1248]$/.test(n))
      .sort()[1] as string;
    renameSync(join(walDir(), second), join(objects, second));
    const hole = await ask();
    assert.match(hole.problem ?? '', /there is no WAL at .* in the object store, but there is up to/);
    assert.ok(parseLsn(hole.endLsn) <= Number.parseInt(second.slice(0, 16), 16));
    renameSync(join(objects, second), join(walDir(), second));
    const bytes = readFileSync(join(walDir(), second));
    const damaged = Buffer.from(bytes);
    damaged[100] = (damaged[100] as number) ^ 1;
    writeFileSync(join(walDir(), second), damaged);
    assert.match((await ask()).problem ?? '', /WAL object/);
    writeFileSync(join(walDir(), second), bytes);
    assert.equal((await ask()).problem, null);
  });

  test('new members begin a lineage there: elected above every term of before, serving all WAL, and untouched by a member of before', async () => {
    const begin = whole.endLsn;
    const members = quorum.members.map((m) => memberIdOf(m.config.id, 1));
    const configuration = { generation: 1, members, newMembers: null };
    const nodes = quorum.members.map((m) => m.address);
    const lineages = [...asked.lineages, { number: 1, startLsn: begin }];
    const timeline = {
      systemId: asked.systemId,
      pgVersion: asked.pgVersion,
      startLsn: begin,
      prevRecordLsn: whole.lastRecordLsn,
      lineages,
    };
    // The third one keeps its disk, and its member of before, for now.
    for (const [i, member] of quorum.members.slice(0, 2).entries()) {
      await member.stop();
      rmSync(member.config.dataDir, { recursive: true });
      await member.start();
      const { incarnation } = await member.client.node();
      const make = { member: members[i] as string, incarnation, timeline };
      const status = await member.client.configure(quorum.project, quorum.timeline, { configuration, nodes, make });
      assert.deepEqual([status.flushLsn, status.commitLsn, status.term], [begin, begin, 1_000_000_000]);
      assert.deepEqual(status.lineages, lineages);
    }
    assert.ok((await read(0, start, parseLsn(begin))).equals(digest), 'WAL of before, from the store');
    quorum.configuration = configuration;
    const two = quorum.members.slice(0, 2);
    assert.equal(formatLsn(await quorum.elect(1_000_000_001, two)), begin);
    // The old one is heard; what it has in the store is its own lineage's.
    const old = quorum.running(2);
    old.noteOffloaded(lsn(end + 10 * SEG));
    old.noteTail(lsn(end + 10 * SEG));
    await until('the old one is heard', () => quorum.running(0).peers.has('sk3'), 20_000);
    assert.equal(formatLsn(quorum.running(0).offloadedLsn), begin);
    assert.equal(quorum.running(0).tailLsn, 0);
    // A pageserver names the lineage it follows, whoever it meets.
    await assert.rejects(read(2, start, lsn(start + 100), 1, 'pageserver'), /lineage 0/);
    await assert.rejects(read(0, start, lsn(start + 100), undefined, 'pageserver'), /lineage 1/);
    assert.equal((await read(0, start, lsn(start + 100), 1, 'pageserver')).length, 100);
    // Now it joins: what it had is set aside.
    const { incarnation } = await quorum.member(2).client.node();
    const make = { member: members[2] as string, incarnation, timeline };
    await quorum.member(2).client.configure(quorum.project, quorum.timeline, { configuration, nodes, make });
    assert.equal(quorum.running(2).lineage, 1);
    assert.ok(readdirSync(join(quorum.member(2).config.dataDir, quorum.project)).some((n) => n.includes('.unusable-')));
  });

  test('a member that was replaced leaves the objects; a deleted timeline leaves none, of no lineage', async () => {
    const before = readdirSync(walDir());
    await quorum.member(2).client.remove(quorum.project, quorum.timeline, { objects: 'keep' });
    const kept = readdirSync(walDir());
    assert.ok(before.length > 0 && before.every((name) => kept.includes(name)), `${before.join(' ')}, then ${kept.join(' ')}`);
    await quorum.member(0).client.remove(quorum.project, quorum.timeline);
    await until('nothing is left', () => readdirSync(walDir()).length === 0, 20_000);
  });
});
