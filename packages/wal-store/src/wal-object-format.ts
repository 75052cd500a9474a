/** Byte format of a WAL object in the object store (docs/formats/wal-object.md): sealed frames of {@link WAL_FRAME_BYTES} of WAL each, a sealed
 *  index of their lengths, and a trailer that is read first. Pure functions over buffers.
 *  Invariants: a frame opens only in its object, at its place, under this project, timeline and name; every length is checked before it is used. */
import { LakebaseError } from '@lakebase/base';
import { ByteReader, ByteWriter, DecodeError, crc32c } from '@lakebase/bytes';
import { KEY_REFERENCE_BYTES_MAX, TAG_BYTES } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, parseProjectUid, parseTimelineId } from '@lakebase/ids';

/** 'LBWO' */
const OBJECT_MAGIC = 0x4c42574f;
/** 'LBWE' */
const END_MAGIC = 0x4c425745;
export const WAL_OBJECT_VERSION = 1;
export const OBJECT_ID_BYTES = 16;
/** WAL in one frame; the last one may have less. */
export const WAL_FRAME_BYTES: number = 256 * 1024;
/** Longest an object may be: eight segments, in frames that did not get smaller. */
export const WAL_OBJECT_BYTES_MAX: number = 9 * WAL_SEGMENT_BYTES;
/** What is read first: it holds the whole trailer of any object. */
export const TRAILER_READ_BYTES = 8 * 1024;
/** index bytes u32 · header bytes u32 · size of the object u64 · CRC-32C u32 · magic u32 */
const END_BYTES = 24;
/** Set in a length of the index: the frame is compressed. */
const COMPRESSED = 0x8000_0000;

export interface WalObjectHeader {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  /** First byte of WAL, and the one after the last. */
  readonly start: Lsn;
  readonly end: Lsn;
  readonly objectId: Buffer;
  readonly frameBytes: number;
  readonly algorithm: number;
  readonly keyReference: Buffer;
}

export interface WalObjectFrame {
  /** In the object; the tag follows the stored bytes. */
  readonly offset: number;
  readonly stored: number;
  readonly compressed: boolean;
}

/** What stands at the end of an object, before its keys are known. */
export interface WalObjectTrailer {
  readonly header: WalObjectHeader;
  readonly headerBytes: Buffer;
  /** The sealed index, tag included. */
  readonly index: Buffer;
  /** Where the index begins: the frames' end. */
  readonly indexOffset: number;
}

export const frameCount = (h: { readonly start: Lsn; readonly end: Lsn; readonly frameBytes: number }): number =>
  Math.ceil((h.end - h.start) / h.frameBytes);

export function encodeWalObjectHeader(h: WalObjectHeader): Buffer {
  return new ByteWriter(128 + h.keyReference.length)
    .u32be(OBJECT_MAGIC)
    .u16be(WAL_OBJECT_VERSION)
    .u16be(h.algorithm)
    .bytes(Buffer.from(h.project, 'hex'))
    .bytes(Buffer.from(h.timeline, 'hex'))
    .u64be(h.start)
    .u64be(h.end)
    .bytes(h.objectId)
    .u32be(h.frameBytes)
    .u16be(h.keyReference.length)
    .bytes(h.keyReference)
    .finish();
}

export function encodeEnd(index: number, header: Buffer, size: number): Buffer {
  const w = new ByteWriter(END_BYTES).u32be(index).u32be(header.length).u64be(size);
  return w
    .u32be(crc32c(w.view(), crc32c(header)))
    .u32be(END_MAGIC)
    .finish();
}

