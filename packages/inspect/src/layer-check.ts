/** Reads a whole layer once, in pieces: its SHA-256, its header and footer, and with keys every frame opened, decompressed and counted. For the scrubber
 *  and for `inspect`. Invariants: memory is bounded by one piece and one frame; every length is checked against the file before it is used;
 *  whatever fails is CORRUPT and names the file and the frame. */
import { createHash } from 'node:crypto';
import { zstdDecompressSync } from 'node:zlib';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { TAG_BYTES, bindFrame, frameNonce } from '@lakebase/envelope';
import {
  FOOTER_BYTES,
  FRAME_BYTES_MAX,
  FRAME_INDEX_ENTRY_BYTES,
  HEADER_BYTES_MAX,
  KEY_BYTES,
  type LayerFooter,
  type LayerHeader,
  type ObjectKeys,
  decodeFooter,
  decodeHeader,
  layerBinding,
} from '@lakebase/layers';
import type { ByteSource } from './byte-source.ts';

const PIECE_BYTES = 1 << 20;

export interface LayerShape {
  readonly header: LayerHeader;
  readonly headerBytes: number;
  readonly footer: LayerFooter;
  readonly footerBytes: Buffer;
}

/** A row of the frame index. */
export interface FrameEntry {
  readonly firstKey: Buffer;
  readonly firstLsn: number;
  readonly offset: number;
  /** Without the tag. */
  readonly storedBytes: number;
  /** 0: not compressed. */
  readonly plainBytes: number;
}

/** A project's keys, and the reference beside the object when there is a newer one than in its header. */
export interface OpenWith {
  readonly keys: ObjectKeys;
  readonly reference?: Buffer | undefined;
}

export async function readLayerShape(source: ByteSource): Promise<LayerShape> {
  const { header, headerBytes } = decodeHeader(await source.read(0, Math.min(source.size, HEADER_BYTES_MAX)), source.name);
  if (source.size < headerBytes + FOOTER_BYTES) throw damaged(source, 'is cut short');
  const footerBytes = await source.read(source.size - FOOTER_BYTES, FOOTER_BYTES);
  const footer = decodeFooter(footerBytes, source.size, source.name);
  if (footer.indexOffset < headerBytes) throw damaged(source, 'has a footer that points into its header');
  return { header, headerBytes, footer, footerBytes };
}

type OpenFrame = (stored: Buffer, n: number, tag: Buffer, more?: Buffer) => Buffer;

/** Opens frames of one layer. */
export class LayerFrames {
  readonly #source: ByteSource;
  readonly #open: OpenFrame;
  readonly index: readonly FrameEntry[];

  private constructor(source: ByteSource, open: OpenFrame, index: readonly FrameEntry[]) {
    this.#source = source;
    this.#open = open;
    this.index = index;
  }

  static async load(source: ByteSource, shape: LayerShape, { keys, reference }: OpenWith): Promise<LayerFrames> {
    const { header, headerBytes, footer, footerBytes } = shape;
    const used = reference ?? header.keyReference;
    if (used.length > 0) await keys.load([used]);
    const cipher = keys.restore(header.algorithm, used).frames(header.objectId);
    const binding = layerBinding(header, source.name);
    const open: OpenFrame = (stored, n, tag, more) => {
      bindFrame(binding, n);
      try {
        return cipher.open(stored, frameNonce(n), tag, more === undefined ? binding : Buffer.concat([binding, more]));
      } catch (error) {
        if (error instanceof LakebaseError && error.code !== 'CORRUPT') throw error;
        throw new LakebaseError('CORRUPT', `layer ${source.name}, frame ${n}: ${errorMessage(error)}`, { cause: error });
      }
    };
    const sealed = await source.read(footer.indexOffset, footer.indexBytes);
    const plain = open(sealed.subarray(0, -TAG_BYTES), footer.frames, sealed.subarray(-TAG_BYTES), footerBytes);
    return new LayerFrames(source, open, frameIndex(source, plain, headerBytes, footer));
  }

