/** Services that a killed supervisor left running on this directory. They are recognised by the configuration file in their command line,
 *  which names this directory, so nothing of anybody else's is touched. */
import { readFileSync, readdirSync } from 'node:fs';
import { sleep } from '@lakebase/base';
import { processStartTime } from './lock.ts';

const TERM_MS = 15_000;

export function findLeftovers(configFiles: ReadonlySet<string>): { pid: number; startTime: string }[] {
  const found: { pid: number; startTime: string }[] = [];
  for (const entry of readdirSync('/proc')) {
    if (!/^[0-9]+$/.test(entry) || Number(entry) === process.pid) continue;
    try {
      const argv = readFileSync(`/proc/${entry}/cmdline`, 'utf8').split('\0');
      const at = argv.indexOf('--config');
      const startTime = processStartTime(Number(entry));
      if (at > 0 && configFiles.has(argv[at + 1] ?? '') && startTime !== undefined) found.push({ pid: Number(entry), startTime });
    } catch {
      /* ended while we looked, or not ours to see */
    }
  }
  return found;
}

/** Ends them in order of a polite request first; returns how many there were. */
export async function endLeftovers(configFiles: ReadonlySet<string>, termMs: number = TERM_MS): Promise<number> {
  const leftovers = findLeftovers(configFiles);
  for (const { pid } of leftovers) signal(pid, 'SIGTERM');
  const deadline = Date.now() + termMs;
  for (const { pid, startTime } of leftovers) {
    while (processStartTime(pid) === startTime) {
      if (Date.now() > deadline) signal(pid, 'SIGKILL');
      await sleep(20);
    }
  }
  return leftovers.length;
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    /* already gone */
  }
}
