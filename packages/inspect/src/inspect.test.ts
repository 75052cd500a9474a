/** Every kind of file as it is, damaged and hostile: a report or one of our errors, quickly, and never a look at bytes that failed a check. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { after, before, test } from 'node:test';
import { encodeBootSet, encodeSuspendState } from '@lakebase/api';
import { LakebaseError, silentLogger } from '@lakebase/base';
import { BLCKSZ, type Lsn, type ProjectUid, type Term, type TimelineId, WAL_SEGMENT_BYTES, lsn } from '@lakebase/ids';
import { LocalKeys } from '@lakebase/keys';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_RECORD,
  KIND_REL_PAGE,
  OpenLayer,
  SeriesTable,
  flushLayer,
  sealObject,
  writeIndex,
} from '@lakebase/layers';
import { encodeControlFile } from '@lakebase/wal-quorum';
import { MemoryStore } from '@lakebase/object-store/testing';
import { WalArchive, WalStore, syntheticWal } from '@lakebase/wal-store';
import fc from 'fast-check';
import { bufferSource, fileSource } from './byte-source.ts';
import { identityOf, inspect } from './inspect.ts';
import { checkLayer } from './layer-check.ts';
import { reportPage } from './page-report.ts';
import { renderReport } from './report.ts';
import { BOOT_MAGIC, SUSPEND_MAGIC } from './sealed-report.ts';
import { checkSegment } from './segment-check.ts';

const project = 'a'.repeat(32) as ProjectUid;
const timeline = 'b'.repeat(32) as TimelineId;
const identity = { project, timeline };
const source = new LocalKeys();
const keys = source.project(project);
const dir = mkdtempSync(join(tmpdir(), 'lb-scrub-inspect-'));
after(() => rmSync(dir, { recursive: true, force: true }));

const samples = new Map<string, Buffer>();
let layerHash = '';

before(async () => {
  await keys.ready();
  const series = new SeriesTable();
  const open = new OpenLayer(series, 100 as Lsn);
  const id = series.intern(KIND_REL_PAGE, 1663, 5, 16_384, 0);
  for (let block = 0; block < 40; block++) open.put(id, block, ENTRY_IMAGE, ARG_STOP, (101 + block) as Lsn, Buffer.alloc(BLCKSZ, block));
  for (let block = 0; block < 40; block++) open.put(id, block, ENTRY_RECORD, 0, (200 + block) as Lsn, Buffer.alloc(48, 7));
  open.freeze(300 as Lsn);
  const descriptor = await flushLayer(open, { directory: dir, keys, ...identity, generation: 3, number: 9 });
  layerHash = descriptor.hash;
  samples.set(descriptor.name, readFileSync(join(dir, descriptor.name)));

  const suspend = keys.create();
  const state = { lsn: 300 as Lsn, files: [{ path: 'pg_stat/pgstat.stat', bytes: Buffer.alloc(90) }], pages: [] };
  samples.set('suspend-00000001', sealObject(SUSPEND_MAGIC, { ...identity, name: 'suspend-00000001' }, encodeSuspendState(state), suspend));
  const boot = encodeBootSet([{ tag: { spc: 1663, db: 5, rel: 1259, fork: 0 }, block: 3 }]);
  samples.set('bootset-00000002', sealObject(BOOT_MAGIC, { ...identity, name: 'bootset-00000002' }, boot, keys.create()));
  const index = {
    ...identity,
    version: 4,
    generation: 3,
    pgVersion: 18,
    systemId: '7000000000000000000',
    startLsn: 100,
    startPrevRecordLsn: 90,
    diskConsistentLsn: 300,
    prevRecordLsn: 280,
    nextLayerNumber: 10,
    layers: [descriptor],
    suspend: { file: 'suspend-00000001', key: suspend.keyReference.toString('base64'), lsn: 300 },
    bootSet: null,
    extra: { safekeepers: [] },
  };
  await writeIndex(join(dir, 'index'), index, keys);
  samples.set('index', readFileSync(join(dir, 'index')));

  const start = lsn(3 * WAL_SEGMENT_BYTES);
  const wal = syntheticWal(start, 200_000, 7);
  const walDir = join(dir, 'wal');
  const store = WalStore.open({ dir: walDir, ...identity, startLsn: start, prevRecordLsn: lsn(start - 120), ringBytes: 0, ciphers: keys });
  for (let at = 0; at < wal.bytes.length; at += 10_000) {
    store.append(lsn(start + at), wal.bytes.subarray(at, at + 10_000));
    store.sync();
  }
  await store.close();
  const segment = readdirSync(walDir).find((f) => f.endsWith('3')) as string;
  samples.set(segment, readFileSync(join(walDir, segment)).subarray(0, 300_000));
  const objects = new MemoryStore();
  const archive = new WalArchive({ store: objects, ...identity, startLsn: start, keys, scratchDir: dir, log: silentLogger });
  await archive.putTail(start, lsn(start + 150_000), (from, max) => wal.bytes.subarray(from - start, from - start + max));
  samples.set('tail', [...objects.objects.values()][0]?.bytes as Buffer);
  const control = encodeControlFile({
    ...identity,
    systemId: 7n,
    pgVersion: 18,
    term: 3 as Term,
    history: [{ term: 1 as Term, startLsn: start }],
    startLsn: start,
    prevRecordLsn: lsn(start - 120),
    commitLsn: start,
    flushHint: start,
    damage: null,
    offloadedLsn: start,
    pagesLsn: start,
    membership: null,
  });
  samples.set('control', control);
});

const show = (name: string, bytes: Buffer, withKeys: boolean) =>
  inspect(bufferSource(name, bytes), { identity, ...(withKeys ? { keys, whole: true } : {}) });

test('each kind with keys and without', async () => {
  assert.equal(samples.size, 7);
  for (const [name, bytes] of samples) {
    const closed = await show(name, bytes, false);
    const open = await show(name, bytes, true);
    assert.deepEqual(closed.damage, [], name);
    assert.deepEqual(open.damage, [], `${name}: ${JSON.stringify(open.damage)}`);
    if (name !== 'control') assert.match(closed.notes.join(), /no keys/);
    const text = renderReport(open).join('\n');
    if (name.startsWith('delta')) assert.match(text, /1663\/5\/16384 main block 39[\s\S]*all [0-9]+ frames open and hold 80 entries/);
    if (name === 'index') assert.match(text, /1 layers[\s\S]*delta-0000000000000064/);
    if (name.startsWith('0000')) assert.match(text, /WAL +0\/3000000 – 0\/30[\s\S]*context/);
    if (name === 'tail') assert.match(text, /WAL +0\/3000000 – 0\/30249F0 [\s\S]*all 1 frames open/);
    if (name.startsWith('suspend')) assert.match(text, /pg_stat\/pgstat\.stat +90/);
    if (name.startsWith('bootset')) assert.match(text, /base\/5\/1259 +1/);
    // Nothing secret: neither what wraps a key nor the key itself.
    assert.doesNotMatch(text, /[A-Za-z0-9+/]{80,}/);
  }
});

test('the entries of one frame, a bounded number of rows', async () => {
  const [name, bytes] = [...samples][0] as [string, Buffer];
  const report = await inspect(bufferSource(name, bytes), { keys, frame: 0, limit: 3 });
  assert.equal(report.tables[0]?.rows.length, 3);
  assert.ok((report.tables[0]?.omitted ?? 0) > 0);
  const none = await inspect(bufferSource(name, bytes), { keys, frame: 999 });
  assert.match(none.damage.join(), /no frame 999/);
});

test('a layer checked whole gives the hash that the index has', async () => {
  const [name] = [...samples][0] as [string, Buffer];
  let read = 0;
  const file = await fileSource(join(dir, name));
  const check = await checkLayer(file, { keys }, (bytes) => void (read += bytes));
  await file.close();
  assert.equal(check.sha256, layerHash);
  assert.equal(check.entries, 80);
  assert.equal(read, file.size);
});

test('under another name, timeline or project nothing opens', async () => {
  for (const [name, bytes] of samples) {
    if (name === 'control') continue;
    const renamed = /^0000/.test(name) ? undefined : await inspect(bufferSource(`${name}x`, bytes), { keys, identity });
    if (renamed !== undefined) assert.equal(renamed.damage.length, 1, name);
    const foreign = await inspect(bufferSource(name, bytes), { keys: source.project('c'.repeat(32)), identity }).then(
      (r) => r.damage.length,
      (error: unknown) => (error instanceof LakebaseError ? 1 : 0),
    );
    assert.equal(foreign, 1, name);
  }
});

test('a flipped byte in what is in use is found with keys, in every kind', async () => {
  for (const [name, bytes] of samples) {
    const used = /^0000/.test(name) ? (await checkSegment(bufferSource(name, bytes))).endOffset - 1 : bytes.length;
    for (let i = 0; i < 60; i++) {
      const at = Math.floor((i / 60) * used);
      // Behind a segment header's checksum stand zeros that nothing reads, and a frame's padding is not covered.
      if (/^0000/.test(name) && at < 4_096) continue;
      const copy = Buffer.from(bytes);
      copy[at] = (copy[at] as number) ^ 0x04;
      const found = await show(name, copy, true).then(
        (r) => r.damage.length > 0,
        (error: unknown) => error instanceof LakebaseError,
      );
      assert.ok(found || /^0000/.test(name), `${name} at ${at}`);
      if (!found) {
        // Only the last batch may have been torn.
        const check = await checkSegment(bufferSource(name, copy), { keys, referenceOf: (h) => h.keyReference });
        const whole = await checkSegment(bufferSource(name, bytes));
        assert.ok(check.endOffset === whole.endOffset || check.tornBytes > 0, `${name} at ${at}`);
      }
    }
  }
});

test('hostile bytes end in a report or in one of our errors', async () => {
  const list = [...samples];
  await fc.assert(
    fc.asyncProperty(
      fc.nat(list.length - 1),
      fc.array(fc.record({ at: fc.double({ min: 0, max: 0.999, noNaN: true }), byte: fc.nat(255) }), { maxLength: 6 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.boolean(),
      fc.boolean(),
      async (n, edits, cut, early, withKeys) => {
        const [name, bytes] = list[n] as [string, Buffer];
        const copy = Buffer.from(bytes.subarray(0, cut > 0.7 ? bytes.length : Math.floor(cut * bytes.length)));
        for (const { at, byte } of edits)
          if (copy.length > 0) copy[Math.floor(at * (early ? Math.min(copy.length, 200) : copy.length))] = byte;
        try {
          renderReport(await show(name, copy, withKeys));
        } catch (error) {
          assert.ok(error instanceof LakebaseError, `${name}: ${String((error as Error).stack)}`);
        }
      },
    ),
    { numRuns: 400 },
  );
});

test('pages of any content', () => {
  for (let i = 0; i < 300; i++) {
    const page = randomBytes(BLCKSZ);
    if (i % 3 !== 0) {
      page.writeUInt16LE(24 + (page.readUInt16LE(12) % 400) * 4, 12);
      page.writeUInt16LE(4_000, 14);
      page.writeUInt16LE(BLCKSZ, 16);
    }
    const entry = { kind: i % 7, arg: 3, lsn: 9 as Lsn, bytes: page.subarray(0, i % 60) };
    renderReport(reportPage('1663/5/16384 main block 0', page, 1_000 as Lsn, [{ layer: 'memory', entry }]));
  }
  const zeros = reportPage('p', Buffer.alloc(BLCKSZ), 8 as Lsn, []);
  assert.match(JSON.stringify(zeros), /a new page/);
  const future = Buffer.alloc(BLCKSZ);
  future.writeUInt32LE(5_000, 4);
  assert.match(reportPage('p', future, 8 as Lsn, []).damage.join(), /later than 0\/8/);
});

test('what a terminal would obey never reaches it; identities come from paths', () => {
  const lines = renderReport({ kind: 'k', name: 'a\u001b[2Jb', fields: [['x\n', '\u009b']], tables: [], notes: [], damage: [] });
  assert.deepEqual(lines, ['k a?[2Jb', '  x?  ?']);
  assert.deepEqual(identityOf(`/data/timelines/${project}/${timeline}/index`), identity);
  assert.deepEqual(identityOf(`projects/${project}/timelines/${timeline}/index-g00000001`), identity);
  assert.deepEqual(identityOf(`/sk1/${project}/${timeline}/wal/000000010000000000000003`), identity);
  assert.equal(identityOf(basename(`/tmp/${project}`)), undefined);
});
