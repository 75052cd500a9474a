/** This pageserver's store of timelines, under `timelines/<project>/<timeline>/` of its data directory: start and stop, and making, using and removing one.
 *  A timeline is in memory while somebody uses it or it has work left; the others are attached when they are asked for, from this disk or from the
 *  object store. What makes a timeline enter and leave memory: timeline-table.ts, idle-sweep.ts, project-moves.ts, timeline-keys.ts. */
import { readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { LakebaseError, type Logger, errorMessage, withDeadline } from '@lakebase/base';
import type { CreatePageTimeline, PageTimelineStatus } from '@lakebase/api';
import { type ProjectUid, type TimelineId, parseLsn, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { FrameCache, type LayerCache, syncDirectory } from '@lakebase/layers';
import type { ServiceKeys } from '@lakebase/service-kit';
import { type AttachContext, begunLineageOf, detach, lineageOf, readIdleNote, statusOf } from './attachment.ts';
import { BundleCache } from './bundle-cache.ts';
import { Compactor } from './compactor.ts';
import type { PageserverConfig } from './config.ts';
import { DiskSpace } from './disk-space.ts';
import { IdleSweep } from './idle-sweep.ts';
import { type IdlePlace, adoptIdle, openLayerCache } from './local-cache.ts';
import { CacheBudget } from './page-cache.ts';
import { ProjectMoves } from './project-moves.ts';
import { removeObjects } from './remote-removal.ts';
import { ensureDirectory } from './storage-directory.ts';
import { StartStates } from './start-states.ts';
import { Templates } from './templates.ts';
import type { Timeline } from './timeline.ts';
import { type Attached, absentStatus, isAttached, isDamaged, isIdle, isLocked, timelineKey } from './timeline-entry.ts';
import { TimelineKeys } from './timeline-keys.ts';
import { DELETED_SUFFIX, TimelineTable } from './timeline-table.ts';
import type { UploadTarget } from './uploader.ts';

const STOP_FLUSH_MS = 10_000;
const BUNDLE_CACHE_BYTES = 16 << 20;
const ATTACHED_AT_ONCE = 8;
/** A new timeline is in the object store before anybody relies on it. */
const CREATE_UPLOAD_MS = 20_000;

export class TimelineStore {
  readonly templates: Templates;
  readonly starts: StartStates;
  readonly moves: ProjectMoves;
  readonly remote: UploadTarget | undefined;
  readonly #config: PageserverConfig;
  readonly #log: Logger;
  readonly #frames: FrameCache;
  readonly #context: AttachContext;
  readonly #root: string;
  readonly #table: TimelineTable;
  readonly #keys: TimelineKeys;
  readonly #sweep: IdleSweep;

  constructor(config: PageserverConfig, secret: string, log: Logger, keys: ServiceKeys, remote?: UploadTarget) {
    this.#config = config;
    this.#log = log;
    this.remote = remote;
    this.#root = join(config.dataDir, 'timelines');
    this.#frames = new FrameCache(config.frameCacheBytes);
    const layers = openLayerCache(config, remote?.store, log);
    this.#context = {
      config,
      secret,
      log,
      layers,
      budget: new CacheBudget(config.pageCacheBytes),
      compactor: new Compactor(),
      flusher: new Compactor(),
      disk: new DiskSpace({
        path: config.dataDir,
        reserveBytes: config.diskReserveBytes,
        makeRoom: (bytes) => layers.makeRoom(bytes),
        log,
      }),
      remote,
    };
    this.#table = new TimelineTable({
      context: this.#context,
      root: this.#root,
      source: keys.source,
      frames: this.#frames,
      bundles: new BundleCache(BUNDLE_CACHE_BYTES),
    });
    this.templates = new Templates(config.dataDir, config.id, keys, this.#frames, log);
    this.#keys = new TimelineKeys(this.#table, this.templates, keys);
    this.#sweep = new IdleSweep(this.#table);
    this.starts = new StartStates(this.#table);
    this.moves = new ProjectMoves(this.#table);
    if (remote === undefined) return;
    remote.generations.onChange = (project, standing) => {
      if (standing === 'moved') this.moves.leave(project);
    };
    remote.generations.sizes = () => this.#table.sizes();
  }

  /** Ends what the project's clients have under way, or those of one timeline. Called before memory is zeroed: nothing of it may still be sent. */
  set onEnd(end: (project: string, error: LakebaseError, timeline?: string) => void) {
    this.#table.onEnd = end;
  }

  /** Attaches every timeline on disk that has something left to do. A damaged one does not hold up the others. */
  async open(): Promise<void> {
    await ensureDirectory(this.#root);
    await ensureDirectory(join(this.#config.dataDir, 'templates'));
    const busy: [ProjectUid, TimelineId][] = [];
    const idle: IdlePlace[] = [];
    for (const project of readdirSync(this.#root)) {
      if (!/^[0-9a-f]{32}$/.test(project)) continue;
      for (const name of readdirSync(join(this.#root, project))) {
        if (name.endsWith(DELETED_SUFFIX)) await rm(join(this.#root, project, name), { recursive: true, force: true });
        if (!/^[0-9a-f]{32}$/.test(name)) continue;
        const ids: [ProjectUid, TimelineId] = [parseProjectUid(project), parseTimelineId(name)];
        const directory = join(this.#root, project, name);
        const note = readIdleNote(directory);
        // One that was left when there was no object store has something to do now.
        if (note !== undefined && (this.remote === undefined || note.uploaded)) {
          this.#table.put(timelineKey(...ids), { idle: note });
          idle.push({ directory, project, timeline: name });
        } else busy.push(ids);
      }
    }
    const attachSome = async (): Promise<void> => {
      for (let next = busy.pop(); next !== undefined; next = busy.pop()) {
        const [project, timeline] = next;
        await this.#table.queued(timelineKey(project, timeline), () => this.#table.attachLocal(project, timeline));
      }
    };
    await Promise.all(Array.from({ length: ATTACHED_AT_ONCE }, attachSome));
    void adoptIdle(this.#context.layers, idle);
    this.#context.disk.start();
    this.#keys.start();
    this.#sweep.start();
  }

  async close(): Promise<void> {
    this.#table.closed = true;
    this.#sweep.stop();
    this.#context.disk.stop();
    await this.#keys.close();
    await this.remote?.generations.stop();
    const attached = [...this.#table.attached()];
    await Promise.all(
      attached.map(async (t) => {
        await withDeadline(t.receiver.stop(), STOP_FLUSH_MS, 'stop of the WAL receiver').catch(() => {});
        // Saves the next start the WAL since the last flush; a failure only costs that.
        await withDeadline(t.timeline.checkpoint(), STOP_FLUSH_MS, 'flush at stop').catch((error: unknown) =>
          this.#log.warn({ err: errorMessage(error) }, 'flush at stop failed'),
        );
        await detach(t);
      }),
    );
    // One that is on its way out of memory gets to write that down.
    await withDeadline(this.#table.rest(), STOP_FLUSH_MS, 'what is under way with timelines').catch((error: unknown) =>
      this.#log.warn({ err: errorMessage(error) }, 'stopped with work under way'),
    );
    this.#table.clear();
    await this.#context.compactor.close();
    await this.#context.flusher.close();
  }

  // --- creation, use, removal -----------------------------------------------------------------------------------------------------

  async create(project: ProjectUid, timeline: TimelineId, request: CreatePageTimeline): Promise<PageTimelineStatus> {
    return this.#table.creation(project, timeline, async () => {
      const existing = await this.#table.find(project, timeline);
      if (existing !== undefined) {
        const { storage } = existing.timeline;
        if (storage.index.systemId !== request.systemId || storage.index.pgVersion !== request.pgVersion)
          throw new LakebaseError('ALREADY_EXISTS', `timeline ${timeline} exists with another system id or Postgres version`);
        await this.#followLineage(existing, request);
        if (JSON.stringify(storage.index.extra['safekeepers']) !== JSON.stringify(request.safekeepers))
          await storage.update({ extra: { ...storage.index.extra, safekeepers: request.safekeepers } });
        existing.receiver.safekeepers = request.safekeepers;
        await this.#inStore(existing);
        return statusOf(existing);
      }
      const files = this.#table.files(project, timeline);
      await files.keys.ready();
      await ensureDirectory(dirname(files.directory));
      await this.templates.instantiate(request.pgVersion, files, request.systemId, { safekeepers: request.safekeepers });
      await syncDirectory(this.#root);
      await this.#table.attachLocal(project, timeline);
      const made = this.#table.known(project, timeline);
      await this.#inStore(made);
      return statusOf(made);
    });
  }

  /** Durable before anything of that lineage is ingested. What is here of another lineage beyond its start never was, as far as the timeline goes. Back
   *  to an older one only from one that never began: a request of before a recovery that comes late would have the pages of after it thrown away. */
  async #followLineage({ timeline, receiver }: Attached, { walLineage, walLineageStart }: CreatePageTimeline): Promise<void> {
    const { storage } = timeline;
    const [known, begun] = [lineageOf(storage.index), begunLineageOf(storage.index)];
    if (walLineage === undefined) return;
    if (walLineage < begun) throw new LakebaseError('CONFLICT', `lineage ${begun} of the WAL has begun: ${walLineage} is over`);
    const walLineageBegun = walLineageStart === undefined ? begun : walLineage;
    if (walLineage === known && walLineageBegun === begun) return;
    if (walLineageStart !== undefined && walLineage > known && timeline.lastRecordLsn > parseLsn(walLineageStart)) {
      void this.#table
        .refetch(timeline.project, timeline.id)
        .catch((error: unknown) =>
          timeline.log.error({ err: errorMessage(error) }, 'a timeline of before a recovery cannot be fetched anew'),
        );
      throw new LakebaseError('UNAVAILABLE', 'what is here is of before a recovery of the WAL: it is fetched anew from the object store');
    }
    await storage.update({ extra: { ...storage.index.extra, walLineage, walLineageBegun } });
    await receiver.changeLineage(walLineage);
  }

  /** A timeline that the store has never had is nowhere else. */
  async #inStore({ uploader }: Attached): Promise<void> {
    if (uploader === undefined || uploader.remoteConsistentLsn > 0) return;
    try {
      await withDeadline(uploader.flush(), CREATE_UPLOAD_MS, 'first upload of the timeline');
    } catch (cause) {
      throw new LakebaseError('UNAVAILABLE', `the new timeline is not in the object store yet: ${errorMessage(cause)}`, { cause });
    }
  }

  /** The timeline, attached if need be. Hold it while you use it over time: {@link hold}. */
  async timeline(project: ProjectUid, timeline: TimelineId): Promise<Timeline> {
    return (await this.#table.use(project, timeline)).timeline;
  }

  /** Attaches it if need be and keeps it in memory until `release`. */
  async hold(project: ProjectUid, timeline: TimelineId): Promise<{ timeline: Timeline; release: () => void }> {
    const attached = await this.#table.use(project, timeline);
    attached.users++;
    let held = true;
    const release = (): void => {
      if (!held) return;
      held = false;
      attached.users--;
      attached.lastUsed = performance.now();
    };
    return { timeline: attached.timeline, release };
  }

  /** Only what is in memory. */
  get(project: string, timeline: string): Timeline {
    return this.#table.known(project, timeline).timeline;
  }

  /** Status also of a timeline that is locked or damaged. */
  async status(project: ProjectUid, timeline: TimelineId): Promise<PageTimelineStatus> {
    const found = this.#table.entry(project, timeline);
    if (isLocked(found) || isDamaged(found)) return absentStatus(project, timeline, found);
    try {
      return statusOf(await this.#table.use(project, timeline));
    } catch (error) {
      const now = this.#table.entry(project, timeline);
      if (isLocked(now) || isDamaged(now)) return absentStatus(project, timeline, now);
      throw error;
    }
  }

  async remove(project: ProjectUid, timeline: TimelineId): Promise<void> {
    const name = timelineKey(project, timeline);
    return this.#table.queued(name, async () => {
      const found = this.#table.get(name);
      this.#table.drop(name);
      this.#table.bundles.forget(timeline);
      if (isAttached(found)) await detach(found);
      // Renamed first: a removal that is cut short is finished at the next start, never half a timeline.
      await this.#table.removeDirectory(this.#table.files(project, timeline));
      if (this.remote !== undefined) await removeObjects(this.remote.store, project, timeline, this.#log);
    });
  }

  // --- for metrics and health -----------------------------------------------------------------------------------------------------

  attached(): Generator<Attached> {
    return this.#table.attached();
  }
  /** Of all projects that have something here, or of those named. What the object store has of them counts too. */
  async timelinesOf(projects: readonly ProjectUid[] | null): Promise<{ project: ProjectUid; timeline: TimelineId }[]> {
    const here = new Set(this.#table.all().map(([name]) => name.slice(0, 32) as ProjectUid));
    const all: { project: ProjectUid; timeline: TimelineId }[] = [];
    for (const project of new Set([...here, ...(projects ?? [])]))
      for (const timeline of await this.#table.timelinesOf(project)) all.push({ project, timeline });
    return all;
  }
  get locked(): number {
    return this.#table.count(isLocked);
  }
  get damaged(): number {
    return this.#table.count(isDamaged);
  }
  get idle(): number {
    return this.#table.count(isIdle);
  }
  get caches(): { frames: FrameCache; pages: CacheBudget; layers: LayerCache } {
    return { frames: this.#frames, pages: this.#context.budget, layers: this.#context.layers };
  }
  get disk(): DiskSpace {
    return this.#context.disk;
  }
}
