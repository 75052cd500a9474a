/** What was read of a timeline lately, kept among its objects for the next attach. */
import { type Logger, errorMessage } from '@lakebase/base';
import { KIND_REL_PAGE, type SeriesTable, sealObject } from '@lakebase/layers';
import { readObject } from './bundle.ts';
import { ABSENT, type Catalog } from './catalog.ts';
import { HEAT_OBJECT_MAGIC, HeatMap, type HeatRun, decodeHeat, encodeHeat } from './heat.ts';
import type { TimelineStorage } from './storage.ts';

/** Runs of blocks that were not read before: so many make a heat map worth saving. */
const HEAT_CHANGES = 16;
const HEAT_MS = 15 * 60_000;

export class SavedHeat {
  readonly map = new HeatMap();
  readonly #storage: TimelineStorage;
  readonly #series: SeriesTable;
  readonly #catalog: Catalog;
  readonly #log: Logger;
  readonly #timer: NodeJS.Timeout;
  #closed = false;

  constructor(storage: TimelineStorage, series: SeriesTable, catalog: Catalog, log: Logger) {
    this.#storage = storage;
    this.#series = series;
    this.#catalog = catalog;
    this.#log = log;
    this.#timer = setInterval(() => void this.save(), HEAT_MS);
    this.#timer.unref();
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
  }

  /** When enough has changed to be worth it. Never rejects. */
  async save(): Promise<void> {
    const { map } = this;
    const { index, files } = this.#storage;
    if (this.#closed || files.layers?.store === undefined || map.changes < HEAT_CHANGES) return;
    map.changes = 0;
    const { project, timeline } = index;
    const payload = encodeHeat(map.runs(this.#series));
    try {
      await this.#storage.putObject(
        'heat',
        (name, key) => sealObject(HEAT_OBJECT_MAGIC, { project, timeline, name }, payload, key),
        (entry) => ({ heat: entry }),
      );
    } catch (error) {
      this.#log.warn({ err: errorMessage(error) }, 'the heat map cannot be saved');
    }
  }

  /** What was saved, relations that are gone left out; it counts as read lately again. */
  load(): HeatRun[] {
    const entry = this.#storage.index.heat;
    if (entry === null || entry === undefined) return [];
    const runs = decodeHeat(readObject(HEAT_OBJECT_MAGIC, this.#storage.files, entry)).filter((run) => {
      const id = this.#series.find(run.kind, run.spc, run.db, run.rel, run.fork);
      return id >= 0 && run.kind === KIND_REL_PAGE && run.block < this.#headBlocks(id);
    });
    for (const run of [...runs].reverse()) this.map.note(this.#series.internSeries(run), run.block);
    this.map.changes = 0;
    return runs;
  }

  #headBlocks(id: number): number {
    const blocks = this.#catalog.blocks(id);
    return blocks === ABSENT ? 0 : blocks;
  }
}
