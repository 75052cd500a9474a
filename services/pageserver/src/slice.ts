/** How long this service works without a turn of the event loop: what one branch adds to the reads of every other. */
import { setImmediate as nextTurn } from 'node:timers/promises';

export const SLICE_MS = 1;

/** Called between two steps of something long: lets others go on when the slice is used up. */
export function turns(): () => Promise<void> {
  let began = performance.now();
  return async () => {
    if (performance.now() - began < SLICE_MS) return;
    await nextTurn();
    began = performance.now();
  };
}
