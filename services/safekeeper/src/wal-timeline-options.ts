/** What a {@link WalTimeline} is opened with, and what it tells whoever feeds it. */
import type { LakebaseError, Logger } from '@lakebase/base';
import type { Lsn, Term } from '@lakebase/ids';
import type { ProjectKeys } from '@lakebase/keys';
import type { ObjectStore } from '@lakebase/object-store';
import type { WalTimeline } from './wal-timeline.ts';

export interface TimelineOptions {
  readonly memberId: string;
  /** Ids of the first members, this one included: what a timeline goes by that nobody has configured. */
  readonly memberIds: readonly string[];
  readonly ringBytes: number;
  /** Where old WAL goes; undefined: it stays here. */
  readonly objectStore?: ObjectStore;
  /** Of the project. */
  readonly keys: ProjectKeys;
  readonly log: Logger;
  /** Seconds one append batch took, write and fdatasync. */
  readonly onFlush?: (seconds: number, bytes: number) => void;
  /** WAL was found damaged whose place others can fill. */
  readonly onHole?: (timeline: WalTimeline) => void;
  /** Throws while the disk's budget allows no further segment. */
  readonly mayGrow?: () => void;
  /** For the status. */
  readonly disk?: () => { readonly pressure: number; readonly slowDisk: boolean };
}

/** What the timeline must tell the receiver that feeds it. */
export interface Feeder {
  readonly term: Term;
  /** Of the configuration by which whoever is fed counts. */
  readonly generation: number;
  /** Everything up to here is durable. */
  flushed(flushLsn: Lsn): void;
  /** The stream must end: fenced (a reason for good) or its bytes could not be kept. */
  drop(error: LakebaseError): void;
}
