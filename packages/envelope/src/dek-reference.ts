/** DEK references: a DEK wrapped by its project's KEK, with the DEK's commitment. docs/formats/envelope.md
 *  Invariants: what is not exactly a reference of this account, project and KEK version does not unwrap; an unwrapped DEK has been compared
 *  with its commitment; nonces are random, so one KEK wraps at most 2^32 DEKs (the key manager rotates it at 2^31). */
import { type KeyObject, createCipheriv, createDecipheriv, randomBytes, timingSafeEqual } from 'node:crypto';
import { LakebaseError } from '@lakebase/base';
import { NONCE_BYTES, TAG_BYTES } from './cipher.ts';
import { KEY_BYTES, hkdf32, wipe } from './secret.ts';

export const DEK_REFERENCE_VERSION = 1;
export const COMMITMENT_BYTES = 32;
const NONCE_AT = 5;
const WRAPPED_AT = NONCE_AT + NONCE_BYTES;
const TAG_AT = WRAPPED_AT + KEY_BYTES;
const COMMITMENT_AT = TAG_AT + TAG_BYTES;
export const DEK_REFERENCE_BYTES: number = COMMITMENT_AT + COMMITMENT_BYTES;

/** A KeyObject is four times as fast as a Buffer, of which Node makes one each time. */
export type Kek = Buffer | KeyObject;

export interface DekReference {
  readonly kekVersion: number;
  readonly nonce: Buffer;
  readonly wrapped: Buffer;
  readonly tag: Buffer;
  readonly commitment: Buffer;
}

const COMMIT_INFO = Buffer.from('lakebase commit v1');
const NO_SALT = Buffer.alloc(0);
export const commitmentOf = (dek: Buffer): Buffer => hkdf32(dek, NO_SALT, COMMIT_INFO);

export function encodeDekReference(r: DekReference): Buffer {
  const out = Buffer.alloc(DEK_REFERENCE_BYTES);
  out[0] = DEK_REFERENCE_VERSION;
  out.writeUInt32BE(r.kekVersion, 1);
  r.nonce.copy(out, NONCE_AT);
  r.wrapped.copy(out, WRAPPED_AT);
  r.tag.copy(out, TAG_AT);
  r.commitment.copy(out, COMMITMENT_AT);
  return out;
}

/** Views of `bytes`. */
export function decodeDekReference(bytes: Buffer): DekReference {
  if (bytes.length !== DEK_REFERENCE_BYTES)
    throw new LakebaseError('CORRUPT', `a key reference has ${DEK_REFERENCE_BYTES} bytes, not ${bytes.length}`);
  if (bytes[0] !== DEK_REFERENCE_VERSION)
    throw new LakebaseError('UNSUPPORTED', `key reference version ${bytes[0]} is not known to this version`);
  return {
    kekVersion: bytes.readUInt32BE(1),
    nonce: bytes.subarray(NONCE_AT, WRAPPED_AT),
    wrapped: bytes.subarray(WRAPPED_AT, TAG_AT),
    tag: bytes.subarray(TAG_AT, COMMITMENT_AT),
    commitment: bytes.subarray(COMMITMENT_AT),
  };
}

const LABEL = Buffer.from('lakebase dek v1');

function associatedData(account: string, project: string, kekVersion: number, commitment: Buffer): Buffer {
  const id = Buffer.from(account);
  if (id.length === 0 || id.length > 255) throw new LakebaseError('INVALID_ID', 'an account id has 1 to 255 bytes');
  const uid = Buffer.from(project, 'hex');
  if (uid.length !== 16 || project.length !== 32) throw new LakebaseError('INVALID_ID', 'a project uid is 32 hexadecimal digits');
  const out = Buffer.alloc(LABEL.length + 2 + id.length + 16 + 4 + COMMITMENT_BYTES);
  let at = LABEL.copy(out);
  at = out.writeUInt16BE(id.length, at);
  at += id.copy(out, at);
  at += uid.copy(out, at);
  at = out.writeUInt32BE(kekVersion, at);
  commitment.copy(out, at);
  return out;
}

/** Wraps a DEK; `dek` stays the caller's. */
export function wrapDek(kek: Kek, kekVersion: number, account: string, project: string, dek: Buffer): Buffer {
  return seal(kek, kekVersion, account, project, dek, commitmentOf(dek));
}

/** The DEK, in memory of its own. Throws CORRUPT when the reference is not one of this KEK, account and project. */
export function unwrapDek(kek: Kek, account: string, project: string, reference: Buffer): Buffer {
  const r = decodeDekReference(reference);
  const dek = open(kek, account, project, r);
  if (!timingSafeEqual(commitmentOf(dek), r.commitment)) {
    wipe(dek);
    throw new LakebaseError('CORRUPT', 'a key reference does not commit to its key');
  }
  return dek;
}

/** The same DEK under another KEK version. The commitment goes along (both tags cover it); who opens the object compares it with the key. */
export function rewrapDek(from: Kek, to: Kek, toVersion: number, account: string, project: string, reference: Buffer): Buffer {
  const r = decodeDekReference(reference);
  const dek = open(from, account, project, r);
  try {
    return seal(to, toVersion, account, project, dek, r.commitment);
  } finally {
    wipe(dek);
  }
}

function seal(kek: Kek, kekVersion: number, account: string, project: string, dek: Buffer, commitment: Buffer): Buffer {
  if ((Buffer.isBuffer(kek) ? kek.length : kek.symmetricKeySize) !== KEY_BYTES || dek.length !== KEY_BYTES)
    throw new LakebaseError('INVALID_ARGUMENT', `keys have ${KEY_BYTES} bytes`);
  const nonce = randomBytes(NONCE_BYTES);
  const cipher = createCipheriv('aes-256-gcm', kek, nonce, { authTagLength: TAG_BYTES });
  cipher.setAAD(associatedData(account, project, kekVersion, commitment));
  const wrapped = cipher.update(dek);
  cipher.final();
  return encodeDekReference({ kekVersion, nonce, wrapped, tag: cipher.getAuthTag(), commitment });
}

function open(kek: Kek, account: string, project: string, r: DekReference): Buffer {
  const decipher = createDecipheriv('aes-256-gcm', kek, r.nonce, { authTagLength: TAG_BYTES });
  decipher.setAAD(associatedData(account, project, r.kekVersion, r.commitment));
  decipher.setAuthTag(r.tag);
  const dek = decipher.update(r.wrapped);
  try {
    decipher.final();
  } catch (cause) {
    wipe(dek);
    throw new LakebaseError(
      'CORRUPT',
      'a key reference does not unwrap: it was changed, or belongs to another project, account or key version',
      { cause },
    );
  }
  return dek;
}
