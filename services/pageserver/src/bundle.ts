/** Builds the start bundle: everything a compute needs to start at an LSN without redo, pages apart (docs/formats/start-bundle.md). */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  type BlockRef,
  type BundleFile,
  type BundlePage,
  type BundleRelation,
  type StartBundle,
  decodeSuspendState,
  encodeStartBundle,
} from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';
import { BLCKSZ, DEFAULT_TABLESPACE, type ForkNumber, GLOBAL_TABLESPACE, type Lsn, formatLsn, tablespaceDirectory } from '@lakebase/ids';
import { type LayerFiles, type ObjectEntry, SeriesTable, keyFromText, openObject, scanValues, withRemote } from '@lakebase/layers';
import { type CheckPoint, encodeCheckPoint, patchControlFile, readControlFile } from '@lakebase/pg-format';
import { SLRU_COMMIT_TS, SLRU_MULTIXACT_MEMBERS, SLRU_MULTIXACT_OFFSETS, SLRU_XACT, type SlruKind } from '@lakebase/pg-redo';
import { Catalog } from './catalog.ts';
import { MEMBERS_PER_PAGE, OFFSETS_PER_PAGE, PAGES_PER_SEGMENT, SLRU_KINDS, XIDS_PER_PAGE, segmentFileName } from './slru.ts';
import type { Timeline } from './timeline.ts';

export const SUSPEND_OBJECT_MAGIC = 0x4c425350;
export const BOOT_OBJECT_MAGIC = 0x4c424250;
/** pg_control_version 1800 and 1700 name two-phase files by the full xid. */
const FULL_XID_FILES_FROM_MAJOR = 17;
/** Files of a suspend or of a running compute that a start at another LSN may take: slots may resend, statistics are as of then. */
const MAY_BE_OLD = /^(?:pg_replslot|pg_logical\/(?:snapshots|mappings)|pg_stat)\//;
const BOOT_PAGES_AT_ONCE = 64;
/** REPLICATION_STATE_MAGIC. */
const ORIGIN_MAGIC = 0x1257dade;
const EMPTY = Buffer.alloc(0);
/** Transaction status that a bundle carries at most. Two billion transactions, more than Postgres lets live, are 512 MiB of pg_xact. */
const SLRU_BYTES_MAX = 768 * 1024 * 1024;

