/** Three safekeepers as synchronous standbys of a stock Postgres: what is acknowledged survives, and only the newest term is. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { internalToken, timelineScope } from '@lakebase/api';
import { type Logger, isCode, silentLogger, sleep } from '@lakebase/base';
import { type Lsn, formatLsn, parseLsn, segmentNumber, walFileName } from '@lakebase/ids';
import { PgConnection, PgError } from '@lakebase/pg-wire';
import { createLogger } from '@lakebase/service-kit';
import { findTool } from '@lakebase/testkit';
import type { SafekeeperConfig } from './config.ts';
import { type Quorum, SECRET, until } from './testing/rig.ts';
import { Running } from './testing/running.ts';

const log: Logger = process.env['SK_LOG'] === undefined ? silentLogger : createLogger('test', process.env['SK_LOG']);

/** `first`: configuration of sk1 alone. */
const running = (first: Partial<SafekeeperConfig> = {}): Promise<Running> =>
  Running.start({ log, first, sql: 'CREATE TABLE t (id int primary key, pad text)' });

const insert = (sql: PgConnection, id: number): Promise<unknown> => sql.query(`INSERT INTO t VALUES (${id}, repeat('x', 100))`);

async function stillWaits(promise: Promise<unknown>, ms = 300): Promise<void> {
  const first = await Promise.race([promise.then(() => 'done'), sleep(ms).then(() => 'waits')]);
  assert.equal(first, 'waits');
}

const readAll = async (q: Quorum, i: number, options: string, from: Lsn, to: Lsn): Promise<Buffer> => {
  const c = await PgConnection.connect({
    host: '127.0.0.1',
    port: q.member(i).address.pgPort,
    user: 'reader',
    password: internalToken(SECRET, 'service'),
    replication: 'physical',
    parameters: { options: `-c lakebase.project=${q.project} -c lakebase.timeline=${q.timeline} ${options}` },
  });
  const parts: Buffer[] = [];
  let at = from;
  await new Promise<void>((resolve, reject) => {
    c.startReplication(
      { startLsn: from },
      {
        onXLogData: (m) => {
          assert.equal(m.start, at);
          parts.push(Buffer.from(m.data));
          at = (at + m.data.length) as Lsn;
          if (at >= to) resolve();
        },
      },
    ).catch(reject);
    c.closed.then(() => reject(new Error('closed')), reject);
  });
  c.destroy();
  return Buffer.concat(parts).subarray(0, to - from);
};

test('commits need two of three; members come and go; logs agree byte for byte', async () => {
  await using r = await running();
  const { quorum, sql } = r;
  for (let i = 0; i < 50; i++) await insert(sql, i);
  await quorum.member(0).stop();
  for (let i = 50; i < 100; i++) await insert(sql, i);
  await quorum.member(1).stop();
  const blocked = insert(sql, 100);
  await stillWaits(blocked);
  await quorum.member(0).start();
  await quorum.subscribe(r.server, 1);
  await blocked;
  await quorum.member(1).start();
  await quorum.subscribe(r.server, 1);
  for (let i = 101; i < 150; i++) await insert(sql, i);
  const [flush] = await sql.query('SELECT pg_current_wal_flush_lsn()::text');
  const end = parseLsn(flush?.rows[0]?.[0] as string);
  for (const i of [0, 1, 2]) await until(`sk${i + 1} commits`, async () => parseLsn((await quorum.status(i)).commitLsn) >= end);
  const start = parseLsn((await quorum.status(0)).startLsn);
  const logs = await Promise.all([0, 1, 2].map((i) => readAll(quorum, i, '', start, end)));
  const [log1, log2, log3] = logs as [Buffer, Buffer, Buffer];
  assert.ok(log1.equals(log2) && log1.equals(log3));
  // The same bytes as Postgres's own segment.
  const own = readFileSync(join(r.server.dir, 'data', 'pg_wal', walFileName(segmentNumber(start))));
  assert.ok(log1.equals(own.subarray(start % own.length, (start % own.length) + log1.length)));
});

