import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import { isCode } from '@lakebase/base';
import { lsn } from '@lakebase/ids';
import { decodeRecord, newDecodedRecord, pageLsn } from '@lakebase/pg-format';
import fc from 'fast-check';
import { redo } from './dispatch.ts';
import { lz4DecompressBlock } from './lz4.ts';
import { pglzDecompress } from './pglz.ts';
import { blockHeader, makeRecord } from './testing/record-maker.ts';

/** Greedy compressors, good enough to make every kind of token. */
function pglzCompress(plain: Buffer): Buffer {
  const out: number[] = [];
  let at = 0;
  while (at < plain.length) {
    const control = out.length;
    out.push(0);
    for (let bit = 0; bit < 8 && at < plain.length; bit++) {
      const match = longestMatch(plain, at, 4095, 273);
      if (match.length >= 3) {
        out[control] = (out[control] as number) | (1 << bit);
        const n = Math.min(match.length, 18) - 3;
        out.push(((match.distance >> 4) & 0xf0) | n, match.distance & 0xff);
        if (n === 15) out.push(match.length - 18);
        at += match.length;
      } else out.push(plain[at++] as number);
    }
  }
  return Buffer.from(out);
}

function lz4Compress(plain: Buffer): Buffer {
  const out: number[] = [];
  const more = (n: number): void => {
    let left = n - 15;
    for (; left >= 255; left -= 255) out.push(255);
    out.push(left);
  };
  let at = 0;
  let literals = 0;
  const flush = (match?: { length: number; distance: number }): void => {
    const m = match === undefined ? 0 : match.length - 4;
    out.push((Math.min(literals, 15) << 4) | Math.min(m, 15));
    if (literals >= 15) more(literals);
    for (let i = at - literals; i < at; i++) out.push(plain[i] as number);
    if (match !== undefined) {
      out.push(match.distance & 255, match.distance >> 8);
      if (m >= 15) more(m);
    }
    literals = 0;
  };
  while (at < plain.length) {
    const match = longestMatch(plain, at, 65_535, 100_000);
    if (match.length >= 4 && at + match.length < plain.length) {
      flush(match);
      at += match.length;
    } else {
      at++;
      literals++;
    }
  }
  flush();
  return Buffer.from(out);
}

function longestMatch(plain: Buffer, at: number, window: number, max: number): { length: number; distance: number } {
  let best = { length: 0, distance: 0 };
  for (let from = Math.max(0, at - Math.min(window, 300)); from < at; from++) {
    let n = 0;
    while (n < max && at + n < plain.length && plain[from + n] === plain[at + n]) n++;
    if (n > best.length) best = { length: n, distance: at - from };
  }
  return best;
}

const plainBytes = fc
  .array(fc.tuple(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 1, max: 400 })), { minLength: 1, maxLength: 20 })
  .map((runs) =>
    Buffer.concat(
      runs.map(([byte, n], i) =>
        i % 3 === 0 ? Buffer.from(Array.from({ length: Math.min(n, 60) }, (_, k) => (k * 37 + byte) & 255)) : Buffer.alloc(n, byte),
      ),
    ).subarray(0, 8192),
  );

describe('image decompression', () => {
  for (const [name, compress, decompress] of [
    ['pglz', pglzCompress, pglzDecompress],
    ['LZ4', lz4Compress, lz4DecompressBlock],
  ] as const) {
    test(`${name}: what was compressed comes back`, () => {
      fc.assert(
        fc.property(plainBytes, (plain) => {
          const packed = compress(plain);
          const out = Buffer.alloc(8192, 0xcc);
          assert.equal(decompress(packed, 0, packed.length, out, plain.length), true);
          assert.ok(out.subarray(0, plain.length).equals(plain));
          assert.equal(decompress(packed, 0, packed.length, out, plain.length + 1), false);
          // pglz clips a match at the end of the page, as Postgres does.
          if (plain.length > 1 && name === 'LZ4') assert.equal(decompress(packed, 0, packed.length, out, plain.length - 1), false);
        }),
        { numRuns: 40 },
      );
    });

    test(`${name}: any bytes end, and write nothing behind the page`, () => {
      fc.assert(
        fc.property(fc.uint8Array({ maxLength: 600 }), fc.integer({ min: 1, max: 8192 }), (bytes, length) => {
          const out = Buffer.alloc(8192, 0xcc);
          decompress(bytes, 0, bytes.length, out, length);
          assert.ok(out.subarray(length).every((b) => b === 0xcc));
        }),
        { numRuns: 1000 },
      );
    });
  }
});

const page = Buffer.alloc(8192);
for (let i = 0; i < 8192; i++) page[i] = i < 300 || i >= 700 ? (i >> 3) & 255 : 0;
page.writeUInt16LE(700, 14); // pd_upper, or the page counts as new
const withoutHole = Buffer.concat([page.subarray(0, 300), page.subarray(700)]);
const plainImage = Buffer.from(page);

const cases: readonly (readonly [string, number, Buffer, boolean])[] = [
  ['plain', 0, plainImage, false],
  ['plain with a hole', 0x01, withoutHole, false],
  ['pglz', 0x04, pglzCompress(plainImage), false],
  ['pglz with a hole', 0x05, pglzCompress(withoutHole), true],
  ['LZ4 with a hole', 0x09, lz4Compress(withoutHole), true],
  ['zstd', 0x10, zstdCompressSync(plainImage), false],
  ['zstd with a hole', 0x11, zstdCompressSync(withoutHole), true],
];

describe('full-page images', () => {
  for (const [name, flags, image, holeLength] of cases)
    test(name, () => {
      const body = Buffer.concat([
        blockHeader({
          id: 0,
          image: {
            length: image.length,
            holeOffset: (flags & 1) !== 0 ? 300 : 0,
            flags: flags | 0x02,
            ...(holeLength ? { holeLength: 400 } : {}),
          },
        }),
        image,
      ]);
      const bytes = makeRecord(0, 0xb0, body);
      const record = decodeRecord(bytes, 0, bytes.length, lsn(0x100), lsn(0x2000), newDecodedRecord());
      const out = Buffer.alloc(8192, 9);
      redo(out, record, 0, 18);
      assert.equal(pageLsn(out), 0x2000);
      assert.ok(out.subarray(8).equals(page.subarray(8)));
      if ((flags & 0x1c) === 0) return;
      bytes.fill(0xff, record.blocks[0]?.imageOffset);
      assert.throws(
        () => redo(out, record, 0, 18),
        (e) => isCode(e, 'CORRUPT'),
      );
    });
});
