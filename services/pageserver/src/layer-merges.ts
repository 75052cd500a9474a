/** Which layers of a timeline are merged, imaged or put under fresh keys, and when; the work is done by {@link RunCompaction}.
 *  Invariants: one at a time, as two merges of the same layers would both be published and changes applied twice; the storage's job queue stays free
 *  for flushes meanwhile; what fails changes nothing and is tried again after the next flush. */
import { LakebaseError, type Logger, SerialQueue, errorMessage, failpoint } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import type { LayerDescriptor, LayerHandle, LayerSet, TimelineIndex } from '@lakebase/layers';
import type { CompactionJob } from './compaction-job.ts';
import { type KeyMessage, type MoreKeys, packKeys } from './compaction-keys.ts';
import { withLocalLayers } from './job-layers.ts';
import type { RunCompaction, StorageOptions, TimelineFiles } from './storage.ts';

/** The storage, as merges see it. */
export interface MergeHost {
  readonly files: TimelineFiles;
  readonly index: TimelineIndex;
  readonly set: LayerSet;
  readonly generation: number;
  readonly closed: boolean;
  takeNumber(): number;
  /** In a job: both at once. */
  replace(remove: readonly LayerHandle[], add: readonly LayerDescriptor[]): Promise<void>;
  repeated<T>(run: () => Promise<T>): Promise<T>;
  jobKeys(layers: readonly LayerDescriptor[]): Promise<KeyMessage>;
  changed(): void;
}

export class LayerMerges {
  readonly #host: MergeHost;
  readonly #options: StorageOptions;
  readonly #compact: RunCompaction;
  readonly #log: Logger;
  /** Also of whoever must not see half a merge. */
  readonly queue = new SerialQueue();
  #queued = false;
  /** Merges done. */
  count = 0;

  constructor(host: MergeHost, options: StorageOptions, compact: RunCompaction, log: Logger) {
    this.#host = host;
    this.#options = options;
    this.#compact = compact;
    this.#log = log;
  }

  /** A merge is under way or about to begin. */
  get pending(): boolean {
    return this.#queued;
  }

  /** L0 layers, oldest first. */
  #level0(): LayerHandle[] {
    return this.#host.set.layers.filter((l) => l.descriptor.level === 0 && l.descriptor.kind === 'delta').reverse();
  }

  consider(): void {
    if (this.#queued || this.#host.closed || this.#level0().length < this.#options.compactionLayers) return;
    this.#queued = true;
    void this.run()
      .catch((error: unknown) => {
        if (!(error instanceof LakebaseError && error.code === 'CLOSED'))
          this.#log.error({ err: errorMessage(error) }, 'compaction failed; it will be tried again after the next flush');
      })
      .finally(() => {
        this.#queued = false;
        this.#host.changed();
      });
  }

  /** Merges what is L0 now; then writes images when enough has gathered since the last. The job queue stays free for flushes meanwhile.
   *  One at a time: two merges of the same layers would both be published, and changes applied twice. */
  run(): Promise<void> {
    return this.queue.run(() => this.#once());
  }

  async #once(): Promise<void> {
    const inputs = this.#level0();
    if (inputs.length > 0) {
      const merged = await this.#job('merge', inputs, 0 as Lsn);
      await failpoint('pageserver.compaction.before-publish');
      await this.#host.replace(inputs, merged);
      this.count++;
    }
    const imageLsn = this.#imageLsnWhenDue();
    if (imageLsn === undefined) return;
    const images = await this.#job('images', [], imageLsn);
    await this.#host.replace([], images);
  }

  #job(
    kind: CompactionJob['kind'],
    inputs: readonly LayerHandle[],
    imageLsn: number,
    only?: readonly LayerDescriptor[],
  ): Promise<LayerDescriptor[]> {
    const more: MoreKeys = (count) => packKeys(this.#host.files.keys, [], count);
    return this.#host.repeated(async () => {
      const layers = only ?? this.#host.index.layers;
      return withLocalLayers(this.#host.set, inputs, imageLsn, async (absent) =>
        this.#compact({ ...this.#message(kind, layers, inputs, imageLsn, await this.#host.jobKeys(layers)), absent }, more),
      );
    });
  }

  #message(
    kind: CompactionJob['kind'],
    layers: readonly LayerDescriptor[],
    inputs: readonly LayerHandle[],
    imageLsn: number,
    keys: KeyMessage,
  ): CompactionJob {
    return {
      kind,
      keys,
      directory: this.#host.files.directory,
      project: this.#host.files.project,
      timeline: this.#host.files.timeline,
      major: this.#host.index.pgVersion,
      layers,
      inputs: inputs.map((l) => l.descriptor.name),
      imageLsn,
      generation: this.#host.generation,
      number: this.#host.takeNumber(),
      targetBytes: this.#options.layerFileBytes,
      maxRecordsPerPage: this.#options.maxRecordsPerPage,
    };
  }

  /** End of the newest L1 layer when three merges gathered a third of the last images' size (or sixteen merges: bounds what a read visits). */
  #imageLsnWhenDue(): Lsn | undefined {
    const layers = this.#host.set.layers.map((l) => l.descriptor);
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

  /** Puts `layer` under a fresh data key: a copy is published in its place. False when it is gone already. Between two of these merges get their turn. */
  reEncrypt(layer: LayerHandle): Promise<boolean> {
    return this.queue.run(async () => {
      if (!this.#host.set.layers.includes(layer)) return false;
      const copy = await this.#job('re-encrypt', [layer], 0, [layer.descriptor]);
      await this.#host.replace([layer], copy);
      return true;
    });
  }
}
