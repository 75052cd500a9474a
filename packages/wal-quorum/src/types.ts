/** Values of the election protocol (docs/protocols/election.md).
 *  Invariant: every LSN here that names a position in a log is the end of a complete record, except `flushLsn`. */
import type { Lsn, Term } from '@lakebase/ids';
import type { Configuration } from './configuration.ts';

/** Term `term` begins at `startLsn`; entries have rising terms and non-falling LSNs. */
export interface TermHistoryEntry {
  readonly term: Term;
  readonly startLsn: Lsn;
}
export type TermHistory = readonly TermHistoryEntry[];

export interface Vote {
  readonly voter: string;
  /** The term granted. */
  readonly term: Term;
  readonly lastLogTerm: Term;
  /** End of the last complete durable record. */
  readonly flushRecordLsn: Lsn;
  /** Start of that record. */
  readonly lastRecordLsn: Lsn;
  readonly commitLsn: Lsn;
  readonly termHistory: TermHistory;
}

/** What a member reports of itself; the commit LSN is computed from these. One report is a fact that never becomes false:
 *  "while `term` was my term and `generation` my configuration's, my durable log ended at `flushRecordLsn` and its last entry was of `lastLogTerm`". */
export interface MemberPosition {
  readonly term: Term;
  readonly lastLogTerm: Term;
  readonly flushRecordLsn: Lsn;
  /** Generation of the configuration the member held then. */
  readonly generation: number;
}

/** What the winner of a vote tells every member: the log of `term` is `termHistory`, copied from `donor` up to `termStartLsn`. */
export interface Elected {
  readonly term: Term;
  readonly termStartLsn: Lsn;
  /** Start of the last record before termStartLsn: xl_prev of the first record of the term. */
  readonly lastRecordLsn: Lsn;
  /** Ends with (term, termStartLsn). */
  readonly termHistory: TermHistory;
  /** Under which the term was granted: a member that holds a later one refuses. */
  readonly configuration: Configuration;
  readonly donor: string;
  /** Who granted the term. A rebuilt member accepts only a term that all the others granted. */
  readonly voters: readonly string[];
}
