/** Gives memory of open layers back to the system when ingest has stood still for a while. It is shared memory, which the collector does not count: it
 *  would not run for it. Nothing is being written then, so a pause of some ten milliseconds is in nobody's way. */
import { whenChunksAreLetGo } from '@lakebase/layers';
import { collectGarbage } from '@lakebase/service-kit';

export function collectWhenIdle(): void {
  whenChunksAreLetGo(collectGarbage);
}
