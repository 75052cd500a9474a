/** Rewrites what a project has stored under old data keys: every layer, suspend state, boot set … whose data key was made under a KEK version
 *  before a given one. One object at a time, at a bounded rate, through the same steps by which merged layers are published, so reads, ingest and
 *  merges go on. What is left is known from the index (`born`), so a restart goes on where it was. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type LakebaseError, isCode, sleep } from '@lakebase/base';
import { type LayerHandle, type ObjectEntry, keyFromText, openObject, sealObject } from '@lakebase/layers';
import type { ReEncryptionCount } from '@lakebase/service-kit';
import type { TimelineStorage } from './storage.ts';

export interface ReEncryptionOptions {
  readonly below: number;
  readonly bytesPerSecond: number;
  readonly progress: (count: ReEncryptionCount) => void;
  readonly signal: AbortSignal;
}

/** Objects of earlier versions do not say when their key was made: they count as old. */
const isOld = (entry: { readonly born?: number; readonly key: string }, below: number): boolean =>
  entry.key !== '' && (entry.born ?? 0) < below;

const SEALED = ['suspend', 'bootSet', 'heat'] as const;
const PREFIX = { suspend: 'suspend', bootSet: 'bootset', heat: 'heat' } as const;

export async function reEncrypt(storages: readonly TimelineStorage[], options: ReEncryptionOptions): Promise<ReEncryptionCount> {
  const { below, bytesPerSecond, progress, signal } = options;
  let done = 0;
  let bytes = 0;
  let damage: LakebaseError | undefined;
  const left = (): number => storages.reduce((n, storage) => n + oldObjects(storage, below), 0);
  const count = (): ReEncryptionCount => ({ done, total: done + left(), bytes });
  const wrote = async (size: number): Promise<void> => {
    done++;
    bytes += size;
    progress(count());
    await sleep((size / bytesPerSecond) * 1_000, signal);
  };
  progress(count());
  for (const storage of storages) {
    // Oldest first; merges may take layers away meanwhile, and what they write is new.
    const skip = new Set<string>();
    for (let layer = nextLayer(storage, below, skip); layer !== undefined; layer = nextLayer(storage, below, skip)) {
      signal.throwIfAborted();
      try {
        if (await storage.reEncrypt(layer)) await wrote(layer.descriptor.bytes);
      } catch (error) {
        // One damaged layer does not keep the others under old keys.
        if (!isCode(error, 'CORRUPT')) throw error;
        damage ??= error;
        skip.add(layer.descriptor.name);
      }
    }
    for (const which of SEALED) {
      const entry = storage.index[which] ?? null;
      if (entry === null || !isOld(entry, below)) continue;
      signal.throwIfAborted();
      await resealObject(storage, which);
      await wrote(entry.bytes ?? 0);
    }
  }
  if (damage !== undefined) throw damage;
  return count();
}

const nextLayer = (storage: TimelineStorage, below: number, skip: ReadonlySet<string>): LayerHandle | undefined =>
  storage.set.layers.findLast((l) => isOld(l.descriptor, below) && !skip.has(l.descriptor.name));

function oldObjects({ index }: TimelineStorage, below: number): number {
  const objects = SEALED.map((which) => index[which] ?? null).filter((o) => o !== null);
  return [...index.layers, ...objects].filter((o) => isOld(o, below)).length;
}

/** Whichever is current when its turn comes. */
function resealObject(storage: TimelineStorage, which: (typeof SEALED)[number]): Promise<void> {
  const { directory, project, timeline, keys } = storage.files;
  const current = (): ObjectEntry & { lsn?: number } => storage.index[which] as ObjectEntry;
  return storage.putObject(
    PREFIX[which],
    (name, key) => {
      const { file, key: reference } = current();
      const path = join(directory, file);
      const stored = readFileSync(path);
      const magic = stored.readUInt32BE(0);
      const plain = openObject(magic, { project, timeline, name: file }, stored, keys, path, keyFromText(reference));
      try {
        return sealObject(magic, { project, timeline, name }, plain, key);
      } finally {
        plain.fill(0);
      }
    },
    (entry) => (which === 'suspend' ? { suspend: { lsn: current().lsn as number, ...entry } } : { [which]: entry }),
  );
}
