/** What a WAL record does to storage, as values. The pageserver's ingest files these under keys; redo at read time applies them.
 *  Side effects that no block reference names (visibility map clears, CLOG, multixact, FSM…) are `delta`s: small self-describing byte
 *  strings of our own (side-delta.ts) that `applySideDelta(page, delta, endLsn)` applies to one 8 KiB page. */
import type { RelTag } from '@lakebase/ids';

export const SLRU_XACT = 0;
export const SLRU_MULTIXACT_OFFSETS = 1;
export const SLRU_MULTIXACT_MEMBERS = 2;
export const SLRU_COMMIT_TS = 3;
export type SlruKind = 0 | 1 | 2 | 3;

/** Counters of the CheckPoint struct that WAL moves; only given fields change. `nextFullXid`, `nextOid` and the commit timestamp's zeros are
 *  taken as they are; everything else only grows, in wraparound order (xids and multixacts compare modulo 2^32). */
export interface CounterUpdate {
  /** Next full transaction id as (epoch * 2^32 + xid): taken as is. From checkpoints. */
  nextFullXid?: number;
  /** A 32-bit xid seen in a record beside `record.xid` (which the caller tracks by itself): nextFullXid becomes > it. */
  seenXid?: number;
  nextOid?: number;
  nextMulti?: number;
  nextMultiOffset?: number;
  oldestXid?: number;
  oldestXidDb?: number;
  oldestMulti?: number;
  oldestMultiDb?: number;
  oldestCommitTsXid?: number;
  newestCommitTsXid?: number;
  oldestActiveXid?: number;
  /** pg_time_t of the last checkpoint record. */
  time?: number;
}

/** XLOG_PARAMETER_CHANGE: goes into pg_control. */
export interface ParameterChange {
  maxConnections: number;
  maxWorkerProcesses: number;
  maxWalSenders: number;
  maxPreparedXacts: number;
  maxLocksPerXact: number;
  walLevel: number;
  walLogHints: boolean;
  trackCommitTimestamp: boolean;
}

/** Buffers and objects handed to a sink are valid during the call only: copy what is kept. */
export interface EffectSink {
  /** False while track_commit_timestamp is off on the primary (pg_control, then `parameters`): spares a delta per commit. */
  readonly commitTimestamps?: boolean;
  /** Block `blockId` of the record changes its page: apply with `redo(page, record, blockId)`. */
  block(blockId: number): void;
  relDelta(tag: RelTag, block: number, delta: Buffer): void;
  /** Heap redo on `heapBlock` may record its free space in the FSM (XLogRecordPageWithFreeSpace): the value depends on the heap page after this record. */
  freeSpaceHint(main: RelTag, heapBlock: number): void;
  slruDelta(kind: SlruKind, page: number, delta: Buffer): void;
  slruZero(kind: SlruKind, page: number): void;
  /** Segments wholly before `firstKeptPage` are gone, or only those from `fromPage` on when it is given: ask `slruSegmentTruncated`. */
  slruTruncate(kind: SlruKind, firstKeptPage: number, fromPage?: number): void;
  relCreate(tag: RelTag): void;
  /** This fork now has `blocks` blocks. */
  relTruncate(tag: RelTag, blocks: number): void;
  /** All forks. */
  relDrop(spc: number, db: number, rel: number): void;
  /** CREATE DATABASE … STRATEGY FILE_COPY: every fork and the relmap of src as of this record. */
  dbCopy(src: { spc: number; db: number }, dst: { spc: number; db: number }): void;
  /** WAL_LOG strategy: directory and PG_VERSION. */
  dbCreate(spc: number, db: number): void;
  dbDrop(spc: number, db: number): void;
  /** pg_filenode.map of a database, or of the shared catalogs (db 0, spc 1664). 524 bytes in 16+. */
  relmap(spc: number, db: number, bytes: Buffer): void;
  /** `xid` is 32 bits wide; since 17 the file is named by the full xid: `fullXidAt` the next full xid.
   *  File content without the trailing CRC is as in the record; the bundle adds it. */
  twophasePut(xid: number, bytes: Buffer): void;
  twophaseDelete(xid: number): void;
  originAdvance(originId: number, remoteLsn: number): void;
  originDrop(originId: number): void;
  counters(update: CounterUpdate): void;
  parameters(change: ParameterChange): void;
}
