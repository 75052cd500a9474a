/** The hot set: which blocks a compute used, remembered over a suspend or a crash, so that the next compute fetches them before they are asked for.
 *  It travels as a file of the suspend state ({@link HOT_SET_FILE}, docs/formats/start-bundle.md), which Postgres never sees.
 *
 *      u32 magic 'LBHS' · u16 version 1 · u16 0 · u32 relations · relations · u32 CRC-32C of everything before
 *      relation: u32 spc · u32 db · u32 rel · u8 fork · u32 runs · runs;   run: varint blocks since the end of the one before · varint count · u8 age
 *
 *  Invariants
 *  - age 0: used by this compute; n: by the n-th before it. Older than {@link AGE_MAX} is forgotten, so a short session does not forget a long one's pages,
 *    and what nobody uses is not fetched for ever;
 *  - at most {@link HOT_SET_BYTES_MAX} bytes: the oldest runs go first; it is a hint, and bytes that do not decode are an empty set. */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { ByteReader, ByteWriter, DecodeError, crc32c } from '@lakebase/bytes';
import { BLCKSZ, FORK_INIT, type ForkNumber, RELSEG_BLOCKS, type RelTag, parseRelPath } from '@lakebase/ids';
import type { ResidentMap } from '../resident-map.ts';

export const HOT_SET_FILE = 'pg_stat/lakebase.hot';
export const HOT_SET_BYTES_MAX = 1 << 20;
export const AGE_MAX = 2;
const MAGIC = 0x4c424853;
const VERSION = 1;
const RUN_BYTES_MAX = 11;
/** Unused blocks between two used ones that are fetched along: cheaper than another request. */
const GAP_MAX = 3;
const UNUSED = 0xff;

/** Blocks of a relation, counted over its segments. */
export interface HotRun {
  readonly tag: RelTag;
  readonly block: number;
  readonly count: number;
  readonly age: number;
}

const keyOf = (t: RelTag): string => `${t.spc}/${t.db}/${t.rel}/${t.fork}`;

/** What is hot now: blocks on the local disk that were used, and those of `previous` that are not older than they may be. Runs are in the order of relations. */
export function collectHotSet(pgdata: string, map: ResidentMap, previous: readonly HotRun[]): HotRun[] {
  const before = new Map<string, HotRun[]>();
  for (const run of previous) {
    const runs = before.get(keyOf(run.tag));
    if (runs === undefined) before.set(keyOf(run.tag), [run]);
    else runs.push(run);
  }
  const runs: HotRun[] = [];
  for (const entry of map.entries()) {
    const { tag, segment, index, nblocks, dropped } = entry;
    if (dropped || nblocks === 0 || entry.sourceFork !== tag.fork) continue;
    const base = segment * RELSEG_BLOCKS;
    const old = (before.get(keyOf(tag)) ?? []).filter((r) => r.block < base + nblocks && r.block + r.count > base && r.age < AGE_MAX);
    if (old.length === 0 && !map.anyAccessed(index)) continue;
    const ages = new Uint8Array(nblocks).fill(UNUSED);
    for (const r of old) ages.fill(r.age + 1, Math.max(0, r.block - base), Math.min(nblocks, r.block + r.count - base));
    for (const block of map.accessedBlocks(index)) ages[block] = 0;
    appendRuns(runs, tag, base, ages);
  }
  runs.push(...localRuns(pgdata, map));
  return runs;
}

/** Files and lengths that storage did not know at the start were written by this compute: all of them is hot. */
function localRuns(pgdata: string, map: ResidentMap): HotRun[] {
  const runs: HotRun[] = [];
  for (const path of relationFiles(pgdata)) {
    const parsed = parseRelPath(path);
    if (parsed === undefined || parsed.tag.fork === FORK_INIT) continue;
    const { tag, segment } = parsed;
    const index = map.find(tag, segment);
    const entry = index < 0 ? undefined : map.entry(index);
    if (entry !== undefined && entry.sourceFork !== tag.fork) continue; // unlogged
    const known = entry === undefined || entry.dropped ? 0 : entry.nblocks;
    const blocks = Math.min(Math.floor(statSync(join(pgdata, path)).size / BLCKSZ), RELSEG_BLOCKS);
    if (blocks > known) runs.push({ tag, block: segment * RELSEG_BLOCKS + known, count: blocks - known, age: 0 });
  }
  return runs;
}

