/** Looks for each protocol mistake of bugs.ts: what the simulator does not find, it does not test. */
import { type Bug, MEMBERSHIP_BUGS, RECOVERY_BUGS } from './bugs.ts';
import { run } from './scenario.ts';

export interface Finding {
  readonly seed: number;
  readonly failure: string;
  /** False: nothing was lost or changed, the run only made no progress any more. */
  readonly harm: boolean;
}

/** The first seed that shows harm, or the first that shows anything when `anything` is enough. */
export function findBug(bug: Bug, seedsMax: number, anything: boolean, first = 1): Finding | null {
  let stalled: Finding | null = null;
  const about = MEMBERSHIP_BUGS.has(bug) ? { membership: true } : RECOVERY_BUGS.has(bug) ? { recovery: true } : {};
  for (let seed = first; seed < first + seedsMax; seed++) {
    const { failure } = run(seed, { bug, ...about });
    if (failure === null) continue;
    const finding = { seed, failure, harm: !failure.includes('no progress') };
    if (finding.harm || anything) return finding;
    stalled ??= finding;
  }
  return stalled;
}
