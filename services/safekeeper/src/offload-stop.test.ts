/** What a clean stop leaves in the object store: all that is committed, though nothing would have gone there for ten minutes yet. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, test } from 'node:test';
import { type Logger, armFailpoint, disarmFailpoints, failpointStatus, isCode, must, silentLogger } from '@lakebase/base';
import { type Lsn, type Term, WAL_SEGMENT_BYTES, formatLsn, lsn } from '@lakebase/ids';
import { DirectoryStore, walTailObject } from '@lakebase/object-store';
import { readTrailer, syntheticWal } from '@lakebase/wal-store';
import { Offloader } from './offload.ts';
import { Quorum, until } from './testing/rig.ts';

const SEG = WAL_SEGMENT_BYTES;
const START = lsn(3 * SEG - 50_000);
const CREATE = { systemId: '7000000000000000001', pgVersion: 18, startLsn: formatLsn(START), prevRecordLsn: formatLsn(lsn(START - 100)) };
const NEVER_MS = 600_000;
const TIMES = { idleMs: NEVER_MS, ageMs: NEVER_MS, tailMs: 0, takeoverMs: NEVER_MS };
const WAL = syntheticWal(START, 300_000, 1);
/** Long enough for a segment to be one that could go. */
const LONG_WAL = syntheticWal(START, 2 * SEG + 150_000, 2);
const MIDDLE = WAL.records.find((r) => r > START + 200_000) as Lsn;

afterEach(disarmFailpoints);

class Rig implements AsyncDisposable {
  readonly quorum: Quorum;
  readonly store: DirectoryStore;
  readonly warnings: Record<string, unknown>[];

  constructor(quorum: Quorum, store: DirectoryStore, warnings: Record<string, unknown>[]) {
    this.quorum = quorum;
    this.store = store;
    this.warnings = warnings;
  }

  static async start(): Promise<Rig> {
    let objects = '';
    const warnings: Record<string, unknown>[] = [];
    const log: Logger = { ...silentLogger, warn: (fields, message) => void warnings.push({ ...fields, message }), child: () => log };
    const offload = { offloadIdleMs: NEVER_MS, offloadAgeMs: NEVER_MS, offloadTailMs: 0, offloadTakeoverMs: NEVER_MS, trimAfterBytes: 1 };
    const quorum = await Quorum.start(log, {}, (root) => {
      objects = join(root, 'objects');
      return { objectStore: { kind: 'directory', path: objects }, ...offload };
    });
    for (const m of quorum.members) await m.client.create(quorum.project, quorum.timeline, CREATE);
    await quorum.elect(1);
    return new Rig(quorum, new DirectoryStore(objects), warnings);
  }

  append(i: number, to: Lsn, wal = WAL): void {
    const timeline = this.quorum.running(i);
    for (let at: number = timeline.appendLsn; at < to; at = timeline.appendLsn)
      timeline.appendFromCompute(1 as Term, lsn(at), wal.bytes.subarray(at - START, Math.min(to, at + 100_000) - START));
    timeline.flush();
  }
  committed(i: number, at: Lsn): Promise<void> {
    return until(`sk${i + 1} knows it as committed`, () => this.quorum.running(i).readableLsn === at);
  }
  /** `i` has heard that `other` has it. */
  heard(i: number, other: number, at: Lsn): Promise<void> {
    return until('it is heard', () => this.quorum.running(i).peers.get(`sk${other + 1}`)?.flushRecordLsn === at);
  }

  async stopAll(): Promise<void> {
    await Promise.all(this.quorum.members.map((m) => m.stop()));
  }

  /** Where the tail in the object store ends. */
  async tailEnd(): Promise<Lsn | undefined> {
    const { project, timeline } = this.quorum;
    const tail = await readTrailer(this.store, { project, timeline, name: walTailObject(project, timeline) });
    return tail?.header.end;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    disarmFailpoints();
    await this.quorum[Symbol.asyncDispose]();
  }
}

