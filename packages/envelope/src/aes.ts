/** AES-256-GCM with key commitment. Invariants: the commitment is compared, in constant time, before a key is used at all; after
 *  {@link AesObjectKey.wipe} every cipher made from the key throws KEY_REVOKED, and no copy of the key or of a frame key is left in it. */
import { type KeyObject, createCipheriv, createDecipheriv, createSecretKey, timingSafeEqual } from 'node:crypto';
import { LakebaseError } from '@lakebase/base';
import { CIPHER_AES_256_GCM, EPOCH_BYTES, type FrameCipher, NONCE_BYTES, type ObjectKey, TAG_BYTES } from './cipher.ts';
import { commitmentOf, decodeDekReference } from './dek-reference.ts';
import { KEY_BYTES, hkdf32, wipe } from './secret.ts';

const FRAME_INFO = Buffer.from('lakebase frame v1');
const OPTIONS = { authTagLength: TAG_BYTES };
/** Ciphers kept per object: a WAL segment has one epoch for each time it was opened for writing. */
const EPOCHS_MAX = 64;

/** Takes `dek` over (no copy): wiping that buffer ends the key. Throws CORRUPT when the reference does not commit to it. */
export function aesObjectKey(dek: Buffer, reference: Buffer): AesObjectKey {
  if (dek.length !== KEY_BYTES) throw new LakebaseError('INVALID_ARGUMENT', `a data key has ${KEY_BYTES} bytes, not ${dek.length}`);
  if (!timingSafeEqual(commitmentOf(dek), decodeDekReference(reference).commitment))
    throw new LakebaseError('CORRUPT', 'the data key is not the one the object was sealed with: its commitment differs');
  return new AesObjectKey(dek, reference);
}

export class AesObjectKey implements ObjectKey {
  readonly algorithm = CIPHER_AES_256_GCM;
  readonly keyReference: Buffer;
  #dek: Buffer | undefined;
  readonly #byEpoch = new Map<string, AesFrameCipher>();

  constructor(dek: Buffer, reference: Buffer) {
    this.#dek = dek;
    this.keyReference = Buffer.from(reference);
  }

  frames(epoch: Buffer): FrameCipher {
    if (epoch.length !== EPOCH_BYTES) throw new LakebaseError('CORRUPT', `a writer epoch has ${EPOCH_BYTES} bytes, not ${epoch.length}`);
    const name = epoch.toString('latin1');
    let cipher = this.#byEpoch.get(name);
    if (cipher === undefined) {
      if (this.#byEpoch.size >= EPOCHS_MAX) {
        const [oldest, dropped] = this.#byEpoch.entries().next().value as [string, AesFrameCipher];
        this.#byEpoch.delete(oldest);
        dropped.wipe(); // its holder derives the key again when it still needs it
      }
      this.#byEpoch.set(name, (cipher = new AesFrameCipher(this, Buffer.from(epoch))));
    }
    return cipher;
  }

  frameKey(epoch: Buffer): Buffer {
    if (this.#dek === undefined) throw keyWiped();
    return hkdf32(this.#dek, epoch, FRAME_INFO);
  }

  get wiped(): boolean {
    return this.#dek === undefined;
  }

  /** Zeroes the DEK (the caller's buffer) and all frame keys. */
  wipe(): void {
    wipe(this.#dek);
    this.#dek = undefined;
    for (const cipher of this.#byEpoch.values()) cipher.wipe();
    this.#byEpoch.clear();
  }
}

class AesFrameCipher implements FrameCipher {
  readonly #owner: AesObjectKey;
  readonly #epoch: Buffer;
  /** As a key object: a cipher made from one takes 2 µs, from bytes 15 (2026-11). Its memory is cleansed when the garbage collector frees it,
   *  as that of every cipher is; whoever wipes has it run (service-kit, forgetGarbage). */
  #key: KeyObject | undefined;

  constructor(owner: AesObjectKey, epoch: Buffer) {
    this.#owner = owner;
    this.#epoch = epoch;
    this.#key = this.#derive();
  }

  #derive(): KeyObject {
    const bytes = this.#owner.frameKey(this.#epoch);
    const key = createSecretKey(bytes);
    wipe(bytes);
    return key;
  }

  #use(): KeyObject {
    if (this.#owner.wiped) throw keyWiped(); // also ciphers that were dropped from the owner's map and derived again
    return (this.#key ??= this.#derive());
  }

  seal(plain: Buffer, nonce: Buffer, associatedData: Buffer): { bytes: Buffer; tag: Buffer } {
    checkNonce(nonce);
    const cipher = createCipheriv('aes-256-gcm', this.#use(), nonce, OPTIONS);
    cipher.setAAD(associatedData);
    const bytes = cipher.update(plain);
    cipher.final();
    return { bytes, tag: cipher.getAuthTag() };
  }

  open(stored: Buffer, nonce: Buffer, tag: Buffer, associatedData: Buffer): Buffer {
    checkNonce(nonce);
    if (tag.length !== TAG_BYTES) throw new LakebaseError('CORRUPT', `a tag has ${TAG_BYTES} bytes, not ${tag.length}`);
    const decipher = createDecipheriv('aes-256-gcm', this.#use(), nonce, OPTIONS);
    decipher.setAAD(associatedData);
    decipher.setAuthTag(tag);
    const plain = decipher.update(stored);
    try {
      decipher.final();
    } catch (cause) {
      plain.fill(0);
      throw new LakebaseError('CORRUPT', 'a frame does not open: its bytes, its place or its key are not the ones it was sealed with', {
        cause,
      });
    }
    return plain;
  }

  wipe(): void {
    this.#key = undefined;
  }
}

function checkNonce(nonce: Buffer): void {
  if (nonce.length !== NONCE_BYTES) throw new LakebaseError('CORRUPT', `a nonce has ${NONCE_BYTES} bytes, not ${nonce.length}`);
}

const keyWiped = (): LakebaseError =>
  new LakebaseError(
    'KEY_REVOKED',
    "the key of this object was wiped: its project's key may not be used at present; open it again when it may",
  );
