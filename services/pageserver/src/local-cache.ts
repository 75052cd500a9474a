/** The layer cache of this process: how much of the disk it may take, and its figures. */
import { statfsSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from '@lakebase/base';
import { LayerCache, isLayerName } from '@lakebase/layers';
import type { ObjectStore } from '@lakebase/object-store';
import { type Registry, readGauge } from '@lakebase/service-kit';
import type { PageserverConfig } from './config.ts';

const GIB = 2 ** 30;
const DEFAULT_BYTES = 20 * GIB;
/** Also on a disk that is nearly full: the working set of a start has to fit. */
const BYTES_MIN = GIB / 4;

export function openLayerCache(config: PageserverConfig, store: ObjectStore | undefined, log: Logger): LayerCache {
  return new LayerCache({
    store,
    budgetBytes: config.layerCacheBytes ?? defaultBytes(config.dataDir),
    onDamage: (message) => log.error({ damage: message }, 'damage found in the layer cache'),
  });
}

/** 20 GiB, or half of what is free when the process starts, whichever is less. */
function defaultBytes(path: string): number {
  try {
    const { bavail, bsize } = statfsSync(path);
    return Math.max(BYTES_MIN, Math.min(DEFAULT_BYTES, Math.floor((bavail * bsize) / 2)));
  } catch {
    return DEFAULT_BYTES;
  }
}

export interface IdlePlace {
  readonly directory: string;
  readonly project: string;
  readonly timeline: string;
}

/** Counts the layers of timelines that were left detached by an earlier process, all of them uploaded then, so that the budget is kept although nobody
 *  asks for them. When one is attached, its index says what its files should be, and they are looked at again. */
export async function adoptIdle(cache: LayerCache, places: readonly IdlePlace[]): Promise<void> {
  if (cache.store === undefined) return;
  for (const place of places) {
    const names = await readdir(place.directory).catch(() => []);
    for (const name of names) {
      if (!isLayerName(name)) continue;
      const bytes = (await stat(join(place.directory, name)).catch(() => undefined))?.size;
      if (bytes !== undefined) cache.adopt(place, { name, bytes, hash: '' });
    }
  }
}

export function registerCacheMetrics(registry: Registry, cache: LayerCache): void {
  const gauge = readGauge.bind(undefined, registry);
  const { counters } = cache;
  gauge('lakebase_layer_cache_bytes', 'Layer bytes on the local disk', () => cache.usedBytes);
  gauge('lakebase_layer_cache_budget_bytes', 'Layer bytes the local disk may hold', () => cache.budgetBytes);
  gauge('lakebase_layer_cache_memory_bytes', 'Chunks in memory because the disk has no room', () => cache.memoryBytes);
  gauge('lakebase_layer_cache_layers', 'Layers of timelines seen since the process started', () => cache.layers);
  gauge('lakebase_layer_cache_open_files', 'Layer files that are open', () => cache.openFiles);
  gauge('lakebase_layer_cache_open_readers', 'Layers whose frame index is in memory', () => cache.openReaders);
  gauge('lakebase_layer_cache_gets', 'Range reads of layers from the object store', () => counters.gets);
  gauge('lakebase_layer_cache_get_bytes', 'Bytes of them', () => counters.getBytes);
  gauge('lakebase_layer_cache_failed_gets', 'Range reads that failed', () => counters.failedGets);
  gauge('lakebase_layer_cache_evictions', 'Layers whose local bytes were dropped', () => counters.evictions);
  gauge('lakebase_layer_cache_evicted_bytes', 'Bytes of them', () => counters.evictedBytes);
  gauge('lakebase_layer_cache_rejected', 'Reads of layers that failed a check and were fetched anew', () => counters.rejected);
  gauge('lakebase_layer_cache_mismatches', 'Layers that came whole with another content than the index says', () => counters.mismatches);
}
