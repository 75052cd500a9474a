/** The scrubber and the inspector of a safekeeper, over its routes, with WAL of a stock server on three members and in the object store. */
import assert from 'node:assert/strict';
import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ScrubClient, type InspectReport, type ScrubStatus } from '@lakebase/api';
import { WAL_SEGMENT_BYTES, formatLsn } from '@lakebase/ids';
import type { PgConnection } from '@lakebase/pg-wire';
import { memberIdOf } from '@lakebase/wal-quorum';
import { type Member, type Quorum, until } from './testing/rig.ts';
import { Running } from './testing/running.ts';

/** Also on a machine with thirty others at work. */
const DEADLINE_MS = 120_000;
let scrubs = 0;

const flip = (path: string, at: number): void => {
  const bytes = readFileSync(path);
  bytes[at] = (bytes[at] as number) ^ 0x08;
  writeFileSync(path, bytes);
};
async function scrubOf({ client: { http } }: Member, repair: boolean): Promise<ScrubStatus> {
  const client = new ScrubClient(http);
  const id = `test-${++scrubs}`;
  await client.start({ id, project: null, repair, knownProjects: null, bytesPerSecond: null });
  let status = await client.status(id);
  await until('the scrub ended', async () => (status = await client.status(id)).state !== 'RUNNING', DEADLINE_MS);
  assert.equal(status.state, 'DONE', status.error ?? '');
  return status;
}
/** Objects that a takeover made twice come by themselves. */
const shape = (s: ScrubStatus): string[] => s.findings.filter((f) => f.kind !== 'orphan').map((f) => `${f.kind} ${f.where} ${f.outcome}`);

