import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { formatLsn, type Lsn, lsn, WAL_SEGMENT_BYTES } from '@lakebase/ids';
import fc from 'fast-check';
import { RM_HEAP_ID, RM_XLOG_ID, XLOG_NOOP, XLOG_SWITCH } from './constants.ts';
import { endOfRecord } from './decode.ts';
import { encodePageHeader } from './synth.ts';
import { mainDataBody, makeRecord, WalWriter } from './testing/wal-writer.ts';
import { WalDecoder, type WalDecoderOptions } from './wal-reader.ts';

interface Seen {
  lsn: Lsn;
  endLsn: Lsn;
  bytes: string;
}

/** Reads `bytes` in chunks whose lengths `cut` gives, cyclically. */
function read(bytes: Buffer, options: WalDecoderOptions, cut: readonly number[] = [bytes.length]): Seen[] {
  const decoder = new WalDecoder(options);
  const seen: Seen[] = [];
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const n = Math.max(1, cut[i % cut.length] as number);
    decoder.push(Buffer.from(bytes.subarray(at, at + n)));
    at += n;
    for (let record = decoder.next(); record !== undefined; record = decoder.next()) {
      const copy = record.buf.subarray(record.offset, record.offset + record.length);
      seen.push({ lsn: record.lsn, endLsn: record.endLsn, bytes: copy.toString('hex') });
    }
  }
  return seen;
}

const expected = (writer: WalWriter): Seen[] =>
  writer.records.map((r) => ({ lsn: r.lsn, endLsn: r.endLsn, bytes: r.bytes.toString('hex') }));

const data = (n: number, fill = 7): Buffer => mainDataBody(Buffer.alloc(n, fill));

const dataLengths = fc.array(fc.oneof({ weight: 6, arbitrary: fc.integer({ min: 0, max: 300 }) }, fc.integer({ min: 300, max: 30_000 })), {
  minLength: 1,
  maxLength: 25,
});
const starts = fc.constantFrom(
  8192 * 3,
  8192 * 3 + 24,
  8192 * 5 - 8,
  8192 * 5 - 24,
  WAL_SEGMENT_BYTES,
  WAL_SEGMENT_BYTES - 8,
  WAL_SEGMENT_BYTES * 3 - 9000 + 8,
);

function write(start: number, lengths: readonly number[]): WalWriter {
  const writer = new WalWriter({ startLsn: lsn(start) });
  lengths.forEach((n, i) => writer.append({ rmid: RM_HEAP_ID, info: 0, xid: i, body: data(n, i) }));
  return writer;
}

