/** The "encryption switched off" build of the proof that scans find markers, and nothing else: integrity by CRC-32C in the tag's first bytes. */
import { LakebaseError } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';
import { CIPHER_PLAIN, type CipherProvider, type FrameCipher, type ObjectKey, TAG_BYTES } from './cipher.ts';

const plainTag = (bytes: Buffer, nonce: Buffer, associatedData: Buffer): Buffer => {
  const tag = Buffer.alloc(TAG_BYTES);
  tag.writeUInt32BE(crc32c(bytes, crc32c(associatedData, crc32c(nonce))), 0);
  return tag;
};

const frameCipher: FrameCipher = {
  seal: (plain, nonce, associatedData) => ({ bytes: plain, tag: plainTag(plain, nonce, associatedData) }),
  open: (stored, nonce, tag, associatedData) => {
    if (!plainTag(stored, nonce, associatedData).equals(tag)) throw new LakebaseError('CORRUPT', 'frame checksum is wrong');
    return stored;
  },
};

const plainKey: ObjectKey = { algorithm: CIPHER_PLAIN, keyReference: Buffer.alloc(0), frames: () => frameCipher };

export const plainProvider: CipherProvider = {
  create: () => plainKey,
  restore: (algorithm) => {
    if (algorithm !== CIPHER_PLAIN)
      throw new LakebaseError(
        'UNSUPPORTED',
        `the object is sealed with algorithm ${algorithm}, and encryption is switched off in this build`,
      );
    return plainKey;
  },
};
