/** Recognises a stored file by its first bytes and shows it. Whatever the bytes are, the outcome is a report or one of our errors. */
import type { InspectReport } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import { LAYER_MAGIC, type ObjectKeys } from '@lakebase/layers';
import { CONTROL_FILE_MAGIC } from '@lakebase/wal-quorum';
import { REFERENCES_MAGIC, SEGMENT_MAGIC, type SegmentHeader } from '@lakebase/wal-store';
import type { ByteSource } from './byte-source.ts';
import { reportControl } from './control-report.ts';
import { reportLayer } from './layer-report.ts';
import { type Identity, isSealedMagic, reportSealed } from './sealed-report.ts';
import { reportReferences, reportSegment } from './segment-report.ts';
import { isWalObject, reportWalObject } from './wal-object-report.ts';

export interface InspectOptions {
  /** Rows of each table. */
  readonly limit?: number | undefined;
  /** Of a project that the file belongs to. */
  readonly keys?: ObjectKeys | undefined;
  /** The newest wrapping of the object's key, from the index that names it. */
  readonly reference?: Buffer | undefined;
  readonly segmentReference?: ((header: SegmentHeader) => Buffer) | undefined;
  /** Of sealed objects, which do not say it themselves. */
  readonly identity?: Identity | undefined;
  readonly frame?: number | undefined;
  readonly whole?: boolean | undefined;
  readonly major?: number | undefined;
  readonly from?: Lsn | undefined;
}

export async function inspect(source: ByteSource, o: InspectOptions = {}): Promise<InspectReport> {
  if (source.size < 4) throw new LakebaseError('CORRUPT', `${source.name} has ${source.size} bytes: no file of ours is so short`);
  const magic = (await source.read(0, 4)).readUInt32BE(0);
  const { keys, limit } = o;
  const openWith = keys === undefined ? undefined : { keys, reference: o.reference };
  if (magic === LAYER_MAGIC) return reportLayer(source, { openWith, limit, frame: o.frame, whole: o.whole });
  if (isSealedMagic(magic)) return reportSealed(source, magic, { openWith, limit, identity: o.identity });
  if (magic === SEGMENT_MAGIC) {
    const referenceOf = o.segmentReference ?? ((header: SegmentHeader): Buffer => header.keyReference);
    return reportSegment(source, { openWith: keys === undefined ? undefined : { keys, referenceOf }, limit, major: o.major, from: o.from });
  }
  if (magic === CONTROL_FILE_MAGIC) return reportControl(source, limit);
  if (magic === REFERENCES_MAGIC) return reportReferences(source, limit);
  if (await isWalObject(source)) return reportWalObject(source, { openWith, limit, major: o.major, from: o.from });
  const first = (await source.read(0, Math.min(16, source.size))).toString('hex');
  throw new LakebaseError('INVALID_ARGUMENT', `${source.name} is none of our files: it begins with ${first}`);
}

const IDENTITY = /(?:^|\/)([0-9a-f]{32})\/(?:timelines\/)?([0-9a-f]{32})\/(?:wal\/)?[^/]+$/;

/** Project and timeline out of a path on disk or a key in the object store. */
export function identityOf(path: string): Identity | undefined {
  const [, project, timeline] = IDENTITY.exec(path.replaceAll('\\', '/')) ?? [];
  return project === undefined || timeline === undefined ? undefined : { project, timeline };
}
