/** The oracle's storage: everything WAL describes, kept in memory the simplest way that can be right. It is what a pageserver must be
 *  equal to, without layers, history or laziness.
 *  Invariants: (1) the state before the first record is the base data directory, read when first touched; (2) records are applied in
 *  WAL order, each exactly once; (3) a page that differs from the record's own image is reported, then replaced by that image, so that
 *  one defect does not show up in every later record. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BLCKSZ, FORK_FSM, FORK_MAIN, type ForkNumber, formatLsn, parseRelPath, type RelTag, relPath } from '@lakebase/ids';
import type { DecodedRecord } from '@lakebase/pg-format';
import {
  applyHeapDelta,
  applySideDelta,
  type CounterUpdate,
  deltaChildBlock,
  deltaMakesPage,
  type EffectSink,
  emitEffects,
  freeSpaceAfter,
  fsmAddress,
  fsmCategory,
  fsmSet,
  fullXidAt,
  type ParameterChange,
  redo,
  restoreBlockImage,
  SLRU_PAGES_PER_SEGMENT,
  type SlruKind,
  slruSegmentTruncated,
} from '@lakebase/pg-redo';
import { CounterModel } from './counters.ts';
import { firstDifferences } from './diff.ts';
import { HostileRecords } from './hostile.ts';
import { isMaskedWhole, maskPage } from './mask.ts';
import { recordTypeName } from './record-types.ts';

export const SLRU_DIRS = ['pg_xact', 'pg_multixact/offsets', 'pg_multixact/members', 'pg_commit_ts'] as const;
const FORKS: readonly ForkNumber[] = [0, 1, 2, 3];

export interface StoredRel {
  readonly tag: RelTag;
  exists: boolean;
  pages: Buffer[];
}

export interface Mismatch {
  readonly where: string;
  readonly detail: string;
}

const key = (t: RelTag): string => `${t.spc}/${t.db}/${t.rel}/${t.fork}`;
const dbKey = (spc: number, db: number): string => `${spc}/${db}`;

export class PageStore implements EffectSink {
  readonly rels = new Map<string, StoredRel>();
  readonly slru: readonly Map<number, Buffer>[];
  readonly relmaps = new Map<string, Buffer>();
  readonly twophase = new Map<number, Buffer>();
  readonly origins = new Map<number, number>();
  readonly counts = new Map<string, { records: number; images: number; restored: number }>();
  readonly mismatches: Mismatch[] = [];
  /** Blocks a record names that do not exist; Postgres would log an invalid page. */
  missingBlocks = 0;
  mismatchCount = 0;
  readonly counterModel: CounterModel;
  /** Record types for which a page made wrong on purpose was not noticed: the oracle would be blind there. */
  readonly blindTypes: string[] = [];
  readonly hostile = new HostileRecords();
  readonly #baseDir: string;
  readonly major: number;
  readonly #canaried = new Set<string>();
  readonly #droppedDbs = new Set<string>();
  #record: DecodedRecord | undefined;
  readonly #scratch = Buffer.alloc(BLCKSZ);

  readonly #attack: boolean;

  /** `hostile`: also apply mangled copies of records; on unless said otherwise. */
  constructor(baseDir: string, major: number, options: { readonly hostile?: boolean } = {}) {
    this.#attack = options.hostile !== false;
    this.#baseDir = baseDir;
    this.major = major;
    this.counterModel = new CounterModel(baseDir);
    this.slru = SLRU_DIRS.map((dir) => readSlru(join(baseDir, dir)));
  }

  apply(record: DecodedRecord): void {
    const name = recordTypeName(record.rmid, record.info, this.major);
    let count = this.counts.get(name);
    if (count === undefined) this.counts.set(name, (count = { records: 0, images: 0, restored: 0 }));
    count.records++;
    this.#record = record;
    this.counterModel.before(record);
    emitEffects(record, this.major, this);
  }

  rel(given: RelTag): StoredRel {
    const tag = { ...given }; // an effect's objects are valid during its call only
    const k = key(tag);
    let rel = this.rels.get(k);
    if (rel === undefined) {
      rel = this.#droppedDbs.has(dbKey(tag.spc, tag.db)) ? { tag, exists: false, pages: [] } : this.#load(tag);
      this.rels.set(k, rel);
    }
    return rel;
  }

  #load(tag: RelTag): StoredRel {
    const pages: Buffer[] = [];
    let exists = false;
    for (let segment = 0; ; segment++) {
      const path = join(this.#baseDir, relPath(tag, segment));
      if (!existsSync(path)) break;
      exists = true;
      const bytes = readFileSync(path);
      for (let at = 0; at + BLCKSZ <= bytes.length; at += BLCKSZ) pages.push(bytes.subarray(at, at + BLCKSZ));
    }
    return { tag, exists, pages };
  }

  /** The page, after extending the fork with zero pages up to it. */
  #extend(tag: RelTag, block: number): Buffer {
    const rel = this.rel(tag);
    rel.exists = true;
    while (rel.pages.length <= block) rel.pages.push(Buffer.alloc(BLCKSZ));
    return rel.pages[block] as Buffer;
  }

  block(blockId: number): void {
    const record = this.#record as DecodedRecord;
    const b = record.blocks[blockId] as DecodedRecord['blocks'][number];
    const tag: RelTag = { spc: b.spc, db: b.db, rel: b.rel, fork: b.fork as ForkNumber };
    const rel = this.rel(tag);
    const create = b.willInit || b.applyImage || b.fork !== FORK_MAIN;
    if (b.block >= rel.pages.length && !create) {
      this.missingBlocks++;
      return;
    }
    const page = this.#extend(tag, b.block);
    const count = this.counts.get(recordTypeName(record.rmid, record.info, this.major));
    if (!b.applyImage && this.#attack) this.hostile.attack(record, blockId, page, this.major);
    try {
      redo(page, record, blockId, this.major);
    } catch (error) {
      this.#mismatch(record, blockId, tag, `redo throws ${String(error)}`);
      if (b.hasImage) restoreBlockImage(record, blockId, page);
      return;
    }
    if (!b.hasImage) return;
    if (b.applyImage) {
      if (count !== undefined) count.restored++;
      return;
    }
    if (count !== undefined) count.images++;
    const image = this.#scratch;
    restoreBlockImage(record, blockId, image);
    const expected = Buffer.from(image);
    const actual = Buffer.from(page);
    maskPage(record.rmid, expected, b.block);
    maskPage(record.rmid, actual, b.block);
    this.#canary(record, page, expected, b);
    if (!expected.equals(actual)) {
      this.#mismatch(record, blockId, tag, firstDifferences(actual, expected));
      image.copy(page);
    }
  }

  /** Once for each record type: the same comparison with one wrong bit in the first line pointer, or in the metadata where one would be. */
  #canary(record: DecodedRecord, page: Buffer, expected: Buffer, block: DecodedRecord['blocks'][number]): void {
    const name = recordTypeName(record.rmid, record.info, this.major);
    if (this.#canaried.has(name) || block.fork !== FORK_MAIN || page.readUInt16LE(12) <= 24 || isMaskedWhole(record.rmid, page)) return;
    this.#canaried.add(name);
    const wrong = Buffer.from(page);
    wrong[24] = (wrong[24] as number) ^ 8;
    maskPage(record.rmid, wrong, block.block);
    if (expected.equals(wrong)) this.blindTypes.push(name);
  }

  #mismatch(record: DecodedRecord, blockId: number, tag: RelTag, detail: string): void {
    this.mismatchCount++;
    if (this.mismatches.length >= 50) return;
    const b = record.blocks[blockId];
    const info = `info 0x${record.info.toString(16)}`;
    this.mismatches.push({
      where: `${recordTypeName(record.rmid, record.info, this.major)} ${info} at ${formatLsn(record.lsn)} block ${blockId}: ${relPath(tag)} block ${b?.block}`,
      detail,
    });
  }

  relDelta(tag: RelTag, block: number, delta: Buffer): void {
    const rel = this.rel(tag);
    if (!deltaMakesPage(delta) && block >= rel.pages.length) return;
    const child = deltaChildBlock(delta);
    if (child === undefined) applySideDelta(this.#extend(tag, block), delta, (this.#record as DecodedRecord).endLsn);
    else applyHeapDelta(this.#extend(tag, block), delta, rel.pages[child]);
  }

  freeSpaceHint(main: RelTag, heapBlock: number): void {
    const record = this.#record as DecodedRecord;
    const page = this.rel(main).pages[heapBlock];
    if (page === undefined) return;
    for (let i = 0; i <= record.maxBlockId; i++) {
      const b = record.blocks[i];
      if (b === undefined || !b.inUse || b.fork !== FORK_MAIN || b.block !== heapBlock) continue;
      const free = freeSpaceAfter(record, i, page, this.major);
      if (free === undefined) continue;
      const { fsmBlock, slot } = fsmAddress(heapBlock);
      fsmSet(this.#extend({ ...main, fork: FORK_FSM }, fsmBlock), slot, fsmCategory(free));
    }
  }

  slruDelta(kind: SlruKind, page: number, delta: Buffer): void {
    const pages = this.slru[kind] as Map<number, Buffer>;
    let bytes = pages.get(page);
    if (bytes === undefined) pages.set(page, (bytes = Buffer.alloc(BLCKSZ)));
    applySideDelta(bytes, delta, (this.#record as DecodedRecord).endLsn);
  }

  slruZero(kind: SlruKind, page: number): void {
    this.slru[kind]?.set(page, Buffer.alloc(BLCKSZ));
  }

  slruTruncate(kind: SlruKind, firstKeptPage: number, fromPage?: number): void {
    const pages = this.slru[kind] as Map<number, Buffer>;
    for (const page of pages.keys())
      if (slruSegmentTruncated(kind, Math.floor(page / SLRU_PAGES_PER_SEGMENT), firstKeptPage, fromPage)) pages.delete(page);
  }

  relCreate(tag: RelTag): void {
    this.rel(tag).exists = true;
  }

  relTruncate(tag: RelTag, blocks: number): void {
    const rel = this.rel(tag);
    if (rel.pages.length > blocks) rel.pages.length = blocks;
  }

  relDrop(spc: number, db: number, relNumber: number): void {
    for (const fork of FORKS) {
      const rel = this.rel({ spc, db, rel: relNumber, fork });
      rel.exists = false;
      rel.pages = [];
    }
  }

  dbCopy(src: { spc: number; db: number }, dst: { spc: number; db: number }): void {
    for (const rel of this.#relsOfDb(src)) {
      if (!rel.exists) continue;
      const tag = { ...rel.tag, spc: dst.spc, db: dst.db };
      this.rels.set(key(tag), { tag, exists: true, pages: rel.pages.map((page) => Buffer.from(page)) });
    }
    const map = this.relmapOf(src.spc, src.db);
    if (map !== undefined) this.relmaps.set(dbKey(dst.spc, dst.db), map);
  }

  #relsOfDb(db: { spc: number; db: number }): StoredRel[] {
    const dir = join(this.#baseDir, 'base', String(db.db));
    if (existsSync(dir) && !this.#droppedDbs.has(dbKey(db.spc, db.db))) {
      for (const name of readdirSync(dir)) {
        const parsed = parseRelPath(`base/${db.db}/${name}`);
        if (parsed !== undefined) this.rel(parsed.tag);
      }
    }
    return [...this.rels.values()].filter((rel) => rel.tag.spc === db.spc && rel.tag.db === db.db);
  }

  dbCreate(_spc: number, _db: number): void {}

  dbDrop(spc: number, db: number): void {
    this.#droppedDbs.add(dbKey(spc, db));
    this.relmaps.delete(dbKey(spc, db));
    for (const rel of this.rels.values()) {
      if (rel.tag.spc !== spc || rel.tag.db !== db) continue;
      rel.exists = false;
      rel.pages = [];
    }
  }

  relmap(spc: number, db: number, bytes: Buffer): void {
    this.relmaps.set(dbKey(spc, db), Buffer.from(bytes));
  }

  /** Map file of a database as of now, the base directory's when WAL has not changed it. */
  relmapOf(spc: number, db: number): Buffer | undefined {
    const known = this.relmaps.get(dbKey(spc, db));
    if (known !== undefined) return known;
    const path = join(this.#baseDir, db === 0 ? 'global' : `base/${db}`, 'pg_filenode.map');
    return existsSync(path) && !this.#droppedDbs.has(dbKey(spc, db)) ? readFileSync(path) : undefined;
  }

  twophasePut(xid: number, bytes: Buffer): void {
    this.twophase.set(fullXidAt(this.counterModel.nextFullXid, xid), Buffer.from(bytes));
  }
  twophaseDelete(xid: number): void {
    this.twophase.delete(fullXidAt(this.counterModel.nextFullXid, xid));
  }
  originAdvance(originId: number, remoteLsn: number): void {
    this.origins.set(originId, remoteLsn);
  }
  originDrop(originId: number): void {
    this.origins.delete(originId);
  }
  counters(update: CounterUpdate): void {
    this.counterModel.update(update);
  }
  parameters(_change: ParameterChange): void {}
}

export function readSlru(dir: string): Map<number, Buffer> {
  const pages = new Map<number, Buffer>();
  if (!existsSync(dir)) return pages;
  for (const name of readdirSync(dir)) {
    if (!/^[0-9A-F]{4,6}$/.test(name)) continue;
    const bytes = readFileSync(join(dir, name));
    const first = Number.parseInt(name, 16) * SLRU_PAGES_PER_SEGMENT;
    for (let i = 0; (i + 1) * BLCKSZ <= bytes.length; i++) pages.set(first + i, bytes.subarray(i * BLCKSZ, (i + 1) * BLCKSZ));
  }
  return pages;
}
