/** Key references of the segments in a directory: the header's own, or the one that replaced it when the project's KEK changed
 *  (`references`, docs/formats/wal-segment.md). A segment is known by its salt, so a file that was copied or moved aside keeps its key.
 *  Invariants: the file is replaced as a whole; what it says can only fail to unwrap, never open other bytes (the commitment in a reference
 *  and every frame's tag see to that), so a file that fails its check is left out and the headers' references are tried. */
import { closeSync, fsyncSync, openSync, readFileSync, readSync, readdirSync, renameSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, type Logger, errorMessage, isCode } from '@lakebase/base';
import { ByteReader, ByteWriter, crc32c } from '@lakebase/bytes';
import { KEY_REFERENCE_BYTES_MAX } from '@lakebase/envelope';
import { SALT_BYTES, SEGMENT_HEADER_BYTES, type SegmentHeader, decodeSegmentHeader } from './segment-format.ts';
import { ioError, syncDirectory } from './segment-io.ts';

export const SEGMENT_NAME = /^00000001[0-9A-F]{16}$/;
export const DAMAGED_SUFFIX = '.damaged';
/** What damage was cut off, for a person. */
export const QUARANTINE = 'damaged';
const REFERENCES_FILE = 'references';
/** 'LBWR' */
export const REFERENCES_MAGIC = 0x4c425752;
const REFERENCES_VERSION = 1;

/** Says nothing about the bytes on disk: the key may not be used, or is not at hand, now. */
export const isWithoutKey = (error: unknown): boolean => isCode(error, 'KEY_REVOKED') || isCode(error, 'UNAVAILABLE');

export const saltName = (header: SegmentHeader): string => header.salt.toString('hex');

export class SegmentReferences {
  readonly #dir: string;
  #bySalt: Map<string, Buffer>;

  private constructor(dir: string, bySalt: Map<string, Buffer>) {
    this.#dir = dir;
    this.#bySalt = bySalt;
  }

  static read(dir: string, log: Logger): SegmentReferences {
    const path = join(dir, REFERENCES_FILE);
    let bySalt = new Map<string, Buffer>();
    try {
      bySalt = decodeReferences(readFileSync(path));
    } catch (error) {
      if ((error as { code?: unknown }).code !== 'ENOENT')
        log.error({ path, err: errorMessage(error) }, 'the key references beside the WAL cannot be read; those in the segments are used');
    }
    return new SegmentReferences(dir, bySalt);
  }

  of(header: SegmentHeader): Buffer {
    return this.#bySalt.get(saltName(header)) ?? header.keyReference;
  }

  /** Adds `fresh`, forgets segments that are gone, durably. */
  replace(fresh: ReadonlyMap<string, Buffer>): void {
    const next = new Map<string, Buffer>();
    for (const { header } of storedSegments(this.#dir, this)) {
      const name = saltName(header);
      const reference = fresh.get(name) ?? this.#bySalt.get(name);
      if (reference !== undefined) next.set(name, reference);
    }
    const path = join(this.#dir, REFERENCES_FILE);
    try {
      const fd = openSync(`${path}.tmp`, 'w', 0o600);
      try {
        const bytes = encode(next);
        for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, done);
        fsyncSync(fd);
      } finally {
        closeSync(fd);
      }
      renameSync(`${path}.tmp`, path);
      syncDirectory(this.#dir);
    } catch (error) {
      throw ioError(error, path, 'cannot write');
    }
    this.#bySalt = next;
  }
}

function encode(bySalt: ReadonlyMap<string, Buffer>): Buffer {
  const w = new ByteWriter(64 + bySalt.size * 128).u32be(REFERENCES_MAGIC).u16be(REFERENCES_VERSION).u16be(0).u32be(bySalt.size);
  for (const [salt, reference] of bySalt) w.bytes(Buffer.from(salt, 'hex')).u16be(reference.length).bytes(reference);
  return w.u32be(crc32c(w.view())).finish();
}

/** The `references` file: salt (hexadecimal) to key reference. Throws CORRUPT. */
export function decodeReferences(bytes: Buffer): Map<string, Buffer> {
  if (bytes.length < 16 || bytes.readUInt32BE(bytes.length - 4) !== crc32c(bytes.subarray(0, bytes.length - 4)))
    throw new LakebaseError('CORRUPT', 'wrong checksum');
  const r = new ByteReader(bytes, 0, bytes.length - 4);
  if (r.u32be() !== REFERENCES_MAGIC) throw new LakebaseError('CORRUPT', 'wrong magic');
  const version = r.u16be();
  if (version !== REFERENCES_VERSION) throw new LakebaseError('UNSUPPORTED', `format version ${version}`);
  r.skip(2);
  const n = r.u32be();
  const bySalt = new Map<string, Buffer>();
  for (let i = 0; i < n; i++) {
    const salt = r.bytes(SALT_BYTES).toString('hex');
    const length = r.u16be();
    if (length > KEY_REFERENCE_BYTES_MAX) throw new LakebaseError('CORRUPT', 'a key reference is too long');
    bySalt.set(salt, Buffer.from(r.bytes(length)));
  }
  return bySalt;
}

export interface StoredSegment {
  readonly path: string;
  readonly header: SegmentHeader;
  /** The one to unwrap. */
  readonly reference: Buffer;
}

/** Every segment file with a valid header, set aside ones too. */
export function storedSegments(dir: string, references: SegmentReferences): StoredSegment[] {
  const found: StoredSegment[] = [];
  for (const sub of ['', QUARANTINE])
    for (const name of list(join(dir, sub))) {
      if (!SEGMENT_NAME.test(name.endsWith(DAMAGED_SUFFIX) ? name.slice(0, -DAMAGED_SUFFIX.length) : name)) continue;
      const path = join(dir, sub, name);
      const header = headerOf(path);
      if (header !== undefined) found.push({ path, header, reference: references.of(header) });
    }
  return found;
}

/** Key references to load before {@link WalStore.open} on `dir`: opening is synchronous and finds the keys by them. */
export function storedReferences(dir: string, log: Logger): Buffer[] {
  const segments = storedSegments(dir, SegmentReferences.read(dir, log));
  return segments.map((s) => s.reference).filter((r) => r.length > 0);
}

function headerOf(path: string): SegmentHeader | undefined {
  const block = Buffer.alloc(SEGMENT_HEADER_BYTES);
  try {
    const fd = openSync(path, 'r');
    try {
      if (readSync(fd, block, 0, block.length, 0) < block.length) return undefined;
    } finally {
      closeSync(fd);
    }
    return decodeSegmentHeader(block);
  } catch {
    return undefined; // Opening the segment reports it.
  }
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch {
    return [];
  }
}
