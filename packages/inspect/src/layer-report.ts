/** A layer file for a person: header and footer; with keys its frames, and the entries of one. */
import type { InspectReport } from '@lakebase/api';
import { formatLsn } from '@lakebase/ids';
import {
  ARG_BLOCK_ID,
  ARG_STOP,
  ENTRY_DELTA,
  ENTRY_FSM_HINT,
  ENTRY_IMAGE,
  ENTRY_RECORD,
  ENTRY_VALUE,
  ENTRY_ZERO,
  forEachEntry,
} from '@lakebase/layers';
import { rmgrName } from '@lakebase/pg-format';
import type { ByteSource } from './byte-source.ts';
import { LayerFrames, type OpenWith, checkLayer, forEachGroup, readLayerShape } from './layer-check.ts';
import { NO_KEYS, ReportBuilder, describeAlgorithm, describeKey, describeReference } from './report.ts';

const ENTRY_NAMES: Readonly<Record<number, string>> = {
  [ENTRY_RECORD]: 'record',
  [ENTRY_DELTA]: 'side delta',
  [ENTRY_IMAGE]: 'image',
  [ENTRY_ZERO]: 'zeros',
  [ENTRY_VALUE]: 'value',
  [ENTRY_FSM_HINT]: 'free space hint',
};

export interface LayerReportOptions {
  readonly openWith?: OpenWith | undefined;
  readonly limit?: number | undefined;
  /** Show the entries of this frame. */
  readonly frame?: number | undefined;
  /** Read and open everything, not only what is shown. */
  readonly whole?: boolean | undefined;
}

export async function reportLayer(source: ByteSource, o: LayerReportOptions = {}): Promise<InspectReport> {
  const shape = await readLayerShape(source);
  const { header, footer, headerBytes } = shape;
  const report = new ReportBuilder('layer', source.name, o.limit)
    .field(
      'kind',
      header.kind === 'delta' ? 'delta: changes after the first LSN up to the second' : 'image: all keys of its range at one LSN',
    )
    .field('project', header.project)
    .field('timeline', header.timeline)
    .field('LSNs', `${formatLsn(header.startLsn)} – ${formatLsn(header.endLsn)}`)
    .field('bytes', `${source.size} (header ${headerBytes}, index ${footer.indexBytes})`)
    .field('frames', footer.frames)
    .field('entries', footer.entries)
    .field('first key', describeKey(footer.keyMin))
    .field('last key', describeKey(footer.keyMax))
    .field('cipher', describeAlgorithm(header.algorithm))
    .field('key as written', describeReference(header.keyReference))
    .field('object id', header.objectId.toString('hex'));
  if (o.openWith?.reference !== undefined) report.field('key in the index', describeReference(o.openWith.reference));
  if (o.openWith === undefined) return report.note(NO_KEYS).done();
  try {
    const frames = await LayerFrames.load(source, shape, o.openWith);
    if (o.frame === undefined) frameTable(report, frames);
    else await entryTable(report, source, frames, o.frame);
    if (o.whole === true) {
      const check = await checkLayer(source, o.openWith);
      report.field('SHA-256', check.sha256).note(`all ${check.frames} frames open and hold ${check.entries} entries`);
    }
  } catch (error) {
    report.damage(error);
  }
  return report.done();
}

function frameTable(report: ReportBuilder, frames: LayerFrames): void {
  const { index } = frames;
  const rows = Array.from({ length: Math.min(index.frames, report.rowLimit) }, (_, n) => {
    const plain = index.plainBytes(n);
    const at = [n, index.packOf(n).number, index.offset(n), index.storedBytes(n), plain === 0 ? 'as it is' : plain];
    return [...at, formatLsn(index.firstLsn(n)), describeKey(index.firstKey(n))];
  });
  const columns = ['frame', 'pack', 'offset', 'stored', 'plain', 'first LSN', 'first key'];
  report.table('frames', columns, rows, index.frames - rows.length);
}

async function entryTable(report: ReportBuilder, source: ByteSource, frames: LayerFrames, n: number): Promise<void> {
  const plain = await frames.read(n);
  const rows: (string | number)[][] = [];
  let more = 0;
  forEachGroup(source, n, plain, (at) => {
    const key = describeKey(plain.subarray(at, at + 20));
    forEachEntry(plain, at, (entry) => {
      if (rows.length < report.rowLimit)
        rows.push([key, formatLsn(entry.lsn), describeEntry(entry.kind, entry.arg, entry.bytes), entry.bytes.length]);
      else more++;
      return true;
    });
  });
  report.table(`entries of frame ${n}`, ['key', 'LSN', 'what', 'bytes'], rows, more);
}

/** `record heap 0x00 xid 740, block 0, nothing older needed`. */
export function describeEntry(kind: number, arg: number, bytes: Buffer): string {
  const name = ENTRY_NAMES[kind] ?? `unknown kind ${kind}`;
  const stop = (arg & ARG_STOP) !== 0 ? ', nothing older needed' : '';
  if (kind === ENTRY_RECORD && bytes.length >= 24) {
    const rmid = bytes[17] as number;
    return `record ${rmgrName(rmid)} 0x${((bytes[16] as number) & 0xf0).toString(16).padStart(2, '0')} xid ${bytes.readUInt32LE(4)}, block id ${arg & ARG_BLOCK_ID}${stop}`;
  }
  if (kind === ENTRY_VALUE && bytes.length === 0) return 'value: gone';
  return `${name}${stop}`;
}
