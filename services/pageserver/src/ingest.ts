/** Turns decoded WAL records into entries of the open layer and changes of the catalog. The hot path: one record, no allocation of ours.
 *  Invariant: all effects of a record are filed under its end LSN, and the timeline's last record LSN moves only after all are filed. */
import { LakebaseError } from '@lakebase/base';
import { BLCKSZ, FORK_FSM, FORK_MAIN, type Lsn, type RelTag, XLOG_BLCKSZ } from '@lakebase/ids';
import {
  ARG_STOP,
  ENTRY_DELTA,
  ENTRY_FSM_HINT,
  ENTRY_IMAGE,
  ENTRY_RECORD,
  ENTRY_VALUE,
  ENTRY_ZERO,
  KIND_REL_PAGE,
  KIND_SLRU_PAGE,
  type OpenLayer,
  type PendingReached,
} from '@lakebase/layers';
import { type DecodedBlock, type DecodedRecord, patchControlFile, readControlFile } from '@lakebase/pg-format';
import {
  type CounterUpdate,
  type EffectSink,
  type ParameterChange,
  type SlruKind,
  advancePastXid,
  applyCounters,
  deltaMakesPage,
  emitEffects,
  fsmAddress,
  fullXidAt,
  redo,
} from '@lakebase/pg-redo';
import { ABSENT, type Catalog, type FileValue } from './catalog.ts';

export interface DatabaseCopy {
  readonly src: { spc: number; db: number };
  readonly dst: { spc: number; db: number };
}

const EMPTY = Buffer.alloc(0);
/** A record with images of more blocks than this is filed as these images: layers hold a record once for every block it is filed under, and that of an
 *  index build, which has up to 32 images, would be written 32 times. */
const IMAGES_APART = 2;
/** Only where it saves something. */
const IMAGE_SLACK_BYTES = 2_048;
/** While ingest is behind, images of hot pages cost more than they save: redo of every record, again and again. Reads of such a page take
 *  turns of the event loop; this only bounds how long one may take. */
const VERY_HOT_RECORDS = 131_072;
/** As SeriesTable.kindFork has it. */
const FSM_PAGES = (KIND_REL_PAGE << 8) | FORK_FSM;

export class Ingest implements EffectSink {
  #layer!: OpenLayer;
  readonly #catalog: Catalog;
  readonly #major: number;
  readonly #hotRecords: number;
  readonly #hot: number[] = [];
  readonly #veryHot: number[] = [];
  /** FILE_COPY database creations of the last record: to be done before the record counts as ingested. */
  readonly copies: DatabaseCopy[] = [];
  records = 0;
  /** Changes of blocks that do not exist, skipped as Postgres does. */
  missingBlocks = 0;
  /** See {@link EffectSink.commitTimestamps}. */
  commitTimestamps: boolean;

  #record: DecodedRecord | undefined;
  #lsn = 0 as Lsn;
  #position = -1;
  readonly #hint = Buffer.allocUnsafe(4);
  readonly #page = Buffer.alloc(BLCKSZ);
  /** Hears of every multiple of hotRecords, so of the first one past each multiple of {@link VERY_HOT_RECORDS}. An image of a free space map
   *  page would cost the redo of all heap pages that it has hints of: never. */
  readonly #noteHot: PendingReached = (series, block, pending) => {
    if (this.#catalog.series.kindFork[series] === FSM_PAGES) return;
    if (pending >= VERY_HOT_RECORDS && pending % VERY_HOT_RECORDS < this.#hotRecords) this.#veryHot.push(series, block);
    else this.#hot.push(series, block);
  };
  readonly #file: FileValue = (series, block, bytes) => {
    this.#layer.put(series, block, ENTRY_VALUE, ARG_STOP, this.#lsn, bytes);
  };

  constructor(layer: OpenLayer, catalog: Catalog, major: number, hotRecords: number) {
    this.#catalog = catalog;
    this.#major = major;
    this.#hotRecords = hotRecords;
    this.layer = layer;
    this.commitTimestamps = readControlFile(catalog.control).parameters.trackCommitTimestamp;
  }

