/** Finds the newest index of a timeline in the object store. By arithmetic: generations are tried downwards. A list, where one is asked for,
 *  only adds to what is found: after a loss of the Manager's newest rows its numbers may be too low. */
import { type IndexPlace, NO_INDEX, compareIndexPlaces } from '@lakebase/api';
import { LakebaseError, isCode } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { type ObjectKeys, type TimelineIndex, openIndex } from '@lakebase/layers';
import { type ObjectStore, indexObject, timelineObject } from '@lakebase/object-store';
import type { Generations } from './generations.ts';

export interface IndexSearch {
  readonly below: number;
  /** The lowest generation worth trying. */
  readonly floor: number;
  readonly list: boolean;
}
export interface FoundIndex {
  readonly index: TimelineIndex;
  readonly key: string;
}

const PROBES_AT_ONCE = 8;

/** What was found in the store is below an index that was put there. */
export const isOlder = (found: FoundIndex | undefined, known: IndexPlace): boolean =>
  compareIndexPlaces(found?.index ?? NO_INDEX, known) < 0;

/** Throws CONFLICT when the store was put back to a state before an index that was put there (docs/protocols/generations.md). `known` may be of before an
 *  operator accepted that: then it is asked for again. */
export async function checkNotPutBack(
  generations: Generations,
  { project, timeline }: { readonly project: string; readonly timeline: string },
  found: FoundIndex | undefined,
  known: IndexPlace,
): Promise<void> {
  if (!isOlder(found, known)) return;
  const newest = await generations.newestIndex(project as ProjectUid, timeline as TimelineId);
  if (!isOlder(found, newest)) return;
  throw new LakebaseError(
    'CONFLICT',
    `the object store has ${found === undefined ? 'no index' : `index ${placeText(found.index)}`} of timeline ${timeline}, and index ${placeText(newest)} was put there: ` +
      'it was put back to an earlier state, or is another store. Put the newest state back; ' +
      'or have what is there served, with `lakebase storage accept-older-store PROJECT`',
  );
}

const placeText = ({ generation, version }: IndexPlace): string => `${generation}/${version}`;

export async function findIndex(
  store: ObjectStore,
  files: { readonly project: string; readonly timeline: string; readonly keys: ObjectKeys },
  search: IndexSearch,
): Promise<FoundIndex | undefined> {
  const project = files.project as ProjectUid;
  const timeline = files.timeline as TimelineId;
  const listed = search.list ? await listGenerations(store, project, timeline) : [];
  for (const generation of listed.sort((a, b) => b - a)) {
    const found = await openAt(store, files, generation);
    if (found !== undefined) return found;
  }
  for (let from = search.below - 1; from >= search.floor; from -= PROBES_AT_ONCE) {
    const some = Array.from({ length: Math.min(PROBES_AT_ONCE, from - search.floor + 1) }, (_, i) => from - i);
    const found = (await Promise.all(some.map((generation) => openAt(store, files, generation)))).find((f) => f !== undefined);
    if (found !== undefined) return found;
  }
  return undefined;
}

async function openAt(
  store: ObjectStore,
  files: { readonly project: string; readonly timeline: string; readonly keys: ObjectKeys },
  generation: number,
): Promise<FoundIndex | undefined> {
  const { project, timeline, keys } = files;
  const key = indexObject(project as ProjectUid, timeline as TimelineId, generation);
  let bytes: Buffer;
  try {
    ({ bytes } = await store.get(key));
  } catch (error) {
    if (isCode(error, 'NOT_FOUND')) return undefined;
    throw error;
  }
  const { index } = await openIndex(bytes, { project, timeline, name: key.slice(key.lastIndexOf('/') + 1) }, keys, key);
  if (index.generation !== generation) throw new LakebaseError('CORRUPT', `index ${key} is of generation ${index.generation}`);
  return { index, key };
}

async function listGenerations(store: ObjectStore, project: ProjectUid, timeline: TimelineId): Promise<number[]> {
  const prefix = timelineObject(project, timeline, 'index-g');
  const { objects } = await store.list(prefix);
  return objects.flatMap(({ key }) => {
    const text = key.slice(prefix.length);
    return /^[0-9a-f]{8}$/.test(text) ? [Number.parseInt(text, 16)] : [];
  });
}
