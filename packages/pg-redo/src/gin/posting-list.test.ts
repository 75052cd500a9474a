import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isCode } from '@lakebase/base';
import fc from 'fast-check';
import { decodeSegment, encodeSegment, mergeItems, readItem, segmentSize } from './posting-list.ts';

const corrupt = (error: unknown): boolean => isCode(error, 'CORRUPT');

test('the bytes of a list: first TID as it is, then distances of 7 bits a byte, padded to two', () => {
  const out = Buffer.alloc(64, 0xff);
  // (1,2), (1,3), (2,1), (70000,1)
  const items = [
    [1, 2],
    [1, 3],
    [2, 1],
    [70_000, 1],
  ].map(([block, offset]) => (block as number) * 2048 + (offset as number));
  const size = encodeSegment(items, out);
  // 1; 2046 = 0x7e + 15·128; 143355904 = 0x00, 0x60, 0x2d, 0x44 in groups of seven
  assert.equal(out.toString('hex', 0, size), '000001000200' + '0700' + '01' + 'fe0f' + '80e0ad44' + '00');
  assert.deepEqual(decodeSegment(out, 0), items);
  assert.equal(segmentSize(out, 0, size), size);
  assert.equal(readItem(out, 0), 2050);
});

const tids = fc.uniqueArray(
  fc.tuple(fc.oneof(fc.nat(300), fc.integer({ min: 0, max: 0xffff_ffff })), fc.integer({ min: 1, max: 291 })).map(([b, o]) => b * 2048 + o),
  { minLength: 1, maxLength: 200 },
);

test('what is encoded decodes to itself', () => {
  const out = Buffer.alloc(8192);
  fc.assert(
    fc.property(tids, (unsorted) => {
      const items = [...unsorted].sort((a, b) => a - b);
      const size = encodeSegment(items, out);
      assert.equal(segmentSize(out, 0, size), size);
      assert.deepEqual(decodeSegment(out, 0), items);
    }),
    { numRuns: 300 },
  );
});

test('merging is the sorted union', () => {
  fc.assert(
    fc.property(tids, tids, (a, b) => {
      const sort = (items: Iterable<number>): number[] => [...items].sort((x, y) => x - y);
      assert.deepEqual(mergeItems(sort(a), sort(b)), sort(new Set([...a, ...b])));
    }),
    { numRuns: 200 },
  );
});

test('mangled lists are refused or decoded, never read past their end', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 0, maxLength: 60 }), (bytes) => {
      const buf = Buffer.from(bytes);
      try {
        segmentSize(buf, 0, buf.length);
        for (const item of decodeSegment(buf, 0)) assert.ok(item >= 0 && item < 2 ** 43);
      } catch (error) {
        assert.ok(corrupt(error), String(error));
      }
    }),
    { numRuns: 2000 },
  );
  assert.throws(() => segmentSize(Buffer.from('00000000010009000102', 'hex'), 0, 10), corrupt);
  assert.throws(() => decodeSegment(Buffer.from('000000000100020080800000', 'hex'), 0), corrupt, 'a distance without an end');
  assert.throws(() => decodeSegment(Buffer.from('ffffffffff07080081808080808001ff', 'hex'), 0), corrupt, 'a block beyond the last');
  assert.throws(() => encodeSegment([4100, 4100], Buffer.alloc(64)), corrupt);
  assert.throws(
    () =>
      encodeSegment(
        Array.from({ length: 100 }, (_, i) => 1 + i * 2 ** 36),
        Buffer.alloc(100),
      ),
    corrupt,
  );
});
