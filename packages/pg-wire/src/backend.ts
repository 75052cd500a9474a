/** Messages a server sends: encoders, and a decoder into a union. Only what we use; other types decode as `other`.
 *  Invariant: a decoder returns a value or throws ProtocolError; it never reads past the body, and trailing bytes are an error. */
import { ByteReader, ByteWriter, DecodeError } from '@lakebase/bytes';
import { LakebaseError } from '@lakebase/base';
import { type ErrorFields, ProtocolError, type Severity } from './errors.ts';
import { appendMessage, checkedCString, message } from './encode.ts';
import { CANCEL_KEY_MAX } from './startup.ts';

export interface Column {
  readonly name: string;
  /** Type oid; 25 is text. */
  readonly typeOid: number;
  /** typlen: negative for variable length. */
  readonly typeSize: number;
}
export const OID_TEXT = 25;
export const OID_INT4 = 23;
export const OID_INT8 = 20;
export const textColumn = (name: string): Column => ({ name, typeOid: OID_TEXT, typeSize: -1 });

export type TransactionStatus = 'I' | 'T' | 'E';

export type BackendMessage =
  | { readonly kind: 'authenticationOk' }
  | { readonly kind: 'authenticationCleartext' }
  | { readonly kind: 'authenticationSasl'; readonly mechanisms: readonly string[] }
  | { readonly kind: 'authenticationSaslContinue'; readonly data: Buffer }
  | { readonly kind: 'authenticationSaslFinal'; readonly data: Buffer }
  | { readonly kind: 'authenticationOther'; readonly method: number }
  | { readonly kind: 'negotiateProtocolVersion'; readonly version: number; readonly unknown: readonly string[] }
  | { readonly kind: 'parameterStatus'; readonly name: string; readonly value: string }
  | { readonly kind: 'backendKeyData'; readonly pid: number; readonly key: Buffer }
  | { readonly kind: 'readyForQuery'; readonly status: TransactionStatus }
  | { readonly kind: 'error'; readonly fields: ErrorFields }
  | { readonly kind: 'notice'; readonly fields: ErrorFields }
  | { readonly kind: 'rowDescription'; readonly columns: readonly Column[] }
  | { readonly kind: 'dataRow'; readonly values: readonly (Buffer | null)[] }
  | { readonly kind: 'commandComplete'; readonly tag: string }
  | { readonly kind: 'emptyQuery' }
  | { readonly kind: 'copyIn' | 'copyOut' | 'copyBoth'; readonly columns: number }
  | { readonly kind: 'copyData'; readonly data: Buffer }
  | { readonly kind: 'copyDone' }
  | { readonly kind: 'other'; readonly type: number };

export const encodeAuthenticationOk = (): Buffer => message('R', (w) => w.u32be(0));
export const encodeAuthenticationCleartext = (): Buffer => message('R', (w) => w.u32be(3));
export const encodeAuthenticationSasl = (mechanisms: readonly string[]): Buffer =>
  message('R', (w) => {
    w.u32be(10);
    for (const m of mechanisms) w.cstring(m);
    w.u8(0);
  });
export const encodeAuthenticationSaslContinue = (data: string): Buffer => message('R', (w) => w.u32be(11).bytes(Buffer.from(data)));
export const encodeAuthenticationSaslFinal = (data: string): Buffer => message('R', (w) => w.u32be(12).bytes(Buffer.from(data)));

export const encodeParameterStatus = (name: string, value: string): Buffer => message('S', (w) => w.cstring(name).cstring(value));
export const encodeBackendKeyData = (pid: number, key: Buffer): Buffer => message('K', (w) => w.i32be(pid | 0).bytes(key));
export const encodeReadyForQuery = (status: TransactionStatus = 'I'): Buffer => message('Z', (w) => w.u8(status.charCodeAt(0)));
export const encodeCommandComplete = (tag: string): Buffer => message('C', (w) => w.cstring(checkedCString(tag, 'command tag')));
export const encodeEmptyQueryResponse = (): Buffer => message('I');
export const encodeCopyDone = (): Buffer => message('c');
/** CopyBothResponse with binary format and no columns: the answer to START_REPLICATION. */
export const encodeCopyBothResponse = (): Buffer => message('W', (w) => w.u8(0).u16be(0));
export const encodeCopyOutResponse = (): Buffer => message('H', (w) => w.u8(0).u16be(0));

