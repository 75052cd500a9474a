/** The control file on disk (docs/formats/control-file.md): replaced as a whole, durable when {@link writeControl} returns. */
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { CONTROL_FILE_BYTES_MAX, type ControlFile, decodeControlFile, encodeControlFile } from '@lakebase/wal-quorum';

export const controlPath = (dir: string): string => join(dir, 'control');

export function writeControl(dir: string, control: ControlFile): void {
  const path = controlPath(dir);
  const temporary = `${path}.tmp`;
  const bytes = encodeControlFile(control);
  try {
    const fd = openSync(temporary, 'w', 0o600);
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, done);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
    syncDir(dir);
  } catch (error) {
    const full = (error as { code?: unknown }).code === 'ENOSPC';
    throw new LakebaseError(
      full ? 'RESOURCE_EXHAUSTED' : 'INTERNAL',
      `cannot write ${path}: ${full ? 'the disk is full; free space' : errorMessage(error)}`,
      {
        cause: error,
      },
    );
  }
}

/** Throws CORRUPT for anything but a whole valid file. */
export function readControl(dir: string): ControlFile {
  const path = controlPath(dir);
  rmSync(`${path}.tmp`, { force: true });
  if (statSync(path).size > CONTROL_FILE_BYTES_MAX) throw new LakebaseError('CORRUPT', `control file ${path} is too long`);
  return decodeControlFile(readFileSync(path), path);
}

export function syncDir(dir: string): void {
  const fd = openSync(dir, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
