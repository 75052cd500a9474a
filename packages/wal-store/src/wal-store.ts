/** Durable WAL of one timeline: a directory of framed segment files with one appender and any number of readers.
 *
 *    append(lsn, bytes)  copies into the open frame; nothing is durable yet
 *    sync()              one write and one fdatasync for everything appended since the last: call once per event-loop turn
 *    truncate(lsn)       voids a divergent tail
 *    read(lsn, max)      verified bytes up to flushLsn: from memory when recent, from frames otherwise
 *
 *  Invariants: flushLsn only covers bytes whose fdatasync returned; bytes are contiguous from firstLsn to flushLsn; after a failed append
 *  the store stands at flushLsn again with no trace of the failed bytes. After a failed fdatasync nothing more is written until the
 *  directory is opened again, because the kernel may have dropped the dirty pages. All methods but prepareNext are synchronous. */
import { mkdirSync, renameSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { LakebaseError, type Logger, errorMessage, failpointSync, silentLogger } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, XLOG_BLCKSZ, formatLsn, lsn, segmentNumber, walFileName } from '@lakebase/ids';
import { CompleteSegments } from './complete-segments.ts';
import { FrameStage } from './frame-stage.ts';
import { RecordBoundary } from './record-boundary.ts';
import { SegmentDir, isUnused, removeIfThere, writeTruncation } from './segment-dir.ts';
import { SEGMENT_FILE_BYTES, type SegmentFile } from './segment-file.ts';
import { type SegmentIo, ioError, isDiskFull, nodeIo } from './segment-io.ts';
import { isWithoutKey, saltName, storedSegments } from './segment-references.ts';
import { recoverSegment } from './segment-recovery.ts';
import { SegmentCopy } from './segment-re-encryption.ts';
import { rescueSegment } from './segment-repair.ts';
import { WalRing } from './wal-ring.ts';
import type { Damage, WalStoreOptions } from './wal-store-options.ts';

export type { Damage, WalStoreOptions } from './wal-store-options.ts';

/** Prepare the next segment once this much of the current one is used. */
const PREPARE_AFTER = WAL_SEGMENT_BYTES / 4;
const PREPARE_RETRY_MS = 1_000;
/** More missing segments in a row than this are not a few damaged files. */
const HOLES_MAX = 64;
/** Turns waited for one without unsynced WAL. */
const REST_TRIES = 1_000;
/** A complete segment on disk: its WAL and some of frame headers. */
const FULL_SEGMENT_BYTES = WAL_SEGMENT_BYTES + WAL_SEGMENT_BYTES / 64;

export class WalStore {
  readonly dir: string;
  readonly #options: WalStoreOptions;
  readonly #io: SegmentIo;
  readonly #log: Logger;
  readonly #ring: WalRing;
  readonly #files: SegmentDir;

  #current!: SegmentFile;
  #prepared: SegmentFile | undefined;
  #preparing: Promise<void> | undefined;
  /** Not at every append of a full disk. */
  #prepareAgainAt = 0;
  readonly #complete: CompleteSegments;
  #adoptedFirstLsn = lsn(0);
  #damage: Damage | undefined;
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
  #adoptions = 0;
  #copying: Promise<void> | undefined;

  private constructor(options: WalStoreOptions) {
    this.#options = options;
    this.dir = options.dir;
    this.#io = options.io ?? nodeIo;
    this.#log = options.log ?? silentLogger;
    const { dir, project, timeline, ciphers } = options;
    this.#files = new SegmentDir({ dir, project, timeline, ciphers, io: this.#io, log: this.#log });
    this.#complete = new CompleteSegments(this.#files);
    this.#ring = new WalRing(options.ringBytes ?? 4 * 1024 * 1024);
  }

  /** Opens or creates. Scans the last segment; damage is reported by {@link damage}, not thrown. */
  static open(options: WalStoreOptions): WalStore {
    const store = new WalStore(options);
    mkdirSync(options.dir, { recursive: true });
    try {
      store.#recover(false);
    } catch (error) {
      store.#closeAll();
      throw error;
    }
    return store;
  }

