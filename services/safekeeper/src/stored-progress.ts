/** How far a timeline's WAL is elsewhere, learned here or from a peer. Invariant: all three only rise. */
import { type Lsn, lsn } from '@lakebase/ids';

export class StoredProgress {
  /** In the object store without a hole from the timeline's start to here. */
  offloadedLsn: Lsn;
  /** Where its tail in the object store ends, as far as known. */
  tailLsn: Lsn = lsn(0);
  /** The pageserver keeps what WAL up to here made where it outlives the pageserver. */
  pagesLsn: Lsn;

  constructor(offloadedLsn: Lsn, pagesLsn: Lsn) {
    this.offloadedLsn = offloadedLsn;
    this.pagesLsn = pagesLsn;
  }

  /** True when it rose. */
  note(which: 'offloadedLsn' | 'tailLsn' | 'pagesLsn', at: Lsn): boolean {
    if (at <= this[which]) return false;
    this[which] = at;
    return true;
  }
}
