/** Materialises values and pages as of an LSN from any {@link KeyView}: collects changes back to the newest one that needs nothing older, then
 *  redoes forward. The one code path for GetPage, image creation, database copies and compaction.
 *  Invariants: nothing here awaits; a returned page is the caller's own, in the memory it gave if it gave any; changes at or below a truncation
 *  floor are never applied. */
import type { Lsn } from '@lakebase/ids';
import { BLCKSZ } from '@lakebase/ids';
import { LakebaseError } from '@lakebase/base';
import { ARG_BLOCK_ID, ARG_STOP, ENTRY_DELTA, ENTRY_FSM_HINT, ENTRY_IMAGE, ENTRY_RECORD, ENTRY_ZERO, type Entry } from './entry.ts';
import { type Floors, NO_FLOORS, decodeFloors, floorOf } from './floors.ts';
import { KIND_REL_FLOORS, KIND_REL_PAGE, KIND_REL_SIZE, type SeriesId, encodeKey, sameFork } from './key.ts';
import { RemoteMiss, missOf } from './remote-miss.ts';

export interface KeyView {
  collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean;
}

/** Redo of one change on one page, in place. */
export interface PageRedo {
  record(page: Buffer, bytes: Buffer, blockId: number, lsn: Lsn): void;
  /** `child`: the page {@link childBlock} names, as of the same record, if it exists. */
  delta(page: Buffer, bytes: Buffer, lsn: Lsn, child?: Buffer): void;
  /** Block of the same fork that this delta looks at; undefined for nearly all. */
  childBlock(delta: Buffer): number | undefined;
  /** Free bytes that redo of this record would put into the FSM for this heap page; undefined when none. */
  freeSpaceAfter(page: Buffer, bytes: Buffer, blockId: number, lsn: Lsn): number | undefined;
  setFreeSpace(fsmPage: Buffer, heapBlock: number, freeBytes: number): void;
}

export interface BasePage {
  readonly page: Buffer;
  /** The page is as of this LSN: no later change is in it. */
  readonly lsn: Lsn;
}

export class PageReader {
  readonly #view: KeyView;
  readonly #redo: PageRedo;
  /** Changes applied so far: a metric. */
  applied = 0;

  constructor(view: KeyView, redo: PageRedo) {
    this.#view = view;
    this.#redo = redo;
  }

  /** A small value; undefined when it was never there or is gone. */
  value(s: SeriesId, block: number, lsn: Lsn): Buffer | undefined {
    const entries: Entry[] = [];
    this.#view.collect(encodeKey(s, block), lsn, 0 as Lsn, entries);
    const newest = entries[0];
    return newest === undefined || newest.bytes.length === 0 ? undefined : newest.bytes;
  }

  relSize(s: SeriesId, lsn: Lsn): number | undefined {
    return this.value(sameFork(KIND_REL_SIZE, s), 0, lsn)?.readUInt32BE(0);
  }

  floors(s: SeriesId, lsn: Lsn): Floors {
    const bytes = this.value(sameFork(KIND_REL_FLOORS, s), 0, lsn);
    return bytes === undefined ? NO_FLOORS : decodeFloors(bytes);
  }

  /** The page as of `lsn`; zeros when nothing was ever written there. `base`, when given, must be this very page at an earlier LSN. */
  page(s: SeriesId, block: number, lsn: Lsn, floors?: Floors, base?: BasePage): Buffer {
    return this.pageWithin(s, block, lsn, Number.POSITIVE_INFINITY, floors, base) as Buffer;
  }

  /** {@link page}, or undefined when more than `limit` changes would have to be applied: then it is a case for {@link pageInTurns}. */
  pageWithin(s: SeriesId, block: number, lsn: Lsn, limit: number, floors?: Floors, base?: BasePage, into?: Buffer): Buffer | undefined {
    const floor = s.kind === KIND_REL_PAGE ? floorOf(floors ?? this.floors(s, lsn), block) : (0 as Lsn);
    const usable = base !== undefined && base.lsn >= floor && base.lsn <= lsn ? base : undefined;
    const entries: Entry[] = [];
    const stopped = this.#view.collect(encodeKey(s, block), lsn, usable?.lsn ?? floor, entries);
    if (entries.length > limit) return undefined;
    return this.#apply(s, entries, !stopped ? usable?.page : undefined, undefined, into);
  }

