/** Compares the oracle's store with the files of a stock standby that replayed the same WAL and shut down.
 *  Invariant: both directions are checked: a file only one side has is a difference. Pages are compared without their LSN and checksum;
 *  a standby without queries sets no hint bits, so everything else must be equal, stale bytes in the hole included. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BLCKSZ, FORK_FSM, FORK_VM, parseRelPath, type RelTag, relPath } from '@lakebase/ids';
import { initPage, isNewPage } from '@lakebase/pg-format';
import { fullXidAt, MULTIXACT_OFFSETS_PER_PAGE, SLRU_MULTIXACT_OFFSETS } from '@lakebase/pg-redo';
import { firstDifferences } from './diff.ts';
import { type Mismatch, type PageStore, readSlru, SLRU_DIRS, type StoredRel } from './page-store.ts';
import { maskLsnAndChecksum } from './mask.ts';

export interface Comparison {
  relations: number;
  pages: number;
  vmPages: number;
  fsmPages: number;
  slruPages: number;
  twophase: number;
  relmaps: number;
  origins: number;
  differences: Mismatch[];
  differenceCount: number;
}

export function compareWithStandby(store: PageStore, standbyDir: string): Comparison {
  const result: Comparison = {
    relations: 0,
    pages: 0,
    vmPages: 0,
    fsmPages: 0,
    slruPages: 0,
    twophase: 0,
    relmaps: 0,
    origins: 0,
    differences: [],
    differenceCount: 0,
  };
  const seen = new Set<StoredRel>();
  for (const tag of relationFiles(standbyDir)) {
    const rel = store.rel(tag);
    seen.add(rel);
    compareRelation(result, rel, readRelation(standbyDir, tag));
  }
  for (const rel of store.rels.values()) {
    if (!seen.has(rel) && rel.exists) differ(result, relPath(rel.tag), `we have ${rel.pages.length} blocks, the standby has no such file`);
  }
  SLRU_DIRS.forEach((dir, kind) => {
    const theirs = readSlru(join(standbyDir, dir));
    if (kind === SLRU_MULTIXACT_OFFSETS) completeNextMultixact(store, theirs);
    compareSlru(result, dir, store.slru[kind] as Map<number, Buffer>, theirs);
  });
  compareRelmaps(result, store, standbyDir);
  compareTwophase(result, store, standbyDir);
  compareOrigins(result, store, standbyDir);
  return result;
}

/** Makes one bit wrong in each kind of thing compared; the comparison must notice every one. Ruins the store. */
export function blindSpots(store: PageStore, standbyDir: string, known: Comparison): string[] {
  const some = (fork: number): Buffer | undefined =>
    [...store.rels.values()].find((r) => r.exists && r.tag.db !== 0 && r.tag.fork === fork && r.pages.length > 0)?.pages.at(-1);
  const slru = (kind: number): Buffer | undefined => [...(store.slru[kind]?.values() ?? [])].at(-1);
  const spoilt: [page: Buffer | undefined, at: number][] = [
    [some(FORK_VM), 24],
    [some(FORK_FSM), 5000],
    [some(0), 8191],
    [slru(0), 17],
    [slru(1), 17],
    [slru(2), 17],
    [slru(3), 17],
    [store.relmapOf(1664, 0), 20],
    [[...store.twophase.values()][0], 4],
  ];
  for (const [page, at] of spoilt) if (page !== undefined) page[at] = (page[at] as number) ^ 1;
  const noticed = compareWithStandby(store, standbyDir).differenceCount - known.differenceCount;
  return noticed === spoilt.length ? [] : [`${spoilt.length - noticed} of ${spoilt.length} kinds of file`];
}

function differ(result: Comparison, where: string, detail: string): void {
  result.differenceCount++;
  if (result.differences.length < 60) result.differences.push({ where, detail });
}

function relationFiles(dir: string): RelTag[] {
  const dbs = readdirSync(join(dir, 'base')).filter((name) => /^[0-9]+$/.test(name));
  const tags: RelTag[] = [];
  for (const sub of ['global', ...dbs.map((db) => `base/${db}`)]) {
    for (const name of readdirSync(join(dir, sub))) {
      const parsed = parseRelPath(`${sub}/${name}`);
      if (parsed !== undefined && parsed.segment === 0) tags.push(parsed.tag);
    }
  }
  return tags;
}

function readRelation(dir: string, tag: RelTag): Buffer {
  const parts: Buffer[] = [];
  for (let segment = 0; existsSync(join(dir, relPath(tag, segment))); segment++) parts.push(readFileSync(join(dir, relPath(tag, segment))));
  return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
}

