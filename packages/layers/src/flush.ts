/** Writes a frozen open layer as an L0 delta layer. The work is cut by the writer's disk writes (about half a megabyte each), so reads and
 *  ingest go on between the pieces. */
import { join } from 'node:path';
import { assert } from '@lakebase/base';
import { KEY_BYTES } from './key.ts';
import { layerName } from './layer-name.ts';
import { type LayerDescriptor, LayerWriter } from './layer-writer.ts';
import type { ObjectKeys } from './object-keys.ts';
import { DRAIN_BYTES, type OpenLayer } from './open-layer.ts';

export interface FlushTarget {
  readonly directory: string;
  readonly project: string;
  readonly timeline: string;
  readonly generation: number;
  readonly number: number;
  readonly keys: ObjectKeys;
}

export async function flushLayer(layer: OpenLayer, target: FlushTarget): Promise<LayerDescriptor> {
  assert(layer.frozen && !layer.empty, 'only a frozen layer with entries is flushed');
  const { startLsn, endLsn } = layer;
  const path = join(target.directory, layerName('delta', startLsn, endLsn, target.number, 0, target.generation));
  const identity = { ...target, kind: 'delta' as const, level: 0, startLsn, endLsn };
  const writer = await LayerWriter.create(path, identity, target.keys);
  try {
    const key = Buffer.alloc(KEY_BYTES);
    for (const row of layer.sortedKeys()) {
      layer.writeKeyOf(row, key);
      for (let from = 0; from >= 0; ) {
        from = layer.writeRow(row, key, writer, from);
        if (writer.pendingBytes >= DRAIN_BYTES) await writer.drain();
      }
    }
    return await writer.finish();
  } catch (error) {
    await writer.abandon();
    throw error;
  }
}
