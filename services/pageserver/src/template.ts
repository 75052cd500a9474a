/** Templates: a cleanly shut down data directory, imported once per major as image layers, from which every new timeline is a copy.
 *  The stored form is that of a timeline (identity of zeros), so the same readers and checks serve. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable, pipeline } from 'node:stream';
import { promisify } from 'node:util';
import { LakebaseError, type Logger } from '@lakebase/base';
import type { TemplateInfo } from '@lakebase/api';
import { BLCKSZ, GLOBAL_TABLESPACE, type Lsn, RELSEG_BLOCKS, formatLsn, parseRelPath } from '@lakebase/ids';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_VALUE,
  KIND_CHECKPOINT,
  KIND_CONTROL,
  KIND_DATABASE,
  KIND_RELMAP,
  KIND_REL_SIZE,
  KIND_SLRU_PAGE,
  KIND_SLRU_SEGMENT,
  type LayerDescriptor,
  LayerReader,
  LayerWriter,
  type TimelineIndex,
  encodeKey,
  keyFromText,
  layerBytesOf,
  layerName,
  metaSeries,
  readIndex,
  relPages,
} from '@lakebase/layers';
import {
  CONTROL_FILE_PATH,
  DB_SHUTDOWNED,
  encodeCheckPoint,
  endOfRecord,
  readControlFile,
  SHUTDOWN_CHECKPOINT_BYTES,
} from '@lakebase/pg-format';
import { extract } from 'tar-stream';
import { type TimelineFiles, TimelineStorage } from './storage.ts';
import { INDEX_FILE, ensureDirectory } from './storage-directory.ts';
import { PAGES_PER_SEGMENT, parseSegmentPath } from './slru.ts';

export const TEMPLATE_ID: string = '0'.repeat(32);
/** A pristine cluster is about 40 MB; more is not a template. */
const TEMPLATE_BYTES_MAX = 2 ** 30;
const DRAIN_BYTES = 1 << 20;
const ZEROS = Buffer.alloc(BLCKSZ);

interface Item {
  readonly key: Buffer;
  readonly kind: number;
  readonly bytes: Buffer;
}

