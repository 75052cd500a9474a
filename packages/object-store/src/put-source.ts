/** What a put reads from. */
import { stat } from 'node:fs/promises';
import { LakebaseError } from '@lakebase/base';
import type { CallOptions, PutSource } from './object-store.ts';

export const sizeOf = (source: PutSource): number => (Buffer.isBuffer(source) ? source.length : source.size);

/** INVALID_ARGUMENT where a file is not what the caller says: repeating the put would not help. */
export async function checkSource(source: PutSource): Promise<void> {
  if (Buffer.isBuffer(source)) return;
  const { path, size } = source;
  const found = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') throw new LakebaseError('INVALID_ARGUMENT', `there is no file ${path} to put`, { cause });
    throw new LakebaseError('UNAVAILABLE', `cannot read ${path}: ${cause.message}`, { cause });
  });
  if (found.size !== size) throw new LakebaseError('INVALID_ARGUMENT', `${path} has ${found.size} bytes, not ${size}`);
}

export function checkSignal({ signal }: CallOptions): void {
  if (signal?.aborted === true) throw new LakebaseError('UNAVAILABLE', 'the call was ended', { cause: signal.reason });
}
