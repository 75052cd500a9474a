/** Reads one layer file. Frames are read with synchronous preads: a frame is at most 33 KiB on a local disk, mostly in the operating system's cache, and a
 *  read path without awaits sees one consistent set of layers by construction. The frame index is loaded at the first use.
 *  Every check failure is CORRUPT and names the file; bytes that are not local, or were damaged and can be fetched anew, are a {@link RemoteMiss}. */
import { basename } from 'node:path';
import { LakebaseError, assert, isCode } from '@lakebase/base';
import { decompressFrame, giveBack, wipeAndGiveBack } from '@lakebase/bytes';
import { type CipherProvider, type FrameCipher, TAG_BYTES, bindFrame, frameNonce } from '@lakebase/envelope';
import type { Lsn } from '@lakebase/ids';
import { ARG_STOP, type Entry, type LayerView } from './entry.ts';
import { type CachedFrame, FrameCache } from './frame-cache.ts';
import { KEY_BYTES } from './key.ts';
import { type LayerBytes, WholeFile } from './layer-bytes.ts';
import {
  ENTRY_HEADER_BYTES,
  FOOTER_BYTES,
  FRAME_BYTES_MAX,
  FRAME_INDEX_ENTRY_BYTES,
  FRAME_TARGET_BYTES,
  GROUP_HEADER_BYTES,
  HEADER_BYTES_MAX,
  type LayerFooter,
  type LayerHeader,
  type LayerKind,
  asCorrupt,
  corrupt,
  decodeFooter,
  decodeHeader,
  layerBinding,
} from './layer-format.ts';
import { RemoteMiss, bothMisses } from './remote-miss.ts';

/** Of one key, in one layer, that are fetched at once. */
const LOOK_AHEAD_FRAMES = 16;
/** A compressed frame as it is stored, until it is opened and decompressed. */
const STORED = Buffer.allocUnsafeSlow(FRAME_TARGET_BYTES);

export class LayerReader implements LayerView {
  readonly path: string;
  readonly header: LayerHeader;
  readonly footer: LayerFooter;
  readonly #name: string;
  readonly #cache: FrameCache;
  readonly #cacheBase: number;
  readonly #cipher: FrameCipher;
  readonly #binding: Buffer;
  readonly #footerBytes: Buffer;
  readonly #headerBytes: number;
  readonly #bytes: LayerBytes;
  #closed = false;
  #index: Buffer | undefined;

