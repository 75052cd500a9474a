/** Reads a stopped server's WAL from its files in order.
 *  Invariant: reading ends exactly after the record at `lastRecordLsn`, the shutdown checkpoint pg_control names; WAL that ends earlier is an error. */
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import { formatLsn, type Lsn, lsnFromHalves, segmentNumber, segmentOffset, WAL_SEGMENT_BYTES, walFileName } from '@lakebase/ids';
import { type DecodedRecord, WalDecoder } from '@lakebase/pg-format';

const CHUNK_BYTES = 1 << 20;

/** checkPoint of pg_control: the start of the last checkpoint record. */
export function controlCheckpoint(dataDir: string): Lsn {
  const control = readFileSync(join(dataDir, 'global', 'pg_control'));
  return lsnFromHalves(control.readUInt32LE(36), control.readUInt32LE(32));
}

export interface WalRange {
  readonly walDir: string;
  readonly major: number;
  /** A record start; this record itself is skipped. */
  readonly afterRecordAt: Lsn;
  readonly lastRecordLsn: Lsn;
}

/** Calls `visit` for every record in the range. Returns the end of the last one. */
export function readWal(range: WalRange, visit: (record: DecodedRecord) => void): Lsn {
  const decoder = new WalDecoder({ startLsn: range.afterRecordAt, major: range.major });
  let at: number = range.afterRecordAt;
  for (;;) {
    const file = join(range.walDir, walFileName(segmentNumber(at)));
    const fd = openSync(file, 'r');
    try {
      for (let offset = segmentOffset(at); offset < WAL_SEGMENT_BYTES; ) {
        const chunk = Buffer.allocUnsafe(Math.min(CHUNK_BYTES, WAL_SEGMENT_BYTES - offset));
        const n = readSync(fd, chunk, 0, chunk.length, offset);
        if (n === 0) throw new LakebaseError('CORRUPT', `${file} ends at ${offset}`);
        offset += n;
        at += n;
        decoder.push(chunk.subarray(0, n));
        for (let record = decoder.next(); record !== undefined; record = decoder.next()) {
          if (record.lsn > range.afterRecordAt) visit(record);
          if (record.lsn === range.lastRecordLsn) return record.endLsn;
          if (record.lsn > range.lastRecordLsn) throw new LakebaseError('INTERNAL', `no record at ${formatLsn(range.lastRecordLsn)}`);
        }
      }
    } finally {
      closeSync(fd);
    }
  }
}
