/** What one branch may add to the reads of every other: how long this service works without a turn of the event loop, and how far behind commits, reads
 *  and ingest its background work stands where they want the same processor. */
import { setImmediate as nextTurn } from 'node:timers/promises';

export const SLICE_MS = 1;
/** Of merges and images. */
export const NICE = 10;

/** Called between two steps of something long: lets others go on when the slice is used up. */
export function turns(): () => Promise<void> {
  let began = performance.now();
  return async () => {
    if (performance.now() - began < SLICE_MS) return;
    await nextTurn();
    began = performance.now();
  };
}
