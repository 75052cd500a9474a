/** Small files that are replaced whole: after a crash the old or the new content, never a mixture.
 *  `hook` is called before every step that a crash could separate from the one before; tests throw in it. */
import { closeSync, existsSync, fstatSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';

export type CrashHook = (step: string) => void;

export interface ReplaceOptions {
  readonly hook?: CrashHook | undefined;
  /** Overwrite the old content with zeros after it was replaced: it held wrapped keys that are to be destroyed. File systems that copy on
   *  write keep old blocks anyway; what is destroyed was wrapped, so this is the second lock on that door. */
  readonly scrubOld?: boolean;
}

export function replaceFile(path: string, content: Buffer, options: ReplaceOptions = {}): void {
  const { hook, scrubOld = false } = options;
  const fresh = `${path}.new`;
  hook?.('before write');
  const fd = openSync(fresh, 'w', 0o600);
  try {
    // In two halves for the hook's sake: a torn new file must not matter.
    const half = content.length >> 1;
    writeSync(fd, content, 0, half);
    hook?.('half written');
    writeSync(fd, content, half);
    hook?.('before sync');
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  const old = scrubOld && existsSync(path) ? openSync(path, 'r+') : undefined;
  try {
    hook?.('before rename');
    renameSync(fresh, path);
    hook?.('before directory sync');
    syncDirectory(dirname(path));
    hook?.('before scrub');
    if (old !== undefined) zero(old);
  } finally {
    if (old !== undefined) closeSync(old);
  }
  hook?.('done');
}

function zero(fd: number): void {
  const { size } = fstatSync(fd);
  writeSync(fd, Buffer.alloc(size), 0, size, 0);
  fsyncSync(fd);
}

export function removeFile(path: string): void {
  rmSync(path, { force: true });
  syncDirectory(dirname(path));
}

export function syncDirectory(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
