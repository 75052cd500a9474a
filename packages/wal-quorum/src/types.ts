/** Values of the election protocol (docs/protocols/election.md). */
import type { Lsn, Term } from '@lakebase/ids';

/** Term `term` begins at `startLsn`; entries have rising terms and non-falling LSNs. */
export interface TermHistoryEntry {
  readonly term: Term;
  readonly startLsn: Lsn;
}
export type TermHistory = readonly TermHistoryEntry[];

export interface Vote {
  readonly voter: string;
  readonly term: Term;
  readonly lastLogTerm: Term;
  /** End of the last complete durable record. */
  readonly flushRecordLsn: Lsn;
  readonly lastRecordLsn: Lsn;
  readonly commitLsn: Lsn;
  readonly termHistory: TermHistory;
}

export interface MemberPosition {
  readonly lastLogTerm: Term;
  readonly flushRecordLsn: Lsn;
}
