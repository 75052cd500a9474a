/** The index object of a timeline: the only truth about which layers exist, and where their keys' newest wrapping is. Replaced as a whole
 *  (temporary file, fsync, rename, fsync of the directory), so it is the old or the new one after a crash at any instant. Each version is
 *  sealed under a key of its own. Form: docs/formats/index.md. */
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import { writeFileDurably } from './durable.ts';
import type { LayerDescriptor } from './layer-writer.ts';
import type { ObjectKeys } from './object-keys.ts';
import { openObject, parseObject, sealObject } from './sealed-object.ts';

export const INDEX_MAGIC = 0x4c424958;

/** A sealed object beside the index; `key`: its key's newest wrapping, base64. */
export interface ObjectEntry {
  readonly file: string;
  readonly key: string;
  /** Length and SHA-256 of the file; missing in indexes of earlier versions. */
  readonly bytes?: number;
  readonly hash?: string;
  /** KEK version that its data key was made under; missing in indexes of earlier versions. */
  readonly born?: number;
}

/** What the store is known to have: the newest index that was put under a generation that was confirmed afterwards. */
export interface RemoteState {
  readonly generation: number;
  /** Of the index that was put. */
  readonly version: number;
  readonly diskConsistentLsn: number;
  /** What that index names. */
  readonly names: readonly string[];
}

export interface TimelineIndex {
  readonly project: string;
  readonly timeline: string;
  /** Grows by one with every version written. */
  readonly version: number;
  readonly generation: number;
  readonly pgVersion: number;
  /** Decimal. */
  readonly systemId: string;
  readonly startLsn: number;
  readonly startPrevRecordLsn: number;
  /** WAL before it is not needed any more: its changes are in the layers below. */
  readonly diskConsistentLsn: number;
  /** Start of the last record that ends at or before diskConsistentLsn. */
  readonly prevRecordLsn: number;
  readonly nextLayerNumber: number;
  readonly layers: readonly LayerDescriptor[];
  /** Sealed object with the files of the last clean suspend. */
  readonly suspend: (ObjectEntry & { readonly lsn: number }) | null;
  /** Sealed object with the boot set. */
  readonly bootSet: ObjectEntry | null;
  /** Sealed object with what has been read lately; missing in indexes of earlier versions. */
  readonly heat?: ObjectEntry | null;
  /** What the owner keeps along (addresses of safekeepers). */
  readonly extra: Readonly<Record<string, unknown>>;
  /** In a local index only: what may be removed from this disk. Null or missing: nothing is known to be in the store. */
  readonly remote?: RemoteState | null;
}

/** The sealed objects that an index names. */
export function sealedObjectsOf(index: Pick<TimelineIndex, 'suspend' | 'bootSet' | 'heat'>): ObjectEntry[] {
  return [index.suspend, index.bootSet, index.heat].filter((o) => o !== null && o !== undefined);
}

/** Names of everything an index names. */
export function namesOf(index: TimelineIndex): string[] {
  return [...index.layers.map((d) => d.name), ...sealedObjectsOf(index).map((o) => o.file)];
}

/** Of all layers, wherever their files are. */
export function layerBytesOf({ layers }: Pick<TimelineIndex, 'layers'>): number {
  return layers.reduce((sum, layer) => sum + layer.bytes, 0);
}

/** The bytes of an index under `name`, sealed with a key of their own. */
export async function sealIndex(index: TimelineIndex, name: string, keys: ObjectKeys): Promise<{ bytes: Buffer; reference: Buffer }> {
  await keys.reserve(1);
  const key = keys.create();
  const payload = Buffer.from(JSON.stringify(index), 'utf8');
  return {
    bytes: sealObject(INDEX_MAGIC, { project: index.project, timeline: index.timeline, name }, payload, key),
    reference: key.keyReference,
  };
}

/** The opposite. `where`: for messages. Throws CORRUPT for anything but the index of that timeline under that name. */
export async function openIndex(
  bytes: Buffer,
  name: { readonly project: string; readonly timeline: string; readonly name: string },
  keys: ObjectKeys,
  where: string,
): Promise<{ index: TimelineIndex; reference: Buffer }> {
  const file = `index ${where}`;
  const reference = Buffer.from(parseObject(INDEX_MAGIC, bytes, file).keyReference);
  try {
    await keys.load([reference]);
  } catch (error) {
    if (error instanceof LakebaseError && error.code === 'CORRUPT')
      throw new LakebaseError('CORRUPT', `${file} is damaged: ${error.message}`, { cause: error });
    throw error;
  }
  const payload = openObject(INDEX_MAGIC, name, bytes, keys, file);
  const index = JSON.parse(payload.toString('utf8')) as TimelineIndex;
  payload.fill(0);
  if (index.project !== name.project || index.timeline !== name.timeline)
    throw new LakebaseError('CORRUPT', `${file} belongs to timeline ${index.project}/${index.timeline}`);
  return { index, reference };
}

/** Writes `index` as the next version; resolves with it and the reference of its own key. */
export async function writeIndex(
  path: string,
  index: TimelineIndex,
  keys: ObjectKeys,
): Promise<{ index: TimelineIndex; reference: Buffer }> {
  const next = { ...index, version: index.version + 1 };
  const { bytes, reference } = await sealIndex(next, basename(path), keys);
  await writeFileDurably(path, bytes);
  return { index: next, reference };
}

/** Undefined when there is no such file. */
export async function readIndex(
  path: string,
  project: string,
  timeline: string,
  keys: ObjectKeys,
): Promise<{ index: TimelineIndex; reference: Buffer } | undefined> {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new LakebaseError('CORRUPT', `index ${path} cannot be read: ${(cause as Error).message}`, { cause });
  }
  return openIndex(bytes, { project, timeline, name: basename(path) }, keys, path);
}
