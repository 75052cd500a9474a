/** global/pg_control: read the fields we use, patch some, keep every other byte (pg_control.h ControlFileData).
 *  Invariants: (1) a file is taken only when its version is known and its CRC-32C matches; (2) a patched file has a fresh CRC and is
 *  always 8192 bytes. Offsets up to 256 are the same in 16–18; 18 adds a byte before the nonce, which moves the CRC from 288 to 292. */
import { LakebaseError } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';
import { type Lsn, lsnFromHalves, lsnHigh, lsnLow } from '@lakebase/ids';
import { CHECKPOINT_BYTES, type CheckPoint, decodeCheckPoint, encodeCheckPoint } from './checkpoint.ts';

export const CONTROL_FILE_BYTES = 8192;
export const CONTROL_FILE_PATH = 'global/pg_control';

/** DBState. */
export const DB_SHUTDOWNED = 1;
export const DB_SHUTDOWNED_IN_RECOVERY = 2;
export const DB_SHUTDOWNING = 3;
export const DB_IN_CRASH_RECOVERY = 4;
export const DB_IN_ARCHIVE_RECOVERY = 5;
export const DB_IN_PRODUCTION = 6;

/** pg_control_version → offset of the CRC. 1300 is used by 13–16. */
const CRC_OFFSET: Readonly<Record<number, number>> = { 1300: 288, 1700: 288, 1800: 292 };

/** Settings a standby and pg_resetwal compare with; XLOG_PARAMETER_CHANGE carries the same. */
export interface ControlParameters {
  walLevel: number;
  walLogHints: boolean;
  maxConnections: number;
  maxWorkerProcesses: number;
  maxWalSenders: number;
  maxPreparedXacts: number;
  maxLocksPerXact: number;
  trackCommitTimestamp: boolean;
}

export interface ControlFile {
  systemId: bigint;
  controlVersion: number;
  catalogVersion: number;
  state: number;
  time: number;
  checkPoint: Lsn;
  checkPointCopy: CheckPoint;
  minRecoveryPoint: Lsn;
  parameters: ControlParameters;
  blockSize: number;
  walSegmentBytes: number;
  checksumVersion: number;
}

export interface ControlFilePatch {
  readonly systemId?: bigint;
  readonly state?: number;
  readonly time?: number;
  readonly checkPoint?: Lsn;
  readonly checkPointCopy?: CheckPoint;
  readonly unloggedLsn?: Lsn;
  readonly minRecoveryPoint?: Lsn;
  readonly minRecoveryPointTimeline?: number;
  readonly parameters?: ControlParameters;
}

function checkControlFile(bytes: Buffer): number {
  if (bytes.length < 296) throw new LakebaseError('CORRUPT', `pg_control: ${bytes.length} bytes, too short`);
  const version = bytes.readUInt32LE(8);
  const crcOffset = CRC_OFFSET[version];
  if (crcOffset === undefined)
    throw new LakebaseError('UNSUPPORTED', `pg_control: version ${version} is not known; this version reads 1300, 1700 and 1800`);
  if (crc32c(bytes.subarray(0, crcOffset)) !== bytes.readUInt32LE(crcOffset))
    throw new LakebaseError('CORRUPT', 'pg_control: checksum does not match');
  return crcOffset;
}

export function readControlFile(bytes: Buffer): ControlFile {
  checkControlFile(bytes);
  const u64 = (at: number): number => lsnFromHalves(bytes.readUInt32LE(at + 4), bytes.readUInt32LE(at));
  return {
    systemId: bytes.readBigUInt64LE(0),
    controlVersion: bytes.readUInt32LE(8),
    catalogVersion: bytes.readUInt32LE(12),
    state: bytes.readInt32LE(16),
    time: u64(24),
    checkPoint: u64(32) as Lsn,
    checkPointCopy: decodeCheckPoint(bytes, 40),
    minRecoveryPoint: u64(136) as Lsn,
    parameters: {
      walLevel: bytes.readInt32LE(172),
      walLogHints: bytes[176] !== 0,
      maxConnections: bytes.readInt32LE(180),
      maxWorkerProcesses: bytes.readInt32LE(184),
      maxWalSenders: bytes.readInt32LE(188),
      maxPreparedXacts: bytes.readInt32LE(192),
      maxLocksPerXact: bytes.readInt32LE(196),
      trackCommitTimestamp: bytes[200] !== 0,
    },
    blockSize: bytes.readUInt32LE(216),
    walSegmentBytes: bytes.readUInt32LE(228),
    checksumVersion: bytes.readUInt32LE(252),
  };
}

/** A patched copy with a fresh CRC; `bytes` is not changed. */
export function patchControlFile(bytes: Buffer, patch: ControlFilePatch): Buffer {
  const crcOffset = checkControlFile(bytes);
  const out = Buffer.alloc(CONTROL_FILE_BYTES);
  bytes.copy(out, 0, 0, Math.min(bytes.length, CONTROL_FILE_BYTES));
  const u64 = (at: number, value: number): void => {
    out.writeUInt32LE(lsnLow(value as Lsn), at);
    out.writeUInt32LE(lsnHigh(value as Lsn), at + 4);
  };
  if (patch.systemId !== undefined) out.writeBigUInt64LE(patch.systemId, 0);
  if (patch.state !== undefined) out.writeInt32LE(patch.state, 16);
  if (patch.time !== undefined) u64(24, patch.time);
  if (patch.checkPoint !== undefined) u64(32, patch.checkPoint);
  if (patch.checkPointCopy !== undefined) encodeCheckPoint(patch.checkPointCopy).copy(out, 40, 0, CHECKPOINT_BYTES);
  if (patch.unloggedLsn !== undefined) u64(128, patch.unloggedLsn);
  if (patch.minRecoveryPoint !== undefined) u64(136, patch.minRecoveryPoint);
  if (patch.minRecoveryPointTimeline !== undefined) out.writeUInt32LE(patch.minRecoveryPointTimeline, 144);
  if (patch.parameters !== undefined) {
    const p = patch.parameters;
    out.writeInt32LE(p.walLevel, 172);
    out[176] = p.walLogHints ? 1 : 0;
    out.writeInt32LE(p.maxConnections, 180);
    out.writeInt32LE(p.maxWorkerProcesses, 184);
    out.writeInt32LE(p.maxWalSenders, 188);
    out.writeInt32LE(p.maxPreparedXacts, 192);
    out.writeInt32LE(p.maxLocksPerXact, 196);
    out[200] = p.trackCommitTimestamp ? 1 : 0;
  }
  out.writeUInt32LE(crc32c(out.subarray(0, crcOffset)), crcOffset);
  return out;
}
