/** Looks for byte strings where they must not be: in every file below some directories, and in the memory of processes.
 *  Nothing is trusted to say "not there" that could not have said "there": callers plant what they look for and see it found somewhere. */
import { closeSync, lstatSync, openSync, readFileSync, readSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

export interface Finding {
  readonly where: string;
  readonly offset: number;
  readonly needle: string;
  /** What stands around it, for whoever has to find out how it came there. */
  readonly context?: string;
}
/** Names of needles to the bytes looked for. */
export type Needles = ReadonlyMap<string, Buffer>;

const CHUNK = 4 << 20;
/** Most of what a process has mapped was never touched. */
const ZEROS = Buffer.alloc(CHUNK);

export const textNeedles = (...texts: readonly string[]): Map<string, Buffer> => new Map(texts.map((t) => [t, Buffer.from(t, 'latin1')]));

export function scanFiles(roots: readonly string[], needles: Needles): { findings: Finding[]; files: number; bytes: number } {
  const findings: Finding[] = [];
  let files = 0;
  let bytes = 0;
  const walk = (path: string): void => {
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat === undefined || stat.isSymbolicLink()) return;
    if (stat.isDirectory()) {
      for (const name of list(path)) walk(join(path, name));
      return;
    }
    if (!stat.isFile()) return;
    files++;
    bytes += stat.size;
    scanFile(path, needles, findings);
  };
  for (const root of roots) walk(root);
  return { findings, files, bytes };
}

/** A directory that is being removed has nothing left to find. */
function list(path: string): string[] {
  try {
    return readdirSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

function scanFile(path: string, needles: Needles, findings: Finding[]): void {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  try {
    scanRange(
      (buffer, at) => readSync(fd, buffer, 0, buffer.length, at),
      0,
      Infinity,
      needles,
      (needle, offset) => findings.push({ where: path, offset, needle }),
    );
  } finally {
    closeSync(fd);
  }
}

function scanRange(
  read: (buffer: Buffer, at: number) => number,
  from: number,
  to: number,
  needles: Needles,
  found: (needle: string, offset: number) => void,
): void {
  const overlap = Math.max(...[...needles.values()].map((n) => n.length)) - 1;
  const buffer = Buffer.allocUnsafeSlow(CHUNK);
  for (let at = from; at < to; ) {
    const got = read(buffer.subarray(0, Math.min(CHUNK, to - at)), at);
    if (got <= 0) return;
    const chunk = buffer.subarray(0, got);
    if (!chunk.equals(ZEROS.subarray(0, got)))
      for (const [name, bytes] of needles) {
        const i = chunk.indexOf(bytes);
        if (i >= 0) found(name, at + i);
      }
    if (got < Math.min(CHUNK, to - at) || at + got >= to) return;
    at += got - overlap;
  }
}

/** Every readable private mapping of a process. Undefined where this user may not look. */
export function scanMemory(pid: number, needles: Needles): Finding[] | undefined {
  const findings: Finding[] = [];
  let fd: number;
  let maps: string;
  try {
    maps = readFileSync(`/proc/${pid}/maps`, 'utf8');
    fd = openSync(`/proc/${pid}/mem`, 'r');
  } catch (error) {
    if (['EACCES', 'EPERM'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
  try {
    for (const line of maps.split('\n')) {
      const match = /^([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+\s*(.*)$/.exec(line);
      if (match === null || match[3] === '[vvar]' || match[3] === '[vsyscall]') continue;
      const [from, to] = [Number.parseInt(match[1] as string, 16), Number.parseInt(match[2] as string, 16)];
      if (!Number.isSafeInteger(to)) continue;
      const read = (buffer: Buffer, at: number): number => {
        try {
          return readSync(fd, buffer, 0, buffer.length, at);
        } catch {
          return 0; // unmapped meanwhile, or not readable after all
        }
      };
      scanRange(read, from, to, needles, (needle, offset) => {
        const around = Buffer.alloc(160);
        read(around, offset - 96);
        findings.push({ where: `process ${pid} ${match[3]}`, offset, needle, context: JSON.stringify(around.toString('latin1')) });
      });
    }
  } finally {
    closeSync(fd);
  }
  return findings;
}

/** True when this user may read memory of other processes here: otherwise a memory scan proves nothing. */
export function mayReadMemory(pid: number): boolean {
  return scanMemory(pid, textNeedles('\u0000impossible needle of a probe\u0000')) !== undefined;
}
