/** Gives back the space of a deleted timeline in the object store. Its keys are destroyed by then, and with them what every index says: objects are
 *  found by a list. Nothing depends on it being complete: what is left is unreadable, and orphans for the scrubber. WAL objects are the safekeepers'. */
import { type Logger, errorMessage } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { type ObjectStore, timelineObject, timelinePrefix } from '@lakebase/object-store';

export async function removeObjects(store: ObjectStore, project: ProjectUid, timeline: TimelineId, log: Logger): Promise<number> {
  let removed = 0;
  const wal = timelineObject(project, timeline, 'wal/');
  try {
    for (let after: string | undefined; ; ) {
      const page = await store.list(timelinePrefix(project, timeline), after === undefined ? {} : { after });
      const keys = page.objects.map((o) => o.key).filter((key) => !key.startsWith(wal));
      // An index first: what it names must not go before it.
      keys.sort((a, b) => Number(isIndex(b)) - Number(isIndex(a)));
      if (keys.length > 0) await store.delete(keys);
      removed += keys.length;
      if (page.next === undefined) return removed;
      after = page.next;
    }
  } catch (error) {
    log.warn(
      { timeline, err: errorMessage(error) },
      'objects of a deleted timeline are still in the object store; they are unreadable, and the scrubber removes them',
    );
    return removed;
  }
}

const isIndex = (key: string): boolean => key.includes('/index-g');