  /** Applies `entries` (newest first) to a copy of `base`. */
  apply(s: SeriesId, entries: readonly Entry[], base?: Buffer): Buffer {
    return this.#apply(s, entries, base, undefined);
  }

  /** {@link page} in pieces, for pages with very many changes and for those with free space hints, which may take a redo of thousands of heap
   *  pages: calls `turn` between them, with what has to be fetched before the next step can be done.
   *  Layers may change meanwhile; what was at `lsn` does not. */
  async pageInTurns(
    s: SeriesId,
    block: number,
    lsn: Lsn,
    turn: (miss: RemoteMiss | undefined) => Promise<void> | undefined,
    base?: BasePage,
  ): Promise<Buffer> {
    const collected = (): { entries: Entry[]; under: Buffer | undefined } => {
      const floor = s.kind === KIND_REL_PAGE ? floorOf(this.floors(s, lsn), block) : (0 as Lsn);
      const usable = base !== undefined && base.lsn >= floor && base.lsn <= lsn ? base : undefined;
      const entries: Entry[] = [];
      const stopped = this.#view.collect(encodeKey(s, block), lsn, usable?.lsn ?? floor, entries);
      return { entries, under: stopped ? undefined : usable?.page };
    };
    let found = unlessMissed(collected);
    for (; found instanceof RemoteMiss; found = unlessMissed(collected)) await turn(found);
    const page = Buffer.alloc(BLCKSZ);
    found.under?.copy(page);
    for (const miss of this.#applyHinted(s, found.entries, page)) await turn(miss ?? undefined);
    return page;
  }

  #apply(
    s: SeriesId,
    entries: readonly Entry[],
    base: Buffer | undefined,
    onStep: ((entry: Entry, page: Buffer) => void) | undefined,
    page: Buffer = Buffer.allocUnsafeSlow(BLCKSZ),
  ): Buffer {
    let last = entries.length - 1;
    if (last >= 0 && (entries[last] as Entry).kind === ENTRY_IMAGE) {
      copyImage(entries[last] as Entry, page);
      last--;
    } else if (base !== undefined) base.copy(page);
    else page.fill(0);
    for (let i = last; i >= 0; i--) {
      const e = entries[i] as Entry;
      if (e.kind === ENTRY_FSM_HINT) {
        // Rare: the rest of the page's changes, hints and all.
        for (const miss of this.#applyHinted(s, entries.slice(0, i + 1), page)) if (miss instanceof RemoteMiss) throw miss;
        return page;
      }
      this.#step(s, e, page);
      onStep?.(e, page);
    }
    this.applied += last + 1;
    return page;
  }

  /** Applies one change that is not a hint. On a miss the page is as it was. */
  #step(s: SeriesId, e: Entry, page: Buffer): void {
    switch (e.kind) {
      case ENTRY_RECORD:
        if ((e.arg & ARG_STOP) !== 0) page.fill(0);
        this.#redo.record(page, e.bytes, e.arg & ARG_BLOCK_ID, e.lsn);
        break;
      case ENTRY_DELTA:
        this.#redo.delta(page, e.bytes, e.lsn, this.#child(s, e));
        break;
      case ENTRY_IMAGE:
        copyImage(e, page);
        break;
      case ENTRY_ZERO:
        page.fill(0);
        break;
      default:
        throw new LakebaseError('CORRUPT', `a change of kind ${e.kind} is filed under a page key`);
    }
  }

