/** The timelines this pageserver knows, by identity, each attached, idle, locked or damaged, and how one gets from one of these to another.
 *  Invariants: creation, deletion, attachment and detachment of one timeline never overlap (its queue); a timeline is in the table from the first
 *  moment it can be found on this disk; nothing is taken from the object store without a generation. */
import { rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { TimelineSize } from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue, errorMessage, isCode } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { type FrameCache, layerBytesOf } from '@lakebase/layers';
import type { ServiceKeys } from '@lakebase/service-kit';
import { type AttachContext, attachLocal, detach, fetchTimeline, hasIndex } from './attachment.ts';
import type { BundleCache } from './bundle-cache.ts';
import type { TimelineFiles } from './storage.ts';
import { type Attached, type Entry, isAttached, isDamaged, isLocked, timelineKey } from './timeline-entry.ts';

/** Of a directory whose removal has begun. */
export const DELETED_SUFFIX = '.deleted';

export interface TimelineTableOptions {
  readonly context: AttachContext;
  readonly root: string;
  readonly source: ServiceKeys['source'];
  readonly frames: FrameCache;
  readonly bundles: BundleCache;
}

export class TimelineTable {
  readonly context: AttachContext;
  readonly bundles: BundleCache;
  readonly #root: string;
  readonly #source: ServiceKeys['source'];
  readonly #frames: FrameCache;
  readonly #log: Logger;
  readonly #timelines = new Map<string, Entry>();
  /** Under way, by project: their keys may be of any version until they are done. */
  readonly #creations = new Map<string, Set<Promise<unknown>>>();
  readonly #queues = new Map<string, { queue: SerialQueue; users: number }>();
  closed = false;
  /** Ends what the project's clients have under way, or those of one timeline. Called before memory is zeroed: nothing of it may still be sent. */
  onEnd: (project: string, error: LakebaseError, timeline?: string) => void = () => {};
  onAttached: (project: ProjectUid) => void = () => {};
  /** The key could not be had for a moment: the project wants to be tried again later. */
  onUnavailable: (project: ProjectUid) => void = () => {};

  constructor(options: TimelineTableOptions) {
    this.context = options.context;
    this.bundles = options.bundles;
    this.#root = options.root;
    this.#source = options.source;
    this.#frames = options.frames;
    this.#log = options.context.log;
  }

  // --- entries --------------------------------------------------------------------------------------------------------------------

