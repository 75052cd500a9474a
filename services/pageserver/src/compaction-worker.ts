/** Worker thread: runs the jobs it is sent, one at a time, and answers each with its result. */
import { parentPort } from 'node:worker_threads';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { type StorageJob, runJob } from './compaction-job.ts';

parentPort?.on('message', (message: { id: number; job: StorageJob }) => {
  runJob(message.job).then(
    (layers) => parentPort?.postMessage({ id: message.id, layers }),
    (error: unknown) =>
      parentPort?.postMessage({
        id: message.id,
        code: error instanceof LakebaseError ? error.code : 'INTERNAL',
        message: errorMessage(error),
      }),
  );
});
