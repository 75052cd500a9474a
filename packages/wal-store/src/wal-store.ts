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
import { copyFileSync, mkdirSync, openSync, readFileSync, readdirSync, renameSync, unlinkSync } from 'node:fs';
import { open as openAsync } from 'node:fs/promises';
import { join } from 'node:path';
import { LakebaseError, type Logger, errorMessage, silentLogger } from '@lakebase/base';
import type { CipherProvider, ObjectKey } from '@lakebase/envelope';
import {
  type Lsn,
  type ProjectUid,
  type TimelineId,
  WAL_SEGMENT_BYTES,
  XLOG_BLCKSZ,
  formatLsn,
  lsn,
  segmentNumber,
  walFileName,
} from '@lakebase/ids';
import { BOUNDARY_STATE_BYTES, RecordBoundary } from './record-boundary.ts';
import {
  FRAME_CONTEXT,
  FRAME_DATA,
  FRAME_HEADER_BYTES,
  FRAME_PAYLOAD_MAX,
  FRAME_TRUNCATE,
  SEGMENT_HEADER_BYTES,
  type SegmentHeader,
  alignFrame,
  encodeSegmentHeader,
} from './segment-format.ts';
import { SEGMENT_FILE_BYTES, SegmentFile, ZEROS, newSegmentHeader } from './segment-file.ts';
import { type SegmentIo, ioError, isDiskFull, nodeIo, syncDirectory } from './segment-io.ts';
import {
  DAMAGED_SUFFIX,
  QUARANTINE,
  SEGMENT_NAME,
  SegmentReferences,
  isWithoutKey,
  saltName,
  storedSegments,
} from './segment-references.ts';
import { indexSegment, recoverSegment } from './segment-recovery.ts';
import { lastNonZero } from './segment-scan.ts';
import { WalRing } from './wal-ring.ts';

export interface WalStoreOptions {
  readonly dir: string;
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  /** Where a store that has no file yet begins, and the record before that. */
  readonly startLsn: Lsn;
  readonly prevRecordLsn: Lsn;
  /** WAL known to have been durable (from the control file): an end before it is damage, not a torn tail. */
  readonly flushHint?: Lsn;
  /** Of the project. What is stored is loaded before: {@link storedReferences}. */
  readonly ciphers: CipherProvider;
  readonly log?: Logger;
  /** Recent WAL kept in memory for readers; 0 turns it off. */
  readonly ringBytes?: number;
  readonly io?: SegmentIo;
}

export interface Damage {
  readonly path: string;
  /** Nothing at or beyond this is served. */
  readonly lsn: Lsn;
  readonly message: string;
}

/** Prepare the next segment once this much of the current one is used. */
const PREPARE_AFTER = WAL_SEGMENT_BYTES / 4;
const PREPARE_RETRY_MS = 1_000;
/** Read handles kept on older segments. */
const READ_HANDLES = 3;
const CONTEXT_FRAME_BYTES = alignFrame(FRAME_HEADER_BYTES + BOUNDARY_STATE_BYTES);

export class WalStore {
  readonly dir: string;
  readonly #options: WalStoreOptions;
  readonly #io: SegmentIo;
  readonly #log: Logger;
  readonly #ciphers: CipherProvider;
  readonly #ring: WalRing;
  readonly #references: SegmentReferences;

  #current!: SegmentFile;
  #prepared: SegmentFile | undefined;
  #preparing: Promise<void> | undefined;
  /** Not at every append of a full disk. */
  #prepareAgainAt = 0;
  #readers = new Map<number, SegmentFile>();
  /** Numbers of the segments that hold WAL, first and last; there are no holes. */
  #firstSegment = 0;
  #firstLsn = lsn(0);
  #adoptedFirstLsn = lsn(0);
  #damage: Damage | undefined;
  #broken: string | undefined;
  #closed = false;

