/** Reads one layer file. Frames are read with synchronous preads of their pack: at most 33 KiB on a local disk, mostly in the operating system's cache, and a
 *  read path without awaits sees one consistent set of layers by construction. The frame index is loaded at the first use.
 *  Every check failure is CORRUPT and names the file; bytes that are not local, or were damaged and can be fetched anew, are a {@link RemoteMiss}. */
import { basename } from 'node:path';
import { LakebaseError, assert, isCode } from '@lakebase/base';
import { decompressFrame, giveBack, wipeAndGiveBack } from '@lakebase/bytes';
import { type CipherProvider, type FrameCipher, TAG_BYTES, bindFrame, frameNonce } from '@lakebase/envelope';
import type { Lsn } from '@lakebase/ids';
import { ARG_STOP, type Entry, type LayerView } from './entry.ts';
import { type CachedFrame, FrameCache } from './frame-cache.ts';
import { FrameIndex, type Pack } from './frame-index.ts';
import { KEY_BYTES } from './key.ts';
import { type LayerBytes, WholeFile } from './layer-bytes.ts';
import {
  ENTRY_HEADER_BYTES,
  FOOTER_BYTES,
  FRAME_BYTES_MAX,
  FRAME_INDEX_ENTRY_BYTES,
  GROUP_HEADER_BYTES,
  HEADER_BYTES_MAX,
  type LayerFooter,
  type LayerHeader,
  type LayerKind,
  PACK_TARGET_BYTES,
  asCorrupt,
  corrupt,
  decodeFooter,
  decodeHeader,
  layerBinding,
} from './layer-format.ts';
import type { OpenPacks } from './open-packs.ts';
import { RemoteMiss, bothMisses } from './remote-miss.ts';

