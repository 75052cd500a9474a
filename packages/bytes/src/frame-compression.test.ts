import assert from 'node:assert/strict';
import { test } from 'node:test';
import { zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import fc from 'fast-check';
import { compressFrame, decompressFrame, dropFrameContexts } from './frame-compression.ts';

const content = fc.oneof(
  fc.uint8Array({ minLength: 1, maxLength: 4_000 }),
  fc
    .tuple(fc.string({ minLength: 1, maxLength: 40 }), fc.integer({ min: 1, max: 100_000 }))
    .map(([text, n]) => Buffer.alloc(n, `${text} `)),
);

test('frames are what node:zlib makes and reads of them, with contexts kept or dropped in between', () => {
  fc.assert(
    fc.property(fc.array(content, { minLength: 1, maxLength: 8 }), fc.boolean(), (list, drop) => {
      for (const bytes of list) {
        const plain = Buffer.from(bytes);
        const stored = compressFrame(plain);
        assert.ok(zstdDecompressSync(stored).equals(plain));
        assert.ok(decompressFrame(stored, plain.length).equals(plain));
        assert.ok(decompressFrame(zstdCompressSync(plain), plain.length).equals(plain));
        if (drop) dropFrameContexts();
      }
    }),
    { numRuns: 60 },
  );
});

test('a frame larger than any window', () => {
  const plain = Buffer.alloc(3 << 20);
  for (let i = 0; i < plain.length; i += 4) plain.writeUInt32LE(Math.imul(i, 2_654_435_761) >>> 0, i);
  assert.ok(decompressFrame(compressFrame(plain), plain.length).equals(plain));
});

test('what is damaged, cut short, or of another length is refused, and the next frame is read all the same', () => {
  const good = Buffer.alloc(20_000, 'some page ');
  const stored = compressFrame(good);
  const other = compressFrame(Buffer.alloc(20_000, 'another one '));
  for (let cut = 0; cut < stored.length; cut++) {
    assert.throws(() => decompressFrame(stored.subarray(0, cut), good.length));
    assert.ok(decompressFrame(other, 20_000).equals(Buffer.alloc(20_000, 'another one ')));
  }
  for (const length of [1, good.length - 1, good.length + 1]) {
    assert.throws(() => decompressFrame(stored, length));
    assert.ok(decompressFrame(stored, good.length).equals(good));
  }
  assert.throws(() => decompressFrame(Buffer.from('not a frame'), 11));
  assert.throws(() => decompressFrame(Buffer.alloc(0), 11));
  assert.ok(decompressFrame(stored, good.length).equals(good));
});

test('the answer is the caller’s own', () => {
  const stored = compressFrame(Buffer.alloc(5_000, 'x'));
  const first = decompressFrame(stored, 5_000);
  const second = decompressFrame(compressFrame(Buffer.alloc(5_000, 'y')), 5_000);
  assert.ok(first.equals(Buffer.alloc(5_000, 'x')) && second.equals(Buffer.alloc(5_000, 'y')));
  assert.ok(stored.equals(zstdCompressSync(Buffer.alloc(5_000, 'x'), { params: { 100: 1 } })));
});
