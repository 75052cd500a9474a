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
import { mkdirSync } from 'node:fs';
import { LakebaseError, type Logger, errorMessage, failpointSync, silentLogger } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, XLOG_BLCKSZ, formatLsn, lsn, segmentNumber, walFileName } from '@lakebase/ids';
import { CompleteSegments } from './complete-segments.ts';
import { recoverLog } from './log-recovery.ts';
import { RecordBoundary } from './record-boundary.ts';
import { SegmentDir } from './segment-dir.ts';
import type { SegmentFile } from './segment-file.ts';
import { ioError, nodeIo } from './segment-io.ts';
import { isWithoutKey, saltName, storedSegments } from './segment-references.ts';
import { WalAppender } from './wal-appender.ts';
import { WalReEncryption } from './wal-re-encryption.ts';
import { WalRing } from './wal-ring.ts';
import type { Damage, WalStoreOptions } from './wal-store-options.ts';

export type { Damage, WalStoreOptions } from './wal-store-options.ts';

/** A complete segment on disk: its WAL and some of frame headers. */
const FULL_SEGMENT_BYTES = WAL_SEGMENT_BYTES + WAL_SEGMENT_BYTES / 64;

export class WalStore {
  readonly dir: string;
  readonly #options: WalStoreOptions;
  readonly #log: Logger;
  readonly #ring: WalRing;
  readonly #files: SegmentDir;

  readonly #complete: CompleteSegments;
  readonly #end: WalAppender;
  readonly #reEncryption: WalReEncryption;
  #damage: Damage | undefined;
  #closed = false;

