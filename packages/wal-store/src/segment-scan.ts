/** Walks the frames of a whole segment file held in memory and says where its valid part ends and why.
 *  A frame that does not validate is a torn tail when nothing that was made durable later follows it, and damage otherwise: a later frame
 *  of the same salt whose batch began after the bad frame proves that the bad one had been synced. */
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn } from '@lakebase/ids';
import {
  FRAME_CONTEXT,
  FRAME_DATA,
  FRAME_MAGIC,
  FRAME_TRUNCATE,
  type Frame,
  SEGMENT_HEADER_BYTES,
  alignFrame,
  parseFrame,
} from './segment-format.ts';

export interface ScanHandler {
  /** First frame of a segment: state at its first byte. */
  context(frame: Frame): void;
  data(frame: Frame, frameOffset: number): void;
  /** Throws when the frame is not what was written there. */
  truncate(frame: Frame, frameOffset: number): void;
}

export interface ScanResult {
  /** Frames that validated; 0 for a prepared segment. */
  readonly frames: number;
  /** Where the next frame belongs. */
  readonly endOffset: number;
  /** End of valid WAL; undefined when there is no frame. */
  readonly endLsn: Lsn | undefined;
  /** Last byte that is not zero, plus one: what must be cleared before the next append when it lies beyond endOffset. */
  readonly dirtyEnd: number;
  /** Set when the end is not an honest end. */
  readonly damage: string | undefined;
}

const MAGIC = Buffer.alloc(4);
MAGIC.writeUInt32BE(FRAME_MAGIC);

export function scanSegment(file: Buffer, segment: number, saltCrc: number, handler: ScanHandler): ScanResult {
  const segmentEnd = (segment + 1) * WAL_SEGMENT_BYTES;
  let offset = SEGMENT_HEADER_BYTES;
  let sequence = 0;
  let end: number | undefined;
  let damage: string | undefined;
  for (;;) {
    const frame = parseFrame(file, offset, saltCrc);
    if (frame === undefined || frame.sequence !== sequence) break;
    if ((sequence === 0) !== (frame.kind === FRAME_CONTEXT)) {
      damage = `frame ${sequence} is out of place`;
    } else if (frame.kind === FRAME_CONTEXT) {
      end = frame.lsn;
      if (Math.floor(end / WAL_SEGMENT_BYTES) !== segment) damage = `its first LSN ${formatLsn(frame.lsn)} belongs to another segment`;
      else handler.context(frame);
    } else if (frame.kind === FRAME_DATA) {
      if (frame.lsn !== end || frame.lsn + frame.length > segmentEnd) damage = `frame ${sequence} does not continue the one before`;
      else {
        handler.data(frame, offset);
        end = frame.lsn + frame.length;
      }
    } else if (frame.kind === FRAME_TRUNCATE) {
      if (frame.lsn > (end as number)) damage = `truncation to ${formatLsn(frame.lsn)} is beyond its end`;
      else {
        handler.truncate(frame, offset);
        end = frame.lsn;
      }
    }
    if (damage !== undefined) break;
    sequence++;
    offset = frame.next;
  }
  if (damage === undefined && laterSyncedFrame(file, offset, sequence, saltCrc))
    damage = `the frame at byte ${offset} is invalid but later ones are valid`;
  return { frames: sequence, endOffset: offset, endLsn: end as Lsn | undefined, dirtyEnd: lastNonZero(file, offset), damage };
}

function laterSyncedFrame(file: Buffer, from: number, expected: number, saltCrc: number): boolean {
  for (let at = file.indexOf(MAGIC, from); at >= 0; at = file.indexOf(MAGIC, at + 1)) {
    if (at !== alignFrame(at)) continue;
    const frame = parseFrame(file, at, saltCrc);
    if (frame !== undefined && frame.sequence > expected && frame.batchStart > expected) return true;
  }
  return false;
}

/** Offset after the last byte that is not zero, at least `from`. */
export function lastNonZero(file: Buffer, from: number): number {
  let end = file.length;
  // Preallocated zeros are most of the file: step over them by blocks first.
  while (end - 4096 >= from && ZERO_BLOCK.equals(file.subarray(end - 4096, end))) end -= 4096;
  while (end > from && file[end - 1] === 0) end--;
  return end;
}
const ZERO_BLOCK = Buffer.alloc(4096);
