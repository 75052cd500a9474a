/** The records in a piece of WAL, as a table. */
import { errorMessage } from '@lakebase/base';
import { type Lsn, formatLsn } from '@lakebase/ids';
import { type DecodedRecord, WalDecoder, rmgrName } from '@lakebase/pg-format';
import type { ReportBuilder } from './report.ts';

export interface RecordOptions {
  /** Postgres major, to decode records; without it none are shown. */
  readonly major?: number | undefined;
  /** Show records that end behind here. */
  readonly from?: Lsn | undefined;
}

/** `wal` begins at `start`: a record, or the beginning of a segment. */
export function recordTable(report: ReportBuilder, wal: Buffer, start: Lsn, { major, from }: RecordOptions): void {
  if (major === undefined || wal.length === 0) return;
  const rows: string[][] = [];
  let more = 0;
  try {
    const decoder = new WalDecoder({ startLsn: start, major });
    decoder.push(wal);
    for (let r = decoder.next(); r !== undefined; r = decoder.next()) {
      if (r.endLsn <= (from ?? 0)) continue;
      if (rows.length >= report.rowLimit) {
        more++;
        continue;
      }
      const info = `0x${(r.info & 0xf0).toString(16).padStart(2, '0')}`;
      rows.push([formatLsn(r.lsn), rmgrName(r.rmid), info, String(r.xid), String(r.length), formatLsn(r.prev), blocksOf(r)]);
    }
  } catch (error) {
    report.damage(`records: ${errorMessage(error)}`);
  }
  report.table('records that begin here', ['LSN', 'manager', 'info', 'xid', 'bytes', 'prev', 'blocks'], rows, more);
}

function blocksOf(r: DecodedRecord): string {
  const out: string[] = [];
  for (let i = 0; i <= r.maxBlockId; i++) {
    const b = r.blocks[i];
    if (b?.inUse === true)
      out.push(`${b.spc}/${b.db}/${b.rel}${b.fork === 0 ? '' : `.${b.fork}`} ${b.block}${b.hasImage ? ' (image)' : ''}`);
  }
  return out.join(', ');
}
