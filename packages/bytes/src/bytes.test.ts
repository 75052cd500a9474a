import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { ByteReader, ByteWriter, DecodeError, crc32c } from './index.ts';

describe('reader and writer', () => {
  it('agree on every kind of value', () => {
    const safe = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
    fc.assert(
      fc.property(
        fc.nat(255),
        fc.nat(65535),
        fc.nat(0xffffffff),
        safe,
        fc.uint8Array({ maxLength: 50 }),
        fc.string({ maxLength: 20 }),
        (a, b, c, d, e, f) => {
          const text = f.replaceAll('\0', '');
          const bytes = new ByteWriter(1)
            .u8(a)
            .u16le(b)
            .u16be(b)
            .u32le(c)
            .u32be(c)
            .u64le(d)
            .u64be(d)
            .bytes(e)
            .cstring(text)
            .zeros(3)
            .finish();
          const r = new ByteReader(bytes);
          assert.deepEqual([r.u8(), r.u16le(), r.u16be(), r.u32le(), r.u32be(), r.u64le(), r.u64be()], [a, b, b, c, c, d, d]);
          assert.deepEqual(Uint8Array.from(r.bytes(e.length)), e);
          assert.equal(r.cstring(1_000), text);
          r.skip(3);
          assert.equal(r.remaining, 0);
        },
      ),
    );
  });
  it('never read past the limit', () => {
    for (const read of ['u8', 'u16le', 'u32be', 'u64be', 'lsnLe'] as const)
      assert.throws(() => new ByteReader(Buffer.alloc(0))[read](), DecodeError);
    assert.throws(() => new ByteReader(Buffer.alloc(8), 0, 4).u64be(), DecodeError);
    assert.throws(() => new ByteReader(Buffer.from('abc')).cstring(10), DecodeError);
    assert.throws(() => new ByteReader(Buffer.from('abcdef\0')).cstring(3), DecodeError);
    assert.throws(() => new ByteReader(Buffer.alloc(4)).bytes(-1), DecodeError);
    assert.throws(() => new ByteReader(Buffer.alloc(8, 0xff)).u64be(), DecodeError);
  });
});

describe('crc32c', () => {
  it('is Castagnoli, not zlib', () => {
    assert.equal(crc32c(Buffer.from('123456789')), 0xe3069283);
    assert.equal(crc32c(Buffer.alloc(32)), 0x8a9136aa);
  });
  it('continues from a seed', () => {
    fc.assert(fc.property(fc.uint8Array(), fc.uint8Array(), (a, b) => crc32c(b, crc32c(a)) === crc32c(Buffer.concat([a, b]))));
  });
});
