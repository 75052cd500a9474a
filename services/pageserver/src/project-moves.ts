/** Projects that come from another pageserver and go to one (docs/protocols/generations.md).
 *  Invariant: from the moment a project is known to be elsewhere nothing of it is answered here, and nothing of it leaves this disk's copy behind as
 *  if it were current: what comes back is laid out from the object store. */
import type { AttachedProject } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage, withDeadline } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { detach } from './attachment.ts';
import { checkNotPutBack, findIndex } from './remote-index.ts';
import { isAttached, isDamaged } from './timeline-entry.ts';
import type { TimelineTable } from './timeline-table.ts';
import type { UploadTarget } from './uploader.ts';

/** A move waits so long for the target's cache. */
const WARM_MS = 10_000;

export class ProjectMoves {
  readonly #table: TimelineTable;
  readonly #log: Logger;

  constructor(table: TimelineTable) {
    this.#table = table;
    this.#log = table.context.log;
  }

  /** Another pageserver serves the project from now on. */
  leave(project: ProjectUid): void {
    const error = new LakebaseError('FENCED', `project ${project} is on another pageserver`);
    this.#log.info({ project }, 'project moved away');
    for (const [name, entry] of this.#table.of(project)) {
      this.#table.onEnd(project, error);
      if (!isAttached(entry)) continue;
      this.#table.put(name, { idle: { kekVersion: 0, uploaded: false } });
      this.#table.bundles.forget(entry.timeline.id);
      void this.#table
        .queued(name, () => detach(entry))
        .catch((cause: unknown) => this.#log.warn({ err: errorMessage(cause) }, 'detach failed'));
    }
  }

  /** The project is this pageserver's from now on: what is in the store replaces what is here. */
  async takeOver(given: AttachedProject): Promise<void> {
    const { generations } = this.#remote();
    generations.adopt(given);
    const active = given.timelines.filter((t) => t.active === true).map((t) => t.timeline);
    await Promise.all(active.map((timeline) => this.#table.refetch(given.project, timeline)));
    // Whoever reads there now finds no cold cache here.
    const warm = active.map((timeline) => this.#table.known(given.project, timeline).warm);
    await withDeadline(Promise.all(warm), WARM_MS, 'warm-up').catch(() => {});
  }

  /** Committed WAL that is not readable yet, in bytes; undefined while it is not known. */
  lagOf(project: string): number | undefined {
    let lag = 0;
    for (const { timeline, receiver } of this.#table.attached()) {
      if (timeline.project !== project) continue;
      if (receiver.connectedTo === undefined) return undefined;
      lag += Math.max(0, receiver.senderLsn - timeline.lastRecordLsn);
    }
    return lag;
  }

  /** Everything ingested of the project is in the object store. */
  async upload(project: ProjectUid): Promise<void> {
    this.#remote();
    await Promise.all(
      [...this.#table.attached()]
        .filter((t) => t.timeline.project === project)
        .map(async ({ timeline, uploader }) => {
          await timeline.checkpoint();
          await uploader?.flush();
        }),
    );
  }

  /** The project left for good: nothing of it stays on this disk. */
  async letGo(project: ProjectUid): Promise<void> {
    this.#remote().generations.release(project);
    for (const [name] of this.#table.of(project)) {
      const timeline = name.slice(33) as TimelineId;
      await this.#table.queued(name, async () => {
        if (this.#table.context.remote?.generations.standing(project) !== 'moved') return;
        this.#table.drop(name);
        await this.#table.removeDirectory(this.#table.files(project, timeline));
      });
    }
  }

  /** One that cannot be attached because of its files here is laid out from the object store again. False when it is not such a one, or when the
   *  store does not have it: then the files here are all there is. */
  async restoreDamaged(project: ProjectUid, timeline: TimelineId): Promise<boolean> {
    const isSuch = (): boolean => isDamaged(this.#table.entry(project, timeline));
    if (this.#table.context.remote === undefined || !isSuch()) return false;
    const { generations } = this.#table.context.remote;
    const { generation } = await generations.attach(project);
    const found = await findIndex(this.#table.context.remote.store, this.#table.files(project, timeline), {
      below: generation + 1,
      floor: 1,
      list: true,
    });
    // What is here, damaged as it is, may be newer then.
    await checkNotPutBack(generations, { project, timeline }, found, await generations.newestIndex(project, timeline));
    if (found === undefined || !isSuch()) return false;
    this.#log.warn({ project, timeline, version: found.index.version }, 'a damaged timeline is laid out from the object store again');
    await this.#table.refetch(project, timeline);
    return true;
  }

  #remote(): UploadTarget {
    if (this.#table.context.remote === undefined) throw new LakebaseError('CONFIG', 'this pageserver has no object store: set objectStore');
    return this.#table.context.remote;
  }
}
