/** The end of the log: its current segment, and the WAL appended to it that is durable or about to be.
 *  Invariants: `flushLsn` only covers bytes whose fdatasync returned; after a failed append it stands there again with no trace of the failed bytes;
 *  after a failed fdatasync nothing more is written until {@link WalAppender.rebuild}, because the kernel may have dropped the dirty pages. */
import { renameSync } from 'node:fs';
import { LakebaseError, type Logger, errorMessage, failpointSync } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn, lsn, segmentNumber } from '@lakebase/ids';
import type { CompleteSegments } from './complete-segments.ts';
import { FrameStage } from './frame-stage.ts';
import { NextSegment } from './next-segment.ts';
import { RecordBoundary } from './record-boundary.ts';
import { type SegmentDir, isUnused, writeTruncation } from './segment-dir.ts';
import type { SegmentFile } from './segment-file.ts';
import { type SegmentIo, ioError } from './segment-io.ts';
import { recoverSegment } from './segment-recovery.ts';
import { rescueSegment } from './segment-repair.ts';
import type { WalRing } from './wal-ring.ts';

/** Prepare the next segment once this much of the current one is used. */
const PREPARE_AFTER = WAL_SEGMENT_BYTES / 4;

export interface WalAppenderOptions {
  readonly files: SegmentDir;
  readonly complete: CompleteSegments;
  readonly ring: WalRing;
  readonly io: SegmentIo;
  readonly log: Logger;
  readonly mayGrow: (() => void) | undefined;
}

export class WalAppender {
  readonly #files: SegmentDir;
  readonly #complete: CompleteSegments;
  readonly #ring: WalRing;
  readonly #io: SegmentIo;
  readonly #next: NextSegment;

  #current!: SegmentFile;
  /** First byte of the current segment. */
  firstLsn = lsn(0);
  #broken: string | undefined;
  #closed = false;

  /** Boundary state including what is appended but not yet durable, and as of flushLsn. */
  #boundary!: RecordBoundary;
  #durable!: RecordBoundary;
  readonly #stage = new FrameStage();
  #position = 0;
  #unsynced = false;
  #syncedOffset = 0;
  #syncedSequence = 0;
  /** Grows when the current segment becomes another, or another file. */
  adoptions = 0;

  constructor(options: WalAppenderOptions) {
    this.#files = options.files;
    this.#complete = options.complete;
    this.#ring = options.ring;
    this.#io = options.io;
    this.#next = new NextSegment(options.files, options.log, options.mayGrow);
  }

  get current(): SegmentFile {
    return this.#current;
  }
  /** Its number. */
  get segment(): number {
    return this.#current.header.segment;
  }
  get next(): NextSegment {
    return this.#next;
  }
  /** As of the end of durable bytes. */
  get durable(): RecordBoundary {
    return this.#durable;
  }
  get flushLsn(): Lsn {
    return this.#durable.position;
  }
  /** Where the next append must begin. */
  get appendLsn(): Lsn {
    return this.#position as Lsn;
  }
  /** Why nothing may be written. */
  get broken(): string | undefined {
    return this.#broken;
  }
  /** Something waits for {@link sync}. */
  get pending(): boolean {
    return this.#stage.payload > 0 || this.#unsynced;
  }
  /** Not a byte is on its way. */
  get atRest(): boolean {
    return this.#stage.empty && !this.#unsynced;
  }
  /** The current segment has frames on disk. */
  get begun(): boolean {
    return this.#syncedSequence > 0;
  }