export async function buildStartBundle(t: Timeline, lsn: Lsn, bootSet: readonly BlockRef[]): Promise<Buffer> {
  const head = lsn === t.lastRecordLsn;
  const prevRecordLsn = head ? t.prevRecordLsn : previousRecord(t, lsn);
  const catalog = head ? t.catalog : await catalogAt(t, lsn);
  const checkpoint = checkpointOf(t, catalog);
  const files: BundleFile[] = [
    { path: 'PG_VERSION', bytes: Buffer.from(`${t.major}\n`) },
    {
      path: 'global/pg_control',
      bytes: head ? catalog.control : patchControlFile(catalog.control, { systemId: BigInt(t.storage.index.systemId) }),
    },
  ];
  const versionDirectory = tablespaceDirectory(t.major, readControlFile(catalog.control).catalogVersion);
  const directoryOf = (spc: number, db: number): string =>
    spc === DEFAULT_TABLESPACE ? `base/${db}` : `pg_tblspc/${spc}/${versionDirectory}${db === 0 ? '' : `/${db}`}`;
  for (const { spc, db } of catalog.databases.values()) {
    if (spc === GLOBAL_TABLESPACE) continue;
    // A tablespace is filed as its database 0: the directory itself, which may be empty.
    if (db === 0) files.push({ path: directoryOf(spc, db), bytes: EMPTY });
    else files.push({ path: `${directoryOf(spc, db)}/PG_VERSION`, bytes: Buffer.from(`${t.major}\n`) });
  }
  for (const { spc, db, bytes } of catalog.relmaps.values())
    files.push({ path: spc === GLOBAL_TABLESPACE ? 'global/pg_filenode.map' : `${directoryOf(spc, db)}/pg_filenode.map`, bytes });
  checkSlruBytes(t, catalog);
  const slru = slruSegments(catalog, checkpoint);
  twophaseFiles(t.major, catalog, files);
  if (catalog.origins.size > 0) files.push({ path: 'pg_logical/replorigin_checkpoint', bytes: originFile(catalog.origins) });

  const suspend = t.storage.index.suspend;
  const cleanSuspend = suspend !== null && suspend.lsn === lsn;
  if (suspend !== null) files.push(...suspendFiles(t, suspend).filter((file) => cleanSuspend || MAY_BE_OLD.test(file.path)));

  const relations: BundleRelation[] = [];
  for (const id of catalog.relations()) {
    const s = catalog.series.get(id);
    relations.push({ tag: { spc: s.spc, db: s.db, rel: s.rel, fork: s.fork as ForkNumber }, nblocks: catalog.blocks(id) });
  }
  relations.sort((a, b) => a.tag.spc - b.tag.spc || a.tag.db - b.tag.db || a.tag.rel - b.tag.rel || a.tag.fork - b.tag.fork);

  // All of the catalog, which goes on with ingest, is taken by now: what follows is read as of `lsn`.
  for (const { kind, segment, pages } of slru) {
    files.push({ path: segmentFileName(kind, segment), bytes: await slruSegment(t, kind, segment, pages, lsn) });
    // Other branches are served in between.
    await nextTurn();
  }
  const bootPages: BundlePage[] = [];
  // Many at once: what is not local is then fetched together.
  for (let at = 0; at < bootSet.length; at += BOOT_PAGES_AT_ONCE) {
    const some = bootSet.slice(at, at + BOOT_PAGES_AT_ONCE);
    const read = await Promise.all(some.map(({ tag, block }) => t.pages(tag, block, 1, lsn)));
    for (const [i, { tag, block }] of some.entries()) {
      const bytes = read[i]?.[0];
      if (bytes !== undefined) bootPages.push({ tag, block, bytes });
    }
  }
  const bundle: StartBundle = {
    cleanSuspend,
    systemId: BigInt(t.storage.index.systemId),
    lsn,
    prevRecordLsn,
    major: t.major,
    checkpoint: encodeCheckPoint(checkpoint),
    files,
    relations,
    bootPages,
  };
  return encodeStartBundle(bundle);
}

/** A start at an LSN in the past: small values as of then; "next" counters as of now, which is safe (they may only be too high). */
async function catalogAt(t: Timeline, lsn: Lsn): Promise<Catalog> {
  const values = await withRemote(() => scanValues(t.memoryLayers(), t.storage.set, lsn));
  return Catalog.load(values, new SeriesTable(), lsn);
}

function checkpointOf(t: Timeline, catalog: Catalog): CheckPoint {
  const now = t.catalog.checkpoint;
  const then = catalog.checkpoint ?? now;
  if (now === undefined || then === undefined) throw new LakebaseError('CORRUPT', `timeline ${t.id} has no checkpoint counters`);
  return {
    ...then,
    nextFullXid: now.nextFullXid,
    nextOid: now.nextOid,
    nextMulti: now.nextMulti,
    nextMultiOffset: now.nextMultiOffset,
  };
}

function previousRecord(t: Timeline, lsn: Lsn): Lsn {
  const index = t.storage.index;
  if (lsn === index.startLsn) return index.startPrevRecordLsn as Lsn;
  if (lsn === index.diskConsistentLsn) return index.prevRecordLsn as Lsn;
  throw new LakebaseError(
    'CONFLICT',
    `a start at ${formatLsn(lsn)} is not possible: the timeline has gone on to ${formatLsn(t.lastRecordLsn)}`,
  );
}