test('a vote for a higher term ends the acknowledgements of the lower one', async () => {
  await using r = await running();
  const { quorum, sql, server } = r;
  await insert(sql, 1);
  const before = await quorum.status(0);
  const startLsn = await quorum.elect(2, quorum.members.slice(0, 2));
  assert.ok(startLsn >= parseLsn(before.flushRecordLsn));
  const blocked = insert(sql, 2);
  await stillWaits(blocked);
  await assert.rejects(quorum.subscribe(server, 1, [quorum.member(0)]), (e: unknown) => isCode(e, 'FENCED'));
  assert.equal((await quorum.status(0)).streaming, null);
  // The same server as the compute of term 2 (a real one would be new): the third member adopts from a peer when it is subscribed.
  server.reload({ 'lakebase.term': '2' });
  await quorum.subscribe(server, 2);
  await blocked;
  await until('sk3 follows term 2', async () => (await quorum.status(2)).streaming?.term === 2);
  const status = await quorum.status(2);
  assert.equal(status.term, 2);
  assert.deepEqual(
    status.termHistory.map((h) => h.term),
    [1, 2],
  );
  const vote = await quorum.member(2).client.vote(quorum.project, quorum.timeline, { term: 2 as never });
  assert.equal(vote.granted, false);
});

test('everything acknowledged is there after all members restart, and a divergent tail is cut', async () => {
  await using r = await running();
  const { quorum, sql, server } = r;
  for (let i = 0; i < 20; i++) await insert(sql, i);
  const [flush] = await sql.query('SELECT pg_current_wal_flush_lsn()::text');
  const acknowledged = parseLsn(flush?.rows[0]?.[0] as string);
  await quorum.member(1).stop();
  await quorum.member(2).stop();
  // Only sk1 has this: not committed.
  const lost = insert(sql, 1_000);
  lost.catch(() => {});
  await until('sk1 has the uncommitted record', async () => parseLsn((await quorum.status(0)).flushRecordLsn) > acknowledged);
  assert.ok(parseLsn((await quorum.status(0)).commitLsn) <= acknowledged);
  const tail = await quorum.status(0);
  await quorum.member(0).stop();
  await server.stop('SIGQUIT');
  await quorum.member(1).start();
  await quorum.member(2).start();
  const start2 = await quorum.elect(2);
  assert.ok(start2 >= acknowledged && start2 < parseLsn(tail.flushRecordLsn));
  await quorum.member(0).start();
  assert.equal((await quorum.status(0)).flushLsn, tail.flushLsn);
  const start3 = await quorum.elect(3);
  assert.equal(start3, start2);
  for (const i of [0, 1, 2]) {
    const s = await quorum.status(i);
    assert.equal(s.flushLsn, formatLsn(start3));
    assert.equal(s.damaged, null);
  }
});

