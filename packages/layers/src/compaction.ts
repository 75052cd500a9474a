/** Background maintenance of layers, as functions over files: merging L0 delta layers into key-ranged L1 layers, and writing image layers.
 *  Runs in a worker thread in the service and inline in tests. Invariants: inputs are never changed; outputs hold exactly the inputs' changes
 *  plus page images, so that no page needs more than `maxRecordsPerPage` changes within the merged range. */
import { join } from 'node:path';
import { LakebaseError, assert } from '@lakebase/base';
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import { ARG_STOP, ENTRY_FSM_HINT, ENTRY_IMAGE, ENTRY_VALUE, type Entry } from './entry.ts';
import { type Floors, floorOf } from './floors.ts';
import {
  FIRST_PAGE_KIND,
  KEY_BYTES,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  KIND_SLRU_PAGE,
  KIND_SLRU_SEGMENT,
  type SeriesId,
  decodeKey,
  encodeKey,
  metaSeries,
  sameFork,
} from './key.ts';
import { LayerCursor } from './layer-cursor.ts';
import type { LayerKind } from './layer-format.ts';
import { layerName } from './layer-name.ts';
import { type LayerFiles, type LayerHandle, type LayerSet, NOT_LOCAL } from './layer-set.ts';
import { type LayerDescriptor, LayerWriter } from './layer-writer.ts';
import { PageReader, type PageRedo } from './page-reader.ts';
import { scanValues } from './scan.ts';

export const SLRU_PAGES_PER_SEGMENT = 32;
const DRAIN_BYTES = 1 << 20;

export interface CompactionOptions {
  readonly files: LayerFiles;
  readonly generation: number;
  readonly number: number;
  /** Output files are cut at about this size. */
  readonly targetBytes: number;
  readonly maxRecordsPerPage: number;
}

/** Writes a run of layer files cut by size at key boundaries. */
class RunWriter {
  readonly done: LayerDescriptor[] = [];
  readonly #options: CompactionOptions;
  readonly #kind: LayerKind;
  readonly #range: { startLsn: Lsn; endLsn: Lsn };
  #writer: LayerWriter | undefined;
  #part = 0;

  constructor(options: CompactionOptions, kind: LayerKind, startLsn: Lsn, endLsn: Lsn) {
    this.#options = options;
    this.#kind = kind;
    this.#range = { startLsn, endLsn };
  }

