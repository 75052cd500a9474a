/** The stored side of a timeline: its directory, index, layer set and frozen layers, and the jobs that change them. One job at a time; each ends
 *  with the index published and the set swapped in one step. Invariants: the index on disk never names a file that is not durable; a file
 *  leaves the disk only after an index without it is durable; a failed job changes nothing and may be repeated. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { LakebaseError, type Logger, SerialQueue, failpoint, isCode } from '@lakebase/base';
import { decodeDekReference, type ObjectKey } from '@lakebase/envelope';
import type { Lsn } from '@lakebase/ids';
import type { ProjectKeys } from '@lakebase/keys';
import {
  type Entry,
  type LayerDescriptor,
  type LayerFiles,
  LayerHandle,
  LayerSet,
  type ObjectEntry,
  type OpenLayer,
  type RemoteState,
  bornOf,
  type TimelineIndex,
  flushLayer,
  keyFromText,
  keyToText,
  readIndex,
  sealedObjectsOf,
  syncDirectory,
  writeFileDurably,
  writeIndex,
} from '@lakebase/layers';
import type { CompactionJob, StorageJob } from './compaction-job.ts';
import { FRESH_PER_JOB, type KeyMessage, type MoreKeys, packKeys } from './compaction-keys.ts';
import { LayerMerges, type MergeHost } from './layer-merges.ts';
import { INDEX_FILE, objectName, removeUnreferenced } from './storage-directory.ts';

/** A layer with less is written by the main thread itself: no worker is started for the trickle of an idle database. */
const FLUSH_HERE_BYTES = 1 << 20;
const JOB_TRIES = 5;

export interface StorageOptions {
  readonly compactionLayers: number;
  readonly layerFileBytes: number;
  readonly maxRecordsPerPage: number;
}

/** Runs a job in a worker thread. */
export type RunJob = (job: StorageJob, more?: MoreKeys) => Promise<LayerDescriptor[]>;
export type RunCompaction = (job: CompactionJob, more?: MoreKeys) => Promise<LayerDescriptor[]>;
/** The files of a timeline with the keys of its project. */
export interface TimelineFiles extends LayerFiles {
  readonly keys: ProjectKeys;
}

interface Frozen {
  readonly layer: OpenLayer;
  readonly prevRecordLsn: Lsn;
}

export class TimelineStorage {
  readonly files: TimelineFiles;
  index: TimelineIndex;
  /** Of the index file's own key. */
  #indexKey: Buffer;
  set: LayerSet;
  /** Newest first, not yet in the set. */
  frozen: readonly Frozen[] = [];
  readonly #flushElsewhere: RunJob | undefined;
  readonly #jobs = new SerialQueue();
  #nextNumber: number;
  /** Of what is written from now on. */
  #generation: number;
  #remoteNames: ReadonlySet<string>;
  #closed = false;
  /** Grows with every published change of what the index says, its bookkeeping about the store apart. */
  changes = 0;
  onChange: () => void = () => {};
  /** A frozen layer is in published files and out of view. */
  onWritten: (layer: OpenLayer) => void = () => {};
  readonly #merges: LayerMerges;

  private constructor(
    files: TimelineFiles,
    { index, reference }: { index: TimelineIndex; reference: Buffer },
    options: StorageOptions,
    compact: RunCompaction,
    log: Logger,
    flushElsewhere: RunJob | undefined,
  ) {
    this.#flushElsewhere = flushElsewhere;
    this.files = files;
    this.index = index;
    this.#indexKey = reference;
    this.#nextNumber = index.nextLayerNumber;
    this.#generation = index.generation;
    this.#remoteNames = new Set(index.remote?.names);
    this.set = LayerSet.open(index.layers, files);
    this.#merges = new LayerMerges(this.#mergeHost(), options, compact, log);
  }

