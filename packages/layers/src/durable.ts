/** Files that survive kill -9 and power loss: write to a temporary name, fsync, rename, fsync the directory. */
import { type FileHandle, open, rename, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { LakebaseError } from '@lakebase/base';

export const TEMP_SUFFIX = '.tmp';

export async function syncDirectory(path: string): Promise<void> {
  const dir = await open(path, 'r');
  try {
    await dir.sync();
  } finally {
    await dir.close();
  }
}

/** Opens `path.tmp` for writing; {@link commitFile} gives it its name. */
export async function createTemp(path: string): Promise<FileHandle> {
  try {
    return await open(path + TEMP_SUFFIX, 'w+', 0o600);
  } catch (cause) {
    throw diskError(path, cause);
  }
}

export async function commitFile(handle: FileHandle, path: string): Promise<void> {
  try {
    await handle.datasync();
    await handle.close();
    await rename(path + TEMP_SUFFIX, path);
    await syncDirectory(dirname(path));
  } catch (cause) {
    throw diskError(path, cause);
  }
}

export async function abandonFile(handle: FileHandle, path: string): Promise<void> {
  await handle.close().catch(() => {});
  await unlink(path + TEMP_SUFFIX).catch(() => {});
}

export async function writeFileDurably(path: string, bytes: Buffer): Promise<void> {
  const handle = await createTemp(path);
  try {
    await writeFully(handle, bytes, 0, path);
  } catch (error) {
    await abandonFile(handle, path);
    throw error;
  }
  await commitFile(handle, path);
}

export async function writeFully(handle: FileHandle, bytes: Buffer, position: number, path: string): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    try {
      const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, position + done);
      done += bytesWritten;
    } catch (cause) {
      throw diskError(path, cause);
    }
  }
}

export function diskError(path: string, cause: unknown): LakebaseError {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  const full = code === 'ENOSPC' || code === 'EDQUOT';
  return new LakebaseError(
    full ? 'RESOURCE_EXHAUSTED' : 'UNAVAILABLE',
    full ? `the disk is full: cannot write ${path}; free some space` : `cannot write ${path}: ${(cause as Error).message}`,
    { cause },
  );
}
