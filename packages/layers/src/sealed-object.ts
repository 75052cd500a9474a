/** Small objects sealed as one frame: index, suspend state, boot set (docs/formats/index.md).
 *  Invariants: each has a key of its own; it opens only under the name, timeline and project it was sealed for; its header is bound whole. */
import { randomBytes } from 'node:crypto';
import { LakebaseError } from '@lakebase/base';
import { ByteReader, ByteWriter, DecodeError, crc32c } from '@lakebase/bytes';
import {
  type CipherProvider,
  KEY_REFERENCE_BYTES_MAX,
  type ObjectKey,
  TAG_BYTES,
  bindFrame,
  frameNonce,
  objectBinding,
} from '@lakebase/envelope';

export const SEALED_OBJECT_VERSION = 2;
const OBJECT_ID_BYTES = 16;

export interface ObjectName {
  readonly project: string;
  readonly timeline: string;
  /** Of the file, without its directory. */
  readonly name: string;
}

/** `magic u32 · version u16 · algorithm u8 · 0 u8 · object id (16) · key reference u16 + bytes · payload length u32 · payload · tag · CRC-32C`. */
export function sealObject(magic: number, object: ObjectName, payload: Buffer, key: ObjectKey): Buffer {
  const objectId = randomBytes(OBJECT_ID_BYTES);
  const w = new ByteWriter(payload.length + 256)
    .u32be(magic)
    .u16be(SEALED_OBJECT_VERSION)
    .u8(key.algorithm)
    .u8(0)
    .bytes(objectId)
    .u16be(key.keyReference.length)
    .bytes(key.keyReference)
    .u32be(payload.length);
  const binding = objectBinding(object.project, object.timeline, object.name, w.view());
  const sealed = key.frames(objectId).seal(payload, frameNonce(0), bindFrame(binding, 0));
  w.bytes(sealed.bytes).bytes(sealed.tag);
  return w.u32be(crc32c(w.view())).finish();
}

interface Sealed {
  readonly algorithm: number;
  readonly objectId: Buffer;
  /** As it was sealed; a later one may stand beside the object. */
  readonly keyReference: Buffer;
  readonly head: Buffer;
  readonly stored: Buffer;
  readonly tag: Buffer;
}

/** Checks the form and takes it apart. Throws CORRUPT or UNSUPPORTED naming `file`. */
export function parseObject(magic: number, bytes: Buffer, file: string): Sealed {
  const bad = (what: string, cause?: unknown): LakebaseError => new LakebaseError('CORRUPT', `${file} ${what}`, { cause });
  if (bytes.length < 34 + TAG_BYTES || bytes.readUInt32BE(0) !== magic) throw bad('is cut short or not the object it should be');
  if (bytes.readUInt32BE(bytes.length - 4) !== crc32c(bytes.subarray(0, bytes.length - 4))) throw bad('is damaged (checksum)');
  const r = new ByteReader(bytes, 4, bytes.length - 4);
  try {
    const version = r.u16be();
    if (version !== SEALED_OBJECT_VERSION)
      throw new LakebaseError('UNSUPPORTED', `${file} has format version ${version}; this version reads ${SEALED_OBJECT_VERSION}`);
    const algorithm = r.u8();
    r.skip(1);
    const objectId = r.bytes(OBJECT_ID_BYTES);
    const keyLength = r.u16be();
    if (keyLength > KEY_REFERENCE_BYTES_MAX) throw bad('has a key reference that is too long');
    const keyReference = r.bytes(keyLength);
    const length = r.u32be();
    const head = bytes.subarray(0, r.offset);
    return { algorithm, objectId, keyReference, head, stored: r.bytes(length), tag: r.bytes(TAG_BYTES) };
  } catch (error) {
    if (error instanceof DecodeError) throw bad('is damaged', error);
    throw error;
  }
}

/** `reference`: the one beside the object, when there is one. Its key was loaded before. */
export function openObject(
  magic: number,
  object: ObjectName,
  bytes: Buffer,
  ciphers: CipherProvider,
  file: string,
  reference?: Buffer,
): Buffer {
  const sealed = parseObject(magic, bytes, file);
  const binding = objectBinding(object.project, object.timeline, object.name, sealed.head);
  try {
    const key = ciphers.restore(sealed.algorithm, reference ?? sealed.keyReference);
    return key.frames(sealed.objectId).open(sealed.stored, frameNonce(0), sealed.tag, bindFrame(binding, 0));
  } catch (error) {
    if (error instanceof LakebaseError && error.code === 'CORRUPT')
      throw new LakebaseError('CORRUPT', `${file} is damaged: ${error.message}`, { cause: error });
    throw error;
  }
}