  #mergeHost(): MergeHost {
    const now = (): this => this;
    return {
      files: this.files,
      get index() {
        return now().index;
      },
      get set() {
        return now().set;
      },
      get generation() {
        return now().#generation;
      },
      get closed() {
        return now().#closed;
      },
      takeNumber: () => this.#takeNumber(),
      replace: (remove, add) => this.#job(() => this.#publish(remove, add, {})),
      repeated: (run) => this.#repeated(run),
      jobKeys: (layers) => this.#jobKeys(layers),
      changed: () => this.onChange(),
    };
  }

  /** Makes the directory durable with a first index. The layer files are there already. */
  static async create(files: TimelineFiles, index: TimelineIndex): Promise<void> {
    await writeIndex(join(files.directory, INDEX_FILE), index, files.keys);
    await syncDirectory(join(files.directory, '..'));
  }

  /** Undefined when the directory has no index: an unfinished creation. */
  static async open(
    files: TimelineFiles,
    options: StorageOptions,
    compact: RunCompaction,
    log: Logger,
    flushElsewhere?: RunJob,
  ): Promise<TimelineStorage | undefined> {
    const found = await readIndex(join(files.directory, INDEX_FILE), files.project, files.timeline, files.keys);
    if (found === undefined) return undefined;
    const storage = new TimelineStorage(files, found, options, compact, log, flushElsewhere);
    // Readers open their files in the middle of a read, where nothing can be waited for.
    await files.keys.load(storage.#objects().map((o) => keyFromText(o.key)));
    // What is in the store may have left this disk.
    storage.#markRemote();
    for (const layer of storage.set.layers) if (!storage.isRemote(layer.descriptor.name) || existsSync(layer.path)) layer.verifyPresence();
    await removeUnreferenced(files.directory, storage.index);
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

  /** The store has this file, and an index that names it, under a confirmed generation. */
  isRemote(name: string): boolean {
    return this.#remoteNames.has(name);
  }

  /** A merge is under way or about to begin. */
  get compacting(): boolean {
    return this.#merges.pending;
  }

  /** Names of files written from now on carry this generation, and so does the index, from before this resolves. */
  adopt(generation: number): Promise<void> {
    return this.#job(async () => {
      if (generation <= this.#generation && this.index.generation === this.#generation) return;
      this.#generation = Math.max(this.#generation, generation);
      await this.#write(this.index);
    });
  }

  /** Remembers what the store has. */
  setRemote(remote: RemoteState): Promise<void> {
    return this.#job(async () => {
      await this.#write({ ...this.index, remote });
      this.#remoteNames = new Set(remote.names);
      this.#markRemote();
    });
  }

  /** Their local files may be dropped when room is needed. */
  #markRemote(): void {
    for (const layer of this.set.layers) if (this.isRemote(layer.descriptor.name)) layer.remote = true;
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
        await failpoint('pageserver.flush.before-layer');
        const add = layer.empty ? [] : await this.#writeLayer(layer);
        await failpoint('pageserver.flush.before-index');
        await this.#publish([], add, { diskConsistentLsn: layer.endLsn, prevRecordLsn });
        this.frozen = this.frozen.slice(0, -1);
        this.onWritten(layer);
        await failpoint('pageserver.flush.after-index');
      }
      this.#merges.consider();
    });
  }

  async #writeLayer(layer: OpenLayer): Promise<LayerDescriptor[]> {
    const { directory, project, timeline, keys } = this.files;
    const target = { directory, project, timeline, generation: this.#generation, number: this.#takeNumber() };
    const elsewhere = this.#flushElsewhere;
    if (elsewhere === undefined || layer.byteCount < FLUSH_HERE_BYTES) return [await flushLayer(layer, { ...target, keys })];
    return this.#repeated(async () => elsewhere({ kind: 'flush', layer: layer.toMessage(), keys: await this.#jobKeys([]), ...target }));
  }

  #jobKeys(layers: readonly LayerDescriptor[]): Promise<KeyMessage> {
    return packKeys(
      this.files.keys,
      layers.map((d) => d.key),
      FRESH_PER_JOB,
    );
  }

  /** A job whose worker was ended because of another project is run again. */
  async #repeated<T>(run: () => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries++) {
      try {
        return await run();
      } catch (error) {
        if (!isCode(error, 'UNAVAILABLE') || tries === JOB_TRIES || this.#closed) throw error;
      }
    }
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
  putObject(
    prefix: 'suspend' | 'bootset' | 'heat',
    seal: (name: string, key: ObjectKey) => Buffer,
    change: (entry: ObjectEntry) => Partial<TimelineIndex>,
  ): Promise<void> {
    return this.#job(async () => {
      const { keys } = this.files;
      const before = this.index[prefix === 'bootset' ? 'bootSet' : prefix]?.file;
      const file = objectName(prefix, this.#takeNumber(), this.#generation);
      await keys.reserve(1);
      const key = keys.create();
      const bytes = seal(file, key);
      await writeFileDurably(join(this.files.directory, file), bytes);
      const hash = createHash('sha256').update(bytes).digest('hex');
      await this.#publish(
        [],
        [],
        change({ file, key: keyToText(key.keyReference), bytes: bytes.length, hash, ...bornOf(key.keyReference) }),
      );
      if (before !== undefined) await unlink(join(this.files.directory, before)).catch(() => {});
    });
  }

  /** The oldest KEK that a key of anything here is wrapped by. */
  get oldestKekVersion(): number {
    const references = [this.#indexKey, ...this.#objects().map((o) => keyFromText(o.key))].filter((r) => r.length > 0);
    return Math.min(Number.MAX_SAFE_INTEGER, ...references.map((r) => decodeDekReference(r).kekVersion));
  }

  /** Waits for the jobs queued so far. */
  settled(): Promise<void> {
    return this.#jobs.run(async () => {});
  }

  /** Everything the index names, with its key. */
  #objects(): readonly { readonly key: string }[] {
    return [...this.index.layers, ...sealedObjectsOf(this.index)];
  }

  /** Leaves no key here that is wrapped by a KEK older than `kekVersion`: new wrappings go into the index, no other byte is written. What took
   *  its key before now is waited for. When it rejects, run it again. */
  rewrap(kekVersion: number): Promise<number> {
    return this.#merges.queue.run(() =>
      this.#job(async () => {
        const isOld = (reference: Buffer): boolean => reference.length > 0 && decodeDekReference(reference).kekVersion < kekVersion;
        const old = [...new Set(this.#objects().map((o) => o.key))].filter((key) => isOld(keyFromText(key)));
        if (old.length === 0 && !isOld(this.#indexKey)) return 0;
        const fresh = await this.files.keys.rewrap(old.map(keyFromText));
        const changed = new Map(old.map((key, i) => [key, keyToText(fresh[i] as Buffer)]));
        const again = <T extends { readonly key: string }>(o: T): T => ({ ...o, key: changed.get(o.key) ?? o.key });
        const { layers, suspend, bootSet, heat = null } = this.index;
        await this.#publish([], [], {
          layers: layers.map(again),
          suspend: suspend === null ? null : again(suspend),
          bootSet: bootSet === null ? null : again(bootSet),
          heat: heat === null ? null : again(heat),
        });
        if (isOld(this.#indexKey)) throw new LakebaseError('UNAVAILABLE', 'the index was written with a key of an older version; again');
        for (const handle of this.set.layers) handle.key = changed.get(handle.descriptor.key) ?? handle.descriptor.key;
        return old.length;
      }),
    );
  }

  /** Puts `layer` under a fresh data key: a copy is published in its place. False when it is gone already. Between two of these merges get their turn. */
  reEncrypt(layer: LayerHandle): Promise<boolean> {
    return this.#merges.reEncrypt(layer);
  }
  /** Merges what is L0 now, and writes images when they are due. */
  compact(): Promise<void> {
    return this.#merges.run();
  }
  get compactions(): number {
    return this.#merges.count;
  }

  /** `wipe`: of the memory of what was open. */
  async close(wipe = false): Promise<void> {
    this.#closed = true;
    await this.settled();
    this.set.close(wipe);
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
    await this.#write({
      ...this.index,
      ...change,
      layers: [...(change.layers ?? this.index.layers).filter((d) => !gone.has(d.name)), ...add],
    });
    this.changes++;
    this.set = this.set.replaced(
      remove,
      add.map((d) => new LayerHandle(d, this.files)),
    );
    if (remove.length > 0) await failpoint('pageserver.compaction.after-publish');
    for (const layer of remove) await layer.discard();
    this.onChange();
  }

  async #write(next: TimelineIndex): Promise<void> {
    const index = { ...next, generation: this.#generation, nextLayerNumber: this.#nextNumber };
    const written = await writeIndex(join(this.files.directory, INDEX_FILE), index, this.files.keys);
    this.index = written.index;
    this.#indexKey = written.reference;
  }
}