  /** The writer for the next key. */
  async forKey(): Promise<LayerWriter> {
    const w = this.#writer;
    if (w !== undefined && w.bytesWritten < this.#options.targetBytes) {
      if (w.pendingBytes >= DRAIN_BYTES) await w.drain();
      return w;
    }
    if (w !== undefined) this.done.push(await w.finish());
    const { files, generation, number } = this.#options;
    const { startLsn, endLsn } = this.#range;
    const path = join(files.directory, layerName(this.#kind, startLsn, endLsn, number, this.#part++, generation));
    const identity = {
      project: files.project,
      timeline: files.timeline,
      kind: this.#kind,
      level: 1,
      generation,
      startLsn,
      endLsn,
      compress: true,
    };
    this.#writer = await LayerWriter.create(path, identity, files.keys);
    return this.#writer;
  }

  async finish(): Promise<LayerDescriptor[]> {
    if (this.#writer !== undefined) this.done.push(await this.#writer.finish());
    this.#writer = undefined;
    return this.done;
  }

  async abandon(): Promise<void> {
    await this.#writer?.abandon();
  }
}

/** Merges consecutive delta layers of `set` into L1 layers. `inputs` in LSN order. */
export async function mergeDeltas(
  set: LayerSet,
  inputs: readonly LayerHandle[],
  redo: PageRedo,
  options: CompactionOptions,
): Promise<LayerDescriptor[]> {
  const first = inputs[0] as LayerHandle;
  const startLsn = Math.min(...inputs.map((l) => l.descriptor.startLsn)) as Lsn;
  const endLsn = Math.max(first.descriptor.endLsn, ...inputs.map((l) => l.descriptor.endLsn)) as Lsn;
  for (const l of set.layers)
    assert(
      l.descriptor.kind !== 'image' || l.descriptor.endLsn <= startLsn || l.descriptor.endLsn >= endLsn,
      'an image lies inside the range to merge: its changes would be applied twice',
    );
  const run = new RunWriter(options, 'delta', startLsn, endLsn);
  const reader = new PageReader(set, redo);
  const cursors = inputs.map((l) => new LayerCursor(l.reader()));
  const key = Buffer.alloc(KEY_BYTES);
  try {
    for (;;) {
      let least: Buffer | undefined;
      for (const c of cursors) if (c.key !== undefined && (least === undefined || c.key.compare(least) < 0)) least = c.key;
      if (least === undefined) break;
      least.copy(key);
      const writer = await run.forKey();
      const imager = (key[0] as number) >= FIRST_PAGE_KIND ? new PageImager(reader, key, writer, options.maxRecordsPerPage) : undefined;
      for (const c of cursors) {
        while (c.key?.equals(key) === true) {
          c.entries((entry) => {
            imager?.before(entry);
            writer.add(key, entry.lsn, entry.kind, entry.arg, entry.bytes);
            imager?.after(entry);
            return true;
          });
          c.next();
          if (writer.pendingBytes >= DRAIN_BYTES * 8) await writer.drain();
        }
      }
      imager?.end();
    }
    return await run.finish();
  } catch (error) {
    await run.abandon();
    throw error;
  }
}

/** Adds an image after the last change of an LSN whenever a page has gathered too many changes since its last stop entry. */
class PageImager {
  readonly #reader: PageReader;
  readonly #key: Buffer;
  readonly #writer: LayerWriter;
  readonly #limit: number;
  readonly #series: SeriesId;
  readonly #block: number;
  #pending = 0;
  #lsn = 0 as Lsn;
  #base: Buffer | undefined;
  #baseLsn = 0 as Lsn;
  /** What came since the last image, oldest first: with its base at hand nothing has to be looked up again. */
  #since: Entry[] = [];

  constructor(reader: PageReader, key: Buffer, writer: LayerWriter, limit: number) {
    this.#reader = reader;
    this.#key = key;
    this.#writer = writer;
    this.#limit = limit;
    const k = decodeKey(key);
    this.#series = k;
    this.#block = k.block;
  }

  before(entry: Entry): void {
    if (entry.lsn > this.#lsn) this.#imageWhenDue();
  }
  after(entry: Entry): void {
    this.#lsn = entry.lsn;
    // A hint is cheap to keep and dear to resolve.
    if ((entry.arg & ARG_STOP) !== 0) this.#pending = 0;
    else this.#pending += entry.kind === ENTRY_FSM_HINT ? 0.125 : 1;
    if (this.#base !== undefined) this.#since.push(entry);
  }
  end(): void {
    this.#imageWhenDue();
  }

  #cut(): boolean {
    return this.#series.kind === KIND_REL_PAGE && floorOf(this.#reader.floors(this.#series, this.#lsn), this.#block) > this.#baseLsn;
  }

  #imageWhenDue(): void {
    if (this.#pending < this.#limit) return;
    let page: Buffer;
    try {
      // A truncation between two images is rare, and only a full read knows of it.
      page =
        this.#base === undefined || this.#cut()
          ? this.#reader.page(this.#series, this.#block, this.#lsn)
          : this.#reader.apply(this.#series, newestToStop(this.#since), this.#base);
    } catch (error) {
      // Redo of one page must not hold up the merge of all: its records stay as they are, and reads of it report the defect.
      if (!(error instanceof LakebaseError) || error.message === NOT_LOCAL) throw error;
      this.#pending = Number.NEGATIVE_INFINITY;
      this.#base = undefined;
      return;
    }
    this.#base = page;
    this.#baseLsn = this.#lsn;
    this.#since = [];
    this.#writer.add(this.#key, this.#lsn, ENTRY_IMAGE, ARG_STOP, page);
    this.#pending = 0;
  }
}

/** Newest first, down to the first that needs nothing older: what {@link PageReader.apply} takes. */
function newestToStop(oldestFirst: readonly Entry[]): Entry[] {
  let from = oldestFirst.length - 1;
  while (from > 0 && ((oldestFirst[from] as Entry).arg & ARG_STOP) === 0) from--;
  return oldestFirst.slice(Math.max(0, from)).reverse();
}

/** Writes everything that exists at `lsn` as image layers. Every delta layer that ends at or before `lsn` must be L1 already: a merge across
 *  an image would hand out changes that the image holds. */
export async function createImages(set: LayerSet, lsn: Lsn, redo: PageRedo, options: CompactionOptions): Promise<LayerDescriptor[]> {
  const reader = new PageReader(set, redo);
  const values = scanValues([], set, lsn);
  for (const l of set.layers) assert(l.descriptor.level > 0 || l.descriptor.endLsn > lsn, 'an L0 layer lies below the image');
  const run = new RunWriter(options, 'image', lsn, lsn);
  try {
    for (const v of values) (await run.forKey()).add(v.keyBytes, lsn, ENTRY_VALUE, ARG_STOP, v.bytes);
    for (const v of values) {
      if (v.key.kind !== KIND_SLRU_SEGMENT) continue;
      const s = metaSeries(KIND_SLRU_PAGE, 0, 0, v.key.rel);
      const first = v.key.block * SLRU_PAGES_PER_SEGMENT;
      await imageRun(run, reader, s, first, v.bytes.readUInt32BE(0), lsn, undefined);
    }
    for (const v of values) {
      if (v.key.kind !== KIND_REL_SIZE) continue;
      const s = sameFork(KIND_REL_PAGE, v.key);
      await imageRun(run, reader, s, 0, v.bytes.readUInt32BE(0), lsn, reader.floors(s, lsn));
    }
    return await run.finish();
  } catch (error) {
    await run.abandon();
    throw error;
  }
}

const ZEROS = Buffer.alloc(BLCKSZ);

async function imageRun(
  run: RunWriter,
  reader: PageReader,
  s: SeriesId,
  first: number,
  count: number,
  lsn: Lsn,
  floors: Floors | undefined,
): Promise<void> {
  for (let block = first; block < first + count; block++) {
    const page = reader.page(s, block, lsn, floors);
    // A page of zeros is what a missing key reads as.
    if (!page.equals(ZEROS)) (await run.forKey()).add(encodeKey(s, block), lsn, ENTRY_IMAGE, ARG_STOP, page);
  }
}