  /** Plain content of frame `n`, whose stored bytes and tag are `sealed`. */
  open(n: number, sealed: Buffer): Buffer {
    const entry = this.index[n] as FrameEntry;
    const stored = this.#open(sealed.subarray(0, -TAG_BYTES), n, sealed.subarray(-TAG_BYTES));
    if (entry.plainBytes === 0) return stored;
    let bytes: Buffer;
    try {
      bytes = zstdDecompressSync(stored, { maxOutputLength: entry.plainBytes });
    } catch (cause) {
      throw new LakebaseError('CORRUPT', `layer ${this.#source.name}, frame ${n} does not decompress: ${errorMessage(cause)}`, { cause });
    }
    if (bytes.length !== entry.plainBytes) throw damaged(this.#source, `has frame ${n} of another length than its index says`);
    return bytes;
  }

  async read(n: number): Promise<Buffer> {
    const entry = this.index[n];
    if (entry === undefined)
      throw new LakebaseError('INVALID_ARGUMENT', `the layer has ${this.index.length} frames; there is no frame ${n}`);
    return this.open(n, await this.#source.read(entry.offset, entry.storedBytes + TAG_BYTES));
  }
}

function frameIndex(source: ByteSource, plain: Buffer, headerBytes: number, footer: LayerFooter): FrameEntry[] {
  const rows: FrameEntry[] = [];
  let at = headerBytes;
  for (let p = 0; p < plain.length; p += FRAME_INDEX_ENTRY_BYTES) {
    const row = {
      firstKey: plain.subarray(p, p + KEY_BYTES),
      firstLsn: u64(plain, p + KEY_BYTES),
      offset: u64(plain, p + KEY_BYTES + 8),
      storedBytes: plain.readUInt32BE(p + KEY_BYTES + 16),
      plainBytes: plain.readUInt32BE(p + KEY_BYTES + 20),
    };
    if (row.offset !== at || row.plainBytes > FRAME_BYTES_MAX) throw damaged(source, `has an index whose row ${rows.length} does not fit`);
    at += row.storedBytes + TAG_BYTES;
    rows.push(row);
  }
  if (at !== footer.indexOffset) throw damaged(source, 'has an index that does not fit its frames');
  return rows;
}

export interface LayerCheck {
  readonly shape: LayerShape;
  /** Hexadecimal, of the whole file. */
  readonly sha256: string;
  /** Frames that were opened; 0 without keys. */
  readonly frames: number;
  readonly entries: number;
}

/** `spent` is told of every piece that was read, and may take its time. Throws CORRUPT for the first thing that is wrong. */
export async function checkLayer(
  source: ByteSource,
  openWith: OpenWith | undefined,
  spent: (bytes: number) => Promise<void> | void = () => {},
): Promise<LayerCheck> {
  const shape = await readLayerShape(source);
  const frames = openWith === undefined ? undefined : await LayerFrames.load(source, shape, openWith);
  const hash = createHash('sha256');
  let entries = 0;
  let next = 0;
  /** Read and not opened yet: less than a frame. */
  let rest = Buffer.alloc(0);
  for (let at = 0; at < source.size; ) {
    const wanted = frames?.index[next];
    const missing = wanted === undefined ? 0 : wanted.storedBytes + TAG_BYTES - rest.length;
    const length = Math.min(source.size - at, Math.max(PIECE_BYTES, missing));
    const piece = await source.read(at, length);
    hash.update(piece);
    if (frames !== undefined) {
      const begin = Math.max(0, shape.headerBytes - at);
      rest = begin >= length ? rest : Buffer.concat([rest, piece.subarray(begin)]);
      let used = 0;
      for (let entry = frames.index[next]; entry !== undefined; entry = frames.index[next]) {
        const bytes = entry.storedBytes + TAG_BYTES;
        if (used + bytes > rest.length) break;
        entries += countEntries(source, next, frames.open(next, rest.subarray(used, used + bytes)));
        used += bytes;
        next++;
        // A frame is tens of microseconds to a millisecond of work: let others run in between.
        if ((next & 7) === 0) await new Promise<void>((resolve) => void setImmediate(resolve));
      }
      rest = next < frames.index.length ? Buffer.from(rest.subarray(used)) : Buffer.alloc(0);
    }
    at += length;
    await spent(length);
  }
  if (frames !== undefined && (next !== shape.footer.frames || entries !== shape.footer.entries))
    throw damaged(
      source,
      `has ${next} frames with ${entries} entries, its footer says ${shape.footer.frames} with ${shape.footer.entries}`,
    );
  return { shape, sha256: hash.digest('hex'), frames: next, entries };
}

const GROUP_BYTES = KEY_BYTES + 8;
const ENTRY_BYTES = 14;

/** Walks the groups of an opened frame, which must fill it exactly. */
export function forEachGroup(source: ByteSource, n: number, plain: Buffer, visit: (at: number, entries: number) => void): void {
  for (let at = 0; at < plain.length; ) {
    if (at + GROUP_BYTES > plain.length) throw damaged(source, `has a malformed frame ${n}`);
    const entries = plain.readUInt32BE(at + KEY_BYTES);
    const length = plain.readUInt32BE(at + KEY_BYTES + 4);
    if (length < GROUP_BYTES + entries * ENTRY_BYTES || at + length > plain.length) throw damaged(source, `has a malformed frame ${n}`);
    visit(at, entries);
    at += length;
  }
}

function countEntries(source: ByteSource, n: number, plain: Buffer): number {
  let sum = 0;
  forEachGroup(source, n, plain, (_, entries) => {
    sum += entries;
  });
  return sum;
}

const u64 = (b: Buffer, at: number): number => b.readUInt32BE(at) * 0x1_0000_0000 + b.readUInt32BE(at + 4);

const damaged = (source: ByteSource, what: string): LakebaseError => new LakebaseError('CORRUPT', `layer ${source.name} ${what}`);
