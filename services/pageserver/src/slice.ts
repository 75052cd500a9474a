/** What one branch may add to the reads of every other: how long this service works without a turn of the event loop, and how far behind commits, reads
 *  and ingest its background work stands where they want the same processor. */
import { spawnSync } from 'node:child_process';
import { readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { setPriority } from 'node:os';
import { setImmediate as nextTurn } from 'node:timers/promises';

export const SLICE_MS = 0.5;
/** Of merges and images, and of V8's helpers. */
export const NICE = 10;

const PROC = '/proc';
const TASKS = `${PROC}/self/task`;

/** Has the calling thread stand behind the one that serves reads. */
export function standBehind(): void {
  try {
    // On Linux a priority is a thread's own; the link is PID/task/TID.
    demote(Number(readlinkSync(`${PROC}/thread-self`).split('/')[2]));
  } catch {
    setPriority(0, NICE);
  }
}

/** Has V8's helper threads, which collect the garbage of merges and compile, stand behind the thread that serves reads: as its equals they keep it off its
 *  processor for up to 3 ms at a time, next to another one that has nothing to do. Call once, at the start. Returns how many there were; 0 where the
 *  platform is not Linux or does not name its threads. */
export function demoteHelpers(): number {
  let demoted = 0;
  try {
    for (const task of readdirSync(TASKS)) {
      if (readFileSync(`${TASKS}/${task}/comm`, 'utf8').trim() !== 'V8Worker') continue;
      demote(Number(task));
      demoted++;
    }
  } catch {
    // A matter of latency only.
  }
  return demoted;
}

/** A lower priority, and never on the first processor: the scheduler neither interrupts at once who is of lower priority nor moves who waits to a processor
 *  that is idle. Where there is no `taskset` (util-linux, BusyBox), or one processor only, the priority is all. */
function demote(task: number): void {
  setPriority(task, NICE);
  const processors = backgroundProcessors(readFileSync(`${PROC}/self/status`, 'utf8'));
  if (processors !== undefined) spawnSync('taskset', ['-c', '-p', processors, String(task)], { stdio: 'ignore' });
}

/** The processors for what stands behind, as `taskset` takes them: all that `/proc/self/status` allows but the first; undefined where that leaves none. */
export function backgroundProcessors(status: string): string | undefined {
  const allowed = /^Cpus_allowed_list:\s*(\S+)$/m.exec(status)?.[1];
  if (allowed === undefined) return undefined;
  const [first = '', ...rest] = allowed.split(',');
  const [from, to] = first.split('-').map(Number) as [number, number?];
  if (to !== undefined && to > from) rest.unshift(from + 1 === to ? String(to) : `${from + 1}-${to}`);
  return rest.length === 0 ? undefined : rest.join(',');
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
