/** One open WAL segment: its header, cipher, append position and frame index. Knows nothing of other segments or of records.
 *  Invariant: bytes of the file beyond `offset` are zeros whenever an append begins, so stale frames cannot be mistaken for new ones. */
import { randomBytes } from 'node:crypto';
import { closeSync, fstatSync, fsyncSync, ftruncateSync, openSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';
import { crc32c, giveBack, wipeAndGiveBack } from '@lakebase/bytes';
import { EPOCH_BYTES, type FrameCipher, type ObjectKey, TAG_BYTES, frameNonce, objectBinding } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, formatLsn, walFileName } from '@lakebase/ids';
import { RecordBoundary } from './record-boundary.ts';
import {
  FRAME_EPOCH_AT,
  FRAME_HEADER_BYTES,
  FRAME_TAG_AT,
  type Frame,
  SALT_BYTES,
  SEGMENT_HEADER_BYTES,
  type SegmentHeader,
  alignFrame,
  decodeSegmentHeader,
  encodeSegmentHeader,
  finishFrame,
  parseFrame,
  peekFrame,
  writeFramePrefix,
} from './segment-format.ts';
import { type SegmentIo, ioError, readFully, syncDirectory } from './segment-io.ts';

/** A fully prepared segment: its WAL plus an eighth for frame headers. */
export const SEGMENT_FILE_BYTES: number = WAL_SEGMENT_BYTES + WAL_SEGMENT_BYTES / 8;
/** How much is preallocated at a time where no prepared file is at hand. */
export const PREALLOCATE_STEP = 1024 * 1024;
export const ZEROS: Buffer = Buffer.alloc(PREALLOCATE_STEP);

export function newSegmentHeader(project: ProjectUid, timeline: TimelineId, segment: number, key: ObjectKey): SegmentHeader {
  return { project, timeline, segment, salt: randomBytes(SALT_BYTES), algorithm: key.algorithm, keyReference: key.keyReference };
}

export class SegmentFile {
  /** Its name now. */
  path: string;
  readonly header: SegmentHeader;
  readonly saltCrc: number;
  readonly #key: ObjectKey;
  readonly #io: SegmentIo;
  /** What frames are bound to; the header fields of the frame at hand go behind it. */
  readonly #binding: Buffer;
  readonly #bindingBytes: number;
  #fd: number;
  /** Of the frames this opening writes; chosen when the first is. */
  #epoch: Buffer | undefined;
  #writer: FrameCipher | undefined;
  /** The cipher of the frames read last. */
  #readEpoch: Buffer | undefined;
  #reader: FrameCipher | undefined;

  /** Where the next frame goes, its number, and the number the running batch began with. */
  offset = SEGMENT_HEADER_BYTES;
  sequence = 0;
  batchStart = 0;
  allocated: number;
  /** End of everything that may have been written, whether the write succeeded or not. */
  attempted = SEGMENT_HEADER_BYTES;
  /** DATA frames in LSN order: their first LSN and file offset. */
  lsns: number[] = [];
  offsets: number[] = [];

  constructor(path: string, fd: number, header: SegmentHeader, key: ObjectKey, io: SegmentIo) {
    this.path = path;
    this.header = header;
    this.saltCrc = crc32c(header.salt);
    this.#key = key;
    this.#io = io;
    this.#fd = fd;
    this.allocated = fstatSync(fd).size;
    const binding = objectBinding(header.project, header.timeline, walFileName(header.segment), encodeSegmentHeader(header));
    this.#bindingBytes = binding.length;
    this.#binding = Buffer.concat([binding, Buffer.alloc(FRAME_TAG_AT)]);
  }

  /** A fresh small file: header, then a first step of zeros. Durable on return. */
  static create(dir: string, path: string, header: SegmentHeader, key: ObjectKey, io: SegmentIo): SegmentFile {
    let fd: number | undefined;
    try {
      fd = openSync(path, 'wx+', 0o600);
      io.write(fd, ZEROS, 0, SEGMENT_HEADER_BYTES + PREALLOCATE_STEP / 4, 0);
      io.write(fd, encodeSegmentHeader(header), 0, SEGMENT_HEADER_BYTES, 0);
      fsyncSync(fd);
      syncDirectory(dir);
      return new SegmentFile(path, fd, header, key, io);
    } catch (error) {
      if (fd !== undefined) closeSync(fd);
      throw ioError(error, path, 'cannot create');
    }
  }