function compareRelation(result: Comparison, rel: StoredRel, theirs: Buffer): void {
  const name = relPath(rel.tag);
  const blocks = theirs.length / BLCKSZ;
  result.relations++;
  if (!rel.exists) return differ(result, name, `the standby has ${blocks} blocks, we have no such fork`);
  if (rel.pages.length !== blocks) differ(result, name, `we have ${rel.pages.length} blocks, the standby ${blocks}`);
  for (let block = 0; block < Math.min(blocks, rel.pages.length); block++) {
    result.pages++;
    if (rel.tag.fork === FORK_VM) result.vmPages++;
    if (rel.tag.fork === FORK_FSM) result.fsmPages++;
    const ours = Buffer.from(rel.pages[block] as Buffer);
    const other = Buffer.from(theirs.subarray(block * BLCKSZ, (block + 1) * BLCKSZ));
    if (rel.tag.fork === FORK_FSM) for (const page of [ours, other]) if (isNewPage(page)) initPage(page, 0); // initialised on first read
    maskLsnAndChecksum(ours);
    maskLsnAndChecksum(other);
    if (!ours.equals(other)) differ(result, `${name} block ${block}`, firstDifferences(ours, other));
  }
}

/** Where the next multixact's members will start: the current minor releases write it with the one before, older ones (16.2) do
 *  not. We always do: whoever does not expect it overwrites it, and start-up clears what is not in use. */
function completeNextMultixact(store: PageStore, theirs: Map<number, Buffer>): void {
  const { nextMulti } = store.counterModel;
  const page = Math.floor(nextMulti / MULTIXACT_OFFSETS_PER_PAGE);
  const at = (nextMulti % MULTIXACT_OFFSETS_PER_PAGE) * 4;
  const entry = theirs.get(page);
  const ours = store.slru[SLRU_MULTIXACT_OFFSETS]?.get(page);
  if (entry !== undefined && ours !== undefined && entry.readUInt32LE(at) === 0) ours.copy(entry, at, at, at + 4);
}

function compareSlru(result: Comparison, dir: string, ours: Map<number, Buffer>, theirs: Map<number, Buffer>): void {
  const zero = Buffer.alloc(BLCKSZ);
  for (const page of new Set([...ours.keys(), ...theirs.keys()])) {
    result.slruPages++;
    // A page of zeros and no page are the same to a reader of an SLRU in recovery.
    const a = ours.get(page) ?? zero;
    const b = theirs.get(page) ?? zero;
    if (!a.equals(b)) differ(result, `${dir} page ${page}`, firstDifferences(a, b));
  }
}

function compareRelmaps(result: Comparison, store: PageStore, dir: string): void {
  const dbs = readdirSync(join(dir, 'base')).filter((name) => /^[0-9]+$/.test(name));
  for (const [path, spc, db] of [['global', 1664, 0] as const, ...dbs.map((d) => [`base/${d}`, 1663, Number(d)] as const)]) {
    const file = join(dir, path, 'pg_filenode.map');
    if (!existsSync(file)) continue;
    result.relmaps++;
    const ours = store.relmapOf(spc, db);
    if (ours === undefined || !ours.equals(readFileSync(file)))
      differ(result, `${path}/pg_filenode.map`, ours === undefined ? 'we have none' : 'content differs');
  }
}

/** File name: the full transaction id in 16 hex digits, before 17 the 32-bit one in 8. The last four bytes are a CRC of the file. */
function compareTwophase(result: Comparison, store: PageStore, dir: string): void {
  const left = new Map(store.twophase);
  for (const name of readdirSync(join(dir, 'pg_twophase'))) {
    result.twophase++;
    const digits = store.major >= 17 ? 16 : 8;
    const given = Number.parseInt(name, 16);
    const xid = digits === 16 ? given : fullXidAt(store.counterModel.nextFullXid, given);
    if (name.length !== digits) differ(result, `pg_twophase/${name}`, `${digits} digits are expected`);
    const file = readFileSync(join(dir, 'pg_twophase', name));
    const ours = left.get(xid);
    left.delete(xid);
    if (ours === undefined || !ours.equals(file.subarray(0, file.length - 4)))
      differ(result, `pg_twophase/${name}`, ours === undefined ? 'we have none' : 'content differs');
  }
  for (const xid of left.keys()) differ(result, `pg_twophase ${xid}`, 'only we have it');
}

/** pg_logical/replorigin_checkpoint: magic u32, then (origin u16, padding, remote LSN u64) of 16 bytes each, CRC u32. */
function compareOrigins(result: Comparison, store: PageStore, dir: string): void {
  const path = join(dir, 'pg_logical', 'replorigin_checkpoint');
  const theirs = new Map<number, number>();
  if (existsSync(path)) {
    const file = readFileSync(path);
    for (let at = 4; at + 16 <= file.length - 4; at += 16) theirs.set(file.readUInt16LE(at), Number(file.readBigUInt64LE(at + 8)));
  }
  for (const id of new Set([...theirs.keys(), ...store.origins.keys()])) {
    result.origins++;
    if (theirs.get(id) !== store.origins.get(id))
      differ(result, `replication origin ${id}`, `ours ${store.origins.get(id)}, standby ${theirs.get(id)}`);
  }
}
