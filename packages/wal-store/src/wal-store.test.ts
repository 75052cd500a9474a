/** Properties of the store against a plain model: a byte array and the set of positions that were synced. Damage is injected into real files. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, lsn } from '@lakebase/ids';
import fc from 'fast-check';
import { RecordBoundary } from './record-boundary.ts';
import { SEGMENT_HEADER_BYTES } from './segment-format.ts';
import { type SegmentIo, nodeIo } from './segment-io.ts';
import { WalStore } from './wal-store.ts';
import { syntheticWal } from './testing/synthetic-wal.ts';
import { testCiphers } from './testing/test-keys.ts';

const root = mkdtempSync(join(tmpdir(), 'wal-store-'));
after(() => rmSync(root, { recursive: true, force: true }));
const project = 'a'.repeat(32) as ProjectUid;
const timeline = 'b'.repeat(32) as TimelineId;
const ciphers = testCiphers(project);
let dirs = 0;
const newDir = (): string => join(root, `t${dirs++}`);

/** Starts near the end of a segment so that tests cross into the next. */
const START = lsn(3 * WAL_SEGMENT_BYTES - 40_000);
const wal = syntheticWal(START, 200_000, 7);

const open = (dir: string, more: { flushHint?: Lsn; ringBytes?: number; io?: SegmentIo } = {}): WalStore =>
  WalStore.open({ dir, project, timeline, ciphers, startLsn: START, prevRecordLsn: lsn(START - 120), ringBytes: 0, ...more });

const slice = (from: number, to: number): Buffer => wal.bytes.subarray(from - START, to - START);

function readAll(store: WalStore, from: Lsn = store.firstLsn): Buffer {
  const parts: Buffer[] = [];
  for (let at: number = from; at < store.flushLsn; ) {
    const part = store.read(lsn(at), 10_000);
    assert.ok(part.length > 0);
    parts.push(part);
    at += part.length;
  }
  return Buffer.concat(parts);
}

function fill(store: WalStore, to: number, step: number): void {
  for (let at: number = store.appendLsn; at < to; at += step) {
    store.append(lsn(at), slice(at, Math.min(to, at + step)));
    store.sync();
  }
}

function expectBoundaries(store: WalStore): void {
  const b = new RecordBoundary(START, lsn(START - 120));
  b.push(slice(START, store.flushLsn));
  assert.equal(store.flushRecordLsn, b.flushRecordLsn);
  assert.equal(store.lastRecordLsn, b.lastRecordLsn);
}

