/** Gives memory of open layers back to the system when ingest has stood still for a while. It is shared memory, which the collector does not count: it
 *  would not run for it. Nothing is being written then, so a pause of some ten milliseconds is in nobody's way. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { whenChunksAreLetGo } from '@lakebase/layers';

export function collectWhenIdle(): void {
  let collect: (() => void) | undefined;
  whenChunksAreLetGo(() => {
    if (collect === undefined) {
      setFlagsFromString('--expose-gc');
      collect = runInNewContext('gc') as () => void;
    }
    collect();
  });
}
