/** zstd of frames, with one context for each direction that stays. The calls of node:zlib make a stream object, a context and its buffers for every
 *  frame: 40 to 60 µs where the frame itself takes 10 (2026-11, 24 KiB). The context is that of a stream object, used through its handle, which Node does
 *  not document: what the handle does is tried on a known frame first, and where it is not as expected node:zlib's calls are used.
 *  Invariants: bytes are returned only when a call has used all its input and, decompressing, filled its output exactly; after anything else the
 *  context is dropped and node:zlib decides. A call never leaves a context in the middle of a frame that is used again. */
import { constants, createZstdCompress, createZstdDecompress, zstdCompressSync, zstdDecompressSync } from 'node:zlib';

/** Pages compress to about a fifth; at level 1 that costs less than writing and syncing them whole. */
const OPTIONS = { params: { [constants.ZSTD_c_compressionLevel]: 1 } };
const UNCHANGED = 0xffff_ffff;

interface Handle {
  writeSync(flush: number, input: Buffer, inputAt: number, inputBytes: number, output: Buffer, outputAt: number, outputBytes: number): void;
}

/** A stream object as its handle and the two words in which the handle leaves how much of output and input is left. */
class Context {
  readonly #stream: { destroy(): unknown };
  readonly #handle: Handle;
  readonly #left: Uint32Array;

  constructor(stream: { destroy(): unknown; on(event: 'error', listener: () => void): unknown }) {
    const { _handle: handle, _writeState: left } = stream as unknown as { _handle?: Partial<Handle>; _writeState?: unknown };
    if (typeof handle?.writeSync !== 'function' || !(left instanceof Uint32Array) || left.length < 2)
      throw new TypeError('this Node has other handles');
    stream.on('error', () => {});
    this.#stream = stream;
    this.#handle = handle as Handle;
    this.#left = left;
  }

  /** Bytes of `output` that were filled; undefined when not all of `input` was used. */
  run(input: Buffer, output: Buffer): number | undefined {
    this.#left.fill(UNCHANGED);
    this.#handle.writeSync(constants.ZSTD_e_end, input, 0, input.length, output, 0, output.length);
    return this.#left[1] === 0 ? output.length - (this.#left[0] as number) : undefined;
  }

  close(): void {
    this.#stream.destroy();
  }
}

let compressor: Context | undefined;
let decompressor: Context | undefined;
let output = Buffer.alloc(0);
let usable: boolean | undefined;

/** One zstd frame of `plain`. */
export function compressFrame(plain: Buffer): Buffer {
  if (contextsUsable()) {
    try {
      const bytes = compressWith((compressor ??= new Context(createZstdCompress(OPTIONS))), plain);
      if (bytes !== undefined) return bytes;
    } catch {
      // node:zlib does it
    }
    dropFrameContexts();
  }
  return zstdCompressSync(plain, OPTIONS);
}

/** Throws when `stored` is not a frame of exactly `plainBytes`. The result is the caller's own, or in `into`. */
export function decompressFrame(stored: Buffer, plainBytes: number, into?: Buffer): Buffer {
  if (contextsUsable() && plainBytes > 0) {
    try {
      const bytes = decompressWith(
        (decompressor ??= new Context(createZstdDecompress())),
        stored,
        into?.subarray(0, plainBytes) ?? Buffer.allocUnsafeSlow(plainBytes),
      );
      if (bytes !== undefined) return bytes;
    } catch {
      // node:zlib says what is wrong
    }
    dropFrameContexts();
  }
  const bytes = zstdDecompressSync(stored, { maxOutputLength: plainBytes });
  if (bytes.length !== plainBytes) throw new RangeError(`${bytes.length} bytes, not ${plainBytes}`);
  return bytes;
}

/** Of the frame seen last something may lie in a context. */
export function dropFrameContexts(): void {
  compressor?.close();
  decompressor?.close();
  compressor = decompressor = undefined;
  output.fill(0);
}

function compressWith(context: Context, plain: Buffer): Buffer | undefined {
  // ZSTD_compressBound: with that much room a frame is done in one call.
  const bound = plain.length + (plain.length >>> 8) + 1_024;
  if (output.length < bound) output = Buffer.allocUnsafeSlow(bound);
  const n = context.run(plain, output);
  if (n === undefined || n === 0 || n === output.length) return undefined;
  return Buffer.from(output.subarray(0, n));
}

function decompressWith(context: Context, stored: Buffer, bytes: Buffer): Buffer | undefined {
  return context.run(stored, bytes) === bytes.length ? bytes : undefined;
}

function contextsUsable(): boolean {
  usable ??= tryContexts();
  return usable;
}

/** Two frames there and back, and damage noticed. */
function tryContexts(): boolean {
  const contexts: Context[] = [];
  try {
    const make = (stream: ConstructorParameters<typeof Context>[0]): Context => {
      const context = new Context(stream);
      contexts.push(context);
      return context;
    };
    const compress = make(createZstdCompress(OPTIONS));
    const decompress = make(createZstdDecompress());
    for (const plain of [Buffer.alloc(20_000, 'abcdefg'), Buffer.from('short')]) {
      const stored = compressWith(compress, plain);
      if (stored === undefined || !zstdDecompressSync(stored).equals(plain)) return false;
      if (decompressWith(decompress, stored, Buffer.alloc(plain.length))?.equals(plain) !== true) return false;
    }
    return decompressWith(decompress, Buffer.from('no frame at all'), Buffer.alloc(15)) === undefined;
  } catch {
    return false;
  } finally {
    for (const context of contexts) context.close();
  }
}
