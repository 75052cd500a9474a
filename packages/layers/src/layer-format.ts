/** Byte format of layer files, without I/O: header, frames, footer (docs/formats/layer.md).
 *  A file is `header · packs of data frames · index frame · footer`. Packs and the index frame are sealed by the object's {@link FrameCipher}
 *  (nonce: the pack's number; associated data: the object's identity, name and header), so a flipped byte or a pack from another place never
 *  opens. The footer is bound to the index frame. */
import { randomBytes } from 'node:crypto';
import { LakebaseError, isCode } from '@lakebase/base';
import { ByteReader, ByteWriter, crc32c } from '@lakebase/bytes';
import { KEY_REFERENCE_BYTES_MAX, TAG_BYTES, objectBinding } from '@lakebase/envelope';
import type { Lsn } from '@lakebase/ids';
import { KEY_BYTES } from './key.ts';

export const LAYER_MAGIC = 0x4c424c59;
export const FOOTER_MAGIC = 0x4c424c46;
/** Written. Version 2 is read as well: there each frame is a pack of its own. */
export const LAYER_VERSION = 3;
const OLDEST_VERSION = 2;
export const FRAME_TARGET_BYTES = 33_792;
/** Of stored frames sealed together: more would help runs of reads little, and a random read opens all of them. */
export const PACK_FRAMES = 4;
export const PACK_TARGET_BYTES: number = FRAME_TARGET_BYTES;
/** A frame grows past the target only for one large value. */
export const FRAME_BYTES_MAX = 1 << 30;
export const FOOTER_BYTES = 72;
/** key · first lsn u64 · offset u64 · stored bytes u32 · plain bytes u32 (0: not compressed). */
export const FRAME_INDEX_ENTRY_BYTES: number = KEY_BYTES + 8 + 8 + 4 + 4;
export const HEADER_BYTES_MAX: number = 160 + KEY_REFERENCE_BYTES_MAX;
export const GROUP_HEADER_BYTES: number = KEY_BYTES + 8;
export const ENTRY_HEADER_BYTES = 14;

/** `delta`: changes of (startLsn, endLsn]. `image`: every key of its range as of endLsn (startLsn = endLsn). */
export type LayerKind = 'delta' | 'image';

export interface LayerHeader {
  readonly version: number;
  readonly kind: LayerKind;
  readonly project: string;
  readonly timeline: string;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  readonly objectId: Buffer;
  readonly algorithm: number;
  readonly keyReference: Buffer;
}

export function encodeHeader(h: LayerHeader): Buffer {
  const w = new ByteWriter(256)
    .u32be(LAYER_MAGIC)
    .u16be(h.version)
    .u8(h.kind === 'delta' ? 1 : 2)
    .u8(h.algorithm)
    .bytes(Buffer.from(h.project, 'latin1'))
    .bytes(Buffer.from(h.timeline, 'latin1'))
    .u64be(h.startLsn)
    .u64be(h.endLsn)
    .bytes(h.objectId)
    .u16be(h.keyReference.length)
    .bytes(h.keyReference);
  return w.u32be(crc32c(w.view())).finish();
}

export const newObjectId = (): Buffer => randomBytes(16);

/** Reads a header from the first bytes of a file; `headerBytes` is where the frames begin. */
export function decodeHeader(bytes: Buffer, file: string): { header: LayerHeader; headerBytes: number } {
  const r = new ByteReader(bytes);
  try {
    if (r.u32be() !== LAYER_MAGIC) throw corrupt(file, 'is not a layer file');
    const version = r.u16be();
    if (version < OLDEST_VERSION || version > LAYER_VERSION)
      throw new LakebaseError(
        'UNSUPPORTED',
        `layer ${file} has format version ${version}; this version reads ${OLDEST_VERSION} to ${LAYER_VERSION}`,
      );
    const kind = r.u8();
    const algorithm = r.u8();
    const project = r.bytes(32).toString('latin1');
    const timeline = r.bytes(32).toString('latin1');
    const startLsn = r.lsnBe(),
      endLsn = r.lsnBe();
    const objectId = Buffer.from(r.bytes(16));
    const keyLength = r.u16be();
    if (keyLength > KEY_REFERENCE_BYTES_MAX) throw corrupt(file, 'has a key reference that is too long');
    const keyReference = Buffer.from(r.bytes(keyLength));
    const end = r.offset;
    if (r.u32be() !== crc32c(bytes.subarray(0, end))) throw corrupt(file, 'has a damaged header');
    if (kind !== 1 && kind !== 2) throw corrupt(file, 'has an unknown kind');
    return {
      header: { version, kind: kind === 1 ? 'delta' : 'image', project, timeline, startLsn, endLsn, objectId, algorithm, keyReference },
      headerBytes: r.offset,
    };
  } catch (error) {
    // A damaged LSN is none, before the checksum says so.
    if (isCode(error, 'INVALID_LSN')) throw corrupt(file, 'has a damaged header');
    throw asCorrupt(file, error);
  }
}

export interface LayerFooter {
  readonly indexOffset: number;
  /** Sealed length, tag included. */
  readonly indexBytes: number;
  readonly frames: number;
  readonly entries: number;
  readonly keyMin: Buffer;
  readonly keyMax: Buffer;
}

export function encodeFooter(f: LayerFooter): Buffer {
  const w = new ByteWriter(FOOTER_BYTES)
    .u32be(FOOTER_MAGIC)
    .u64be(f.indexOffset)
    .u32be(f.indexBytes)
    .u32be(f.frames)
    .u64be(f.entries)
    .bytes(f.keyMin)
    .bytes(f.keyMax);
  return w.u32be(crc32c(w.view())).finish();
}

export function decodeFooter(bytes: Buffer, fileBytes: number, file: string): LayerFooter {
  if (bytes.length !== FOOTER_BYTES || bytes.readUInt32BE(0) !== FOOTER_MAGIC) throw corrupt(file, 'is cut short (no footer)');
  if (bytes.readUInt32BE(FOOTER_BYTES - 4) !== crc32c(bytes.subarray(0, FOOTER_BYTES - 4))) throw corrupt(file, 'has a damaged footer');
  const r = new ByteReader(bytes, 4);
  const footer = {
    indexOffset: r.u64be(),
    indexBytes: r.u32be(),
    frames: r.u32be(),
    entries: r.u64be(),
    keyMin: Buffer.from(r.bytes(KEY_BYTES)),
    keyMax: Buffer.from(r.bytes(KEY_BYTES)),
  };
  if (
    footer.indexOffset + footer.indexBytes + FOOTER_BYTES !== fileBytes ||
    footer.indexBytes !== footer.frames * FRAME_INDEX_ENTRY_BYTES + TAG_BYTES
  )
    throw corrupt(file, 'has a footer that does not fit its length');
  return footer;
}

/** What every pack of the layer file `name` is bound to; the number goes into its end (`bindFrame`). */
export const layerBinding = (header: LayerHeader, name: string): Buffer =>
  objectBinding(header.project, header.timeline, name, encodeHeader(header));

export const corrupt = (file: string, what: string): LakebaseError => new LakebaseError('CORRUPT', `layer ${file} ${what}`);

export function asCorrupt(file: string, error: unknown): unknown {
  if (error instanceof LakebaseError && error.code === 'CORRUPT' && !error.message.includes(file))
    return new LakebaseError('CORRUPT', `layer ${file}: ${error.message}`, { cause: error });
  return error;
}
