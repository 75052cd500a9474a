/** What a {@link WalStore} is opened with, and how it tells of damage. */
import type { Logger } from '@lakebase/base';
import type { CipherProvider } from '@lakebase/envelope';
import type { Lsn, ProjectUid, TimelineId } from '@lakebase/ids';
import type { SegmentIo } from './segment-io.ts';

export interface WalStoreOptions {
  readonly dir: string;
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  /** Where a store that has no file yet begins, and the record before that. */
  readonly startLsn: Lsn;
  readonly prevRecordLsn: Lsn;
  /** WAL known to have been durable (from the control file): an end before it is damage, not a torn tail. */
  readonly flushHint?: Lsn;
  /** Of the project. What is stored is loaded before: {@link storedReferences}. */
  readonly ciphers: CipherProvider;
  readonly log?: Logger;
  /** Recent WAL kept in memory for readers; 0 turns it off. */
  readonly ringBytes?: number;
  readonly io?: SegmentIo;
  /** Asked before a segment file is begun; throws when the disk's budget does not allow it. */
  readonly mayGrow?: () => void;
}

export interface Damage {
  readonly path: string;
  /** Nothing at or beyond this is served. */
  readonly lsn: Lsn;
  readonly message: string;
}
