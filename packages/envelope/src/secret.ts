/** Memory for key material. Invariants: it lies neither in Node's shared Buffer pool nor in V8's heap, which would move it (so wiping it wipes all there is
 *  of it), and it is zeroed by {@link wipe} when it is not needed any more. Strings cannot be wiped, so keys are never strings. */
import { hash, randomFillSync } from 'node:crypto';
import { LakebaseError } from '@lakebase/base';
import { copyOffHeap, offHeap } from '@lakebase/bytes';

export const KEY_BYTES = 32;

/** Zeroed memory of its own. */
export const secretBuffer = (bytes: number): Buffer => offHeap(bytes);

export const randomSecret = (bytes: number = KEY_BYTES): Buffer => randomFillSync(offHeap(bytes));

/** A copy in memory of its own. */
export const copySecret = (from: Uint8Array): Buffer => copyOffHeap(from);

export function wipe(...secrets: readonly (Buffer | undefined)[]): void {
  for (const secret of secrets) secret?.fill(0);
}

const BLOCK = 64;

/** HMAC-SHA256 for keys of at most one block. By one-shot hashes: Node's `createHmac` takes 15 µs to set up, this 3 (2026-11, noisy machine). */
function hmac(key: Buffer, message: Buffer): Buffer {
  const inner = offHeap(BLOCK + message.length).fill(0x36, 0, BLOCK);
  const outer = offHeap(BLOCK + 32).fill(0x5c, 0, BLOCK);
  for (let i = 0; i < key.length; i++) {
    inner[i] = (key[i] as number) ^ 0x36;
    outer[i] = (key[i] as number) ^ 0x5c;
  }
  message.copy(inner, BLOCK);
  const digest = hash('sha256', inner, 'buffer');
  digest.copy(outer, BLOCK);
  const result = hash('sha256', outer, 'buffer');
  wipe(inner, outer, digest);
  return result;
}

/** HKDF-SHA256 (RFC 5869), one block of output. Not by `hkdfSync`, which keeps a copy of the secret in a KeyObject until the garbage
 *  collector finds it. */
export function hkdf32(secret: Buffer, salt: Buffer, info: Buffer): Buffer {
  if (salt.length > BLOCK) throw new LakebaseError('INVALID_ARGUMENT', `a salt has at most ${BLOCK} bytes`);
  const extracted = hmac(salt, secret);
  const key = hmac(extracted, Buffer.concat([info, FIRST_BLOCK]));
  wipe(extracted);
  return key;
}

const FIRST_BLOCK = Buffer.from([1]);
