/** Fills holes in a member's WAL: segments before the last whose file fails its checks or is gone. What is in the object store is left to it; what is
 *  not is taken from a peer and written anew; what is not even committed makes this member one that lost WAL (docs/formats/wal-segment.md).
 *  Invariant: nothing of a hole is served before its bytes passed the checks of records and of both neighbours. */
import type { PeerAddress } from '@lakebase/api';
import { type Logger, errorMessage } from '@lakebase/base';
import { WAL_SEGMENT_BYTES, formatLsn, lsn, walFileName } from '@lakebase/ids';
import { fetchCommitted } from './peer-copy.ts';
import type { WalTimeline } from './wal-timeline.ts';

export interface HoleRepairOptions {
  readonly secret: string;
  readonly peers: () => readonly PeerAddress[];
  readonly log: Logger;
}

const AGAIN_MS = 2_000;

export class HoleRepair {
  readonly #options: HoleRepairOptions;
  readonly #busy = new Set<WalTimeline>();

  constructor(options: HoleRepairOptions) {
    this.#options = options;
  }

  /** Repairs what there is, now and again until nothing is left. */
  touch(timeline: WalTimeline): void {
    if (timeline.holes.size === 0 || this.#busy.has(timeline)) return;
    this.#busy.add(timeline);
    void this.#run(timeline).finally(() => {
      this.#busy.delete(timeline);
      if (!timeline.closed && timeline.holes.size > 0) setTimeout(() => this.touch(timeline), AGAIN_MS).unref();
    });
  }

  async #run(timeline: WalTimeline): Promise<void> {
    const { log } = this.#options;
    // From the oldest: where records begin in one is known from the one before.
    for (const [number, { path, message }] of [...timeline.holes].sort(([a], [b]) => a - b)) {
      if (timeline.closed) return;
      const end = lsn((number + 1) * WAL_SEGMENT_BYTES);
      try {
        if (timeline.archive !== undefined && timeline.offloadedLsn >= end) {
          timeline.leaveHole(number);
          log.warn({ path, err: message }, 'a damaged WAL segment was set aside: its WAL is in the object store');
        } else if (timeline.readableLsn >= end) await this.#refill(timeline, number);
        else timeline.giveUpHole(number);
      } catch (error) {
        log.error({ path, err: errorMessage(error) }, 'a damaged WAL segment cannot be repaired yet');
      }
    }
  }

  async #refill(timeline: WalTimeline, number: number): Promise<void> {
    const from = timeline.holeStart(number);
    const to = lsn((number + 1) * WAL_SEGMENT_BYTES);
    let reason = 'there is no peer';
    for (const donor of this.#options.peers()) {
      try {
        const bytes = await fetchCommitted(timeline, { secret: this.#options.secret, donor, from, to });
        if (timeline.closed || !timeline.holes.has(number)) return;
        timeline.replaceHole(number, bytes);
        this.#options.log.warn(
          { segment: walFileName(number), from: formatLsn(from), donor: donor.id },
          'a damaged WAL segment was repaired from a peer',
        );
        return;
      } catch (error) {
        reason = `${donor.id}: ${errorMessage(error)}`;
      }
    }
    throw new Error(reason);
  }
}