  /** First byte held. Older WAL was trimmed, or never existed. */
  get firstLsn(): Lsn {
    return this.#complete.firstLsn;
  }
  /** End of durable bytes. */
  get flushLsn(): Lsn {
    return this.#durable.position;
  }
  /** End and start of the last complete durable record. */
  get flushRecordLsn(): Lsn {
    return this.#durable.flushRecordLsn;
  }
  get lastRecordLsn(): Lsn {
    return this.#durable.lastRecordLsn;
  }
  /** Where the next append must begin. */
  get appendLsn(): Lsn {
    return this.#position as Lsn;
  }
  /** True after a failure that only opening the store again can cure. */
  get broken(): boolean {
    return this.#broken !== undefined;
  }
  get damage(): Damage | undefined {
    return this.#damage;
  }

  /** Takes WAL at exactly {@link appendLsn}. Throws CORRUPT for bytes that cannot be WAL, RESOURCE_EXHAUSTED on a full disk; in both cases
   *  everything since the last sync is dropped. `bytes` may be reused on return. */
  append(at: Lsn, bytes: Buffer): void {
    this.#checkUsable();
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

  /** Makes everything appended durable and returns the flush LSN. Throws like {@link append}. */
  sync(): Lsn {
    if (this.#stage.payload === 0 && !this.#unsynced) return this.flushLsn;
    this.#checkUsable();
    try {
      this.#syncAppended();
    } catch (error) {
      if (this.#broken === undefined) this.abort();
      throw ioError(error, this.#current.path, 'cannot write');
    }
    if (
      this.#position % WAL_SEGMENT_BYTES > PREPARE_AFTER &&
      this.#prepared === undefined &&
      this.#preparing === undefined &&
      performance.now() > this.#prepareAgainAt
    )
      void this.prepareNext();
    return this.flushLsn;
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
    let next = this.#prepared;
    this.#prepared = undefined;
    if (next === undefined || next.header.segment !== number) {
      next?.close();
      this.#options.mayGrow?.();
      next = this.#files.create(number);
    }
    full.shrink();
    this.#complete.keep(full);
    this.#current = next;
    this.#syncedOffset = next.offset;
    this.#syncedSequence = 0;
    this.#stage.addContext(next, this.#boundary);
  }

  /** Writes the next segment's header and zeros in the background. Never rejects: without it the appender makes a small file itself. */
  prepareNext(): Promise<void> {
    this.#preparing ??= this.#prepare(this.#current.header.segment + 1).finally(() => {
      this.#preparing = undefined;
    });
    return this.#preparing;
  }

  async #prepare(number: number): Promise<void> {
    try {
      this.#options.mayGrow?.();
      const wanted = (): boolean => !this.#closed && this.#current.header.segment + 1 === number;
      const file = await this.#files.prepare(number, wanted);
      if (wanted()) this.#prepared = file;
      else file?.close();
    } catch (error) {
      this.#prepareAgainAt = performance.now() + PREPARE_RETRY_MS;
      const path = this.#files.path(number);
      this.#log.warn({ path, err: errorMessage(error), diskFull: isDiskFull(error) }, 'cannot prepare the next WAL segment');
    }
  }

  /** Voids everything at or beyond `at`. Durable on return. */
  truncate(at: Lsn): void {
    this.#checkUsable();
    this.abort();
    if (at < this.#complete.firstLsn || at > this.flushLsn)
      throw new LakebaseError(
        'INVALID_ARGUMENT',
        `cannot truncate to ${formatLsn(at)}: WAL is ${formatLsn(this.#complete.firstLsn)} to ${formatLsn(this.flushLsn)}`,
      );
    if (at === this.flushLsn) return;
    // A cut at a segment's first byte belongs to the segment before, unless there is none.
    let target = segmentNumber(at);
    if (at % WAL_SEGMENT_BYTES === 0 && target > this.#complete.first) target--;
    const last = this.#current.header.segment;
    this.#dropPrepared();
    this.#complete.cut(target);
    if (target < last) {
      this.#current.close();
      for (let n = last; n > target; n--) this.#files.remove(n);
      this.#files.sync();
      this.#adopt(target);
    }
    if (at < this.flushLsn) {
      try {
        writeTruncation(this.#current, at);
      } catch (error) {
        this.#broken = `${this.#current.path}: ${errorMessage(error)}; the segment is rebuilt from what was durable before`;
        throw ioError(error, this.#current.path, 'cannot truncate');
      }
      this.#current.close();
      this.#adopt(target);
    }
    this.#ring.truncate(this.flushLsn);
  }

  /** A copy of at most `max` bytes from `from`, at least one, none at or beyond `limit` or the flush LSN. Empty at the end.
   *  NOT_FOUND below firstLsn; CORRUPT when the file fails its checks, which also sets {@link damage}. */
  read(from: Lsn, max: number, limit: Lsn = this.flushLsn): Buffer {
    if (this.#closed) throw new LakebaseError('CLOSED', 'the WAL store is closed');
    if (this.#damage !== undefined && from >= this.#damage.lsn)
      throw new LakebaseError('CORRUPT', `${this.#damage.path}: ${this.#damage.message}`);
    const end = Math.min(limit, this.flushLsn, this.#damage?.lsn ?? Number.POSITIVE_INFINITY);
    if (from >= end) return Buffer.alloc(0);
    if (from < this.#complete.firstLsn)
      throw new LakebaseError('NOT_FOUND', `requested WAL segment ${walFileName(segmentNumber(from))} has already been removed`);
    const recent = this.#ring.read(from, max, end);
    if (recent !== undefined) return recent;
    const number = segmentNumber(from);
    const hole = this.#complete.holes.get(number);
    if (hole !== undefined) throw new LakebaseError('CORRUPT', `${hole.path}: ${hole.message}`);
    try {
      return this.#reader(number).read(from, max, Math.min(end, (number + 1) * WAL_SEGMENT_BYTES));
    } catch (error) {
      if (isWithoutKey(error)) throw error;
      const damage = { path: this.#files.path(number), lsn: from, message: errorMessage(error) };
      this.#log.error({ ...damage, lsn: formatLsn(from) }, 'WAL on disk is damaged');
      if (number < this.#current.header.segment) this.#complete.holes.set(number, damage);
      else this.#damage ??= damage;
      throw ioError(error, damage.path, 'cannot read');
    }
  }

  #reader(number: number): SegmentFile {
    return number === this.#current.header.segment ? this.#current : this.#complete.reader(number);
  }

  #dropPrepared(): void {
    if (this.#prepared === undefined) return;
    this.#prepared.close();
    removeIfThere(this.#prepared.path);
    this.#prepared = undefined;
  }

  /** First record boundary held, and the start of the record before it when known: where a copy of this store may begin. */
  firstRecord(): { lsn: Lsn; lastRecordLsn: Lsn } {
    const first = this.#reader(this.#complete.first);
    const context = first.context();
    const known = context.flushRecordLsn;
    if (known === context.position) return { lsn: known, lastRecordLsn: context.lastRecordLsn };
    // A record continues here: its end is the first place to begin. Records end on multiples of 8.
    while (context.position < this.flushLsn) {
      const page = this.read(context.position, XLOG_BLCKSZ);
      for (let at = 0; at < page.length; at += 8) {
        context.push(page.subarray(at, at + 8));
        if (context.flushRecordLsn !== known) return { lsn: context.flushRecordLsn, lastRecordLsn: context.lastRecordLsn };
      }
    }
    throw new LakebaseError('UNAVAILABLE', `no complete record is held from ${formatLsn(this.#complete.firstLsn)} on`);
  }

  /** Removes whole segments that end at or before `before`. The current segment always stays. */
  trim(before: Lsn): void {
    let removed = 0;
    while (this.#complete.first < this.#current.header.segment && (this.#complete.first + 1) * WAL_SEGMENT_BYTES <= before) {
      failpointSync('safekeeper.trim.before-unlink');
      this.#complete.removeFirst();
      removed++;
    }
    if (removed > 0) this.#files.sync();
  }

  /** Segments before the last that failed their checks: WAL goes on, but none of theirs is served until they are {@link replaceHole}d or
   *  {@link leaveHole}d. */
  get holes(): ReadonlyMap<number, Damage> {
    return this.#complete.holes;
  }

  /** The WAL of a hole and before it is elsewhere: the store begins behind it. The file is kept aside. */
  leaveHole(number: number): void {
    this.#complete.leave(number);
  }

  /** Nobody can fill it: it becomes {@link damage}. */
  giveUpHole(number: number): void {
    const hole = this.#complete.holes.get(number);
    if (hole === undefined) return;
    this.#complete.holes.delete(number);
    this.#damage ??= { ...hole, lsn: lsn(Math.max(this.#complete.firstLsn, number * WAL_SEGMENT_BYTES)) };
  }

  /** First byte of WAL that a replacement of the hole needs. */
  holeStart(number: number): Lsn {
    return this.#complete.start(number);
  }

  /** Writes the segment anew from `bytes`, all of its WAL as somebody else has it. Throws CORRUPT when they do not fit what is around them. */
  replaceHole(number: number, bytes: Buffer): void {
    if (!this.holes.has(number)) return;
    this.#complete.replace(number, bytes, this.#current, this.#begun);
    this.#log.info({ path: this.#files.path(number) }, 'a damaged WAL segment was written anew');
  }

  /** Where the timeline began. */
  get #begun(): RecordBoundary {
    return new RecordBoundary(this.#options.startLsn, this.#options.prevRecordLsn);
  }

  /** After a failed fdatasync ({@link broken}): the current segment's durable part is written to a new file, whose pages the kernel has no opinion of,
   *  and WAL goes on there. Throws when that fails too; may be called again. */
  heal(): void {
    if (this.#broken === undefined || this.#closed) return;
    const number = this.#current.header.segment;
    const expected = this.flushLsn;
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
        this.#adopt(number);
      }
    } catch (error) {
      throw ioError(error, path, 'cannot rebuild');
    }
    this.#broken = undefined;
    this.abort();
    if (this.flushLsn !== expected)
      this.#damage = {
        path,
        lsn: this.flushLsn,
        message: `WAL ends at ${formatLsn(this.flushLsn)}, but ${formatLsn(expected)} had been durable`,
      };
    this.#log.warn({ path, flushLsn: formatLsn(this.flushLsn) }, 'the WAL segment was rebuilt after a failed fdatasync');
  }

  /** Disk used, to a few percent. */
  get diskBytes(): number {
    const full = this.#current.header.segment - this.#complete.first;
    return full * FULL_SEGMENT_BYTES + this.#current.allocated + (this.#prepared === undefined ? 0 : SEGMENT_FILE_BYTES);
  }

  /** Gives up everything at or beyond the damage, so that it can be appended again from a peer. */
  discardDamage(): void {
    if (this.#damage === undefined) return;
    const keep = this.#damage.lsn;
    // What is cut off is kept aside for a person; nothing reads it again.
    this.#closeAll();
    this.#ring.release();
    this.#files.setAsideFrom(keep);
    this.#damage = undefined;
    this.#broken = undefined;
    this.#recover(true);
  }

  /** Throws everything away and begins at `at` with the record before it at `lastRecordLsn`. */
  restartAt(at: Lsn, lastRecordLsn: Lsn): void {
    this.#closeAll();
    this.#files.removeAll();
    this.#damage = undefined;
    this.#broken = undefined;
    this.#ring.release();
    this.#begin(at, lastRecordLsn);
  }

  /** Puts other wrappings of the same keys beside the segments (docs/flows/key-path.md, rotation). `rewrap` gets those that `isOld` says need
   *  it and may take its time. Resolves with how many there were; when it rejects, run it again. No byte of WAL is touched. */
  async rewrap(
    isOld: (reference: Buffer) => boolean,
    rewrap: (references: readonly Buffer[]) => Promise<readonly Buffer[]>,
  ): Promise<number> {
    // A segment that is being prepared got its key before; afterwards it has a name.
    await this.#preparing;
    const old = storedSegments(this.dir, this.#files.references).filter((s) => s.reference.length > 0 && isOld(s.reference));
    if (old.length === 0) return 0;
    const fresh = await rewrap(old.map((s) => s.reference));
    if (this.#closed) throw new LakebaseError('CLOSED', 'the WAL store is closed');
    this.#files.references.replace(new Map(old.map((s, i) => [saltName(s.header), fresh[i] as Buffer])));
    return old.length;
  }

  /** Segments whose data key was made under a KEK that `isOld` names by what they were sealed with, whatever wraps it now. */
  sealedUnder(isOld: (reference: Buffer) => boolean): number[] {
    return storedSegments(this.dir, this.#files.references)
      .filter(({ path, header: h }) => path === this.#files.path(h.segment) && h.keyReference.length > 0 && isOld(h.keyReference))
      .map(({ header }) => header.segment);
  }

  /** Writes the WAL of a segment anew under a fresh data key, in its place. Resolves with the bytes written; 0: it is not there, or was changed
   *  meanwhile. UNAVAILABLE when what is being written does not come to rest; try again. */
  async reEncrypt(number: number): Promise<number> {
    this.#checkUsable();
    await this.#preparing;
    if (number === this.#prepared?.header.segment) this.#dropPrepared();
    if (number < this.#complete.first || number > this.#current.header.segment || this.#complete.holes.has(number)) return 0;
    const path = `${this.#files.path(number)}.anew.tmp`;
    const complete = number < this.#current.header.segment;
    if (!complete && this.#syncedSequence === 0) throw new LakebaseError('UNAVAILABLE', `${this.#current.path} is only just begun`);
    const boundary = complete ? this.#complete.boundaryAt(number, this.#begun) : this.#current.context();
    const copy = new SegmentCopy(this.#files.create(number, path), boundary, (from, max) => this.read(from, max));
    const copying = complete ? this.#copyComplete(copy, number, path) : this.#copyCurrent(copy, number, path);
    this.#copying = copying.then(() => {}).catch(() => {});
    return copying.finally(() => {
      if (copy.file !== this.#current) copy.file.close();
      removeIfThere(path);
    });
  }

  async #copyComplete(copy: SegmentCopy, number: number, path: string): Promise<number> {
    const adopted = this.#adoptions;
    const changed = (): boolean =>
      this.#closed || adopted !== this.#adoptions || number < this.#complete.first || this.#complete.holes.has(number);
    await copy.pieces(lsn((number + 1) * WAL_SEGMENT_BYTES), changed);
    if (changed()) return 0;
    const behind = number + 1 === this.#current.header.segment ? this.#current : this.#files.open(number + 1);
    try {
      copy.checkFits(behind.context());
    } finally {
      if (behind !== this.#current) behind.close();
    }
    copy.file.shrink();
    this.#complete.forget(number);
    this.#files.rename(path, number);
    return copy.file.offset;
  }

  /** Most of it while WAL goes on, the rest in one turn; then WAL goes on in the new file. */
  async #copyCurrent(copy: SegmentCopy, number: number, path: string): Promise<number> {
    const adopted = this.#adoptions;
    const changed = (): boolean => this.#closed || adopted !== this.#adoptions || number !== this.#current.header.segment;
    await copy.pieces(this.flushLsn, changed);
    for (let tries = 0; !changed() && (!this.#stage.empty || this.#unsynced); tries++) {
      if (tries === REST_TRIES) throw new LakebaseError('UNAVAILABLE', `${this.#current.path} is being written without a pause`);
      await turn();
    }
    if (changed()) throw new LakebaseError('UNAVAILABLE', `${path}: the segment was finished or cut meanwhile`);
    this.#checkUsable();
    copy.rest(this.flushLsn);
    renameSync(path, this.#files.path(number));
    this.#current.close();
    this.#current = copy.file;
    this.#current.path = this.#files.path(number);
    this.#adoptions++;
    this.#syncedOffset = this.#current.offset;
    this.#syncedSequence = this.#current.sequence;
    try {
      this.#files.sync();
    } catch (error) {
      this.#broken = `${this.dir}: fsync failed: ${errorMessage(error)}; the segment is rebuilt from what was durable before`;
      throw error;
    }
    return this.#syncedOffset;
  }

  /** Gives back the memory of an idle timeline. */
  releaseMemory(): void {
    if (!this.#stage.empty) return;
    this.#ring.release();
    this.#stage.release();
  }

  /** {@link close}, and nothing of the WAL stays in this process's buffers. */
  wipe(): Promise<void> {
    this.#stage.wipe();
    this.#ring.wipe();
    return this.close();
  }

  /** Appended but unsynced bytes are dropped. The promise waits for background preparation, after which the directory is not touched. */
  close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      this.#closeAll();
      this.#ring.release();
    }
    return Promise.all([this.#preparing, this.#copying]).then(() => {});
  }

  #closeAll(): void {
    this.#current?.close();
    this.#complete.closeAll();
    this.#prepared?.close();
    this.#prepared = undefined;
  }

  #checkUsable(): void {
    if (this.#closed) throw new LakebaseError('CLOSED', 'the WAL store is closed');
    if (this.#broken !== undefined) throw new LakebaseError('CORRUPT', this.#broken);
    if (this.#damage !== undefined) throw new LakebaseError('CORRUPT', `${this.#damage.path}: ${this.#damage.message}`);
  }

  #begin(at: Lsn, lastRecordLsn: Lsn): void {
    this.#adoptions++;
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

  /** Finds the end of WAL. With `repair`, what is damaged is cut off instead of reported. */
  #recover(repair: boolean): void {
    const { startLsn, prevRecordLsn, flushHint } = this.#options;
    let damage: Damage | undefined;
    const note = (path: string, at: number, message: string): void => {
      damage = { path, lsn: lsn(at), message };
    };
    this.#complete.holes.clear();
    for (const path of this.#files.sweep()) note(path, startLsn, 'this WAL segment was found damaged earlier');
    const segments = this.#files.numbers();
    // From the newest down: files without a frame were only prepared; the first with frames is where WAL ends.
    let last = segments.length - 1;
    for (; last >= 0; last--) {
      const number = segments[last] as number;
      const path = this.#files.path(number);
      try {
        const found = this.#adopt(number, repair);
        if (found === undefined) {
          removeIfThere(path);
          continue;
        }
        if (found.damage !== undefined) note(path, this.flushLsn, found.damage);
        break;
      } catch (error) {
        if (isWithoutKey(error)) throw error;
        if (repair) removeIfThere(path);
        else note(path, number * WAL_SEGMENT_BYTES, errorMessage(error));
      }
    }
    if (last < 0) {
      // Keep what cannot be read for a person to look at; its name keeps this member from voting.
      this.#files.markAllDamaged();
      this.#begin(startLsn, prevRecordLsn);
      if (!repair && damage === undefined && flushHint !== undefined && flushHint > startLsn)
        note(this.dir, startLsn, `no WAL file is there, but WAL up to ${formatLsn(flushHint)} had been durable`);
    } else {
      this.#complete.first = segments[0] as number;
      for (let i = 1; i <= last; i++) {
        if ((segments[i] as number) === (segments[i - 1] as number) + 1) continue;
        const hole = (segments[i - 1] as number) + 1;
        if ((segments[i] as number) - hole > HOLES_MAX || repair) {
          note(this.#files.path(hole), hole * WAL_SEGMENT_BYTES, 'this WAL segment is missing');
          break;
        }
        for (let n = hole; n < (segments[i] as number); n++)
          this.#complete.holes.set(n, {
            path: this.#files.path(n),
            lsn: lsn(n * WAL_SEGMENT_BYTES),
            message: 'this WAL segment is missing',
          });
      }
      this.#complete.firstLsn = lsn(
        Math.max(this.#complete.first * WAL_SEGMENT_BYTES, segmentNumber(startLsn) === this.#complete.first ? startLsn : 0),
      );
      // A member that was re-copied may begin in the middle of a segment: its context frame says where.
      if (this.#complete.first === this.#current.header.segment) this.#complete.firstLsn = this.#adoptedFirstLsn;
      else this.#complete.firstLsn = this.#contextLsn(this.#complete.first) ?? this.#complete.firstLsn;
    }
    if (!repair && damage === undefined && flushHint !== undefined && this.flushLsn < flushHint)
      note(this.#current.path, this.flushLsn, `WAL ends at ${formatLsn(this.flushLsn)}, but ${formatLsn(flushHint)} had been durable`);
    this.#damage = damage;
  }

  #contextLsn(number: number): Lsn | undefined {
    try {
      return this.#complete.context(number).position;
    } catch (error) {
      if (isWithoutKey(error)) throw error;
      return undefined; // Readers of that segment will find and report it.
    }
  }

  /** Makes segment `number` the current one, from its file. undefined when it is prepared but unused. Throws CORRUPT. */
  #adopt(number: number, repair = false): { damage: string | undefined } | undefined {
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
      this.#adoptions++;
      this.#current = file;
      this.#adoptedFirstLsn = state.firstLsn;
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
}
