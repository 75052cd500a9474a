/** The tracker must not depend on how the bytes are cut. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type Lsn, WAL_SEGMENT_BYTES, XLOG_BLCKSZ, lsn } from '@lakebase/ids';
import fc from 'fast-check';
import { RecordBoundary } from './record-boundary.ts';
import { syntheticWal } from './testing/synthetic-wal.ts';

describe('record boundary', () => {
  test('every split of a short stretch gives the same boundaries', () => {
    const start = lsn(5 * WAL_SEGMENT_BYTES - 700);
    const wal = syntheticWal(start, 1_500, 1);
    for (let cut = 0; cut <= wal.bytes.length; cut++) {
      const b = new RecordBoundary(start, lsn(8));
      b.verifyCrc = true;
      b.push(wal.bytes.subarray(0, cut));
      const done = wal.records.filter((r) => r - start <= cut).length;
      assert.equal(b.flushRecordLsn, done === 0 ? start : wal.records[done - 1]);
      assert.equal(b.lastRecordLsn, done === 0 ? 8 : wal.starts[done - 1]);
      b.push(wal.bytes.subarray(cut));
      assert.equal(b.flushRecordLsn, wal.end);
      assert.equal(b.lastRecordLsn, wal.starts.at(-1));
    }
  });

  test('random pieces, page boundary starts, switches, and state kept through a buffer at segment starts', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(0, 8, 40, XLOG_BLCKSZ, XLOG_BLCKSZ * 3 + 800),
        fc.integer(),
        fc.array(fc.integer({ min: 1, max: 20_000 })),
        (back, seed, sizes) => {
          const start = lsn(2 * WAL_SEGMENT_BYTES - back) as Lsn;
          const wal = syntheticWal(start, 60_000, seed);
          let b = new RecordBoundary(start, lsn(8));
          let at = 0;
          for (const size of [...sizes, wal.bytes.length]) {
            let end = Math.min(at + size, wal.bytes.length);
            const toSegment = WAL_SEGMENT_BYTES - ((start + at) % WAL_SEGMENT_BYTES);
            if (end - at >= toSegment) end = at + toSegment;
            b.push(wal.bytes.subarray(at, end), lsn(start + at));
            at = end;
            if ((start + at) % WAL_SEGMENT_BYTES === 0) b = RecordBoundary.deserialize(b.serialize());
            const done = wal.records.filter((r) => r - start <= at).length;
            assert.equal(b.flushRecordLsn, done === 0 ? start : wal.records[done - 1]);
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  test('XLOG_SWITCH ends at the next segment', () => {
    const start = lsn(4 * WAL_SEGMENT_BYTES - 30_000);
    const wal = syntheticWal(start, 40_000, 5, 3);
    const b = new RecordBoundary(start, lsn(8));
    b.push(wal.bytes.subarray(0, 29_000));
    assert.ok(b.flushRecordLsn < 4 * WAL_SEGMENT_BYTES);
    b.push(wal.bytes.subarray(29_000, 30_000));
    assert.equal(b.flushRecordLsn, 4 * WAL_SEGMENT_BYTES);
  });

  test('a record abandoned by a crash and overwritten is not counted', () => {
    const start = lsn(XLOG_BLCKSZ - 64);
    const b = new RecordBoundary(start, lsn(8));
    const cut = Buffer.alloc(64);
    cut.writeUInt32LE(5_000, 0);
    b.push(cut);
    assert.equal(b.flushRecordLsn, start);
    const next = syntheticWal(lsn(XLOG_BLCKSZ), 200, 1);
    next.bytes.writeUInt16LE(0x0008, 2);
    b.push(next.bytes.subarray(0, 3));
    b.push(next.bytes.subarray(3));
    assert.equal(b.flushRecordLsn, next.end);
    assert.equal(b.lastRecordLsn, next.starts.at(-1));
  });

  test('garbage is refused and restore goes back', () => {
    const start = lsn(XLOG_BLCKSZ + 400);
    const b = new RecordBoundary(start, lsn(8));
    const before = b.clone();
    assert.throws(() => b.push(Buffer.alloc(64)), /no WAL record/);
    b.restore(before);
    b.push(syntheticWal(start, 500, 2).bytes);
    assert.ok(b.flushRecordLsn > start);
  });

  test('a wrong record checksum is found when asked for', () => {
    const start = lsn(XLOG_BLCKSZ + 400);
    const wal = syntheticWal(start, 500, 2);
    wal.bytes[40] = (wal.bytes[40] as number) ^ 1;
    const b = new RecordBoundary(start, lsn(8));
    b.verifyCrc = true;
    assert.throws(() => b.push(wal.bytes), /wrong checksum/);
  });
});