/** `tail`: the last bytes of an object of `size` bytes, {@link TRAILER_READ_BYTES} of them or all. Throws CORRUPT or UNSUPPORTED naming `name`. */
export function decodeTrailer(tail: Buffer, size: number, name: string): WalObjectTrailer {
  const bad = (what: string, cause?: unknown): LakebaseError => new LakebaseError('CORRUPT', `WAL object ${name}: ${what}`, { cause });
  if (size > WAL_OBJECT_BYTES_MAX || tail.length < Math.min(size, TRAILER_READ_BYTES) || tail.length < END_BYTES)
    throw bad(`${size} bytes cannot be one`);
  const end = new ByteReader(tail, tail.length - END_BYTES);
  const [indexBytes, headerBytes, whole, crc] = [end.u32be(), end.u32be(), end.u64be(), end.u32be()];
  if (end.u32be() !== END_MAGIC) throw bad('it does not end as one');
  const headerAt = tail.length - END_BYTES - headerBytes;
  const indexAt = headerAt - indexBytes;
  if (headerAt < 0 || indexAt < 0 || whole !== size || indexBytes < TAG_BYTES) throw bad('its end does not fit its size');
  const header = tail.subarray(headerAt, headerAt + headerBytes);
  if (crc !== crc32c(tail.subarray(tail.length - END_BYTES, tail.length - 8), crc32c(header))) throw bad('wrong checksum of its end');
  try {
    const decoded = decodeHeader(header);
    const index = tail.subarray(indexAt, headerAt);
    if (index.length !== 4 * frameCount(decoded) + TAG_BYTES) throw bad('its index does not fit its header');
    return { header: decoded, headerBytes: header, index, indexOffset: size - tail.length + indexAt };
  } catch (error) {
    if (error instanceof DecodeError) throw bad('its header is cut short', error);
    if (error instanceof LakebaseError && error.code !== 'CORRUPT' && error.code !== 'UNSUPPORTED') throw bad(error.message, error);
    throw error;
  }
}

function decodeHeader(bytes: Buffer): WalObjectHeader {
  const r = new ByteReader(bytes);
  if (r.u32be() !== OBJECT_MAGIC) throw new LakebaseError('CORRUPT', 'not a WAL object');
  const version = r.u16be();
  if (version !== WAL_OBJECT_VERSION) throw new LakebaseError('UNSUPPORTED', `WAL object format version ${version}`);
  const algorithm = r.u16be();
  const project = parseProjectUid(r.bytes(16).toString('hex'));
  const timeline = parseTimelineId(r.bytes(16).toString('hex'));
  const [start, end] = [r.lsnBe(), r.lsnBe()];
  const objectId = Buffer.from(r.bytes(OBJECT_ID_BYTES));
  const frameBytes = r.u32be();
  const keyLength = r.u16be();
  if (keyLength > KEY_REFERENCE_BYTES_MAX || r.remaining !== keyLength)
    throw new LakebaseError('CORRUPT', 'WAL object header: wrong length');
  const keyReference = Buffer.from(r.bytes(keyLength));
  if (start >= end || end - start > 8 * WAL_SEGMENT_BYTES || frameBytes !== WAL_FRAME_BYTES)
    throw new LakebaseError('CORRUPT', 'WAL object header: impossible range');
  return { project, timeline, start, end, objectId, frameBytes, algorithm, keyReference };
}

export function encodeIndex(frames: readonly { readonly stored: number; readonly compressed: boolean }[]): Buffer {
  const w = new ByteWriter(4 * frames.length);
  for (const f of frames) w.u32be((f.compressed ? COMPRESSED : 0) + f.stored);
  return w.finish();
}

/** Throws CORRUPT unless the frames fill exactly the bytes before the index. */
export function decodeIndex(plain: Buffer, trailer: WalObjectTrailer, name: string): WalObjectFrame[] {
  const r = new ByteReader(plain);
  const frames: WalObjectFrame[] = [];
  let offset = 0;
  while (r.remaining > 0) {
    const word = r.u32be();
    const stored = word & ~COMPRESSED;
    if (stored > WAL_FRAME_BYTES) throw new LakebaseError('CORRUPT', `WAL object ${name}: a frame of ${stored} bytes`);
    frames.push({ offset, stored, compressed: word >= COMPRESSED });
    offset += stored + TAG_BYTES;
  }
  if (offset !== trailer.indexOffset)
    throw new LakebaseError('CORRUPT', `WAL object ${name}: its frames end elsewhere than its index begins`);
  return frames;
}
