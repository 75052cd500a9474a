import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isCode } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';
import { lsn } from '@lakebase/ids';
import fc from 'fast-check';
import { copyRecord, decodeRecord, newDecodedRecord } from './decode.ts';
import { recordCrc, recordCrcByView } from './record-crc.ts';
import { makeRecord } from './testing/wal-writer.ts';

/** Two blocks (one with a holed image and data, one of the same relation) and main data. */
function sample(): Buffer {
  const image = Buffer.alloc(8192 - 100, 0xaa);
  const block0 = Buffer.alloc(4 + 5 + 12 + 4);
  block0[0] = 0;
  block0[1] = 0x10 | 0x20;
  block0.writeUInt16LE(3, 2);
  block0.writeUInt16LE(image.length, 4);
  block0.writeUInt16LE(500, 6);
  block0[8] = 0x01 | 0x02;
  block0.writeUInt32LE(1663, 9);
  block0.writeUInt32LE(5, 13);
  block0.writeUInt32LE(16_384, 17);
  block0.writeUInt32LE(42, 21);
  const block2 = Buffer.alloc(8);
  block2[0] = 2;
  block2[1] = 0x80 | 0x40 | 2;
  block2.writeUInt32LE(43, 4);
  const origin = Buffer.from([253, 9, 0]);
  const topXid = Buffer.from([252, 1, 2, 0, 0]);
  const body = Buffer.concat([block0, block2, origin, topXid, Buffer.from([255, 4]), image, Buffer.from('abc'), Buffer.from('main')]);
  return makeRecord({ rmid: 10, info: 0x20, xid: 700, prev: lsn(0x1000), body });
}

test('decodes every kind of header', () => {
  const bytes = Buffer.concat([Buffer.alloc(5), sample()]);
  const r = decodeRecord(bytes, 5, bytes.length - 5, lsn(0x2000), lsn(0x5000), newDecodedRecord());
  assert.deepEqual([r.xid, r.rmid, r.info, r.prev, r.originId, r.topXid, r.maxBlockId], [700, 10, 0x20, 0x1000, 9, 513, 2]);
  const [b0, b1, b2] = r.blocks;
  assert.ok(b0 && b1 && b2);
  assert.deepEqual([b0.spc, b0.db, b0.rel, b0.fork, b0.block, b0.hasImage, b0.applyImage], [1663, 5, 16_384, 0, 42, true, true]);
  assert.deepEqual([b0.imageLength, b0.holeOffset, b0.holeLength, b0.dataLength], [8092, 500, 100, 3]);
  assert.equal(b1.inUse, false);
  assert.deepEqual([b2.rel, b2.fork, b2.block, b2.willInit, b2.hasImage, b2.dataLength], [16_384, 2, 43, true, false, 0]);
  assert.equal(r.buf.toString('latin1', b0.dataOffset, b0.dataOffset + 3), 'abc');
  assert.equal(r.buf.toString('latin1', r.mainOffset, r.mainOffset + r.mainLength), 'main');
  const copy = copyRecord(r);
  bytes.fill(0);
  assert.equal(copy.buf.toString('latin1', copy.mainOffset, copy.mainOffset + copy.mainLength), 'main');
});

test('hostile bytes give a record whose parts lie inside it, or CORRUPT', () => {
  const good = sample();
  const out = newDecodedRecord();
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 16, max: 90 }), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 6 }),
      fc.integer({ min: 0, max: 8140 }),
      (edits, cut) => {
        const bytes = Buffer.from(good.subarray(0, good.length - (cut > 8000 ? cut : 0)));
        bytes.writeUInt32LE(bytes.length, 0);
        for (const [at, value] of edits) if (at < bytes.length) bytes[at] = value;
        try {
          const r = decodeRecord(bytes, 0, bytes.length, lsn(8), lsn(16), out);
          let end = 24;
          for (let i = 0; i <= r.maxBlockId; i++) {
            const b = r.blocks[i];
            if (b?.inUse !== true) continue;
            assert.ok(b.imageOffset >= end && b.dataOffset === b.imageOffset + b.imageLength);
            assert.ok(b.holeOffset + b.holeLength <= 8192 || !b.hasImage);
            assert.ok(b.fork <= 3);
            end = b.dataOffset + b.dataLength;
          }
          assert.equal(r.mainOffset, end === 24 ? r.mainOffset : end);
          assert.equal(r.mainOffset + r.mainLength, bytes.length);
        } catch (error) {
          assert.ok(isCode(error, 'CORRUPT'), String(error));
        }
      },
    ),
    { numRuns: 3000 },
  );
});

test('truncation at every byte is CORRUPT', () => {
  const good = sample();
  for (let n = 0; n < 120; n++) {
    const bytes = Buffer.from(good.subarray(0, n));
    if (n >= 4) bytes.writeUInt32LE(n, 0);
    if (n === 24) continue; // an empty record is legal
    assert.throws(
      () => decodeRecord(bytes, 0, n, lsn(8), lsn(16), newDecodedRecord()),
      (e) => isCode(e, 'CORRUPT'),
      `${n} bytes`,
    );
  }
});

test('the record CRC equals the native one, at every length', () => {
  for (const n of [24, 25, 27, 28, 29, 31, 32, 33, 34, 36, 37, 44, 100, 511, 512, 513, 9000]) {
    const bytes = Buffer.alloc(n + 3);
    for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 167 + n) & 255;
    const expected = crc32c(bytes.subarray(3, 23), crc32c(bytes.subarray(27, 3 + n)));
    assert.equal(recordCrc(bytes, 3, n), expected);
    assert.equal(recordCrcByView(bytes, new DataView(bytes.buffer, bytes.byteOffset, bytes.length), 3, n), expected);
  }
});