/** Reads the tar, checks it is a clean shutdown of `major`, and replaces the template. */
export async function importTemplate(body: Readable, major: number, files: TimelineFiles): Promise<TemplateInfo> {
  const items: Item[] = [];
  const sizes = new Map<string, { key: Buffer; blocks: number }>();
  const segments = new Map<string, { key: Buffer; pages: number }>();
  let control: Buffer | undefined;
  let version: string | undefined;
  const value = (key: Buffer, bytes: Buffer): void => void items.push({ key, kind: ENTRY_VALUE, bytes });
  const page = (key: Buffer, bytes: Buffer): void => {
    if (!bytes.equals(ZEROS)) items.push({ key, kind: ENTRY_IMAGE, bytes });
  };

  await readTar(body, (path, bytes) => {
    const relation = parseRelPath(path);
    const slru = parseSegmentPath(path);
    const map = /^(?:(global)|base\/([0-9]{1,10}))\/pg_filenode\.map$/.exec(path);
    const database = /^base\/([0-9]{1,10})\/PG_VERSION$/.exec(path);
    if (path === CONTROL_FILE_PATH) control = bytes;
    else if (path === 'PG_VERSION') version = bytes.toString('latin1').trim();
    else if (map !== null)
      value(encodeKey(metaSeries(KIND_RELMAP, map[1] !== undefined ? GLOBAL_TABLESPACE : 1663, Number(map[2] ?? 0)), 0), bytes);
    else if (database !== null) value(encodeKey(metaSeries(KIND_DATABASE, 1663, Number(database[1])), 0), Buffer.from([1]));
    else if (relation !== undefined || slru !== undefined) {
      if (bytes.length % BLCKSZ !== 0) throw new LakebaseError('INVALID_ARGUMENT', `${path} is not a whole number of pages`);
      const blocks = bytes.length / BLCKSZ;
      if (relation !== undefined) {
        const series = relPages(relation.tag);
        const first = relation.segment * RELSEG_BLOCKS;
        const key = encodeKey({ ...series, kind: KIND_REL_SIZE }, 0);
        const known = sizes.get(key.toString('hex'))?.blocks ?? 0;
        sizes.set(key.toString('hex'), { key, blocks: Math.max(known, first + blocks) });
        for (let b = 0; b < blocks; b++) page(encodeKey(series, first + b), bytes.subarray(b * BLCKSZ, (b + 1) * BLCKSZ));
      } else if (slru !== undefined) {
        const key = encodeKey(metaSeries(KIND_SLRU_SEGMENT, 0, 0, slru.kind), slru.segment);
        segments.set(key.toString('hex'), { key, pages: blocks });
        const series = metaSeries(KIND_SLRU_PAGE, 0, 0, slru.kind);
        for (let b = 0; b < blocks; b++)
          page(encodeKey(series, slru.segment * PAGES_PER_SEGMENT + b), bytes.subarray(b * BLCKSZ, (b + 1) * BLCKSZ));
      }
    }
  });

  if (control === undefined || version === undefined)
    throw new LakebaseError('INVALID_ARGUMENT', 'the tar is not a data directory: PG_VERSION or global/pg_control is missing');
  if (version !== String(major)) throw new LakebaseError('INVALID_ARGUMENT', `the data directory is of Postgres ${version}, not ${major}`);
  const info = readControlFile(control);
  if (info.state !== DB_SHUTDOWNED) throw new LakebaseError('INVALID_ARGUMENT', 'the data directory was not shut down cleanly');
  if (info.checksumVersion !== 0)
    throw new LakebaseError('INVALID_ARGUMENT', 'the data directory has data checksums; make it with initdb --no-data-checksums');
  if (info.blockSize !== BLCKSZ) throw new LakebaseError('UNSUPPORTED', `block size ${info.blockSize}`);
  value(encodeKey(metaSeries(KIND_CONTROL), 0), control);
  value(encodeKey(metaSeries(KIND_CHECKPOINT), 0), encodeCheckPoint(info.checkPointCopy));
  for (const { key, blocks } of sizes.values()) value(key, u32(blocks));
  for (const { key, pages } of segments.values()) value(key, u32(pages));
  items.sort((a, b) => a.key.compare(b.key));

  const prev = info.checkPoint;
  const end = endOfRecord(prev, SHUTDOWN_CHECKPOINT_BYTES);
  // One at a time and whole or not at all: a half-written template has no index.
  await rm(files.directory, { recursive: true, force: true });
  await ensureDirectory(files.directory);
  const writer = await LayerWriter.create(
    join(files.directory, layerName('image', end, end, 1, 0, 0)),
    imageIdentity(files, end),
    files.keys,
  );
  for (const item of items) {
    writer.add(item.key, end, item.kind, ARG_STOP, item.bytes);
    if (writer.pendingBytes >= DRAIN_BYTES) await writer.drain();
  }
  const layer = await writer.finish();
  await TimelineStorage.create(files, firstIndex(files, { major, systemId: String(info.systemId), end, prev, layers: [layer], extra: {} }));
  return { major, endLsn: formatLsn(end), prevRecordLsn: formatLsn(prev), layerBytes: layer.bytes };
}

export async function templateInfo(files: TimelineFiles): Promise<TemplateInfo | undefined> {
  const found = await readIndex(join(files.directory, INDEX_FILE), files.project, files.timeline, files.keys);
  if (found === undefined) return undefined;
  const { index } = found;
  return {
    major: index.pgVersion,
    endLsn: formatLsn(index.startLsn as Lsn),
    prevRecordLsn: formatLsn(index.startPrevRecordLsn as Lsn),
    layerBytes: layerBytesOf(index),
  };
}

/** Makes a timeline's directory from the template: every frame sealed again under the new identity and the project's
 *  own keys, so that nothing of a project outlives its keys in a template. The control file still carries the
 *  template's system id: a timeline puts its own in when it is attached. */
