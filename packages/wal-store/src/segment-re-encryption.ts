/** WAL under fresh data keys: a stored segment written anew into a file beside it, which the caller then puts in its place, and the wrapping of keys in
 *  directories that no store has open. Invariants: what is written was verified as it was read, piece by piece, with turns of others between;
 *  the new file is durable on return; frames, records and the end are those of the old one. */
import { open } from 'node:fs/promises';
import { setImmediate as turn } from 'node:timers/promises';
import { LakebaseError, type Logger } from '@lakebase/base';
import { wipeAndGiveBack } from '@lakebase/bytes';
import { type Lsn, formatLsn } from '@lakebase/ids';
import { FrameStage } from './frame-stage.ts';
import type { RecordBoundary } from './record-boundary.ts';
import type { SegmentFile } from './segment-file.ts';
import { SegmentReferences, saltName, storedSegments } from './segment-references.ts';

/** A segment's WAL on its way into another file. */
export class SegmentCopy {
  readonly file: SegmentFile;
  /** Behind what is copied. */
  readonly boundary: RecordBoundary;
  readonly #read: (from: Lsn, max: number) => Buffer;
  readonly #stage = new FrameStage();

  /** `file` is new and empty; `boundary`: where the WAL begins; `read` gives a copy of at most `max` bytes, at least one. */
  constructor(file: SegmentFile, boundary: RecordBoundary, read: (from: Lsn, max: number) => Buffer) {
    this.file = file;
    this.boundary = boundary.clone();
    this.#read = read;
    this.#stage.addContext(file, boundary);
    this.#stage.write(file);
  }

  /** Up to `end`, with turns of others between pieces; what was written is durable on return. `stop`: it is not wanted any more. */
  async pieces(end: Lsn, stop: () => boolean): Promise<void> {
    while (this.boundary.position < end && !stop()) {
      this.#step(end);
      await turn();
    }
    // Elsewhere than in the event loop: 16 MiB take a while.
    const handle = await open(this.file.path, 'r+');
    await handle.datasync().finally(() => handle.close());
  }

  /** Up to `end`, durable, in this turn. */
  rest(end: Lsn): void {
    while (this.boundary.position < end) this.#step(end);
    this.file.sync();
  }

  #step(end: Lsn): void {
    const { position } = this.boundary;
    const piece = this.#read(position, Math.min(this.#stage.room, end - position));
    if (piece.length === 0) throw new LakebaseError('UNAVAILABLE', `${this.file.path}: WAL at ${formatLsn(position)} is gone meanwhile`);
    this.#stage.add(position, piece);
    this.boundary.push(piece);
    wipeAndGiveBack(piece);
    this.#stage.write(this.file);
  }

  /** Throws CORRUPT unless what the segment behind says of its beginning is where this one ends. */
  checkFits(next: RecordBoundary): void {
    const { position, flushRecordLsn, lastRecordLsn } = this.boundary;
    if (position !== next.position || flushRecordLsn !== next.flushRecordLsn || lastRecordLsn !== next.lastRecordLsn)
      throw new LakebaseError('CORRUPT', `${this.file.path}: the WAL of this segment does not fit what follows`);
  }
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
