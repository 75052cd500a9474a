/** Numbers of the WAL format that hold for Postgres 16–18 (xlogrecord.h, xlog_internal.h, rmgrlist.h, pg_control.h).
 *  The page magic is the only one that differs by major and that we must know before we read anything else. */
import { LakebaseError } from '@lakebase/base';

/** Major versions whose WAL and control file we know. */
export type PgMajor = 16 | 17 | 18;

/** XLOG_PAGE_MAGIC. Every major changes it, so a wrong binary is noticed on the first page. */
export const XLOG_PAGE_MAGIC: Readonly<Record<number, number>> = { 16: 0xd113, 17: 0xd116, 18: 0xd118 };

export function pageMagic(major: number): number {
  const magic = XLOG_PAGE_MAGIC[major];
  if (magic === undefined)
    throw new LakebaseError('UNSUPPORTED', `Postgres major ${major} is not known; this version reads WAL of 16, 17 and 18`);
  return magic;
}

// Resource managers (rmgrlist.h); the order is part of the format.
export const RM_XLOG_ID = 0;
export const RM_XACT_ID = 1;
export const RM_SMGR_ID = 2;
export const RM_CLOG_ID = 3;
export const RM_DBASE_ID = 4;
export const RM_TBLSPC_ID = 5;
export const RM_MULTIXACT_ID = 6;
export const RM_RELMAP_ID = 7;
export const RM_STANDBY_ID = 8;
export const RM_HEAP2_ID = 9;
export const RM_HEAP_ID = 10;
export const RM_BTREE_ID = 11;
export const RM_HASH_ID = 12;
export const RM_GIN_ID = 13;
export const RM_GIST_ID = 14;
export const RM_SEQ_ID = 15;
export const RM_SPGIST_ID = 16;
export const RM_BRIN_ID = 17;
export const RM_COMMIT_TS_ID = 18;
export const RM_REPLORIGIN_ID = 19;
export const RM_GENERIC_ID = 20;
export const RM_LOGICALMSG_ID = 21;
/** RM_MAX_BUILTIN_ID. */
export const RM_MAX_BUILTIN_ID = 21;
/** RM_MIN_CUSTOM_ID: extensions register theirs from here to 255. */
export const RM_MIN_CUSTOM_ID = 128;

const RMGR_NAMES = [
  'XLOG',
  'Transaction',
  'Storage',
  'CLOG',
  'Database',
  'Tablespace',
  'MultiXact',
  'RelMap',
  'Standby',
  'Heap2',
  'Heap',
  'Btree',
  'Hash',
  'Gin',
  'Gist',
  'Sequence',
  'SPGist',
  'BRIN',
  'CommitTs',
  'ReplicationOrigin',
  'Generic',
  'LogicalMessage',
] as const;

/** Name as pg_waldump prints it; `custom131` for an extension's. */
export const rmgrName = (rmid: number): string => RMGR_NAMES[rmid] ?? `custom${rmid}`;

// XLogRecord.
/** SizeOfXLogRecord. */
export const RECORD_HEADER_BYTES = 24;
/** XLogRecordMaxSize: refuse before allocating. */
export const RECORD_BYTES_MAX = 1_069_547_520;
/** XLR_MAX_BLOCK_ID. */
export const MAX_BLOCK_ID = 32;
/** Of a relation's blocks. Postgres allows one more, whose relation would have InvalidBlockNumber blocks. */
export const MAX_BLOCK_NUMBER = 0xffff_fffd;
/** The rmgr's part of xl_info. */
export const XLR_RMGR_INFO_MASK = 0xf0;
export const XLR_SPECIAL_REL_UPDATE = 0x01;
export const XLR_CHECK_CONSISTENCY = 0x02;
export const XLR_BLOCK_ID_DATA_SHORT = 255;
export const XLR_BLOCK_ID_DATA_LONG = 254;
export const XLR_BLOCK_ID_ORIGIN = 253;
export const XLR_BLOCK_ID_TOPLEVEL_XID = 252;

// XLogRecordBlockHeader.fork_flags.
export const BKPBLOCK_FORK_MASK = 0x0f;
export const BKPBLOCK_HAS_IMAGE = 0x10;
export const BKPBLOCK_HAS_DATA = 0x20;
export const BKPBLOCK_WILL_INIT = 0x40;
export const BKPBLOCK_SAME_REL = 0x80;

// XLogRecordBlockImageHeader.bimg_info (since 15).
export const BKPIMAGE_HAS_HOLE = 0x01;
export const BKPIMAGE_APPLY = 0x02;
export const BKPIMAGE_COMPRESS_PGLZ = 0x04;
export const BKPIMAGE_COMPRESS_LZ4 = 0x08;
export const BKPIMAGE_COMPRESS_ZSTD = 0x10;
export const BKPIMAGE_COMPRESSED = 0x1c;

// XLogPageHeaderData.xlp_info.
export const XLP_FIRST_IS_CONTRECORD = 0x01;
export const XLP_LONG_HEADER = 0x02;
export const XLP_BKP_REMOVABLE = 0x04;
export const XLP_FIRST_IS_OVERWRITE_CONTRECORD = 0x08;
export const XLP_ALL_FLAGS = 0x0f;

// Info codes of the XLOG resource manager (pg_control.h).
export const XLOG_CHECKPOINT_SHUTDOWN = 0x00;
export const XLOG_CHECKPOINT_ONLINE = 0x10;
export const XLOG_NOOP = 0x20;
export const XLOG_NEXTOID = 0x30;
export const XLOG_SWITCH = 0x40;
export const XLOG_BACKUP_END = 0x50;
export const XLOG_PARAMETER_CHANGE = 0x60;
export const XLOG_RESTORE_POINT = 0x70;
export const XLOG_FPW_CHANGE = 0x80;
export const XLOG_END_OF_RECOVERY = 0x90;
export const XLOG_FPI_FOR_HINT = 0xa0;
export const XLOG_FPI = 0xb0;
export const XLOG_OVERWRITE_CONTRECORD = 0xd0;
export const XLOG_CHECKPOINT_REDO = 0xe0;