export const encodeError = (fields: ErrorFields): Buffer => message('E', (w) => writeFields(w, fields), 256);
export const encodeNotice = (fields: ErrorFields): Buffer => message('N', (w) => writeFields(w, fields), 256);

function writeFields(w: ByteWriter, f: ErrorFields): void {
  const field = (letter: string, value: string | undefined): void => {
    if (value !== undefined) w.u8(letter.charCodeAt(0)).cstring(value.replaceAll('\0', ' '));
  };
  field('S', f.severity);
  field('V', f.severity);
  field('C', f.sqlstate);
  field('M', f.message);
  field('D', f.detail);
  field('H', f.hint);
  w.u8(0);
}

/** RowDescription in text format. */
export const encodeRowDescription = (columns: readonly Column[]): Buffer =>
  message(
    'T',
    (w) => {
      w.u16be(columns.length);
      for (const c of columns)
        w.cstring(checkedCString(c.name, 'column name'))
          .u32be(0)
          .u16be(0)
          .u32be(c.typeOid)
          .u16be(c.typeSize & 0xffff)
          .i32be(-1)
          .u16be(0);
    },
    256,
  );

export function appendDataRow(w: ByteWriter, values: readonly (string | Uint8Array | null)[]): void {
  appendMessage(w, 'D', (out) => {
    out.u16be(values.length);
    for (const v of values) {
      if (v === null) out.i32be(-1);
      else {
        const bytes = typeof v === 'string' ? Buffer.from(v) : v;
        out.i32be(bytes.length).bytes(bytes);
      }
    }
  });
}
export function encodeDataRow(values: readonly (string | Uint8Array | null)[]): Buffer {
  const w = new ByteWriter(128);
  appendDataRow(w, values);
  return w.finish();
}

const EMPTY = Buffer.alloc(0);
const reader = new ByteReader(EMPTY);
const STRING_MAX = 1 << 24;

export function decodeBackend(type: number, body: Buffer): BackendMessage {
  return decoding(reader.reset(body), (r) => decodeBody(type, r));
}

/** Runs a decoder over the shared reader; whatever it stumbles on becomes a ProtocolError. */
export function decoding<T>(r: ByteReader, decode: (r: ByteReader) => T): T {
  try {
    const value = decode(r);
    if (r.remaining !== 0) throw new ProtocolError(`${r.remaining} unexpected bytes at the end of a message`);
    return value;
  } catch (error) {
    if (error instanceof ProtocolError) throw error;
    if (error instanceof DecodeError || error instanceof LakebaseError) throw new ProtocolError(`malformed message: ${error.message}`);
    throw error;
  } finally {
    r.reset(EMPTY);
  }
}

function decodeBody(type: number, r: ByteReader): BackendMessage {
  switch (type) {
    case 0x52:
      return decodeAuthentication(r);
    case 0x53:
      return { kind: 'parameterStatus', name: r.cstring(STRING_MAX), value: r.cstring(STRING_MAX) };
    case 0x4b: {
      const pid = r.i32be();
      if (r.remaining < 1 || r.remaining > CANCEL_KEY_MAX) throw new ProtocolError(`cancel key of ${r.remaining} bytes`);
      return { kind: 'backendKeyData', pid, key: r.bytes(r.remaining) };
    }
    case 0x5a: {
      const status = String.fromCharCode(r.u8());
      if (status !== 'I' && status !== 'T' && status !== 'E') throw new ProtocolError('unknown transaction status');
      return { kind: 'readyForQuery', status };
    }
    case 0x45:
      return { kind: 'error', fields: readFields(r) };
    case 0x4e:
      return { kind: 'notice', fields: readFields(r) };
    case 0x54:
      return { kind: 'rowDescription', columns: readColumns(r) };
    case 0x44:
      return { kind: 'dataRow', values: readValues(r) };
    case 0x43:
      return { kind: 'commandComplete', tag: r.cstring(STRING_MAX) };
    case 0x49:
      return { kind: 'emptyQuery' };
    case 0x47:
      return { kind: 'copyIn', columns: readCopyColumns(r) };
    case 0x48:
      return { kind: 'copyOut', columns: readCopyColumns(r) };
    case 0x57:
      return { kind: 'copyBoth', columns: readCopyColumns(r) };
    case 0x64:
      return { kind: 'copyData', data: r.bytes(r.remaining) };
    case 0x63:
      return { kind: 'copyDone' };
    case 0x76:
      return readNegotiation(r);
    default:
      r.skip(r.remaining);
      return { kind: 'other', type };
  }
}

