/** Bytes that can be read by ranges, wherever they are: a file, memory, or (by the caller's adapter) an object in the store. */
import { type FileHandle, open } from 'node:fs/promises';
import { basename } from 'node:path';
import { LakebaseError } from '@lakebase/base';

export interface ByteSource {
  /** The last part of its path or key: what its frames are bound to. */
  readonly name: string;
  readonly size: number;
  /** Exactly these bytes; CORRUPT when they are not there. */
  read(offset: number, length: number): Promise<Buffer>;
  close(): Promise<void>;
}

export function bufferSource(name: string, bytes: Buffer): ByteSource {
  return {
    name,
    size: bytes.length,
    async read(offset, length) {
      if (offset + length > bytes.length) throw new LakebaseError('CORRUPT', `${name} is cut short`);
      return bytes.subarray(offset, offset + length);
    },
    async close() {},
  };
}

export async function fileSource(path: string): Promise<ByteSource> {
  let file: FileHandle;
  let size: number;
  try {
    file = await open(path, 'r');
    const stat = await file.stat();
    if (!stat.isFile()) throw new Error('not a file');
    size = stat.size;
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    throw new LakebaseError(code === 'ENOENT' ? 'NOT_FOUND' : 'INVALID_ARGUMENT', `cannot read ${path}: ${(cause as Error).message}`, {
      cause,
    });
  }
  return {
    name: basename(path),
    size,
    async read(offset, length) {
      if (offset + length > size) throw new LakebaseError('CORRUPT', `${path} is cut short`);
      const bytes = Buffer.allocUnsafeSlow(length);
      for (let done = 0; done < length; ) {
        let got: number;
        try {
          got = (await file.read(bytes, done, length - done, offset + done)).bytesRead;
        } catch (cause) {
          throw new LakebaseError('CORRUPT', `${path} cannot be read at byte ${offset + done}: ${(cause as Error).message}`, { cause });
        }
        if (got === 0) throw new LakebaseError('CORRUPT', `${path} became shorter while it was read`);
        done += got;
      }
      return bytes;
    },
    close: () => file.close(),
  };
}

/** All of it, when it is not longer than `max`. */
export async function readWhole(source: ByteSource, max: number): Promise<Buffer> {
  if (source.size > max) throw new LakebaseError('CORRUPT', `${source.name} has ${source.size} bytes; such a file has at most ${max}`);
  return source.read(0, source.size);
}
