/** A WAL timeline's control file for a person. Nothing in it is sealed. */
import type { InspectReport } from '@lakebase/api';
import { type Lsn, formatLsn } from '@lakebase/ids';
import { CONTROL_FILE_BYTES_MAX, decodeControlFile } from '@lakebase/wal-quorum';
import { type ByteSource, readWhole } from './byte-source.ts';
import { ReportBuilder } from './report.ts';

export async function reportControl(source: ByteSource, limit?: number): Promise<InspectReport> {
  const control = decodeControlFile(await readWhole(source, CONTROL_FILE_BYTES_MAX), source.name);
  const report = new ReportBuilder('WAL control file', source.name, limit);
  // Field by field, so that one a later version adds is shown as well.
  for (const [name, value] of Object.entries(control) as [string, unknown][]) {
    if (name === 'history') continue;
    const isLsn = /Lsn$|Hint$/.test(name) && typeof value === 'number';
    report.field(
      name,
      isLsn
        ? formatLsn(value as Lsn)
        : value !== null && typeof value === 'object'
          ? JSON.stringify(value)
          : value === null || value === undefined
            ? null
            : `${value as string | number | bigint}`,
    );
  }
  if (control.damage !== null) report.damage(`this member is marked ${control.damage.kind}: ${control.damage.reason}`);
  return report
    .table(
      'term history',
      ['term', 'from'],
      control.history.map((h) => [h.term, formatLsn(h.startLsn)]),
    )
    .done();
}
