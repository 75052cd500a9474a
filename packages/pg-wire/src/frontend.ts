/** Messages a client sends: encoders, and a decoder into a union for servers of ours. Extended-query messages decode as `other`. */
import { isUtf8 } from 'node:buffer';
import { ByteReader } from '@lakebase/bytes';
import { ProtocolError } from './errors.ts';
import { checkedCString, message } from './encode.ts';
import { decoding } from './backend.ts';

export type FrontendMessage =
  | { readonly kind: 'query'; readonly sql: string }
  | { readonly kind: 'terminate' }
  | { readonly kind: 'copyData'; readonly data: Buffer }
  | { readonly kind: 'copyDone' }
  | { readonly kind: 'copyFail'; readonly reason: string }
  | { readonly kind: 'sync' }
  | { readonly kind: 'other'; readonly type: number };

export const encodeQuery = (sql: string): Buffer => message('Q', (w) => w.cstring(checkedCString(sql, 'query')), sql.length + 16);
export const encodeTerminate = (): Buffer => message('X');
export const encodeSync = (): Buffer => message('S');
export const encodePassword = (password: string): Buffer => message('p', (w) => w.cstring(checkedCString(password, 'password')));
export const encodeSaslInitialResponse = (mechanism: string, data: string): Buffer =>
  message('p', (w) => {
    const bytes = Buffer.from(data);
    w.cstring(mechanism).i32be(bytes.length).bytes(bytes);
  });
export const encodeSaslResponse = (data: string): Buffer => message('p', (w) => w.bytes(Buffer.from(data)));
export const encodeCopyData = (data: Uint8Array): Buffer => message('d', (w) => w.bytes(data), data.length + 8);
export const encodeCopyFail = (reason: string): Buffer => message('f', (w) => w.cstring(checkedCString(reason, 'reason')));

/** Longest password, token or SASL message of a client that has not proved who it is. */
export const AUTH_MESSAGE_MAX = 16_384;
const STRING_MAX = 1 << 30;
const reader = new ByteReader(Buffer.alloc(0));

export function decodeFrontend(type: number, body: Buffer): FrontendMessage {
  return decoding(reader.reset(body), (r): FrontendMessage => {
    switch (type) {
      case 0x51: {
        const bytes = body.subarray(0, Math.max(0, body.length - 1));
        if (!isUtf8(bytes)) throw new ProtocolError('query is not valid UTF-8', '22021');
        return { kind: 'query', sql: r.cstring(STRING_MAX) };
      }
      case 0x58:
        return { kind: 'terminate' };
      case 0x64:
        return { kind: 'copyData', data: r.bytes(r.remaining) };
      case 0x63:
        return { kind: 'copyDone' };
      case 0x66:
        return { kind: 'copyFail', reason: r.cstring(STRING_MAX) };
      case 0x53:
        return { kind: 'sync' };
      default:
        r.skip(r.remaining);
        return { kind: 'other', type };
    }
  });
}

const PASSWORD_MESSAGE = 0x70;

export function decodePassword(type: number, body: Buffer): string {
  if (type !== PASSWORD_MESSAGE) throw new ProtocolError(`expected a password message, got message type 0x${type.toString(16)}`);
  return decoding(reader.reset(body), (r) => r.cstring(AUTH_MESSAGE_MAX));
}

/** `data` is text of the SASL mechanism; SCRAM's is ASCII with possibly UTF-8 in the user name. */
export function decodeSaslInitialResponse(type: number, body: Buffer): { readonly mechanism: string; readonly data: string } {
  if (type !== PASSWORD_MESSAGE) throw new ProtocolError(`expected a SASL response, got message type 0x${type.toString(16)}`);
  return decoding(reader.reset(body), (r) => {
    const mechanism = r.cstring(255);
    const length = r.i32be();
    if (length < -1) throw new ProtocolError(`SASL data of length ${length}`);
    return { mechanism, data: length === -1 ? '' : r.bytes(length).toString('utf8') };
  });
}

export function decodeSaslResponse(type: number, body: Buffer): string {
  if (type !== PASSWORD_MESSAGE) throw new ProtocolError(`expected a SASL response, got message type 0x${type.toString(16)}`);
  return body.toString('utf8');
}
