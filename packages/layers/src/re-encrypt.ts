/** A layer under a fresh data key: the same frames, sealed anew for another name. Nothing is decompressed. Runs in a worker thread in the service.
 *  Invariant: the source is read frame by frame, each tag checked, and not changed. */
import { join } from 'node:path';
import { layerName } from './layer-name.ts';
import type { CompactionOptions } from './compaction.ts';
import type { LayerHandle } from './layer-set.ts';
import { type LayerDescriptor, LayerWriter } from './layer-writer.ts';

export async function reEncryptLayer(
  source: LayerHandle,
  options: Omit<CompactionOptions, 'targetBytes' | 'maxRecordsPerPage'>,
): Promise<LayerDescriptor> {
  const { files, generation, number } = options;
  const { kind, level, startLsn, endLsn } = source.descriptor;
  const path = join(files.directory, layerName(kind, startLsn, endLsn, number, 0, generation));
  const { project, timeline } = files;
  const writer = await LayerWriter.create(path, { project, timeline, kind, level, generation, startLsn, endLsn }, files.keys);
  try {
    await writer.copyFrom(source.reader());
    return await writer.finish();
  } catch (error) {
    await writer.abandon();
    throw error;
  }
}
