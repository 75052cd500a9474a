/** What a wrapped KEK is bound to, in the forms providers take: pairs (AWS), bytes (Google, Vault, local), a hash inside the plaintext
 *  (Azure). docs/formats/envelope.md, "KEK wrapped by a CMK". */
import { createHash, timingSafeEqual } from 'node:crypto';
import { LakebaseError } from '@lakebase/base';
import { copyOffHeap, offHeap } from '@lakebase/bytes';
import type { WrapContext } from './types.ts';

export const KEK_BYTES = 32;
const HASH_BYTES = 32;

/** Pairs in their fixed order; values are printable ASCII without spaces, so that the lines of `contextBytes` are unambiguous. */
export function contextPairs(context: WrapContext): Record<string, string> {
  const pairs = {
    'lakebase:project': context.project,
    'lakebase:account': context.account,
    'lakebase:purpose': context.purpose,
    'lakebase:kek-version': String(context.kekVersion),
  };
  for (const [name, value] of Object.entries(pairs))
    if (!/^[\x21-\x7e]{1,256}$/.test(value))
      throw new LakebaseError('INVALID_ARGUMENT', `${name} of a wrap context must be 1 to 256 printable characters without spaces`);
  if (!Number.isSafeInteger(context.kekVersion) || context.kekVersion < 1)
    throw new LakebaseError('INVALID_ARGUMENT', 'the KEK version of a wrap context starts at 1');
  return pairs;
}

/** `name=value`, a newline after each. */
export function contextBytes(context: WrapContext): Buffer {
  return Buffer.from(
    Object.entries(contextPairs(context))
      .map(([name, value]) => `${name}=${value}\n`)
      .join(''),
    'ascii',
  );
}

const contextHash = (context: WrapContext): Buffer => createHash('sha256').update(contextBytes(context)).digest();

/** `SHA-256(context) · KEK` for providers that bind no context themselves. The caller wipes it. */
export function packWithContext(plain: Buffer, context: WrapContext): Buffer {
  const packed = offHeap(HASH_BYTES + plain.length);
  packed.set(contextHash(context));
  packed.set(plain, HASH_BYTES);
  return packed;
}

/** The KEK out of `packed`, or null when the context is another; `packed` is wiped. */
export function unpackWithContext(packed: Buffer, context: WrapContext): Buffer | null {
  try {
    if (packed.length !== HASH_BYTES + KEK_BYTES) return null;
    if (!timingSafeEqual(packed.subarray(0, HASH_BYTES), contextHash(context))) return null;
    return copyOffHeap(packed.subarray(HASH_BYTES));
  } finally {
    packed.fill(0);
  }
}