export async function instantiate(
  template: TimelineFiles,
  target: TimelineFiles,
  systemId: string,
  extra: Readonly<Record<string, unknown>>,
): Promise<void> {
  const found = await readIndex(join(template.directory, INDEX_FILE), template.project, template.timeline, template.keys);
  if (found === undefined)
    throw new LakebaseError('NOT_FOUND', 'there is no template for this Postgres version; import one with PUT /v1/templates/:major');
  const { index } = found;
  await template.keys.load(index.layers.map((d) => keyFromText(d.key)));
  await rm(target.directory, { recursive: true, force: true });
  await ensureDirectory(target.directory);
  const layers: LayerDescriptor[] = [];
  const end = index.startLsn as Lsn;
  for (const [i, d] of index.layers.entries()) {
    const reader = new LayerReader(join(template.directory, d.name), template.keys, template.cache, keyFromText(d.key));
    const writer = await LayerWriter.create(
      join(target.directory, layerName('image', end, end, 1, i, 0)),
      imageIdentity(target, end),
      target.keys,
    );
    try {
      await writer.copyFrom(reader);
      layers.push(await writer.finish());
    } catch (error) {
      await writer.abandon();
      throw error;
    } finally {
      reader.close();
    }
  }
  const prev = index.startPrevRecordLsn as Lsn;
  await TimelineStorage.create(target, firstIndex(target, { major: index.pgVersion, systemId, end, prev, layers, extra }));
}

/** See {@link TimelineStorage.rewrap}. */
export async function rewrapTemplate(files: TimelineFiles, kekVersion: number, log: Logger): Promise<number> {
  const options = { compactionLayers: Number.POSITIVE_INFINITY, layerFileBytes: 0, maxRecordsPerPage: 0 };
  const storage = await TimelineStorage.open(files, options, () => Promise.resolve([]), log);
  if (storage === undefined) return 0;
  try {
    return await storage.rewrap(kekVersion);
  } finally {
    await storage.close();
  }
}

const imageIdentity = (files: TimelineFiles, lsn: Lsn) => ({
  project: files.project,
  timeline: files.timeline,
  kind: 'image' as const,
  level: 1,
  generation: 0,
  startLsn: lsn,
  endLsn: lsn,
  compress: true,
});

function firstIndex(
  files: TimelineFiles,
  t: { major: number; systemId: string; end: Lsn; prev: Lsn; layers: readonly LayerDescriptor[]; extra: Readonly<Record<string, unknown>> },
): TimelineIndex {
  return {
    project: files.project,
    timeline: files.timeline,
    version: 0,
    generation: 0,
    pgVersion: t.major,
    systemId: t.systemId,
    startLsn: t.end,
    startPrevRecordLsn: t.prev,
    diskConsistentLsn: t.end,
    prevRecordLsn: t.prev,
    nextLayerNumber: 2,
    layers: t.layers,
    suspend: null,
    bootSet: null,
    extra: t.extra,
  };
}

async function readTar(body: Readable, onFile: (path: string, bytes: Buffer) => void): Promise<void> {
  const tar = extract();
  let total = 0;
  tar.on('entry', (header, stream, next) => {
    const chunks: Buffer[] = [];
    stream.on('data', (data) => {
      const chunk = data as Buffer;
      total += chunk.length;
      if (total > TEMPLATE_BYTES_MAX)
        tar.destroy(new LakebaseError('RESOURCE_EXHAUSTED', `a template of more than ${TEMPLATE_BYTES_MAX} bytes`));
      else chunks.push(chunk);
    });
    stream.on('end', () => {
      try {
        if (header.type === 'file') onFile(header.name.replace(/^\.\//, ''), Buffer.concat(chunks));
        next();
      } catch (error) {
        next(error instanceof Error ? error : new Error(String(error)));
      }
    });
    stream.on('error', next);
  });
  try {
    await promisify(pipeline)(body, tar);
  } catch (error) {
    if (error instanceof LakebaseError) throw error;
    throw new LakebaseError('INVALID_ARGUMENT', `the template is not a readable tar: ${(error as Error).message}`, { cause: error });
  }
}

function u32(value: number): Buffer {
  const b = Buffer.allocUnsafe(4);
  b.writeUInt32BE(value, 0);
  return b;
}