test('the service speaks to those who prove who they are, of what they may see', async () => {
  await using r = await running();
  const { quorum } = r;
  const connect = (password: string, options: string, user = 'x') =>
    PgConnection.connect({
      host: '127.0.0.1',
      port: quorum.member(0).address.pgPort,
      user,
      password,
      replication: 'physical',
      parameters: { options },
    });
  const named = `-c lakebase.project=${quorum.project} -c lakebase.timeline=${quorum.timeline}`;
  const sqlstate = (code: string) => (e: unknown) => e instanceof PgError && e.sqlstate === code;
  await assert.rejects(connect('wrong', named), sqlstate('28P01'));
  const other = internalToken(SECRET, timelineScope(quorum.project, 'f'.repeat(32)));
  await assert.rejects(connect(other, named), sqlstate('28P01'));
  const own = internalToken(SECRET, timelineScope(quorum.project, quorum.timeline));
  const c = await connect(own, named);
  const [id] = await c.query('IDENTIFY_SYSTEM');
  assert.equal(id?.rows[0]?.[1], '1');
  await assert.rejects(c.query('SELECT 1'), sqlstate('42601'));
  await assert.rejects(c.query('SHOW nothing'), sqlstate('42704'));
  await assert.rejects(c.startReplication({ startLsn: parseLsn('FF/0') }, { onXLogData: () => {} }), sqlstate('55000'));
  await assert.rejects(c.startReplication({ startLsn: parseLsn('0/10') }, { onXLogData: () => {} }), sqlstate('58P01'));
  await c.end();
  await assert.rejects(
    connect(own, `${named} -c lakebase.peer=1 -c lakebase.term=1`).then((p) => p.query('IDENTIFY_SYSTEM')),
    sqlstate('42501'),
  );
  const stale = await connect(internalToken(SECRET, 'service'), `${named} -c lakebase.peer=1 -c lakebase.term=9`);
  const startLsn = parseLsn((await quorum.status(0)).startLsn);
  const stream = await stale.startReplication({ startLsn }, { onXLogData: () => assert.fail('WAL for a term this member is not in') });
  await assert.rejects(stream.ended, sqlstate('55000'));
  const byUser = await connect(own, '', `${quorum.project}.${quorum.timeline}`);
  assert.equal((await byUser.query('SHOW wal_segment_size'))[0]?.rows[0]?.[0], '16MB');
  await byUser.end();
  await assert.rejects(connect(internalToken(SECRET, 'service'), `-c lakebase.project=../.. -c lakebase.timeline=x`));
  const unauthenticated = await fetch(`${quorum.member(0).address.httpUrl}/v1/peer-stream`);
  assert.equal(unauthenticated.status, 401);
  const bad = await fetch(`${quorum.member(0).address.httpUrl}/v1/timelines/..%2f..%2fetc/x`, {
    headers: { authorization: `Bearer ${internalToken(SECRET, 'service')}` },
  });
  assert.equal(bad.status, 400);
});

test('a member whose disk is lost is nobody until a new member takes its place, which streams from the running compute', async () => {
  await using r = await running();
  const { quorum, sql, server } = r;
  await insert(sql, 1);
  await quorum.member(2).stop();
  rmSync(quorum.member(2).config.dataDir, { recursive: true });
  await quorum.member(2).start();
  const known = await quorum.status(0);
  await assert.rejects(quorum.member(2).client.create(quorum.project, quorum.timeline, known), /join again as a new member/);
  await assert.rejects(quorum.member(2).client.vote(quorum.project, quorum.timeline, { term: 5 as never }));
  await assert.rejects(quorum.subscribe(server, 1, [quorum.member(2)]));
  await quorum.replace(2);
  const joined = await quorum.status(2);
  assert.deepEqual([joined.member, joined.generation, joined.term, joined.damaged], ['sk3_g1', 2, 1, null]);
  // Streams of the older configuration ended with it; the compute that counts by the new one is followed again.
  server.reload({ 'lakebase.generation': '2', synchronous_standby_names: 'ANY 2 (sk1,sk2,sk3_g1)' });
  await quorum.subscribe(server, 1);
  await insert(sql, 2);
  await quorum.member(0).stop();
  await insert(sql, 3);
  await quorum.elect(2);
});

test('damaged WAL: the member says so, does not vote, and a later term repairs it', async () => {
  await using r = await running();
  const { quorum, sql } = r;
  for (let i = 0; i < 30; i++) await insert(sql, i);
  await quorum.member(0).stop();
  const dir = join(quorum.member(0).config.dataDir, quorum.project, quorum.timeline, 'wal');
  const file = join(dir, readdirSync(dir)[0] as string);
  const bytes = readFileSync(file);
  bytes[4096 + 2_000] = (bytes[4096 + 2_000] as number) ^ 0x40;
  writeFileSync(file, bytes);
  await quorum.member(0).start();
  const damaged = await quorum.status(0);
  assert.match(damaged.damaged ?? '', /^lost: .*0000000100000000/);
  assert.equal((await quorum.member(0).client.vote(quorum.project, quorum.timeline, { term: 7 as never })).granted, false);
  const startLsn = await quorum.elect(8);
  const healed = await quorum.status(0);
  assert.equal(healed.damaged, null);
  assert.equal(healed.flushRecordLsn, formatLsn(startLsn));
});

