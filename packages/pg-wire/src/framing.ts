/** Message framing: one type byte, a 32-bit length that counts itself, the body. Sans-I/O: `push` bytes, then pull messages with `next`.
 *
 *  Invariants:
 *  - A length outside [4, limit] is refused as soon as the five header bytes are there, before anything is allocated for the body.
 *  - After a failure the parser is poisoned: every later call throws the same error.
 *  - Bodies are views of the pushed chunk where the message lies in one chunk, else of a buffer of its own. The parser never writes
 *    to either again, so a view stays good for as long as the caller leaves the chunk alone. With `reuseMemory` it is good until the next is pulled.
 *  - Unconsumed bytes can be taken over with `takeRest` (a proxy that stops parsing). */
import { ProtocolError } from './errors.ts';

export interface WireMessage {
  /** ASCII code of the type byte. */
  readonly type: number;
  readonly body: Buffer;
}

/** Bodies larger than this grow with the bytes that arrive, not with the length that was announced. */
const EAGER_ALLOCATION_MAX = 1 << 20;
const EMPTY = Buffer.alloc(0);

export interface MessageParserOptions {
  /** Largest length field, by type; may change between messages. */
  readonly limit: number | ((type: number) => number);
  /** Bodies of messages that lie in several chunks are put together in the same memory again and again. */
  readonly reuseMemory?: boolean;
}

export class MessageParser {
  #limit: (type: number) => number;
  #chunk: Buffer = EMPTY;
  #at = 0;
  readonly #header = Buffer.alloc(5);
  #headerFilled = 0;
  /** A body that began in an earlier chunk. */
  #body: Buffer | undefined;
  #bodyFilled = 0;
  #bodyLength = 0;
  #failure: ProtocolError | undefined;
  /** Where bodies are put together; undefined: each in its own. */
  #assembly: Buffer | undefined;

  constructor(options: MessageParserOptions) {
    this.#limit = asLimit(options.limit);
    if (options.reuseMemory === true) this.#assembly = EMPTY;
  }

  /** Zeroes memory that is used again; with that every view of it. */
  wipe(): void {
    this.#assembly?.fill(0);
  }

  /** Applies from the next message header on. */
  setLimit(limit: MessageParserOptions['limit']): void {
    this.#limit = asLimit(limit);
  }

  /** Hands over more bytes. Everything complete must have been pulled before (`next` returned undefined), or they are joined. */
  push(chunk: Buffer): void {
    if (this.#failure !== undefined) throw this.#failure;
    const left = this.#chunk.length - this.#at;
    this.#chunk = left === 0 ? chunk : Buffer.concat([this.#chunk.subarray(this.#at), chunk]);
    this.#at = 0;
  }

  next(): WireMessage | undefined {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#body !== undefined) return this.#continueBody();
    const available = this.#chunk.length - this.#at;
    if (this.#headerFilled === 0 && available >= 5) {
      const type = this.#chunk[this.#at] as number;
      const length = this.#check(type, this.#chunk.readInt32BE(this.#at + 1)) - 4;
      if (available >= 5 + length) {
        const start = this.#at + 5;
        this.#at = start + length;
        return { type, body: this.#chunk.subarray(start, this.#at) };
      }
      this.#chunk.copy(this.#header, 0, this.#at, this.#at + 5);
      this.#at += 5;
      return this.#startBody(length);
    }
    if (available === 0) {
      // Nothing of it is needed any more: it must not live on until the next chunk comes.
      this.#chunk = EMPTY;
      this.#at = 0;
      return undefined;
    }
    const take = Math.min(5 - this.#headerFilled, available);
    this.#chunk.copy(this.#header, this.#headerFilled, this.#at, this.#at + take);
    this.#at += take;
    this.#headerFilled += take;
    if (this.#headerFilled < 5) return undefined;
    return this.#startBody(this.#check(this.#header[0] as number, this.#header.readInt32BE(1)) - 4);
  }

  /** Whether a message has begun and is not complete. */
  get midMessage(): boolean {
    return this.#headerFilled > 0 || this.#body !== undefined || this.#at < this.#chunk.length;
  }

  /** Every byte pushed and not returned in a message; the parser is empty afterwards. */
  takeRest(): Buffer {
    const parts: Buffer[] = [];
    if (this.#body !== undefined) parts.push(this.#header, this.#body.subarray(0, this.#bodyFilled));
    else if (this.#headerFilled > 0) parts.push(this.#header.subarray(0, this.#headerFilled));
    const tail = this.#chunk.subarray(this.#at);
    this.#chunk = EMPTY;
    this.#at = 0;
    this.#headerFilled = 0;
    this.#body = undefined;
    return parts.length === 0 ? tail : Buffer.concat([...parts, tail]);
  }

  #startBody(length: number): WireMessage | undefined {
    this.#headerFilled = 0;
    this.#bodyLength = length;
    this.#bodyFilled = 0;
    this.#body = this.#room(Math.min(length, EAGER_ALLOCATION_MAX));
    return this.#continueBody();
  }

  #room(bytes: number): Buffer {
    if (this.#assembly === undefined) return Buffer.allocUnsafeSlow(bytes);
    if (this.#assembly.length < bytes) this.#assembly = Buffer.allocUnsafeSlow(bytes);
    return this.#assembly;
  }

  #continueBody(): WireMessage | undefined {
    let body = this.#body as Buffer;
    const take = Math.min(this.#bodyLength - this.#bodyFilled, this.#chunk.length - this.#at);
    const need = this.#bodyFilled + take;
    if (need > body.length) {
      const grown = Buffer.allocUnsafeSlow(Math.min(this.#bodyLength, Math.max(need, body.length * 2)));
      body.copy(grown, 0, 0, this.#bodyFilled);
      body = grown;
      this.#body = grown;
    }
    this.#chunk.copy(body, this.#bodyFilled, this.#at, this.#at + take);
    this.#at += take;
    this.#bodyFilled = need;
    if (need < this.#bodyLength) return undefined;
    this.#body = undefined;
    return { type: this.#header[0] as number, body: body.subarray(0, need) };
  }

  #check(type: number, length: number): number {
    const limit = this.#limit(type);
    if (length >= 4 && length <= limit) return length;
    const name = type >= 0x21 && type < 0x7f ? `'${String.fromCharCode(type)}'` : `0x${type.toString(16).padStart(2, '0')}`;
    this.#failure = new ProtocolError(`message of type ${name} and length ${length} refused; the limit here is ${limit}`);
    this.#chunk = EMPTY;
    this.#at = 0;
    throw this.#failure;
  }
}

const asLimit = (limit: MessageParserOptions['limit']): ((type: number) => number) =>
  typeof limit === 'number' ? (): number => limit : limit;
