/** A WAL object of the object store for a person: its trailer; with keys every frame opened and the records in it. */
import type { InspectReport } from '@lakebase/api';
import { errorMessage } from '@lakebase/base';
import { formatLsn, lsn } from '@lakebase/ids';
import { type ObjectStore, timelineObject } from '@lakebase/object-store';
import { TRAILER_READ_BYTES, type WalObjectHeader, WalObjectReader, decodeTrailer } from '@lakebase/wal-store';
import type { ByteSource } from './byte-source.ts';
import type { OpenWith } from './layer-check.ts';
import { NO_KEYS, ReportBuilder, describeAlgorithm, describeReference } from './report.ts';
import { type RecordOptions, recordTable } from './wal-records.ts';

/** 'LBWE', its last four bytes: it begins with a sealed frame. */
const END_MAGIC = 0x4c425745;

export async function isWalObject(source: ByteSource): Promise<boolean> {
  return source.size >= 24 && (await source.read(source.size - 4, 4)).readUInt32BE(0) === END_MAGIC;
}

export interface WalObjectReportOptions extends RecordOptions {
  readonly openWith?: OpenWith | undefined;
  readonly limit?: number | undefined;
}

export async function reportWalObject(source: ByteSource, o: WalObjectReportOptions = {}): Promise<InspectReport> {
  const length = Math.min(source.size, TRAILER_READ_BYTES);
  const trailer = decodeTrailer(await source.read(source.size - length, length), source.size, source.name);
  const { header } = trailer;
  const frames = Math.ceil((header.end - header.start) / header.frameBytes);
  const report = new ReportBuilder('WAL object', source.name, o.limit)
    .field('project', header.project)
    .field('timeline', header.timeline)
    .field('WAL', `${formatLsn(header.start)} – ${formatLsn(header.end)} (${header.end - header.start} bytes)`)
    .field('bytes', `${source.size} (frames ${trailer.indexOffset})`)
    .field('frames', frames)
    .field('cipher', describeAlgorithm(header.algorithm))
    .field('key as written', describeReference(header.keyReference))
    .field('object id', header.objectId.toString('hex'));
  if (o.openWith === undefined) return report.note(NO_KEYS).done();
  try {
    const wal = await openWal(source, header, trailer, o.openWith);
    report.note(`all ${frames} frames open`);
    recordTable(report, wal, header.start, o);
    wal.fill(0);
  } catch (error) {
    report.damage(errorMessage(error));
  }
  return report.done();
}

async function openWal(
  source: ByteSource,
  header: WalObjectHeader,
  trailer: ReturnType<typeof decodeTrailer>,
  { keys, reference }: OpenWith,
): Promise<Buffer> {
  const used = reference ?? header.keyReference;
  if (used.length > 0) await keys.load([used]);
  // It is bound to its whole key, of which a file has the last part.
  const name = timelineObject(header.project, header.timeline, `wal/${source.name}`);
  const reader = new WalObjectReader(
    rangesOf(source),
    { ...trailer, name, size: source.size, tag: '' },
    keys.restore(header.algorithm, used),
  );
  const wal = Buffer.alloc(header.end - header.start);
  for (let at: number = header.start; at < header.end; ) {
    const bytes = await reader.read(lsn(at), header.frameBytes);
    bytes.copy(wal, at - header.start);
    at += bytes.length;
    bytes.fill(0);
  }
  reader.wipe();
  return wal;
}

/** The one call that the reader makes. */
function rangesOf(source: ByteSource): ObjectStore {
  const get = async (key: string, { range }: { range?: { offset: number; length: number } } = {}) => ({
    key,
    size: source.size,
    tag: '',
    bytes: await source.read(range?.offset ?? 0, range?.length ?? source.size),
  });
  return { get } as unknown as ObjectStore;
}
