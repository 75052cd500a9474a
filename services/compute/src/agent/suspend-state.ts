/** Collects, after a fast shutdown, the small state that WAL does not carry: cumulative statistics, sequence pages (WAL runs up to 32 values
 *  ahead), free space maps, init forks, replication slots. Read from the stopped data directory. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { BundleFile, BundlePage, SuspendState } from '@lakebase/api';
import { BLCKSZ, FORK_FSM, FORK_INIT, FORK_MAIN, type Lsn, RELSEG_BLOCKS, type RelTag, parseRelPath, relPath } from '@lakebase/ids';
import { slotFiles } from './replication-slots.ts';
import { BLOCK_DIRTY, type ResidentMap } from '../resident-map.ts';
import { type ScratchCipher, readScratchFile } from '../scratch-cipher.ts';

/** SEQ_MAGIC, sequence.c: in the 8-byte special area at the end of the page. */
const SEQUENCE_MAGIC = 0x1717;
const FSM_PAGES_MAX = 4_096;

export function collectSuspendState(pgdata: string, map: ResidentMap, lsn: Lsn, cipher: ScratchCipher | null): SuspendState {
  return { lsn, files: stateFiles(pgdata, cipher), pages: statePages(pgdata, map, cipher) };
}

function stateFiles(pgdata: string, cipher: ScratchCipher | null): BundleFile[] {
  const files: BundleFile[] = [];
  const take = (path: string): void => {
    if (existsSync(join(pgdata, path))) files.push({ path, bytes: readScratchFile(cipher, join(pgdata, path)) });
  };
  for (const name of readdirSync(join(pgdata, 'pg_stat'))) take(`pg_stat/${name}`); // Postgres's own, and pg_stat_statements'
  files.push(...slotFiles(pgdata, cipher));
  return files;
}

function statePages(pgdata: string, map: ResidentMap, cipher: ScratchCipher | null): BundlePage[] {
  const pages: BundlePage[] = [];
  let fsmPages = 0;
  for (const path of relationFiles(pgdata)) {
    const parsed = parseRelPath(path);
    if (parsed === undefined) continue;
    const { tag, segment } = parsed;
    // Init forks are in WAL, but for those of access methods that log with generic WAL: it leaves out unlogged relations, init fork included (bloom).
    if (tag.fork !== FORK_INIT) {
      if (tag.fork === FORK_MAIN ? !maybeSequence(pgdata, path) : tag.fork !== FORK_FSM) continue;
      if (isUnlogged(pgdata, map, tag, path)) continue;
    }
    const bytes = readScratchFile(cipher, join(pgdata, path));
    if (tag.fork === FORK_MAIN && !isSequence(bytes)) continue;
    for (let block = 0; block * BLCKSZ + BLCKSZ <= bytes.length; block++) {
      if (!isDirty(map, tag, segment, block)) continue;
      if (tag.fork === FORK_FSM && fsmPages++ >= FSM_PAGES_MAX) break; // a lost free space map costs space, never answers
      pages.push({ tag, block: segment * RELSEG_BLOCKS + block, bytes: bytes.subarray(block * BLCKSZ, (block + 1) * BLCKSZ) });
    }
  }
  return pages;
}

/** Written by this compute: marked so in the map, or in a file or beyond a length that storage never had. */
function isDirty(map: ResidentMap, tag: RelTag, segment: number, block: number): boolean {
  const index = map.find(tag, segment);
  if (index < 0) return true;
  const entry = map.entry(index);
  return entry.dropped || block >= entry.nblocks || map.state(index, block) === BLOCK_DIRTY;
}

/** A sequence is one page. */
const maybeSequence = (pgdata: string, path: string): boolean => statSync(join(pgdata, path)).size === BLCKSZ;

function* relationFiles(pgdata: string): Generator<string> {
  for (const name of readdirSync(join(pgdata, 'global'))) yield `global/${name}`;
  for (const db of readdirSync(join(pgdata, 'base'))) {
    for (const name of readdirSync(join(pgdata, 'base', db))) yield `base/${db}/${name}`;
  }
  for (const path of readdirSync(join(pgdata, 'pg_tblspc'), { recursive: true, encoding: 'utf8' })) yield `pg_tblspc/${path}`;
}

/** The init fork's file may not exist yet: the shim makes files when their names are first used. */
const isUnlogged = (pgdata: string, map: ResidentMap, tag: RelTag, path: string): boolean => {
  const init: RelTag = { ...tag, fork: FORK_INIT };
  return map.find(init, 0) >= 0 || existsSync(join(pgdata, dirname(path), basename(relPath(init))));
};

const isSequence = (page: Buffer): boolean =>
  page.length === BLCKSZ && page.readUInt16LE(16) === BLCKSZ - 8 && page.readUInt32LE(BLCKSZ - 8) === SEQUENCE_MAGIC;
