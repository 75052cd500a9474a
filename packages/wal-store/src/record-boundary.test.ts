/** The tracker must not depend on how the bytes are cut. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LakebaseError } from '@lakebase/base';
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

  test('hostile WAL (B11): what cannot be WAL of this place is refused where it is, whatever the pieces', () => {
    const start = lsn(2 * WAL_SEGMENT_BYTES - 3 * XLOG_BLCKSZ);
    const wal = syntheticWal(start, 8 * XLOG_BLCKSZ, 9);
    const edge = 2 * WAL_SEGMENT_BYTES - start;
    const record = (n: number): number => (wal.starts[n] as number) - start;
    // A record whose header is not cut by a page's end.
    const whole = wal.starts.findIndex((s, i) => i > 3 && s % XLOG_BLCKSZ < XLOG_BLCKSZ - 24 && s > start + XLOG_BLCKSZ);
    const cases: [string, (bytes: Buffer) => void, RegExp][] = [
      ['a page that does not begin as one', (b) => b.writeUInt16LE(0x1234, XLOG_BLCKSZ), /does not begin as one/],
      ['a page of zeros', (b) => b.fill(0, XLOG_BLCKSZ, 2 * XLOG_BLCKSZ), /does not begin as one/],
      ['another Postgres timeline', (b) => b.writeUInt32LE(2, XLOG_BLCKSZ + 4), /Postgres timeline 2/],
      ['a page from elsewhere', (b) => b.writeUInt32LE(b.readUInt32LE(XLOG_BLCKSZ + 8) + XLOG_BLCKSZ, XLOG_BLCKSZ + 8), /another page/],
      ['a page from another 4 GB', (b) => b.writeUInt32LE(1, XLOG_BLCKSZ + 12), /another page/],
      ['a long header in the middle', (b) => b.writeUInt16LE(b.readUInt16LE(XLOG_BLCKSZ + 2) | 2, XLOG_BLCKSZ + 2), /wrong form/],
      ['a short header at the edge', (b) => b.writeUInt16LE(b.readUInt16LE(edge + 2) & ~2, edge + 2), /wrong form/],
      ['segments of another size', (b) => b.writeUInt32LE(1 << 20, edge + 32), /another size/],
      ['a length of nothing', (b) => b.writeUInt32LE(0, record(whole)), /its length would be 0/],
      ['a length that lies', (b) => b.writeUInt32LE(0xffff_ffff, record(whole)), /its length would be/],
      ['a record that follows another one', (b) => b.writeUInt32LE(8, record(whole) + 8), /does not follow/],
      [
        'a length that is one record too long',
        (b) => b.writeUInt32LE(b.readUInt32LE(record(whole)) + 8, record(whole)),
        /no WAL record|does not follow/,
      ],
    ];
    for (const [what, spoil, expected] of cases) {
      const bytes = Buffer.from(wal.bytes);
      spoil(bytes);
      for (const size of [1, 7, 4096, bytes.length]) {
        const b = new RecordBoundary(start, lsn(start - 120));
        const push = (): void => {
          for (let at = 0; at < bytes.length; at += size) b.push(bytes.subarray(at, at + size));
        };
        assert.throws(push, (e: unknown) => {
          assert.ok(e instanceof LakebaseError && e.code === 'CORRUPT' && expected.test(e.message), `${what}: ${String(e)}`);
          return true;
        });
        assert.ok(b.flushRecordLsn <= wal.end, what);
      }
    }
  });

  test('random damage never makes it lose its place', () => {
    const start = lsn(2 * WAL_SEGMENT_BYTES - 3 * XLOG_BLCKSZ);
    const wal = syntheticWal(start, 6 * XLOG_BLCKSZ, 11);
    fc.assert(
      fc.property(fc.integer({ min: 0, max: wal.bytes.length - 1 }), fc.integer({ min: 1, max: 255 }), (at, mask) => {
        const bytes = Buffer.from(wal.bytes);
        bytes[at] = (bytes[at] as number) ^ mask;
        const b = new RecordBoundary(start, lsn(start - 120));
        try {
          b.push(bytes);
        } catch (error) {
          assert.ok(error instanceof LakebaseError && error.code === 'CORRUPT', String(error));
          return;
        }
        assert.equal(b.position, wal.end);
      }),
      { numRuns: 300 },
    );
  });
});
