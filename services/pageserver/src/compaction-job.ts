/** One piece of background work on layers as a plain message, and how it is run: the same function in a worker thread and inline. */
import { plainProvider } from '@lakebase/envelope';
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
} from '@lakebase/layers';
import { pageRedo } from './page-redo.ts';

export interface CompactionJob {
  readonly kind: 'merge' | 'images';
  readonly directory: string;
  readonly project: string;
  readonly timeline: string;
  readonly major: number;
  readonly layers: readonly LayerDescriptor[];
  /** Names of the L0 layers to merge, oldest first. */
  readonly inputs: readonly string[];
  readonly imageLsn: number;
  readonly generation: number;
  readonly number: number;
  readonly targetBytes: number;
  readonly maxRecordsPerPage: number;
}

/** Writing of a frozen layer: the same in a worker thread and inline. */
export interface FlushJob {
  readonly kind: 'flush';
  readonly layer: OpenLayerMessage;
  readonly directory: string;
  readonly project: string;
  readonly timeline: string;
  readonly generation: number;
  readonly number: number;
}

export type StorageJob = CompactionJob | FlushJob;

export async function runJob(job: StorageJob): Promise<LayerDescriptor[]> {
  if (job.kind !== 'flush') return runCompaction(job);
  return [await flushLayer(OpenLayer.fromMessage(job.layer), { ...job, ciphers: plainProvider })];
}

const FRAME_CACHE_BYTES = 16 << 20;

export async function runCompaction(job: CompactionJob): Promise<LayerDescriptor[]> {
  const files = {
    directory: job.directory,
    ciphers: plainProvider,
    cache: new FrameCache(FRAME_CACHE_BYTES),
    project: job.project,
    timeline: job.timeline,
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
    return await mergeDeltas(set, inputs, redo, options);
  } finally {
    set.close();
  }
}