  private constructor(options: WalStoreOptions) {
    this.#options = options;
    this.dir = options.dir;
    this.#log = options.log ?? silentLogger;
    const { dir, project, timeline, ciphers } = options;
    this.#files = new SegmentDir({ dir, project, timeline, ciphers, io: options.io ?? nodeIo, log: this.#log });
    this.#complete = new CompleteSegments(this.#files);
    this.#ring = new WalRing(options.ringBytes ?? 4 * 1024 * 1024);
    const parts = { files: this.#files, complete: this.#complete };
    this.#end = new WalAppender({ ...parts, ring: this.#ring, io: options.io ?? nodeIo, log: this.#log, mayGrow: options.mayGrow });
    this.#reEncryption = new WalReEncryption({
      ...parts,
      end: this.#end,
      begin: this.#begun,
      read: (from, max) => this.read(from, max),
      isClosed: () => this.#closed,
      checkUsable: () => this.#checkUsable(),
    });
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
    return this.#end.flushLsn;
  }
  /** End and start of the last complete durable record. */
  get flushRecordLsn(): Lsn {
    return this.#end.durable.flushRecordLsn;
  }
  get lastRecordLsn(): Lsn {
    return this.#end.durable.lastRecordLsn;
  }
  /** Where the next append must begin. */
  get appendLsn(): Lsn {
    return this.#end.appendLsn;
  }
  /** True after a failure that only opening the store again can cure. */
  get broken(): boolean {
    return this.#end.broken !== undefined;
  }
  get damage(): Damage | undefined {
    return this.#damage;
  }

  /** Takes WAL at exactly {@link appendLsn}. Throws CORRUPT for bytes that cannot be WAL, RESOURCE_EXHAUSTED on a full disk; in both cases
   *  everything since the last sync is dropped. `bytes` may be reused on return. */
  append(at: Lsn, bytes: Buffer): void {
    this.#checkUsable();
    this.#end.append(at, bytes);
  }

  /** Makes everything appended durable and returns the flush LSN. Throws like {@link append}. */
  sync(): Lsn {
    if (!this.#end.pending) return this.flushLsn;
    this.#checkUsable();
    this.#end.sync();
    return this.flushLsn;
  }

  /** Drops what was appended since the last sync. */
  abort(): void {
    this.#end.abort();
  }

  /** Writes the next segment's header and zeros in the background. Never rejects: without it the appender makes a small file itself. */
  prepareNext(): Promise<void> {
    return this.#end.prepareNext();
  }

  /** Voids everything at or beyond `at`. Durable on return. */
  truncate(at: Lsn): void {
    this.#checkUsable();
    this.#end.abort();
    if (at < this.#complete.firstLsn || at > this.flushLsn)
      throw new LakebaseError(
        'INVALID_ARGUMENT',
        `cannot truncate to ${formatLsn(at)}: WAL is ${formatLsn(this.#complete.firstLsn)} to ${formatLsn(this.flushLsn)}`,
      );
    this.#end.cut(at);
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
      if (number < this.#end.segment) this.#complete.holes.set(number, damage);
      else this.#damage ??= damage;
      throw ioError(error, damage.path, 'cannot read');
    }
  }

  #reader(number: number): SegmentFile {
    return number === this.#end.segment ? this.#end.current : this.#complete.reader(number);
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
    while (this.#complete.first < this.#end.segment && (this.#complete.first + 1) * WAL_SEGMENT_BYTES <= before) {
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
    this.#complete.replace(number, bytes, this.#end.current, this.#begun);
    this.#log.info({ path: this.#files.path(number) }, 'a damaged WAL segment was written anew');
  }

  /** Where the timeline began. */
  get #begun(): RecordBoundary {
    return new RecordBoundary(this.#options.startLsn, this.#options.prevRecordLsn);
  }

  /** After a failed fdatasync ({@link broken}): the current segment's durable part is written to a new file, whose pages the kernel has no opinion of,
   *  and WAL goes on there. Throws when that fails too; may be called again. */
  heal(): void {
    if (!this.broken || this.#closed) return;
    const expected = this.flushLsn;
    const path = this.#files.path(this.#end.segment);
    this.#end.rebuild();
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
    const full = this.#end.segment - this.#complete.first;
    return full * FULL_SEGMENT_BYTES + this.#end.current.allocated + this.#end.next.diskBytes;
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
    this.#end.forgetBroken();
    this.#recover(true);
  }

  /** Throws everything away and begins at `at` with the record before it at `lastRecordLsn`. */
  restartAt(at: Lsn, lastRecordLsn: Lsn): void {
    this.#closeAll();
    this.#files.removeAll();
    this.#damage = undefined;
    this.#end.forgetBroken();
    this.#ring.release();
    this.#end.begin(at, lastRecordLsn);
  }

  /** Puts other wrappings of the same keys beside the segments (docs/flows/key-path.md, rotation). `rewrap` gets those that `isOld` says need
   *  it and may take its time. Resolves with how many there were; when it rejects, run it again. No byte of WAL is touched. */
  async rewrap(
    isOld: (reference: Buffer) => boolean,
    rewrap: (references: readonly Buffer[]) => Promise<readonly Buffer[]>,
  ): Promise<number> {
    // A segment that is being prepared got its key before; afterwards it has a name.
    await this.#end.next.settled;
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
  reEncrypt(number: number): Promise<number> {
    return this.#reEncryption.run(number);
  }

  /** Gives back the memory of an idle timeline. */
  releaseMemory(): void {
    if (!this.#end.empty) return;
    this.#ring.release();
    this.#end.release();
  }

  /** {@link close}, and nothing of the WAL stays in this process's buffers. */
  wipe(): Promise<void> {
    this.#end.wipe();
    this.#ring.wipe();
    return this.close();
  }

  /** Appended but unsynced bytes are dropped. The promise waits for background preparation, after which the directory is not touched. */
  close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      this.#end.close();
      this.#complete.closeAll();
      this.#ring.release();
    }
    return Promise.all([this.#end.next.settled, this.#reEncryption.settled]).then(() => {});
  }

  #closeAll(): void {
    this.#end.closeFiles();
    this.#complete.closeAll();
  }

  #checkUsable(): void {
    if (this.#closed) throw new LakebaseError('CLOSED', 'the WAL store is closed');
    if (this.#end.broken !== undefined) throw new LakebaseError('CORRUPT', this.#end.broken);
    if (this.#damage !== undefined) throw new LakebaseError('CORRUPT', `${this.#damage.path}: ${this.#damage.message}`);
  }

  /** Finds the end of WAL. With `repair`, what is damaged is cut off instead of reported. */
  #recover(repair: boolean): void {
    this.#damage = recoverLog({ files: this.#files, complete: this.#complete, end: this.#end }, this.#options, repair);
  }
}
