/** Writes one layer file from entries given in (key, LSN, filing) order. Frames collect in memory; the caller awaits {@link LayerWriter.drain}
 *  now and then (it writes what is full) and {@link LayerWriter.finish} at the end, which makes the file durable under its name.
 *  Buffer ownership: `add` copies what it is given. */
import { createHash, type Hash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { basename } from 'node:path';
import { assert } from '@lakebase/base';
import { compressFrame, giveBack, wipeAndGiveBack } from '@lakebase/bytes';
import { type FrameCipher, type ObjectKey, TAG_BYTES, bindFrame, frameNonce } from '@lakebase/envelope';
import { type Lsn, lsnHigh, lsnLow } from '@lakebase/ids';
import { abandonFile, commitFile, createTemp, writeAllFully } from './durable.ts';
import { KEY_BYTES } from './key.ts';
import type { LayerReader } from './layer-reader.ts';
import { OpenPacks } from './open-packs.ts';
import {
  ENTRY_HEADER_BYTES,
  FRAME_INDEX_ENTRY_BYTES,
  FRAME_TARGET_BYTES,
  GROUP_HEADER_BYTES,
  LAYER_VERSION,
  type LayerHeader,
  type LayerKind,
  PACK_FRAMES,
  PACK_TARGET_BYTES,
  encodeFooter,
  encodeHeader,
  layerBinding,
  newObjectId,
} from './layer-format.ts';
import { type ObjectKeys, bornOf, keyToText } from './object-keys.ts';

/** What the index keeps of a finished layer. */
export interface LayerDescriptor {
  readonly name: string;
  readonly kind: LayerKind;
  readonly level: number;
  readonly generation: number;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  /** Hexadecimal keys. */
  readonly keyMin: string;
  readonly keyMax: string;
  readonly bytes: number;
  readonly entries: number;
  /** Data frames. Older descriptors do not say. */
  readonly frames?: number;
  /** SHA-256 of the file. */
  readonly hash: string;
  /** Key reference, base64. The one to unwrap: the header's, or a later wrapping of the same key. */
  readonly key: string;
  /** KEK version that its data key was made under, whatever wraps it now. Older descriptors do not say. */
  readonly born?: number;
}

export interface LayerIdentity {
  readonly project: string;
  readonly timeline: string;
  readonly kind: LayerKind;
  readonly level: number;
  readonly generation: number;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  /** Compress frames: for layers of page images. */
  readonly compress?: boolean;
}

/** Opened and sealed again without a turn of the event loop. */
const COPY_DRAIN_BYTES = 256 * 1024;
/** Below this a loop beats Buffer.copy, which makes views of both sides. */
const LOOP_BYTES = 320;

function putU32(into: Buffer, at: number, value: number): void {
  into[at] = value >>> 24;
  into[at + 1] = value >>> 16;
  into[at + 2] = value >>> 8;
  into[at + 3] = value;
}

export class LayerWriter {
  readonly #path: string;
  readonly #identity: LayerIdentity;
  readonly #cipher: FrameCipher;
  readonly #binding: Buffer;
  readonly #keyReference: Buffer;
  readonly #hash: Hash = createHash('sha256');
  readonly #handle: FileHandle;
  #offset = 0;
  #pending: Buffer[] = [];
  #pendingBytes = 0;

  #frame: Buffer = Buffer.allocUnsafeSlow(FRAME_TARGET_BYTES * 2);
  #frameUsed = 0;
  #frames = 0;
  /** Stored frames that will be sealed together. */
  readonly #pack: Buffer = Buffer.allocUnsafeSlow(PACK_TARGET_BYTES);
  #packUsed = 0;
  #packFrames = 0;
  #packs = 0;
  #entries = 0;
  #frameIndex: Buffer = Buffer.alloc(FRAME_INDEX_ENTRY_BYTES * 1024);
  readonly #keyMin: Buffer = Buffer.alloc(KEY_BYTES, 0xff);
  readonly #keyLast: Buffer = Buffer.alloc(KEY_BYTES);
  #lsnLast = 0;
  #groupAt = -1;
  #groupEntries = 0;

  static async create(path: string, identity: LayerIdentity, keys: ObjectKeys): Promise<LayerWriter> {
    await keys.reserve(1);
    const handle = await createTemp(path);
    try {
      return new LayerWriter(path, identity, keys.create(), handle);
    } catch (error) {
      await abandonFile(handle, path);
      throw error;
    }
  }

  private constructor(path: string, identity: LayerIdentity, key: ObjectKey, handle: FileHandle) {
    this.#path = path;
    this.#identity = identity;
    this.#handle = handle;
    const header: LayerHeader = {
      ...identity,
      version: LAYER_VERSION,
      objectId: newObjectId(),
      algorithm: key.algorithm,
      keyReference: key.keyReference,
    };
    this.#cipher = key.frames(header.objectId);
    this.#keyReference = key.keyReference;
    this.#binding = layerBinding(header, basename(path));
    this.#emit(encodeHeader(header));
  }

  get bytesWritten(): number {
    return this.#offset + this.#packUsed + this.#frameUsed;
  }
  /** Bytes waiting for {@link drain}. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  add(key: Buffer, lsn: Lsn, kind: number, arg: number, bytes: Buffer): void {
    this.addFrom(key, this.#entries > 0 && key.equals(this.#keyLast), lsn, kind, arg, bytes, 0, bytes.length);
  }

  /** {@link add} of source[offset, offset + length). `sameKey`: the key is that of the entry before. */
  addFrom(key: Buffer, sameKey: boolean, lsn: Lsn, kind: number, arg: number, source: Buffer, offset: number, length: number): void {
    if (this.#entries === 0) key.copy(this.#keyMin);
    else if (sameKey) assert(lsn >= this.#lsnLast, 'entries of a key must come in LSN order');
    else assert(key.compare(this.#keyLast) > 0, 'layer entries must come in key order');
    const grouped = sameKey && this.#groupAt >= 0;
    const need = ENTRY_HEADER_BYTES + length + (grouped ? 0 : GROUP_HEADER_BYTES);
    if (this.#frameUsed > 0 && this.#frameUsed + need > FRAME_TARGET_BYTES) this.#closeFrame();
    if (this.#frameUsed === 0) this.#openFrame(key, lsn);
    this.#reserve(GROUP_HEADER_BYTES + ENTRY_HEADER_BYTES + length);
    if (!sameKey || this.#groupAt < 0) this.#openGroup(key);
    const f = this.#frame;
    let at = this.#frameUsed;
    f[at] = kind;
    f[at + 1] = arg;
    putU32(f, at + 2, lsnHigh(lsn));
    putU32(f, at + 6, lsnLow(lsn));
    putU32(f, at + 10, length);
    at += ENTRY_HEADER_BYTES;
    if (length < LOOP_BYTES) for (let i = 0; i < length; i++) f[at + i] = source[offset + i] as number;
    else source.copy(f, at, offset, offset + length);
    this.#frameUsed = at + length;
    this.#groupEntries++;
    this.#entries++;
    this.#lsnLast = lsn;
  }

  #openGroup(key: Buffer): void {
    this.#closeGroup();
    this.#groupAt = this.#frameUsed;
    key.copy(this.#frame, this.#groupAt, 0, KEY_BYTES);
    key.copy(this.#keyLast);
    this.#frameUsed += GROUP_HEADER_BYTES;
  }
  #closeGroup(): void {
    if (this.#groupAt < 0) return;
    putU32(this.#frame, this.#groupAt + KEY_BYTES, this.#groupEntries);
    putU32(this.#frame, this.#groupAt + KEY_BYTES + 4, this.#frameUsed - this.#groupAt);
    this.#groupAt = -1;
    this.#groupEntries = 0;
  }

  async drain(): Promise<void> {
    if (this.#pending.length === 0) return;
    const pieces = this.#pending;
    const at = this.#offset - this.#pendingBytes;
    this.#pending = [];
    this.#pendingBytes = 0;
    for (const piece of pieces) this.#hash.update(piece);
    await writeAllFully(this.#handle, pieces, at, this.#path);
    for (const piece of pieces) giveBack(piece);
  }

  async finish(): Promise<LayerDescriptor> {
    assert(this.#entries > 0, 'a layer has at least one entry');
    if (this.#frameUsed > 0) this.#closeFrame();
    this.#sealPack();
    const indexOffset = this.#offset;
    const index = Buffer.from(this.#frameIndex.subarray(0, this.#frames * FRAME_INDEX_ENTRY_BYTES));
    const footer = encodeFooter({
      indexOffset,
      indexBytes: index.length + TAG_BYTES,
      frames: this.#frames,
      entries: this.#entries,
      keyMin: this.#keyMin,
      keyMax: this.#keyLast,
    });
    const associatedData = Buffer.concat([bindFrame(this.#binding, this.#frames), footer]);
    const sealed = this.#cipher.seal(index, frameNonce(this.#frames), associatedData);
    this.#emit(sealed.bytes);
    this.#emit(sealed.tag);
    this.#emit(footer);
    await this.drain();
    await commitFile(this.#handle, this.#path);
    const { kind, level, generation, startLsn, endLsn } = this.#identity;
    return {
      name: basename(this.#path),
      kind,
      level,
      generation,
      startLsn,
      endLsn,
      keyMin: this.#keyMin.toString('hex'),
      keyMax: this.#keyLast.toString('hex'),
      bytes: this.#offset,
      entries: this.#entries,
      frames: this.#frames,
      hash: this.#hash.digest('hex'),
      key: keyToText(this.#keyReference),
      ...bornOf(this.#keyReference),
    };
  }

  abandon(): Promise<void> {
    return abandonFile(this.#handle, this.#path);
  }

  get entries(): number {
    return this.#entries;
  }

  #openFrame(key: Buffer, lsn: Lsn): void {
    const at = this.#frames * FRAME_INDEX_ENTRY_BYTES;
    if (at + FRAME_INDEX_ENTRY_BYTES > this.#frameIndex.length)
      this.#frameIndex = Buffer.concat([this.#frameIndex, Buffer.alloc(this.#frameIndex.length)]);
    key.copy(this.#frameIndex, at, 0, KEY_BYTES);
    this.#frameIndex.writeUInt32BE(lsnHigh(lsn), at + KEY_BYTES);
    this.#frameIndex.writeUInt32BE(lsnLow(lsn), at + KEY_BYTES + 4);
  }

  #closeFrame(): void {
    this.#closeGroup();
    const plain = this.#frame.subarray(0, this.#frameUsed);
    const small = this.#identity.compress === true ? compressFrame(plain) : undefined;
    if (small !== undefined && small.length < plain.length * 0.9) this.#fileFrame(small, plain.length);
    else this.#fileFrame(plain, 0);
    if (small !== undefined) wipeAndGiveBack(small);
    this.#frameUsed = 0;
  }

  /** A large one is a pack of its own, and not copied. */
  #fileFrame(stored: Buffer, plainBytes: number): void {
    const alone = stored.length > PACK_TARGET_BYTES / 2;
    if (alone || this.#packUsed + stored.length > PACK_TARGET_BYTES) this.#sealPack();
    const at = this.#frames++ * FRAME_INDEX_ENTRY_BYTES + KEY_BYTES + 8;
    const offset = this.#offset + this.#packUsed;
    this.#frameIndex.writeUInt32BE(Math.floor(offset / 0x1_0000_0000), at);
    this.#frameIndex.writeUInt32BE(offset % 0x1_0000_0000, at + 4);
    this.#frameIndex.writeUInt32BE(stored.length, at + 8);
    this.#frameIndex.writeUInt32BE(plainBytes, at + 12);
    if (alone) return this.#seal(stored);
    stored.copy(this.#pack, this.#packUsed);
    this.#packUsed += stored.length;
    if (++this.#packFrames === PACK_FRAMES) this.#sealPack();
  }

  #sealPack(): void {
    if (this.#packUsed === 0) return;
    this.#seal(this.#pack.subarray(0, this.#packUsed));
    this.#packUsed = 0;
    this.#packFrames = 0;
  }

  #seal(pack: Buffer): void {
    const sealed = this.#cipher.seal(pack, frameNonce(this.#packs), bindFrame(this.#binding, this.#packs));
    // What is sealed waits for the disk: it must not be a view of memory that is filled again (the plain cipher's is).
    this.#emit(sealed.bytes === pack ? Buffer.from(pack) : sealed.bytes);
    this.#emit(sealed.tag);
    this.#packs++;
  }

  /** Takes over all frames of another layer as they are, sealed anew: a copy under this identity. */
  async copyFrom(source: LayerReader): Promise<void> {
    assert(this.#entries === 0, 'a copy begins empty');
    const packs = new OpenPacks(1);
    for (let n = 0; n < source.frames; n++) {
      const frame = source.rawFrame(n, packs);
      this.#openFrame(frame.firstKey, frame.firstLsn);
      this.#fileFrame(frame.stored, frame.plainBytes);
      if (this.#pendingBytes >= COPY_DRAIN_BYTES) await this.drain();
    }
    packs.forget();
    source.footer.keyMin.copy(this.#keyMin);
    source.footer.keyMax.copy(this.#keyLast);
    this.#entries = source.footer.entries;
  }

  #reserve(n: number): void {
    if (this.#frameUsed + n <= this.#frame.length) return;
    const next = Buffer.allocUnsafeSlow(this.#frameUsed + n);
    this.#frame.copy(next, 0, 0, this.#frameUsed);
    this.#frame = next;
  }

  #emit(bytes: Buffer): void {
    this.#pending.push(bytes);
    this.#pendingBytes += bytes.length;
    this.#offset += bytes.length;
  }
}
