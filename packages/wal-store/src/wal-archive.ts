/** The WAL of one timeline in the object store: complete objects found by arithmetic, the tail, and newer wrappings of their keys
 *  (docs/formats/wal-object.md).
 *  WAL of before the lineage that is written now is read from the older lineages' objects, up to where that one begins (docs/protocols/wal-recovery.md).
 *  Invariants: nothing is found by listing; an object that is there is checked before it counts; a put that was applied and looked failed is found by
 *  the next one; what is read came out of frames whose tags held. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { LakebaseError, type Logger, SerialQueue, isCode } from '@lakebase/base';
import { wipeAndGiveBack } from '@lakebase/bytes';
import type { CipherProvider } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, formatLsn, lsn } from '@lakebase/ids';
import { type ObjectStore, type ObjectTag, WAL_OBJECT_SEGMENTS, walObject, walTailObject } from '@lakebase/object-store';
import { ArchiveReferences } from './archive-references.ts';
import { type FoundTrailer, WalObjectReader, readTrailer } from './wal-object-reader.ts';
import { type WalSource, writeWalObject } from './wal-object-writer.ts';

/** Keys of a project, as packages/keys gives them. */
export interface WalKeys extends CipherProvider {
  reserve(count: number): Promise<void>;
  load(references: readonly Buffer[]): Promise<void>;
}

export interface WalArchiveOptions {
  readonly store: ObjectStore;
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  /** First byte of the newest lineage. */
  readonly startLsn: Lsn;
  /** Oldest first, the newest one beginning at startLsn; absent: lineage 0 only. */
  readonly lineages?: readonly { readonly number: number; readonly startLsn: Lsn }[];
  readonly keys: WalKeys;
  /** Objects are written here before they are put. */
  readonly scratchDir: string;
  readonly log: Logger;
}

export interface PutResult {
  readonly name: string;
  readonly start: Lsn;
  readonly end: Lsn;
  /** False: an object with this content was there. */
  readonly put: boolean;
  readonly storedBytes: number;
}

/** Of a tail that others replace at the same time. */
const TAIL_TRIES = 3;
export const WAL_OBJECT_BYTES: number = WAL_OBJECT_SEGMENTS[0] * WAL_SEGMENT_BYTES;

/** The largest object that begins at `from`, a multiple of a segment (or the timeline's start in it), and ends at or before `to`. */
export function nextWalObject(from: Lsn, to: Lsn): { readonly aligned: Lsn; readonly segments: number; readonly end: Lsn } | undefined {
  const first = Math.floor(from / WAL_SEGMENT_BYTES);
  const within = from % WAL_SEGMENT_BYTES !== 0;
  for (const segments of WAL_OBJECT_SEGMENTS) {
    const end = (Math.floor(first / segments) + 1) * segments * WAL_SEGMENT_BYTES;
    const aligned = end - segments * WAL_SEGMENT_BYTES;
    // Only the timeline's first object may begin behind its name.
    if (end <= to && (aligned === from || (within && aligned === first * WAL_SEGMENT_BYTES)))
      return { aligned: lsn(aligned), segments, end: lsn(end) };
  }
  return undefined;
}

export class WalArchive {
  readonly options: WalArchiveOptions;
  readonly references: ArchiveReferences;
  /** WAL before startLsn. */
  readonly older: WalArchive | undefined;
  readonly lineage: number;
  /** Where the next lineage begins; nothing there or beyond is WAL of the timeline. */
  readonly end: number;
  /** One object is written at a time; a re-wrap waits for it, so that no key of an old KEK slips through. */
  readonly #writes = new SerialQueue();
  /** Of the tail as this member put or saw it last. */
  #tailTag: ObjectTag | undefined;

  constructor(options: WalArchiveOptions, end: number = Number.POSITIVE_INFINITY) {
    this.options = options;
    this.references = new ArchiveReferences(options);
    this.lineage = options.lineages?.at(-1)?.number ?? 0;
    this.end = end;
    const older = options.lineages?.slice(0, -1) ?? [];
    const last = older.at(-1);
    if (last !== undefined) this.older = new WalArchive({ ...options, startLsn: last.startLsn, lineages: older }, options.startLsn);
  }

  /** First byte of the first lineage. */
  get firstLsn(): Lsn {
    return this.older?.firstLsn ?? this.options.startLsn;
  }
  /** An object that {@link find} gives for `at` holds the timeline's WAL up to here at most. */
  endAt(at: Lsn): number {
    return at < this.options.startLsn && this.older !== undefined ? this.older.endAt(at) : this.end;
  }