function* relationFiles(pgdata: string): Generator<string> {
  for (const root of ['global', 'base', 'pg_tblspc'])
    for (const name of readdirSync(join(pgdata, root), { recursive: true, encoding: 'utf8' })) yield `${root}/${name}`;
}

function appendRuns(runs: HotRun[], tag: RelTag, base: number, ages: Uint8Array): void {
  let start = 0;
  let end = 0; // of the run being gathered
  let age = UNUSED;
  for (let block = 0; block < ages.length; block++) {
    const here = ages[block] as number;
    if (here === UNUSED) continue;
    if (here === age && block - end <= GAP_MAX) {
      end = block + 1;
      continue;
    }
    if (age !== UNUSED) runs.push({ tag, block: base + start, count: end - start, age });
    start = block;
    end = block + 1;
    age = here;
  }
  if (age !== UNUSED) runs.push({ tag, block: base + start, count: end - start, age });
}

export function encodeHotSet(runs: readonly HotRun[]): Buffer {
  for (let oldest = AGE_MAX; ; oldest--) {
    const bytes = encode(runs.filter((r) => r.age <= oldest));
    if (bytes.length <= HOT_SET_BYTES_MAX) return bytes;
    // Then what fits of the newest, in the order of relations.
    if (oldest === 0) return encode(runs.filter((r) => r.age === 0).slice(0, Math.floor(HOT_SET_BYTES_MAX / (RUN_BYTES_MAX + 17)) - 2));
  }
}

function encode(runs: readonly HotRun[]): Buffer {
  const byRelation = new Map<string, HotRun[]>();
  for (const run of runs) {
    const list = byRelation.get(keyOf(run.tag));
    if (list === undefined) byRelation.set(keyOf(run.tag), [run]);
    else list.push(run);
  }
  const w = new ByteWriter(64 + runs.length * 6).u32be(MAGIC).u16be(VERSION).u16be(0).u32be(byRelation.size);
  for (const list of byRelation.values()) {
    list.sort((a, b) => a.block - b.block);
    const { spc, db, rel, fork } = (list[0] as HotRun).tag;
    w.u32be(spc).u32be(db).u32be(rel).u8(fork).u32be(list.length);
    let end = 0;
    for (const run of list) {
      // Runs of one relation do not overlap.
      varint(w, run.block - end);
      varint(w, run.count);
      w.u8(run.age);
      end = run.block + run.count;
    }
  }
  return w.u32be(crc32c(w.view())).finish();
}

export function decodeHotSet(bytes: Buffer): HotRun[] {
  if (bytes.length < 16 || bytes.length > HOT_SET_BYTES_MAX || bytes.readUInt32BE(0) !== MAGIC) throw new DecodeError('not a hot set', 0);
  const body = bytes.subarray(0, bytes.length - 4);
  if (crc32c(body) !== bytes.readUInt32BE(bytes.length - 4)) throw new DecodeError('checksum of the hot set is wrong', body.length);
  const r = new ByteReader(body, 4);
  if (r.u16be() !== VERSION) throw new DecodeError('hot set of another version', 4);
  r.skip(2);
  const runs: HotRun[] = [];
  for (let relations = r.u32be(); relations > 0; relations--) {
    const tag = { spc: r.u32be(), db: r.u32be(), rel: r.u32be(), fork: forkOf(r) };
    const n = r.u32be();
    if (n * 3 > r.remaining) throw new DecodeError(`${n} runs do not fit`, r.offset);
    let end = 0;
    for (let i = 0; i < n; i++) {
      const block = end + readVarint(r);
      const count = readVarint(r);
      const age = r.u8();
      if (count < 1 || block + count > 0xffff_fffe || age > AGE_MAX) throw new DecodeError('run out of range', r.offset);
      runs.push({ tag, block, count, age });
      end = block + count;
    }
  }
  if (r.remaining !== 0) throw new DecodeError('trailing bytes', r.offset);
  return runs;
}

function forkOf(r: ByteReader): ForkNumber {
  const fork = r.u8();
  if (fork > 3) throw new DecodeError(`fork ${fork}`, r.offset);
  return fork as ForkNumber;
}

function varint(w: ByteWriter, value: number): void {
  let rest = value;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) w.u8((rest % 0x80) | 0x80);
  w.u8(rest);
}

function readVarint(r: ByteReader): number {
  let value = 0;
  for (let scale = 1; scale <= 2 ** 28; scale *= 0x80) {
    const byte = r.u8();
    value += (byte & 0x7f) * scale;
    if (byte < 0x80) return value;
  }
  throw new DecodeError('number of too many bytes', r.offset);
}