function decodeAuthentication(r: ByteReader): BackendMessage {
  const method = r.u32be();
  switch (method) {
    case 0:
      return { kind: 'authenticationOk' };
    case 3:
      return { kind: 'authenticationCleartext' };
    case 10: {
      const mechanisms: string[] = [];
      for (let m = r.cstring(255); m !== ''; m = r.cstring(255)) mechanisms.push(m);
      return { kind: 'authenticationSasl', mechanisms };
    }
    case 11:
      return { kind: 'authenticationSaslContinue', data: r.bytes(r.remaining) };
    case 12:
      return { kind: 'authenticationSaslFinal', data: r.bytes(r.remaining) };
    default:
      r.skip(r.remaining);
      return { kind: 'authenticationOther', method };
  }
}

const SEVERITIES: ReadonlySet<string> = new Set(['ERROR', 'FATAL', 'PANIC', 'WARNING', 'NOTICE', 'DEBUG', 'INFO', 'LOG']);

function readFields(r: ByteReader): ErrorFields {
  let severity: Severity = 'ERROR',
    sqlstate = 'XX000',
    text = '',
    detail: string | undefined,
    hint: string | undefined;
  for (let letter = r.u8(); letter !== 0; letter = r.u8()) {
    const value = r.cstring(STRING_MAX);
    // 'V' is the severity that is never translated; 'S' may be in any language.
    if (letter === 0x56 && SEVERITIES.has(value)) severity = value as Severity;
    else if (letter === 0x43) sqlstate = value;
    else if (letter === 0x4d) text = value;
    else if (letter === 0x44) detail = value;
    else if (letter === 0x48) hint = value;
  }
  return { severity, sqlstate, message: text, detail, hint };
}

function readColumns(r: ByteReader): Column[] {
  const n = r.u16be();
  // Name terminator and 18 bytes of fixed fields: refuse a count that cannot fit before making room for it.
  if (n * 19 > r.remaining) throw new ProtocolError(`${n} columns do not fit`);
  const columns: Column[] = [];
  for (let i = 0; i < n; i++) {
    const name = r.cstring(STRING_MAX);
    r.skip(6);
    const typeOid = r.u32be(),
      typeSize = (r.u16be() << 16) >> 16;
    r.skip(6);
    columns.push({ name, typeOid, typeSize });
  }
  return columns;
}

function readValues(r: ByteReader): (Buffer | null)[] {
  const n = r.u16be();
  if (n * 4 > r.remaining) throw new ProtocolError(`${n} values do not fit`);
  const values: (Buffer | null)[] = [];
  for (let i = 0; i < n; i++) {
    const length = r.i32be();
    if (length < -1) throw new ProtocolError(`value of length ${length}`);
    values.push(length === -1 ? null : r.bytes(length));
  }
  return values;
}

function readCopyColumns(r: ByteReader): number {
  r.skip(1);
  const n = r.u16be();
  r.skip(n * 2);
  return n;
}

function readNegotiation(r: ByteReader): BackendMessage {
  const version = r.u32be();
  const n = r.u32be();
  if (n > r.remaining) throw new ProtocolError(`${n} extensions do not fit`);
  const unknown: string[] = [];
  for (let i = 0; i < n; i++) unknown.push(r.cstring(STRING_MAX));
  return { kind: 'negotiateProtocolVersion', version, unknown };
}
