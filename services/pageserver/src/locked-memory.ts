/** What is done with the memory of a project whose key was lost, once everything that used it has ended. */
import { type Logger, errorMessage } from '@lakebase/base';
import { dropFrameContexts } from '@lakebase/bytes';
import { wipeFreeChunks } from '@lakebase/layers';
import { wipeScratch } from '@lakebase/pg-format';
import { forgetGarbage } from '@lakebase/service-kit';
import { runMemory } from './run-memory.ts';

export function forgetLockedProject(project: string, ended: readonly Promise<unknown>[], log: Logger): void {
  void Promise.allSettled(ended)
    .then(() =>
      forgetGarbage(() => {
        dropFrameContexts();
        runMemory.wipe();
        wipeFreeChunks();
        wipeScratch();
      }),
    )
    .catch((cause: unknown) => log.error({ project, err: errorMessage(cause) }, 'memory of a locked project was not cleaned up'));
}
