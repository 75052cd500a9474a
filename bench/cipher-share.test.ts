import assert from 'node:assert/strict';
import { test } from 'node:test';
import { forEncryption } from './cipher-share.ts';

const NODE = '/some/where/bin/node';
const JITTED = '/tmp/x/jitted-1-2.so';
const frames = (...list: [string, string][]) => list.map(([symbol, of]) => ({ symbol, of }));

test('ciphers of services count, with everything they call', () => {
  const stack = frames(
    ['__memmove_avx512_unaligned_erms', '/lib/libc.so.6'],
    ['node::crypto::Decode<node::crypto::CipherBase>', NODE],
    ["JS:*'seal file:///x/packages/envelope/dist/aes.js:90:9", JITTED],
    ['JS:+#sealFrame file:///x/packages/layers/dist/layer-writer.js:1:1', JITTED],
  );
  assert.equal(forEncryption(stack), "JS:*'seal file:///x/packages/envelope/dist/aes.js:90:9");
  assert.notEqual(forEncryption(frames(['ossl_aes_gcm_encrypt_avx512', NODE])), undefined);
});

test('hashes of objects do not, nor what Postgres computes for a query', () => {
  assert.equal(
    forEncryption(
      frames(
        ['sha256_block_data_order_shaext', NODE],
        ['EVP_DigestUpdate', NODE],
        ['node::crypto::Hash::HashUpdate', NODE],
        ['JS:*update node:internal/crypto/hash:14:1', JITTED],
      ),
    ),
    undefined,
  );
  assert.equal(forEncryption(frames(['EVP_DigestInit_ex', '/lib/libcrypto.so.3'], ['md5_text', '/x/bin/postgres'])), undefined);
});

test("of Postgres the shim's XTS and locks count", () => {
  assert.equal(forEncryption(frames(['xts_vaes_encrypt', '/x/native/pgshim/build/pgshim.so'])), 'xts_vaes_encrypt');
  assert.equal(
    forEncryption(frames(['kmem_cache_alloc', '[kernel]'], ['fcntl_setlk', '[kernel]'], ['fcntl', '/lib/libc.so.6'])),
    'fcntl_setlk',
  );
  assert.equal(forEncryption(frames(['heap_getnextslot', '/x/bin/postgres'])), undefined);
});
