/** Worker thread: runs the jobs it is sent, one at a time, and answers each with its result. */
import { setPriority } from 'node:os';
import { parentPort } from 'node:worker_threads';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { type StorageJob, runJob } from './compaction-job.ts';

/** Behind commits, reads and ingest wherever they want the same processor. On Linux a priority is the calling thread's own. */
const NICE = 10;
setPriority(0, NICE);

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