describe('scrubbing WAL', () => {
  let running: Running | undefined;
  let quorum: Quorum;
  let sql: PgConnection;
  let objects = '';

  before(async () => {
    running = await Running.start({
      sql: 'CREATE TABLE t (id int, pad text)',
      all: (root) => {
        objects = join(root, 'objects');
        return { objectStore: { kind: 'directory', path: objects } };
      },
    });
    ({ quorum, sql } = running);
    for (let i = 0; i < 3; i++) {
      await sql.query(`INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 20000) i`);
      await sql.query('SELECT pg_switch_wal()');
    }
    await sql.query('INSERT INTO t VALUES (0)');
    for (const i of [0, 1, 2])
      await until(
        'three segments are offloaded',
        () => timeline(i).offloadedLsn >= timeline(i).control.startLsn + 2 * WAL_SEGMENT_BYTES,
        DEADLINE_MS,
      );
  });
  after(() => running?.[Symbol.asyncDispose]());

  const timeline = (i: number) => {
    const { running } = quorum.member(i);
    assert.ok(running !== undefined);
    return running.timelines.get(quorum.project, quorum.timeline);
  };
  const walDir = (i: number): string => join(timeline(i).dir, 'wal');
  const objectDir = (): string => join(objects, 'projects', quorum.project, 'timelines', quorum.timeline, 'wal');
  const scrub = (i: number, repair = false): Promise<ScrubStatus> => scrubOf(quorum.member(i), repair);
  const show = (i: number, name: string, more: object = {}): Promise<InspectReport> =>
    quorum.member(i).client.http.call('POST', '/v1/inspect', { project: quorum.project, timeline: quorum.timeline, name, ...more });

  test('nothing is wrong with it, while it is being written', async () => {
    let writing = true;
    const writer = (async () => {
      while (writing) await sql.query('INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 200) i');
    })();
    try {
      for (const i of [1, 2]) {
        const status = await scrub(i);
        assert.deepEqual(shape(status), [], JSON.stringify(status.findings));
        assert.ok(status.objects >= 4 && status.bytes > 3 * WAL_SEGMENT_BYTES);
        assert.deepEqual(status.timelines, { done: 1, total: 1 });
      }
    } finally {
      // A writer that goes on for ever keeps the file from ending.
      writing = false;
      await writer;
    }
  });

  test('a flipped bit in a WAL object is found by the first member and put right from its own WAL', async () => {
    // Of two that hold the same WAL the larger one is read.
    const name = readdirSync(objectDir())
      .filter((f) => /-[1248]$/.test(f))
      .sort((a, b) => Number(b.slice(-1)) - Number(a.slice(-1)))[0] as string;
    const path = join(objectDir(), name);
    for (const share of [0.5]) {
      flip(path, Math.floor(readFileSync(path).length * share));
      assert.deepEqual(shape(await scrub(1, true)), [], 'the second member leaves objects to the first');
      const found = await scrub(0);
      assert.deepEqual(shape(found), ['damaged store left']);
      assert.ok(found.findings.some((f) => f.name.endsWith(name)));
      assert.deepEqual(shape(await scrub(0, true)), ['damaged store repaired']);
      assert.deepEqual(shape(await scrub(0)), []);
    }
    // A smaller one with the same WAL would stand in.
    await scrub(0, true);
    rmSync(path);
    assert.deepEqual(shape(await scrub(0)), ['missing store left']);
    assert.deepEqual(shape(await scrub(0, true)), ['missing store repaired']);
    assert.deepEqual(shape(await scrub(0)), []);
  });

  test('an object inside of a larger one goes', async () => {
    const larger = readdirSync(objectDir()).find((f) => /-[248]$/.test(f));
    if (larger === undefined) return;
    const inside = join(objectDir(), larger.replace(/-[248]$/, '-1'));
    writeFileSync(inside, 'x');
    const about = (status: ScrubStatus): string[] =>
      status.findings.filter((f) => f.name.endsWith(basename(inside))).map((f) => `${f.kind} ${f.outcome}`);
    assert.deepEqual(about(await scrub(0)), ['orphan left']);
    assert.deepEqual(about(await scrub(0, true)), ['orphan deleted']);
    assert.equal((await scrub(0)).left, 0);
  });

  test('a flipped bit in a segment nobody reads is found, and the member keeps its vote', async () => {
    const name = readdirSync(walDir(1))
      .filter((f) => /^0{7}1/.test(f))
      .sort()[0] as string;
    const path = join(walDir(1), name);
    flip(path, 100_000);
    const status = await scrub(1);
    assert.deepEqual(shape(status), ['damaged disk left']);
    assert.ok(status.findings[0]?.name.endsWith(name));
    assert.equal(timeline(1).control.damage, null);
    assert.deepEqual(shape(await scrub(1, true)), ['damaged disk repaired']);
    assert.equal(timeline(1).control.damage, null);
    assert.deepEqual(shape(await scrub(1)), []);
  });

  test('a damaged control file is written again from what is in memory', async () => {
    flip(join(timeline(2).dir, 'control'), 20);
    assert.deepEqual(shape(await scrub(2)), ['damaged disk left']);
    assert.deepEqual(shape(await scrub(2, true)), ['damaged disk repaired']);
    assert.deepEqual(shape(await scrub(2)), []);
  });

  test('one scrub at a time; what nobody started is not known', async () => {
    const client = new ScrubClient(quorum.member(0).client.http);
    const slow = { id: 'slow', project: null, repair: false, knownProjects: null, bytesPerSecond: 1_024 * 1_024 };
    await client.start(slow);
    assert.equal((await client.start(slow)).id, 'slow', 'asked for again');
    await assert.rejects(client.start({ ...slow, id: 'other' }), { code: 'CONFLICT' });
    await client.end('slow');
    assert.equal((await client.status('slow')).state, 'FAILED');
    await assert.rejects(client.status('nobody'), { code: 'NOT_FOUND' });
    await assert.rejects(client.http.call('POST', '/v1/scrubs', { id: '../x' }), { code: 'INVALID_ARGUMENT' });
  });

  test('inspect: the list, the control file, a segment and an object with their records', async () => {
    const list = await show(0, '');
    assert.ok(list.tables[0]?.rows.some(([name]) => name === 'control'));
    assert.match(JSON.stringify((await show(0, 'control')).tables[0]), /term/);
    const [segment] = readdirSync(walDir(0))
      .filter((f) => /^0{7}1/.test(f))
      .sort() as [string];
    const report = await show(0, segment, { limit: 5 });
    assert.deepEqual(report.damage, []);
    assert.equal(report.tables.at(-1)?.rows.length, 5);
    assert.ok((report.tables.at(-1)?.omitted ?? 0) > 100);
    const object = readdirSync(objectDir()).find((f) => /-[1248]$/.test(f)) as string;
    const stored = await show(1, `wal/${object}`, { limit: 5 });
    assert.deepEqual(stored.damage, []);
    assert.match(stored.notes.join(), /frames open/);
    assert.match(JSON.stringify(stored.tables), /"Heap|"heap|HEAP/i);
    await assert.rejects(show(0, '../../secret'), { code: 'INVALID_ARGUMENT' });
    await assert.rejects(show(0, 'wal/..'), { code: 'INVALID_ARGUMENT' });
    await assert.rejects(show(0, 'nothing'), { code: 'NOT_FOUND' });
  });
});

