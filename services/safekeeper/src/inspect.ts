/** What `lakebase inspect` asks of a safekeeper: its files of a timeline, and the WAL objects of it, opened with the project's keys. */
import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { InspectReport, InspectRequest } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { parseLsn, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { ReportBuilder, bufferSource, fileSource, inspect } from '@lakebase/inspect';
import type { ProjectKeys } from '@lakebase/keys';
import { timelineObject } from '@lakebase/object-store';
import { type WalArchive, decodeReferences, decodeTrailer } from '@lakebase/wal-store';
import type { Timelines } from './timelines.ts';
import { WAL_DIR, type WalTimeline } from './wal-timeline.ts';

const OBJECT_BYTES_MAX = 256 << 20;

export async function inspectWal(
  timelines: Timelines,
  keysOf: (project: string) => ProjectKeys,
  r: InspectRequest,
): Promise<InspectReport> {
  const t = timelines.get(parseProjectUid(r.project), parseTimelineId(r.timeline));
  if (r.name === '') return listing(t);
  const name = r.name.startsWith('wal/') ? r.name.slice(4) : r.name;
  const path = [join(t.dir, name), join(t.dir, WAL_DIR, name)].find((p) => statSync(p, { throwIfNoEntry: false })?.isFile() === true);
  const keys = keysOf(t.project);
  const common = { keys, limit: r.limit, major: majorOf(t), from: r.from === undefined ? undefined : parseLsn(r.from), whole: r.whole };
  if (path !== undefined && r.fromStore !== true) {
    const references = segmentReferences(t);
    const source = await fileSource(path);
    try {
      return await inspect(source, { ...common, segmentReference: (h) => references.get(h.salt.toString('hex')) ?? h.keyReference });
    } finally {
      await source.close();
    }
  }
  return inspectObject(t, name, common);
}

async function inspectObject(t: WalTimeline, name: string, common: object): Promise<InspectReport> {
  const archive = t.archive as WalArchive | undefined;
  if (archive === undefined) throw new LakebaseError('NOT_FOUND', `${t.dir} has no file ${name}, and this safekeeper has no object store`);
  const { store } = archive.options;
  const key = timelineObject(t.project, t.timeline, `wal/${name}`);
  const { size } = await store.head(key);
  if (size > OBJECT_BYTES_MAX) throw new LakebaseError('CORRUPT', `object ${key} has ${size} bytes; no WAL object is so long`);
  const { bytes } = await store.get(key);
  const reference = await newestReference(archive, bytes, key);
  return inspect(bufferSource(name, bytes), { ...common, reference });
}

/** Of a damaged object nothing is known: the report says so. */
async function newestReference(archive: WalArchive, bytes: Buffer, key: string): Promise<Buffer | undefined> {
  try {
    return await archive.references.look(decodeTrailer(bytes.subarray(-8_192), bytes.length, key).header.objectId);
  } catch {
    return undefined;
  }
}

/** `server_version_num`, or the major itself. */
const majorOf = ({ control }: WalTimeline): number =>
  control.pgVersion >= 10_000 ? Math.floor(control.pgVersion / 10_000) : control.pgVersion;

function segmentReferences(t: WalTimeline): ReadonlyMap<string, Buffer> {
  const path = join(t.dir, WAL_DIR, 'references');
  try {
    return existsSync(path) ? decodeReferences(readFileSync(path)) : new Map();
  } catch {
    return new Map();
  }
}

function listing(t: WalTimeline): InspectReport {
  const files = (sub: string): (string | number)[][] =>
    readdirSync(join(t.dir, sub), { withFileTypes: true })
      .filter((e) => e.isFile())
      .map((e) => e.name)
      .sort()
      .map((name) => [join(sub, name), statSync(join(t.dir, sub, name)).size]);
  const status = t.status();
  const report = new ReportBuilder('WAL timeline', `${t.project}/${t.timeline}`, 1_000);
  for (const [label, value] of Object.entries(status))
    report.field(label, typeof value === 'object' ? JSON.stringify(value) : (value as string | number));
  return report.table(`files in ${t.dir}`, ['name', 'bytes'], [...files(''), ...files(WAL_DIR)]).done();
}
