/** A decoded WAL record (xlogrecord.h, xlogreader.c DecodeXLogRecord). Offsets point into `buf`, which holds one whole contiguous record
 *  (page headers already removed). Records and blocks are reused by the decoder: what outlives the callback must be copied. */
import type { Lsn } from '@lakebase/ids';

export interface DecodedBlock {
  inUse: boolean;
  spc: number;
  db: number;
  rel: number;
  fork: number;
  block: number;
  /** BKPBLOCK_* bits of fork_flags. */
  flags: number;
  willInit: boolean;
  hasImage: boolean;
  /** BKPIMAGE_APPLY: the image is to be restored (full page write), not only compared (wal_consistency_checking). */
  applyImage: boolean;
  bimgInfo: number;
  imageOffset: number;
  imageLength: number;
  holeOffset: number;
  holeLength: number;
  dataOffset: number;
  /** 0 when the block carries no data. */
  dataLength: number;
}

export interface DecodedRecord {
  /** Start of the record header. */
  lsn: Lsn;
  /** EndRecPtr: what redo stores in pd_lsn; for XLOG_SWITCH the start of the next segment. */
  endLsn: Lsn;
  prev: Lsn;
  xid: number;
  rmid: number;
  /** Whole xl_info byte; the rmgr's part is `info & 0xf0`. */
  info: number;
  originId: number;
  topXid: number;
  buf: Buffer;
  /** Offset and length of the whole record in buf. */
  offset: number;
  length: number;
  mainOffset: number;
  mainLength: number;
  /** Highest block id in use, -1 when none; blocks[0..maxBlockId] are valid and may have inUse=false. */
  maxBlockId: number;
  blocks: DecodedBlock[];
}
