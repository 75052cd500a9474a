/** Reads one WAL object in the object store by ranges. Memory: one read-ahead of {@link READ_AHEAD_FRAMES} sealed frames.
 *  Invariant: every byte it returns came out of a frame whose tag held, of an object whose header names this project, timeline and range. */
import { LakebaseError, errorMessage, isCode } from '@lakebase/base';
import { decompressFrame, dropFrameContexts, wipeAndGiveBack } from '@lakebase/bytes';
import { type FrameCipher, type ObjectKey, TAG_BYTES, bindFrame, frameNonce, objectBinding } from '@lakebase/envelope';
import { type Lsn, formatLsn } from '@lakebase/ids';
import type { ObjectStore } from '@lakebase/object-store';
import {
  TRAILER_READ_BYTES,
  WAL_FRAME_BYTES,
  type WalObjectFrame,
  type WalObjectHeader,
  type WalObjectTrailer,
  decodeIndex,
  decodeTrailer,
} from './wal-object-format.ts';
import type { WalObjectName } from './wal-object-writer.ts';

/** One request of 2 MiB at most: large enough that its latency does not matter, small enough for many readers. */
const READ_AHEAD_FRAMES = 8;

export interface FoundTrailer extends WalObjectTrailer {
  readonly name: string;
  readonly size: number;
  readonly tag: string;
}

/** The trailer of the object, or undefined when there is none. Throws CORRUPT for one that cannot be what its name says. */
export async function readTrailer(store: ObjectStore, object: WalObjectName): Promise<FoundTrailer | undefined> {
  const { name } = object;
  try {
    const { bytes, size, tag } = await store.get(name, { range: { suffix: TRAILER_READ_BYTES } });
    const trailer = decodeTrailer(bytes, size, name);
    if (trailer.header.project !== object.project || trailer.header.timeline !== object.timeline)
      throw new LakebaseError('CORRUPT', `WAL object ${name} is of another project or timeline`);
    return { ...trailer, name, size, tag };
  } catch (error) {
    if (isCode(error, 'NOT_FOUND')) return undefined;
    throw error;
  }
}

export class WalObjectReader {
  readonly header: WalObjectHeader;
  readonly name: string;
  readonly #store: ObjectStore;
  readonly #cipher: FrameCipher;
  readonly #binding: Buffer;
  readonly #frames: readonly WalObjectFrame[];
  /** Sealed frames [first, first + count) as they came. */
  #ahead: { readonly first: number; readonly count: number; readonly bytes: Buffer } | undefined;
  /** The frame opened last. */
  #open: { readonly n: number; readonly plain: Buffer } | undefined;

  /** Throws CORRUPT when the key is not the object's or its index was changed. */
  constructor(store: ObjectStore, trailer: FoundTrailer, key: ObjectKey) {
    this.header = trailer.header;
    this.name = trailer.name;
    this.#store = store;
    const { header, index, name } = trailer;
    this.#cipher = key.frames(header.objectId);
    this.#binding = objectBinding(header.project, header.timeline, name, trailer.headerBytes);
    const n = Math.ceil((header.end - header.start) / header.frameBytes);
    const sealed = index.subarray(0, index.length - TAG_BYTES);
    const tag = index.subarray(index.length - TAG_BYTES);
    try {
      this.#frames = decodeIndex(this.#cipher.open(sealed, frameNonce(n), tag, bindFrame(this.#binding, n)), trailer, name);
    } catch (error) {
      if (isCode(error, 'CORRUPT')) throw new LakebaseError('CORRUPT', `WAL object ${name}: ${error.message}`, { cause: error });
      throw error;
    }
  }

  /** At most `max` bytes of WAL from `from`, at least one; `from` is in the object. The buffer is the caller's. */
  async read(from: Lsn, max: number): Promise<Buffer> {
    const { start, end } = this.header;
    if (from < start || from >= end)
      throw new LakebaseError('INVALID_ARGUMENT', `WAL object ${this.name} does not hold ${formatLsn(from)}`);
    const n = Math.floor((from - start) / WAL_FRAME_BYTES);
    const offset = from - start - n * WAL_FRAME_BYTES;
    return this.#frame(n, (plain) => Buffer.from(plain.subarray(offset, Math.min(plain.length, offset + max))));
  }

  /** What `use` makes of frame `n`, at once: the frame may be wiped in the next turn. */
  async #frame(n: number, use: (plain: Buffer) => Buffer): Promise<Buffer> {
    if (this.#open?.n === n) return use(this.#open.plain);
    const { offset, stored, compressed } = this.#frames[n] as WalObjectFrame;
    const ahead = await this.#fetch(n);
    const at = offset - (this.#frames[ahead.first] as WalObjectFrame).offset;
    const sealed = ahead.bytes.subarray(at, at + stored);
    const tag = ahead.bytes.subarray(at + stored, at + stored + TAG_BYTES);
    const length = Math.min(WAL_FRAME_BYTES, this.header.end - this.header.start - n * WAL_FRAME_BYTES);
    let plain: Buffer;
    try {
      plain = this.#cipher.open(sealed, frameNonce(n), tag, bindFrame(this.#binding, n));
      if (compressed) {
        const small = plain;
        plain = decompressFrame(small, length);
        wipeAndGiveBack(small);
      } else if (plain.buffer === sealed.buffer) plain = Buffer.from(plain); // the plain cipher's
      if (plain.length !== length) throw new LakebaseError('CORRUPT', `frame ${n} has ${plain.length} bytes, not ${length}`);
    } catch (error) {
      if (error instanceof LakebaseError && error.code !== 'CORRUPT') throw error;
      throw new LakebaseError('CORRUPT', `WAL object ${this.name}, frame ${n}: ${errorMessage(error)}`, { cause: error });
    }
    this.#drop();
    this.#open = { n, plain };
    return use(plain);
  }

  async #fetch(n: number): Promise<{ first: number; count: number; bytes: Buffer }> {
    const held = this.#ahead;
    if (held !== undefined && n >= held.first && n < held.first + held.count) return held;
    const count = Math.min(READ_AHEAD_FRAMES, this.#frames.length - n);
    const offset = (this.#frames[n] as WalObjectFrame).offset;
    const last = this.#frames[n + count - 1] as WalObjectFrame;
    const length = last.offset + last.stored + TAG_BYTES - offset;
    const { bytes } = await this.#store.get(this.name, { range: { offset, length } });
    if (bytes.length !== length) throw new LakebaseError('UNAVAILABLE', `WAL object ${this.name} gave ${bytes.length} of ${length} bytes`);
    return (this.#ahead = { first: n, count, bytes });
  }

  /** Plain WAL does not stay in memory. */
  wipe(): void {
    this.#drop();
    dropFrameContexts();
  }

  #drop(): void {
    if (this.#open !== undefined) wipeAndGiveBack(this.#open.plain);
    this.#open = undefined;
  }
}
