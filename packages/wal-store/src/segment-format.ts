/** Byte format of a WAL segment file (docs/formats/wal-segment.md): one header block, then a chain of frames on 8-byte boundaries.
 *  Pure functions over buffers. Invariants: a frame's CRC covers the segment's salt, the frame header and the stored payload, so bytes of
 *  another segment or an earlier use of the disk never validate; sequence numbers start at 0 and have no holes. */
import { LakebaseError } from '@lakebase/base';
import { ByteReader, ByteWriter, crc32c } from '@lakebase/bytes';
import { EPOCH_BYTES, KEY_REFERENCE_BYTES_MAX, TAG_BYTES } from '@lakebase/envelope';
import {
  type Lsn,
  type ProjectUid,
  type TimelineId,
  lsnFromHalves,
  lsnHigh,
  lsnLow,
  parseProjectUid,
  parseTimelineId,
} from '@lakebase/ids';

/** 'LBWS' */
export const SEGMENT_MAGIC = 0x4c425753;
/** 'LBWF' */
export const FRAME_MAGIC = 0x4c425746;
export const SEGMENT_VERSION = 2;
export const SALT_BYTES = 16;
/** Frames begin here. */
export const SEGMENT_HEADER_BYTES = 4096;
export const FRAME_HEADER_BYTES = 72;
/** Longest payload of one frame; a longer batch becomes several frames in one write. */
export const FRAME_PAYLOAD_MAX: number = 256 * 1024;

/** WAL bytes at `lsn`. */
export const FRAME_DATA = 1;
/** Everything at or beyond `lsn` is void: a divergent tail was cut off. */
export const FRAME_TRUNCATE = 2;
/** Record-boundary state at `lsn`, first frame of every segment: lets a restart scan one segment only. */
export const FRAME_CONTEXT = 3;

export interface SegmentHeader {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly segment: number;
  readonly salt: Buffer;
  readonly algorithm: number;
  readonly keyReference: Buffer;
}

export function encodeSegmentHeader(h: SegmentHeader): Buffer {
  if (h.keyReference.length > KEY_REFERENCE_BYTES_MAX) throw new LakebaseError('INVALID_ARGUMENT', 'key reference is too long');
  const w = new ByteWriter(SEGMENT_HEADER_BYTES)
    .u32be(SEGMENT_MAGIC)
    .u16be(SEGMENT_VERSION)
    .u16be(0)
    .bytes(Buffer.from(h.project, 'hex'))
    .bytes(Buffer.from(h.timeline, 'hex'))
    .u64be(h.segment)
    .bytes(h.salt)
    .u16be(h.algorithm)
    .u16be(h.keyReference.length)
    .bytes(h.keyReference);
  w.u32be(crc32c(w.view()));
  return w.zeros(SEGMENT_HEADER_BYTES - w.length).finish();
}

/** Throws CORRUPT when `block` is not a whole valid header. */
export function decodeSegmentHeader(block: Buffer): SegmentHeader {
  const r = new ByteReader(block);
  if (r.u32be() !== SEGMENT_MAGIC) throw new LakebaseError('CORRUPT', 'not a WAL segment file: wrong magic');
  const version = r.u16be();
  r.skip(2);
  const project = r.bytes(16).toString('hex');
  const timeline = r.bytes(16).toString('hex');
  const segment = r.u64be();
  const salt = Buffer.from(r.bytes(SALT_BYTES));
  const algorithm = r.u16be();
  const keyLength = r.u16be();
  if (keyLength > KEY_REFERENCE_BYTES_MAX) throw new LakebaseError('CORRUPT', 'WAL segment header: key reference is too long');
  const keyReference = Buffer.from(r.bytes(keyLength));
  const covered = r.offset;
  if (r.u32be() !== crc32c(block.subarray(0, covered))) throw new LakebaseError('CORRUPT', 'WAL segment header: wrong checksum');
  if (version !== SEGMENT_VERSION) throw new LakebaseError('UNSUPPORTED', `WAL segment format version ${version}`);
  return { project: parseProjectUid(project), timeline: parseTimelineId(timeline), segment, salt, algorithm, keyReference };
}

