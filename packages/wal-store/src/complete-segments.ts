/** The segments before the last: read handles on a few of them, and holes, those whose file failed its checks or is gone.
 *  Invariants: segments from `first` to the last are contiguous, holes counted; nothing of a hole is served; a hole is filled only with bytes whose
 *  records hold and which fit what is known of their neighbours. */
import { LakebaseError } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, lsn } from '@lakebase/ids';
import { RecordBoundary } from './record-boundary.ts';
import { type SegmentDir, removeIfThere } from './segment-dir.ts';
import type { SegmentFile } from './segment-file.ts';
import { isWithoutKey } from './segment-references.ts';
import { indexSegment, recoverSegment } from './segment-recovery.ts';
import { buildSegment } from './segment-repair.ts';
import type { Damage } from './wal-store-options.ts';

/** Read handles kept. */
const READ_HANDLES = 3;

export class CompleteSegments {
  /** Number of the oldest segment, and the first byte held. */
  first = 0;
  firstLsn: Lsn = lsn(0);
  readonly holes = new Map<number, Damage>();
  readonly #files: SegmentDir;
  readonly #readers = new Map<number, SegmentFile>();

  constructor(files: SegmentDir) {
    this.#files = files;
  }

  /** Begins anew. */
  reset(first: number, firstLsn: Lsn): void {
    this.closeAll();
    this.holes.clear();
    this.first = first;
    this.firstLsn = firstLsn;
  }

  /** Verified and indexed. Throws CORRUPT. */
  reader(number: number): SegmentFile {
    const open = this.#readers.get(number);
    if (open !== undefined) return open;
    const file = this.#files.open(number);
    const { scan } = indexSegment(file, number);
    if (scan.damage !== undefined || scan.endLsn !== (number + 1) * WAL_SEGMENT_BYTES) {
      file.close();
      throw new LakebaseError('CORRUPT', `${file.path}: ${scan.damage ?? 'it ends before its last byte'}`);
    }
    this.keep(file);
    return file;
  }

  /** A handle that is at hand already. */
  keep(file: SegmentFile): void {
    this.#readers.set(file.header.segment, file);
    for (const [number, old] of this.#readers) {
      if (this.#readers.size <= READ_HANDLES) break;
      this.#readers.delete(number);
      old.close();
    }
  }

  /** The file of this name is another one from now on. */
  forget(number: number): void {
    this.#readers.get(number)?.close();
    this.#readers.delete(number);
  }

  closeAll(): void {
    for (const file of this.#readers.values()) file.close();
    this.#readers.clear();
  }

  /** WAL ends in `last` now. */
  cut(last: number): void {
    this.closeAll();
    for (const hole of this.holes.keys()) if (hole > last) this.holes.delete(hole);
  }

  /** Removes the oldest segment. */
  removeFirst(): void {
    this.#files.remove(this.first);
    this.#pass();
  }

  #pass(): void {
    this.forget(this.first);
    this.holes.delete(this.first);
    this.first++;
    this.firstLsn = lsn(this.first * WAL_SEGMENT_BYTES);
  }

  /** The WAL of a hole and before it is elsewhere: the log begins behind it. The file is kept aside. */
  leave(number: number): void {
    if (!this.holes.has(number)) return;
    while (this.first < number) this.removeFirst();
    this.#files.setAside(number);
    this.#pass();
    this.#files.sync();
  }

  /** First byte of WAL that a replacement of the hole needs. */
  start(number: number): Lsn {
    return lsn(number === this.first ? this.firstLsn : number * WAL_SEGMENT_BYTES);
  }

  /** Writes the segment anew from `bytes`, all of its WAL as somebody else has it. `begin`: what is known of the timeline's first byte. */
  replace(number: number, bytes: Buffer, current: SegmentFile, begin: RecordBoundary): void {
    if (!this.holes.has(number)) return;
    const boundary = this.boundaryAt(number, begin);
    const path = `${this.#files.path(number)}.tmp`;
    try {
      buildSegment(this.#files.create(number, path), boundary, bytes, this.#contextBehind(number, current));
    } catch (error) {
      removeIfThere(path);
      throw error;
    }
    this.forget(number);
    this.#files.setAside(number);
    this.#files.rename(path, number);
    this.holes.delete(number);
  }

  /** What the segment behind a hole says of its beginning; nothing when it is a hole too. */
  #contextBehind(number: number, current: SegmentFile): RecordBoundary | undefined {
    if (this.holes.has(number + 1)) return undefined;
    return number + 1 === current.header.segment ? current.context() : this.context(number + 1);
  }

  /** What a segment says of its beginning. Throws when it cannot be read. */
  context(number: number): RecordBoundary {
    const file = this.#files.open(number);
    try {
      return file.context();
    } finally {
      file.close();
    }
  }

  /** Record boundaries where a segment begins: its own word, or that of the segment before, or the timeline's start. */
  boundaryAt(number: number, begin: RecordBoundary): RecordBoundary {
    const start = this.start(number);
    try {
      return this.context(number);
    } catch (error) {
      if (isWithoutKey(error)) throw error;
    }
    if (start === begin.position) return begin;
    if (number > this.first && !this.holes.has(number - 1)) {
      const before = this.#files.open(number - 1);
      try {
        const { state } = recoverSegment(before, number - 1);
        if (state?.endLsn === start) return state.boundary;
      } finally {
        before.close();
      }
    }
    throw new LakebaseError('UNAVAILABLE', `it is not known where records begin in ${this.#files.path(number)}`);
  }
}
