/** The files of a timeline's directory other than what the index names: their names, and which of them are leftovers.
 *  Invariant: nothing is removed that is not ours by its name. */
import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { PART_SUFFIX, TEMP_SUFFIX, type TimelineIndex, isLayerName, namesOf } from '@lakebase/layers';

export const INDEX_FILE = 'index';
/** Without a generation: of earlier versions. */
const OBJECT_NAME = /^(?:suspend|bootset|heat)-[0-9a-f]{8}(?:-g[0-9a-f]{8})?$/;
export const objectName = (prefix: string, number: number, generation: number): string =>
  `${prefix}-${number.toString(16).padStart(8, '0')}-g${generation.toString(16).padStart(8, '0')}`;

export async function ensureDirectory(path: string): Promise<void> {
  await mkdir(path, { recursive: true, mode: 0o700 });
}

/** What a crash left beside the index. */
export async function removeUnreferenced(directory: string, index: TimelineIndex): Promise<void> {
  const keep = new Set<string>([INDEX_FILE, ...namesOf(index)]);
  for (const name of await readdir(directory)) {
    if (keep.has(name)) continue;
    // What has been fetched of a layer that is in use is the layer cache's.
    const layer = name.endsWith(PART_SUFFIX) ? name.slice(0, -PART_SUFFIX.length) : name;
    if (layer !== name && keep.has(layer)) continue;
    const ours = isLayerName(layer) || name.endsWith(TEMP_SUFFIX) || OBJECT_NAME.test(name);
    if (ours) await rm(join(directory, name), { force: true });
  }
}
