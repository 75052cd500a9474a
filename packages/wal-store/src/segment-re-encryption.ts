/** WAL under fresh data keys: a stored segment written anew into a file beside it, which the caller then puts in its place, and the wrapping of keys in
 *  directories that no store has open. Invariants: what is written was verified as it was read, piece by piece, with turns of others between;
 *  the new file is durable on return; frames, records and the end are those of the old one. */
import { open } from 'node:fs/promises';
import { setImmediate as turn } from 'node:timers/promises';
import { LakebaseError, type Logger } from '@lakebase/base';
import { type Lsn, formatLsn, lsn } from '@lakebase/ids';
import { FrameStage } from './frame-stage.ts';
import type { RecordBoundary } from './record-boundary.ts';
import type { SegmentFile } from './segment-file.ts';
import { SegmentReferences, saltName, storedSegments } from './segment-references.ts';

export interface SegmentCopy {
  /** The new file, empty; closed on return, whatever happens. */
  readonly file: SegmentFile;
  /** Where the segment's WAL begins and ends. */
  readonly boundary: RecordBoundary;
  readonly end: Lsn;
  /** A copy of at most `max` bytes, at least one. */
  readonly read: (from: Lsn, max: number) => Buffer;
}

/** A complete segment, in pieces. `next`: what the segment behind says of its beginning. Resolves with the bytes written. */
export async function copySegment(copy: SegmentCopy, next: RecordBoundary): Promise<number> {
  const { file } = copy;
  try {
    const at = begin(copy);
    while (at.position < copy.end) {
      step(copy, at);
      await turn();
    }
    const same = at.position === next.position && at.flushRecordLsn === next.flushRecordLsn && at.lastRecordLsn === next.lastRecordLsn;
    if (!same) throw new LakebaseError('CORRUPT', `${file.path}: the WAL of this segment does not fit what follows`);
    file.shrink();
    // Elsewhere than in the event loop: 16 MiB take a while.
    const handle = await open(file.path, 'r+');
    await handle.datasync().finally(() => handle.close());
    return file.offset;
  } finally {
    file.close();
  }
}

/** The segment that is being written, in one go: nothing may be appended meanwhile. */
export function copyCurrent(copy: SegmentCopy): number {
  try {
    const at = begin(copy);
    while (at.position < copy.end) step(copy, at);
    copy.file.sync();
    return copy.file.offset;
  } finally {
    copy.file.close();
  }
}

const stages = new WeakMap<SegmentFile, FrameStage>();

function begin({ file, boundary, end }: SegmentCopy): RecordBoundary {
  const stage = new FrameStage();
  stages.set(file, stage);
  stage.addContext(file, boundary);
  if (boundary.position === end) stage.write(file);
  return boundary.clone();
}

function step({ file, end, read }: SegmentCopy, at: RecordBoundary): void {
  const stage = stages.get(file) as FrameStage;
  const piece = read(at.position, Math.min(stage.room, end - at.position));
  if (piece.length === 0) throw new LakebaseError('UNAVAILABLE', `${file.path}: WAL at ${formatLsn(lsn(at.position))} is gone meanwhile`);
  stage.add(at.position, piece);
  at.push(piece);
  piece.fill(0);
  stage.write(file);
}

/** Wraps the keys of all segments in a directory anew that no store has open: what was set aside whole keeps its keys when older KEKs go. */
export async function rewrapStored(
  dir: string,
  log: Logger,
  isOld: (reference: Buffer) => boolean,
  rewrap: (references: readonly Buffer[]) => Promise<readonly Buffer[]>,
): Promise<number> {
  const references = SegmentReferences.read(dir, log);
  const old = storedSegments(dir, references).filter((s) => s.reference.length > 0 && isOld(s.reference));
  if (old.length === 0) return 0;
  const fresh = await rewrap(old.map((s) => s.reference));
  references.replace(new Map(old.map((s, i) => [saltName(s.header), fresh[i] as Buffer])));
  return old.length;
}