  /** Applies `entries` (newest first), yielding now and then and after each heap page that hints make us redo. A miss that is yielded is expected
   *  to be fetched: the step is then done again. */
  *#applyHinted(s: SeriesId, entries: readonly Entry[], page: Buffer): Generator<RemoteMiss | void> {
    const hints: Entry[] = [];
    for (let i = entries.length - 1; i >= 0; i--) {
      const e = entries[i] as Entry;
      if (e.kind === ENTRY_FSM_HINT) {
        hints.push(e);
        continue;
      }
      // What replaces the page makes earlier hints moot.
      if ((e.arg & ARG_STOP) !== 0) hints.length = 0;
      else yield* this.#applyHints(s, page, hints);
      for (let miss = missOf(() => this.#step(s, e, page)); miss !== undefined; miss = missOf(() => this.#step(s, e, page))) yield miss;
      if ((i & 511) === 0) yield;
    }
    this.applied += entries.length;
    yield* this.#applyHints(s, page, hints);
  }

  #child(s: SeriesId, delta: Entry): Buffer | undefined {
    const block = this.#redo.childBlock(delta.bytes);
    if (block === undefined || (this.relSize(s, delta.lsn) ?? 0) <= block) return undefined;
    return this.page(s, block, delta.lsn);
  }

  /** Free space hints, oldest first: only the newest one that redo would have recorded counts for each heap block. */
  *#applyHints(s: SeriesId, page: Buffer, hints: Entry[]): Generator<RemoteMiss | void> {
    if (hints.length === 0) return;
    const byBlock = new Map<number, Lsn[]>();
    for (const hint of hints) {
      const heapBlock = hint.bytes.readUInt32LE(0);
      const lsns = byBlock.get(heapBlock);
      if (lsns === undefined) byBlock.set(heapBlock, [hint.lsn]);
      else if (lsns[lsns.length - 1] !== hint.lsn) lsns.push(hint.lsn);
    }
    hints.length = 0;
    const heap: SeriesId = { ...s, fork: 0 };
    for (const [heapBlock, lsns] of byBlock) {
      const free = yield* fetching(() => this.#freeSpace(heap, heapBlock, lsns));
      if (free !== undefined) this.#redo.setFreeSpace(page, heapBlock, free);
      yield;
    }
  }

  /** Newest recorded free space of a heap block at any of `lsns` (ascending). One forward pass covers all that lie after the pass's base. */
  #freeSpace(heap: SeriesId, heapBlock: number, lsns: Lsn[]): number | undefined {
    const key = encodeKey(heap, heapBlock);
    while (lsns.length > 0) {
      const newest = lsns[lsns.length - 1] as Lsn;
      const floor = floorOf(this.floors(heap, newest), heapBlock);
      const entries: Entry[] = [];
      this.#view.collect(key, newest, floor, entries);
      if (entries.length === 0) return undefined;
      const wanted = new Set<number>(lsns);
      let free: number | undefined;
      this.#apply(heap, entries, undefined, (entry, page) => {
        if (entry.kind === ENTRY_RECORD && wanted.has(entry.lsn))
          free = this.#redo.freeSpaceAfter(page, entry.bytes, entry.arg & ARG_BLOCK_ID, entry.lsn) ?? free;
      });
      if (free !== undefined) return free;
      const base = (entries[entries.length - 1] as Entry).lsn;
      while (lsns.length > 0 && (lsns[lsns.length - 1] as Lsn) >= base) lsns.pop();
    }
    return undefined;
  }
}

function unlessMissed<T>(run: () => T): T | RemoteMiss {
  try {
    return run();
  } catch (error) {
    if (error instanceof RemoteMiss) return error;
    throw error;
  }
}

function* fetching<T>(run: () => T): Generator<RemoteMiss, T> {
  for (;;) {
    const result = unlessMissed(run);
    if (!(result instanceof RemoteMiss)) return result;
    yield result;
  }
}

function copyImage(e: Entry, page: Buffer): void {
  if (e.bytes.length !== BLCKSZ) throw new LakebaseError('CORRUPT', `a page image of ${e.bytes.length} bytes`);
  e.bytes.copy(page);
}