test('a full disk: that member stops acknowledging, keeps serving, and goes on when there is room', async (t) => {
  const disk = mkdtempSync(join(tmpdir(), 'lb-small-'));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', disk], { stdio: 'pipe' });
  } catch {
    rmSync(disk, { recursive: true });
    return t.skip('cannot mount a small file system here');
  }
  try {
    await using r = await running({ dataDir: join(disk, 'sk1') });
    const { quorum, sql } = r;
    await sql.query("INSERT INTO t SELECT g, repeat('y', 1000) FROM generate_series(1000, 14000) g");
    const [flush] = await sql.query('SELECT pg_current_wal_flush_lsn()::text');
    const end = parseLsn(flush?.rows[0]?.[0] as string);
    for (const i of [1, 2]) await until(`sk${i + 1} has all`, async () => parseLsn((await quorum.status(i)).flushLsn) >= end);
    const stuck = await quorum.status(0);
    assert.ok(parseLsn(stuck.flushLsn) < end, 'sk1 has no room for it');
    assert.equal(stuck.damaged, null);
    const start = parseLsn(stuck.startLsn);
    await until('sk1 knows that its part is committed', async () => parseLsn((await quorum.status(0)).commitLsn) > start + 1_000_000);
    const readable = parseLsn((await quorum.status(0)).commitLsn);
    const served = await readAll(quorum, 0, '', start, readable);
    assert.ok(served.equals(await readAll(quorum, 1, '', start, readable)));
    execFileSync('mount', ['-o', 'remount,size=200m', disk]);
    await until('sk1 has caught up', async () => parseLsn((await quorum.status(0)).flushLsn) >= end, 20_000);
  } finally {
    execFileSync('umount', ['-l', disk]);
    rmSync(disk, { recursive: true });
  }
});

const RECEIVEWAL = findTool('pg_receivewal', 18);
const WALDUMP = findTool('pg_waldump', 18);
test('stock pg_receivewal and pg_waldump work', {
  skip: RECEIVEWAL === undefined || WALDUMP === undefined ? 'no pg_receivewal and pg_waldump of major 18 on this machine' : false,
}, async () => {
  await using r = await running();
  const { quorum, sql } = r;
  for (let i = 0; i < 100; i++) await insert(sql, i);
  await sql.query('SELECT pg_switch_wal()');
  await insert(sql, 100);
  const [flush] = await sql.query('SELECT pg_current_wal_flush_lsn()::text');
  const end = parseLsn(flush?.rows[0]?.[0] as string);
  // pg_receivewal stops when it has seen something beyond the end.
  await insert(sql, 101);
  await until('sk1 knows the commit', async () => parseLsn((await quorum.status(0)).commitLsn) > end);
  const dir = mkdtempSync(join(tmpdir(), 'lb-receive-'));
  const url = `host=127.0.0.1 port=${quorum.member(0).address.pgPort} user=${quorum.project}.${quorum.timeline}`;
  const env = { ...process.env, PGPASSWORD: internalToken(SECRET, timelineScope(quorum.project, quorum.timeline)) };
  const start = parseLsn((await quorum.status(0)).startLsn);
  // IDENTIFY_SYSTEM gives the present position, and pg_receivewal begins at that segment's start: first the end, then the whole.
  writeFileSync(join(dir, `${walFileName(segmentNumber(start) - 1)}`), Buffer.alloc(16 * 1024 * 1024));
  const child = spawn(RECEIVEWAL as string, ['-D', dir, '-d', url, '--endpos', formatLsn(end), '--no-loop', '-v'], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  child.stderr.on('data', (d: Buffer) => (said += d.toString()));
  const code = await new Promise((resolve) => child.once('exit', resolve));
  assert.equal(code, 0, said);
  const partial = join(dir, `${walFileName(segmentNumber(end))}.partial`);
  execFileSync('cp', [partial, partial.replace('.partial', '')]);
  const dump = execFileSync(WALDUMP as string, ['-p', dir, '-s', formatLsn(start), '-e', formatLsn(end)], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  assert.ok((dump.match(/INSERT\+INIT|desc: INSERT /g) ?? []).length > 100);
  assert.match(dump, /SWITCH/);
  rmSync(dir, { recursive: true });
});
