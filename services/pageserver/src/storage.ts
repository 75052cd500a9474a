/** The stored side of a timeline: its directory, index, layer set and frozen layers, and the jobs that change them. One job at a time; each ends
 *  with the index published and the set swapped in one step. Invariants: the index on disk never names a file that is not durable; a file
 *  leaves the disk only after an index without it is durable; a failed job changes nothing and may be repeated. */
import { mkdir, readdir, rm, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { LakebaseError, type Logger, SerialQueue, errorMessage } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import {
  type Entry,
  type LayerDescriptor,
  type LayerFiles,
  LayerHandle,
  LayerSet,
  type OpenLayer,
  TEMP_SUFFIX,
  type TimelineIndex,
  flushLayer,
  isLayerName,
  readIndex,
  syncDirectory,
  writeFileDurably,
  writeIndex,
} from '@lakebase/layers';
import type { CompactionJob, StorageJob } from './compaction-job.ts';

export const INDEX_FILE = 'index';
/** A layer with less is written by the main thread itself: no worker is started for the trickle of an idle database. */
const FLUSH_HERE_BYTES = 1 << 20;

export interface StorageOptions {
  readonly compactionLayers: number;
  readonly layerFileBytes: number;
  readonly maxRecordsPerPage: number;
}

/** Runs a job in a worker thread. */
export type RunJob = (job: StorageJob) => Promise<LayerDescriptor[]>;

interface Frozen {
  readonly layer: OpenLayer;
  readonly prevRecordLsn: Lsn;
}

export class TimelineStorage {
  readonly files: LayerFiles;
  index: TimelineIndex;
  set: LayerSet;
  /** Newest first, not yet in the set. */
  frozen: readonly Frozen[] = [];
  readonly #options: StorageOptions;
  readonly #compact: (job: CompactionJob) => Promise<LayerDescriptor[]>;
  readonly #flushElsewhere: RunJob | undefined;
  readonly #log: Logger;
  readonly #jobs = new SerialQueue();
  #nextNumber: number;
  #closed = false;
  #compactionQueued = false;
  readonly #compactions = new SerialQueue();
  compactions = 0;

  private constructor(
    files: LayerFiles,
    index: TimelineIndex,
    options: StorageOptions,
    compact: (job: CompactionJob) => Promise<LayerDescriptor[]>,
    log: Logger,
    flushElsewhere: RunJob | undefined,
  ) {
    this.#flushElsewhere = flushElsewhere;
    this.files = files;
    this.index = index;
    this.#nextNumber = index.nextLayerNumber;
    this.set = LayerSet.open(index.layers, files);
    this.#options = options;
    this.#compact = compact;
    this.#log = log;
  }

  /** Makes the directory durable with a first index. The layer files are there already. */
  static async create(files: LayerFiles, index: TimelineIndex): Promise<void> {
    await writeIndex(join(files.directory, INDEX_FILE), index, files.ciphers);
    await syncDirectory(join(files.directory, '..'));
  }

  /** Undefined when the directory has no index: an unfinished creation. */
  static async open(
    files: LayerFiles,
    options: StorageOptions,
    compact: (job: CompactionJob) => Promise<LayerDescriptor[]>,
    log: Logger,
    flushElsewhere?: RunJob,
  ): Promise<TimelineStorage | undefined> {
    const index = readIndex(join(files.directory, INDEX_FILE), files.project, files.timeline, files.ciphers);
    if (index === undefined) return undefined;
    const storage = new TimelineStorage(files, index, options, compact, log, flushElsewhere);
    for (const layer of storage.set.layers) layer.verifyPresence();
    await storage.#removeUnreferenced();
    return storage;
  }

  collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean {
    for (const { layer } of this.frozen) {
      if (layer.endLsn <= floor && layer.startLsn < layer.endLsn) return false;
      if (layer.collect(key, upTo, floor, out)) return true;
    }
    return this.set.collect(key, upTo, floor, out);
  }

  get diskConsistentLsn(): Lsn {
    return this.index.diskConsistentLsn as Lsn;
  }

  /** Takes a frozen layer into view; {@link flush} writes it. */
  addFrozen(layer: OpenLayer, prevRecordLsn: Lsn): void {
    this.frozen = [{ layer, prevRecordLsn }, ...this.frozen];
  }

  /** Writes all frozen layers, oldest first; resolves when they are in published L0 layers. What fails stays frozen: call again. */
  flush(): Promise<void> {
    return this.#job(async () => {
      for (let oldest = this.frozen.at(-1); oldest !== undefined; oldest = this.frozen.at(-1)) {
        const { layer, prevRecordLsn } = oldest;
        const add = layer.empty ? [] : await this.#writeLayer(layer);
        await this.#publish([], add, { diskConsistentLsn: layer.endLsn, prevRecordLsn });
        this.frozen = this.frozen.slice(0, -1);
      }
      this.#considerCompaction();
    });
  }

  async #writeLayer(layer: OpenLayer): Promise<LayerDescriptor[]> {
    const { directory, project, timeline, ciphers } = this.files;
    const target = { directory, project, timeline, generation: this.index.generation, number: this.#takeNumber() };
    if (this.#flushElsewhere === undefined || layer.byteCount < FLUSH_HERE_BYTES) return [await flushLayer(layer, { ...target, ciphers })];
    return this.#flushElsewhere({ kind: 'flush', layer: layer.toMessage(), ...target });
  }

  /** Publishes layers written outside (`make` gets a fresh number). */
  addLayers(make: (number: number) => Promise<LayerDescriptor[]>): Promise<void> {
    return this.#job(async () => this.#publish([], await make(this.#takeNumber()), {}));
  }

  /** Replaces fields of the index. */
  update(change: Partial<TimelineIndex>): Promise<void> {
    return this.#job(() => this.#publish([], [], change));
  }

  /** Writes a sealed object and makes the index name it; the one it replaces goes away. */
  putObject(prefix: 'suspend' | 'bootset', bytes: Buffer, change: (file: string) => Partial<TimelineIndex>): Promise<void> {
    return this.#job(async () => {
      const before = prefix === 'suspend' ? this.index.suspend?.file : this.index.bootSet;
      const file = `${prefix}-${this.#takeNumber().toString(16).padStart(8, '0')}`;
      await writeFileDurably(join(this.files.directory, file), bytes);
      await this.#publish([], [], change(file));
      if (before !== null && before !== undefined) await unlink(join(this.files.directory, before)).catch(() => {});
    });
  }

  /** Waits for the jobs queued so far. */
  settled(): Promise<void> {
    return this.#jobs.run(async () => {});
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.settled();
    this.set.close();
  }

  #job<T>(run: () => Promise<T>): Promise<T> {
    return this.#jobs.run(async () => {
      if (this.#closed) throw new LakebaseError('CLOSED', 'the timeline is shutting down');
      return run();
    });
  }

  #takeNumber(): number {
    // Taken in memory only: files of a number that no published index has seen are unreferenced, and removed at the next start.
    return this.#nextNumber++;
  }

  async #publish(remove: readonly LayerHandle[], add: readonly LayerDescriptor[], change: Partial<TimelineIndex>): Promise<void> {
    const gone = new Set(remove.map((l) => l.descriptor.name));
    const next = {
      ...this.index,
      ...change,
      nextLayerNumber: this.#nextNumber,
      layers: [...this.index.layers.filter((d) => !gone.has(d.name)), ...add],
    };
    await writeIndex(join(this.files.directory, INDEX_FILE), next, this.files.ciphers);
    this.index = next;
    this.set = this.set.replaced(
      remove,
      add.map((d) => new LayerHandle(d, this.files)),
    );
    for (const layer of remove) {
      layer.close();
      await unlink(layer.path).catch(() => {});
    }
  }

  /** L0 layers, oldest first. */
  #level0(): LayerHandle[] {
    return this.set.layers.filter((l) => l.descriptor.level === 0 && l.descriptor.kind === 'delta').reverse();
  }

  #considerCompaction(): void {
    if (this.#compactionQueued || this.#closed || this.#level0().length < this.#options.compactionLayers) return;
    this.#compactionQueued = true;
    void this.compact()
      .catch((error: unknown) => {
        if (!(error instanceof LakebaseError && error.code === 'CLOSED'))
          this.#log.error({ err: errorMessage(error) }, 'compaction failed; it will be tried again after the next flush');
      })
      .finally(() => {
        this.#compactionQueued = false;
      });
  }

  /** Merges what is L0 now; then writes images when enough has gathered since the last. The job queue stays free for flushes meanwhile.
   *  One at a time: two merges of the same layers would both be published, and changes applied twice. */
  compact(): Promise<void> {
    return this.#compactions.run(() => this.#compactOnce());
  }

  async #compactOnce(): Promise<void> {
    const inputs = this.#level0();
    if (inputs.length > 0) {
      const merged = await this.#compact(this.#compactionJob('merge', inputs));
      await this.#job(() => this.#publish(inputs, merged, {}));
      this.compactions++;
    }
    const imageLsn = this.#imageLsnWhenDue();
    if (imageLsn === undefined) return;
    const images = await this.#compact({ ...this.#compactionJob('images', []), imageLsn });
    await this.#job(() => this.#publish([], images, {}));
  }

  #compactionJob(kind: 'merge' | 'images', inputs: readonly LayerHandle[]): CompactionJob {
    return {
      kind,
      directory: this.files.directory,
      project: this.files.project,
      timeline: this.files.timeline,
      major: this.index.pgVersion,
      layers: this.index.layers,
      inputs: inputs.map((l) => l.descriptor.name),
      imageLsn: 0,
      generation: this.index.generation,
      number: this.#takeNumber(),
      targetBytes: this.#options.layerFileBytes,
      maxRecordsPerPage: this.#options.maxRecordsPerPage,
    };
  }

  /** End of the newest L1 layer when three merges gathered a third of the last images' size (or sixteen merges: bounds what a read visits). */
  #imageLsnWhenDue(): Lsn | undefined {
    const layers = this.set.layers.map((l) => l.descriptor);
    const lastImage = Math.max(0, ...layers.filter((d) => d.kind === 'image').map((d) => d.endLsn));
    const since = layers.filter((d) => d.kind === 'delta' && d.level > 0 && d.endLsn > lastImage);
    const merges = new Set(since.map((d) => d.endLsn)).size;
    if (merges < 3) return undefined;
    const sum = (list: readonly LayerDescriptor[]): number => list.reduce((n, d) => n + d.bytes, 0);
    const imageBytes = sum(layers.filter((d) => d.kind === 'image' && d.endLsn === lastImage));
    if (merges < 16 && sum(since) * 3 < imageBytes) return undefined;
    const lsn = Math.max(...since.map((d) => d.endLsn)) as Lsn;
    // A layer flushed meanwhile may end at the very same LSN (a clean suspend): then next time.
    return layers.some((d) => d.level === 0 && d.endLsn <= lsn && d.kind === 'delta') ? undefined : lsn;
  }

  async #removeUnreferenced(): Promise<void> {
    const keep = new Set<string>([INDEX_FILE, ...this.index.layers.map((d) => d.name)]);
    if (this.index.suspend !== null) keep.add(this.index.suspend.file);
    if (this.index.bootSet !== null) keep.add(this.index.bootSet);
    for (const name of await readdir(this.files.directory)) {
      if (keep.has(name)) continue;
      const ours = isLayerName(name) || name.endsWith(TEMP_SUFFIX) || /^(suspend|bootset)-[0-9a-f]{8}$/.test(name);
      if (ours) await rm(join(this.files.directory, name), { force: true });
    }
  }
}

export async function ensureDirectory(path: string): Promise<void> {
  await mkdir(path, { recursive: true, mode: 0o700 });
}
