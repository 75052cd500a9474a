/** Redo as crash recovery does it: every record applied to its pages in WAL order, pages held in memory, decoding and checksums included.
 *  Pages that exist before the WAL begins are loaded beforehand. Side effects are applied too: CLOG, map clears, free space. */
import type { ForkNumber, Lsn, RelTag } from '@lakebase/ids';
import { BLCKSZ, FORK_FSM } from '@lakebase/ids';
import { KIND_REL_PAGE, KIND_SLRU_PAGE, SeriesTable } from '@lakebase/layers';
import type { DecodedBlock, DecodedRecord, WalDecoder } from '@lakebase/pg-format';
import {
  type EffectSink,
  type SlruKind,
  applyHeapDelta,
  applySideDelta,
  deltaMakesPage,
  emitEffects,
  freeSpaceAfter,
  fsmAddress,
  fsmCategory,
  fsmSet,
  redo,
} from '@lakebase/pg-redo';
import type { Timeline } from './timeline.ts';

/** As Postgres clusters pages of a relation: block number to page, by series. */
type Pages = (Buffer | undefined)[];

export class RedoRun implements EffectSink {
  readonly commitTimestamps = false;
  applied = 0;
  readonly #major: number;
  readonly #series = new SeriesTable();
  readonly #pages: Pages[] = [];
  /** What {@link load} found, for {@link reset}. */
  readonly #loaded: Pages[] = [];
  /** Only notes what is touched, when true. */
  #dry = true;
  #record!: DecodedRecord;

  constructor(major: number) {
    this.#major = major;
  }

  /** First pass: which pages the WAL touches; then loads them as of the timeline's head. */
  async load(decoder: WalDecoder, timeline: Timeline): Promise<number> {
    this.run(decoder);
    const lsn = timeline.lastRecordLsn;
    let loaded = 0;
    for (let id = 0; id < this.#series.count; id++) {
      const s = this.#series.get(id);
      const pages = this.#pages[id] as Pages;
      const kept: Pages = (this.#loaded[id] = []);
      for (let block = 0; block < pages.length; block++) {
        kept.push(undefined);
        if (pages[block] === undefined) continue;
        const page =
          s.kind === KIND_SLRU_PAGE
            ? await timeline.slruPage(s.rel, block, lsn)
            : (await timeline.pages({ ...s, fork: s.fork as ForkNumber }, block, 1, lsn))[0];
        kept[block] = page;
        pages[block] = Buffer.alloc(BLCKSZ);
        loaded++;
      }
    }
    timeline.cache.clear();
    this.#dry = false;
    this.reset();
    return loaded;
  }

  /** Every page as it was loaded, for another pass over the same WAL. */
  reset(): void {
    this.applied = 0;
    this.#pages.forEach((pages, id) =>
      pages.forEach((page, block) => {
        const kept = this.#loaded[id]?.[block];
        if (kept === undefined) page?.fill(0);
        else kept.copy(page as Buffer);
      }),
    );
  }

  /** Applies what the decoder has; returns the number of records. */
  run(decoder: WalDecoder): number {
    let records = 0;
    for (let record = decoder.next(); record !== undefined; record = decoder.next(), records++) {
      this.#record = record;
      emitEffects(record, this.#major, this);
    }
    return records;
  }

  #page(kind: number, spc: number, db: number, rel: number, fork: number, block: number): Buffer {
    const id = this.#series.intern(kind, spc, db, rel, fork);
    const pages = (this.#pages[id] ??= []);
    let page = pages[block];
    if (page === undefined) {
      while (pages.length < block) pages.push(undefined);
      page = pages[block] = this.#dry ? NONE : Buffer.alloc(BLCKSZ);
    }
    return page;
  }

  block(blockId: number): void {
    const b = this.#record.blocks[blockId] as DecodedBlock;
    const page = this.#page(KIND_REL_PAGE, b.spc, b.db, b.rel, b.fork, b.block);
    this.applied++;
    if (!this.#dry) redo(page, this.#record, blockId, this.#major);
  }
  relDelta(tag: RelTag, block: number, delta: Buffer): void {
    if (!deltaMakesPage(delta)) return;
    const page = this.#page(KIND_REL_PAGE, tag.spc, tag.db, tag.rel, tag.fork, block);
    if (!this.#dry) applyHeapDelta(page, delta);
  }
  freeSpaceHint(main: RelTag, heapBlock: number): void {
    const { fsmBlock, slot } = fsmAddress(heapBlock);
    const heap = this.#page(KIND_REL_PAGE, main.spc, main.db, main.rel, 0, heapBlock);
    const map = this.#page(KIND_REL_PAGE, main.spc, main.db, main.rel, FORK_FSM, fsmBlock);
    if (this.#dry) return;
    const record = this.#record;
    for (let i = 0; i <= record.maxBlockId; i++) {
      const b = record.blocks[i] as DecodedBlock;
      if (!b.inUse || b.fork !== 0 || b.block !== heapBlock) continue;
      const free = freeSpaceAfter(record, i, heap, this.#major);
      if (free !== undefined) fsmSet(map, slot, fsmCategory(free));
      return;
    }
  }
  slruDelta(kind: SlruKind, page: number, delta: Buffer): void {
    const target = this.#page(KIND_SLRU_PAGE, 0, 0, kind, 0, page);
    this.applied++;
    if (!this.#dry) applySideDelta(target, delta, 0 as Lsn);
  }
  slruZero(kind: SlruKind, page: number): void {
    const target = this.#page(KIND_SLRU_PAGE, 0, 0, kind, 0, page);
    if (!this.#dry) target.fill(0);
  }
  // What does not change pages costs Postgres nothing to speak of either; pgbench writes none of it.
  slruTruncate(): void {}
  relCreate(): void {}
  relTruncate(): void {}
  relDrop(): void {}
  dbCopy(): void {}
  dbCreate(): void {}
  dbDrop(): void {}
  relmap(): void {}
  twophasePut(): void {}
  twophaseDelete(): void {}
  originAdvance(): void {}
  originDrop(): void {}
  counters(): void {}
  parameters(): void {}
}

const NONE = Buffer.alloc(0);
