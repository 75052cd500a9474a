/** A start with no redo: the WAL that makes stock Postgres believe it was shut down cleanly at X.
 *  Postgres reads one shutdown-checkpoint record where pg_control points, finds nothing behind it and starts writing there. The
 *  record is real: it is streamed to the safekeepers as the first record of the new term, so page headers that lie at or after X must be
 *  exactly what Postgres would have written. What lies before X on its page is only ever looked at for a valid page header. */
import { LakebaseError } from '@lakebase/base';
import {
  formatLsn,
  LONG_PAGE_HEADER_BYTES,
  type Lsn,
  lsnHigh,
  lsnLow,
  pageHeaderBytes,
  recordStartAt,
  SHORT_PAGE_HEADER_BYTES,
  segmentNumber,
  segmentOffset,
  WAL_SEGMENT_BYTES,
  walFileName,
  XLOG_BLCKSZ,
} from '@lakebase/ids';
import { CHECKPOINT_BYTES, type CheckPoint, encodeCheckPoint } from './checkpoint.ts';
import {
  pageMagic,
  RECORD_HEADER_BYTES,
  RM_XLOG_ID,
  XLOG_CHECKPOINT_SHUTDOWN,
  XLP_FIRST_IS_CONTRECORD,
  XLP_LONG_HEADER,
  XLR_BLOCK_ID_DATA_SHORT,
} from './constants.ts';
import { type ControlFilePatch, DB_SHUTDOWNED } from './control-file.ts';
import { endOfRecord } from './decode.ts';
import { recordCrc } from './record-crc.ts';

export interface StartOptions {
  /** X: end of the WAL that exists, as EndRecPtr: a multiple of 8, may be a page or segment boundary. */
  readonly lsn: Lsn;
  /** Start of the last record before X. */
  readonly prevRecordLsn: Lsn;
  readonly systemId: bigint;
  readonly major: number;
  /** Counters at X; `redo` is filled in here. */
  readonly checkpoint: CheckPoint;
}

export interface SegmentPiece {
  readonly offset: number;
  readonly bytes: Buffer;
}

/** One file under pg_wal: make it 16 MiB long (sparse) and write the pieces. */
export interface SynthesisedSegment {
  readonly fileName: string;
  readonly startLsn: Lsn;
  readonly pieces: readonly SegmentPiece[];
}

export interface SynthesisedStart {
  /** Where the checkpoint record begins: X, or behind the page header when X is a boundary. */
  readonly recordLsn: Lsn;
  /** EndRecPtr of the record: where Postgres goes on writing. */
  readonly endLsn: Lsn;
  /** The WAL bytes from X to the end of the record's last byte, page headers included: what a reader of the stream gets first. */
  readonly walFromLsn: Buffer;
  /** One segment, or two when the record crosses into the next. */
  readonly segments: readonly SynthesisedSegment[];
  readonly checkpoint: CheckPoint;
  readonly controlPatch: ControlFilePatch;
}

/** 24 header, 2 data header, 88 CheckPoint. */
export const SHUTDOWN_CHECKPOINT_BYTES: number = RECORD_HEADER_BYTES + 2 + CHECKPOINT_BYTES;

/** A shutdown-checkpoint record. */
export function encodeShutdownCheckpoint(checkpoint: CheckPoint, prev: Lsn): Buffer {
  const record = Buffer.alloc(SHUTDOWN_CHECKPOINT_BYTES);
  record.writeUInt32LE(SHUTDOWN_CHECKPOINT_BYTES, 0);
  record.writeUInt32LE(lsnLow(prev), 8);
  record.writeUInt32LE(lsnHigh(prev), 12);
  record[16] = XLOG_CHECKPOINT_SHUTDOWN;
  record[17] = RM_XLOG_ID;
  record[24] = XLR_BLOCK_ID_DATA_SHORT;
  record[25] = CHECKPOINT_BYTES;
  encodeCheckPoint(checkpoint).copy(record, 26);
  record.writeUInt32LE(recordCrc(record, 0, SHUTDOWN_CHECKPOINT_BYTES), 20);
  return record;
}

