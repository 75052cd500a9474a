/** Layers a background job reads, on the local disk for as long as it runs. A worker thread opens files and cannot wait for the object store, so what
 *  a job is sure to read is fetched whole before it begins, and nothing of its timeline is evicted meanwhile. Whatever else it finds missing ends it;
 *  then everything is fetched and it runs once more. So it is when a layer is damaged on this disk only. Inputs are not streamed: a job needs disk for what
 *  it reads, beyond the cache's budget if need be. */
import { LakebaseError, isCode } from '@lakebase/base';
import { type CachedLayer, type LayerHandle, type LayerSet, NOT_LOCAL } from '@lakebase/layers';

const FETCHES_AT_ONCE = 2;

/** `inputs`: what a merge reads whole; images are made of all since the last images. `run` is told which layers are not local. */
export async function withLocalLayers<T>(
  set: LayerSet,
  inputs: readonly LayerHandle[],
  imageLsn: number,
  run: (absent: string[]) => Promise<T>,
): Promise<T> {
  const pinned = set.layers.map((l) => l.cached).filter((c) => c !== undefined);
  for (const layer of pinned) layer.pin();
  try {
    await makeLocal(inputs.length > 0 ? inputs : sinceImages(set, imageLsn));
    const absent = set.layers.filter((l) => !l.local).map((l) => l.descriptor.name);
    try {
      return await run(absent);
    } catch (error) {
      if (isCode(error, 'CORRUPT')) {
        if (!(await healAny(pinned))) throw error;
        return await run(absent);
      }
      if (absent.length === 0 || !(error instanceof LakebaseError) || error.message !== NOT_LOCAL) throw error;
    }
    await makeLocal(set.layers);
    return await run([]);
  } finally {
    for (const layer of pinned) layer.unpin();
  }
}

async function makeLocal(layers: readonly LayerHandle[]): Promise<void> {
  const missing = layers.filter((l) => !l.local).map((l) => l.cached as CachedLayer);
  const next = async (): Promise<void> => {
    for (let layer = missing.pop(); layer !== undefined; layer = missing.pop()) await layer.makeWhole();
  };
  await Promise.all(Array.from({ length: FETCHES_AT_ONCE }, next));
}

async function healAny(layers: readonly CachedLayer[]): Promise<boolean> {
  let healed = false;
  for (const layer of layers) healed = (await layer.heal()) || healed;
  return healed;
}

/** The newest images up to `lsn` and the changes since. */
function sinceImages(set: LayerSet, lsn: number): LayerHandle[] {
  const readable = set.layers.filter((l) => l.descriptor.startLsn <= lsn);
  const images = readable.filter((l) => l.descriptor.kind === 'image' && l.descriptor.endLsn <= lsn);
  const last = Math.max(0, ...images.map((l) => l.descriptor.endLsn));
  return readable.filter((l) => (l.descriptor.kind === 'image' ? l.descriptor.endLsn === last : l.descriptor.endLsn > last));
}
