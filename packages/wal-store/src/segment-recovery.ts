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

/** undefined when the segment has no valid frame: prepared but never written, or (`scan.damage`) damaged at its very start. */
export function recoverSegment(file: SegmentFile, number: number): { scan: ScanResult; state: RecoveredSegment | undefined } {
  const bytes = file.readAll();
  const pieces: Piece[] = [];
  let context: { frame: Frame; at: number } | undefined;
  const scan = scanSegment(bytes, number, file.saltCrc, {
    context: (frame) => {
      context = { frame, at: SEGMENT_HEADER_BYTES };
    },
    data: (frame, at) => pieces.push({ lsn: frame.lsn, at, frame, end: frame.lsn + frame.length }),
    truncate: (lsn) => {
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
  if (context === undefined) return { scan, state: undefined };
  const boundary = RecordBoundary.deserialize(file.open(bytes, context.at, context.frame));
  if (boundary.position !== context.frame.lsn) throw new LakebaseError('CORRUPT', `${file.path}: context frame is inconsistent`);
  boundary.verifyCrc = true;
  let damage = scan.damage;
  let good = boundary.clone();
  for (const piece of pieces) {
    try {
      boundary.push(file.open(bytes, piece.at, piece.frame).subarray(0, piece.end - piece.lsn), piece.lsn);
    } catch (error) {
      damage ??= errorMessage(error);
      break;
    }
    good = boundary.clone();
  }
  if (damage !== undefined && good.position < (scan.endLsn ?? 0)) boundary.restore(good);
  boundary.verifyCrc = false;
  return { scan, state: { scan, firstLsn: context.frame.lsn, endLsn: boundary.position, boundary, damage } };
}
