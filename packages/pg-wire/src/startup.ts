/** The untyped packets a client may open with: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.
 *  Shape: 32-bit length that counts itself, 32-bit code, payload. At most {@link STARTUP_PACKET_MAX} bytes, as on a stock server.
 *  Invariant: strings are valid UTF-8, or the packet is refused; nothing is passed on that would read differently elsewhere. */
import { isUtf8 } from 'node:buffer';
import { ByteWriter } from '@lakebase/bytes';
import { ProtocolError } from './errors.ts';
import { checkedCString, message } from './encode.ts';

export const STARTUP_PACKET_MAX = 10_000;
export const PROTOCOL_3_0 = 0x0003_0000;
export const PROTOCOL_3_2 = 0x0003_0002;
/** Longest cancel key of protocol 3.2. */
export const CANCEL_KEY_MAX = 256;

const SSL_REQUEST = 80_877_103;
const GSSENC_REQUEST = 80_877_104;
const CANCEL_REQUEST = 80_877_102;

export interface StartupMessage {
  readonly kind: 'startup';
  /** As the client asked: major << 16 | minor. */
  readonly protocol: number;
  /** What we then speak: the lower of what was asked and 3.2. */
  readonly negotiated: number;
  /** Run-time and connection parameters by name, in the client's order; `_pq_.` ones are in {@link extensions}. */
  readonly parameters: ReadonlyMap<string, string>;
  /** Names of `_pq_.` protocol extensions asked for; we know none. */
  readonly extensions: readonly string[];
}
export interface CancelRequest {
  readonly kind: 'cancel';
  readonly pid: number;
  readonly key: Buffer;
}
export type StartupPacket = { readonly kind: 'ssl' } | { readonly kind: 'gssenc' } | CancelRequest | StartupMessage;

/** Collects one packet at a time. Sans-I/O; poisoned after a failure. */
export class StartupParser {
  #pending: Buffer[] = [];
  #size = 0;
  #length: number | undefined;
  #failure: ProtocolError | undefined;

  /** Bytes held that no packet has used. */
  get buffered(): number {
    return this.#size;
  }

  push(chunk: Buffer): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (chunk.length === 0) return;
    this.#pending.push(chunk);
    this.#size += chunk.length;
  }

  next(): StartupPacket | undefined {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#size < 4) return undefined;
    if (this.#length === undefined) {
      const length = this.#joined().readInt32BE(0);
      if (length < 8 || length > STARTUP_PACKET_MAX) this.#fail('invalid length of startup packet');
      this.#length = length;
    }
    if (this.#size < this.#length) return undefined;
    const all = this.#joined();
    const packet = all.subarray(0, this.#length);
    this.#pending = this.#length === all.length ? [] : [all.subarray(this.#length)];
    this.#size -= this.#length;
    this.#length = undefined;
    try {
      return decodeStartupPacket(packet);
    } catch (error) {
      if (error instanceof ProtocolError) this.#failure = error;
      throw error;
    }
  }

  takeRest(): Buffer {
    const rest = this.#joined();
    this.#pending = [];
    this.#size = 0;
    this.#length = undefined;
    return rest;
  }

  #joined(): Buffer {
    if (this.#pending.length !== 1) this.#pending = [Buffer.concat(this.#pending)];
    return this.#pending[0] as Buffer;
  }

  #fail(text: string): never {
    this.#failure = new ProtocolError(text);
    throw this.#failure;
  }
}

/** `packet` is complete, its length field included. */
export function decodeStartupPacket(packet: Buffer): StartupPacket {
  if (packet.length < 8 || packet.length > STARTUP_PACKET_MAX || packet.readInt32BE(0) !== packet.length)
    throw new ProtocolError('invalid length of startup packet');
  const code = packet.readInt32BE(4);
  if (code === SSL_REQUEST || code === GSSENC_REQUEST) {
    if (packet.length !== 8) throw new ProtocolError('invalid length of startup packet');
    return { kind: code === SSL_REQUEST ? 'ssl' : 'gssenc' };
  }
  if (code === CANCEL_REQUEST) {
    const keyLength = packet.length - 12;
    if (keyLength < 1 || keyLength > CANCEL_KEY_MAX) throw new ProtocolError('invalid length of cancel request packet');
    return { kind: 'cancel', pid: packet.readInt32BE(8), key: Buffer.from(packet.subarray(12)) };
  }
  if (code >> 16 !== 3)
    throw new ProtocolError(
      `unsupported frontend protocol ${(code >>> 16) & 0xffff}.${code & 0xffff}: server supports 3.0 to 3.2`,
      '0A000',
    );
  const parameters = new Map<string, string>();
  const extensions: string[] = [];
  let at = 8;
  const text = (what: string): string => {
    const end = packet.indexOf(0, at);
    if (end < 0) throw new ProtocolError('invalid startup packet layout: expected terminator as last byte');
    const bytes = packet.subarray(at, end);
    if (!isUtf8(bytes)) throw new ProtocolError(`startup ${what} is not valid UTF-8`, '22021');
    at = end + 1;
    return bytes.toString('utf8');
  };
  for (;;) {
    const name = text('parameter name');
    if (name === '') break;
    const value = text(`parameter ${JSON.stringify(name.slice(0, 63))}`);
    if (name.startsWith('_pq_.')) extensions.push(name);
    else parameters.set(name, value);
  }
  if (at !== packet.length) throw new ProtocolError('invalid startup packet layout: expected terminator as last byte');
  return { kind: 'startup', protocol: code, negotiated: Math.min(code, PROTOCOL_3_2), parameters, extensions };
}

export const encodeSslRequest = (): Buffer => requestPacket(SSL_REQUEST);
export const encodeGssEncRequest = (): Buffer => requestPacket(GSSENC_REQUEST);

function requestPacket(code: number): Buffer {
  const out = Buffer.alloc(8);
  out.writeInt32BE(8, 0);
  out.writeInt32BE(code, 4);
  return out;
}

export function encodeCancelRequest(pid: number, key: Buffer): Buffer {
  if (key.length < 1 || key.length > CANCEL_KEY_MAX) throw new RangeError(`cancel key of ${key.length} bytes`);
  const out = Buffer.alloc(12 + key.length);
  out.writeInt32BE(out.length, 0);
  out.writeInt32BE(CANCEL_REQUEST, 4);
  out.writeInt32BE(pid | 0, 8);
  key.copy(out, 12);
  return out;
}

export function encodeStartupMessage(parameters: Iterable<readonly [string, string]>, protocol: number = PROTOCOL_3_0): Buffer {
  const w = new ByteWriter(256).u32be(0).u32be(protocol);
  for (const [name, value] of parameters) w.cstring(checkedCString(name, 'parameter name')).cstring(checkedCString(value, name));
  w.u8(0);
  if (w.length > STARTUP_PACKET_MAX)
    throw new ProtocolError(`startup packet of ${w.length} bytes; at most ${STARTUP_PACKET_MAX} are allowed`);
  return w.patchU32be(0, w.length).finish();
}

/** Whether an answer to `startup` must begin with NegotiateProtocolVersion. */
export const needsNegotiation = (startup: StartupMessage): boolean =>
  startup.protocol !== startup.negotiated || startup.extensions.length > 0;

export function encodeNegotiateProtocolVersion(startup: StartupMessage): Buffer {
  return message('v', (w) => {
    w.u32be(startup.negotiated).u32be(startup.extensions.length);
    for (const name of startup.extensions) w.cstring(name);
  });
}
