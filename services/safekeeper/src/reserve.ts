/** Which member may take its time. Two of three flushes acknowledge a commit; the third one's fdatasync only competes with them for disk and
 *  processor when members share a machine, and buys nothing while the other two answer. So on each timeline one member, chosen by the
 *  timeline's id, batches for a few milliseconds, as long as it hears the others flushing in the same term.
 *
 *  Invariants: the choice is a matter of speed only, no vote and no commit depends on it; when another member falls silent for
 *  {@link FRESH_MS} the reserve flushes at once again, so a commit waits at most that long more than without it. */
import type { Term } from '@lakebase/ids';

/** How long the reserve gathers WAL before it flushes. */
export const RESERVE_DELAY_MS = 8;
/** More than this does not wait. */
export const RESERVE_BYTES_MAX = 1024 * 1024;
/** A peer whose position has not moved for this long is not counted on. */
export const FRESH_MS = 100;

/** The reserve of a timeline: one member of all, spread over timelines. */
export function reserveOf(timeline: string, members: readonly string[]): string | undefined {
  if (members.length < 3) return undefined;
  const sorted = [...members].sort();
  return sorted[Number.parseInt(timeline.slice(0, 8), 16) % sorted.length];
}

/** Hears the peers and tells whether both of them carry the quorum now. */
export class PeerPulse {
  readonly #moved = new Map<string, { at: number; flushRecordLsn: number; term: number }>();

  heard(peer: string, flushRecordLsn: number, term: number, now: number): void {
    const before = this.#moved.get(peer);
    if (before === undefined || before.flushRecordLsn !== flushRecordLsn || before.term !== term)
      this.#moved.set(peer, { at: now, flushRecordLsn, term });
  }

  /** True when `quorum` peers moved lately in `term`. */
  carried(quorum: number, term: Term, now: number): boolean {
    let n = 0;
    for (const peer of this.#moved.values()) if (peer.term === term && now - peer.at < FRESH_MS) n++;
    return n >= quorum;
  }
}