/** Of one key, in one layer, that are fetched at once. */
const LOOK_AHEAD_FRAMES = 16;
/** A pack as it is stored, until it is opened. */
const STORED = Buffer.allocUnsafeSlow(PACK_TARGET_BYTES + TAG_BYTES);

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
  #index: FrameIndex | undefined;

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
    if (wipe) this.#index?.wipe();
    this.#index = undefined;
  }

  covers(key: Buffer): boolean {
    return key.compare(this.footer.keyMin) >= 0 && key.compare(this.footer.keyMax) <= 0;
  }

  collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean {
    if (!this.covers(key)) return false;
    const index = this.#frameIndex();
    for (let n = index.lastAtOrBefore(key, upTo); n >= 0; n--) {
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
      if (!index.beginsWith(n, key)) break;
    }
    return false;
  }

  /** What {@link collect} would miss: of a key that fills many frames, the newest of them. */
  missing(key: Buffer, upTo: Lsn): RemoteMiss | undefined {
    if (!this.covers(key)) return undefined;
    const index = this.#frameIndex();
    const last = index.lastAtOrBefore(key, upTo);
    if (last < 0) return undefined;
    let first = last;
    while (first > 0 && last - first < LOOK_AHEAD_FRAMES && index.beginsWith(first, key)) first--;
    return this.missingFrames(first, last);
  }

  /** What reads of all keys in [from, to] would miss. */
  missingRange(from: Buffer, to: Buffer): RemoteMiss | undefined {
    if (from.compare(this.footer.keyMax) > 0 || to.compare(this.footer.keyMin) < 0) return undefined;
    return this.missingFrames(
      this.frameAtOrBefore(from),
      Math.max(0, this.#frameIndex().lastAtOrBefore(to, Number.MAX_SAFE_INTEGER as Lsn)),
    );
  }

  /** What reads of the frames [first, last] would miss. */
  missingFrames(first: number, last: number): RemoteMiss | undefined {
    const index = this.#frameIndex();
    const from = index.packOf(first).offset;
    const to = index.packOf(last);
    return this.#bytes.missing(from, to.offset + to.bytes + TAG_BYTES - from);
  }

  /** Opened and checked frame `n`. */
  frame(n: number): CachedFrame {
    const cached = this.#cache.get(this.#cacheBase + n);
    if (cached !== undefined) return cached;
    const plainBytes = this.#frameIndex().plainBytes(n);
    const room = plainBytes === 0 ? undefined : this.#cache.roomToPass(plainBytes);
    const frame = this.loadFrame(n, this.#cache.packs, room);
    if (room === undefined) this.#cache.set(this.#cacheBase + n, frame);
    else this.#cache.passed(this.#cacheBase + n, frame);
    return frame;
  }

  /** {@link frame} without the cache: for scans. `packs`: where a pack stays until its other frames are read. A compressed frame is put into `room` when
   *  there is one. */
  loadFrame(n: number, packs: OpenPacks, room?: Buffer): CachedFrame {
    const bytes = this.#plainFrame(n, packs, room);
    return { bytes, groups: groupOffsets(bytes, this.path) };
  }

  #plainFrame(n: number, packs: OpenPacks, room: Buffer | undefined): Buffer {
    const index = this.#frameIndex();
    const plainBytes = index.plainBytes(n);
    const pack = index.packOf(n);
    if (pack.end - pack.first > 1) {
      const stored = this.#storedFrame(n, pack, packs);
      return plainBytes === 0 ? ownCopy(stored) : this.#decompress(stored, plainBytes, n, room);
    }
    const stored = this.#openPack(pack, n);
    if (plainBytes === 0) return stored;
    const plain = this.#decompress(stored, plainBytes, n, room);
    wipeAndGiveBack(stored);
    return plain;
  }

  /** A frame opened but not decompressed; `stored` is a view of what `packs` holds. */
  rawFrame(n: number, packs: OpenPacks): { firstKey: Buffer; firstLsn: Lsn; stored: Buffer; plainBytes: number } {
    const index = this.#frameIndex();
    return {
      firstKey: index.firstKey(n),
      firstLsn: index.firstLsn(n),
      stored: this.#storedFrame(n, index.packOf(n), packs),
      plainBytes: index.plainBytes(n),
    };
  }

  #storedFrame(n: number, pack: Pack, packs: OpenPacks): Buffer {
    const key = this.#cacheBase + pack.number;
    let bytes = packs.get(key);
    if (bytes === undefined) packs.set(key, (bytes = this.#openPack(pack, n)));
    const index = this.#frameIndex();
    const at = index.offset(n) - pack.offset;
    return bytes.subarray(at, at + index.storedBytes(n));
  }

  /** All of a pack, in memory of its own. `n`: the frame it is opened for. */
  #openPack({ offset, bytes, number }: Pack, n: number): Buffer {
    return this.#open(offset, bytes, number, `frame ${n}`);
  }

  #decompress(stored: Buffer, plainBytes: number, n: number, room: Buffer | undefined): Buffer {
    try {
      return decompressFrame(stored, plainBytes, room);
    } catch (cause) {
      throw new LakebaseError('CORRUPT', `layer ${this.path}, frame ${n} does not decompress: ${(cause as Error).message}`, { cause });
    }
  }

  /** First frame that may hold keys >= key. */
  frameAtOrBefore(key: Buffer): number {
    return Math.max(0, this.#frameIndex().lastAtOrBefore(key, 0 as Lsn));
  }

  #frameIndex(): FrameIndex {
    if (this.#index === undefined) {
      const { indexOffset, indexBytes, frames } = this.footer;
      try {
        const rows = this.#open(indexOffset, indexBytes - TAG_BYTES, frames, 'frame index', this.#footerBytes);
        this.#index = new FrameIndex(rows, this.#headerBytes, this.footer, this.path);
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

  /** `what`, for messages; `more`: what it is bound to besides its place. The result is the caller's own. */
  #open(offset: number, length: number, number: number, what: string, more?: Buffer): Buffer {
    if (length > FRAME_BYTES_MAX) throw corrupt(this.path, `has a ${what} of an impossible size`);
    const stored = this.#read(offset, length + TAG_BYTES, STORED);
    const binding = bindFrame(this.#binding, number);
    const associatedData = more === undefined ? binding : Buffer.concat([binding, more]);
    try {
      const plain = this.#cipher.open(stored.subarray(0, length), frameNonce(number), stored.subarray(length), associatedData);
      if (plain.buffer === stored.buffer) return ownCopy(plain); // the plain cipher's
      if (stored.buffer !== STORED.buffer) giveBack(stored);
      return plain;
    } catch (error) {
      if (error instanceof LakebaseError && error.code !== 'CORRUPT') throw error;
      const again = more === undefined ? this.#bytes.reject(offset, length + TAG_BYTES) : undefined;
      throw again ?? new LakebaseError('CORRUPT', `layer ${this.path}, ${what}: ${(error as Error).message}`, { cause: error });
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

function ownCopy(bytes: Buffer): Buffer {
  const copy = Buffer.allocUnsafeSlow(bytes.length);
  bytes.copy(copy);
  return copy;
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
