/** Checked cursor over bytes. Every read checks the limit; running out is a {@link DecodeError}, never undefined.
 *  Little-endian methods (`u32le`) for Postgres pages and WAL, big-endian (`u32be`) for the wire and our own formats.
 *  `bytes()` returns a view that lives as long as the underlying buffer; copy it where it is stored. */
import { LakebaseError } from '@lakebase/base';
import { type Lsn, lsnFromHalves } from '@lakebase/ids';

export class DecodeError extends LakebaseError {
  readonly offset: number;
  constructor(message: string, offset: number) {
    super('CORRUPT', `${message} (at byte ${offset})`);
    this.offset = offset;
  }
}

export class ByteReader {
  #buffer: Buffer;
  offset: number;
  limit: number;

  constructor(buffer: Uint8Array, offset = 0, limit: number = buffer.length) {
    this.#buffer = asBuffer(buffer);
    this.offset = offset;
    this.limit = limit;
  }

  reset(buffer: Uint8Array, offset = 0, limit: number = buffer.length): this {
    this.#buffer = asBuffer(buffer);
    this.offset = offset;
    this.limit = limit;
    return this;
  }

  get remaining(): number {
    return this.limit - this.offset;
  }

  #take(n: number): number {
    const at = this.offset;
    if (n < 0 || at + n > this.limit) throw new DecodeError(`need ${n} bytes, have ${this.limit - at}`, at);
    this.offset = at + n;
    return at;
  }

  skip(n: number): void {
    this.#take(n);
  }
  u8(): number {
    return this.#buffer[this.#take(1)] as number;
  }
  u16le(): number {
    return this.#buffer.readUInt16LE(this.#take(2));
  }
  u32le(): number {
    return this.#buffer.readUInt32LE(this.#take(4));
  }
  i16le(): number {
    return this.#buffer.readInt16LE(this.#take(2));
  }
  i32le(): number {
    return this.#buffer.readInt32LE(this.#take(4));
  }
  u16be(): number {
    return this.#buffer.readUInt16BE(this.#take(2));
  }
  u32be(): number {
    return this.#buffer.readUInt32BE(this.#take(4));
  }
  i32be(): number {
    return this.#buffer.readInt32BE(this.#take(4));
  }
  /** Little-endian u64 that must fit 2^53. */
  u64le(): number {
    const at = this.#take(8);
    return safe(this.#buffer.readUInt32LE(at + 4), this.#buffer.readUInt32LE(at), at);
  }
  u64be(): number {
    const at = this.#take(8);
    return safe(this.#buffer.readUInt32BE(at), this.#buffer.readUInt32BE(at + 4), at);
  }
  lsnBe(): Lsn {
    const at = this.#take(8);
    return lsnFromHalves(this.#buffer.readUInt32BE(at), this.#buffer.readUInt32BE(at + 4));
  }
  lsnLe(): Lsn {
    const at = this.#take(8);
    return lsnFromHalves(this.#buffer.readUInt32LE(at + 4), this.#buffer.readUInt32LE(at));
  }
  /** A view, not a copy. */
  bytes(n: number): Buffer {
    const at = this.#take(n);
    return this.#buffer.subarray(at, at + n);
  }
  /** NUL-terminated UTF-8 string of at most `max` bytes. */
  cstring(max: number): string {
    const end = this.#buffer.indexOf(0, this.offset);
    if (end < 0 || end >= this.limit || end - this.offset > max) throw new DecodeError('unterminated string', this.offset);
    const text = this.#buffer.toString('utf8', this.offset, end);
    this.offset = end + 1;
    return text;
  }
}

function safe(high: number, low: number, at: number): number {
  if (high >= 0x20_0000) throw new DecodeError('64-bit value above 2^53', at);
  return high * 0x1_0000_0000 + low;
}

export const asBuffer = (bytes: Uint8Array): Buffer =>
  Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
