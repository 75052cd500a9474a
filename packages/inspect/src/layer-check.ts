/** Reads a whole layer once, in pieces: its SHA-256, its header and footer, and with keys every frame opened, decompressed and counted. For the scrubber
 *  and for `inspect`. Invariants: memory is bounded by one piece and one frame; every length is checked against the file before it is used;
 *  whatever fails is CORRUPT and names the file and the frame. */
import { createHash } from 'node:crypto';
import { zstdDecompressSync } from 'node:zlib';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { TAG_BYTES, bindFrame, frameNonce } from '@lakebase/envelope';
import {
  FOOTER_BYTES,
  FrameIndex,
  HEADER_BYTES_MAX,
  KEY_BYTES,
  type LayerFooter,
  type LayerHeader,
  type ObjectKeys,
  type Pack,
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

type Open = (stored: Buffer, number: number, tag: Buffer, what: string, more?: Buffer) => Buffer;

/** Opens frames of one layer, a pack at a time. */
export class LayerFrames {
  readonly #source: ByteSource;
  readonly #open: Open;
  readonly index: FrameIndex;

  private constructor(source: ByteSource, open: Open, index: FrameIndex) {
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
    const open: Open = (stored, number, tag, what, more) => {
      bindFrame(binding, number);
      try {
        return cipher.open(stored, frameNonce(number), tag, more === undefined ? binding : Buffer.concat([binding, more]));
      } catch (error) {
        if (error instanceof LakebaseError && error.code !== 'CORRUPT') throw error;
        throw new LakebaseError('CORRUPT', `layer ${source.name}, ${what}: ${errorMessage(error)}`, { cause: error });
      }
    };
    const sealed = await source.read(footer.indexOffset, footer.indexBytes);
    const rows = open(sealed.subarray(0, -TAG_BYTES), footer.frames, sealed.subarray(-TAG_BYTES), 'frame index', footerBytes);
    return new LayerFrames(source, open, new FrameIndex(rows, headerBytes, footer, source.name));
  }

  /** Plain content of the frames of `pack`, whose bytes and tag are `sealed`, one after another. */
  *open(pack: Pack, sealed: Buffer): Generator<[frame: number, plain: Buffer]> {
    const what = pack.end - pack.first === 1 ? `frame ${pack.first}` : `frames ${pack.first} to ${pack.end - 1}`;
    const opened = this.#open(sealed.subarray(0, -TAG_BYTES), pack.number, sealed.subarray(-TAG_BYTES), what);
    for (let n = pack.first; n < pack.end; n++) {
      const at = this.index.offset(n) - pack.offset;
      yield [n, this.#plain(n, opened.subarray(at, at + this.index.storedBytes(n)))];
    }
  }

  #plain(n: number, stored: Buffer): Buffer {
    const plainBytes = this.index.plainBytes(n);
    if (plainBytes === 0) return stored;
    let bytes: Buffer;
    try {
      bytes = zstdDecompressSync(stored, { maxOutputLength: plainBytes });
    } catch (cause) {
      throw new LakebaseError('CORRUPT', `layer ${this.#source.name}, frame ${n} does not decompress: ${errorMessage(cause)}`, { cause });
    }
    if (bytes.length !== plainBytes) throw damaged(this.#source, `has frame ${n} of another length than its index says`);
    return bytes;
  }

  async read(n: number): Promise<Buffer> {
    const { frames } = this.index;
    if (n >= frames) throw new LakebaseError('INVALID_ARGUMENT', `the layer has ${frames} frames; there is no frame ${n}`);
    const pack = this.index.packOf(n);
    for (const [frame, plain] of this.open(pack, await this.#source.read(pack.offset, pack.bytes + TAG_BYTES)))
      if (frame === n) return plain;
    throw new LakebaseError('INTERNAL', `frame ${n} is not in its pack`);
  }
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
  let opened = 0;
  let nextPack = 0;
  const packs = frames?.index.packs ?? 0;
  /** Read and not opened yet: less than a pack. */
  let rest = Buffer.alloc(0);
  for (let at = 0; at < source.size; ) {
    const missing = frames === undefined || nextPack >= packs ? 0 : frames.index.pack(nextPack).bytes + TAG_BYTES - rest.length;
    const length = Math.min(source.size - at, Math.max(PIECE_BYTES, missing));
    const piece = await source.read(at, length);
    hash.update(piece);
    if (frames !== undefined) {
      const begin = Math.max(0, shape.headerBytes - at);
      rest = begin >= length ? rest : Buffer.concat([rest, piece.subarray(begin)]);
      let used = 0;
      for (; nextPack < packs; nextPack++) {
        const pack = frames.index.pack(nextPack);
        const bytes = pack.bytes + TAG_BYTES;
        if (used + bytes > rest.length) break;
        for (const [n, plain] of frames.open(pack, rest.subarray(used, used + bytes))) {
          entries += countEntries(source, n, plain);
          // A frame is tens of microseconds to a millisecond of work: let others run in between.
          if ((++opened & 7) === 0) await new Promise<void>((resolve) => void setImmediate(resolve));
        }
        used += bytes;
      }
      rest = nextPack < packs ? Buffer.from(rest.subarray(used)) : Buffer.alloc(0);
    }
    at += length;
    await spent(length);
  }
  if (frames !== undefined && (opened !== shape.footer.frames || entries !== shape.footer.entries))
    throw damaged(
      source,
      `has ${opened} frames with ${entries} entries, its footer says ${shape.footer.frames} with ${shape.footer.entries}`,
    );
  return { shape, sha256: hash.digest('hex'), frames: opened, entries };
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

const damaged = (source: ByteSource, what: string): LakebaseError => new LakebaseError('CORRUPT', `layer ${source.name} ${what}`);
