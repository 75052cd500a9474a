/** What exists at the head of a timeline, in memory: relation sizes and truncation floors, databases, relmaps, two-phase state, origins, SLRU
 *  segments, the control file and the checkpoint counters. Every change goes through a method here, which also files it in the open layer;
 *  at attach the catalog is rebuilt from the small values of the layers. Invariant: memory equals the newest value filed. */
import { LakebaseError } from '@lakebase/base';
import { type Lsn, type RelTag, formatLsn } from '@lakebase/ids';
import {
  ARG_STOP,
  ENTRY_VALUE,
  type Floors,
  KIND_CHECKPOINT,
  KIND_CONTROL,
  KIND_DATABASE,
  KIND_ORIGIN,
  KIND_RELMAP,
  KIND_REL_FLOORS,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  KIND_SLRU_SEGMENT,
  KIND_TWOPHASE,
  NO_FLOORS,
  type ScannedValue,
  type SeriesTable,
  addFloor,
  decodeFloors,
  encodeFloors,
} from '@lakebase/layers';
import { type CheckPoint, decodeCheckPoint, encodeCheckPoint } from '@lakebase/pg-format';
import { type SlruKind, slruSegmentTruncated } from '@lakebase/pg-redo';
import { PAGES_PER_SEGMENT, SLRU_KINDS } from './slru.ts';

export const ABSENT = 0xffff_ffff;
const GONE = Buffer.alloc(0);
const VALUES_PER_TURN = 256;

/** Where changed values are filed: the open layer at the LSN of the record at hand. */
export type FileValue = (series: number, block: number, bytes: Buffer) => void;

export class Catalog {
  readonly series: SeriesTable;
  /** By series id of KIND_REL_PAGE. */
  #blocks: Uint32Array = new Uint32Array(4096).fill(ABSENT);
  /** LSN of the last change of size or floors: reads at or after it may use memory. */
  #changed: Float64Array = new Float64Array(4096);
  readonly #floors = new Map<number, Floors>();
  /** `spc/db` → present. */
  readonly databases = new Map<string, { spc: number; db: number }>();
  readonly relmaps = new Map<string, { spc: number; db: number; bytes: Buffer }>();
  readonly twophase = new Map<number, Buffer>();
  readonly origins = new Map<number, number>();
  /** Per SLRU kind: segment → pages. */
  readonly slru: readonly Map<number, number>[] = SLRU_KINDS.map(() => new Map<number, number>());
  /** Per SLRU kind: the page touched last, which is there already. */
  readonly #slruTouched = SLRU_KINDS.map(() => -1);
  control: Buffer = GONE;
  checkpoint: CheckPoint | undefined;
  checkpointDirty = false;
  totalBlocks = 0;

  constructor(series: SeriesTable) {
    this.series = series;
  }

  static load(values: Iterable<ScannedValue>, series: SeriesTable, lsn: Lsn): Catalog {
    const c = new Catalog(series);
    for (const value of values) c.#take(value, lsn);
    return c;
  }

  /** The same; `turn` is awaited now and again. */
  static async loadInTurns(values: Iterable<ScannedValue>, series: SeriesTable, lsn: Lsn, turn: () => Promise<void>): Promise<Catalog> {
    const c = new Catalog(series);
    let n = 0;
    for (const value of values) {
      c.#take(value, lsn);
      if (++n % VALUES_PER_TURN === 0) await turn();
    }
    return c;
  }