  /** The object that holds the byte at `at`; `undefined` when there is none. */
  async find(at: Lsn): Promise<WalObjectReader | undefined> {
    if (at < this.options.startLsn && this.older !== undefined) return this.older.find(at);
    const trailer = await this.#trailer(at);
    return trailer === undefined ? undefined : this.#open(trailer);
  }

  async #trailer(at: Lsn): Promise<FoundTrailer | undefined> {
    const { store, project, timeline, startLsn } = this.options;
    for (const segments of WAL_OBJECT_SEGMENTS) {
      const size = segments * WAL_SEGMENT_BYTES;
      const aligned = Math.floor(at / size) * size;
      const found = await readTrailer(store, {
        project,
        timeline,
        name: walObject(project, timeline, lsn(aligned), segments, this.lineage),
      });
      if (found === undefined) continue;
      checkRange(found, Math.max(aligned, startLsn), aligned + size);
      return found;
    }
    const tail = await this.tail();
    return tail !== undefined && at >= tail.header.start && at < tail.header.end ? tail : undefined;
  }

  /** The tail of this lineage. Throws CORRUPT for one that cannot be one. */
  tail(): Promise<FoundTrailer | undefined> {
    const { store, project, timeline } = this.options;
    return readTrailer(store, { project, timeline, name: walTailObject(project, timeline, this.lineage) });
  }

  /** Its key may have been wrapped anew since it was written. */
  async #open(trailer: FoundTrailer): Promise<WalObjectReader> {
    const { keys, store } = this.options;
    const { algorithm, keyReference, objectId } = trailer.header;
    const open = async (reference: Buffer): Promise<WalObjectReader> => {
      if (reference.length > 0) await keys.load([reference]);
      return new WalObjectReader(store, trailer, keys.restore(algorithm, reference));
    };
    const known = this.references.known(objectId);
    try {
      return await open(known ?? keyReference);
    } catch (error) {
      if (!isCode(error, 'CORRUPT')) throw error;
      const newer = await this.references.look(objectId);
      if (newer === undefined || (known !== undefined && newer.equals(known))) throw error;
      return open(newer);
    }
  }

  /** A reader of its own for each stream. */
  reader(): WalArchiveReader {
    return new WalArchiveReader(this);
  }

  /** Puts [from, its end) as one complete object, or finds it there and checks it. */
  put(from: Lsn, object: { readonly aligned: Lsn; readonly segments: number; readonly end: Lsn }, source: WalSource): Promise<PutResult> {
    return this.#writes.run(async () => {
      const { store, project, timeline, log } = this.options;
      const name = walObject(project, timeline, object.aligned, object.segments, this.lineage);
      const range = { start: from, end: object.end };
      // Somebody may have put it whose word did not arrive; a look costs less than writing it for nothing.
      let damagedTag: string | undefined;
      try {
        const there = await this.#checked(name, range);
        if (there !== undefined) return { name, ...range, put: false, storedBytes: there };
      } catch (error) {
        if (!isCode(error, 'CORRUPT')) throw error;
        log.error({ object: name, err: error.message }, 'the WAL object that is there is damaged and is replaced');
        damagedTag = (await store.head(name)).tag;
      }
      return this.#write('object.tmp', name, range, source, async (path, size) => {
        try {
          await store.put(name, { path, size }, damagedTag === undefined ? { ifAbsent: true } : { ifMatch: damagedTag });
          return { name, ...range, put: true, storedBytes: size };
        } catch (error) {
          if (!isCode(error, 'ALREADY_EXISTS')) throw error;
          const there = await this.#checked(name, range);
          return { name, ...range, put: false, storedBytes: there ?? size };
        }
      });
    });
  }

  /** Replaces the tail by [from, to). Never by less WAL than it holds, whoever else puts it at the same time. */
  putTail(from: Lsn, to: Lsn, source: WalSource): Promise<PutResult> {
    return this.#writes.run(async () => {
      const { project, timeline } = this.options;
      const name = walTailObject(project, timeline, this.lineage);
      for (let tries = 1; ; tries++) {
        if (this.#tailTag === undefined) {
          const there = await this.#tailThere(name);
          if (there.end >= to) return { name, start: there.start, end: there.end, put: false, storedBytes: there.size };
          this.#tailTag = there.tag;
        }
        try {
          return await this.#putTailOver(this.#tailTag, from, to, source);
        } catch (error) {
          const replaced = isCode(error, 'CONFLICT') || isCode(error, 'ALREADY_EXISTS');
          // What is there now is looked at before it is replaced.
          if (replaced) this.#tailTag = undefined;
          if (!replaced || tries === TAIL_TRIES) throw error;
        }
      }
    });
  }

  /** Puts the tail anew, whatever the one that was found to be no good says it holds (`tag`: its; undefined: there was none). CONFLICT or ALREADY_EXISTS when
   *  somebody else was faster. */
  replaceTail(from: Lsn, to: Lsn, source: WalSource, tag: ObjectTag | undefined): Promise<PutResult> {
    return this.#writes.run(() => this.#putTailOver(tag, from, to, source));
  }

  #putTailOver(tag: ObjectTag | undefined, from: Lsn, to: Lsn, source: WalSource): Promise<PutResult> {
    const { store, project, timeline } = this.options;
    const name = walTailObject(project, timeline, this.lineage);
    const condition = tag === undefined ? { ifAbsent: true } : { ifMatch: tag };
    return this.#write('tail.tmp', name, { start: from, end: to }, source, async (path, size) => {
      this.#tailTag = await store.put(name, { path, size }, condition);
      return { name, start: from, end: to, put: true, storedBytes: size };
    });
  }

  /** What the tail holds; nothing when it is not there or cannot be read. */
  async #tailThere(name: string): Promise<{ start: Lsn; end: Lsn; size: number; tag: ObjectTag | undefined }> {
    const { store, project, timeline } = this.options;
    const nothing = { start: lsn(0), end: lsn(0), size: 0 };
    try {
      const found = await readTrailer(store, { project, timeline, name });
      return found === undefined ? { ...nothing, tag: undefined } : { ...found.header, size: found.size, tag: found.tag };
    } catch (error) {
      if (!isCode(error, 'CORRUPT')) throw error;
      return { ...nothing, tag: (await store.head(name)).tag };
    }
  }

  async #write(
    scratch: string,
    name: string,
    range: { readonly start: Lsn; readonly end: Lsn },
    source: WalSource,
    put: (path: string, size: number) => Promise<PutResult>,
  ): Promise<PutResult> {
    const { keys, project, timeline, scratchDir } = this.options;
    await keys.reserve(1);
    const path = join(scratchDir, scratch);
    try {
      const size = await writeWalObject(path, { project, timeline, name }, range, keys.create(), source);
      return await put(path, size);
    } finally {
      await rm(path, { force: true });
    }
  }

  /** Size of the object of this name and range when all its frames open; undefined when there is none. Throws CORRUPT. */
  async #checked(name: string, range: { readonly start: Lsn; readonly end: Lsn }): Promise<number | undefined> {
    const { store, project, timeline } = this.options;
    const trailer = await readTrailer(store, { project, timeline, name });
    if (trailer === undefined) return undefined;
    checkRange(trailer, range.start, range.end);
    const reader = await this.#open(trailer);
    for (let at: number = range.start; at < range.end; ) {
      const bytes = await reader.read(lsn(at), WAL_SEGMENT_BYTES);
      at += bytes.length;
      wipeAndGiveBack(bytes);
    }
    reader.wipe();
    return trailer.size;
  }

  /** Every object of the newest lineage with WAL of [startLsn, through), and the tail, in order. For re-wrapping and re-encryption. */
  async *trailers(through: Lsn, from: Lsn = this.options.startLsn): AsyncGenerator<FoundTrailer> {
    for (let at: number = from; at < through; ) {
      const found = await this.#trailer(lsn(at));
      // How far an older lineage got is not known exactly.
      if (found === undefined && this.end < Number.POSITIVE_INFINITY) break;
      if (found === undefined)
        throw new LakebaseError('CORRUPT', `the object store lacks WAL at ${formatLsn(lsn(at))}, although it was put there`);
      at = found.header.end;
      if (found.name.endsWith('/tail')) return yield found;
      yield found;
    }
    const tail = await this.tail();
    if (tail !== undefined) yield tail;
  }

  /** Opens one that {@link trailers} gave. */
  open(trailer: FoundTrailer): Promise<WalObjectReader> {
    return this.#open(trailer);
  }

  /** Wraps keys anew that `isOld` names. Resolves with how many there were; when it rejects, run it again. */
  rewrap(
    through: Lsn,
    kekVersion: number,
    isOld: (reference: Buffer) => boolean,
    rewrap: (references: readonly Buffer[]) => Promise<readonly Buffer[]>,
  ): Promise<number> {
    return this.#writes.run(async () => {
      const older = await this.older?.rewrap(this.options.startLsn, kekVersion, isOld, rewrap);
      return (older ?? 0) + (await this.references.rewrap(this, through, kekVersion, isOld, rewrap));
    });
  }

  /** Writes objects anew whose data key was made under a KEK that `isOld` names: the same WAL under a fresh key in their place. `wrote` is told of
   *  each, with how many are left, and awaited. Another member may be at the same: whoever is first has done it. */
  async reEncrypt(
    through: Lsn,
    isOld: (reference: Buffer) => boolean,
    wrote: (bytes: number, left: number) => Promise<void>,
  ): Promise<void> {
    await this.older?.reEncrypt(this.options.startLsn, isOld, wrote);
    const old: FoundTrailer[] = [];
    for await (const t of this.trailers(through)) if (t.header.keyReference.length > 0 && isOld(t.header.keyReference)) old.push(t);
    for (const [i, trailer] of old.entries()) {
      const bytes = await this.#writes.run(() => this.#anew(trailer));
      await wrote(bytes, old.length - i - 1);
    }
  }

  /** Bytes written; 0 when it is another object by now. */
  async #anew(trailer: FoundTrailer): Promise<number> {
    const { store } = this.options;
    const { name, header, tag } = trailer;
    try {
      const reader = await this.#open(trailer);
      const source: WalSource = (from, max) => reader.read(from, max);
      const result = await this.#write('anew.tmp', name, { start: header.start, end: header.end }, source, async (path, size) => {
        await store.put(name, { path, size }, { ifMatch: tag });
        return { name, start: header.start, end: header.end, put: true, storedBytes: size };
      });
      reader.wipe();
      return result.storedBytes;
    } catch (error) {
      const now = await store.head(name).catch((cause: unknown) => {
        if (isCode(cause, 'NOT_FOUND')) return undefined;
        throw cause;
      });
      if (now?.tag === tag) throw error;
      return 0;
    }
  }

  /** Removes every object, once nobody needs the timeline any more. */
  remove(through: Lsn): Promise<void> {
    return this.#writes.run(() => this.#remove(through));
  }

  async #remove(through: Lsn): Promise<void> {
    const { store, project, timeline, startLsn } = this.options;
    await this.older?.remove(startLsn);
    const first = Math.floor(startLsn / WAL_OBJECT_BYTES);
    for (let group = first; group * WAL_OBJECT_BYTES <= through; group++) {
      const names: string[] = [];
      for (const segments of WAL_OBJECT_SEGMENTS)
        for (let at = group * WAL_OBJECT_BYTES; at < (group + 1) * WAL_OBJECT_BYTES; at += segments * WAL_SEGMENT_BYTES)
          names.push(walObject(project, timeline, lsn(at), segments, this.lineage));
      await store.delete(names);
    }
    await store.delete([walTailObject(project, timeline, this.lineage), this.references.name]);
  }
}