  /** `reference`: the key reference to use instead of the header's. Its key was loaded before. `frames`: how many data frames it has, when known:
   *  then what an object's first read needs is fetched at once. */
  constructor(source: string | LayerBytes, ciphers: CipherProvider, cache: FrameCache, reference?: Buffer, frames?: number) {
    const bytes = typeof source === 'string' ? new WholeFile(source) : source;
    const { path, size } = bytes;
    this.path = path;
    this.#name = basename(path);
    this.#cache = cache;
    this.#cacheBase = FrameCache.newLayerNumber() * 0x100_0000;
    this.#bytes = bytes;
    try {
      const headBytes = Math.min(size, HEADER_BYTES_MAX);
      const tailBytes = Math.min(size, FOOTER_BYTES + (frames === undefined ? 0 : frames * FRAME_INDEX_ENTRY_BYTES + TAG_BYTES));
      const miss = bothMisses(bytes.missing(0, headBytes), bytes.missing(size - tailBytes, tailBytes));
      if (miss !== undefined) throw miss;
      const { header, headerBytes } = decodeHeader(this.#read(0, headBytes), path);
      this.header = header;
      this.#headerBytes = headerBytes;
      if (size < headerBytes + FOOTER_BYTES) throw corrupt(path, 'is cut short');
      this.#footerBytes = this.#read(size - FOOTER_BYTES, FOOTER_BYTES);
      this.footer = decodeFooter(this.#footerBytes, size, path);
      this.#binding = layerBinding(header, this.#name);
      this.#cipher = ciphers.restore(header.algorithm, reference ?? header.keyReference).frames(header.objectId);
    } catch (error) {
      bytes.close();
      if (isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED')) throw rejectEnds(bytes) ?? asCorrupt(path, error);
      throw error;
    }
  }

  get kind(): LayerKind {
    return this.header.kind;
  }
  get startLsn(): Lsn {
    return this.header.startLsn;
  }
  get endLsn(): Lsn {
    return this.header.endLsn;
  }
  get frames(): number {
    return this.footer.frames;
  }

  /** `wipe`: what of it is in memory becomes zeros. */
  close(wipe = false): void {
    if (!this.#closed) this.#bytes.close();
    this.#closed = true;
    this.#cache.forget(this.#cacheBase, this.#cacheBase + this.footer.frames, wipe);
    if (wipe) this.#index?.fill(0);
    this.#index = undefined;
  }

  covers(key: Buffer): boolean {
    return key.compare(this.footer.keyMin) >= 0 && key.compare(this.footer.keyMax) <= 0;
  }

  collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean {
    if (!this.covers(key)) return false;
    let n = this.#frameBefore(key, upTo);
    const index = this.#frameIndex();
    for (; n >= 0; n--) {
      const frame = this.frame(n);
      const group = findGroup(frame, key);
      if (group >= 0) {
        const first = out.length;
        let stop = -1;
        let belowFloor = false;
        forEachEntry(frame.bytes, frame.groups[group] as number, (entry) => {
          if (entry.lsn > upTo) return false;
          if (entry.lsn <= floor) {
            belowFloor = true;
            return true;
          }
          if ((entry.arg & ARG_STOP) !== 0) stop = out.length;
          out.push(entry);
          return true;
        });
        if (stop >= 0) out.splice(first, stop - first);
        reverseTail(out, first);
        if (stop >= 0) return true;
        if (belowFloor) return false;
      }
      if (index.compare(key, 0, KEY_BYTES, n * FRAME_INDEX_ENTRY_BYTES, n * FRAME_INDEX_ENTRY_BYTES + KEY_BYTES) !== 0) break;
    }
    return false;
  }

  /** What {@link collect} would miss: of a key that fills many frames, the newest of them. */
  missing(key: Buffer, upTo: Lsn): RemoteMiss | undefined {
    if (!this.covers(key)) return undefined;
    const last = this.#frameBefore(key, upTo);
    if (last < 0) return undefined;
    const index = this.#frameIndex();
    const begins = (n: number): number =>
      index.compare(key, 0, KEY_BYTES, n * FRAME_INDEX_ENTRY_BYTES, n * FRAME_INDEX_ENTRY_BYTES + KEY_BYTES);
    let first = last;
    while (first > 0 && last - first < LOOK_AHEAD_FRAMES && begins(first) === 0) first--;
    return this.missingFrames(first, last);
  }

  /** What reads of all keys in [from, to] would miss. */
  missingRange(from: Buffer, to: Buffer): RemoteMiss | undefined {
    if (from.compare(this.footer.keyMax) > 0 || to.compare(this.footer.keyMin) < 0) return undefined;
    return this.missingFrames(this.frameAtOrBefore(from), Math.max(0, this.#frameBefore(to, Number.MAX_SAFE_INTEGER as Lsn)));
  }

  /** What reads of the frames [first, last] would miss. */
  missingFrames(first: number, last: number): RemoteMiss | undefined {
    const from = this.#place(first).offset;
    const to = this.#place(last);
    return this.#bytes.missing(from, to.offset + to.length + TAG_BYTES - from);
  }

  /** Opened and checked frame `n`. */
  frame(n: number): CachedFrame {
    const cached = this.#cache.get(this.#cacheBase + n);
    if (cached !== undefined) return cached;
    const plainBytes = this.#plainBytes(n);
    const room = plainBytes === 0 ? undefined : this.#cache.roomToPass(plainBytes);
    const frame = this.loadFrame(n, room);
    if (room === undefined) this.#cache.set(this.#cacheBase + n, frame);
    else this.#cache.passed(this.#cacheBase + n, frame);
    return frame;
  }

  /** {@link frame} without the cache: for scans. A compressed one is put into `room` when there is one. */
  loadFrame(n: number, room?: Buffer): CachedFrame {
    const { offset, length } = this.#place(n);
    const plainBytes = this.#plainBytes(n);
    const stored = this.#open(offset, length, n, undefined, plainBytes > 0);
    const bytes = plainBytes === 0 ? stored : this.#decompress(stored, plainBytes, n, room);
    return { bytes, groups: groupOffsets(bytes, this.path) };
  }

  /** A frame opened but not decompressed. */
  rawFrame(n: number): { firstKey: Buffer; firstLsn: Lsn; stored: Buffer; plainBytes: number } {
    const index = this.#frameIndex();
    const at = n * FRAME_INDEX_ENTRY_BYTES;
    const { offset, length } = this.#place(n);
    return {
      firstKey: index.subarray(at, at + KEY_BYTES),
      firstLsn: readLsn(index, at + KEY_BYTES),
      stored: this.#open(offset, length, n),
      plainBytes: this.#plainBytes(n),
    };
  }

  /** 0: not compressed. */
  #plainBytes(n: number): number {
    return this.#frameIndex().readUInt32BE(n * FRAME_INDEX_ENTRY_BYTES + KEY_BYTES + 8 + 12);
  }

  #place(n: number): { offset: number; length: number } {
    const index = this.#frameIndex();
    const p = n * FRAME_INDEX_ENTRY_BYTES + KEY_BYTES + 8;
    return { offset: index.readUInt32BE(p) * 0x1_0000_0000 + index.readUInt32BE(p + 4), length: index.readUInt32BE(p + 8) };
  }

  #decompress(stored: Buffer, plainBytes: number, n: number, room: Buffer | undefined): Buffer {
    if (plainBytes > FRAME_BYTES_MAX) throw corrupt(this.path, `has frame ${n} of an impossible size`);
    try {
      const plain = decompressFrame(stored, plainBytes, room);
      wipeAndGiveBack(stored);
      return plain;
    } catch (cause) {
      throw new LakebaseError('CORRUPT', `layer ${this.path}, frame ${n} does not decompress: ${(cause as Error).message}`, { cause });
    }
  }

  /** Number of the last frame whose first (key, lsn) is at or before the given; -1 when none is. */
  #frameBefore(key: Buffer, lsn: Lsn): number {
    const index = this.#frameIndex();
    let low = 0,
      high = this.footer.frames;
    while (low < high) {
      const mid = (low + high) >>> 1;
      const at = mid * FRAME_INDEX_ENTRY_BYTES;
      const order = index.compare(key, 0, KEY_BYTES, at, at + KEY_BYTES);
      const after = order > 0 || (order === 0 && readLsn(index, at + KEY_BYTES) > lsn);
      if (after) high = mid;
      else low = mid + 1;
    }
    return low - 1;
  }

  /** First frame that may hold keys >= key. */
  frameAtOrBefore(key: Buffer): number {
    return Math.max(0, this.#frameBefore(key, 0 as Lsn));
  }

  #frameIndex(): Buffer {
    if (this.#index === undefined) {
      const { indexOffset, indexBytes, frames } = this.footer;
      try {
        this.#index = this.#open(indexOffset, indexBytes - TAG_BYTES, frames, this.#footerBytes);
      } catch (error) {
        // Header and footer are only proven with it: any of the three may be the damaged one. A reader with a wrong header must not stay.
        if (isCode(error, 'CORRUPT')) throw rejectEnds(this.#bytes, indexBytes) ?? error;
        throw error;
      }
    }
    return this.#index;
  }
  /** Checks header, footer and frame index now. */
  prove(): void {
    this.#frameIndex();
  }

  /** `more`: what the frame is bound to besides its place. `passing`: the caller is done with the result before anything else is opened. */
  #open(offset: number, length: number, n: number, more?: Buffer, passing = false): Buffer {
    if (
      length > FRAME_BYTES_MAX ||
      offset < this.#headerBytes ||
      offset + length + TAG_BYTES > this.footer.indexOffset + this.footer.indexBytes
    )
      throw corrupt(this.path, `has frame ${n} outside the file`);
    const stored = this.#read(offset, length + TAG_BYTES, passing ? STORED : undefined);
    const binding = bindFrame(this.#binding, n);
    const associatedData = more === undefined ? binding : Buffer.concat([binding, more]);
    try {
      const plain = this.#cipher.open(stored.subarray(0, length), frameNonce(n), stored.subarray(length), associatedData);
      if (!passing && plain.buffer !== stored.buffer) giveBack(stored); // the plain cipher's is a view of it
      return plain;
    } catch (error) {
      if (error instanceof LakebaseError && error.code !== 'CORRUPT') throw error;
      const again = more === undefined ? this.#bytes.reject(offset, length + TAG_BYTES) : undefined;
      throw again ?? new LakebaseError('CORRUPT', `layer ${this.path}, frame ${n}: ${(error as Error).message}`, { cause: error });
    }
  }

  #read(offset: number, length: number, into?: Buffer): Buffer {
    assert(!this.#closed, () => `layer ${this.#name} is closed`);
    return this.#bytes.read(offset, length, into);
  }
}

/** What to fetch when header, footer or frame index fail a check. */
function rejectEnds(bytes: LayerBytes, indexBytes = 0): RemoteMiss | undefined {
  const tail = Math.min(bytes.size, FOOTER_BYTES + indexBytes);
  const head = bytes.reject(0, Math.min(bytes.size, HEADER_BYTES_MAX));
  // Of a small file both are one chunk, which was rejected just now.
  return head === undefined ? undefined : bothMisses(head, bytes.missing(bytes.size - tail, tail) ?? bytes.reject(bytes.size - tail, tail));
}

const readLsn = (b: Buffer, at: number): Lsn => (b.readUInt32BE(at) * 0x1_0000_0000 + b.readUInt32BE(at + 4)) as Lsn;

function groupOffsets(bytes: Buffer, path: string): Uint32Array {
  const offsets: number[] = [];
  let at = 0;
  while (at < bytes.length) {
    if (at + GROUP_HEADER_BYTES > bytes.length) throw corrupt(path, 'has a malformed frame');
    offsets.push(at);
    const length = bytes.readUInt32BE(at + KEY_BYTES + 4);
    if (length < GROUP_HEADER_BYTES + ENTRY_HEADER_BYTES || at + length > bytes.length) throw corrupt(path, 'has a malformed frame');
    at += length;
  }
  return Uint32Array.from(offsets);
}

function findGroup(frame: CachedFrame, key: Buffer): number {
  let low = 0,
    high = frame.groups.length - 1;
  while (low <= high) {
    const mid = (low + high) >>> 1;
    const at = frame.groups[mid] as number;
    const order = frame.bytes.compare(key, 0, KEY_BYTES, at, at + KEY_BYTES);
    if (order === 0) return mid;
    if (order < 0) low = mid + 1;
    else high = mid - 1;
  }
  return -1;
}

/** Calls `visit` for the entries of the group at `at`, oldest first, until it returns false. Entry bytes are views of the frame. */
export function forEachEntry(bytes: Buffer, at: number, visit: (entry: Entry) => boolean): void {
  const n = bytes.readUInt32BE(at + KEY_BYTES);
  const end = at + bytes.readUInt32BE(at + KEY_BYTES + 4);
  let p = at + GROUP_HEADER_BYTES;
  for (let i = 0; i < n; i++) {
    if (p + ENTRY_HEADER_BYTES > end) throw new LakebaseError('CORRUPT', 'a layer frame is malformed');
    const length = bytes.readUInt32BE(p + 10);
    const start = p + ENTRY_HEADER_BYTES;
    if (start + length > end) throw new LakebaseError('CORRUPT', 'a layer frame is malformed');
    p = start + length;
    const header = start - ENTRY_HEADER_BYTES;
    const entry = {
      kind: bytes[header] as number,
      arg: bytes[header + 1] as number,
      lsn: readLsn(bytes, header + 2),
      bytes: bytes.subarray(start, p),
    };
    if (!visit(entry)) return;
  }
}

function reverseTail(list: Entry[], from: number): void {
  for (let i = from, j = list.length - 1; i < j; i++, j--) {
    const a = list[i] as Entry;
    list[i] = list[j] as Entry;
    list[j] = a;
  }
}