describe('wal store', () => {
  test('holds what was synced across reopen, segments and ring sizes', async () => {
    for (const ringBytes of [0, 4096, 1 << 20]) {
      const dir = newDir();
      let store = open(dir, { ringBytes });
      fill(store, START + 150_000, 7_777);
      assert.deepEqual(readAll(store), slice(START, START + 150_000));
      store.append(store.appendLsn, slice(store.appendLsn, store.appendLsn + 500));
      void store.close();
      store = open(dir, { ringBytes });
      assert.equal(store.damage, undefined);
      assert.equal(store.flushLsn, START + 150_000, 'unsynced bytes are gone');
      expectBoundaries(store);
      assert.deepEqual(readAll(store), slice(START, START + 150_000));
      await store.prepareNext();
      void store.close();
    }
  });

  test('any sequence of append, sync, abort, truncate, reopen equals the model', async () => {
    const step = fc.oneof(
      { weight: 6, arbitrary: fc.record({ op: fc.constant('append' as const), n: fc.integer({ min: 1, max: 9_000 }) }) },
      { weight: 5, arbitrary: fc.record({ op: fc.constant('sync' as const), n: fc.constant(0) }) },
      fc.record({ op: fc.constantFrom('abort' as const, 'reopen' as const), n: fc.constant(0) }),
      fc.record({ op: fc.constant('truncate' as const), n: fc.integer({ min: 0, max: 30_000 }) }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
        const dir = newDir();
        let store = open(dir, { ringBytes: 8192 });
        let synced: number = START;
        let end: number = START;
        for (const { op, n } of steps) {
          if (op === 'append') {
            const to = Math.min(end + n, wal.end);
            store.append(lsn(end), slice(end, to));
            end = to;
          } else if (op === 'sync') {
            assert.equal(store.sync(), end);
            synced = end;
          } else if (op === 'abort') {
            store.abort();
            end = synced;
          } else if (op === 'truncate') {
            synced = Math.max(START, synced - n);
            store.truncate(lsn(synced));
            end = synced;
          } else {
            await store.close();
            store = open(dir, { ringBytes: 8192 });
            // A segment boundary syncs by itself: everything up to it may have become durable.
            assert.ok(store.flushLsn === synced || (store.flushLsn === 3 * WAL_SEGMENT_BYTES && end >= store.flushLsn));
            synced = store.flushLsn;
            end = synced;
          }
          synced = Math.max(synced, store.flushLsn);
          assert.equal(store.flushLsn, synced);
          expectBoundaries(store);
        }
        assert.deepEqual(readAll(store), slice(START, synced));
        await store.close();
        rmSync(dir, { recursive: true, maxRetries: 5 });
      }),
      { numRuns: 40 },
    );
  });

  test('a file cut at any byte: a prefix of whole batches survives, the flush hint tells damage', () => {
    const dir = newDir();
    const store = open(dir);
    const batches: number[] = [START];
    for (let at: number = START; at < START + 30_000; at += 1_234) {
      store.append(lsn(at), slice(at, at + 1_234));
      batches.push(store.sync());
    }
    void store.close();
    const path = join(dir, readdirSync(dir)[0] as string);
    const whole = readFileSync(path);
    fc.assert(
      fc.property(fc.integer({ min: SEGMENT_HEADER_BYTES + 200, max: SEGMENT_HEADER_BYTES + 36_000 }), (cut) => {
        writeFileSync(path, whole);
        truncateSync(path, cut);
        let again = open(dir);
        assert.equal(again.damage, undefined, 'a torn tail alone is no damage');
        const end = again.flushLsn;
        assert.ok(batches.includes(end));
        assert.deepEqual(readAll(again), slice(START, end));
        fill(again, end + 3_000, 1_000);
        void again.close();
        again = open(dir);
        assert.deepEqual(readAll(again), slice(START, end + 3_000));
        void again.close();
        writeFileSync(path, whole);
        truncateSync(path, cut);
        again = open(dir, { flushHint: lsn(START + 29_000) });
        assert.equal(again.damage !== undefined, end < START + 29_000);
        void again.close();
      }),
      { numRuns: 40 },
    );
  });

  test('a flipped byte is a torn tail, damage or an error: never wrong bytes', () => {
    const dir = newDir();
    const store = open(dir);
    fill(store, START + 30_000, 1_234);
    void store.close();
    const path = join(dir, readdirSync(dir)[0] as string);
    const whole = readFileSync(path);
    fc.assert(
      fc.property(fc.integer({ min: 0, max: SEGMENT_HEADER_BYTES + 31_000 }), fc.integer({ min: 1, max: 255 }), (at, mask) => {
        for (const name of readdirSync(dir)) rmSync(join(dir, name), { recursive: true });
        const bytes = Buffer.from(whole);
        bytes[at] = (bytes[at] as number) ^ mask;
        writeFileSync(path, bytes);
        const again = open(dir, { flushHint: lsn(START + 30_000) });
        const harmless = again.damage === undefined;
        if (harmless) assert.equal(again.flushLsn, START + 30_000);
        else {
          assert.match(again.damage.path, /wal-store-/);
          assert.throws(() => again.append(again.appendLsn, slice(again.appendLsn, again.appendLsn + 10)), LakebaseError);
        }
        const served = again.damage?.lsn ?? again.flushLsn;
        for (let p: number = again.firstLsn; p < served; ) {
          const part = again.read(lsn(p), 10_000);
          assert.deepEqual(part, slice(p, p + part.length));
          p += part.length;
        }
        if (!harmless) {
          again.discardDamage();
          assert.equal(again.damage, undefined);
          fill(again, START + 30_000, 5_000);
          assert.deepEqual(readAll(again), slice(START, START + 30_000));
        }
        void again.close();
      }),
      { numRuns: 60 },
    );
  });

  test('damage inside an older segment is found when it is read', () => {
    const dir = newDir();
    const store = open(dir);
    fill(store, START + 100_000, 10_000);
    const path = join(dir, readdirSync(dir).sort()[0] as string);
    void store.close();
    const bytes = readFileSync(path);
    bytes[SEGMENT_HEADER_BYTES + 20_000] = (bytes[SEGMENT_HEADER_BYTES + 20_000] as number) ^ 1;
    writeFileSync(path, bytes);
    const again = open(dir);
    assert.equal(again.damage, undefined);
    assert.throws(() => again.read(START, 100_000), /0000000100000000000000/);
    assert.equal(again.damage, undefined, 'WAL goes on');
    fill(again, START + 120_000, 10_000);
    const [hole] = again.holes.keys();
    assert.equal(hole, 2);
    assert.throws(() => again.replaceHole(2, slice(START, 3 * WAL_SEGMENT_BYTES - 8)), /ends at/);
    const other = Buffer.from(slice(START, 3 * WAL_SEGMENT_BYTES));
    other[20_000] = (other[20_000] as number) ^ 1;
    assert.throws(() => again.replaceHole(2, other), /checksum/);
    assert.throws(() => again.read(START, 100_000), { code: 'CORRUPT' });
    again.replaceHole(2, slice(again.holeStart(2), 3 * WAL_SEGMENT_BYTES));
    assert.deepEqual(readAll(again), slice(START, START + 120_000));
    void again.close();
    const last = open(dir);
    assert.deepEqual(readAll(last), slice(START, START + 120_000));
    expectBoundaries(last);
    void last.close();
  });

  test('a missing segment is a hole, to be filled or left behind', () => {
    const dir = newDir();
    const big = syntheticWal(START, 2 * WAL_SEGMENT_BYTES, 3);
    const store = open(dir);
    for (let at = 0; at < big.bytes.length; at += 1 << 20) store.append(lsn(START + at), big.bytes.subarray(at, at + (1 << 20)));
    store.sync();
    void store.close();
    const names = readdirSync(dir).sort();
    assert.ok(names.length >= 3);
    rmSync(join(dir, names[1] as string));
    const again = open(dir);
    assert.match([...again.holes.values()][0]?.message ?? '', /missing/);
    const [number] = again.holes.keys() as Iterable<number>;
    const from = again.holeStart(number as number);
    assert.throws(() => again.read(from, 10), { code: 'CORRUPT' });
    again.replaceHole(number as number, big.bytes.subarray(from - START, from - START + WAL_SEGMENT_BYTES));
    assert.ok(again.read(from, 100_000).equals(big.bytes.subarray(from - START, from - START + 100_000)));
    void again.close();
    rmSync(join(dir, names[1] as string));
    const left = open(dir);
    left.leaveHole(number as number);
    assert.equal(left.firstLsn, from + WAL_SEGMENT_BYTES);
    assert.equal(left.holes.size, 0);
    assert.ok(left.read(left.firstLsn, 1_000).equals(big.bytes.subarray(left.firstLsn - START, left.firstLsn - START + 1_000)));
    void left.close();
    rmSync(dir, { recursive: true });
  });

  test('a full disk leaves no trace and writing resumes', () => {
    const dir = newDir();
    let full = false;
    const io: SegmentIo = {
      sync: (fd) => nodeIo.sync(fd),
      write: (fd, buffer, offset, length, position) => {
        if (full) {
          nodeIo.write(fd, buffer, offset, Math.floor(length / 2), position);
          throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
        }
        nodeIo.write(fd, buffer, offset, length, position);
      },
    };
    let store = open(dir, { io });
    fill(store, START + 5_000, 1_000);
    full = true;
    store.append(store.appendLsn, slice(START + 5_000, START + 9_000));
    assert.throws(
      () => store.sync(),
      (e: unknown) => e instanceof LakebaseError && e.code === 'RESOURCE_EXHAUSTED',
    );
    assert.equal(store.flushLsn, START + 5_000);
    assert.equal(store.appendLsn, START + 5_000);
    full = false;
    fill(store, START + 20_000, 3_000);
    void store.close();
    store = open(dir);
    assert.deepEqual(readAll(store), slice(START, START + 20_000));
    void store.close();
  });

  test('after a failed fdatasync nothing is written until the segment was rebuilt from what had been durable', () => {
    const dir = newDir();
    let fail = false;
    const io: SegmentIo = {
      write: (...args) => nodeIo.write(...args),
      sync: (fd) => {
        if (fail) throw Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' });
        nodeIo.sync(fd);
      },
    };
    const store = open(dir, { io });
    fill(store, START + 5_000, 1_000);
    fail = true;
    store.append(store.appendLsn, slice(START + 5_000, START + 9_000));
    assert.throws(() => store.sync(), /EIO/);
    fail = false;
    assert.equal(store.flushLsn, START + 5_000);
    assert.throws(() => store.append(store.appendLsn, slice(START + 5_000, START + 6_000)), /rebuilt/);
    fail = true;
    assert.throws(() => store.heal(), { code: 'CORRUPT' });
    assert.ok(store.broken);
    fail = false;
    store.heal();
    assert.equal(store.broken, false);
    assert.equal(store.flushLsn, START + 5_000);
    expectBoundaries(store);
    fill(store, START + 60_000, 3_000);
    assert.deepEqual(readAll(store), slice(START, START + 60_000));
    // In a segment that has no durable frame yet.
    store.append(store.appendLsn, slice(store.appendLsn, store.appendLsn + 100));
    void store.close();
    const again = open(dir);
    assert.deepEqual(readAll(again), slice(START, START + 60_000));
    expectBoundaries(again);
    void again.close();
  });

  test('a failed fdatasync, a full disk or an abort in the first write of a segment: it still begins with its context', () => {
    for (const how of ['abort', 'full', 'sync'] as const) {
      const dir = newDir();
      let fail = '';
      const io: SegmentIo = {
        write: (...args) => {
          if (fail === 'full') throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
          nodeIo.write(...args);
        },
        sync: (fd) => {
          if (fail === 'sync') throw Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' });
          nodeIo.sync(fd);
        },
      };
      const store = open(dir, { io });
      const edge = 3 * WAL_SEGMENT_BYTES;
      fill(store, edge, 10_000);
      // The first byte behind the edge makes the next segment.
      store.append(lsn(edge), slice(edge, edge + 100));
      fail = how;
      if (how === 'abort') store.abort();
      else assert.throws(() => store.sync());
      fail = '';
      store.heal();
      fill(store, edge + 20_000, 6_000);
      assert.deepEqual(readAll(store), slice(START, edge + 20_000));
      void store.close();
      const again = open(dir, { flushHint: lsn(edge + 20_000) });
      assert.equal(again.damage, undefined, how);
      assert.deepEqual(readAll(again), slice(START, edge + 20_000));
      void again.close();
    }
  });

  test('bytes that are not WAL are refused and leave no trace', () => {
    const store = open(newDir());
    fill(store, wal.records[5] as number, 1_000_000);
    assert.throws(() => store.append(store.appendLsn, Buffer.alloc(100)), /no WAL record/);
    assert.equal(store.appendLsn, wal.records[5]);
    fill(store, START + 20_000, 4_000);
    assert.throws(() => store.append(lsn(START), slice(START, START + 10)), /expected/);
    void store.close();
  });

  test('trim removes whole segments, restartAt begins elsewhere', () => {
    const dir = newDir();
    const store = open(dir);
    fill(store, START + 100_000, 20_000);
    store.trim(lsn(START + 90_000));
    assert.equal(store.firstLsn, 3 * WAL_SEGMENT_BYTES);
    const firstRecord = wal.records.findIndex((r) => r >= 3 * WAL_SEGMENT_BYTES);
    assert.deepEqual(store.firstRecord(), { lsn: wal.records[firstRecord], lastRecordLsn: wal.starts[firstRecord] });
    assert.throws(
      () => store.read(START, 10),
      (e: unknown) => e instanceof LakebaseError && e.code === 'NOT_FOUND',
    );
    const record = wal.records.find((r) => r > START + 60_000) as Lsn;
    store.restartAt(record, lsn(record - 100));
    assert.equal(store.firstLsn, record);
    fill(store, START + 100_000, 9_000);
    void store.close();
    const again = open(dir);
    assert.equal(again.firstLsn, record);
    assert.deepEqual(readAll(again), slice(record, START + 100_000));
    void again.close();
  });
});
