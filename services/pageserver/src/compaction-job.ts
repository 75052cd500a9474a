/** One piece of background work on layers as a plain message, and how it is run: the same function in a worker thread and inline. */
import type { Lsn } from '@lakebase/ids';
import {
  FrameCache,
  type LayerDescriptor,
  LayerSet,
  OpenLayer,
  type OpenLayerMessage,
  createImages,
  flushLayer,
  mergeDeltas,
  reEncryptLayer,
} from '@lakebase/layers';
import { JobKeys, type KeyMessage, type MoreKeys } from './compaction-keys.ts';
import { pageRedo } from './page-redo.ts';

export interface CompactionJob {
  readonly kind: 'merge' | 'images' | 're-encrypt';
  readonly keys: KeyMessage;
  readonly directory: string;
  readonly project: string;
  readonly timeline: string;
  readonly major: number;
  readonly layers: readonly LayerDescriptor[];
  /** Names of the L0 layers to merge, oldest first; of the one to encrypt anew. */
  readonly inputs: readonly string[];
  /** Names of layers that are not on this disk: a job that turns out to need one ends with NOT_LOCAL. */
  readonly absent?: readonly string[];
  readonly imageLsn: number;
  readonly generation: number;
  readonly number: number;
  readonly targetBytes: number;
  readonly maxRecordsPerPage: number;
}

/** Writing of a frozen layer: the same in a worker thread and inline. */
export interface FlushJob {
  readonly kind: 'flush';
  readonly keys: KeyMessage;
  readonly layer: OpenLayerMessage;
  readonly directory: string;
  readonly project: string;
  readonly timeline: string;
  readonly generation: number;
  readonly number: number;
}

export type StorageJob = CompactionJob | FlushJob;

/** `more`: where a job that writes more files than it has keys for gets some. */
export async function runJob(job: StorageJob, more?: MoreKeys): Promise<LayerDescriptor[]> {
  const keys = new JobKeys(job.keys, more);
  try {
    if (job.kind !== 'flush') return await compactWith(job, keys);
    return [await flushLayer(OpenLayer.fromMessage(job.layer), { ...job, keys })];
  } finally {
    keys.wipe();
  }
}

export const runCompaction: (job: CompactionJob, more?: MoreKeys) => Promise<LayerDescriptor[]> = runJob;

const FRAME_CACHE_BYTES = 16 << 20;

async function compactWith(job: CompactionJob, keys: JobKeys): Promise<LayerDescriptor[]> {
  const files = {
    directory: job.directory,
    keys,
    cache: new FrameCache(FRAME_CACHE_BYTES),
    project: job.project,
    timeline: job.timeline,
    absent: new Set(job.absent),
  };
  const set = LayerSet.open(job.layers, files);
  const options = {
    files,
    generation: job.generation,
    number: job.number,
    targetBytes: job.targetBytes,
    maxRecordsPerPage: job.maxRecordsPerPage,
  };
  const redo = pageRedo(job.major);
  try {
    if (job.kind === 'images') return await createImages(set, job.imageLsn as Lsn, redo, options);
    const byName = new Map(set.layers.map((l) => [l.descriptor.name, l]));
    const inputs = job.inputs.map((name) => byName.get(name)).filter((l) => l !== undefined);
    if (job.kind === 're-encrypt') return await Promise.all(inputs.map((layer) => reEncryptLayer(layer, options)));
    return await mergeDeltas(set, inputs, redo, options);
  } finally {
    set.close(true);
  }
}
