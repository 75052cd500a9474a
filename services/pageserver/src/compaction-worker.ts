/** Worker thread: runs the jobs it is sent, one at a time, and answers each with its result. A job that needs more keys asks for them. */
import { parentPort } from 'node:worker_threads';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { dropFrameContexts } from '@lakebase/bytes';
import { type StorageJob, runJob } from './compaction-job.ts';
import type { KeyMessage } from './compaction-keys.ts';
import { standBehind } from './slice.ts';

standBehind();

type Message = { readonly id: number; readonly job: StorageJob } | { readonly id: number; readonly keys: KeyMessage | string };
const asking = new Map<number, { resolve(keys: KeyMessage): void; reject(error: Error): void }>();

parentPort?.on('message', (message: Message) => {
  const { id } = message;
  if ('keys' in message) {
    const waiting = asking.get(id);
    asking.delete(id);
    if (typeof message.keys === 'string') waiting?.reject(new LakebaseError('UNAVAILABLE', message.keys));
    else waiting?.resolve(message.keys);
    return;
  }
  const more = (count: number): Promise<KeyMessage> =>
    new Promise((resolve, reject) => {
      asking.set(id, { resolve, reject });
      parentPort?.postMessage({ id, more: count });
    });
  runJob(message.job, more)
    .finally(dropFrameContexts)
    .then(
      (layers) => parentPort?.postMessage({ id, layers }),
      (error: unknown) =>
        parentPort?.postMessage({ id, code: error instanceof LakebaseError ? error.code : 'INTERNAL', message: errorMessage(error) }),
    );
});
