/** WAL in the object store: it gets there once, goes from the members' disks, and everybody still reads all of it. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { internalToken, timelineScope } from '@lakebase/api';
import { type Logger, armFailpoint, disarmFailpoints, silentLogger } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn, lsn, parseLsn, segmentNumber, walFileName } from '@lakebase/ids';
import { DirectoryStore } from '@lakebase/object-store';
import { PgConnection } from '@lakebase/pg-wire';
import { createLogger } from '@lakebase/service-kit';
import { findTool } from '@lakebase/testkit';
import type { SafekeeperConfig } from './config.ts';
import { type Quorum, SECRET, until } from './testing/rig.ts';
import { Running } from './testing/running.ts';

const log: Logger = process.env['SK_LOG'] === undefined ? silentLogger : createLogger('test', process.env['SK_LOG']);
const SEG = WAL_SEGMENT_BYTES;
const RECEIVEWAL = findTool('pg_receivewal', 18);
const WALDUMP = findTool('pg_waldump', 18);

async function running(all: Partial<SafekeeperConfig> = {}, first: Partial<SafekeeperConfig> = {}): Promise<Running & { objects: string }> {
  let objects = '';
  const r = await Running.start({
    log,
    first,
    sql: 'CREATE TABLE t (id int, pad text)',
    all: (root) => {
      objects = join(root, 'objects');
      return { objectStore: { kind: 'directory', path: objects }, trimAfterBytes: 1, ...all };
    },
  });
  return Object.assign(r, { objects });
}

/** Some megabytes of WAL, then the rest of the segment. */
async function writeSegments(sql: PgConnection, n: number): Promise<void> {
  for (let i = 0; i < n; i++) {
    await sql.query(`INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 2000) i`);
    await sql.query('SELECT pg_switch_wal()');
  }
  await sql.query('INSERT INTO t VALUES (0)');
}

async function flushLsn(sql: PgConnection): Promise<Lsn> {
  const [row] = await sql.query('SELECT pg_current_wal_flush_lsn()::text');
  return parseLsn(row?.rows[0]?.[0] as string);
}

async function digest(q: Quorum, i: number, from: Lsn, to: Lsn): Promise<string> {
  const c = await PgConnection.connect({
    host: '127.0.0.1',
    port: q.member(i).address.pgPort,
    user: 'reader',
    password: internalToken(SECRET, 'service'),
    replication: 'physical',
    parameters: { options: `-c lakebase.project=${q.project} -c lakebase.timeline=${q.timeline}` },
  });
  const hash = createHash('sha256');
  let at: number = from;
  await new Promise<void>((resolve, reject) => {
    c.startReplication(
      { startLsn: from },
      {
        onXLogData: (m) => {
          assert.equal(m.start, at);
          hash.update(m.data.subarray(0, to - at));
          at += m.data.length;
          if (at >= to) resolve();
        },
      },
    )
      .then((stream) => stream.ended.then(() => reject(new Error('ended'))))
      .catch(reject);
    c.closed.then((e) => reject(e ?? new Error('closed')), reject);
  });
  c.destroy();
  return hash.digest('hex');
}

const timelineOf = (q: Quorum, i: number) => {
  const running = q.member(i).running;
  assert.ok(running !== undefined);
  return running.timelines.get(q.project, q.timeline);
};
const completeOf = (at: number): number => Math.floor(at / SEG) * SEG;

async function offloadedEverywhere(q: Quorum, at: number, members = [0, 1, 2]): Promise<void> {
  for (const i of members) await until(`sk${i + 1} knows of offloaded WAL`, () => timelineOf(q, i).offloadedLsn >= at, 30_000);
}

