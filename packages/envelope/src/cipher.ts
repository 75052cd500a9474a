/** One cipher per object (segment, layer, index). `seal` and `open` work on one frame.
 *  Invariants: a nonce is never used twice under one key (it is the frame's number in its object); associated data binds the object's
 *  identity, so a frame moved to another place does not open. The plain cipher only checks integrity (CRC-32C in the tag's first bytes). */
import { LakebaseError } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';

export const NONCE_BYTES = 12;
export const TAG_BYTES = 16;
/** Largest wrapped key reference a header holds. */
export const KEY_REFERENCE_BYTES_MAX = 512;
export const CIPHER_PLAIN = 0;
export const CIPHER_AES_256_GCM = 1;

export interface FrameCipher {
  readonly algorithm: number;
  /** Wrapped DEK and the key that wraps it; empty for the plain cipher. */
  readonly keyReference: Buffer;
  /** Returns the stored bytes (same length as `plain`; may alias it) and the tag. */
  seal(plain: Buffer, nonce: Buffer, associatedData: Buffer): { bytes: Buffer; tag: Buffer };
  /** Throws CORRUPT when the tag does not match. May return a view of `stored`. */
  open(stored: Buffer, nonce: Buffer, tag: Buffer, associatedData: Buffer): Buffer;
}

export interface CipherProvider {
  /** A cipher with a fresh key for a new object of this project. */
  create(project: string): FrameCipher;
  /** The cipher that opens an object with this header. */
  restore(project: string, algorithm: number, keyReference: Buffer): FrameCipher;
}

const plainTag = (bytes: Buffer, nonce: Buffer, associatedData: Buffer): Buffer => {
  const tag = Buffer.alloc(TAG_BYTES);
  tag.writeUInt32BE(crc32c(bytes, crc32c(associatedData, crc32c(nonce))), 0);
  return tag;
};

export const plainCipher: FrameCipher = {
  algorithm: CIPHER_PLAIN,
  keyReference: Buffer.alloc(0),
  seal: (plain, nonce, associatedData) => ({ bytes: plain, tag: plainTag(plain, nonce, associatedData) }),
  open: (stored, nonce, tag, associatedData) => {
    if (!plainTag(stored, nonce, associatedData).equals(tag)) throw new LakebaseError('CORRUPT', 'frame checksum is wrong');
    return stored;
  },
};

export const plainProvider: CipherProvider = {
  create: () => plainCipher,
  restore: (_project, algorithm) => {
    if (algorithm !== CIPHER_PLAIN) throw new LakebaseError('UNSUPPORTED', `cipher algorithm ${algorithm} is not known to this version`);
    return plainCipher;
  },
};

/** Nonce of frame `n`: 4 zero bytes, then n big-endian. */
export function frameNonce(n: number): Buffer {
  const nonce = Buffer.alloc(NONCE_BYTES);
  nonce.writeUInt32BE(Math.floor(n / 0x1_0000_0000), 4);
  nonce.writeUInt32BE((n % 0x1_0000_0000) >>> 0, 8);
  return nonce;
}