describe('WalDecoder', () => {
  test('gives every record, in chunks of any size', () => {
    fc.assert(
      fc.property(
        starts,
        dataLengths,
        fc.array(fc.integer({ min: 1, max: 20_000 }), { minLength: 1, maxLength: 5 }),
        (start, lengths, cut) => {
          const writer = write(start, lengths);
          assert.deepEqual(read(writer.bytes(), { startLsn: lsn(start), major: 18, systemId: 7n }, cut), expected(writer));
        },
      ),
      { numRuns: 60 },
    );
  });

  test('splits at every byte of a page and segment boundary', () => {
    const start = WAL_SEGMENT_BYTES - 64;
    const writer = write(start, [40, 40, 10]);
    const bytes = writer.bytes();
    for (let at = 1; at < bytes.length; at++)
      assert.deepEqual(read(bytes, { startLsn: lsn(start), major: 18 }, [at, bytes.length]), expected(writer), `cut at ${at}`);
    assert.deepEqual(read(bytes, { startLsn: lsn(start), major: 18 }, [1]), expected(writer));
  });

  test('a flipped byte never changes a record: it is missing from there on', () => {
    fc.assert(
      fc.property(
        starts,
        dataLengths,
        fc.double({ min: 0, max: 0.999_999, noNaN: true }),
        fc.integer({ min: 1, max: 255 }),
        (start, lengths, where, flip) => {
          const writer = write(start, lengths);
          const bytes = Buffer.from(writer.bytes());
          const at = Math.floor(where * bytes.length);
          bytes[at] = (bytes[at] as number) ^ flip;
          const decoder = new WalDecoder({ startLsn: lsn(start), major: 18, systemId: 7n });
          decoder.push(bytes);
          const all = expected(writer);
          let n = 0;
          try {
            for (let record = decoder.next(); record !== undefined; record = decoder.next()) {
              const copy = record.buf.toString('hex', record.offset, record.offset + record.length);
              assert.equal(copy, all[n]?.bytes);
              assert.equal(record.lsn, all[n]?.lsn);
              n++;
            }
          } catch (error) {
            assert.ok(isCode(error, 'CORRUPT'), String(error));
            assert.throws(
              () => decoder.next(),
              (again) => again === error,
            );
          }
          assert.equal(decoder.endLsn, n === 0 ? start : all[n - 1]?.endLsn);
        },
      ),
      { numRuns: 150 },
    );
  });

  test('zeros after the last record end the WAL with an error that names the place', () => {
    const writer = write(8192 * 2, [100, 200]);
    const decoder = new WalDecoder({ startLsn: lsn(8192 * 2), major: 18 });
    decoder.push(Buffer.concat([writer.bytes(), Buffer.alloc(100)]));
    assert.ok(decoder.next() && decoder.next());
    assert.throws(() => decoder.next(), new RegExp(`${formatLsn(writer.endLsn)}: length is zero`));
    assert.equal(decoder.endLsn, writer.endLsn);
  });

  test('skips to the next segment after XLOG_SWITCH', () => {
    const start = WAL_SEGMENT_BYTES * 2 - 8192 * 2;
    const writer = new WalWriter({ startLsn: lsn(start) });
    writer.append({ rmid: RM_HEAP_ID, info: 0, body: data(10) });
    writer.append({ rmid: RM_XLOG_ID, info: XLOG_SWITCH, body: Buffer.alloc(0) });
    writer.append({ rmid: RM_HEAP_ID, info: 0, body: data(20) });
    assert.equal(writer.records[1]?.endLsn, WAL_SEGMENT_BYTES * 2);
    for (const cut of [100_000, 1000, 8192])
      assert.deepEqual(read(writer.bytes(), { startLsn: lsn(start), major: 18 }, [cut]), expected(writer));
  });

  test('starts at a page boundary inside a record by skipping the rest of it', () => {
    const writer = write(8192, [20_000, 30]);
    const bytes = writer.bytes();
    for (const page of [1, 2]) {
      const seen = read(bytes.subarray(8192 * page), { startLsn: lsn(8192 * (page + 1)), major: 18 }, [777]);
      assert.deepEqual(seen, expected(writer).slice(1));
    }
  });

  test('a record cut off by a crash is dropped when the next page overwrites it', () => {
    const writer = write(8192, [30, 9000]);
    const lost = writer.bytes().subarray(0, 8192);
    // The new life of the server begins on the page boundary; its first record links to the last whole one.
    const header = encodePageHeader(lsn(16_384), { major: 18, systemId: 7n });
    header.writeUInt16LE(0x08, 2);
    const record = makeRecord({ rmid: RM_XLOG_ID, info: 0xd0, prev: writer.records[0]?.lsn as Lsn, body: data(16) });
    const seen = read(Buffer.concat([lost, header, record]), { startLsn: lsn(8192), major: 18 }, [5000]);
    assert.equal(seen.length, 2);
    assert.equal(seen[1]?.lsn, 16_384 + 24);
    assert.equal(seen[1]?.bytes, record.toString('hex'));
  });

  test('refuses another system, another major, a recycled page and a broken chain', () => {
    const start = WAL_SEGMENT_BYTES * 4;
    const writer = write(start, [10]);
    const bytes = writer.bytes();
    assert.throws(() => read(bytes, { startLsn: lsn(start), major: 18, systemId: 8n }), /of system 7, expected 8/);
    assert.throws(() => read(bytes, { startLsn: lsn(start), major: 17 }), /magic D118, expected D116/);
    assert.throws(() => read(bytes, { startLsn: lsn(start + WAL_SEGMENT_BYTES), major: 18 }), /recycled/);
    assert.throws(() => read(bytes, { startLsn: lsn(start), major: 18, prevLsn: lsn(start - 64) }), /prev-link/);
    assert.equal(read(bytes, { startLsn: lsn(start), major: 18, prevLsn: lsn(start - 8) }).length, 1);
    assert.throws(
      () => new WalDecoder({ startLsn: lsn(1), major: 18 }),
      (e) => isCode(e, 'INVALID_ARGUMENT'),
    );
    assert.throws(
      () => new WalDecoder({ startLsn: lsn(0), major: 15 }),
      (e) => isCode(e, 'UNSUPPORTED'),
    );
  });

  test('a garbage length allocates nothing and is found out on the next page', () => {
    const writer = write(8192, [10]);
    const bytes = Buffer.concat([writer.bytes(), Buffer.alloc(8192 * 2)]);
    bytes.writeUInt32LE(1_000_000_000, writer.endLsn - 8192);
    assert.throws(
      () => read(bytes, { startLsn: lsn(8192), major: 18 }),
      (e) => isCode(e, 'CORRUPT'),
    );
  });

  test('endOfRecord agrees with the writer', () => {
    fc.assert(
      fc.property(starts, dataLengths, (start, lengths) => {
        for (const r of write(start, lengths).records) assert.equal(endOfRecord(r.lsn, r.bytes.length), r.endLsn);
      }),
      { numRuns: 40 },
    );
  });

  test('an empty record decodes', () => {
    const writer = new WalWriter({ startLsn: lsn(8192) });
    writer.append({ rmid: RM_XLOG_ID, info: XLOG_NOOP, body: Buffer.alloc(0) });
    assert.equal(read(writer.bytes(), { startLsn: lsn(8192), major: 18 }).length, 1);
  });
});
