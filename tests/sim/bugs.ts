/** Protocol mistakes the simulator must notice: each is a switch in the simulated safekeeper or reader. A simulator that finds none of them
 *  proves nothing (canary.test.ts). */

export const BUGS = [
  /** A member keeps appending from a compute whose term is over. */
  'stream-without-term-check',
  /** A member reports what it has written, not what it has synced. */
  'ack-before-fsync',
  /** A member that is still copying counts its old-term WAL towards the commit LSN. */
  'count-older-term',
  /** A member adopts a term and keeps its divergent tail. */
  'no-truncation',
  /** A vote is answered before the term is durable. */
  'grant-without-persist',
  /** The history is persisted only after the copy. */
  'history-after-copy',
  /** The history is persisted before the divergent tail is cut. */
  'history-before-truncation',
  /** A member takes a quorum's commit LSN for its own bytes without comparing terms. */
  'commit-without-log-check',
  /** A member that lost WAL votes. */
  'damaged-votes',
] as const;
export type Bug = (typeof BUGS)[number];
