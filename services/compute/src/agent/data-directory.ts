/** Lays out a data directory from a start bundle: small files by value, relation segments as entries of the resident map (the shim makes the
 *  sparse files in the postmaster), one WAL segment with a synthesised shutdown checkpoint, and pg_control that points at it.
 *  Invariant: the directory was empty; every start is a fresh start. */
import { constants, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { must } from '@lakebase/base';
import type { BundlePage, BundleRelation, StartBundle } from '@lakebase/api';
import {
  BLCKSZ,
  FORK_INIT,
  FORK_MAIN,
  type ForkNumber,
  type Lsn,
  RELSEG_BLOCKS,
  type RelTag,
  WAL_SEGMENT_BYTES,
  relPath,
  tablespaceDirectory,
  segmentNumber,
  segmentOffset,
  walFileName,
} from '@lakebase/ids';
import { CONTROL_FILE_PATH, decodeCheckPoint, patchControlFile, readControlFile, synthesiseStart } from '@lakebase/pg-format';
import { BLOCK_CLEAN, ResidentMap, type ResidentSegment } from '../resident-map.ts';
import { type ScratchCipher, ScratchFile, writeScratchFile } from '../scratch-cipher.ts';
import { type RelayEntry, relayEntry } from './page-relay.ts';

/** Empty directories initdb makes; Postgres expects them all. */
const DIRECTORIES = [
  'base',
  'global',
  'pg_commit_ts',
  'pg_dynshmem',
  'pg_logical',
  'pg_logical/mappings',
  'pg_logical/snapshots',
  'pg_multixact',
  'pg_multixact/members',
  'pg_multixact/offsets',
  'pg_notify',
  'pg_replslot',
  'pg_serial',
  'pg_snapshots',
  'pg_stat',
  'pg_stat_tmp',
  'pg_subtrans',
  'pg_tblspc',
  'pg_twophase',
  'pg_wal',
  'pg_wal/archive_status',
  'pg_wal/summaries',
  'pg_xact',
];

export interface Layout {
  /** Where the synthesised checkpoint record starts. */
  readonly recordLsn: Lsn;
  /** By index in the resident map. */
  readonly entries: readonly RelayEntry[];
}

export interface LayoutOptions {
  readonly pgdata: string;
  readonly mapPath: string;
  readonly bundle: StartBundle;
  /** Null: plaintext, for tests. */
  readonly cipher: ScratchCipher | null;
  /** Bound on the local disk; null or absent: none until it is measured. */
  readonly cacheBytes?: number | null;
  readonly conf: { readonly postgresql: string; readonly hba: string; readonly ident: string };
}

export function layOut(options: LayoutOptions): Layout {
  const { pgdata, bundle, cipher } = options;
  mkdirSync(pgdata, { mode: 0o700 });
  for (const dir of DIRECTORIES) mkdirSync(join(pgdata, dir), { mode: 0o700 });
  writeSmallFiles(pgdata, bundle, cipher);
  const versionDirectory = versionDirectoryOf(bundle);
  for (const directory of new Set(bundle.relations.map((r) => dirname(relPath(r.tag, 0, versionDirectory)))))
    mkdirSync(join(pgdata, directory), { recursive: true, mode: 0o700 });
  const map = ResidentMap.build(segments(bundle.relations));
  writeBootPages(pgdata, map, bundle.bootPages, cipher, versionDirectory);
  if (typeof options.cacheBytes === 'number') map.setCleanBudget(Math.ceil(options.cacheBytes / BLCKSZ));
  map.write(options.mapPath);
  const recordLsn = writeWalAndControl(pgdata, bundle, cipher);
  writeScratchFile(cipher, join(pgdata, 'postgresql.conf'), options.conf.postgresql);
  writeScratchFile(cipher, join(pgdata, 'postgresql.auto.conf'), '');
  writeScratchFile(cipher, join(pgdata, 'pg_hba.conf'), options.conf.hba);
  writeScratchFile(cipher, join(pgdata, 'pg_ident.conf'), options.conf.ident);
  return { recordLsn, entries: [...map.entries()].map(relayEntry) };
}

/** A file of the bundle with this path stands for a directory: a user tablespace, which may have nothing in it. */
const TABLESPACE = /^pg_tblspc\/[0-9]+\/PG_[0-9_]+$/;

function versionDirectoryOf(bundle: StartBundle): string {
  const control = must(
    bundle.files.find((file) => file.path === CONTROL_FILE_PATH),
    'pg_control in the start bundle',
  );
  return tablespaceDirectory(bundle.major, readControlFile(control.bytes).catalogVersion);
}

function writeSmallFiles(pgdata: string, bundle: StartBundle, cipher: ScratchCipher | null): void {
  const made = new Set<string>();
  for (const file of bundle.files) {
    if (file.path === CONTROL_FILE_PATH) continue; // written last, patched
    const path = join(pgdata, file.path);
    const dir = dirname(path);
    if (!made.has(dir)) {
      mkdirSync(dir, { recursive: true, mode: 0o700 });
      made.add(dir);
    }
    if (TABLESPACE.test(file.path)) mkdirSync(path, { recursive: true, mode: 0o700 });
    else writeScratchFile(cipher, path, file.bytes);
  }
}

/** One entry per 1 GiB segment; an unlogged relation's main fork comes from its init fork, since nothing resets it in a clean start. */
function* segments(relations: readonly BundleRelation[]): Generator<ResidentSegment> {
  for (const { tag, nblocks } of relations) {
    yield* segmentsOf(tag, nblocks, tag.fork);
    if (tag.fork === FORK_INIT) yield* segmentsOf({ ...tag, fork: FORK_MAIN }, nblocks, FORK_INIT);
  }
}

function* segmentsOf(tag: RelTag, nblocks: number, sourceFork: ForkNumber): Generator<ResidentSegment> {
  for (let segment = 0; ; segment++) {
    const blocks = Math.min(nblocks - segment * RELSEG_BLOCKS, RELSEG_BLOCKS);
    yield { tag, segment, nblocks: blocks, sourceFork };
    if (blocks < RELSEG_BLOCKS) return; // md.c wants a last segment that is not full, possibly empty
  }
}

/** Pages that earlier starts touched first are in place before Postgres asks. */
function writeBootPages(
  pgdata: string,
  map: ResidentMap,
  pages: readonly BundlePage[],
  cipher: ScratchCipher | null,
  versionDirectory: string,
): void {
  const open = new Map<number, ScratchFile>();
  try {
    for (const page of pages) {
      const segment = Math.floor(page.block / RELSEG_BLOCKS);
      const block = page.block % RELSEG_BLOCKS;
      const index = map.find(page.tag, segment);
      if (index < 0) continue;
      const entry = map.entry(index);
      if (block >= entry.nblocks || entry.sourceFork !== page.tag.fork) continue;
      let file = open.get(index);
      if (file === undefined) {
        file = new ScratchFile(cipher, join(pgdata, relPath(page.tag, segment, versionDirectory)), 'w');
        open.set(index, file);
        file.truncate(entry.nblocks * BLCKSZ);
      }
      file.write(page.bytes, block * BLCKSZ);
      map.setState(index, block, BLOCK_CLEAN);
    }
  } finally {
    for (const file of open.values()) file[Symbol.dispose]();
  }
}

/** Writes into the segment files of pg_wal; a new one has its full length at once. */
export function writeWal(pgdata: string, at: Lsn, bytes: Buffer, cipher: ScratchCipher | null): void {
  for (let done = 0; done < bytes.length; ) {
    const offset = segmentOffset(at + done);
    const length = Math.min(bytes.length - done, WAL_SEGMENT_BYTES - offset);
    const path = join(pgdata, 'pg_wal', walFileName(segmentNumber(at + done)));
    using file = new ScratchFile(cipher, path, constants.O_RDWR | constants.O_CREAT);
    file.truncate(WAL_SEGMENT_BYTES);
    file.patch(bytes.subarray(done, done + length), offset);
    done += length;
  }
}

function writeWalAndControl(pgdata: string, bundle: StartBundle, cipher: ScratchCipher | null): Lsn {
  const control = must(
    bundle.files.find((file) => file.path === CONTROL_FILE_PATH),
    'pg_control in the start bundle',
  );
  const { lsn, prevRecordLsn, systemId, major } = bundle;
  const start = synthesiseStart({ lsn, prevRecordLsn, systemId, major, checkpoint: decodeCheckPoint(bundle.checkpoint) });
  for (const segment of start.segments)
    for (const piece of segment.pieces) writeWal(pgdata, (segment.startLsn + piece.offset) as Lsn, piece.bytes, cipher);
  writeScratchFile(cipher, join(pgdata, CONTROL_FILE_PATH), patchControlFile(control.bytes, start.controlPatch));
  return start.recordLsn;
}
