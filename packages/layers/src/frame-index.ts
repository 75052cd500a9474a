/** The opened frame index of a layer (docs/formats/layer.md): where each frame begins, in which pack it was sealed, and which may hold a key.
 *  Invariant: frames and packs fill the file from the header to the index without a hole, or the constructor throws CORRUPT: every place it tells lies
 *  within the file. */
import type { Lsn } from '@lakebase/ids';
import { TAG_BYTES } from '@lakebase/envelope';
import { KEY_BYTES } from './key.ts';
import { FRAME_BYTES_MAX, FRAME_INDEX_ENTRY_BYTES, type LayerFooter, corrupt } from './layer-format.ts';

const OFFSET_AT = KEY_BYTES + 8;
const STORED_AT = OFFSET_AT + 8;
const PLAIN_AT = STORED_AT + 4;

/** Consecutive frames under one tag. */
export interface Pack {
  /** What its nonce is made of. */
  readonly number: number;
  /** Its frames are [first, end). */
  readonly first: number;
  readonly end: number;
  /** Of its first byte in the file. */
  readonly offset: number;
  /** Without the tag, which follows. */
  readonly bytes: number;
}

export class FrameIndex {
  readonly #rows: Buffer;
  readonly frames: number;
  /** First frame of each pack, and one more that ends the last. */
  readonly #packs: Uint32Array;

  /** Takes `rows` over. */
  constructor(rows: Buffer, headerBytes: number, footer: LayerFooter, file: string) {
    this.#rows = rows;
    this.frames = footer.frames;
    const packs: number[] = [];
    let at = headerBytes;
    for (let n = 0; n < this.frames; n++) {
      const offset = this.offset(n);
      // Behind the last frame of a pack is its tag: what begins at once is in the same pack.
      const same = n > 0 && offset === at;
      if (!same) packs.push(n);
      if (offset !== at + (same || n === 0 ? 0 : TAG_BYTES) || this.plainBytes(n) > FRAME_BYTES_MAX || this.storedBytes(n) === 0)
        throw corrupt(file, `has an index whose row ${n} does not fit`);
      at = offset + this.storedBytes(n);
    }
    packs.push(this.frames);
    this.#packs = Uint32Array.from(packs);
    if (at + (this.frames > 0 ? TAG_BYTES : 0) !== footer.indexOffset) throw corrupt(file, 'has an index that does not fit its frames');
  }

  /** A view. */
  firstKey(n: number): Buffer {
    const at = n * FRAME_INDEX_ENTRY_BYTES;
    return this.#rows.subarray(at, at + KEY_BYTES);
  }
  firstLsn(n: number): Lsn {
    return u64(this.#rows, n * FRAME_INDEX_ENTRY_BYTES + KEY_BYTES) as Lsn;
  }
  /** Of its stored bytes in the file. */
  offset(n: number): number {
    return u64(this.#rows, n * FRAME_INDEX_ENTRY_BYTES + OFFSET_AT);
  }
  storedBytes(n: number): number {
    return this.#rows.readUInt32BE(n * FRAME_INDEX_ENTRY_BYTES + STORED_AT);
  }
  /** 0: stored as it is. */
  plainBytes(n: number): number {
    return this.#rows.readUInt32BE(n * FRAME_INDEX_ENTRY_BYTES + PLAIN_AT);
  }

  get packs(): number {
    return this.#packs.length - 1;
  }
  pack(number: number): Pack {
    const first = this.#packs[number] as number;
    const end = this.#packs[number + 1] as number;
    const offset = this.offset(first);
    return { number, first, end, offset, bytes: this.offset(end - 1) + this.storedBytes(end - 1) - offset };
  }
  /** The pack that holds frame `n`. */
  packOf(n: number): Pack {
    const low = lastWhere(this.packs, (i) => (this.#packs[i] as number) <= n);
    return this.pack(low);
  }

  /** Whether frame `n` begins with an entry of `key`. */
  beginsWith(n: number, key: Buffer): boolean {
    return this.#compare(key, n) === 0;
  }
  /** Number of the last frame whose first (key, LSN) is at or before the given; -1 when none is. */
  lastAtOrBefore(key: Buffer, lsn: Lsn): number {
    return lastWhere(this.frames, (n) => {
      const order = this.#compare(key, n);
      return order < 0 || (order === 0 && this.firstLsn(n) <= lsn);
    });
  }

  wipe(): void {
    this.#rows.fill(0);
  }

  /** The first key of frame `n` against `key`. */
  #compare(key: Buffer, n: number): number {
    const at = n * FRAME_INDEX_ENTRY_BYTES;
    return this.#rows.compare(key, 0, KEY_BYTES, at, at + KEY_BYTES);
  }
}

/** The last of [0, count) for which `holds`, which holds up to some number and not beyond; -1 when for none. */
function lastWhere(count: number, holds: (n: number) => boolean): number {
  let low = 0,
    high = count;
  while (low < high) {
    const mid = (low + high) >>> 1;
    if (holds(mid)) low = mid + 1;
    else high = mid;
  }
  return low - 1;
}

const u64 = (b: Buffer, at: number): number => b.readUInt32BE(at) * 0x1_0000_0000 + b.readUInt32BE(at + 4);
