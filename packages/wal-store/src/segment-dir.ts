/** The directory with the segment files of one timeline: names, creation, preparation in the background, setting aside. Knows nothing of where WAL
 *  ends. Invariants: a file is there under its name only with a durable header; what is set aside is kept for a person and never read again. */
import { copyFileSync, existsSync, mkdirSync, openSync, readFileSync, readdirSync, renameSync, unlinkSync } from 'node:fs';
import { open as openAsync } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from '@lakebase/base';
import type { CipherProvider, ObjectKey } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, walFileName } from '@lakebase/ids';
import { FRAME_HEADER_BYTES, FRAME_TRUNCATE, SEGMENT_HEADER_BYTES, type SegmentHeader, encodeSegmentHeader } from './segment-format.ts';
import { SEGMENT_FILE_BYTES, SegmentFile, ZEROS, newSegmentHeader } from './segment-file.ts';
import { type SegmentIo, syncDirectory } from './segment-io.ts';
import { DAMAGED_SUFFIX, QUARANTINE, SEGMENT_NAME, SegmentReferences } from './segment-references.ts';
import { lastNonZero } from './segment-scan.ts';

export interface SegmentDirOptions {
  readonly dir: string;
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly ciphers: CipherProvider;
  readonly io: SegmentIo;
  readonly log: Logger;
}

export class SegmentDir {
  readonly dir: string;
  readonly references: SegmentReferences;
  readonly #options: SegmentDirOptions;

  constructor(options: SegmentDirOptions) {
    this.#options = options;
    this.dir = options.dir;
    this.references = SegmentReferences.read(options.dir, options.log);
  }

  path(number: number): string {
    return join(this.dir, walFileName(number));
  }

  /** Numbers of the files that are there, rising. */
  numbers(): number[] {
    return readdirSync(this.dir)
      .filter((name) => SEGMENT_NAME.test(name))
      .map(segmentOfName)
      .sort((a, b) => a - b);
  }

  #fresh(number: number): { header: SegmentHeader; key: ObjectKey } {
    const { project, timeline, ciphers } = this.#options;
    const key = ciphers.create();
    return { key, header: newSegmentHeader(project, timeline, number, key) };
  }

  /** A small file that grows; replaces one of that name. */
  create(number: number, path: string = this.path(number)): SegmentFile {
    removeIfThere(path);
    const { header, key } = this.#fresh(number);
    return SegmentFile.create(this.dir, path, header, key, this.#options.io);
  }

  open(number: number, path: string = this.path(number)): SegmentFile {
    const { project, timeline, ciphers, io } = this.#options;
    const keyOf = (header: SegmentHeader): ObjectKey => ciphers.restore(header.algorithm, this.references.of(header));
    return SegmentFile.open(path, project, timeline, number, keyOf, io);
  }

  /** Header and zeros of a whole segment, in the background; the file gets its name only while `wanted`. */
  async prepare(number: number, wanted: () => boolean): Promise<SegmentFile | undefined> {
    const path = this.path(number);
    const temporary = `${path}.tmp`;
    try {
      const { header, key } = this.#fresh(number);
      const handle = await openAsync(temporary, 'w', 0o600);
      try {
        for (let at = 0; at < SEGMENT_FILE_BYTES && wanted(); at += ZEROS.length)
          await handle.write(ZEROS, 0, Math.min(ZEROS.length, SEGMENT_FILE_BYTES - at), at);
        await handle.write(encodeSegmentHeader(header), 0, SEGMENT_HEADER_BYTES, 0);
        await handle.sync();
      } finally {
        await handle.close();
      }
      // A roll or a truncation may have changed which segment is next; from here to the end is one turn.
      if (!wanted()) {
        removeIfThere(temporary);
        return undefined;
      }
      renameSync(temporary, path);
      syncDirectory(this.dir);
      return new SegmentFile(path, openSync(path, 'r+'), header, key, this.#options.io);
    } catch (error) {
      removeIfThere(temporary);
      throw error;
    }
  }

  remove(number: number): void {
    removeIfThere(this.path(number));
  }

  /** Leftovers of a crash go; names of files that were found damaged. */
  sweep(): string[] {
    const damaged: string[] = [];
    for (const name of readdirSync(this.dir)) {
      if (name.endsWith('.tmp')) removeIfThere(join(this.dir, name));
      if (name.endsWith(DAMAGED_SUFFIX)) damaged.push(join(this.dir, name));
    }
    return damaged;
  }

  /** No file can be read: they keep their bytes under names that keep this member from voting. */
  markAllDamaged(): void {
    for (const number of this.numbers()) renameSync(this.path(number), this.path(number) + DAMAGED_SUFFIX);
  }

  /** Moves what is at or beyond `keep` aside, and copies the file that `keep` lies in. */
  setAsideFrom(keep: Lsn): void {
    const quarantine = this.#quarantine();
    for (const name of readdirSync(this.dir)) {
      const path = join(this.dir, name);
      if (name.endsWith(DAMAGED_SUFFIX)) renameSync(path, join(quarantine, name));
      else if (!SEGMENT_NAME.test(name)) continue;
      else if (segmentOfName(name) * WAL_SEGMENT_BYTES >= keep) renameSync(path, join(quarantine, name));
      else if ((segmentOfName(name) + 1) * WAL_SEGMENT_BYTES > keep) copyFileSync(path, join(quarantine, name));
    }
    syncDirectory(this.dir);
  }

  /** A damaged file whose WAL is somewhere else. */
  setAside(number: number): void {
    const quarantine = this.#quarantine();
    // It may be missing altogether.
    if (existsSync(this.path(number))) renameSync(this.path(number), join(quarantine, walFileName(number)));
  }

  rename(path: string, number: number): void {
    renameSync(path, this.path(number));
    this.sync();
  }

  #quarantine(): string {
    const quarantine = join(this.dir, QUARANTINE);
    mkdirSync(quarantine, { recursive: true });
    return quarantine;
  }

  removeAll(): void {
    for (const number of this.numbers()) this.remove(number);
    this.sync();
  }

  sync(): void {
    syncDirectory(this.dir);
  }
}

/** Seals, writes and syncs a TRUNCATE frame. */
export function writeTruncation(file: SegmentFile, at: Lsn): void {
  const frame = Buffer.alloc(FRAME_HEADER_BYTES);
  file.write(frame, file.seal(frame, 0, FRAME_TRUNCATE, at, 0));
  file.sync();
  file.attempted = file.offset;
  file.cutIndex(at);
}

/** True when nothing was ever appended: frames follow a durable header, so only zeros behind it mean that there were none. */
export function isUnused(path: string): boolean {
  const file = readFileSync(path);
  return lastNonZero(file, Math.min(SEGMENT_HEADER_BYTES, file.length)) <= SEGMENT_HEADER_BYTES;
}

/** Inverse of walFileName. */
function segmentOfName(name: string): number {
  return Number.parseInt(name.slice(8, 16), 16) * (0x1_0000_0000 / WAL_SEGMENT_BYTES) + Number.parseInt(name.slice(16, 24), 16);
}

export function removeIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ENOENT') throw error;
  }
}
