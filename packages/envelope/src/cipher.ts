/** The cipher seam: how an object (layer, index version, WAL segment …) is sealed frame by frame. docs/formats/envelope.md
 *  Invariants: a nonce is used once under one frame key; a frame key belongs to one writer epoch of one object; associated data binds the
 *  object's identity, so a frame that was moved elsewhere does not open; nothing of a frame leaves before its tag was checked. */

export const NONCE_BYTES = 12;
export const TAG_BYTES = 16;
export const EPOCH_BYTES = 16;
/** Largest key reference a header holds. */
export const KEY_REFERENCE_BYTES_MAX = 512;
/** Integrity only; test builds only. */
export const CIPHER_PLAIN = 0;
export const CIPHER_AES_256_GCM = 1;

/** Seals and opens frames of one writer epoch. */
export interface FrameCipher {
  /** The stored bytes (as many as `plain`; the plain cipher returns `plain` itself) and the tag. */
  seal(plain: Buffer, nonce: Buffer, associatedData: Buffer): { bytes: Buffer; tag: Buffer };
  /** Throws CORRUPT when the tag does not match, KEY_REVOKED when the key was wiped. May return a view of `stored`. */
  open(stored: Buffer, nonce: Buffer, tag: Buffer, associatedData: Buffer): Buffer;
}

/** The key of one object. */
export interface ObjectKey {
  readonly algorithm: number;
  /** Stored in or beside the object: what its key is restored from. */
  readonly keyReference: Buffer;
  /** Cipher of one writer epoch ({@link EPOCH_BYTES}): a write-once object's id, or fresh random bytes at each opening for writing. */
  frames(epoch: Buffer): FrameCipher;
}

/** Keys for the objects of one project. Both calls are synchronous; they throw KEY_REVOKED while the project is locked and UNAVAILABLE
 *  when nothing is reserved (create) or the reference was not loaded (restore). */
export interface CipherProvider {
  /** A fresh key for a new object. */
  create(): ObjectKey;
  /** The key of an object that exists. Throws CORRUPT when the reference does not belong to it. */
  restore(algorithm: number, keyReference: Buffer): ObjectKey;
}

/** Nonce of frame `n`: 4 zero bytes, then n big-endian. */
export function frameNonce(n: number): Buffer {
  const nonce = Buffer.alloc(NONCE_BYTES);
  nonce.writeUInt32BE(Math.floor(n / 0x1_0000_0000), 4);
  nonce.writeUInt32BE((n % 0x1_0000_0000) >>> 0, 8);
  return nonce;
}
