/** One supervisor per directory. The lock file is made with O_EXCL and names its owner by pid and start time, so a pid that was given to
 *  another process later does not hold it. A lock whose owner is gone is moved aside (rename decides who did it) and taken. */
import { closeSync, fsyncSync, linkSync, openSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';

interface Owner {
  readonly pid: number;
  readonly startTime: string;
}

/** Field 22 of /proc/<pid>/stat, ticks since boot; undefined when there is no such process (a zombie has ended too). */
export function processStartTime(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

export class HomeLock {
  readonly #path: string;
  readonly #text: string;

  private constructor(path: string, text: string) {
    this.#path = path;
    this.#text = text;
  }

  static acquire(path: string, pid: number = process.pid): HomeLock {
    const text = JSON.stringify({ pid, startTime: processStartTime(pid) ?? '' } satisfies Owner);
    for (let attempt = 0; attempt < 20; attempt++) {
      if (create(path, text)) return new HomeLock(path, text);
      const seen = read(path);
      if (seen === undefined) continue;
      const owner = parse(seen);
      if (owner !== undefined && processStartTime(owner.pid) === owner.startTime)
        throw new LakebaseError(
          'CONFIG',
          `already running on this directory (process ${owner.pid}): stop it first, or set LAKEBASE_HOME to another directory`,
        );
      moveAside(path, seen);
    }
    throw new LakebaseError('CONFIG', `cannot take ${path}: delete it if nothing runs on this directory`);
  }

  /** Whether somebody holds it now; for commands that only want to know. */
  static holder(path: string): number | undefined {
    const owner = parse(read(path) ?? '');
    return owner !== undefined && processStartTime(owner.pid) === owner.startTime ? owner.pid : undefined;
  }

  release(): void {
    if (read(this.#path) === this.#text) rmSync(this.#path, { force: true });
  }
}

function create(path: string, text: string): boolean {
  // Written under a private name and linked: nobody ever reads a lock that is still empty.
  const fresh = `${path}.${process.pid}`;
  rmSync(fresh, { force: true });
  const fd = openSync(fresh, 'wx', 0o600);
  try {
    writeSync(fd, text);
    fsyncSync(fd);
    linkSync(fresh, path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  } finally {
    closeSync(fd);
    rmSync(fresh, { force: true });
  }
}

function moveAside(path: string, stale: string): void {
  const aside = `${path}.stale.${process.pid}`;
  try {
    renameSync(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  if (read(aside) !== stale) {
    // Somebody took it between our look and the rename: give it back.
    try {
      linkSync(aside, path);
    } catch {
      /* a third one has it: they will see each other */
    }
  }
  rmSync(aside, { force: true });
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

function parse(text: string): Owner | undefined {
  try {
    const owner = JSON.parse(text) as Partial<Owner>;
    return typeof owner.pid === 'number' && typeof owner.startTime === 'string' ? (owner as Owner) : undefined;
  } catch {
    return undefined;
  }
}
