import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isCode } from '@lakebase/base';
import { lsn, WAL_SEGMENT_BYTES } from '@lakebase/ids';
import fc from 'fast-check';
import { type CheckPoint, decodeCheckPoint, encodeCheckPoint } from './checkpoint.ts';
import { synthesiseStart } from './synth.ts';
import { WalDecoder } from './wal-reader.ts';

const checkpoint: CheckPoint = {
  redo: lsn(1),
  thisTimeline: 1,
  prevTimeline: 1,
  fullPageWrites: false,
  walLevel: 1,
  nextFullXid: 3 * 2 ** 32 + 900,
  nextOid: 24_576,
  nextMulti: 3,
  nextMultiOffset: 9,
  oldestXid: 730,
  oldestXidDb: 1,
  oldestMulti: 1,
  oldestMultiDb: 5,
  time: 1_790_000_000,
  oldestCommitTsXid: 0,
  newestCommitTsXid: 0,
  oldestActiveXid: 0,
};

test('a checkpoint survives its codec', () => {
  assert.deepEqual(decodeCheckPoint(encodeCheckPoint(checkpoint)), checkpoint);
  assert.throws(
    () => decodeCheckPoint(Buffer.alloc(87)),
    (e) => isCode(e, 'CORRUPT'),
  );
});

test('what is synthesised at X reads back from X, and the files say the same', () => {
  const special = fc.constantFrom(0, 24, 40, 8192 - 8, 8192 - 24, 8192 - 120, 4096);
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 5000 }),
      fc.oneof(
        special,
        fc.integer({ min: 5, max: 1023 }).map((n) => n * 8),
      ),
      (page, offset) => {
        const x = page * 8192 + offset;
        if (offset > 0 && offset < (x % WAL_SEGMENT_BYTES < 8192 ? 40 : 24)) return;
        const start = synthesiseStart({ lsn: lsn(x), prevRecordLsn: lsn(x - 64), systemId: 99n, major: 18, checkpoint });
        const decoder = new WalDecoder({ startLsn: lsn(x), major: 18, systemId: 99n, prevLsn: lsn(x - 64) });
        decoder.push(start.walFromLsn);
        const record = decoder.next();
        assert.ok(record);
        assert.equal(record.lsn, start.recordLsn);
        assert.equal(record.endLsn, start.endLsn);
        assert.deepEqual(decodeCheckPoint(record.buf, record.mainOffset), { ...checkpoint, redo: start.recordLsn });
        // The same from the files, as Postgres reads them: whole segments from the first page on.
        const files = Buffer.alloc(WAL_SEGMENT_BYTES * 2);
        const base = start.segments[0]?.startLsn ?? 0;
        for (const segment of start.segments) {
          assert.ok(
            segment.pieces.some((piece) => piece.offset === 0 && piece.bytes.length === 40),
            'every segment begins with its long header',
          );
          for (const piece of segment.pieces) piece.bytes.copy(files, segment.startLsn - base + piece.offset);
        }
        const page0 = start.recordLsn - (start.recordLsn % 8192);
        const again = new WalDecoder({ startLsn: start.recordLsn, major: 18 });
        again.push(files.subarray(start.recordLsn - base));
        assert.equal(again.next()?.endLsn, start.endLsn);
        assert.notEqual(files.readUInt16LE(page0 - base), 0, 'the page of X has a header');
      },
    ),
    { numRuns: 300 },
  );
});

test('refuses positions where no record can end', () => {
  for (const at of [8192 + 8, WAL_SEGMENT_BYTES + 24, 8192 * 2 + 4])
    assert.throws(
      () => synthesiseStart({ lsn: lsn(at), prevRecordLsn: lsn(64), systemId: 1n, major: 18, checkpoint }),
      (e) => isCode(e, 'INVALID_ARGUMENT'),
    );
});
