/** Segment files written anew: the durable part of one whose fdatasync failed, and a whole one whose bytes somebody else had.
 *  Invariant: the new file is durable before it takes its name (the caller renames), and holds nothing that was not verified. */
import { closeSync, openSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';
import { WAL_SEGMENT_BYTES, formatLsn, lsn } from '@lakebase/ids';
import { FrameStage } from './frame-stage.ts';
import type { RecordBoundary } from './record-boundary.ts';
import { PREALLOCATE_STEP, type SegmentFile, ZEROS } from './segment-file.ts';
import { type SegmentIo, readFully } from './segment-io.ts';

/** Copies the first `length` bytes of `from` to the new file `to`, with zeros behind for what comes next. They are read as they are: whoever opens
 *  the new file verifies them. */
export function rescueSegment(from: string, to: string, length: number, io: SegmentIo): void {
  const bytes = Buffer.allocUnsafeSlow(length);
  const source = openSync(from, 'r');
  try {
    if (readFully(source, bytes, length, 0) < length) throw new LakebaseError('CORRUPT', `${from} is shorter than what was durable in it`);
  } finally {
    closeSync(source);
  }
  const target = openSync(to, 'w', 0o600);
  try {
    io.write(target, bytes, 0, length, 0);
    io.write(target, ZEROS, 0, PREALLOCATE_STEP / 4, length);
    io.sync(target);
  } finally {
    closeSync(target);
  }
}

/** Fills `file` with `bytes`, which begin at `boundary` and go to the end of the segment, and closes it. `next` is what the segment behind says of
 *  its beginning, where it can say it: both must agree. Every record's checksum must hold. */
export function buildSegment(file: SegmentFile, boundary: RecordBoundary, bytes: Buffer, next: RecordBoundary | undefined): void {
  try {
    const end = (file.header.segment + 1) * WAL_SEGMENT_BYTES;
    if (boundary.position + bytes.length !== end)
      throw new LakebaseError('INVALID_ARGUMENT', `${file.path}: WAL ends at ${formatLsn(lsn(boundary.position + bytes.length))}`);
    const stage = new FrameStage();
    stage.addContext(file, boundary);
    const at = boundary.clone();
    at.verifyCrc = true;
    for (let offset = 0; offset < bytes.length; ) {
      const piece = bytes.subarray(offset, offset + stage.room);
      stage.add(at.position, piece);
      at.push(piece);
      offset += piece.length;
      stage.write(file);
    }
    const fits =
      next === undefined ||
      (at.position === next.position && at.flushRecordLsn === next.flushRecordLsn && at.lastRecordLsn === next.lastRecordLsn);
    if (!fits) throw new LakebaseError('CORRUPT', `${file.path}: the WAL that was offered for it does not fit what follows`);
    file.sync();
    file.shrink();
  } finally {
    file.close();
  }
}