  get layer(): OpenLayer {
    return this.#layer;
  }
  set layer(layer: OpenLayer) {
    this.#layer = layer;
    layer.watchPending(this.#hotRecords, this.#noteHot);
  }
  /** Pages with very many pending records: (series, block) pairs. */
  get hot(): number[] {
    this.#layer.link();
    return this.#hot;
  }
  /** The same for pages that need an image even while ingest is behind. */
  get veryHot(): number[] {
    this.#layer.link();
    return this.#veryHot;
  }

  /** Zeroes what it holds of a page. */
  wipe(): void {
    this.#page.fill(0);
  }

  /** Files everything a record does. Throws UNSUPPORTED or CORRUPT; the timeline is then broken at this record. */
  apply(record: DecodedRecord): void {
    this.#record = record;
    this.#lsn = record.endLsn;
    this.#position = -1;
    if (record.xid !== 0) this.#seenXid(record.xid);
    emitEffects(record, this.#major, this);
    this.#layer.advance(record.endLsn);
    this.records++;
  }

  /** Files counters as of `lsn` (before a layer is frozen). */
  fileCheckpoint(lsn: Lsn): void {
    this.#lsn = lsn;
    this.#catalog.fileCheckpoint(this.#file);
  }
  /** Files values as of an LSN outside of any record. */
  valuesAt(lsn: Lsn): FileValue {
    this.#lsn = lsn;
    return this.#file;
  }

  block(blockId: number): void {
    const record = this.#record as DecodedRecord;
    const b = record.blocks[blockId] as DecodedBlock;
    const catalog = this.#catalog;
    const id = catalog.series.intern(KIND_REL_PAGE, b.spc, b.db, b.rel, b.fork);
    const blocks = catalog.blocks(id);
    const stop = b.willInit || (b.hasImage && b.applyImage) ? ARG_STOP : 0;
    if (blocks === ABSENT || b.block >= blocks) {
      // Redo in Postgres skips a change of a block that is not there (its relation is dropped or cut further on); map pages are made.
      if (stop === 0 && b.fork === FORK_MAIN) {
        this.missingBlocks++;
        return;
      }
      catalog.extend(id, b.block + 1, this.#lsn, this.#file);
    }
    if (
      b.applyImage &&
      record.maxBlockId >= IMAGES_APART &&
      record.length > BLCKSZ + IMAGE_SLACK_BYTES &&
      this.#putImage(id, b.block, blockId)
    )
      return;
    // A record put together from pieces begins its buffer, which is used again for the next such record. One that crosses to the next page is
    // such a record, so no other reaches beyond its page.
    if (this.#position < 0)
      this.#position =
        record.offset === 0
          ? this.#layer.append(record.buf, 0, record.length)
          : this.#layer.appendFrom(record.buf, record.offset, record.length, XLOG_BLCKSZ - (record.lsn & (XLOG_BLCKSZ - 1)));
    this.#layer.file(id, b.block, ENTRY_RECORD, blockId | stop, this.#lsn, this.#position, record.length);
  }

  /** The page as redo leaves it. False when its image cannot be restored: then reads of the page say so, as of any other damaged record. */
  #putImage(series: number, block: number, blockId: number): boolean {
    try {
      redo(this.#page, this.#record as DecodedRecord, blockId, this.#major);
    } catch {
      return false;
    }
    this.#layer.put(series, block, ENTRY_IMAGE, ARG_STOP, this.#lsn, this.#page);
    return true;
  }

  relDelta(tag: RelTag, block: number, delta: Buffer): void {
    const id = this.#catalog.relId(tag);
    const blocks = this.#catalog.blocks(id);
    if (blocks === ABSENT || block >= blocks) {
      if (!deltaMakesPage(delta)) return;
      this.#catalog.extend(id, block + 1, this.#lsn, this.#file);
    }
    this.#layer.put(id, block, ENTRY_DELTA, 0, this.#lsn, delta);
  }

  freeSpaceHint(main: RelTag, heapBlock: number): void {
    const catalog = this.#catalog;
    const id = catalog.series.intern(KIND_REL_PAGE, main.spc, main.db, main.rel, FORK_FSM);
    const { fsmBlock } = fsmAddress(heapBlock);
    const blocks = catalog.blocks(id);
    if (blocks === ABSENT || fsmBlock >= blocks) catalog.extend(id, fsmBlock + 1, this.#lsn, this.#file);
    this.#hint.writeUInt32LE(heapBlock, 0);
    this.#layer.put(id, fsmBlock, ENTRY_FSM_HINT, 0, this.#lsn, this.#hint);
  }

  slruDelta(kind: SlruKind, page: number, delta: Buffer): void {
    const id = this.#catalog.series.intern(KIND_SLRU_PAGE, 0, 0, kind, 0);
    this.#catalog.touchSlru(kind, page, this.#file);
    this.#layer.put(id, page, ENTRY_DELTA, 0, this.#lsn, delta);
  }
  slruZero(kind: SlruKind, page: number): void {
    const id = this.#catalog.series.intern(KIND_SLRU_PAGE, 0, 0, kind, 0);
    this.#catalog.touchSlru(kind, page, this.#file);
    this.#layer.put(id, page, ENTRY_ZERO, ARG_STOP, this.#lsn, EMPTY);
  }
  slruTruncate(kind: SlruKind, firstKeptPage: number, fromPage?: number): void {
    this.#catalog.truncateSlru(kind, firstKeptPage, fromPage, this.#file);
  }

  relCreate(tag: RelTag): void {
    this.#catalog.create(this.#catalog.relId(tag), this.#lsn, this.#file);
  }
  relTruncate(tag: RelTag, blocks: number): void {
    this.#catalog.truncate(this.#catalog.relId(tag), blocks, this.#lsn, this.#file);
  }
  relDrop(spc: number, db: number, rel: number): void {
    for (let fork = 0; fork <= 3; fork++) {
      const id = this.#catalog.series.find(KIND_REL_PAGE, spc, db, rel, fork);
      if (id >= 0) this.#catalog.drop(id, this.#lsn, this.#file);
    }
  }

  dbCopy(src: { spc: number; db: number }, dst: { spc: number; db: number }): void {
    this.#catalog.dropDatabase(dst.spc, dst.db, this.#lsn, this.#file);
    this.copies.push({ src: { ...src }, dst: { ...dst } });
  }
  dbCreate(spc: number, db: number): void {
    this.#catalog.createDatabase(spc, db, this.#file);
  }
  dbDrop(spc: number, db: number): void {
    this.#catalog.dropDatabase(spc, db, this.#lsn, this.#file);
  }
  relmap(spc: number, db: number, bytes: Buffer): void {
    this.#catalog.putRelmap(spc, db, bytes, this.#file);
  }
  twophasePut(xid: number, bytes: Buffer): void {
    this.#catalog.putTwophase(this.#widen(xid), bytes, this.#file);
  }
  twophaseDelete(xid: number): void {
    this.#catalog.putTwophase(this.#widen(xid), undefined, this.#file);
  }
  #widen(xid: number): number {
    return fullXidAt(this.#catalog.checkpoint?.nextFullXid ?? 0, xid);
  }
  originAdvance(originId: number, remoteLsn: number): void {
    this.#catalog.putOrigin(originId, remoteLsn, this.#file);
  }
  originDrop(originId: number): void {
    this.#catalog.putOrigin(originId, undefined, this.#file);
  }

  counters(update: CounterUpdate): void {
    const checkpoint = this.#catalog.checkpoint;
    if (checkpoint === undefined) throw new LakebaseError('CORRUPT', 'the timeline has no checkpoint counters');
    applyCounters(checkpoint, update);
    this.#catalog.checkpointDirty = true;
  }
  parameters(change: ParameterChange): void {
    this.commitTimestamps = change.trackCommitTimestamp;
    this.#catalog.putControl(patchControlFile(this.#catalog.control, { parameters: change }), this.#file);
  }

  #seenXid(xid: number): void {
    const checkpoint = this.#catalog.checkpoint;
    if (checkpoint === undefined) return;
    const next = advancePastXid(checkpoint.nextFullXid, xid);
    if (next === checkpoint.nextFullXid) return;
    checkpoint.nextFullXid = next;
    this.#catalog.checkpointDirty = true;
  }
}