describe('scrubbing the tail, and WAL of before a recovery', () => {
  let running: Running | undefined;
  let quorum: Quorum;
  let walDir = '';
  const scrub = (repair = false): Promise<ScrubStatus> => scrubOf(quorum.member(0), repair);
  const orphans = (s: ScrubStatus): string[] =>
    s.findings
      .filter((f) => f.kind === 'orphan')
      .map((f) => `${basename(f.name)} ${f.outcome}`)
      .sort();
  const complete = (): string[] =>
    readdirSync(walDir)
      .filter((name) => /^[0-9a-f]{16}-[1248]$/.test(name))
      .sort();

  before(async () => {
    let objects = '';
    running = await Running.start({
      sql: 'CREATE TABLE t (id int, pad text)',
      all: (root) => {
        objects = join(root, 'objects');
        return { objectStore: { kind: 'directory', path: objects } };
      },
    });
    quorum = running.quorum;
    walDir = join(objects, 'projects', quorum.project, 'timelines', quorum.timeline, 'wal');
    const first = quorum.running(0);
    const segment = Math.floor(first.control.startLsn / WAL_SEGMENT_BYTES);
    for (let i = 1; i <= 3; i++) {
      await running.sql.query('INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 2000) i');
      await running.sql.query('SELECT pg_switch_wal()');
      await running.sql.query('INSERT INTO t VALUES (0)');
      // One object for each segment.
      await until('it is offloaded', () => first.offloadedLsn >= (segment + i) * WAL_SEGMENT_BYTES, DEADLINE_MS);
    }
    running.sql.destroy();
    // Nothing more is written from here on.
    await running.server.stop('SIGQUIT');
    await until('the rest is in the tail', () => first.tailLsn >= first.readableLsn, DEADLINE_MS);
    assert.equal(complete().length, 3);
  });
  after(() => running?.[Symbol.asyncDispose]());

  test('a damaged tail and a lost one are found, and put again from WAL on the disk', async () => {
    const tail = join(walDir, 'tail');
    assert.deepEqual(shape(await scrub()), []);
    flip(tail, Math.floor(readFileSync(tail).length / 2));
    const found = await scrub();
    assert.deepEqual(shape(found), ['damaged store left']);
    assert.match(found.findings[0]?.name ?? '', /\/wal\/tail$/);
    assert.deepEqual(shape(await scrub(true)), ['damaged store repaired']);
    assert.deepEqual(shape(await scrub()), []);
    rmSync(tail);
    assert.deepEqual(shape(await scrub(true)), ['missing store repaired']);
    assert.deepEqual(shape(await scrub()), []);
  });

  test('an older lineage is read up to where the next one begins; what is behind that is an orphan', async () => {
    const [first, second, last] = complete().map((name) => join(walDir, name)) as [string, string, string];
    const tail = join(walDir, 'tail');
    await quorumOfTheNextLineage([last, tail]);
    const whole = await scrub();
    assert.deepEqual(shape(whole), [], JSON.stringify(whole.findings));
    assert.deepEqual(orphans(whole), [`${basename(last)} left`, 'tail left']);

    for (const path of [first, second]) {
      const at = Math.floor(readFileSync(path).length / 2);
      flip(path, at);
      for (const repair of [false, true]) {
        const damaged = await scrub(repair);
        assert.deepEqual(shape(damaged), ['damaged store left']);
        const [finding] = damaged.findings.filter((f) => f.kind === 'damaged');
        assert.equal(basename(finding?.name ?? ''), basename(path));
        assert.match(finding?.detail ?? '', /no safekeeper has a copy/);
      }
      flip(path, at);
    }
    // The repairs took the orphans, and nothing else.
    assert.deepEqual(readdirSync(walDir).sort(), [basename(first), basename(second)]);
    assert.deepEqual(shape(await scrub()), []);

    const bytes = readFileSync(first);
    rmSync(first);
    assert.deepEqual(shape(await scrub(true)), ['missing store left']);
    writeFileSync(first, bytes);
    const healed = await scrub();
    assert.deepEqual([healed.findings, healed.objects >= 2], [[], true], JSON.stringify(healed));
  });

  /** All disks are lost; the WAL that comes back ends before what is in `lost`, which turns up again afterwards. */
  async function quorumOfTheNextLineage(lost: readonly string[]): Promise<void> {
    const { control } = quorum.running(0);
    const { systemId, pgVersion, startLsn, prevRecordLsn } = control;
    const kept = lost.map((path) => [path, readFileSync(path)] as const);
    for (const path of lost) rmSync(path);
    const before = [{ number: 0, startLsn: formatLsn(startLsn) }];
    const asked = { systemId: String(systemId), pgVersion, lineages: before, from: before[0]?.startLsn as string };
    const { endLsn, lastRecordLsn } = await quorum
      .member(0)
      .client.archiveEnd(quorum.project, quorum.timeline, { ...asked, prevRecordLsn: formatLsn(prevRecordLsn) }, DEADLINE_MS);
    for (const [path, bytes] of kept) writeFileSync(path, bytes);
    for (const member of quorum.members) await member.stop();
    const member = quorum.member(0);
    rmSync(member.config.dataDir, { recursive: true });
    await member.start();
    const { incarnation } = await member.client.node();
    const members = quorum.members.map((m) => memberIdOf(m.config.id, 1));
    const lineages = [...before, { number: 1, startLsn: endLsn }];
    await member.client.configure(quorum.project, quorum.timeline, {
      configuration: { generation: 1, members, newMembers: null },
      nodes: quorum.members.map((m) => m.address),
      make: {
        member: members[0] as string,
        incarnation,
        timeline: { systemId: asked.systemId, pgVersion, startLsn: endLsn, prevRecordLsn: lastRecordLsn, lineages },
      },
    });
  }
});