  /** Boundary state including what is appended but not yet durable, and as of flushLsn. */
  #boundary!: RecordBoundary;
  #durable!: RecordBoundary;
  /** Bytes of the open frame in `#stage`, after its header. */
  #stage = Buffer.allocUnsafe(0);
  #stageBase = 0;
  #framePayload = 0;
  #frameLsn = 0;
  #position = 0;
  #unsynced = false;
  #syncedOffset = 0;
  #syncedSequence = 0;

  private constructor(options: WalStoreOptions) {
    this.#options = options;
    this.dir = options.dir;
    this.#io = options.io ?? nodeIo;
    this.#log = options.log ?? silentLogger;
    this.#ciphers = options.ciphers;
    this.#references = SegmentReferences.read(options.dir, this.#log);
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
    return this.#firstLsn;
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
    if (at !== this.#position)
      throw new LakebaseError('CONFLICT', `WAL arrived at ${formatLsn(at)}, expected ${formatLsn(this.appendLsn)}`);
    try {
      if (!this.#unsynced) this.#clearAbandoned();
      for (let offset = 0; offset < bytes.length; ) {
        if (segmentNumber(this.#position) !== this.#current.header.segment) this.#roll();
        const n = Math.min(
          bytes.length - offset,
          WAL_SEGMENT_BYTES - (this.#position % WAL_SEGMENT_BYTES),
          FRAME_PAYLOAD_MAX - this.#framePayload,
        );
        const piece = bytes.subarray(offset, offset + n);
        this.#boundary.push(piece, this.appendLsn);
        this.#stageBytes(piece);
        offset += n;
        if (this.#framePayload === FRAME_PAYLOAD_MAX) this.#writeFrame();
      }
    } catch (error) {
      this.abort();
      throw ioError(error, this.#current.path, 'cannot append to');
    }
  }

  /** Makes everything appended durable and returns the flush LSN. Throws like {@link append}. */
  sync(): Lsn {
    if (this.#framePayload === 0 && !this.#unsynced) return this.flushLsn;
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
    this.#stageBase = 0;
    this.#framePayload = 0;
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
    if (this.#broken === undefined) {
      try {
        this.#clearAbandoned();
      } catch {
        // Tried again before the next append.
      }
    }
  }

  /** Stale frames must not follow the next ones: whatever an abandoned write left behind becomes zeros again. */
  #clearAbandoned(): void {
    const current = this.#current;
    if (current.attempted > current.offset) current.clear(current.offset, current.attempted);
  }

  #stageBytes(piece: Buffer): void {
    if (this.#framePayload === 0) this.#frameLsn = this.#position;
    const need = this.#stageBase + FRAME_HEADER_BYTES + this.#framePayload + piece.length;
    if (need + 8 > this.#stage.length) {
      const grown = Buffer.allocUnsafeSlow(Math.min(Math.max(need + 8, 2 * this.#stage.length, 32 * 1024), need + 8 + FRAME_PAYLOAD_MAX));
      this.#stage.copy(grown, 0, 0, this.#stageBase + FRAME_HEADER_BYTES + this.#framePayload);
      this.#stage = grown;
    }
    piece.copy(this.#stage, this.#stageBase + FRAME_HEADER_BYTES + this.#framePayload);
    this.#framePayload += piece.length;
    this.#ring.write(this.appendLsn, piece);
    this.#position += piece.length;
  }

  /** Seals and writes the open frame, and a context frame staged before it. */
  #writeFrame(): void {
    if (this.#framePayload === 0) return;
    const current = this.#current;
    const frameOffset = current.offset + this.#stageBase;
    const size = current.seal(this.#stage, this.#stageBase, FRAME_DATA, this.#frameLsn as Lsn, this.#framePayload);
    this.#unsynced = true;
    const length = this.#stageBase + size;
    current.write(this.#stage, length);
    current.addToIndex(this.#frameLsn as Lsn, frameOffset);
    this.#stageBase = 0;
    this.#framePayload = 0;
  }

  #syncAppended(): void {
    this.#writeFrame();
    try {
      this.#current.sync();
    } catch (error) {
      this.#broken = `${this.#current.path}: fdatasync failed: ${errorMessage(error)}; restart this member`;
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
    if (this.#framePayload > 0 || this.#unsynced) this.#syncAppended();
    const number = segmentNumber(this.#position);
    const full = this.#current;
    let next = this.#prepared;
    this.#prepared = undefined;
    if (next === undefined || next.header.segment !== number) {
      next?.close();
      next = this.#createSegment(number);
    }
    full.shrink();
    this.#keepReader(full);
    this.#current = next;
    this.#syncedOffset = next.offset;
    this.#syncedSequence = 0;
    this.#stageContext();
  }

  #stageContext(): void {
    if (this.#stage.length < CONTEXT_FRAME_BYTES) this.#stage = Buffer.allocUnsafeSlow(32 * 1024);
    const state = this.#boundary.serialize();
    state.copy(this.#stage, FRAME_HEADER_BYTES);
    this.#stageBase = this.#current.seal(this.#stage, 0, FRAME_CONTEXT, this.#boundary.position, state.length);
  }

  #path(number: number): string {
    return join(this.dir, walFileName(number));
  }

  #createSegment(number: number): SegmentFile {
    const path = this.#path(number);
    removeIfThere(path);
    const key = this.#ciphers.create();
    const header = newSegmentHeader(this.#options.project, this.#options.timeline, number, key);
    return SegmentFile.create(this.dir, path, header, key, this.#io);
  }

  /** Writes the next segment's header and zeros in the background. Never rejects: without it the appender makes a small file itself. */
  prepareNext(): Promise<void> {
    this.#preparing ??= this.#prepare(this.#current.header.segment + 1).finally(() => {
      this.#preparing = undefined;
    });
    return this.#preparing;
  }

  async #prepare(number: number): Promise<void> {
    const path = this.#path(number);
    const temporary = `${path}.tmp`;
    try {
      const key = this.#ciphers.create();
      const header = newSegmentHeader(this.#options.project, this.#options.timeline, number, key);
      const handle = await openAsync(temporary, 'w', 0o600);
      try {
        for (let at = 0; at < SEGMENT_FILE_BYTES && !this.#closed; at += ZEROS.length)
          await handle.write(ZEROS, 0, Math.min(ZEROS.length, SEGMENT_FILE_BYTES - at), at);
        await handle.write(encodeSegmentHeader(header), 0, SEGMENT_HEADER_BYTES, 0);
        await handle.sync();
      } finally {
        await handle.close();
      }
      // A roll or a truncation may have changed which segment is next; from here to the end is one turn.
      if (this.#closed || this.#current.header.segment + 1 !== number) return removeIfThere(temporary);
      renameSync(temporary, path);
      syncDirectory(this.dir);
      this.#prepared = new SegmentFile(path, openSync(path, 'r+'), header, key, this.#io);
    } catch (error) {
      removeIfThere(temporary);
      this.#prepareAgainAt = performance.now() + PREPARE_RETRY_MS;
      this.#log.warn({ path, err: errorMessage(error), diskFull: isDiskFull(error) }, 'cannot prepare the next WAL segment');
    }
  }

  /** Voids everything at or beyond `at`. Durable on return. */
  truncate(at: Lsn): void {
    this.#checkUsable();
    this.abort();
    if (at < this.#firstLsn || at > this.flushLsn)
      throw new LakebaseError(
        'INVALID_ARGUMENT',
        `cannot truncate to ${formatLsn(at)}: WAL is ${formatLsn(this.#firstLsn)} to ${formatLsn(this.flushLsn)}`,
      );
    if (at === this.flushLsn) return;
    // A cut at a segment's first byte belongs to the segment before, unless there is none.
    let target = segmentNumber(at);
    if (at % WAL_SEGMENT_BYTES === 0 && target > this.#firstSegment) target--;
    const last = this.#current.header.segment;
    this.#dropPrepared();
    this.#closeReaders();
    if (target < last) {
      this.#current.close();
      for (let n = last; n > target; n--) removeIfThere(this.#path(n));
      syncDirectory(this.dir);
      this.#adopt(target);
    }
    if (at < this.flushLsn) {
      try {
        writeTruncation(this.#current, at);
      } catch (error) {
        this.#broken = `${this.#current.path}: ${errorMessage(error)}; restart this member`;
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
    if (from < this.#firstLsn)
      throw new LakebaseError('NOT_FOUND', `requested WAL segment ${walFileName(segmentNumber(from))} has already been removed`);
    const recent = this.#ring.read(from, max, end);
    if (recent !== undefined) return recent;
    const number = segmentNumber(from);
    try {
      return this.#reader(number).read(from, max, Math.min(end, (number + 1) * WAL_SEGMENT_BYTES));
    } catch (error) {
      if (isWithoutKey(error)) throw error;
      const damage = { path: this.#path(number), lsn: from, message: errorMessage(error) };
      this.#damage ??= damage;
      this.#log.error({ ...damage, lsn: formatLsn(from) }, 'WAL on disk is damaged');
      throw ioError(error, damage.path, 'cannot read');
    }
  }

  #reader(number: number): SegmentFile {
    if (number === this.#current.header.segment) return this.#current;
    const open = this.#readers.get(number);
    if (open !== undefined) return open;
    const file = this.#openSegment(number);
    const { scan } = indexSegment(file, number);
    if (scan.damage !== undefined || scan.endLsn !== (number + 1) * WAL_SEGMENT_BYTES) {
      file.close();
      throw new LakebaseError('CORRUPT', `${file.path}: ${scan.damage ?? 'it ends before its last byte'}`);
    }
    this.#keepReader(file);
    return file;
  }

  #keepReader(file: SegmentFile): void {
    this.#readers.set(file.header.segment, file);
    for (const [number, old] of this.#readers) {
      if (this.#readers.size <= READ_HANDLES) break;
      this.#readers.delete(number);
      old.close();
    }
  }

  #closeReaders(): void {
    for (const file of this.#readers.values()) file.close();
    this.#readers.clear();
  }

  #dropPrepared(): void {
    if (this.#prepared === undefined) return;
    this.#prepared.close();
    removeIfThere(this.#prepared.path);
    this.#prepared = undefined;
  }

  /** First record boundary held, and the start of the record before it when known: where a copy of this store may begin. */
  firstRecord(): { lsn: Lsn; lastRecordLsn: Lsn } {
    const first = this.#reader(this.#firstSegment);
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
    throw new LakebaseError('UNAVAILABLE', `no complete record is held from ${formatLsn(this.#firstLsn)} on`);
  }

  /** Removes whole segments that end at or before `before`. The current segment always stays. */
  trim(before: Lsn): void {
    let removed = 0;
    while (this.#firstSegment < this.#current.header.segment && (this.#firstSegment + 1) * WAL_SEGMENT_BYTES <= before) {
      this.#readers.get(this.#firstSegment)?.close();
      this.#readers.delete(this.#firstSegment);
      removeIfThere(this.#path(this.#firstSegment));
      this.#firstSegment++;
      this.#firstLsn = lsn(this.#firstSegment * WAL_SEGMENT_BYTES);
      removed++;
    }
    if (removed > 0) syncDirectory(this.dir);
  }

  /** Gives up everything at or beyond the damage, so that it can be appended again from a peer. */
  discardDamage(): void {
    if (this.#damage === undefined) return;
    const keep = this.#damage.lsn;
    // What is cut off is kept aside for a person; nothing reads it again.
    const quarantine = join(this.dir, QUARANTINE);
    mkdirSync(quarantine, { recursive: true });
    this.#closeAll();
    this.#ring.release();
    for (const name of readdirSync(this.dir)) {
      const path = join(this.dir, name);
      if (name.endsWith(DAMAGED_SUFFIX)) renameSync(path, join(quarantine, name));
      else if (SEGMENT_NAME.test(name) && segmentOfName(name) * WAL_SEGMENT_BYTES >= keep) renameSync(path, join(quarantine, name));
      else if (SEGMENT_NAME.test(name) && segmentOfName(name) === segmentNumber(keep)) copyFileSync(path, join(quarantine, name));
    }
    syncDirectory(this.dir);
    this.#damage = undefined;
    this.#broken = undefined;
    this.#recover(true);
  }

  /** Throws everything away and begins at `at` with the record before it at `lastRecordLsn`. */
  restartAt(at: Lsn, lastRecordLsn: Lsn): void {
    this.#closeAll();
    for (const name of readdirSync(this.dir)) if (SEGMENT_NAME.test(name)) removeIfThere(join(this.dir, name));
    syncDirectory(this.dir);
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
    const old = storedSegments(this.dir, this.#references).filter((s) => s.reference.length > 0 && isOld(s.reference));
    if (old.length === 0) return 0;
    const fresh = await rewrap(old.map((s) => s.reference));
    if (this.#closed) throw new LakebaseError('CLOSED', 'the WAL store is closed');
    this.#references.replace(new Map(old.map((s, i) => [saltName(s.header), fresh[i] as Buffer])));
    return old.length;
  }

  /** Gives back the memory of an idle timeline. */
  releaseMemory(): void {
    if (this.#framePayload > 0 || this.#stageBase > 0) return;
    this.#ring.release();
    this.#stage = Buffer.allocUnsafe(0);
  }

  /** {@link close}, and nothing of the WAL stays in this process's buffers. */
  wipe(): Promise<void> {
    this.#stage.fill(0);
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
    return this.#preparing ?? Promise.resolve();
  }

  #closeAll(): void {
    this.#current?.close();
    this.#closeReaders();
    this.#prepared?.close();
    this.#prepared = undefined;
  }

  #checkUsable(): void {
    if (this.#closed) throw new LakebaseError('CLOSED', 'the WAL store is closed');
    if (this.#broken !== undefined) throw new LakebaseError('CORRUPT', this.#broken);
    if (this.#damage !== undefined) throw new LakebaseError('CORRUPT', `${this.#damage.path}: ${this.#damage.message}`);
  }

  #begin(at: Lsn, lastRecordLsn: Lsn): void {
    this.#boundary = new RecordBoundary(at, lastRecordLsn);
    this.#durable = this.#boundary.clone();
    this.#current = this.#createSegment(segmentNumber(at));
    this.#firstSegment = segmentNumber(at);
    this.#firstLsn = at;
    this.#position = at;
    this.#framePayload = 0;
    this.#stageContext();
    this.#current.write(this.#stage, this.#stageBase);
    this.#stageBase = 0;
    this.#current.sync();
    this.#current.attempted = this.#current.offset;
    this.#syncedOffset = this.#current.offset;
    this.#syncedSequence = this.#current.sequence;
  }

  #segments(): number[] {
    return readdirSync(this.dir)
      .filter((name) => SEGMENT_NAME.test(name))
      .map(segmentOfName)
      .sort((a, b) => a - b);
  }

  /** Finds the end of WAL. With `repair`, what is damaged is cut off instead of reported. */
  #recover(repair: boolean): void {
    const { startLsn, prevRecordLsn, flushHint } = this.#options;
    let damage: Damage | undefined;
    const note = (path: string, at: number, message: string): void => {
      damage = { path, lsn: lsn(at), message };
    };
    for (const name of readdirSync(this.dir)) {
      if (name.endsWith('.tmp')) removeIfThere(join(this.dir, name));
      if (name.endsWith(DAMAGED_SUFFIX)) note(join(this.dir, name), startLsn, 'this WAL segment was found damaged earlier');
    }
    const segments = this.#segments();
    // From the newest down: files without a frame were only prepared; the first with frames is where WAL ends.
    let last = segments.length - 1;
    for (; last >= 0; last--) {
      const number = segments[last] as number;
      const path = this.#path(number);
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
      for (const number of this.#segments()) renameSync(this.#path(number), this.#path(number) + DAMAGED_SUFFIX);
      this.#begin(startLsn, prevRecordLsn);
      if (!repair && damage === undefined && flushHint !== undefined && flushHint > startLsn)
        note(this.dir, startLsn, `no WAL file is there, but WAL up to ${formatLsn(flushHint)} had been durable`);
    } else {
      this.#firstSegment = segments[0] as number;
      for (let i = 1; i <= last; i++) {
        if ((segments[i] as number) === (segments[i - 1] as number) + 1) continue;
        const hole = (segments[i - 1] as number) + 1;
        note(this.#path(hole), hole * WAL_SEGMENT_BYTES, 'this WAL segment is missing');
        break;
      }
      this.#firstLsn = lsn(Math.max(this.#firstSegment * WAL_SEGMENT_BYTES, segmentNumber(startLsn) === this.#firstSegment ? startLsn : 0));
      // A member that was re-copied may begin in the middle of a segment: its context frame says where.
      if (this.#firstSegment === this.#current.header.segment) this.#firstLsn = this.#adoptedFirstLsn;
      else this.#firstLsn = this.#contextLsn(this.#firstSegment) ?? this.#firstLsn;
    }
    if (!repair && damage === undefined && flushHint !== undefined && this.flushLsn < flushHint)
      note(this.#current.path, this.flushLsn, `WAL ends at ${formatLsn(this.flushLsn)}, but ${formatLsn(flushHint)} had been durable`);
    this.#damage = damage;
  }

  #contextLsn(number: number): Lsn | undefined {
    try {
      const file = this.#openSegment(number);
      try {
        return file.context().position;
      } finally {
        file.close();
      }
    } catch (error) {
      if (isWithoutKey(error)) throw error;
      return undefined; // Readers of that segment will find and report it.
    }
  }

  #openSegment(number: number): SegmentFile {
    const { project, timeline } = this.#options;
    return SegmentFile.open(this.#path(number), project, timeline, number, (header) => this.#keyOf(header), this.#io);
  }

  #keyOf(header: SegmentHeader): ObjectKey {
    return this.#ciphers.restore(header.algorithm, this.#references.of(header));
  }

  /** Makes segment `number` the current one, from its file. undefined when it is prepared but unused. Throws CORRUPT. */
  #adopt(number: number, repair = false): { damage: string | undefined } | undefined {
    if (isUnused(this.#path(number))) return undefined;
    const file = this.#openSegment(number);
    try {
      const { scan, state } = recoverSegment(file, number);
      if (state === undefined) throw new LakebaseError('CORRUPT', `${file.path}: ${scan.damage ?? 'its first frame is damaged'}`);
      if (repair || state.damage === undefined) {
        if (scan.dirtyEnd > scan.endOffset) file.clear(scan.endOffset, scan.dirtyEnd);
        if (state.endLsn < (scan.endLsn as Lsn)) writeTruncation(file, state.endLsn);
      }
      file.attempted = file.offset;
      this.#current = file;
      this.#adoptedFirstLsn = state.firstLsn;
      this.#boundary = state.boundary;
      this.#durable = state.boundary.clone();
      this.#position = state.endLsn;
      this.#syncedOffset = file.offset;
      this.#syncedSequence = file.sequence;
      this.#stageBase = 0;
      this.#framePayload = 0;
      this.#unsynced = false;
      return { damage: repair ? undefined : state.damage };
    } catch (error) {
      file.close();
      throw error;
    }
  }
}

/** Seals, writes and syncs a TRUNCATE frame. */
function writeTruncation(file: SegmentFile, at: Lsn): void {
  const frame = Buffer.alloc(FRAME_HEADER_BYTES);
  file.write(frame, file.seal(frame, 0, FRAME_TRUNCATE, at, 0));
  file.sync();
  file.attempted = file.offset;
  file.cutIndex(at);
}

/** True when nothing was ever appended: frames follow a durable header, so only zeros behind it mean that there were none. */
function isUnused(path: string): boolean {
  const file = readFileSync(path);
  return lastNonZero(file, Math.min(SEGMENT_HEADER_BYTES, file.length)) <= SEGMENT_HEADER_BYTES;
}

/** Inverse of walFileName. */
function segmentOfName(name: string): number {
  return Number.parseInt(name.slice(8, 16), 16) * (0x1_0000_0000 / WAL_SEGMENT_BYTES) + Number.parseInt(name.slice(16, 24), 16);
}

function removeIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ENOENT') throw error;
  }
}
