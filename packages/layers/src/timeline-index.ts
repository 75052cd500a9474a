/** The index object of a timeline: the only truth about which layers exist. Replaced as a whole (temporary file, fsync, rename, fsync of the
 *  directory), so it is the old or the new one after a crash at any instant. Form: docs/formats/index.md.
 *  The payload is JSON sealed by a FrameCipher: small, rarely written, and readable in a debugger when not encrypted. */
import { readFileSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';
import { ByteReader, ByteWriter, DecodeError, crc32c } from '@lakebase/bytes';
import { type CipherProvider, KEY_REFERENCE_BYTES_MAX, TAG_BYTES, frameNonce } from '@lakebase/envelope';
import { writeFileDurably } from './durable.ts';
import type { LayerDescriptor } from './layer-writer.ts';

export const INDEX_MAGIC = 0x4c424958;
export const INDEX_VERSION = 1;
const NONCE_SEED_BYTES = 8;

export interface TimelineIndex {
  readonly project: string;
  readonly timeline: string;
  readonly generation: number;
  readonly pgVersion: number;
  /** Decimal. */
  readonly systemId: string;
  readonly startLsn: number;
  readonly startPrevRecordLsn: number;
  /** WAL before it is not needed any more: its changes are in the layers below. */
  readonly diskConsistentLsn: number;
  /** Start of the last record that ends at or before diskConsistentLsn. */
  readonly prevRecordLsn: number;
  readonly nextLayerNumber: number;
  readonly layers: readonly LayerDescriptor[];
  /** Sealed object with the files of the last clean suspend. */
  readonly suspend: { readonly lsn: number; readonly file: string } | null;
  /** Sealed object with the boot set. */
  readonly bootSet: string | null;
  /** What the owner keeps along (addresses of safekeepers). */
  readonly extra: Readonly<Record<string, unknown>>;
}

/** Any small sealed object: index, suspend state, boot set. `magic u32 · version u16 · algorithm u8 · 0 u8 · nonce seed u64 · key reference
 *  u16 + bytes · payload length u32 · payload · tag · CRC-32C of all before`. */
export function sealObject(magic: number, version: number, project: string, payload: Buffer, ciphers: CipherProvider): Buffer {
  const cipher = ciphers.create(project);
  const w = new ByteWriter(payload.length + 128)
    .u32be(magic)
    .u16be(version)
    .u8(cipher.algorithm)
    .u8(0)
    .zeros(NONCE_SEED_BYTES)
    .u16be(cipher.keyReference.length)
    .bytes(cipher.keyReference)
    .u32be(payload.length);
  const aad = Buffer.concat([Buffer.from(project, 'latin1'), w.view()]);
  const sealed = cipher.seal(payload, frameNonce(0), aad);
  w.bytes(sealed.bytes).bytes(sealed.tag);
  return w.u32be(crc32c(w.view())).finish();
}

export function openObject(magic: number, version: number, project: string, bytes: Buffer, ciphers: CipherProvider, file: string): Buffer {
  const bad = (what: string, cause?: unknown): LakebaseError => new LakebaseError('CORRUPT', `${file} ${what}`, { cause });
  if (bytes.length < 26 + TAG_BYTES || bytes.readUInt32BE(0) !== magic) throw bad('is cut short or not the object it should be');
  if (bytes.readUInt32BE(bytes.length - 4) !== crc32c(bytes.subarray(0, bytes.length - 4))) throw bad('is damaged (checksum)');
  const r = new ByteReader(bytes, 4, bytes.length - 4);
  try {
    const found = r.u16be();
    if (found !== version) throw new LakebaseError('UNSUPPORTED', `${file} has format version ${found}; this version reads ${version}`);
    const algorithm = r.u8();
    r.skip(1 + NONCE_SEED_BYTES);
    const keyLength = r.u16be();
    if (keyLength > KEY_REFERENCE_BYTES_MAX) throw bad('has a key reference that is too long');
    const keyReference = r.bytes(keyLength);
    const length = r.u32be();
    const aad = Buffer.concat([Buffer.from(project, 'latin1'), bytes.subarray(0, r.offset)]);
    const stored = r.bytes(length);
    const tag = r.bytes(TAG_BYTES);
    return ciphers.restore(project, algorithm, keyReference).open(stored, frameNonce(0), tag, aad);
  } catch (error) {
    if (error instanceof DecodeError) throw bad('is damaged', error);
    if (error instanceof LakebaseError && error.code === 'CORRUPT') throw bad(`is damaged: ${error.message}`, error);
    throw error;
  }
}

export async function writeIndex(path: string, index: TimelineIndex, ciphers: CipherProvider): Promise<void> {
  const payload = Buffer.from(JSON.stringify(index), 'utf8');
  await writeFileDurably(path, sealObject(INDEX_MAGIC, INDEX_VERSION, index.project, payload, ciphers));
}

/** Undefined when there is no such file. */
export function readIndex(path: string, project: string, timeline: string, ciphers: CipherProvider): TimelineIndex | undefined {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new LakebaseError('CORRUPT', `index ${path} cannot be read: ${(cause as Error).message}`, { cause });
  }
  const payload = openObject(INDEX_MAGIC, INDEX_VERSION, project, bytes, ciphers, `index ${path}`);
  const index = JSON.parse(payload.toString('utf8')) as TimelineIndex;
  if (index.project !== project || index.timeline !== timeline)
    throw new LakebaseError('CORRUPT', `index ${path} belongs to timeline ${index.project}/${index.timeline}`);
  return index;
}
