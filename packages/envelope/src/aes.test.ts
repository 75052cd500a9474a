import assert from 'node:assert/strict';
import { hkdfSync, randomBytes } from 'node:crypto';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  AesObjectKey,
  DEK_REFERENCE_BYTES,
  aesObjectKey,
  decodeDekReference,
  encodeDekReference,
  frameNonce,
  hkdf32,
  randomSecret,
  unwrapDek,
  wrapDek,
} from './index.ts';

const project = (n: number): string => n.toString(16).padStart(32, '0');
const EPOCH = Buffer.alloc(16, 7);

describe('references', () => {
  it('unwrap to the key they were made of, and only with everything as it was', () => {
    const kek = randomSecret();
    const other = randomSecret();
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 32, maxLength: 32 }),
        fc.stringMatching(/^[a-z0-9-]{1,40}$/),
        fc.nat(),
        fc.integer({ min: 1, max: 0xffffffff }),
        (bytes, account, p, version) => {
          const dek = Buffer.from(bytes);
          const reference = wrapDek(kek, version, account, project(p), dek);
          assert.equal(reference.length, DEK_REFERENCE_BYTES);
          assert.deepEqual(unwrapDek(kek, account, project(p), reference), dek);
          assert.deepEqual(encodeDekReference(decodeDekReference(reference)), reference);
          assert.throws(() => unwrapDek(other, account, project(p), reference), { code: 'CORRUPT' });
          assert.throws(() => unwrapDek(kek, `${account}x`, project(p), reference), { code: 'CORRUPT' });
          assert.throws(() => unwrapDek(kek, account, project(p + 1), reference), { code: 'CORRUPT' });
        },
      ),
      { numRuns: 100 },
    );
  });

  it('every flipped bit, every truncation and every splice of two is refused', () => {
    const kek = randomSecret();
    const a = wrapDek(kek, 3, 'acc', project(1), randomSecret());
    const b = wrapDek(kek, 3, 'acc', project(1), randomSecret());
    for (let bit = 0; bit < a.length * 8; bit++) {
      const bad = Buffer.from(a);
      bad[bit >> 3] = (bad[bit >> 3] as number) ^ (1 << (bit & 7));
      assert.throws(() => unwrapDek(kek, 'acc', project(1), bad), { name: 'LakebaseError' });
    }
    for (let n = 0; n < a.length; n++) assert.throws(() => unwrapDek(kek, 'acc', project(1), a.subarray(0, n)), { code: 'CORRUPT' });
    assert.throws(() => unwrapDek(kek, 'acc', project(1), Buffer.concat([a, Buffer.alloc(1)])), { code: 'CORRUPT' });
    for (let cut = 6; cut < a.length; cut++) {
      const spliced = Buffer.concat([a.subarray(0, cut), b.subarray(cut)]);
      if (!spliced.equals(a) && !spliced.equals(b)) assert.throws(() => unwrapDek(kek, 'acc', project(1), spliced), { code: 'CORRUPT' });
    }
  });
});

describe('frames', () => {
  const make = (): AesObjectKey => {
    const dek = randomSecret();
    return aesObjectKey(dek, wrapDek(randomSecret(), 1, 'acc', project(1), dek));
  };

  it('open what they sealed, and nothing that moved, changed or was cut', () => {
    const [key, second] = [make(), make()];
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(), fc.uint8Array({ maxLength: 40 }), fc.nat(), (bytes, n, data, at) => {
        const [plain, aad] = [Buffer.from(bytes), Buffer.from(data)];
        const cipher = key.frames(EPOCH);
        const { bytes: stored, tag } = cipher.seal(plain, frameNonce(n), aad);
        assert.equal(stored.length, plain.length);
        assert.deepEqual(cipher.open(stored, frameNonce(n), tag, aad), plain);
        const corrupt = { code: 'CORRUPT' };
        assert.throws(() => cipher.open(stored, frameNonce(n + 1), tag, aad), corrupt);
        assert.throws(() => cipher.open(stored, frameNonce(n), tag, Buffer.concat([aad, Buffer.alloc(1)])), corrupt);
        assert.throws(() => key.frames(Buffer.alloc(16, 8)).open(stored, frameNonce(n), tag, aad), corrupt, 'another epoch');
        assert.throws(() => second.frames(EPOCH).open(stored, frameNonce(n), tag, aad), corrupt, 'another object');
        assert.throws(() => cipher.open(stored, frameNonce(n), tag.subarray(0, 12), aad), corrupt, 'a short tag');
        const badTag = Buffer.from(tag);
        badTag[at % 16] = (badTag[at % 16] as number) ^ (1 << (at % 8));
        assert.throws(() => cipher.open(stored, frameNonce(n), badTag, aad), corrupt);
        if (stored.length > 0) {
          const bad = Buffer.from(stored);
          bad[at % bad.length] = (bad[at % bad.length] as number) ^ (1 << (at % 8));
          assert.throws(() => cipher.open(bad, frameNonce(n), tag, aad), corrupt);
          assert.throws(() => cipher.open(stored.subarray(1), frameNonce(n), tag, aad), corrupt);
        }
      }),
      { numRuns: 60 },
    );
  });

  it('a key that is not the committed one is refused before a frame is touched', () => {
    const dek = randomSecret();
    const reference = wrapDek(randomSecret(), 1, 'acc', project(1), dek);
    assert.throws(() => aesObjectKey(randomSecret(), reference), { code: 'CORRUPT', message: /commitment/ });
    assert.throws(() => aesObjectKey(randomBytes(16), reference), { code: 'INVALID_ARGUMENT' });
  });

  it('wiping zeroes the buffer and ends every cipher made from it, also evicted ones', () => {
    const dek = randomSecret();
    const key = aesObjectKey(dek, wrapDek(randomSecret(), 1, 'acc', project(1), dek));
    const ciphers = Array.from({ length: 100 }, (_, i) => key.frames(Buffer.alloc(16, i)));
    const first = ciphers[0] as (typeof ciphers)[0];
    const sealed = first.seal(Buffer.from('x'), frameNonce(0), EPOCH); // evicted, derives again
    assert.deepEqual(key.frames(Buffer.alloc(16, 0)).open(sealed.bytes, frameNonce(0), sealed.tag, EPOCH), Buffer.from('x'));
    key.wipe();
    assert.deepEqual(dek, Buffer.alloc(32));
    for (const cipher of ciphers) assert.throws(() => cipher.seal(Buffer.from('x'), frameNonce(1), EPOCH), { code: 'KEY_REVOKED' });
    assert.throws(() => key.frames(EPOCH), { code: 'KEY_REVOKED' });
  });
});

it('HKDF is the one of RFC 5869', () => {
  const ikm = Buffer.alloc(22, 0x0b);
  const none = Buffer.alloc(0);
  assert.equal(hkdf32(ikm, none, none).toString('hex'), '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d');
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1 }), fc.uint8Array({ maxLength: 64 }), fc.uint8Array(), (secret, salt, info) => {
      assert.deepEqual(
        hkdf32(Buffer.from(secret), Buffer.from(salt), Buffer.from(info)),
        Buffer.from(hkdfSync('sha256', secret, salt, info, 32)),
      );
    }),
  );
});
