/** A WAL segment, and the file of newer key references beside it, for a person; with keys also the records in it. */
import type { InspectReport } from '@lakebase/api';
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn } from '@lakebase/ids';
import { FRAME_CONTEXT, FRAME_DATA, decodeReferences } from '@lakebase/wal-store';
import { type ByteSource, readWhole } from './byte-source.ts';
import { type SegmentKeys, checkSegment } from './segment-check.ts';
import { NO_KEYS, ReportBuilder, describeAlgorithm, describeReference } from './report.ts';
import { type RecordOptions, recordTable } from './wal-records.ts';

export interface SegmentReportOptions extends RecordOptions {
  readonly openWith?: SegmentKeys | undefined;
  readonly limit?: number | undefined;
}

const REFERENCES_BYTES_MAX = 64 << 20;
const kindName = (kind: number): string => (kind === FRAME_DATA ? 'data' : kind === FRAME_CONTEXT ? 'context' : 'truncate');

export async function reportSegment(source: ByteSource, o: SegmentReportOptions = {}): Promise<InspectReport> {
  const check = await checkSegment(source, o.openWith);
  const { header, frames } = check;
  const lsnOf = (lsn: Lsn | undefined): string => (lsn === undefined ? '-' : formatLsn(lsn));
  const report = new ReportBuilder('WAL segment', source.name, o.limit)
    .field('project', header.project)
    .field('timeline', header.timeline)
    .field('segment', `${header.segment} (${formatLsn((header.segment * WAL_SEGMENT_BYTES) as Lsn)})`)
    .field('WAL', frames.length === 0 ? 'none: only prepared' : `${lsnOf(check.startLsn)} – ${lsnOf(check.endLsn)}`)
    .field('bytes', `${source.size} (in use ${check.endOffset}, torn ${check.tornBytes})`)
    .field(
      'frames',
      `${frames.length} in ${new Set(frames.map((f) => f.batchStart)).size} batches by ${new Set(frames.map((f) => f.epoch)).size} writers`,
    )
    .field('cipher', describeAlgorithm(header.algorithm))
    .field('key as written', describeReference(header.keyReference))
    .field('salt', header.salt.toString('hex'))
    .table(
      'frames',
      ['frame', 'offset', 'kind', 'LSN', 'bytes', 'batch', 'writer'],
      frames.map((f) => [f.sequence, f.offset, kindName(f.kind), formatLsn(f.lsn), f.length, f.batchStart, `${f.epoch}…`]),
    );
  if (check.damage !== undefined) report.damage(`${source.name}: ${check.damage}`);
  if (o.openWith === undefined) report.note(NO_KEYS);
  else if (check.wal !== undefined && check.startLsn !== undefined && check.endLsn !== undefined) {
    const base = header.segment * WAL_SEGMENT_BYTES;
    recordTable(report, check.wal.subarray(check.startLsn - base, check.endLsn - base), check.startLsn, o);
    check.wal.fill(0);
  }
  return report.done();
}

export async function reportReferences(source: ByteSource, limit?: number): Promise<InspectReport> {
  const entries = [...decodeReferences(await readWhole(source, REFERENCES_BYTES_MAX))];
  return new ReportBuilder('key references of WAL segments', source.name, limit)
    .field('entries', entries.length)
    .table(
      'newer wrappings',
      ['salt of the segment', 'key'],
      entries.map(([salt, reference]) => [salt, describeReference(reference)]),
    )
    .done();
}
