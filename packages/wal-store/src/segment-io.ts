/** The few file calls the store makes on its commit path, as a seam for fault injection. They are synchronous on purpose: on the machines
 *  measured one write + fdatasync costs 146 us this way and 212 us through the libuv pool, and a batch holds everything of one loop turn. */
import { closeSync, fdatasyncSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs';
import { LakebaseError, errorMessage } from '@lakebase/base';

export interface SegmentIo {
  /** Writes all of the range or throws. */
  write(fd: number, buffer: Buffer, offset: number, length: number, position: number): void;
  sync(fd: number): void;
}

export const nodeIo: SegmentIo = {
  write: (fd, buffer, offset, length, position) => {
    for (let done = 0; done < length; ) done += writeSync(fd, buffer, offset + done, length - done, position + done);
  },
  sync: fdatasyncSync,
};

export function readFully(fd: number, buffer: Buffer, length: number, position: number): number {
  let done = 0;
  while (done < length) {
    const n = readSync(fd, buffer, done, length - done, position + done);
    if (n === 0) break;
    done += n;
  }
  return done;
}

/** Makes creations and removals in `dir` durable. */
export function syncDirectory(dir: string): void {
  const fd = openSync(dir, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

export const isDiskFull = (error: unknown): boolean => {
  const code = (error as { code?: unknown }).code;
  return code === 'ENOSPC' || code === 'EDQUOT';
};

export function ioError(error: unknown, path: string, action: string): LakebaseError {
  if (error instanceof LakebaseError) return error;
  return isDiskFull(error)
    ? new LakebaseError('RESOURCE_EXHAUSTED', `${action} ${path}: the disk is full; free space, writing resumes by itself`, {
        cause: error,
      })
    : new LakebaseError('CORRUPT', `${action} ${path}: ${errorMessage(error)}`, { cause: error });
}
