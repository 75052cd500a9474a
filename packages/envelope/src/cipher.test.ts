import assert from 'node:assert/strict';
import { it } from 'node:test';
import { frameNonce, plainProvider } from './index.ts';

const plainCipher = plainProvider.create().frames(Buffer.alloc(16));

it('the plain cipher opens what it sealed and nothing that moved or changed', () => {
  const plain = Buffer.from('a frame of bytes');
  const { bytes, tag } = plainCipher.seal(plain, frameNonce(7), Buffer.from('segment 1'));
  assert.deepEqual(plainCipher.open(bytes, frameNonce(7), tag, Buffer.from('segment 1')), plain);
  assert.throws(() => plainCipher.open(bytes, frameNonce(8), tag, Buffer.from('segment 1')), { code: 'CORRUPT' });
  assert.throws(() => plainCipher.open(bytes, frameNonce(7), tag, Buffer.from('segment 2')), { code: 'CORRUPT' });
  for (let i = 0; i < bytes.length; i++) {
    const bad = Buffer.from(bytes);
    bad[i] = (bad[i] ?? 0) ^ 1;
    assert.throws(() => plainCipher.open(bad, frameNonce(7), tag, Buffer.from('segment 1')), { code: 'CORRUPT' });
  }
});

it('an unknown algorithm is refused, never taken as plain', () => {
  assert.throws(() => plainProvider.restore(1, Buffer.alloc(0)), { code: 'UNSUPPORTED' });
});

it('nonces of different frames differ', () => {
  assert.notDeepEqual(frameNonce(0), frameNonce(1));
  assert.notDeepEqual(frameNonce(1), frameNonce(2 ** 32 + 1));
});