  /** Throws CORRUPT when the header does not validate or belongs elsewhere. */
  static open(
    path: string,
    project: ProjectUid,
    timeline: TimelineId,
    segment: number,
    keyOf: (header: SegmentHeader) => ObjectKey,
    io: SegmentIo,
  ): SegmentFile {
    const fd = openSync(path, 'r+');
    try {
      const block = Buffer.alloc(SEGMENT_HEADER_BYTES);
      if (readFully(fd, block, block.length, 0) < block.length) throw new LakebaseError('CORRUPT', 'shorter than its header');
      const header = decodeSegmentHeader(block);
      if (header.project !== project || header.timeline !== timeline || header.segment !== segment)
        throw new LakebaseError('CORRUPT', 'the header names another project, timeline or segment');
      return new SegmentFile(path, fd, header, keyOf(header), io);
    } catch (error) {
      closeSync(fd);
      if (error instanceof LakebaseError) throw new LakebaseError(error.code, `${path}: ${error.message}`, { cause: error });
      throw error;
    }
  }

  /** A frame number that is written again needs another epoch: at each opening (nothing to do), and when frames were abandoned. */
  newEpoch(): void {
    this.#epoch = undefined;
  }

  /** Associated data of a frame; good until the next call. */
  #bind(file: Buffer, at: number, sequence: number): Buffer {
    this.#binding.writeUInt32BE(sequence, this.#bindingBytes - 4);
    file.copy(this.#binding, this.#bindingBytes, at, at + FRAME_TAG_AT);
    return this.#binding;
  }

