/** What simulated processes say to each other. `attempt` ties an answer to the candidacy that asked; `record`s travel whole, byte ranges cut them.
 *  Processes are addressed by node; `member` is the identity that answers, which changes when a node loses its disk. */
import type { Configuration, Elected, MemberPosition, MemberReport, Vote } from '@lakebase/wal-quorum';
import type { SimRecord } from './log.ts';

/** What the drivers share: the Manager's row, changed by compare-and-swap on the generation. */
export interface RegisterValue {
  readonly configuration: Configuration;
  /** Disk of its node when each member was placed there. */
  readonly incarnations: Readonly<Record<string, number>>;
}

export interface NodeStatus {
  readonly incarnation: number;
  readonly member: string | null;
  /** Every identity ever made on this disk. */
  readonly made: readonly string[];
  readonly configuration: Configuration | null;
  readonly position: MemberReport | null;
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
  | { readonly kind: 'copyRequest'; readonly term: number; readonly from: number; readonly to: number }
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
  | { readonly kind: 'position'; readonly member: string; readonly position: MemberPosition; readonly configuration: Configuration }
  | { readonly kind: 'readRequest'; readonly from: number }
  | { readonly kind: 'readAnswer'; readonly from: number; readonly to: number; readonly records: readonly SimRecord[] }
  // Membership: drivers, register and nodes.
  | { readonly kind: 'registerRead' }
  | { readonly kind: 'registerSwap'; readonly generation: number; readonly value: RegisterValue }
  | { readonly kind: 'registerValue'; readonly value: RegisterValue }
  | { readonly kind: 'nodeRequest' }
  | { readonly kind: 'nodeStatus'; readonly status: NodeStatus }
  /** `make`: become this new member first, if this disk is the one it was meant for and never was that member. */
  | {
      readonly kind: 'configure';
      readonly configuration: Configuration;
      readonly make: { readonly member: string; readonly incarnation: number } | null;
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
