/** Files that survive kill -9 and power loss: write to a temporary name, fsync, rename, fsync the directory.
 *  A thread in the background writes and syncs by itself. libuv's threads are the process's: there this work would come before what stands in front of the
 *  background, and take the place of its reads. */
import { fdatasyncSync, writevSync } from 'node:fs';
import { type FileHandle, open, rename, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isMainThread } from 'node:worker_threads';
import { LakebaseError } from '@lakebase/base';

export const TEMP_SUFFIX = '.tmp';
/** Of one system call; the kernel's own bound is 1024. */
const PIECES_MAX = 512;

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
    if (isMainThread) await handle.datasync();
    else fdatasyncSync(handle.fd);
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

/** One after the other, without a copy of them all. */
export async function writeAllFully(handle: FileHandle, pieces: readonly Buffer[], position: number, path: string): Promise<void> {
  for (let i = 0; i < pieces.length; i += PIECES_MAX) {
    const some = pieces.slice(i, i + PIECES_MAX);
    const bytes = some.reduce((n, piece) => n + piece.length, 0);
    let written: number;
    try {
      written = isMainThread ? (await handle.writev(some, position)).bytesWritten : writevSync(handle.fd, some, position);
    } catch (cause) {
      throw diskError(path, cause);
    }
    // Rare: the disk is nearly full, most likely.
    if (written < bytes) await writeFully(handle, Buffer.concat(some).subarray(written), position + written, path);
    position += bytes;
  }
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
