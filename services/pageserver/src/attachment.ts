/** Brings one timeline into service: from its directory, or, when there is none, from its newest index in the object store.
 *  Invariant: a directory with an index is a whole timeline (of some moment); one without is the rest of an unfinished creation. */
import { existsSync, readFileSync } from 'node:fs';
import { rm, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { createHash } from 'node:crypto';
import { type AttachedProject, NO_INDEX, type PageTimelineStatus, type PeerAddress, decodeBootSet, internalToken } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage, failpoint } from '@lakebase/base';
import { type Lsn, type ProjectUid, type TimelineId, formatLsn } from '@lakebase/ids';
import {
  type LayerCache,
  type ObjectEntry,
  type TimelineIndex,
  namesOf,
  sealedObjectsOf,
  syncDirectory,
  writeFileDurably,
} from '@lakebase/layers';
import { timelineObject } from '@lakebase/object-store';
import { BOOT_OBJECT_MAGIC, readObject } from './bundle.ts';
import type { Compactor } from './compactor.ts';
import type { PageserverConfig } from './config.ts';
import type { DiskSpace } from './disk-space.ts';
import type { CacheBudget } from './page-cache.ts';
import { checkNotPutBack, findIndex } from './remote-index.ts';
import { type TimelineFiles, TimelineStorage } from './storage.ts';
import { INDEX_FILE, ensureDirectory } from './storage-directory.ts';
import { Timeline } from './timeline.ts';
import type { Attached } from './timeline-entry.ts';
import { type UploadTarget, Uploader } from './uploader.ts';
import { warmUp } from './warm-up.ts';
import { WalReceiver } from './wal-receiver.ts';

export interface AttachContext {
  readonly config: PageserverConfig;
  readonly secret: string;
  readonly log: Logger;
  readonly layers: LayerCache;
  readonly budget: CacheBudget;
  readonly compactor: Compactor;
  readonly flusher: Compactor;
  readonly disk: DiskSpace;
  /** Undefined: this disk is all there is. */
  readonly remote: UploadTarget | undefined;
}

/** In a timeline's directory while it is detached with nothing left to do: a start leaves it alone until somebody needs it. */
const IDLE_FILE = 'idle';

export interface IdleNote {
  /** Every key here is wrapped by a KEK of this version or newer. */
  readonly kekVersion: number;
  /** All of it was in the object store then, so its local layers may be dropped. */
  readonly uploaded: boolean;
}

export const hasIndex = (files: TimelineFiles): boolean => existsSync(join(files.directory, INDEX_FILE));

export function readIdleNote(directory: string): IdleNote | undefined {
  try {
    const note = JSON.parse(readFileSync(join(directory, IDLE_FILE), 'utf8')) as Partial<IdleNote>;
    return { kekVersion: typeof note.kekVersion === 'number' ? note.kekVersion : 0, uploaded: note.uploaded === true };
  } catch {
    return undefined;
  }
}
export const writeIdleNote = (files: TimelineFiles, note: IdleNote): Promise<void> =>
  writeFileDurably(join(files.directory, IDLE_FILE), Buffer.from(JSON.stringify(note)));

/** Gone for good before anything of the timeline changes. */
async function removeIdleNote(files: TimelineFiles): Promise<void> {
  if (!existsSync(join(files.directory, IDLE_FILE))) return;
  await unlink(join(files.directory, IDLE_FILE));
  await syncDirectory(files.directory);
}

const numberIn = ({ extra }: Pick<TimelineIndex, 'extra'>, name: string): number => {
  const number = extra[name];
  return typeof number === 'number' ? number : 0;
};
/** Whose WAL is followed (docs/protocols/wal-recovery.md). */
export const lineageOf = (index: Pick<TimelineIndex, 'extra'>): number => numberIn(index, 'walLineage');
/** The newest lineage that is known to have begun: not only ingest was sealed for it. */
export const begunLineageOf = (index: Pick<TimelineIndex, 'extra'>): number => numberIn(index, 'walLineageBegun');

export const statusOf = ({ timeline, uploader }: Attached): PageTimelineStatus => ({
  ...timeline.status(),
  prevRecordLsn: formatLsn(timeline.prevRecordLsn),
  ...(uploader === undefined ? {} : { remoteConsistentLsn: formatLsn(uploader.remoteConsistentLsn) }),
  walLineage: lineageOf(timeline.storage.index),
});