/** A frame header as found in a file; `payloadOffset` is absolute in the buffer it was parsed from. */
export interface Frame {
  readonly kind: number;
  readonly sequence: number;
  /** Sequence number of the first frame of the same fdatasync. */
  readonly batchStart: number;
  readonly lsn: Lsn;
  readonly length: number;
  readonly payloadOffset: number;
  /** Offset of the next frame. */
  readonly next: number;
}

/** Offsets in a frame header. */
const FRAME_BATCH_AT = 28;
export const FRAME_EPOCH_AT = 32;
export const FRAME_TAG_AT: number = FRAME_EPOCH_AT + EPOCH_BYTES;
const FRAME_CRC_AT = FRAME_TAG_AT + TAG_BYTES;

export const alignFrame = (offset: number): number => (offset + 7) & ~7;

export interface FramePrefix {
  readonly kind: number;
  readonly sequence: number;
  readonly lsn: Lsn;
  readonly length: number;
  readonly batchStart: number;
  readonly epoch: Buffer;
}

/** Writes everything of a frame header up to the tag at `out[at…]`. */
export function writeFramePrefix(out: Buffer, at: number, f: FramePrefix): void {
  const { kind, sequence, lsn, length } = f;
  out.writeUInt32BE(FRAME_MAGIC, at);
  out.writeUInt32BE(kind << 24, at + 4);
  out.writeUInt32BE(0, at + 8);
  out.writeUInt32BE(sequence, at + 12);
  out.writeUInt32BE(lsnHigh(lsn), at + 16);
  out.writeUInt32BE(lsnLow(lsn), at + 20);
  out.writeUInt32BE(length, at + 24);
  out.writeUInt32BE(f.batchStart, at + FRAME_BATCH_AT);
  f.epoch.copy(out, at + FRAME_EPOCH_AT);
}

/** Completes a frame whose payload is already in place after the header. */
export function finishFrame(out: Buffer, at: number, length: number, tag: Buffer, saltCrc: number): void {
  tag.copy(out, at + FRAME_TAG_AT);
  const crc = crc32c(
    out.subarray(at + FRAME_HEADER_BYTES, at + FRAME_HEADER_BYTES + length),
    crc32c(out.subarray(at, at + FRAME_CRC_AT), saltCrc),
  );
  out.writeUInt32BE(crc, at + FRAME_CRC_AT);
  out.writeUInt32BE(0, at + FRAME_CRC_AT + 4);
}

/** Header fields at `at`, unchecked beyond magic, kind and bounds; undefined when there is no frame header or it is cut off. */
export function peekFrame(file: Buffer, at: number, limit: number = file.length): Frame | undefined {
  if (at + FRAME_HEADER_BYTES > limit || file.readUInt32BE(at) !== FRAME_MAGIC) return undefined;
  const kind = file[at + 4] as number;
  const length = file.readUInt32BE(at + 24);
  if (kind < FRAME_DATA || kind > FRAME_CONTEXT || length > FRAME_PAYLOAD_MAX || file.readUInt32BE(at + 16) >= 0x20_0000) return undefined;
  const payloadOffset = at + FRAME_HEADER_BYTES;
  return {
    kind,
    sequence: file.readUInt32BE(at + 12),
    batchStart: file.readUInt32BE(at + FRAME_BATCH_AT),
    lsn: lsnFromHalves(file.readUInt32BE(at + 16), file.readUInt32BE(at + 20)),
    length,
    payloadOffset,
    next: alignFrame(payloadOffset + length),
  };
}

/** The frame at `at` when all of it is there and its CRC holds. */
export function parseFrame(file: Buffer, at: number, saltCrc: number): Frame | undefined {
  const frame = peekFrame(file, at);
  if (frame === undefined || frame.payloadOffset + frame.length > file.length) return undefined;
  const payload = file.subarray(frame.payloadOffset, frame.payloadOffset + frame.length);
  const crc = crc32c(payload, crc32c(file.subarray(at, at + FRAME_CRC_AT), saltCrc));
  return crc === file.readUInt32BE(at + FRAME_CRC_AT) ? frame : undefined;
}