  /** Seals the payload that already stands at `out[at + FRAME_HEADER_BYTES…]` into a frame. Returns the frame's size, padding included. */
  seal(out: Buffer, at: number, kind: number, lsn: Lsn, length: number): number {
    if (this.#epoch === undefined || this.#writer === undefined) {
      const epoch = randomBytes(EPOCH_BYTES);
      this.#writer = this.#key.frames(epoch);
      this.#epoch = epoch;
    }
    const { sequence, batchStart } = this;
    writeFramePrefix(out, at, { kind, sequence, lsn, length, batchStart, epoch: this.#epoch });
    const payload = out.subarray(at + FRAME_HEADER_BYTES, at + FRAME_HEADER_BYTES + length);
    const sealed = this.#writer.seal(payload, frameNonce(sequence), this.#bind(out, at, sequence));
    if (sealed.bytes !== payload) {
      sealed.bytes.copy(payload);
      giveBack(sealed.bytes);
    }
    finishFrame(out, at, length, sealed.tag, this.saltCrc);
    this.sequence++;
    const size = alignFrame(FRAME_HEADER_BYTES + length);
    out.fill(0, at + FRAME_HEADER_BYTES + length, at + size);
    return size;
  }

  /** Writes sealed frames at the append position; not durable before {@link sync}. */
  write(frames: Buffer, length: number): void {
    while (this.offset + length > this.allocated) {
      this.#io.write(this.#fd, ZEROS, 0, ZEROS.length, this.allocated);
      this.allocated += ZEROS.length;
    }
    this.attempted = Math.max(this.attempted, this.offset + length);
    this.#io.write(this.#fd, frames, 0, length, this.offset);
    this.offset += length;
  }

  sync(): void {
    this.#io.sync(this.#fd);
    this.batchStart = this.sequence;
  }

  /** Overwrites [from, to) with zeros and makes that durable. */
  clear(from: number, to: number): void {
    for (let at = from; at < to; at += ZEROS.length) this.#io.write(this.#fd, ZEROS, 0, Math.min(ZEROS.length, to - at), at);
    this.#io.sync(this.#fd);
    this.attempted = from;
  }

  /** Record-boundary state at the segment's first byte of WAL. Throws CORRUPT. */
  context(): RecordBoundary {
    const head = Buffer.alloc(1024);
    const length = readFully(this.#fd, head, head.length, SEGMENT_HEADER_BYTES);
    const frame = parseFrame(head.subarray(0, length), 0, this.saltCrc);
    if (frame === undefined) throw new LakebaseError('CORRUPT', `${this.path}: its first frame is damaged`);
    return RecordBoundary.deserialize(this.open(head, 0, frame));
  }

  readAll(): Buffer {
    const size = fstatSync(this.#fd).size;
    if (size > 4 * WAL_SEGMENT_BYTES) throw new LakebaseError('CORRUPT', `${this.path}: ${size} bytes is too long for a segment`);
    const file = Buffer.allocUnsafeSlow(size);
    return file.subarray(0, readFully(this.#fd, file, size, 0));
  }

  /** Plain payload of a frame in `file`, which must hold all of it. Throws CORRUPT. */
  open(file: Buffer, at: number, frame: Frame): Buffer {
    const epoch = file.subarray(at + FRAME_EPOCH_AT, at + FRAME_EPOCH_AT + EPOCH_BYTES);
    if (this.#reader === undefined || this.#readEpoch?.equals(epoch) !== true) {
      this.#reader = this.#key.frames(epoch);
      this.#readEpoch = Buffer.from(epoch);
    }
    const payload = file.subarray(frame.payloadOffset, frame.payloadOffset + frame.length);
    const tag = file.subarray(at + FRAME_TAG_AT, at + FRAME_TAG_AT + TAG_BYTES);
    return this.#reader.open(payload, frameNonce(frame.sequence), tag, this.#bind(file, at, frame.sequence));
  }

  addToIndex(lsn: Lsn, offset: number): void {
    this.lsns.push(lsn);
    this.offsets.push(offset);
  }

  cutIndex(lsn: Lsn): void {
    while (this.lsns.length > 0 && (this.lsns[this.lsns.length - 1] as number) >= lsn) {
      this.lsns.pop();
      this.offsets.pop();
    }
  }

  /** At most `max` bytes of [from, limit) out of verified frames; never crosses the segment. Throws CORRUPT naming the file. Where `max` would cut a frame
   *  that is not the first, it ends before that frame: who reads on opens each frame once. */
  read(from: Lsn, max: number, limit: number): Buffer {
    const first = lastAtOrBefore(this.lsns, from);
    if (first < 0) throw new LakebaseError('CORRUPT', `${this.path}: no frame holds ${formatLsn(from)}`);
    let end = Math.min(from + max, limit);
    let last = first;
    while (last + 1 < this.lsns.length && (this.lsns[last + 1] as number) < end) last++;
    if (last > first && end < limit && end !== this.lsns[last + 1]) end = this.lsns[last--] as number;
    const start = this.offsets[first] as number;
    const file = this.#sealedFrames(start, this.offsets[last] as number);
    const out = first === last ? undefined : Buffer.allocUnsafe(end - from);
    let position: number = from;
    for (let i = first; i <= last; i++) {
      const at = (this.offsets[i] as number) - start;
      const frame = parseFrame(file, at, this.saltCrc);
      if (frame === undefined || frame.lsn !== this.lsns[i])
        throw new LakebaseError('CORRUPT', `${this.path}: the frame at byte ${this.offsets[i]} is damaged`);
      // A truncation may have cut the frame short: what follows it in the index overrides it.
      const valid = Math.min(frame.lsn + frame.length, this.lsns[i + 1] ?? Number.POSITIVE_INFINITY, end);
      if (valid <= position) continue;
      const plain = this.open(file, at, frame);
      const wanted = plain.subarray(position - frame.lsn, valid - frame.lsn);
      if (out === undefined && wanted.length === plain.length && plain.buffer !== file.buffer) return plain;
      const target = out ?? Buffer.allocUnsafe(wanted.length);
      wanted.copy(target, position - from);
      wipeAndGiveBack(plain); // not left for the garbage collector to find some day
      position = valid;
      if (out === undefined) return target;
    }
    if (out === undefined || position === from) throw new LakebaseError('CORRUPT', `${this.path}: no frame holds ${formatLsn(from)}`);
    return out.subarray(0, position - from);
  }

  /** The bytes of the file from `start` to the end of the frame at `lastOffset`; good until the next call. */
  #sealedFrames(start: number, lastOffset: number): Buffer {
    readFully(this.#fd, FRAME_HEADER, FRAME_HEADER.length, lastOffset);
    const lastFrame = peekFrame(FRAME_HEADER, 0);
    if (lastFrame === undefined) throw new LakebaseError('CORRUPT', `${this.path}: the frame at byte ${lastOffset} is damaged`);
    const length = lastOffset - start + FRAME_HEADER_BYTES + lastFrame.length;
    const file = length <= SEALED_FRAMES_BYTES ? sealedFrames().subarray(0, length) : Buffer.allocUnsafeSlow(length);
    const read = readFully(this.#fd, file, length, start);
    return file.subarray(0, read);
  }

  /** Gives back preallocated space of a sealed segment. */
  shrink(): void {
    if (this.allocated > this.offset) ftruncateSync(this.#fd, this.offset);
    this.allocated = this.offset;
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}

/** Frames read are ciphertext, used at once: one buffer for all files, as large external allocations are what the collector runs for. */
const SEALED_FRAMES_BYTES = 1 << 20;
const FRAME_HEADER = Buffer.alloc(FRAME_HEADER_BYTES);
let sealedBuffer: Buffer | undefined;
const sealedFrames = (): Buffer => (sealedBuffer ??= Buffer.allocUnsafeSlow(SEALED_FRAMES_BYTES));

function lastAtOrBefore(sorted: readonly number[], value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const mid = (low + high) >>> 1;
    if ((sorted[mid] as number) <= value) low = mid + 1;
    else high = mid;
  }
  return low - 1;
}
