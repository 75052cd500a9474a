/** What one branch may add to the reads of every other: how long this service works without a turn of the event loop, and how far behind commits, reads
 *  and ingest its background work stands where they want the same processor. */
import { readFileSync, readdirSync } from 'node:fs';
import { setPriority } from 'node:os';
import { setImmediate as nextTurn } from 'node:timers/promises';

export const SLICE_MS = 1;
/** Of merges and images, and of V8's helpers. */
export const NICE = 10;

const TASKS = '/proc/self/task';

/** Lets V8's helper threads, which collect the garbage of merges and compile, stand behind the thread that serves reads: of equal priority they keep it
 *  off its processor for up to 3 ms at a time, next to another one that has nothing to do. Call once, at the start. Returns how many there were; 0 where
 *  the platform is not Linux or does not name its threads. */
export function demoteHelpers(): number {
  let demoted = 0;
  try {
    for (const task of readdirSync(TASKS)) {
      if (readFileSync(`${TASKS}/${task}/comm`, 'utf8').trim() !== 'V8Worker') continue;
      setPriority(Number(task), NICE);
      demoted++;
    }
  } catch {
    // A matter of latency only.
  }
  return demoted;
}

/** Called between two steps of something long: lets others go on when the slice is used up. */
export function turns(): () => Promise<void> {
  let began = performance.now();
  return async () => {
    if (performance.now() - began < SLICE_MS) return;
    await nextTurn();
    began = performance.now();
  };
}
