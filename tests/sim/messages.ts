/** What simulated processes say to each other. `attempt` ties an answer to the candidacy that asked; `record`s travel whole, byte ranges cut them. */
import type { Elected, MemberPosition, Vote } from '@lakebase/wal-quorum';
import type { SimRecord } from './log.ts';

export type Message =
  | { readonly kind: 'statusRequest'; readonly attempt: number }
  | { readonly kind: 'status'; readonly attempt: number; readonly term: number; readonly commitLsn: number }
  | { readonly kind: 'voteRequest'; readonly attempt: number; readonly term: number }
  /** `log` is for the checker only: what the voter held when it voted. */
  | { readonly kind: 'vote'; readonly attempt: number; readonly vote: Vote; readonly log: readonly SimRecord[] }
  | { readonly kind: 'refused'; readonly attempt: number; readonly term: number; readonly reason: string }
  | { readonly kind: 'elected'; readonly attempt: number; readonly request: Elected }
  | { readonly kind: 'adopted'; readonly attempt: number; readonly term: number; readonly flushRecordLsn: number }
  | { readonly kind: 'copyRequest'; readonly term: number; readonly from: number; readonly to: number }
  | {
      readonly kind: 'copyChunk';
      readonly term: number;
      readonly from: number;
      readonly to: number;
      readonly records: readonly SimRecord[];
    }
  | { readonly kind: 'subscribe'; readonly term: number }
  | { readonly kind: 'startReplication'; readonly term: number; readonly session: number; readonly from: number }
  | {
      readonly kind: 'wal';
      readonly term: number;
      readonly session: number;
      readonly from: number;
      readonly to: number;
      readonly records: readonly SimRecord[];
    }
  | { readonly kind: 'flushed'; readonly term: number; readonly lsn: number }
  | { readonly kind: 'position'; readonly position: MemberPosition }
  | { readonly kind: 'readRequest'; readonly from: number }
  | { readonly kind: 'readAnswer'; readonly from: number; readonly to: number; readonly records: readonly SimRecord[] };

export interface Process {
  readonly id: string;
  receive(from: string, message: Message): void;
}