describe('WAL in the object store', () => {
  test('is put once, trimmed everywhere, and read as before by everybody', async () => {
    await using r = await running();
    const { quorum, sql, objects } = r;
    const start = timelineOf(quorum, 0).control.startLsn;
    await writeSegments(sql, 5);
    const end = await flushLsn(sql);
    await until('everything is committed', () => timelineOf(quorum, 0).readableLsn >= end);
    const before = await digest(quorum, 0, start, end);
    await offloadedEverywhere(quorum, completeOf(end));
    await until('the rest is in the tail', () => timelineOf(quorum, 1).tailLsn >= end);
    // Told by the pageserver to one member only.
    timelineOf(quorum, 1).notePages(end);
    for (const i of [0, 1, 2]) {
      await until(`sk${i + 1} has trimmed`, () => timelineOf(quorum, i).firstLsn === completeOf(end) - SEG);
      assert.equal(await digest(quorum, i, start, end), before);
      // From the middle of what is gone.
      const middle = lsn(start + 3 * SEG + 12_345);
      assert.equal((await digest(quorum, i, middle, lsn(middle + 1000))).length, 64);
    }
    const names = readdirSync(join(objects, 'projects', quorum.project, 'timelines', quorum.timeline, 'wal'));
    assert.ok(names.length <= 8 && names.includes('tail'), names.join(' '));
    const status = await quorum.status(0);
    assert.deepEqual([status.offloadedLsn, status.firstLsn], [formatLsn(lsn(completeOf(end))), formatLsn(lsn(completeOf(end) - SEG))]);
    // Both positions are remembered.
    await quorum.member(0).stop();
    await quorum.member(0).start();
    assert.equal(timelineOf(quorum, 0).offloadedLsn, completeOf(end));
    assert.equal(timelineOf(quorum, 0).pagesLsn, end);
    assert.equal(await digest(quorum, 0, start, end), before);
    // A deleted timeline leaves nothing there.
    for (const member of quorum.members) await member.client.remove(quorum.project, quorum.timeline);
    await until('the objects are gone', async () => (await new DirectoryStore(objects).list('')).objects.length === 0);
  });

  test('the member whose turn it is dies or gets nowhere: another one takes over', async () => {
    await using r = await running();
    const { quorum, sql } = r;
    await quorum.member(0).stop();
    await writeSegments(sql, 2);
    await offloadedEverywhere(quorum, completeOf(await flushLsn(sql)), [1, 2]);
    await quorum.member(0).start();
    await quorum.subscribe(r.server, 1);
    await offloadedEverywhere(quorum, completeOf(await flushLsn(sql)));
    // Every put fails once (members share this process): what looked failed is found and counted.
    armFailpoint('safekeeper.offload.after-put', 'error(UNAVAILABLE)@1');
    await writeSegments(sql, 2);
    await offloadedEverywhere(quorum, completeOf(await flushLsn(sql)));
  });

  test('a member that lost what is offloaded reads everything again', async () => {
    await using r = await running();
    const { quorum, sql } = r;
    const start = timelineOf(quorum, 0).control.startLsn;
    await writeSegments(sql, 4);
    const end = await flushLsn(sql);
    await until('everything is committed', () => timelineOf(quorum, 0).readableLsn >= end);
    const before = await digest(quorum, 0, start, end);
    await offloadedEverywhere(quorum, completeOf(end));
    const wal = join(timelineOf(quorum, 0).dir, 'wal');
    await quorum.member(0).stop();
    const files = readdirSync(wal)
      .filter((f) => /^[0-9A-F]{24}$/.test(f))
      .sort();
    // The first is gone, and so is one in the middle; another one does not open.
    rmSync(join(wal, files[0] as string));
    rmSync(join(wal, files[2] as string));
    const bytes = readFileSync(join(wal, files[3] as string));
    bytes.fill(7, 20_000, 20_100);
    writeFileSync(join(wal, files[3] as string), bytes);
    await quorum.member(0).start();
    await until(
      'all of it is read',
      () =>
        digest(quorum, 0, start, end).then(
          (d) => d === before,
          () => false,
        ),
      30_000,
    );
    assert.equal(timelineOf(quorum, 0).firstLsn, completeOf(end));
    assert.equal((await quorum.status(0)).damaged, null);
  });

  test('stock pg_receivewal gets everything from the very beginning, and pg_waldump reads it', {
    skip: RECEIVEWAL === undefined || WALDUMP === undefined ? 'no pg_receivewal and pg_waldump of major 18 on this machine' : false,
  }, async () => {
    await using r = await running();
    const { quorum, sql } = r;
    const start = timelineOf(quorum, 0).control.startLsn;
    await writeSegments(sql, 3);
    const end = await flushLsn(sql);
    await sql.query('INSERT INTO t VALUES (0)'); // it stops when it has seen something beyond the end
    await until('everything is committed', () => timelineOf(quorum, 0).readableLsn > end);
    await offloadedEverywhere(quorum, completeOf(end));
    timelineOf(quorum, 0).notePages(end);
    await until('trimmed', () => timelineOf(quorum, 0).firstLsn > start);
    const dir = mkdtempSync(join(tmpdir(), 'lb-receive-'));
    const url = `host=127.0.0.1 port=${quorum.member(0).address.pgPort} user=${quorum.project}.${quorum.timeline}`;
    const env = { ...process.env, PGPASSWORD: internalToken(SECRET, timelineScope(quorum.project, quorum.timeline)) };
    // It goes on behind what is there already: before the first segment.
    writeFileSync(join(dir, walFileName(segmentNumber(start) - 1)), Buffer.alloc(SEG));
    const child = spawn(RECEIVEWAL as string, ['-D', dir, '-d', url, '--endpos', formatLsn(end), '--no-loop', '-v'], {
      env,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let said = '';
    child.stderr.on('data', (d: Buffer) => (said += d.toString()));
    assert.equal(await new Promise((resolve) => child.once('exit', resolve)), 0, said);
    const partial = join(dir, `${walFileName(segmentNumber(end))}.partial`);
    renameSync(partial, partial.replace('.partial', ''));
    const dump = execFileSync(WALDUMP as string, ['-p', dir, '-s', formatLsn(start), '-e', formatLsn(end), '--stats'], {
      encoding: 'utf8',
    });
    assert.match(dump, /Heap/);
    rmSync(dir, { recursive: true });
  });

  test('a failed fdatasync (F9): nothing of it is acknowledged, the member goes on without a restart', async () => {
    await using r = await running();
    const { quorum, sql } = r;
    for (let i = 0; i < 6; i++) {
      armFailpoint('safekeeper.wal.before-sync', 'errno(EIO)@1');
      await sql.query(`INSERT INTO t VALUES (${i})`);
    }
    disarmFailpoints();
    const end = await flushLsn(sql);
    for (const i of [0, 1, 2]) {
      await until(`sk${i + 1} has all`, () => timelineOf(quorum, i).flushLsn >= end);
      assert.equal((await quorum.status(i)).damaged, null);
    }
    const start = timelineOf(quorum, 0).control.startLsn;
    const all = [await digest(quorum, 0, start, end), await digest(quorum, 1, start, end), await digest(quorum, 2, start, end)];
    assert.equal(new Set(all).size, 1);
  });

  test('a damaged segment that is nowhere but with the peers is repaired from one of them (F11)', async () => {
    await using r = await running();
    const { quorum, sql } = r;
    armFailpoint('safekeeper.offload.before-put', 'error(UNAVAILABLE)');
    const start = timelineOf(quorum, 0).control.startLsn;
    await writeSegments(sql, 3);
    const end = await flushLsn(sql);
    await until('sk1 has all', () => timelineOf(quorum, 0).readableLsn >= end);
    const before = await digest(quorum, 0, start, end);
    const { dir } = timelineOf(quorum, 0);
    await quorum.member(0).stop();
    const wal = join(dir, 'wal');
    const [one, two] = readdirSync(wal)
      .filter((f) => /^[0-9A-F]{24}$/.test(f))
      .sort() as [string, string];
    // The first loses bytes in the middle, the second everything.
    const bytes = readFileSync(join(wal, one));
    bytes.fill(7, 20_000, 20_100);
    writeFileSync(join(wal, one), bytes);
    rmSync(join(wal, two));
    await quorum.member(0).start();
    await until(
      'it is repaired',
      () =>
        digest(quorum, 0, start, end).then(
          (d) => d === before,
          () => false,
        ),
      30_000,
    );
    const timeline = timelineOf(quorum, 0);
    assert.equal(timeline.holes.size, 0);
    assert.equal(timeline.firstLsn, start);
    assert.equal((await quorum.status(0)).damaged, null);
  });

  test('a member whose budget is used up stops, the others go on, and it comes back by itself (F7)', async () => {
    await using r = await running({ trimAfterBytes: 1 << 30 }, { walDiskBytes: 64 * 1024 * 1024 });
    const { quorum, sql } = r;
    armFailpoint('safekeeper.offload.before-put', 'error(UNAVAILABLE)');
    await writeSegments(sql, 6);
    const end = await flushLsn(sql);
    await until('sk2 has all', () => timelineOf(quorum, 1).readableLsn >= end);
    await until('sk1 says so', async () => ((await quorum.status(0)).pressure ?? 0) > 0.9);
    // It may be behind the others: nearly full is not yet full.
    await until('sk1 takes no more', async () => {
      const health = (await quorum.member(0).client.http.call('GET', '/healthz')) as { walDiskFull?: boolean };
      return health.walDiskFull === true;
    });
    const stood = timelineOf(quorum, 0).flushLsn;
    assert.ok(stood < end && stood > timelineOf(quorum, 0).control.startLsn);
    await sql.query('INSERT INTO t VALUES (1)');
    disarmFailpoints();
    timelineOf(quorum, 1).notePages(end);
    await until('sk1 has all', () => timelineOf(quorum, 0).readableLsn >= end, 30_000);
    assert.equal((await quorum.status(0)).damaged, null);
  });

  test('a store that is away costs nothing but disk', async () => {
    await using r = await running();
    const { quorum, sql } = r;
    armFailpoint('safekeeper.offload.before-put', 'error(UNAVAILABLE)');
    await writeSegments(sql, 2);
    const end = await flushLsn(sql);
    timelineOf(quorum, 0).notePages(end);
    assert.equal(timelineOf(quorum, 0).firstLsn, timelineOf(quorum, 0).control.startLsn);
    disarmFailpoints();
    await offloadedEverywhere(quorum, completeOf(end));
    assert.ok((await new DirectoryStore(r.objects).list('')).objects.length > 0);
  });

  test('of a writer that never rests nothing committed waits longer than it may', async () => {
    await using r = await running({ offloadIdleMs: 600_000, offloadAgeMs: 1_500, offloadTakeoverMs: 600_000 });
    const { quorum, sql } = r;
    const deadline = performance.now() + 8_000;
    const waited: number[] = [];
    for (let i = 0; performance.now() < deadline; i++) {
      await sql.query(`INSERT INTO t VALUES (${i})`);
      const at = await flushLsn(sql);
      const since = performance.now();
      const look = (): void => {
        if (timelineOf(quorum, 0).tailLsn < at && timelineOf(quorum, 0).offloadedLsn < at) return;
        stop();
        waited.push(performance.now() - since);
      };
      const stop = timelineOf(quorum, 0).onMoved(look);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await until('the first ones are there', () => waited.length > 20, 30_000);
    const tails = quorum.members.map((m) => m.running?.timelines.get(quorum.project, quorum.timeline).tailLsn ?? 0);
    assert.ok(tails.every((t) => t > 0));
    // A tick, and a put on a busy machine.
    assert.ok(Math.max(...waited) < 1_500 + 8_000, `${Math.max(...waited)} ms`);
  });
});