/** Undefined when the directory has no index. */
export async function attachLocal(c: AttachContext, files: TimelineFiles): Promise<Attached | undefined> {
  const log = c.log.child({ project: files.project, timeline: files.timeline });
  await removeIdleNote(files);
  const storage = await TimelineStorage.open(files, c.config, c.compactor.run, log, c.flusher.run);
  if (storage === undefined) return undefined;
  try {
    const timeline = await Timeline.open(storage, c.config, c.budget, log);
    const { index } = storage;
    const bootSet = index.bootSet === null ? [] : decodeBootSet(readObject(BOOT_OBJECT_MAGIC, files, index.bootSet));
    const uploader = c.remote === undefined ? undefined : new Uploader(storage, c.remote, c.config, log);
    const receiver = new WalReceiver(timeline, {
      safekeepers: (index.extra['safekeepers'] ?? []) as PeerAddress[],
      lineage: lineageOf(index),
      // Only with the service token does a safekeeper take a reader's word for what may be trimmed: computes have the timeline's.
      password: internalToken(c.secret, 'service'),
      durableLsn: () => uploader?.remoteConsistentLsn ?? storage.diskConsistentLsn,
      room: () => c.disk.room,
    });
    const warm = warmUp(timeline, bootSet, heatOf(timeline), log);
    return { timeline, receiver, uploader, bootSet, warm, users: 0, lastUsed: performance.now() };
  } catch (error) {
    await storage.close();
    throw error;
  }
}

/** A hint, no more: a damaged one keeps nothing from being attached. */
function heatOf(timeline: Timeline): ReturnType<Timeline['loadHeat']> {
  try {
    return timeline.loadHeat();
  } catch (error) {
    timeline.log.warn({ err: errorMessage(error) }, 'the heat map cannot be read');
    return [];
  }
}

/** Ends what {@link attachLocal} began. What is not flushed is ingested again, what is not uploaded goes up the next time. */
export async function detach(attached: Attached, error?: LakebaseError): Promise<void> {
  const uploaded = attached.uploader?.stop();
  const stopped = attached.receiver.stop();
  await attached.timeline.close(error);
  await stopped;
  await uploaded;
}

/** Writes the newest index in the store, and the small objects it names, into an empty directory; layers come when they are read. False when the store has none. */
export async function fetchTimeline(c: AttachContext, files: TimelineFiles, attached: AttachedProject): Promise<boolean> {
  const { store, generations } = c.remote as UploadTarget;
  const project = files.project as ProjectUid;
  const timeline = files.timeline as TimelineId;
  const given = attached.timelines.find((t) => t.timeline === timeline);
  const { generation } = attached;
  await files.keys.ready();
  await failpoint('pageserver.attach.before-index');
  const published = given?.published ?? NO_INDEX;
  const found = await findIndex(store, files, { below: generation + 1, floor: Math.max(1, published.generation), list: true });
  await checkNotPutBack(generations, files, found, published);
  if (found === undefined) return false;
  const { index } = found;
  if (index.generation >= generation && !generations.hasPublished(project, timeline)) {
    // Nobody but us may have this generation: the Manager has forgotten some.
    generations.refuse(project, index.generation);
    throw new LakebaseError('UNAVAILABLE', `generation ${generation} was in use before; asking for a higher one`);
  }
  // A directory without an index is of an attach that was cut short.
  c.layers.forgetDirectory(files.directory);
  await rm(files.directory, { recursive: true, force: true });
  await ensureDirectory(dirname(files.directory));
  await ensureDirectory(files.directory);
  const fetch = async (entry: ObjectEntry): Promise<void> => {
    const { bytes } = await store.get(timelineObject(project, timeline, entry.file));
    if (entry.hash !== undefined && createHash('sha256').update(bytes).digest('hex') !== entry.hash)
      throw new LakebaseError(
        'CORRUPT',
        `object ${timelineObject(project, timeline, entry.file)} does not have the content that the index says`,
      );
    await writeFileDurably(join(files.directory, entry.file), bytes);
  };
  await Promise.all(sealedObjectsOf(index).map(fetch));
  const remote = {
    generation: index.generation,
    version: index.version,
    diskConsistentLsn: index.diskConsistentLsn,
    names: namesOf(index),
  };
  const extra = given === undefined || given.safekeepers.length === 0 ? index.extra : { ...index.extra, safekeepers: given.safekeepers };
  await TimelineStorage.create(files, { ...index, extra, remote });
  await syncDirectory(join(dirname(files.directory), '..'));
  c.log.info(
    { project, timeline, generation, from: index.generation, lsn: index.diskConsistentLsn as Lsn },
    'timeline laid out from the object store',
  );
  return true;
}
