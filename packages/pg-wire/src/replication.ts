/** Streaming replication messages: the payloads of CopyData in both directions.
 *  Timestamps are microseconds since 2000-01-01 UTC, signed 64 bit; as JavaScript numbers they are exact until the year 2285. */
import { ByteReader } from '@lakebase/bytes';
import type { Lsn } from '@lakebase/ids';
import { ProtocolError } from './errors.ts';
import { message } from './encode.ts';
import { decoding } from './backend.ts';

export interface XLogData {
  readonly kind: 'xlogData';
  readonly start: Lsn;
  /** End of WAL at the sender. */
  readonly walEnd: Lsn;
  readonly sentAt: number;
  /** View of the message. */
  readonly data: Buffer;
}
export interface Keepalive {
  readonly kind: 'keepalive';
  readonly walEnd: Lsn;
  readonly sentAt: number;
  readonly replyRequested: boolean;
}
export interface StandbyStatus {
  readonly kind: 'standbyStatus';
  readonly write: Lsn;
  readonly flush: Lsn;
  readonly apply: Lsn;
  readonly sentAt: number;
  readonly replyRequested: boolean;
}
export interface HotStandbyFeedback {
  readonly kind: 'hotStandbyFeedback';
  readonly xmin: number;
  readonly catalogXmin: number;
}

/** 2000-01-01 in Unix milliseconds. */
const PG_EPOCH_MS = 946_684_800_000;
export const pgNow = (): number => (Date.now() - PG_EPOCH_MS) * 1_000;
export const XLOG_DATA_HEADER_BYTES = 25;

const reader = new ByteReader(Buffer.alloc(0));
const timestamp = (r: ByteReader): number => r.i32be() * 0x1_0000_0000 + r.u32be();

/** What a walsender sends. */
export function decodeReplicationFromServer(data: Buffer): XLogData | Keepalive {
  return decoding(reader.reset(data), (r): XLogData | Keepalive => {
    const kind = r.u8();
    if (kind === 0x77) {
      const start = r.lsnBe(),
        walEnd = r.lsnBe(),
        sentAt = timestamp(r);
      return { kind: 'xlogData', start, walEnd, sentAt, data: r.bytes(r.remaining) };
    }
    if (kind === 0x6b) {
      return { kind: 'keepalive', walEnd: r.lsnBe(), sentAt: timestamp(r), replyRequested: r.u8() !== 0 };
    }
    throw new ProtocolError(`unknown replication message 0x${kind.toString(16)}`);
  });
}

/** What a standby sends. */
export function decodeReplicationFromClient(data: Buffer): StandbyStatus | HotStandbyFeedback {
  return decoding(reader.reset(data), (r): StandbyStatus | HotStandbyFeedback => {
    const kind = r.u8();
    if (kind === 0x72) {
      const write = r.lsnBe(),
        flush = r.lsnBe(),
        apply = r.lsnBe(),
        sentAt = timestamp(r);
      return { kind: 'standbyStatus', write, flush, apply, sentAt, replyRequested: r.u8() !== 0 };
    }
    if (kind === 0x68) {
      r.skip(8);
      const xmin = r.u32be();
      r.skip(4);
      const catalogXmin = r.u32be();
      r.skip(4);
      return { kind: 'hotStandbyFeedback', xmin, catalogXmin };
    }
    throw new ProtocolError(`unknown replication message 0x${kind.toString(16)}`);
  });
}

/** The CopyData message up to the WAL bytes, which follow unchanged: write the two with one cork. */
export function encodeXLogDataHeader(start: Lsn, walEnd: Lsn, length: number, sentAt: number = pgNow()): Buffer {
  const out = Buffer.allocUnsafe(5 + XLOG_DATA_HEADER_BYTES);
  out[0] = 0x64;
  out.writeInt32BE(4 + XLOG_DATA_HEADER_BYTES + length, 1);
  out[5] = 0x77;
  writeU64(out, start, 6);
  writeU64(out, walEnd, 14);
  writeU64(out, sentAt, 22);
  return out;
}

export const encodeXLogData = (start: Lsn, walEnd: Lsn, data: Uint8Array, sentAt: number = pgNow()): Buffer =>
  Buffer.concat([encodeXLogDataHeader(start, walEnd, data.length, sentAt), data]);

export const encodeKeepalive = (walEnd: Lsn, replyRequested: boolean, sentAt: number = pgNow()): Buffer =>
  message('d', (w) =>
    w
      .u8(0x6b)
      .u64be(walEnd)
      .u64be(sentAt)
      .u8(replyRequested ? 1 : 0),
  );

export interface StandbyPosition {
  readonly write: Lsn;
  readonly flush: Lsn;
  readonly apply: Lsn;
  readonly replyRequested?: boolean;
}
export const encodeStandbyStatus = (p: StandbyPosition, sentAt: number = pgNow()): Buffer =>
  message('d', (w) =>
    w
      .u8(0x72)
      .u64be(p.write)
      .u64be(p.flush)
      .u64be(p.apply)
      .u64be(sentAt)
      .u8(p.replyRequested === true ? 1 : 0),
  );

function writeU64(out: Buffer, value: number, at: number): void {
  out.writeUInt32BE(Math.floor(value / 0x1_0000_0000) >>> 0, at);
  out.writeUInt32BE((value % 0x1_0000_0000) >>> 0, at + 4);
}
