/** Brings one segment file back to life: verifies every frame, rebuilds the frame index, replays record boundaries from the segment's
 *  context frame and checks record checksums. Pure apart from reading the file. */
import { LakebaseError, errorMessage } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import { RecordBoundary } from './record-boundary.ts';
import { type Frame, SEGMENT_HEADER_BYTES } from './segment-format.ts';
import type { SegmentFile } from './segment-file.ts';
import { type ScanResult, scanSegment } from './segment-scan.ts';

export interface RecoveredSegment {
  readonly scan: ScanResult;
  readonly firstLsn: Lsn;
  /** End of usable WAL: may be before the end of valid frames when a record inside is damaged. */
  readonly endLsn: Lsn;
  readonly boundary: RecordBoundary;
  readonly damage: string | undefined;
}

interface Piece {
  readonly lsn: Lsn;
  readonly at: number;
  readonly frame: Frame;
  end: number;
}

interface Indexed {
  readonly scan: ScanResult;
  readonly bytes: Buffer;
  readonly pieces: readonly Piece[];
  readonly context: Frame | undefined;
}

/** Verifies every frame and fills the file's index. */
export function indexSegment(file: SegmentFile, number: number): Indexed {
  const bytes = file.readAll();
  const pieces: Piece[] = [];
  let context: Frame | undefined;
  const scan = scanSegment(bytes, number, file.saltCrc, {
    context: (frame) => {
      context = frame;
    },
    data: (frame, at) => pieces.push({ lsn: frame.lsn, at, frame, end: frame.lsn + frame.length }),
    truncate: (frame, at) => {
      // It has no payload, but it voids WAL: only its tag says that we wrote it.
      file.open(bytes, at, frame);
      const { lsn } = frame;
      while (pieces.length > 0 && (pieces[pieces.length - 1] as Piece).lsn >= lsn) pieces.pop();
      const last = pieces[pieces.length - 1];
      if (last !== undefined) last.end = Math.min(last.end, lsn);
    },
  });
  file.offset = scan.endOffset;
  file.sequence = scan.frames;
  file.batchStart = scan.frames;
  file.lsns = pieces.map((p) => p.lsn);
  file.offsets = pieces.map((p) => p.at);
  return { scan, bytes, pieces, context };
}

/** The whole of it, with record boundaries and checksums: for the segment where WAL ends. `state` is undefined when the segment has no
 *  valid frame. */
export function recoverSegment(file: SegmentFile, number: number): { scan: ScanResult; state: RecoveredSegment | undefined } {
  const { scan, bytes, pieces, context } = indexSegment(file, number);
  if (context === undefined) return { scan, state: undefined };
  const boundary = RecordBoundary.deserialize(file.open(bytes, SEGMENT_HEADER_BYTES, context));
  if (boundary.position !== context.lsn) throw new LakebaseError('CORRUPT', `${file.path}: context frame is inconsistent`);
  boundary.verifyCrc = true;
  let damage = scan.damage;
  const good = boundary.clone();
  for (const piece of pieces) {
    try {
      boundary.push(file.open(bytes, piece.at, piece.frame).subarray(0, piece.end - piece.lsn), piece.lsn);
    } catch (error) {
      damage ??= errorMessage(error);
      boundary.restore(good);
      break;
    }
    good.restore(boundary);
  }
  boundary.verifyCrc = false;
  return { scan, state: { scan, firstLsn: context.lsn, endLsn: boundary.position, boundary, damage } };
}
