/** Codec of the page service protocol (docs/protocols/page-service.md). Pure: no sockets. */
import { ERROR_CODES, type ErrorCode, LakebaseError } from '@lakebase/base';
import { ByteReader, ByteWriter, DecodeError } from '@lakebase/bytes';
import {
  BLCKSZ,
  type Lsn,
  MAX_LSN,
  type ProjectUid,
  type RelTag,
  type TimelineId,
  lsnFromHalves,
  parseProjectUid,
  parseTimelineId,
} from '@lakebase/ids';

export const PAGE_MAGIC = 0x4c425047;
export const PAGE_VERSION = 1;
export const PAGES_PER_REQUEST_MAX = 128;
export const REQUEST_FRAME_BYTES_MAX = 65_536;
export const TOKEN_BYTES_MAX = 512;
/** Largest answer a client accepts: a start bundle of a database with very many relations. */
export const ANSWER_FRAME_BYTES_MAX = 268_435_456;
export const FRAME_HEADER_BYTES = 13;

export const MSG = {
  GET_PAGES: 0x01,
  GET_REL_SIZE: 0x02,
  GET_START_BUNDLE: 0x03,
  HELLO_OK: 0x80,
  PAGES: 0x81,
  REL_SIZE: 0x82,
  START_BUNDLE: 0x83,
  ERROR: 0xff,
} as const;
export const REL_ABSENT = 0xffff_ffff;

export interface Hello {
  readonly token: string;
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
}
export interface GetPages {
  readonly type: 'getPages';
  readonly id: number;
  readonly tag: RelTag;
  readonly block: number;
  readonly count: number;
  readonly requestLsn: Lsn;
  readonly notModifiedSince: Lsn;
}
export interface GetRelSize {
  readonly type: 'getRelSize';
  readonly id: number;
  readonly tag: RelTag;
  readonly lsn: Lsn;
}
export interface GetStartBundle {
  readonly type: 'getStartBundle';
  readonly id: number;
  readonly lsn: Lsn;
  readonly waitMs: number;
}
export type PageRequest = GetPages | GetRelSize | GetStartBundle;

export interface Frame {
  readonly type: number;
  readonly id: number;
  readonly payload: Buffer;
}

export function encodeHello(hello: Hello): Buffer {
  const w = new ByteWriter(160).u32be(PAGE_MAGIC).u16be(PAGE_VERSION).shortString(hello.token);
  return w.bytes(Buffer.from(hello.project, 'latin1')).bytes(Buffer.from(hello.timeline, 'latin1')).finish();
}

/** Undefined until enough bytes are there; throws DecodeError on anything else. Returns the bytes consumed too. */
export function tryDecodeHello(bytes: Buffer): { hello: Hello; consumed: number } | undefined {
  if (bytes.length >= 4 && bytes.readUInt32BE(0) !== PAGE_MAGIC) throw new DecodeError('not a page service hello', 0);
  if (bytes.length < 8) return undefined;
  const r = new ByteReader(bytes, 4);
  const version = r.u16be();
  if (version !== PAGE_VERSION) throw new DecodeError(`page service version ${version}, expected ${PAGE_VERSION}`, 4);
  const tokenBytes = r.u16be();
  if (tokenBytes > TOKEN_BYTES_MAX) throw new DecodeError('token too long', 6);
  if (bytes.length < 8 + tokenBytes + 64) return undefined;
  const token = r.bytes(tokenBytes).toString('utf8');
  const project = parseProjectUid(r.bytes(32).toString('latin1'));
  const timeline = parseTimelineId(r.bytes(32).toString('latin1'));
  return { hello: { token, project, timeline }, consumed: r.offset };
}

export function encodeFrame(type: number, id: number, ...payload: readonly Uint8Array[]): Buffer[] {
  let length = 0;
  for (const part of payload) length += part.length;
  const head = Buffer.allocUnsafe(FRAME_HEADER_BYTES);
  writeFrameHeader(head, type, id, length);
  return [head, ...(payload as Buffer[])];
}

function writeFrameHeader(head: Buffer, type: number, id: number, payloadBytes: number): void {
  head.writeUInt32BE(9 + payloadBytes, 0);
  head[4] = type;
  head.writeUInt32BE(Math.floor(id / 0x1_0000_0000), 5);
  head.writeUInt32BE((id % 0x1_0000_0000) >>> 0, 9);
}

interface FrameHeader {
  /** Of the payload. */
  readonly length: number;
  readonly type: number;
  readonly id: number;
}

/** DecodeError when the frame is shorter than its header, or longer than `maxBytes` without its length word. */
export function decodeFrameHeader(bytes: Buffer, at: number, maxBytes: number): FrameHeader {
  const length = bytes.readUInt32BE(at);
  if (length < 9 || length > maxBytes) throw new DecodeError(`frame of ${length} bytes, limit ${maxBytes}`, 0);
  return { length: length - 9, type: bytes[at + 4] as number, id: bytes.readUInt32BE(at + 5) * 0x1_0000_0000 + bytes.readUInt32BE(at + 9) };
}

/** Room before the pages of a {@link MSG.PAGES} frame. */
export const PAGES_HEAD_BYTES: number = FRAME_HEADER_BYTES + 2;

/** Makes a frame of pages that lie in `frame` from {@link PAGES_HEAD_BYTES} on: one buffer, so one write. */
export function finishPagesFrame(frame: Buffer, id: number): Buffer {
  writeFrameHeader(frame, MSG.PAGES, id, frame.length - FRAME_HEADER_BYTES);
  frame.writeUInt16BE((frame.length - PAGES_HEAD_BYTES) / BLCKSZ, FRAME_HEADER_BYTES);
  return frame;
}

