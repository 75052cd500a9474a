/** What can be wrong before anything is started, each as one line that says what to do. */
import { closeSync, constants, accessSync, existsSync, fsyncSync, mkdirSync, openSync, rmSync, statfsSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import type { Home } from '../home.ts';

/** Less than this and Postgres's first WAL segments would not fit. */
const FREE_BYTES_MIN = 256 * 1024 * 1024;

export function checkHome(home: Home): void {
  try {
    // Open to enter: Postgres runs as another account when we are root. What is secret has its own mode.
    mkdirSync(home.dir, { recursive: true, mode: 0o755 });
    for (const dir of [home.config, home.logs, home.data]) mkdirSync(dir, { recursive: true, mode: 0o755 });
    const probe = join(home.dir, `.probe.${process.pid}`);
    const fd = openSync(probe, 'w', 0o600);
    try {
      writeSync(fd, Buffer.alloc(8_192));
      fsyncSync(fd);
    } finally {
      closeSync(fd);
      rmSync(probe, { force: true });
    }
  } catch (error) {
    throw diskError(home.dir, reasonOf(home.dir, error as NodeJS.ErrnoException));
  }
  const { bavail, bsize } = statfsSync(home.dir);
  if (bavail * bsize < FREE_BYTES_MIN)
    throw new LakebaseError(
      'CONFIG',
      `the disk of ${home.dir} is nearly full (${Math.floor((bavail * bsize) / 1_048_576)} MB free, ${FREE_BYTES_MIN / 1_048_576} MB needed): free some space, or set LAKEBASE_HOME to a directory on another disk`,
    );
}

/** A recursive mkdir of Node says ENOENT where the file system is read-only: ask the nearest directory that exists. */
function reasonOf(path: string, error: NodeJS.ErrnoException): NodeJS.ErrnoException {
  if (error.code !== 'ENOENT') return error;
  let at = path;
  while (!existsSync(at) && at !== dirname(at)) at = dirname(at);
  try {
    accessSync(at, constants.W_OK);
    return error;
  } catch (reason) {
    return reason as NodeJS.ErrnoException;
  }
}

export function diskError(dir: string, error: NodeJS.ErrnoException): LakebaseError {
  const elsewhere = 'or set LAKEBASE_HOME to another directory';
  const what: Record<string, string> = {
    EROFS: `${dir} is on a read-only file system: make it writable, ${elsewhere}`,
    ENOSPC: `the disk of ${dir} is full: free some space, ${elsewhere}`,
    EDQUOT: `the disk quota for ${dir} is used up: free some space, ${elsewhere}`,
    EACCES: `no permission to write in ${dir}: change its owner or mode, ${elsewhere}`,
    EPERM: `no permission to write in ${dir}: change its owner or mode, ${elsewhere}`,
    ENOTDIR: `${dir} is not a directory: move it away, ${elsewhere}`,
    EEXIST: `${dir} is not a directory: move it away, ${elsewhere}`,
  };
  return new LakebaseError('CONFIG', what[error.code ?? ''] ?? `cannot use ${dir}: ${error.message}`, { cause: error });
}

export function checkBuilt(root: string, files: readonly string[]): void {
  const missing = files.find((f) => !existsSync(join(root, f)));
  if (missing !== undefined) throw new LakebaseError('CONFIG', `${missing} is not built: run npm run build`);
  try {
    accessSync(root, constants.R_OK);
  } catch (error) {
    throw diskError(root, error as NodeJS.ErrnoException);
  }
}