  /** Takes WAL at exactly {@link appendLsn}. Throws CORRUPT for bytes that cannot be WAL, RESOURCE_EXHAUSTED on a full disk; in both cases
   *  everything since the last sync is dropped. `bytes` may be reused on return. */
  append(at: Lsn, bytes: Buffer): void {
    failpointSync('safekeeper.wal.before-write');
    if (at !== this.#position)
      throw new LakebaseError('CONFLICT', `WAL arrived at ${formatLsn(at)}, expected ${formatLsn(this.appendLsn)}`);
    try {
      if (!this.#unsynced) this.#clearAbandoned();
      for (let offset = 0; offset < bytes.length; ) {
        if (segmentNumber(this.#position) !== this.#current.header.segment) this.#roll();
        const n = Math.min(bytes.length - offset, WAL_SEGMENT_BYTES - (this.#position % WAL_SEGMENT_BYTES), this.#stage.room);
        const piece = bytes.subarray(offset, offset + n);
        this.#boundary.push(piece, this.appendLsn);
        this.#stage.add(this.appendLsn, piece);
        this.#ring.write(this.appendLsn, piece);
        this.#position += n;
        offset += n;
        if (this.#stage.room === 0) this.#writeFrame();
      }
    } catch (error) {
      this.abort();
      throw ioError(error, this.#current.path, 'cannot append to');
    }
  }

  /** Makes everything appended durable. Throws like {@link append}. */
  sync(): void {
    try {
      this.#syncAppended();
    } catch (error) {
      if (this.#broken === undefined) this.abort();
      throw ioError(error, this.#current.path, 'cannot write');
    }
    if (this.#position % WAL_SEGMENT_BYTES > PREPARE_AFTER && this.#next.due) void this.prepareNext();
  }

  /** Drops what was appended since the last sync. */
  abort(): void {
    this.#stage.drop();
    this.#unsynced = false;
    this.#position = this.#durable.position;
    this.#boundary.restore(this.#durable);
    this.#ring.truncate(this.#durable.position);
    const current = this.#current;
    current.cutIndex(this.#durable.position);
    current.offset = this.#syncedOffset;
    current.sequence = this.#syncedSequence;
    current.batchStart = this.#syncedSequence;
    current.newEpoch();
    if (this.#broken !== undefined) return;
    // A segment that has no frame yet must begin with its context.
    if (this.#syncedSequence === 0) this.#stage.addContext(current, this.#boundary);
    try {
      this.#clearAbandoned();
    } catch {
      // Tried again before the next append.
    }
  }

  /** Stale frames must not follow the next ones: whatever an abandoned write left behind becomes zeros again. */
  #clearAbandoned(): void {
    const current = this.#current;
    if (current.attempted > current.offset) current.clear(current.offset, current.attempted);
  }

  #writeFrame(): void {
    if (this.#stage.payload === 0) return;
    this.#unsynced = true;
    this.#stage.write(this.#current);
  }

  #syncAppended(): void {
    this.#writeFrame();
    try {
      failpointSync('safekeeper.wal.before-sync');
      this.#current.sync();
    } catch (error) {
      // Final for this file: the kernel may have dropped what it could not write, and will not say so again.
      this.#broken = `${this.#current.path}: fdatasync failed: ${errorMessage(error)}; the segment is rebuilt from what was durable before`;
      throw error;
    }
    this.#unsynced = false;
    this.#syncedOffset = this.#current.offset;
    this.#syncedSequence = this.#current.sequence;
    this.#current.attempted = this.#syncedOffset;
    this.#durable.restore(this.#boundary);
  }

  /** Moves on to the next segment; the current one is complete and gets synced first. */
  #roll(): void {
    if (this.#stage.payload > 0 || this.#unsynced) this.#syncAppended();
    const number = segmentNumber(this.#position);
    const full = this.#current;
    const next = this.#next.take(number);
    full.shrink();
    this.#complete.keep(full);
    this.#current = next;
    this.#syncedOffset = next.offset;
    this.#syncedSequence = 0;
    this.#stage.addContext(next, this.#boundary);
  }

  /** The next segment, in the background. Never rejects. */
  prepareNext(): Promise<void> {
    const number = this.segment + 1;
    return this.#next.prepare(number, () => !this.#closed && this.segment + 1 === number);
  }

  /** Voids everything at or beyond `at`, which is within what is held. Durable on return. */
  cut(at: Lsn): void {
    if (at === this.flushLsn) return;
    // A cut at a segment's first byte belongs to the segment before, unless there is none.
    let target = segmentNumber(at);
    if (at % WAL_SEGMENT_BYTES === 0 && target > this.#complete.first) target--;
    const last = this.#current.header.segment;
    this.#next.drop();
    this.#complete.cut(target);
    if (target < last) {
      this.#current.close();
      for (let n = last; n > target; n--) this.#files.remove(n);
      this.#files.sync();
      this.adopt(target);
    }
    if (at < this.flushLsn) {
      try {
        writeTruncation(this.#current, at);
      } catch (error) {
        this.#broken = `${this.#current.path}: ${errorMessage(error)}; the segment is rebuilt from what was durable before`;
        throw ioError(error, this.#current.path, 'cannot truncate');
      }
      this.#current.close();
      this.adopt(target);
    }
    this.#ring.truncate(this.flushLsn);
  }

  /** Writes the current segment's durable part to a new file, whose pages the kernel has no opinion of; WAL goes on there. Throws when that fails too. */
  rebuild(): void {
    const number = this.#current.header.segment;
    const path = this.#files.path(number);
    try {
      if (this.#syncedSequence === 0) {
        this.#current.close();
        this.#current = this.#files.create(number);
        this.#stage.drop();
        this.#syncedOffset = this.#current.offset;
      } else {
        rescueSegment(path, `${path}.tmp`, this.#syncedOffset, this.#io);
        this.#files.rename(`${path}.tmp`, number);
        this.#current.close();
        this.adopt(number);
      }
    } catch (error) {
      throw ioError(error, path, 'cannot rebuild');
    }
    this.#broken = undefined;
    this.abort();
  }

  /** WAL goes on in another file with the same WAL, made at `path`. */
  continueIn(file: SegmentFile, path: string): void {
    const number = this.segment;
    renameSync(path, this.#files.path(number));
    this.#current.close();
    this.#current = file;
    this.#current.path = this.#files.path(number);
    this.adoptions++;
    this.#syncedOffset = this.#current.offset;
    this.#syncedSequence = this.#current.sequence;
    try {
      this.#files.sync();
    } catch (error) {
      this.#broken = `${this.#files.dir}: fsync failed: ${errorMessage(error)}; the segment is rebuilt from what was durable before`;
      throw error;
    }
  }

  /** The log begins at `at`, with the record before it at `lastRecordLsn`. */
  begin(at: Lsn, lastRecordLsn: Lsn): void {
    this.adoptions++;
    this.#boundary = new RecordBoundary(at, lastRecordLsn);
    this.#durable = this.#boundary.clone();
    this.#complete.reset(segmentNumber(at), at);
    this.#position = at;
    this.#stage.drop();
    this.#current = this.#files.create(segmentNumber(at));
    this.#syncedOffset = this.#current.offset;
    this.#syncedSequence = 0;
    this.#stage.addContext(this.#current, this.#boundary);
    this.#stage.write(this.#current);
    try {
      this.#current.sync();
    } catch (error) {
      this.#broken = `${this.#current.path}: fdatasync failed: ${errorMessage(error)}; the segment is rebuilt from what was durable before`;
      throw error;
    }
    this.#current.attempted = this.#current.offset;
    this.#syncedOffset = this.#current.offset;
    this.#syncedSequence = this.#current.sequence;
  }

  /** Makes segment `number` the current one, from its file. undefined when it is prepared but unused. Throws CORRUPT. */
  adopt(number: number, repair = false): { damage: string | undefined } | undefined {
    if (isUnused(this.#files.path(number))) return undefined;
    const file = this.#files.open(number);
    try {
      const { scan, state } = recoverSegment(file, number);
      if (state === undefined) throw new LakebaseError('CORRUPT', `${file.path}: ${scan.damage ?? 'its first frame is damaged'}`);
      if (repair || state.damage === undefined) {
        if (scan.dirtyEnd > scan.endOffset) file.clear(scan.endOffset, scan.dirtyEnd);
        if (state.endLsn < (scan.endLsn as Lsn)) writeTruncation(file, state.endLsn);
      }
      file.attempted = file.offset;
      this.adoptions++;
      this.#current = file;
      this.firstLsn = state.firstLsn;
      this.#boundary = state.boundary;
      this.#durable = state.boundary.clone();
      this.#position = state.endLsn;
      this.#syncedOffset = file.offset;
      this.#syncedSequence = file.sequence;
      this.#stage.drop();
      this.#unsynced = false;
      return { damage: repair ? undefined : state.damage };
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** Whatever was wrong with the files: others follow. */
  forgetBroken(): void {
    this.#broken = undefined;
  }

  /** Gives back the memory of an idle timeline. */
  release(): void {
    this.#stage.release();
  }
  get empty(): boolean {
    return this.#stage.empty;
  }
  wipe(): void {
    this.#stage.wipe();
  }

  closeFiles(): void {
    this.#current?.close();
    this.#next.close();
  }
  close(): void {
    this.#closed = true;
    this.closeFiles();
  }
}
