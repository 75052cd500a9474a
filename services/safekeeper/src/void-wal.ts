/** Stand-in bytes for the part of a segment before the first WAL this timeline holds. Standard tools (pg_receivewal, pg_waldump) begin at a
 *  segment start and want its long page header, and a page header on the page where WAL begins; all else is zeros. */
import { type Lsn, WAL_SEGMENT_BYTES, XLOG_BLCKSZ, lsn, segmentNumber } from '@lakebase/ids';
import { encodePageHeader } from '@lakebase/pg-format';
import type { ControlFile } from '@lakebase/wal-quorum';

export const majorOf = (pgVersion: number): number => (pgVersion >= 10_000 ? Math.floor(pgVersion / 10_000) : pgVersion);

/** True when `at` lies before `firstLsn` in the same segment. */
export const isVoid = (at: Lsn, firstLsn: Lsn): boolean => at < firstLsn && segmentNumber(at) === segmentNumber(firstLsn);

/** Bytes [from, min(from + max, firstLsn)). */
export function voidWal(from: Lsn, max: number, firstLsn: Lsn, control: ControlFile): Buffer {
  const end = Math.min(from + max, firstLsn);
  const out = Buffer.alloc(end - from);
  const options = { major: majorOf(control.pgVersion), systemId: control.systemId };
  const segmentStart = from - (from % WAL_SEGMENT_BYTES);
  const lastPage = firstLsn - (firstLsn % XLOG_BLCKSZ);
  for (const page of new Set([segmentStart, lastPage])) {
    if (page >= firstLsn) continue;
    const header = encodePageHeader(lsn(page), options);
    for (let i = 0; i < header.length; i++) {
      const at = page + i - from;
      if (at >= 0 && at < out.length) out[at] = header[i] as number;
    }
  }
  return out;
}