  entry(project: string, timeline: string): Entry | undefined {
    return this.#timelines.get(timelineKey(project, timeline));
  }
  put(name: string, entry: Entry): void {
    this.#timelines.set(name, entry);
  }
  drop(name: string): void {
    this.#timelines.delete(name);
  }
  clear(): void {
    this.#timelines.clear();
  }
  get(name: string): Entry | undefined {
    return this.#timelines.get(name);
  }
  /** A copy: entries may change meanwhile. */
  all(): [string, Entry][] {
    return [...this.#timelines];
  }
  of(project: string): [string, Entry][] {
    return this.all().filter(([name]) => name.startsWith(`${project}/`));
  }

  *attached(): Generator<Attached> {
    for (const t of this.#timelines.values()) if (isAttached(t)) yield t;
  }
  /** Of what is attached. */
  sizes(): Map<ProjectUid, TimelineSize[]> {
    const sizes = new Map<ProjectUid, TimelineSize[]>();
    for (const { timeline } of this.attached()) {
      const size = { timeline: timeline.id, layerBytes: layerBytesOf(timeline.storage.index), logicalBytes: timeline.logicalBytes };
      const known = sizes.get(timeline.project);
      if (known === undefined) sizes.set(timeline.project, [size]);
      else known.push(size);
    }
    return sizes;
  }
  count(is: (entry: Entry) => boolean): number {
    let n = 0;
    for (const entry of this.#timelines.values()) if (is(entry)) n++;
    return n;
  }

  known(project: string, timeline: string): Attached {
    const found = this.#timelines.get(timelineKey(project, timeline));
    if (isAttached(found)) return found;
    if (isLocked(found)) throw found.locked;
    if (isDamaged(found)) throw found.error;
    throw new LakebaseError('NOT_FOUND', `there is no timeline ${timeline} here`);
  }

  /** One at a time for each timeline; the queue goes when nobody is in it. */
  async queued<T>(name: string, run: () => Promise<T>): Promise<T> {
    let entry = this.#queues.get(name);
    if (entry === undefined) this.#queues.set(name, (entry = { queue: new SerialQueue(), users: 0 }));
    entry.users++;
    try {
      return await entry.queue.run(run);
    } finally {
      if (--entry.users === 0) this.#queues.delete(name);
    }
  }

  /** Resolves when all that is queued now has ended, however it did. */
  async rest(): Promise<void> {
    await Promise.all([...this.#queues.values()].map(({ queue }) => queue.run(async () => {})));
  }

  files(project: ProjectUid, timeline: TimelineId): TimelineFiles {
    return {
      directory: join(this.#root, project, timeline),
      keys: this.#source.project(project),
      cache: this.#frames,
      layers: this.context.layers,
      project,
      timeline,
    };
  }

  // --- attachment ---------------------------------------------------------------------------------------------------------------------

  async use(project: ProjectUid, timeline: TimelineId): Promise<Attached> {
    const name = timelineKey(project, timeline);
    const found = this.#timelines.get(name);
    if (isAttached(found)) {
      found.lastUsed = performance.now();
      return found;
    }
    const attached = await this.queued(name, () => this.find(project, timeline));
    return attached ?? this.known(project, timeline);
  }

  /** Within the timeline's queue. Undefined when neither this disk nor the store has it. */
  async find(project: ProjectUid, timeline: TimelineId): Promise<Attached | undefined> {
    const name = timelineKey(project, timeline);
    const found = this.#timelines.get(name);
    if (isAttached(found)) return found;
    if (this.closed) throw new LakebaseError('CLOSED', 'the pageserver is shutting down');
    if (isLocked(found)) throw found.locked;
    if (isDamaged(found)) throw found.error;
    // Another pageserver served it when the Manager was last asked.
    if (this.context.remote?.generations.standing(project) === 'moved') await this.context.remote.generations.attach(project);
    const files = this.files(project, timeline);
    if (!hasIndex(files)) {
      if (this.context.remote === undefined) return undefined;
      const given = await this.context.remote.generations.attach(project);
      if (files.keys.locked !== undefined) throw files.keys.locked;
      if (!(await fetchTimeline(this.context, files, given))) return undefined;
    }
    await this.attachLocal(project, timeline);
    return this.known(project, timeline);
  }

  /** Within the timeline's queue. What comes of it is in the table. */
  async attachLocal(project: ProjectUid, id: TimelineId): Promise<void> {
    const name = timelineKey(project, id);
    const files = this.files(project, id);
    const { keys } = files;
    if (keys.locked !== undefined) return void this.#timelines.set(name, { locked: keys.locked });
    const { locks } = keys;
    try {
      const attached = await attachLocal(this.context, files);
      if (attached === undefined) {
        // A creation that was cut short: the caller repeats it.
        this.#timelines.delete(name);
        await rm(files.directory, { recursive: true, force: true });
        return;
      }
      // The key may have gone since the first file was opened, and be back: what was opened before is of no use.
      if (keys.locks !== locks) {
        const error = keys.locked ?? new LakebaseError('UNAVAILABLE', 'the key was away for a moment; the timeline is attached again');
        this.#timelines.set(name, { locked: error });
        await this.end(attached, error);
        return await this.attachLocal(project, id);
      }
      if (attached.uploader !== undefined) {
        attached.uploader.onStale = () => {
          this.refetch(project, id).catch((error: unknown) =>
            this.#log.error({ project, timeline: id, err: errorMessage(error) }, 'a stale timeline cannot be fetched anew'),
          );
        };
      }
      this.#timelines.set(name, attached);
      this.onAttached(project);
    } catch (error) {
      const wrapped = error instanceof LakebaseError ? error : new LakebaseError('INTERNAL', errorMessage(error), { cause: error });
      const log = this.#log.child({ project, timeline: id });
      if (wrapped.code === 'KEY_REVOKED' || wrapped.code === 'UNAVAILABLE') {
        log.warn({ err: wrapped.message }, 'the timeline cannot be attached now');
        this.#timelines.set(name, { locked: wrapped });
        if (keys.usable) this.onUnavailable(project);
        return;
      }
      log.error({ err: wrapped.message }, 'the timeline cannot be attached');
      this.#timelines.set(name, { error: wrapped });
    }
  }

  async end(attached: Attached, error: LakebaseError): Promise<void> {
    this.bundles.forget(attached.timeline.id, true);
    await detach(attached, error);
    attached.timeline.wipe();
  }

  /** What is here is older than what the store has. */
  async refetch(project: ProjectUid, timeline: TimelineId): Promise<void> {
    const name = timelineKey(project, timeline);
    await this.queued(name, async () => {
      const found = this.#timelines.get(name);
      this.#timelines.delete(name);
      this.bundles.forget(timeline);
      this.onEnd(project, new LakebaseError('UNAVAILABLE', 'the timeline is attached anew; again'), timeline);
      if (isAttached(found)) await detach(found);
      await this.removeDirectory(this.files(project, timeline));
      if ((await this.find(project, timeline)) === undefined)
        throw new LakebaseError('NOT_FOUND', `the object store has nothing of timeline ${timeline}`);
    });
  }

  async removeDirectory({ directory }: TimelineFiles): Promise<void> {
    this.context.layers.forgetDirectory(directory);
    await rename(directory, directory + DELETED_SUFFIX).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
    });
    await rm(directory + DELETED_SUFFIX, { recursive: true, force: true });
  }

  // --- of a project -------------------------------------------------------------------------------------------------------------------

  /** Also those that are not on this disk: what is not known here would lose its key. */
  async timelinesOf(project: ProjectUid): Promise<TimelineId[]> {
    const here = [...this.#timelines.keys()].filter((n) => n.startsWith(`${project}/`)).map((n) => n.slice(33) as TimelineId);
    if (this.context.remote === undefined) return here;
    try {
      const { timelines } = await this.context.remote.generations.attach(project);
      return [...new Set([...here, ...timelines.filter((t) => t.published.generation > 0).map((t) => t.timeline)])];
    } catch (error) {
      // Whoever has it wraps its keys; a project that nobody knows has none.
      if (isCode(error, 'NOT_FOUND')) return here;
      if (isCode(error, 'FENCED') && this.context.remote.generations.standing(project) === 'moved') return [];
      throw error;
    }
  }

  creation<T>(project: ProjectUid, timeline: TimelineId, run: () => Promise<T>): Promise<T> {
    let running = this.#creations.get(project);
    if (running === undefined) this.#creations.set(project, (running = new Set()));
    const made = this.queued(timelineKey(project, timeline), run).finally(() => running.delete(made));
    running.add(made);
    return made;
  }

  /** Resolves when nothing of the project is being made any more. */
  async created(project: string): Promise<void> {
    await Promise.allSettled([...(this.#creations.get(project) ?? [])]);
  }
}
