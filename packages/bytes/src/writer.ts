/** Growing byte writer. `view()` aliases the internal buffer and is valid until the next write; `finish()` returns it for good. */
import { type Lsn, lsnHigh, lsnLow } from '@lakebase/ids';
import { asBuffer } from './reader.ts';

export class ByteWriter {
  #buffer: Buffer;
  length = 0;

  constructor(capacity = 256) {
    this.#buffer = Buffer.allocUnsafe(capacity);
  }

  #grow(n: number): number {
    const at = this.length;
    if (at + n > this.#buffer.length) {
      const next = Buffer.allocUnsafe(Math.max(this.#buffer.length * 2, at + n));
      this.#buffer.copy(next, 0, 0, at);
      this.#buffer = next;
    }
    this.length = at + n;
    return at;
  }

  u8(v: number): this {
    const at = this.#grow(1);
    this.#buffer[at] = v;
    return this;
  }
  u16le(v: number): this {
    const at = this.#grow(2);
    this.#buffer.writeUInt16LE(v, at);
    return this;
  }
  u32le(v: number): this {
    const at = this.#grow(4);
    this.#buffer.writeUInt32LE(v >>> 0, at);
    return this;
  }
  u16be(v: number): this {
    const at = this.#grow(2);
    this.#buffer.writeUInt16BE(v, at);
    return this;
  }
  u32be(v: number): this {
    const at = this.#grow(4);
    this.#buffer.writeUInt32BE(v >>> 0, at);
    return this;
  }
  i32be(v: number): this {
    const at = this.#grow(4);
    this.#buffer.writeInt32BE(v, at);
    return this;
  }
  u64be(v: number): this {
    return this.u32be(lsnHigh(v as Lsn)).u32be(lsnLow(v as Lsn));
  }
  u64le(v: number): this {
    return this.u32le(lsnLow(v as Lsn)).u32le(lsnHigh(v as Lsn));
  }
  bytes(b: Uint8Array): this {
    const at = this.#grow(b.length);
    asBuffer(b).copy(this.#buffer, at);
    return this;
  }
  zeros(n: number): this {
    const at = this.#grow(n);
    this.#buffer.fill(0, at, at + n);
    return this;
  }
  cstring(s: string): this {
    return this.bytes(Buffer.from(s, 'utf8')).u8(0);
  }
  /** u16 length, then UTF-8. */
  shortString(s: string): this {
    const b = Buffer.from(s, 'utf8');
    return this.u16be(b.length).bytes(b);
  }
  patchU32be(at: number, v: number): this {
    this.#buffer.writeUInt32BE(v >>> 0, at);
    return this;
  }
  patchU32le(at: number, v: number): this {
    this.#buffer.writeUInt32LE(v >>> 0, at);
    return this;
  }
  view(): Buffer {
    return this.#buffer.subarray(0, this.length);
  }
  finish(): Buffer {
    return this.view();
  }
}
