/** Reads a WAL segment file of a safekeeper whole: its header, every frame's checksum, and with keys every frame's tag and the WAL in it.
 *  For the scrubber and for `inspect`. It writes nothing and moves nothing aside. */
import { LakebaseError, errorMessage } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';
import { EPOCH_BYTES, type FrameCipher, TAG_BYTES, frameNonce, objectBinding } from '@lakebase/envelope';
import { type Lsn, WAL_SEGMENT_BYTES, walFileName } from '@lakebase/ids';
import type { ObjectKeys } from '@lakebase/layers';
import {
  FRAME_DATA,
  FRAME_EPOCH_AT,
  FRAME_TAG_AT,
  FRAME_TRUNCATE,
  type Frame,
  SEGMENT_HEADER_BYTES,
  type SegmentHeader,
  decodeSegmentHeader,
  encodeSegmentHeader,
  scanSegment,
} from '@lakebase/wal-store';
import { type ByteSource, readWhole } from './byte-source.ts';

/** Preallocation and frame headers come on top of the WAL. */
const FILE_BYTES_MAX = 4 * WAL_SEGMENT_BYTES;

export interface SegmentFrame extends Frame {
  readonly offset: number;
  /** First bytes of the writer epoch, hexadecimal. */
  readonly epoch: string;
}

export interface SegmentCheck {
  readonly header: SegmentHeader;
  readonly frames: readonly SegmentFrame[];
  readonly startLsn: Lsn | undefined;
  readonly endLsn: Lsn | undefined;
  readonly endOffset: number;
  /** Not zero beyond the last frame: a write that was cut short, never acknowledged. */
  readonly tornBytes: number;
  /** Undefined: everything that was synced is there and, with keys, opens. */
  readonly damage: string | undefined;
  /** WAL of the segment as far as it is valid; only with keys. */
  readonly wal: Buffer | undefined;
}

export interface SegmentKeys {
  readonly keys: Pick<ObjectKeys, 'load' | 'restore'>;
  /** The newest wrapping, where there is another than the header's. */
  readonly referenceOf: (header: SegmentHeader) => Buffer;
}

/** Throws CORRUPT when the header does not validate. */
export async function checkSegment(source: ByteSource, openWith?: SegmentKeys): Promise<SegmentCheck> {
  const file = await readWhole(source, FILE_BYTES_MAX);
  if (file.length < SEGMENT_HEADER_BYTES) throw new LakebaseError('CORRUPT', `${source.name} is shorter than its header`);
  const header = readHeader(file, source.name);
  let opener: FrameOpener | undefined;
  if (openWith !== undefined) {
    const reference = openWith.referenceOf(header);
    if (reference.length > 0) await openWith.keys.load([reference]);
    const key = openWith.keys.restore(header.algorithm, reference);
    opener = new FrameOpener(file, header, (epoch) => key.frames(epoch));
  }
  const frames: SegmentFrame[] = [];
  const wal = opener === undefined ? undefined : Buffer.alloc(WAL_SEGMENT_BYTES);
  const base = header.segment * WAL_SEGMENT_BYTES;
  let unopened: string | undefined;
  const seen = (frame: Frame, offset: number): void => {
    const epoch = file.toString('hex', offset + FRAME_EPOCH_AT, offset + FRAME_EPOCH_AT + 4);
    frames.push({ ...frame, offset, epoch });
    if (opener === undefined || unopened !== undefined) return;
    try {
      const plain = opener.open(offset, frame);
      if (frame.kind === FRAME_DATA) plain.copy(wal as Buffer, frame.lsn - base);
      else if (frame.kind === FRAME_TRUNCATE) (wal as Buffer).fill(0, frame.lsn - base);
    } catch (error) {
      if (!(error instanceof LakebaseError && error.code === 'CORRUPT')) throw error;
      unopened = `the frame at byte ${offset} does not open: ${errorMessage(error)}`;
    }
  };
  const scan = scanSegment(file, header.segment, crc32c(header.salt), {
    context: (frame) => seen(frame, SEGMENT_HEADER_BYTES),
    data: seen,
    truncate: seen,
  });
  return {
    header,
    frames,
    startLsn: frames[0]?.lsn,
    endLsn: scan.endLsn,
    endOffset: scan.endOffset,
    tornBytes: Math.max(0, scan.dirtyEnd - scan.endOffset),
    damage: scan.damage ?? unopened,
    wal,
  };
}

function readHeader(file: Buffer, name: string): SegmentHeader {
  try {
    return decodeSegmentHeader(file.subarray(0, SEGMENT_HEADER_BYTES));
  } catch (error) {
    throw new LakebaseError(error instanceof LakebaseError ? error.code : 'CORRUPT', `${name}: ${errorMessage(error)}`, { cause: error });
  }
}

/** Opens frames by the epochs they carry. */
class FrameOpener {
  readonly #file: Buffer;
  readonly #cipherOf: (epoch: Buffer) => FrameCipher;
  readonly #binding: Buffer;
  readonly #bindingBytes: number;
  readonly #ciphers = new Map<string, FrameCipher>();

  constructor(file: Buffer, h: SegmentHeader, cipherOf: (epoch: Buffer) => FrameCipher) {
    this.#file = file;
    this.#cipherOf = cipherOf;
    const binding = objectBinding(h.project, h.timeline, walFileName(h.segment), encodeSegmentHeader(h));
    this.#bindingBytes = binding.length;
    this.#binding = Buffer.concat([binding, Buffer.alloc(FRAME_TAG_AT)]);
  }

  open(at: number, frame: Frame): Buffer {
    const file = this.#file;
    const epoch = file.subarray(at + FRAME_EPOCH_AT, at + FRAME_EPOCH_AT + EPOCH_BYTES);
    const name = epoch.toString('hex');
    let cipher = this.#ciphers.get(name);
    if (cipher === undefined) this.#ciphers.set(name, (cipher = this.#cipherOf(epoch)));
    this.#binding.writeUInt32BE(frame.sequence, this.#bindingBytes - 4);
    file.copy(this.#binding, this.#bindingBytes, at, at + FRAME_TAG_AT);
    const tag = file.subarray(at + FRAME_TAG_AT, at + FRAME_TAG_AT + TAG_BYTES);
    return cipher.open(
      file.subarray(frame.payloadOffset, frame.payloadOffset + frame.length),
      frameNonce(frame.sequence),
      tag,
      this.#binding,
    );
  }
}
