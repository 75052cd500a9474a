/** The WAL objects of a timeline that is deleted. In the background: a store that is away must not keep a timeline from being deleted. Every member
 *  does it, so that what one still put while another had finished goes too; what is left all the same is found by a scrub. */
import { type Logger, backoffDelay, errorMessage } from '@lakebase/base';
import { type Lsn, type ProjectUid, type TimelineId, lsn } from '@lakebase/ids';
import type { ObjectStore } from '@lakebase/object-store';
import { WalArchive, type WalKeys } from '@lakebase/wal-store';
import { readControl } from './control-store.ts';
import { lineagesOf } from '@lakebase/wal-quorum';
import type { WalTimeline } from './wal-timeline.ts';

const TRIES = 8;

export interface TimelineObjects {
  readonly archive: WalArchive;
  readonly through: Lsn;
}

/** What a timeline has in the object store, by its control file when it is not open. */
export function findObjects(
  options: { readonly store: ObjectStore; readonly keys: WalKeys; readonly log: Logger },
  project: ProjectUid,
  timeline: TimelineId,
  dir: string,
  open: WalTimeline | undefined,
): TimelineObjects | undefined {
  if (open?.archive !== undefined) return { archive: open.archive, through: lsn(Math.max(open.offloadedLsn, open.flushLsn)) };
  try {
    const control = readControl(dir);
    const { startLsn, offloadedLsn, commitLsn } = control;
    const archive = new WalArchive({ ...options, project, timeline, startLsn, lineages: lineagesOf(control), scratchDir: dir });
    return { archive, through: lsn(Math.max(offloadedLsn, commitLsn)) };
  } catch {
    return undefined; // Another member knows.
  }
}

export async function removeObjects(objects: TimelineObjects, log: Logger, stopped: () => boolean): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await objects.archive.remove(objects.through);
    } catch (error) {
      const { project, timeline } = objects.archive.options;
      if (stopped() || attempt === TRIES)
        return log.warn({ project, timeline, err: errorMessage(error) }, 'WAL objects of a deleted timeline are left for a scrub to find');
      await new Promise((resolve) => setTimeout(resolve, backoffDelay(attempt, { baseMs: 1_000, maxMs: 60_000 })).unref());
    }
  }
}
