/** A WAL segment, and the file of newer key references beside it, for a person; with keys also the records in it. */
import type { InspectReport } from '@lakebase/api';
import { errorMessage } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn } from '@lakebase/ids';
import { WalDecoder, rmgrName } from '@lakebase/pg-format';
import { FRAME_CONTEXT, FRAME_DATA, decodeReferences } from '@lakebase/wal-store';
import { type ByteSource, readWhole } from './byte-source.ts';
import { type SegmentCheck, type SegmentKeys, checkSegment } from './segment-check.ts';
import { NO_KEYS, ReportBuilder, describeAlgorithm, describeReference } from './report.ts';

export interface SegmentReportOptions {
  readonly openWith?: SegmentKeys | undefined;
  readonly limit?: number | undefined;
  /** Postgres major, to decode records; without it only frames are shown. */
  readonly major?: number | undefined;
  /** Show records from here on. */
  readonly from?: Lsn | undefined;
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
  else if (o.major !== undefined) recordTable(report, check, o.major, o.from);
  return report.done();
}

function recordTable(report: ReportBuilder, check: SegmentCheck, major: number, from: Lsn | undefined): void {
  const { wal, header, startLsn, endLsn } = check;
  if (wal === undefined || startLsn === undefined || endLsn === undefined || endLsn <= startLsn) return;
  const rows: string[][] = [];
  let more = 0;
  try {
    const base = header.segment * WAL_SEGMENT_BYTES;
    // A timeline may begin inside a segment, at a record.
    const decoder = new WalDecoder({ startLsn, major });
    decoder.push(wal.subarray(startLsn - base, endLsn - base));
    for (let r = decoder.next(); r !== undefined; r = decoder.next()) {
      if (r.endLsn <= (from ?? 0)) continue;
      if (rows.length < report.rowLimit)
        rows.push([
          formatLsn(r.lsn),
          rmgrName(r.rmid),
          `0x${(r.info & 0xf0).toString(16).padStart(2, '0')}`,
          String(r.xid),
          String(r.length),
          formatLsn(r.prev),
          blocksOf(r),
        ]);
      else more++;
    }
  } catch (error) {
    report.damage(`records: ${errorMessage(error)}`);
  }
  report.table('records that begin here', ['LSN', 'manager', 'info', 'xid', 'bytes', 'prev', 'blocks'], rows, more);
}

type Record = NonNullable<ReturnType<WalDecoder['next']>>;

function blocksOf(r: Record): string {
  const out: string[] = [];
  for (let i = 0; i <= r.maxBlockId; i++) {
    const b = r.blocks[i];
    if (b?.inUse === true)
      out.push(`${b.spc}/${b.db}/${b.rel}${b.fork === 0 ? '' : `.${b.fork}`} ${b.block}${b.hasImage ? ' (image)' : ''}`);
  }
  return out.join(', ');
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