  #take({ key, bytes }: ScannedValue, lsn: Lsn): void {
    switch (key.kind) {
      case KIND_REL_SIZE: {
        const id = this.#rel(key.spc, key.db, key.rel, key.fork);
        this.#setBlocks(id, bytes.readUInt32BE(0), lsn);
        break;
      }
      case KIND_REL_FLOORS:
        this.#floors.set(this.#rel(key.spc, key.db, key.rel, key.fork), decodeFloors(bytes));
        break;
      case KIND_DATABASE:
        this.databases.set(`${key.spc}/${key.db}`, { spc: key.spc, db: key.db });
        break;
      case KIND_RELMAP:
        this.relmaps.set(`${key.spc}/${key.db}`, { spc: key.spc, db: key.db, bytes });
        break;
      case KIND_TWOPHASE:
        this.twophase.set(key.rel * 0x1_0000_0000 + key.block, bytes);
        break;
      case KIND_ORIGIN:
        this.origins.set(key.block, bytes.readUInt32BE(0) * 0x1_0000_0000 + bytes.readUInt32BE(4));
        break;
      case KIND_SLRU_SEGMENT:
        this.slru[key.rel]?.set(key.block, bytes.readUInt32BE(0));
        break;
      case KIND_CONTROL:
        this.control = bytes;
        break;
      case KIND_CHECKPOINT:
        this.checkpoint = decodeCheckPoint(bytes);
        break;
      default:
        throw new LakebaseError('CORRUPT', `unknown kind ${key.kind} of small value at ${formatLsn(lsn)}`);
    }
  }

  /** Series id of a relation fork's pages. */
  relId(tag: RelTag): number {
    return this.#rel(tag.spc, tag.db, tag.rel, tag.fork);
  }
  #rel(spc: number, db: number, rel: number, fork: number): number {
    const id = this.series.intern(KIND_REL_PAGE, spc, db, rel, fork);
    if (id >= this.#blocks.length) this.#grow(id);
    return id;
  }

  /** Blocks at the head; {@link ABSENT} when the fork does not exist. */
  blocks(id: number): number {
    return id < this.#blocks.length ? (this.#blocks[id] as number) : ABSENT;
  }
  changedLsn(id: number): Lsn {
    return (this.#changed[id] ?? 0) as Lsn;
  }
  floors(id: number): Floors {
    return this.#floors.get(id) ?? NO_FLOORS;
  }

  /** A block was written: the fork exists and reaches at least that far. */
  extend(id: number, blocks: number, lsn: Lsn, file: FileValue): void {
    if (this.blocks(id) === ABSENT) this.#begin(id, lsn, file);
    this.#resize(id, blocks, lsn, file);
  }

  create(id: number, lsn: Lsn, file: FileValue): void {
    if (this.blocks(id) !== ABSENT) return;
    this.#begin(id, lsn, file);
    this.#resize(id, 0, lsn, file);
  }

  /** A fork of this name may have existed before: nothing older than this record counts. */
  #begin(id: number, lsn: Lsn, file: FileValue): void {
    if (id >= this.#blocks.length) this.#grow(id);
    this.#putFloors(id, addFloor(NO_FLOORS, 0, (lsn - 1) as Lsn), file);
  }

  truncate(id: number, blocks: number, lsn: Lsn, file: FileValue): void {
    const now = this.blocks(id);
    if (now === ABSENT || blocks >= now) return;
    this.#putFloors(id, addFloor(this.floors(id), blocks, lsn), file);
    this.#resize(id, blocks, lsn, file);
  }

  drop(id: number, lsn: Lsn, file: FileValue): void {
    if (this.blocks(id) === ABSENT) return;
    this.#setBlocks(id, ABSENT, lsn);
    this.#floors.delete(id);
    file(this.#sibling(KIND_REL_SIZE, id), 0, GONE);
  }

  /** Sets a size without filing it: for changes that are filed elsewhere (database copies). */
  adopt(id: number, blocks: number, floors: Floors, lsn: Lsn): void {
    if (id >= this.#blocks.length) this.#grow(id);
    this.#setBlocks(id, blocks, lsn);
    if (floors.length > 0) this.#floors.set(id, floors);
  }

  /** Ids of the forks that exist, of one database or all. */
  *relations(spc?: number, db?: number): Generator<number> {
    for (let id = 0; id < this.series.count && id < this.#blocks.length; id++) {
      if (this.#blocks[id] === ABSENT || (this.series.kindFork[id] as number) >>> 8 !== KIND_REL_PAGE) continue;
      if (spc !== undefined && (this.series.spc[id] !== spc || this.series.db[id] !== db)) continue;
      yield id;
    }
  }

  createDatabase(spc: number, db: number, file: FileValue): void {
    this.databases.set(`${spc}/${db}`, { spc, db });
    file(this.series.intern(KIND_DATABASE, spc, db, 0, 0), 0, Buffer.from([1]));
  }
  dropDatabase(spc: number, db: number, lsn: Lsn, file: FileValue): void {
    for (const id of this.relations(spc, db)) this.drop(id, lsn, file);
    if (this.relmaps.delete(`${spc}/${db}`)) file(this.series.intern(KIND_RELMAP, spc, db, 0, 0), 0, GONE);
    if (this.databases.delete(`${spc}/${db}`)) file(this.series.intern(KIND_DATABASE, spc, db, 0, 0), 0, GONE);
  }
  putRelmap(spc: number, db: number, bytes: Buffer, file: FileValue): void {
    this.relmaps.set(`${spc}/${db}`, { spc, db, bytes: Buffer.from(bytes) });
    file(this.series.intern(KIND_RELMAP, spc, db, 0, 0), 0, bytes);
  }

  putTwophase(fullXid: number, bytes: Buffer | undefined, file: FileValue): void {
    if (bytes === undefined) {
      if (!this.twophase.delete(fullXid)) return;
    } else this.twophase.set(fullXid, Buffer.from(bytes));
    file(this.series.intern(KIND_TWOPHASE, 0, 0, Math.floor(fullXid / 0x1_0000_0000), 0), fullXid % 0x1_0000_0000, bytes ?? GONE);
  }
  putOrigin(id: number, remoteLsn: number | undefined, file: FileValue): void {
    const series = this.series.intern(KIND_ORIGIN, 0, 0, 0, 0);
    if (remoteLsn === undefined) {
      if (this.origins.delete(id)) file(series, id, GONE);
      return;
    }
    this.origins.set(id, remoteLsn);
    const bytes = Buffer.allocUnsafe(8);
    bytes.writeUInt32BE(Math.floor(remoteLsn / 0x1_0000_0000), 0);
    bytes.writeUInt32BE(remoteLsn % 0x1_0000_0000, 4);
    file(series, id, bytes);
  }

  touchSlru(kind: SlruKind, page: number, file: FileValue): void {
    if (this.#slruTouched[kind] === page) return;
    this.#slruTouched[kind] = page;
    const segments = this.slru[kind] as Map<number, number>;
    const segment = Math.floor(page / PAGES_PER_SEGMENT);
    const pages = (page % PAGES_PER_SEGMENT) + 1;
    if ((segments.get(segment) ?? 0) >= pages) return;
    segments.set(segment, pages);
    file(this.series.intern(KIND_SLRU_SEGMENT, 0, 0, kind, 0), segment, u32(pages));
  }
  truncateSlru(kind: SlruKind, firstKeptPage: number, fromPage: number | undefined, file: FileValue): void {
    const segments = this.slru[kind] as Map<number, number>;
    this.#slruTouched[kind] = -1;
    for (const segment of [...segments.keys()]) {
      if (!slruSegmentTruncated(kind, segment, firstKeptPage, fromPage)) continue;
      segments.delete(segment);
      file(this.series.intern(KIND_SLRU_SEGMENT, 0, 0, kind, 0), segment, GONE);
    }
  }

  putControl(bytes: Buffer, file: FileValue): void {
    this.control = bytes;
    file(this.series.intern(KIND_CONTROL, 0, 0, 0, 0), 0, bytes);
  }
  /** Counters move with almost every record; they are filed when a layer is frozen, and by checkpoints. */
  fileCheckpoint(file: FileValue): void {
    if (!this.checkpointDirty || this.checkpoint === undefined) return;
    this.checkpointDirty = false;
    file(this.series.intern(KIND_CHECKPOINT, 0, 0, 0, 0), 0, encodeCheckPoint(this.checkpoint));
  }

  #resize(id: number, blocks: number, lsn: Lsn, file: FileValue): void {
    this.#setBlocks(id, blocks, lsn);
    file(this.#sibling(KIND_REL_SIZE, id), 0, u32(blocks));
  }
  #putFloors(id: number, floors: Floors, file: FileValue): void {
    this.#floors.set(id, floors);
    file(this.#sibling(KIND_REL_FLOORS, id), 0, encodeFloors(floors));
  }
  #sibling(kind: number, id: number): number {
    const s = this.series.get(id);
    return this.series.intern(kind, s.spc, s.db, s.rel, s.fork);
  }
  #setBlocks(id: number, blocks: number, lsn: Lsn): void {
    const before = this.blocks(id);
    if (before !== ABSENT) this.totalBlocks -= before;
    if (blocks !== ABSENT) this.totalBlocks += blocks;
    this.#blocks[id] = blocks;
    this.#changed[id] = lsn;
  }
  #grow(id: number): void {
    const size = Math.max(this.#blocks.length * 2, id + 1);
    const blocks = new Uint32Array(size).fill(ABSENT);
    blocks.set(this.#blocks);
    this.#blocks = blocks;
    const changed = new Float64Array(size);
    changed.set(this.#changed);
    this.#changed = changed;
  }
}

export const VALUE_ARGS: readonly [number, number] = [ENTRY_VALUE, ARG_STOP];

function u32(value: number): Buffer {
  const b = Buffer.allocUnsafe(4);
  b.writeUInt32BE(value, 0);
  return b;
}