/** Header of the WAL page at `pageLsn`; `remaining` bytes of a record continue on it. */
export function encodePageHeader(pageLsn: Lsn, options: { major: number; systemId: bigint; remaining?: number }): Buffer {
  const isLong = pageLsn % WAL_SEGMENT_BYTES === 0;
  const remaining = options.remaining ?? 0;
  const header = Buffer.alloc(isLong ? LONG_PAGE_HEADER_BYTES : SHORT_PAGE_HEADER_BYTES);
  header.writeUInt16LE(pageMagic(options.major), 0);
  header.writeUInt16LE((isLong ? XLP_LONG_HEADER : 0) | (remaining > 0 ? XLP_FIRST_IS_CONTRECORD : 0), 2);
  header.writeUInt32LE(1, 4); // timeline
  header.writeUInt32LE(lsnLow(pageLsn), 8);
  header.writeUInt32LE(lsnHigh(pageLsn), 12);
  header.writeUInt32LE(remaining, 16);
  if (isLong) {
    header.writeBigUInt64LE(options.systemId, 24);
    header.writeUInt32LE(WAL_SEGMENT_BYTES, 32);
    header.writeUInt32LE(XLOG_BLCKSZ, 36);
  }
  return header;
}

export function synthesiseStart(options: StartOptions): SynthesisedStart {
  const { lsn, prevRecordLsn } = options;
  if (lsn % 8 !== 0 || (lsn % XLOG_BLCKSZ !== 0 && lsn % XLOG_BLCKSZ < pageHeaderBytes(lsn)))
    throw new LakebaseError('INVALID_ARGUMENT', `no record can end at ${formatLsn(lsn)}`);
  if (prevRecordLsn >= lsn)
    throw new LakebaseError('INVALID_ARGUMENT', `previous record ${formatLsn(prevRecordLsn)} is not before ${formatLsn(lsn)}`);
  const recordLsn = recordStartAt(lsn);
  const checkpoint: CheckPoint = { ...options.checkpoint, redo: recordLsn };
  const record = encodeShutdownCheckpoint(checkpoint, prevRecordLsn);

  const writes = new Map<number, SegmentPiece[]>();
  const write = (at: number, bytes: Buffer): void => {
    const segment = segmentNumber(at);
    let pieces = writes.get(segment);
    if (pieces === undefined) {
      pieces = [];
      writes.set(segment, pieces);
      // Whenever Postgres opens a segment it first looks at the long header of its first page.
      if (segmentOffset(at) !== 0) write(segment * WAL_SEGMENT_BYTES, encodePageHeader((segment * WAL_SEGMENT_BYTES) as Lsn, options));
    }
    pieces.push({ offset: segmentOffset(at), bytes });
  };

  const firstPage = (recordLsn - (recordLsn % XLOG_BLCKSZ)) as Lsn;
  const fromLsn: Buffer[] = [];
  const firstHeader = encodePageHeader(firstPage, options);
  write(firstPage, firstHeader);
  if (lsn === firstPage) fromLsn.push(firstHeader);
  const room = XLOG_BLCKSZ - (recordLsn % XLOG_BLCKSZ);
  write(recordLsn, record.subarray(0, room));
  fromLsn.push(record.subarray(0, room));
  if (room < SHUTDOWN_CHECKPOINT_BYTES) {
    const page = (recordLsn + room) as Lsn;
    const header = encodePageHeader(page, { ...options, remaining: SHUTDOWN_CHECKPOINT_BYTES - room });
    write(page, header);
    write(page + header.length, record.subarray(room));
    fromLsn.push(header, record.subarray(room));
  }

  return {
    recordLsn,
    endLsn: endOfRecord(recordLsn, SHUTDOWN_CHECKPOINT_BYTES),
    walFromLsn: Buffer.concat(fromLsn),
    segments: [...writes].map(([segment, pieces]) => ({
      fileName: walFileName(segment),
      startLsn: (segment * WAL_SEGMENT_BYTES) as Lsn,
      pieces,
    })),
    checkpoint,
    controlPatch: {
      systemId: options.systemId,
      state: DB_SHUTDOWNED,
      checkPoint: recordLsn,
      checkPointCopy: checkpoint,
      minRecoveryPoint: 0 as Lsn,
      minRecoveryPointTimeline: 0,
    },
  };
}
