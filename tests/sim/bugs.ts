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
  /** While the configuration is joint, a majority of the new members is enough to commit. */
  'commit-by-new-majority',
  /** A member votes and adopts for computes that go by an older configuration. */
  'vote-ignores-generation',
  /** A stream from before the change goes on after it. */
  'stream-across-generations',
  /** The commit LSN counts reports made under any configuration. */
  'count-any-generation',
  /** A node that lost its disk answers as the member it was. */
  'lost-votes-under-old-identity',
  /** The driver leaves the joint configuration before the old members hold it. */
  'finish-without-old-majority',
  /** The driver leaves the joint configuration before the new members have the WAL. */
  'finish-without-catching-up',
  /** The driver takes a member that lost WAL as a witness of what the old members have committed. */
  'damaged-witness',
  /** The driver does not ask for the terms that the old members have granted. */
  'finish-without-terms',
  /** In a change, the compute waits for a majority of one set's size among all. */
  'any-two-of-the-union',
  /** The driver goes from the old members to the new ones in one step. */
  'no-joint',
  /** Two drivers write the configuration without comparing. */
  'no-compare-and-swap',
  /** A recovery is done unasked though one disk is there. */
  'recovers-when-most-are-lost',
  /** A recovery takes a member that does not answer for one whose disk is lost. */
  'silent-is-lost',
  /** The pageserver goes on ingesting while a recovery looks how far the WAL goes. */
  'recovers-without-sealing',
  /** The new WAL begins where the WAL in the object store ends, though the pages are ahead of it. */
  'recovers-behind-the-pages',
  /** The members of a new lineage begin at term 0. */
  'terms-begin-anew',
  /** Lineages have no names of their own in the object store. */
  'lineages-share-names',
  /** A recovery reads on in an older lineage's WAL where a newer one begins. */
  'archive-without-lineages',
  /** A member takes it for its own WAL what one of another lineage has in the object store. */
  'offloaded-across-lineages',
  /** A member serves the pageserver whichever lineage that one follows. */
  'pages-of-any-lineage',
  /** The pageserver follows an older lineage again when it is told late. */
  'pages-go-back-a-lineage',
] as const;
/** Noticed by a standstill: streams and what is counted are bound to the generation too, so that a vote alone has done no harm in 25,000 seeds. */
export const STALLING_BUGS: ReadonlySet<Bug> = new Set(['vote-ignores-generation']);
/** Those that need a change of membership to do harm. */
export const MEMBERSHIP_BUGS: ReadonlySet<Bug> = new Set(
  BUGS.slice(BUGS.indexOf('commit-by-new-majority'), BUGS.indexOf('recovers-when-most-are-lost')),
);
/** Those that need a recovery. */
export const RECOVERY_BUGS: ReadonlySet<Bug> = new Set(BUGS.slice(BUGS.indexOf('recovers-when-most-are-lost')));
export type Bug = (typeof BUGS)[number];
