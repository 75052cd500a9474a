import assert from 'node:assert/strict';
import { createCipheriv, createSecretKey, randomBytes } from 'node:crypto';
import { describe, it } from 'node:test';
import { giveBack, wipeAndGiveBack } from './give-back.ts';

describe('memory given back', () => {
  it('is not counted any more, at once', () => {
    const key = createSecretKey(randomBytes(32));
    const plain = Buffer.alloc(1 << 20);
    const before = process.memoryUsage().arrayBuffers;
    for (let n = 0; n < 256; n++) {
      const nonce = Buffer.alloc(12);
      nonce.writeUInt32BE(n, 8);
      const sealed = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: 16 }).update(plain);
      assert.equal(sealed.length, plain.length);
      giveBack(sealed);
      assert.equal(sealed.length, 0);
    }
    assert.ok(process.memoryUsage().arrayBuffers - before < 32 << 20, 'a node that keeps what a cipher returned');
  });

  it('is never that of a view, which is only wiped', () => {
    const memory = Buffer.from(new ArrayBuffer(2_000)).fill(7);
    giveBack(memory.subarray(0, 1_999));
    assert.equal(memory.length, 2_000);
    wipeAndGiveBack(memory.subarray(0, 10));
    assert.deepEqual([...memory.subarray(8, 12)], [0, 0, 7, 7]);
    const pooled = Buffer.from('of the pool');
    const neighbour = Buffer.from('its neighbour');
    wipeAndGiveBack(pooled);
    assert.equal(neighbour.toString(), 'its neighbour');
    wipeAndGiveBack(memory);
    assert.equal(memory.length, 0);
  });

  it('may be little, or nothing', () => {
    const little = Buffer.from(new ArrayBuffer(100)).fill(1);
    wipeAndGiveBack(little);
    assert.ok(little.every((byte) => byte === 0));
    giveBack(Buffer.alloc(0));
  });
});