function slruSegments(catalog: Catalog, checkpoint: CheckPoint): { kind: SlruKind; segment: number; pages: number }[] {
  // Start-up reads the pages the counters stand on, whether or not anything was written there yet.
  const needed = new Map<SlruKind, number>([
    [SLRU_XACT, Math.floor((checkpoint.nextFullXid % 0x1_0000_0000) / XIDS_PER_PAGE)],
    [SLRU_MULTIXACT_OFFSETS, Math.floor(checkpoint.nextMulti / OFFSETS_PER_PAGE)],
    [SLRU_MULTIXACT_MEMBERS, Math.floor(checkpoint.nextMultiOffset / MEMBERS_PER_PAGE)],
  ]);
  const found: { kind: SlruKind; segment: number; pages: number }[] = [];
  for (const kind of SLRU_KINDS) {
    const segments = new Map(catalog.slru[kind]);
    const page = needed.get(kind);
    if (page !== undefined) {
      const segment = Math.floor(page / PAGES_PER_SEGMENT);
      segments.set(segment, Math.max(segments.get(segment) ?? 0, (page % PAGES_PER_SEGMENT) + 1));
    }
    if (kind === SLRU_COMMIT_TS && segments.size === 0) continue;
    for (const [segment, pages] of [...segments].sort((a, b) => a[0] - b[0])) found.push({ kind, segment, pages });
  }
  return found;
}

async function slruSegment(t: Timeline, kind: SlruKind, segment: number, pages: number, lsn: Lsn): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(pages * BLCKSZ);
  // At once: what is not local is then fetched together.
  const read = Array.from({ length: pages }, (_, i) => t.slruPage(kind, segment * PAGES_PER_SEGMENT + i, lsn));
  for (const [i, page] of (await Promise.all(read)).entries()) page.copy(bytes, i * BLCKSZ);
  return bytes;
}

/** WAL that lies may name any page: nothing is allocated for what no bundle can carry. */
function checkSlruBytes(t: Timeline, catalog: Catalog): void {
  let pages = 0;
  for (const segments of catalog.slru) for (const n of segments.values()) pages += n;
  if (pages * BLCKSZ > SLRU_BYTES_MAX)
    throw new LakebaseError(
      'RESOURCE_EXHAUSTED',
      `branch ${t.id} cannot start: its transaction status (pg_xact, pg_multixact, pg_commit_ts) takes ${Math.round((pages * BLCKSZ) / 1_048_576)} MiB, too large for a start (at most ${SLRU_BYTES_MAX / 1_048_576}); VACUUM FREEZE would have made it small`,
    );
}

function twophaseFiles(major: number, catalog: Catalog, files: BundleFile[]): void {
  for (const [fullXid, bytes] of catalog.twophase) {
    const crc = Buffer.allocUnsafe(4);
    crc.writeUInt32LE(crc32c(bytes), 0);
    const hex = (n: number): string => n.toString(16).toUpperCase().padStart(8, '0');
    const xid = hex(fullXid % 0x1_0000_0000);
    const name = major >= FULL_XID_FILES_FROM_MAJOR ? hex(Math.floor(fullXid / 0x1_0000_0000)) + xid : xid;
    files.push({ path: `pg_twophase/${name}`, bytes: Buffer.concat([bytes, crc]) });
  }
}

/** replorigin_checkpoint: magic, (u16 origin, 6 bytes padding, u64 remote LSN)…, CRC-32C of all before. */
function originFile(origins: ReadonlyMap<number, number>): Buffer {
  const bytes = Buffer.alloc(4 + origins.size * 16 + 4);
  bytes.writeUInt32LE(ORIGIN_MAGIC, 0);
  let at = 4;
  for (const [id, lsn] of origins) {
    bytes.writeUInt16LE(id, at);
    bytes.writeUInt32LE(lsn % 0x1_0000_0000, at + 8);
    bytes.writeUInt32LE(Math.floor(lsn / 0x1_0000_0000), at + 12);
    at += 16;
  }
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, at)), at);
  return bytes;
}

function suspendFiles(t: Timeline, entry: ObjectEntry): readonly BundleFile[] {
  return decodeSuspendState(readObject(SUSPEND_OBJECT_MAGIC, t.storage.files, entry)).files;
}

/** A sealed object that the index names. Its key was loaded when the timeline was attached. */
export function readObject(magic: number, files: LayerFiles, { file, key }: ObjectEntry): Buffer {
  const path = join(files.directory, file);
  const name = { project: files.project, timeline: files.timeline, name: file };
  return openObject(magic, name, readFileSync(path), files.keys, path, keyFromText(key));
}
