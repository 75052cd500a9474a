/** What simulated processes say to each other. `attempt` ties an answer to the candidacy that asked; `record`s travel whole, byte ranges cut them.
 *  Processes are addressed by node; `member` is the identity that answers, which changes when a node loses its disk. */
import type { Configuration, Elected, MemberHolding, MemberPosition, MemberReport, Vote, WalLineage } from '@lakebase/wal-quorum';
import type { SimRecord } from './log.ts';

/** What the drivers share: the Manager's row, changed by compare-and-swap on the generation. */
export interface RegisterValue {
  readonly configuration: Configuration;
  /** Disk of its node when each member was placed there. */
  readonly incarnations: Readonly<Record<string, number>>;
  /** Oldest first. */
  readonly lineages: readonly WalLineage[];
  /** WAL before the newest lineage, for the members that begin with it: they read it from the object store. */
  readonly before: readonly SimRecord[];
  /** The newest lineage was begun without anybody's order. */
  readonly unasked: boolean;
}

/** A member that is to be made. */
export interface MakeMember {
  readonly member: string;
  readonly incarnation: number;
  readonly lineages: readonly WalLineage[];
  readonly before: readonly SimRecord[];
}

export interface NodeStatus {
  readonly incarnation: number;
  readonly member: string | null;
  /** Every identity ever made on this disk. */
  readonly made: readonly string[];
  readonly configuration: Configuration | null;
  readonly position: MemberReport | null;
  readonly holding: MemberHolding | null;
  /** Known there as committed. */
  readonly commitLsn: number;
}

interface WalRange {
  readonly term: number;
  readonly from: number;
  readonly to: number;
  readonly records: readonly SimRecord[];
}

export type Message =
  | { readonly kind: 'statusRequest'; readonly attempt: number }
  | {
      readonly kind: 'status';
      readonly attempt: number;
      readonly member: string;
      readonly term: number;
      readonly commitLsn: number;
      readonly configuration: Configuration;
    }
  | { readonly kind: 'voteRequest'; readonly attempt: number; readonly term: number; readonly configuration: Configuration }
  /** `log` is for the checker only: what the voter held when it voted. */
  | { readonly kind: 'vote'; readonly attempt: number; readonly vote: Vote; readonly log: readonly SimRecord[] }
  | {
      readonly kind: 'refused';
      readonly attempt: number;
      readonly member: string;
      readonly term: number;
      readonly reason: string;
      readonly configuration: Configuration | undefined;
    }
  | { readonly kind: 'elected'; readonly attempt: number; readonly request: Elected }
  | { readonly kind: 'adopted'; readonly attempt: number; readonly member: string; readonly term: number; readonly flushRecordLsn: number }
  | { readonly kind: 'copyRequest'; readonly lineage: number; readonly term: number; readonly from: number; readonly to: number }
  | ({ readonly kind: 'copyChunk' } & WalRange)
  | { readonly kind: 'subscribe'; readonly term: number; readonly configuration: Configuration }
  | { readonly kind: 'newerConfiguration'; readonly configuration: Configuration }
  | {
      readonly kind: 'startReplication';
      readonly member: string;
      readonly term: number;
      readonly generation: number;
      readonly session: number;
      readonly from: number;
    }
  | ({ readonly kind: 'wal'; readonly session: number } & WalRange)
  | { readonly kind: 'flushed'; readonly member: string; readonly term: number; readonly generation: number; readonly lsn: number }
  | {
      readonly kind: 'position';
      readonly member: string;
      readonly position: MemberPosition;
      readonly configuration: Configuration;
      readonly lineage: number;
      /** Where its WAL in the object store ends, as far as known. */
      readonly offloadedLsn: number;
    }
  | { readonly kind: 'readRequest'; readonly lineage: number; readonly from: number }
  | {
      readonly kind: 'readAnswer';
      readonly lineage: number;
      readonly from: number;
      readonly to: number;
      readonly records: readonly SimRecord[];
    }
  // Membership: drivers, register and nodes.
  | { readonly kind: 'registerRead' }
  | { readonly kind: 'registerSwap'; readonly generation: number; readonly value: RegisterValue }
  | { readonly kind: 'registerValue'; readonly value: RegisterValue }
  | { readonly kind: 'nodeRequest'; readonly askedAt: number }
  /** `askedAt`: of the request that it answers. */
  | { readonly kind: 'nodeStatus'; readonly askedAt: number; readonly status: NodeStatus }
  /** `make`: become this new member first, if this disk is the one it was meant for and never was that member. */
  | {
      readonly kind: 'configure';
      readonly configuration: Configuration;
      readonly make: MakeMember | null;
    }
  /** Ends what a compute host runs, as far as it is reached. */
  | { readonly kind: 'stopCompute' }
  // The object store.
  | {
      readonly kind: 'put';
      readonly lineage: number;
      readonly startLsn: number;
      readonly from: number;
      readonly to: number;
      readonly records: readonly SimRecord[];
    }
  /** The WAL of a lineage that is in the store ends here. */
  | { readonly kind: 'stored'; readonly lineage: number; readonly end: number }
  /** What is there behind `before`, which is in the pages? */
  | {
      readonly kind: 'archiveEndRequest';
      readonly generation: number;
      readonly lineages: readonly WalLineage[];
      readonly before: readonly SimRecord[];
    }
  /** `whole`: everything up to the last record found. */
  | {
      readonly kind: 'archiveEnd';
      readonly generation: number;
      readonly pagesLsn: number;
      readonly walEnd: number;
      readonly whole: readonly SimRecord[];
    }
  | { readonly kind: 'retire'; readonly member: string }
  | { readonly kind: 'catchUp'; readonly donor: string }
  | { readonly kind: 'termRequest' }
  /** Of a member that has adopted its term: the message `elected` that it was told, and how far its log goes. */
  | { readonly kind: 'termAnswer'; readonly request: Elected; readonly end: number };

export interface Process {
  readonly id: string;
  receive(from: string, message: Message): void;
}