test('all members stop at once: what was committed is in the object store, put once, and again nothing when nothing is new', async () => {
  await using rig = await Rig.start();
  const { quorum } = rig;
  const { bytes: wal, end } = LONG_WAL;
  for (const i of [0, 1, 2]) rig.append(i, end, LONG_WAL);
  for (const i of [0, 1, 2]) await rig.committed(i, end);
  for (const i of [1, 2]) await rig.heard(i, 0, end);
  assert.equal(await rig.tailEnd(), undefined);
  const files = (): string[] => readdirSync(join(quorum.member(0).config.dataDir, quorum.project, quorum.timeline, 'wal')).sort();
  const before = files();
  for (const i of [0, 1, 2]) quorum.running(i).notePages(end);
  armFailpoint('object-store.put', 'delay(0)');
  const puts = (): number => must(failpointStatus()[0], 'the failpoint').hits;
  await rig.stopAll();
  assert.equal(await rig.tailEnd(), end);
  // Two complete objects and the tail.
  assert.equal(puts(), 3);
  assert.deepEqual(files(), before, 'a stop removes no WAL');
  assert.deepEqual(rig.warnings, []);
  for (const m of quorum.members) await m.start();
  const reader = must(quorum.running(2).archive, 'archive').reader();
  for (let at: number = START; at < end; ) {
    const bytes = await reader.read(lsn(at), 1 << 20);
    assert.ok(bytes.equals(wal.subarray(at - START, at - START + bytes.length)));
    at += bytes.length;
  }
  reader.close();
  await rig.stopAll();
  assert.equal(puts(), 3);
});

test('what is not committed does not leave a member that stops', async () => {
  await using rig = await Rig.start();
  for (const i of [0, 1]) rig.append(i, MIDDLE);
  for (const i of [0, 1]) await rig.committed(i, MIDDLE);
  rig.append(0, WAL.end);
  await rig.quorum.member(0).stop();
  assert.equal(await rig.tailEnd(), MIDDLE);
});

test('a member that stops leaves its WAL to one before it that has it, and waits for none that has not', async () => {
  await using rig = await Rig.start();
  const { quorum } = rig;
  for (const i of [0, 1, 2]) rig.append(i, MIDDLE);
  await rig.committed(2, MIDDLE);
  await rig.heard(2, 0, MIDDLE);
  await quorum.member(2).stop();
  assert.equal(await rig.tailEnd(), undefined);
  await quorum.member(2).start();
  for (const i of [1, 2]) rig.append(i, WAL.end);
  await rig.committed(1, WAL.end);
  await quorum.member(1).stop();
  assert.equal(await rig.tailEnd(), WAL.end);
  // A member that knows less does not put less in its place.
  await quorum.member(0).stop();
  assert.equal(await rig.tailEnd(), WAL.end);
});

test('without its key nothing of a project is put', async () => {
  await using rig = await Rig.start();
  for (const i of [0, 1, 2]) rig.append(i, WAL.end);
  for (const i of [0, 1, 2]) await rig.committed(i, WAL.end);
  for (const m of rig.quorum.members) m.keys.revoke(rig.quorum.project);
  await rig.stopAll();
  assert.equal((await rig.store.list('')).objects.length, 0);
});

test('a store that hangs or fails holds a stop up for a bounded time; what stays behind is said', async () => {
  await using rig = await Rig.start();
  const { quorum, warnings } = rig;
  for (const i of [0, 1, 2]) rig.append(i, WAL.end);
  await rig.committed(0, WAL.end);
  const timeline = quorum.running(0);
  const log: Logger = { ...silentLogger, warn: (fields) => void warnings.push(fields) };
  const drain = async (ms: number): Promise<void> => {
    const offloader = new Offloader({ memberId: 'sk1', times: TIMES, livePeers: () => [], pressure: () => 0, log });
    offloader.touch(timeline);
    await offloader.drain(ms);
    await offloader.close();
  };
  armFailpoint('object-store.put', 'error(PERMISSION_DENIED)');
  await drain(NEVER_MS);
  armFailpoint('object-store.put', 'pause');
  await drain(100);
  assert.deepEqual(
    warnings.map(({ timelines }) => timelines),
    [1, 1],
  );
  assert.match(String(warnings[0]?.['err']), /object-store\.put/);
  assert.match(String(warnings[1]?.['err']), /no answer after 100 ms/);
  assert.equal(timeline.offloadedLsn, START);
  disarmFailpoints();
  await drain(NEVER_MS);
  assert.equal(await rig.tailEnd(), WAL.end);
});

test('a member that is about to stop follows no compute any more', async () => {
  await using rig = await Rig.start();
  const { quorum } = rig;
  const subscribe = { term: 1 as Term, host: '/nowhere', port: 5432, user: 'x', standbyName: 'sk1' };
  await quorum.member(0).client.subscribe(quorum.project, quorum.timeline, subscribe);
  await must(quorum.member(0).running, 'sk1').timelines.endStreams();
  await assert.rejects(quorum.member(0).client.subscribe(quorum.project, quorum.timeline, subscribe), (e: unknown) => isCode(e, 'CLOSED'));
});
