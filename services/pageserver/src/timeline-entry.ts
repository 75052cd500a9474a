/** What the store knows of a timeline on its disk: attached and in service, locked with its project's key, or damaged. */
import type { BlockRef, PageTimelineStatus } from '@lakebase/api';
import type { LakebaseError } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import type { IdleNote } from './attachment.ts';
import type { Timeline } from './timeline.ts';
import type { Uploader } from './uploader.ts';
import type { WalReceiver } from './wal-receiver.ts';

export interface Attached {
  readonly timeline: Timeline;
  readonly receiver: WalReceiver;
  /** Undefined without an object store. */
  readonly uploader: Uploader | undefined;
  bootSet: readonly BlockRef[];
  /** Settles when what is likely to be read is local, as far as it may be. */
  readonly warm: Promise<unknown>;
  /** Connections and calls that hold it in service. */
  users: number;
  /** When somebody last let go of it, by performance.now(). */
  lastUsed: number;
}
/** On disk, with nothing to do and nobody who asks: attached when somebody does. */
export interface Idle {
  readonly idle: IdleNote;
}
/** The project's key may not be used: nothing of the timeline is in memory. It is attached again by itself. */
export interface Locked {
  readonly locked: LakebaseError;
}
/** A timeline whose files fail a check: listed, answers with its error, touches nothing. */
export interface Damaged {
  readonly error: LakebaseError;
}
export type Entry = Attached | Idle | Locked | Damaged;

export const isAttached = (entry: Entry | undefined): entry is Attached => entry !== undefined && 'timeline' in entry;
export const isIdle = (entry: Entry | undefined): entry is Idle => entry !== undefined && 'idle' in entry;
export const isLocked = (entry: Entry | undefined): entry is Locked => entry !== undefined && 'locked' in entry;

export const isDamaged = (entry: Entry | undefined): entry is Damaged => entry !== undefined && 'error' in entry;

export const timelineKey = (project: string, timeline: string): string => `${project}/${timeline}`;

/** Status of one that is not attached. */
export function absentStatus(project: ProjectUid, timeline: TimelineId, entry: Locked | Damaged): PageTimelineStatus {
  return {
    project,
    timeline,
    pgVersion: 0,
    systemId: '0',
    startLsn: '0/0',
    startPrevRecordLsn: '0/0',
    lastRecordLsn: '0/0',
    diskConsistentLsn: '0/0',
    logicalSizeBytes: 0,
    state: isLocked(entry) ? 'LOCKED' : 'BROKEN',
    error: (isLocked(entry) ? entry.locked : entry.error).message,
    layers: 0,
  };
}