function lsnToWire(w: ByteWriter, lsn: Lsn): void {
  if (lsn === MAX_LSN) w.u32be(0xffff_ffff).u32be(0xffff_ffff);
  else w.u64be(lsn);
}
function lsnFromWire(r: ByteReader): Lsn {
  const high = r.u32be(),
    low = r.u32be();
  if (high === 0xffff_ffff && low === 0xffff_ffff) return MAX_LSN;
  return lsnFromHalves(high, low);
}

export function encodeRequest(request: PageRequest): Buffer {
  const w = new ByteWriter(64);
  let type: number;
  if (request.type === 'getStartBundle') {
    type = MSG.GET_START_BUNDLE;
    lsnToWire(w, request.lsn);
    w.u32be(request.waitMs);
  } else {
    w.u32be(request.tag.spc).u32be(request.tag.db).u32be(request.tag.rel).u8(request.tag.fork);
    if (request.type === 'getPages') {
      type = MSG.GET_PAGES;
      w.u32be(request.block).u16be(request.count);
      lsnToWire(w, request.requestLsn);
      lsnToWire(w, request.notModifiedSince);
    } else {
      type = MSG.GET_REL_SIZE;
      lsnToWire(w, request.lsn);
    }
  }
  return Buffer.concat(encodeFrame(type, request.id, w.finish()));
}

export function decodeRequest(frame: Frame): PageRequest {
  const r = new ByteReader(frame.payload);
  const request = decodeBody(frame, r);
  if (r.remaining !== 0) throw new DecodeError('trailing bytes in a page request', r.offset);
  return request;
}

function decodeBody(frame: Frame, r: ByteReader): PageRequest {
  if (frame.type === MSG.GET_START_BUNDLE) return { type: 'getStartBundle', id: frame.id, lsn: lsnFromWire(r), waitMs: r.u32be() };
  if (frame.type !== MSG.GET_PAGES && frame.type !== MSG.GET_REL_SIZE) throw new DecodeError(`unknown page request type ${frame.type}`, 0);
  const spc = r.u32be(),
    db = r.u32be(),
    rel = r.u32be(),
    fork = r.u8();
  if (fork > 3) throw new DecodeError(`fork ${fork}`, r.offset);
  const tag = { spc, db, rel, fork: fork as RelTag['fork'] };
  if (frame.type === MSG.GET_REL_SIZE) return { type: 'getRelSize', id: frame.id, tag, lsn: lsnFromWire(r) };
  const block = r.u32be(),
    count = r.u16be();
  if (count < 1 || count > PAGES_PER_REQUEST_MAX || block + count > 0xffff_fffe)
    throw new DecodeError(`block run ${block}+${count}`, r.offset);
  return { type: 'getPages', id: frame.id, tag, block, count, requestLsn: lsnFromWire(r), notModifiedSince: lsnFromWire(r) };
}

const CODES = Object.keys(ERROR_CODES) as ErrorCode[];

export function encodeErrorFrame(id: number, error: unknown): Buffer[] {
  const code: ErrorCode = error instanceof LakebaseError ? error.code : 'INTERNAL';
  const message = error instanceof LakebaseError ? error.message : 'internal error; see the pageserver log';
  return encodeFrame(
    MSG.ERROR,
    id,
    new ByteWriter()
      .u16be(CODES.indexOf(code))
      .bytes(Buffer.from(message.slice(0, 2_000), 'utf8'))
      .finish(),
  );
}

export function decodeErrorFrame(frame: Frame): LakebaseError {
  const r = new ByteReader(frame.payload);
  const code = CODES[r.u16be()] ?? 'INTERNAL';
  return new LakebaseError(code, r.bytes(r.remaining).toString('utf8'));
}

/** Splits a byte stream into frames. A failed parser is poisoned: every later push throws the same error.
 *  Payloads are views of the pushed chunks where a frame lies in one chunk; copy what must outlive the callback. */
export class FrameParser {
  readonly #maxBytes: number;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #need = FRAME_HEADER_BYTES;
  #failed: Error | undefined;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  push(chunk: Buffer, onFrame: (frame: Frame) => void): void {
    if (this.#failed !== undefined) throw this.#failed;
    this.#pending.push(chunk);
    this.#pendingBytes += chunk.length;
    if (this.#pendingBytes < this.#need) return;
    let buffer = this.#pending.length === 1 ? chunk : Buffer.concat(this.#pending, this.#pendingBytes);
    for (;;) {
      this.#need = FRAME_HEADER_BYTES;
      if (buffer.length < FRAME_HEADER_BYTES) break;
      let header: FrameHeader;
      try {
        header = decodeFrameHeader(buffer, 0, this.#maxBytes);
      } catch (error) {
        this.#failed = error as DecodeError;
        throw error;
      }
      const { length, type, id } = header;
      this.#need = FRAME_HEADER_BYTES + length;
      if (buffer.length < this.#need) break;
      onFrame({ type, id, payload: buffer.subarray(FRAME_HEADER_BYTES, this.#need) });
      buffer = buffer.subarray(this.#need);
    }
    this.#pending = buffer.length === 0 ? [] : [buffer];
    this.#pendingBytes = buffer.length;
  }
}

export const pageCount = (bytes: number): number => bytes / BLCKSZ;
