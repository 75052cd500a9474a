/** Files that a put fills before they are moved into place. Their names say whose they are, so that those of dead processes can be removed:
 *  `<machine>-<process>-<its start>-<random>`. */
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

const NAME = /^([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{24}$/;
/** Of other machines and of formats we do not know: nobody writes one object for a day. */
const FOREIGN_MS_MAX = 24 * 3_600_000;

/** Changes with every boot and pid namespace: process numbers mean something only within it. */
function machine(): string {
  let identity = '';
  try {
    identity = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8') + readlinkSync('/proc/self/ns/pid');
  } catch {
    /* without it, every file counts as foreign and goes after a day */
  }
  return createHash('sha256').update(identity).digest('hex').slice(0, 8);
}

/** In clock ticks since boot; undefined when there is no such process. */
function startOf(pid: number | 'self'): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}

const own = { machine: machine(), start: startOf('self') ?? '0' };

export const temporaryName = (): string => `${own.machine}-${process.pid}-${own.start}-${randomBytes(12).toString('hex')}`;

/** Removes what nobody will finish. */
export async function removeLeftovers(directory: string, now = Date.now()): Promise<number> {
  let removed = 0;
  for (const name of await readdir(directory)) {
    const path = join(directory, name);
    const parts = NAME.exec(name);
    const local = parts?.[1] === own.machine;
    const gone = local
      ? startOf(Number(parts?.[2])) !== parts?.[3]
      : now - ((await stat(path).catch(() => undefined))?.mtimeMs ?? now) > FOREIGN_MS_MAX;
    if (!gone) continue;
    await rm(path, { force: true });
    removed++;
  }
  return removed;
}
