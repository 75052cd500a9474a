/** CheckPoint struct (pg_control.h): body of checkpoint records and copy in pg_control. 88 bytes, the same offsets in 16–18
 *  (17 put wal_level where 16 has padding, which is zero). */
import { LakebaseError } from '@lakebase/base';
import { type Lsn, lsnFromHalves, lsnHigh, lsnLow } from '@lakebase/ids';

export const CHECKPOINT_BYTES = 88;

export interface CheckPoint {
  /** REDO start point; for a shutdown checkpoint the record itself. */
  redo: Lsn;
  thisTimeline: number;
  prevTimeline: number;
  fullPageWrites: boolean;
  /** 0 minimal, 1 replica, 2 logical. Always 0 in 16, which does not record it. */
  walLevel: number;
  /** Next full transaction id, epoch * 2^32 + xid. */
  nextFullXid: number;
  nextOid: number;
  nextMulti: number;
  nextMultiOffset: number;
  oldestXid: number;
  oldestXidDb: number;
  oldestMulti: number;
  oldestMultiDb: number;
  /** Seconds since 1970. */
  time: number;
  oldestCommitTsXid: number;
  newestCommitTsXid: number;
  oldestActiveXid: number;
}

export function decodeCheckPoint(bytes: Buffer, offset = 0): CheckPoint {
  if (offset < 0 || offset + CHECKPOINT_BYTES > bytes.length)
    throw new LakebaseError('CORRUPT', `checkpoint: ${bytes.length - offset} bytes, a CheckPoint has ${CHECKPOINT_BYTES}`);
  const u32 = (at: number): number => bytes.readUInt32LE(offset + at);
  const u64 = (at: number): number => lsnFromHalves(u32(at + 4), u32(at));
  return {
    redo: u64(0) as Lsn,
    thisTimeline: u32(8),
    prevTimeline: u32(12),
    fullPageWrites: bytes[offset + 16] !== 0,
    walLevel: bytes.readInt32LE(offset + 20),
    nextFullXid: u64(24),
    nextOid: u32(32),
    nextMulti: u32(36),
    nextMultiOffset: u32(40),
    oldestXid: u32(44),
    oldestXidDb: u32(48),
    oldestMulti: u32(52),
    oldestMultiDb: u32(56),
    time: u64(64),
    oldestCommitTsXid: u32(72),
    newestCommitTsXid: u32(76),
    oldestActiveXid: u32(80),
  };
}

export function encodeCheckPoint(checkpoint: CheckPoint): Buffer {
  const bytes = Buffer.alloc(CHECKPOINT_BYTES);
  const u64 = (at: number, value: number): void => {
    bytes.writeUInt32LE(lsnLow(value as Lsn), at);
    bytes.writeUInt32LE(lsnHigh(value as Lsn), at + 4);
  };
  u64(0, checkpoint.redo);
  bytes.writeUInt32LE(checkpoint.thisTimeline, 8);
  bytes.writeUInt32LE(checkpoint.prevTimeline, 12);
  bytes[16] = checkpoint.fullPageWrites ? 1 : 0;
  bytes.writeInt32LE(checkpoint.walLevel, 20);
  u64(24, checkpoint.nextFullXid);
  bytes.writeUInt32LE(checkpoint.nextOid, 32);
  bytes.writeUInt32LE(checkpoint.nextMulti, 36);
  bytes.writeUInt32LE(checkpoint.nextMultiOffset, 40);
  bytes.writeUInt32LE(checkpoint.oldestXid, 44);
  bytes.writeUInt32LE(checkpoint.oldestXidDb, 48);
  bytes.writeUInt32LE(checkpoint.oldestMulti, 52);
  bytes.writeUInt32LE(checkpoint.oldestMultiDb, 56);
  u64(64, checkpoint.time);
  bytes.writeUInt32LE(checkpoint.oldestCommitTsXid, 72);
  bytes.writeUInt32LE(checkpoint.newestCommitTsXid, 76);
  bytes.writeUInt32LE(checkpoint.oldestActiveXid, 80);
  return bytes;
}