function checkRange(found: FoundTrailer, start: number, end: number): void {
  if (found.header.start !== start || found.header.end !== end)
    throw new LakebaseError('CORRUPT', `WAL object ${found.name} holds another range than its name says`);
}

/** Reads on through the objects of an archive. Memory: that of one {@link WalObjectReader}. */
export class WalArchiveReader {
  readonly #archive: WalArchive;
  #current: WalObjectReader | undefined;
  /** Where what is to be had from it ends. */
  #end = 0;

  constructor(archive: WalArchive) {
    this.#archive = archive;
  }

  /** At most `max` bytes from `from`, at least one. NOT_FOUND where there is no object; CORRUPT where it fails its checks. */
  async read(from: Lsn, max: number): Promise<Buffer> {
    try {
      return await this.#read(from, max);
    } catch (error) {
      if (!isCode(error, 'CORRUPT') && !isCode(error, 'NOT_FOUND') && !isCode(error, 'INVALID_ARGUMENT')) throw error;
      // It may have been replaced (the tail, a repair) between two reads of it.
      this.close();
      return this.#read(from, max);
    }
  }

  async #read(from: Lsn, max: number): Promise<Buffer> {
    const object = await this.#at(from);
    return object.read(from, Math.min(max, this.#end - from));
  }

  async #at(from: Lsn): Promise<WalObjectReader> {
    const held = this.#current;
    if (held !== undefined && from >= held.header.start && from < this.#end) return held;
    this.close();
    const found = await this.#archive.find(from);
    if (found === undefined) throw new LakebaseError('NOT_FOUND', `WAL at ${formatLsn(from)} is not in the object store`);
    this.#end = Math.min(found.header.end, this.#archive.endAt(from));
    return (this.#current = found);
  }

  close(): void {
    this.#current?.wipe();
    this.#current = undefined;
  }
}
