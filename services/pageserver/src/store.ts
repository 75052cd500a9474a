/** All timelines of this pageserver, by identity, under `timelines/<project>/<timeline>/` of its data directory. A timeline is in memory while
 *  somebody uses it or it has work left; the others are attached when they are asked for, from this disk or from the object store.
 *  Invariants: creation, deletion, attachment and detachment of one timeline never overlap; from the moment a project's key is lost nothing of it is
 *  answered, and soon nothing of it is in memory; it comes back by itself; what another pageserver serves is not answered here. */
import { readdirSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { LakebaseError, type Logger, SerialQueue, errorMessage, isCode, withDeadline } from '@lakebase/base';
import {
  type AttachedProject,
  type CreatePageTimeline,
  type PageTimelineStatus,
  decodeBootSet,
  decodeSuspendState,
  encodeBootSet,
} from '@lakebase/api';
import { type Lsn, type ProjectUid, type TimelineId, formatLsn, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { FrameCache, type LayerCache, sealObject, syncDirectory } from '@lakebase/layers';
import { KeyReEncryption, KeyRotation, type ReEncryptionCount, type ServiceKeys } from '@lakebase/service-kit';
import { type AttachContext, attachLocal, detach, fetchTimeline, hasIndex, readIdleNote, writeIdleNote } from './attachment.ts';
import { BOOT_OBJECT_MAGIC, SUSPEND_OBJECT_MAGIC, buildStartBundle } from './bundle.ts';
import { BundleCache } from './bundle-cache.ts';
import { Compactor } from './compactor.ts';
import type { PageserverConfig } from './config.ts';
import { DiskSpace } from './disk-space.ts';
import { forgetLockedProject } from './locked-memory.ts';
import { type IdlePlace, adoptIdle, openLayerCache } from './local-cache.ts';
import { CacheBudget } from './page-cache.ts';
import { findIndex } from './remote-index.ts';
import { removeObjects } from './remote-removal.ts';
import { reEncrypt } from './re-encryption.ts';
import { type TimelineFiles, ensureDirectory } from './storage.ts';
import { TEMPLATE_ID } from './template.ts';
import { Templates } from './templates.ts';
import type { Timeline } from './timeline.ts';
import { type Attached, type Entry, absentStatus, isAttached, isDamaged, isIdle, isLocked, timelineKey } from './timeline-entry.ts';
import type { UploadTarget } from './uploader.ts';

const STOP_FLUSH_MS = 10_000;
const BUNDLE_CACHE_BYTES = 16 << 20;
const ATTACH_AGAIN_MS = 1_000;
const DELETED_SUFFIX = '.deleted';
const ATTACHED_AT_ONCE = 8;
/** A move waits so long for the target's cache. */
const WARM_MS = 10_000;
/** A new timeline is in the object store before anybody relies on it. */
const CREATE_UPLOAD_MS = 20_000;

export class TimelineStore {
  readonly templates: Templates;
  readonly remote: UploadTarget | undefined;
  readonly #config: PageserverConfig;
  readonly #log: Logger;
  readonly #frames: FrameCache;
  readonly #context: AttachContext;
  readonly #bundles = new BundleCache(BUNDLE_CACHE_BYTES);
  readonly #timelines = new Map<string, Entry>();
  readonly #keys: ServiceKeys;
  readonly #rotation: KeyRotation;
  readonly #reEncryption: KeyReEncryption;
  readonly #root: string;
  /** Under way, by project: their keys may be of any version until they are done. */
  readonly #creations = new Map<string, Set<Promise<unknown>>>();
  readonly #queues = new Map<string, { queue: SerialQueue; users: number }>();
  #sweeper: NodeJS.Timeout | undefined;
  #closed = false;
  /** Ends what the project's clients have under way, or those of one timeline. Called before memory is zeroed: nothing of it may still be sent. */
  onEnd: (project: string, error: LakebaseError, timeline?: string) => void = () => {};

  constructor(config: PageserverConfig, secret: string, log: Logger, keys: ServiceKeys, remote?: UploadTarget) {
    this.#keys = keys;
    this.#rotation = new KeyRotation({ ...keys, log, rewrap: (project, version) => this.#rewrap(project, version) });
    this.#reEncryption = new KeyReEncryption({
      source: keys.source,
      report: keys.reportReEncryption,
      log,
      run: (project, below, progress, signal) => this.#reEncrypt(project as ProjectUid, below, progress, signal),
    });
    keys.source.onChange((project, usable, reason) => (usable ? this.#unlock(project) : this.#lock(project, reason)));
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
    this.templates = new Templates(config.dataDir, config.id, keys, this.#frames, log);
    if (remote !== undefined)
      remote.generations.onChange = (project, standing) => {
        if (standing === 'moved') this.#moved(project);
      };
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
          this.#timelines.set(timelineKey(...ids), { idle: note });
          idle.push({ directory, project, timeline: name });
        } else busy.push(ids);
      }
    }
    const attachSome = async (): Promise<void> => {
      for (let next = busy.pop(); next !== undefined; next = busy.pop()) {
        const [project, timeline] = next;
        await this.#queued(timelineKey(project, timeline), () => this.#attachLocal(project, timeline));
      }
    };
    await Promise.all(Array.from({ length: ATTACHED_AT_ONCE }, attachSome));
    void adoptIdle(this.#context.layers, idle);
    this.#context.disk.start();
    this.#rotation.start();
    this.#reEncryption.start();
    this.#sweeper = setInterval(() => this.#sweep(), Math.min(10_000, this.#config.detachAfterMs));
    this.#sweeper.unref();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#sweeper);
    this.#context.disk.stop();
    await this.#reEncryption.close();
    await this.#rotation.close();
    await this.remote?.generations.stop();
    const attached = [...this.#timelines.values()].filter(isAttached);
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
    this.#timelines.clear();
    await this.#context.compactor.close();
    await this.#context.flusher.close();
  }

  // --- creation, use, removal -----------------------------------------------------------------------------------------------------

  async create(project: ProjectUid, timeline: TimelineId, request: CreatePageTimeline): Promise<PageTimelineStatus> {
    return this.#creation(project, timeline, async () => {
      const existing = await this.#find(project, timeline);
      if (existing !== undefined) {
        const { storage } = existing.timeline;
        if (storage.index.systemId !== request.systemId || storage.index.pgVersion !== request.pgVersion)
          throw new LakebaseError('ALREADY_EXISTS', `timeline ${timeline} exists with another system id or Postgres version`);
        if (JSON.stringify(storage.index.extra['safekeepers']) !== JSON.stringify(request.safekeepers))
          await storage.update({ extra: { ...storage.index.extra, safekeepers: request.safekeepers } });
        existing.receiver.safekeepers = request.safekeepers;
        await this.#inStore(existing);
        return existing.timeline.status();
      }
      const files = this.#files(project, timeline);
      await files.keys.ready();
      await ensureDirectory(dirname(files.directory));
      await this.templates.instantiate(request.pgVersion, files, request.systemId, { safekeepers: request.safekeepers });
      await syncDirectory(this.#root);
      await this.#attachLocal(project, timeline);
      const made = this.#known(project, timeline);
      await this.#inStore(made);
      return made.timeline.status();
    });
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
    return (await this.#use(project, timeline)).timeline;
  }

  /** Attaches it if need be and keeps it in memory until `release`. */
  async hold(project: ProjectUid, timeline: TimelineId): Promise<{ timeline: Timeline; release: () => void }> {
    const attached = await this.#use(project, timeline);
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
    return this.#known(project, timeline).timeline;
  }

  #known(project: string, timeline: string): Attached {
    const found = this.#timelines.get(timelineKey(project, timeline));
    if (isAttached(found)) return found;
    if (isLocked(found)) throw found.locked;
    if (isDamaged(found)) throw found.error;
    throw new LakebaseError('NOT_FOUND', `there is no timeline ${timeline} here`);
  }

  async #use(project: ProjectUid, timeline: TimelineId): Promise<Attached> {
    const name = timelineKey(project, timeline);
    const found = this.#timelines.get(name);
    if (isAttached(found)) {
      found.lastUsed = performance.now();
      return found;
    }
    const attached = await this.#queued(name, () => this.#find(project, timeline));
    return attached ?? this.#known(project, timeline);
  }

  /** Within the timeline's queue. Undefined when neither this disk nor the store has it. */
  async #find(project: ProjectUid, timeline: TimelineId): Promise<Attached | undefined> {
    const name = timelineKey(project, timeline);
    const found = this.#timelines.get(name);
    if (isAttached(found)) return found;
    if (this.#closed) throw new LakebaseError('CLOSED', 'the pageserver is shutting down');
    if (isLocked(found)) throw found.locked;
    if (isDamaged(found)) throw found.error;
    // Another pageserver served it when the Manager was last asked.
    if (this.remote?.generations.standing(project) === 'moved') await this.remote.generations.attach(project);
    const files = this.#files(project, timeline);
    if (!hasIndex(files)) {
      if (this.remote === undefined) return undefined;
      const given = await this.remote.generations.attach(project);
      if (files.keys.locked !== undefined) throw files.keys.locked;
      if (!(await fetchTimeline(this.#context, files, given))) return undefined;
    }
    await this.#attachLocal(project, timeline);
    return this.#known(project, timeline);
  }

  /** Status also of a timeline that is locked or damaged. */
  async status(project: ProjectUid, timeline: TimelineId): Promise<PageTimelineStatus> {
    const found = this.#timelines.get(timelineKey(project, timeline));
    if (isLocked(found) || isDamaged(found)) return absentStatus(project, timeline, found);
    try {
      return (await this.#use(project, timeline)).timeline.status();
    } catch (error) {
      const now = this.#timelines.get(timelineKey(project, timeline));
      if (isLocked(now) || isDamaged(now)) return absentStatus(project, timeline, now);
      throw error;
    }
  }

  async remove(project: ProjectUid, timeline: TimelineId): Promise<void> {
    const name = timelineKey(project, timeline);
    return this.#queued(name, async () => {
      const found = this.#timelines.get(name);
      this.#timelines.delete(name);
      this.#bundles.forget(timeline);
      if (isAttached(found)) await detach(found);
      // Renamed first: a removal that is cut short is finished at the next start, never half a timeline.
      await this.#removeDirectory(this.#files(project, timeline));
      if (this.remote !== undefined) await removeObjects(this.remote.store, project, timeline, this.#log);
    });
  }

  async #removeDirectory({ directory }: TimelineFiles): Promise<void> {
    this.#context.layers.forgetDirectory(directory);
    await rename(directory, directory + DELETED_SUFFIX).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
    });
    await rm(directory + DELETED_SUFFIX, { recursive: true, force: true });
  }

  // --- what computes start from and leave behind ----------------------------------------------------------------------------------

  async startBundle(t: Timeline, lsn: Lsn, waitMs: number): Promise<Buffer> {
    const at = await this.#bundleLsn(t, lsn, waitMs);
    if (at !== t.lastRecordLsn) return buildStartBundle(t, at, this.#known(t.project, t.id).bootSet);
    const known = this.#bundles.get(t.id, at);
    if (known !== undefined) return known;
    const { bootSet } = this.#known(t.project, t.id);
    const { suspend } = t.storage.index;
    const bundle = await buildStartBundle(t, at, bootSet);
    // What went into it may have changed while pages were read.
    const now = this.#timelines.get(timelineKey(t.project, t.id));
    const same = isAttached(now) && now.timeline === t && now.bootSet === bootSet && t.storage.index.suspend === suspend;
    if (same && t.lastRecordLsn === at) this.#bundles.set(t.id, at, bundle);
    return bundle;
  }
  async #bundleLsn(t: Timeline, lsn: Lsn, waitMs: number): Promise<Lsn> {
    if (lsn === Number.MAX_SAFE_INTEGER) return t.lastRecordLsn;
    await t.waitFor(lsn, Math.min(waitMs, this.#config.waitLsnTimeoutMs));
    t.checkReadable(lsn);
    return lsn;
  }

  async putSuspendState(project: ProjectUid, timeline: TimelineId, body: Buffer): Promise<void> {
    const { timeline: t, uploader } = await this.#use(project, timeline);
    const state = decodeSuspendState(body);
    // Of a running compute: no pages, and of no LSN; a start after a crash takes what may be old of it.
    const running = state.lsn === 0 && state.pages.length === 0;
    if (!running) await t.waitFor(state.lsn);
    if (!running && t.lastRecordLsn !== state.lsn)
      throw new LakebaseError(
        'CONFLICT',
        `the timeline has gone on to ${formatLsn(t.lastRecordLsn)}; a suspend state at ${formatLsn(state.lsn)} is too late`,
      );
    if (!running) {
      t.fileImages(state.pages);
      await t.checkpoint();
    }
    await t.storage.putObject(
      'suspend',
      (name, key) => sealObject(SUSPEND_OBJECT_MAGIC, { project, timeline, name }, body, key),
      (entry) => ({ suspend: { lsn: state.lsn, ...entry } }),
    );
    this.#bundles.forget(t.id);
    if (running) return;
    uploader?.soon(this.#config.uploadAfterSuspendMs);
    this.#buildAhead(t);
  }

  async putBootSet(project: ProjectUid, timeline: TimelineId, body: Buffer): Promise<void> {
    const attached = await this.#use(project, timeline);
    const blocks = decodeBootSet(body);
    await attached.timeline.storage.putObject(
      'bootset',
      (name, key) => sealObject(BOOT_OBJECT_MAGIC, { project, timeline, name }, encodeBootSet(blocks), key),
      (bootSet) => ({ bootSet }),
    );
    attached.bootSet = blocks;
    this.#bundles.forget(timeline);
  }

  /** The next thing to happen to a suspended timeline is a start from here. */
  #buildAhead(t: Timeline): void {
    setImmediate(() => {
      this.startBundle(t, t.lastRecordLsn, 1).catch((error: unknown) =>
        t.log.warn({ err: errorMessage(error) }, 'the next start bundle cannot be built ahead'),
      );
    });
  }

  // --- for metrics and health -----------------------------------------------------------------------------------------------------

  *attached(): Generator<Attached> {
    for (const t of this.#timelines.values()) if (isAttached(t)) yield t;
  }
  #count(is: (entry: Entry) => boolean): number {
    let n = 0;
    for (const entry of this.#timelines.values()) if (is(entry)) n++;
    return n;
  }
  /** Of all projects that have something here, or of those named. What the object store has of them counts too. */
  async timelinesOf(projects: readonly ProjectUid[] | null): Promise<{ project: ProjectUid; timeline: TimelineId }[]> {
    const here = new Set([...this.#timelines.keys()].map((name) => name.slice(0, 32) as ProjectUid));
    const all: { project: ProjectUid; timeline: TimelineId }[] = [];
    for (const project of new Set([...here, ...(projects ?? [])]))
      for (const timeline of await this.#allTimelines(project)) all.push({ project, timeline });
    return all;
  }
  get locked(): number {
    return this.#count(isLocked);
  }
  get damaged(): number {
    return this.#count(isDamaged);
  }
  get idle(): number {
    return this.#count(isIdle);
  }
  get caches(): { frames: FrameCache; pages: CacheBudget; layers: LayerCache } {
    return { frames: this.#frames, pages: this.#context.budget, layers: this.#context.layers };
  }
  get disk(): DiskSpace {
    return this.#context.disk;
  }

  // --- idle timelines -------------------------------------------------------------------------------------------------------------

  #sweep(): void {
    const now = performance.now();
    for (const [name, entry] of this.#timelines) {
      if (!isAttached(entry) || entry.users > 0 || now - entry.lastUsed < this.#config.detachAfterMs) continue;
      if (!caughtUp(entry)) continue;
      void this.#queued(name, () => this.#detachIdle(name, entry)).catch((error: unknown) =>
        this.#log.warn({ err: errorMessage(error) }, 'an idle timeline cannot be detached'),
      );
    }
  }

  async #detachIdle(name: string, entry: Attached): Promise<void> {
    const unused = (): boolean =>
      this.#timelines.get(name) === entry && entry.users === 0 && performance.now() - entry.lastUsed >= this.#config.detachAfterMs;
    if (this.#closed || !unused()) return;
    await entry.timeline.checkpoint();
    await entry.uploader?.flush();
    const { storage } = entry.timeline;
    // Something may have come while that was written.
    if (this.#closed || !unused() || !caughtUp(entry) || storage.diskConsistentLsn < entry.timeline.lastRecordLsn) return;
    const kekVersion = Math.min(storage.oldestKekVersion, entry.uploader?.indexKekVersion ?? Number.MAX_SAFE_INTEGER);
    const note = { kekVersion, uploaded: entry.uploader !== undefined };
    this.#timelines.set(name, { idle: note });
    this.#bundles.forget(entry.timeline.id);
    await detach(entry);
    await writeIdleNote(storage.files, note);
  }

  // --- moves ----------------------------------------------------------------------------------------------------------------------

  /** Another pageserver serves the project from now on. */
  #moved(project: ProjectUid): void {
    const error = new LakebaseError('FENCED', `project ${project} is on another pageserver`);
    this.#log.info({ project }, 'project moved away');
    for (const [name, entry] of this.#timelines) {
      if (!name.startsWith(`${project}/`)) continue;
      this.onEnd(project, error);
      if (!isAttached(entry)) continue;
      this.#timelines.set(name, { idle: { kekVersion: 0, uploaded: false } });
      this.#bundles.forget(entry.timeline.id);
      void this.#queued(name, () => detach(entry)).catch((cause: unknown) => this.#log.warn({ err: errorMessage(cause) }, 'detach failed'));
    }
  }

  /** The project is this pageserver's from now on: what is in the store replaces what is here. */
  async takeOver(given: AttachedProject): Promise<void> {
    const { generations } = this.#remote();
    generations.adopt(given);
    const active = given.timelines.filter((t) => t.active === true).map((t) => t.timeline);
    await Promise.all(active.map((timeline) => this.#refetch(given.project, timeline)));
    // Whoever reads there now finds no cold cache here.
    const warm = active.map((timeline) => this.#known(given.project, timeline).warm);
    await withDeadline(Promise.all(warm), WARM_MS, 'warm-up').catch(() => {});
  }

  /** Committed WAL that is not readable yet, in bytes; undefined while it is not known. */
  lagOf(project: string): number | undefined {
    let lag = 0;
    for (const { timeline, receiver } of this.attached()) {
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
      [...this.attached()]
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
    for (const name of [...this.#timelines.keys()]) {
      const [uid, timeline] = name.split('/') as [ProjectUid, TimelineId];
      if (uid !== project) continue;
      await this.#queued(name, async () => {
        if (this.remote?.generations.standing(project) !== 'moved') return;
        this.#timelines.delete(name);
        await this.#removeDirectory(this.#files(project, timeline));
      });
    }
  }

  #remote(): UploadTarget {
    if (this.remote === undefined) throw new LakebaseError('CONFIG', 'this pageserver has no object store: set objectStore');
    return this.remote;
  }

  /** What is here is older than what the store has. */
  async #refetch(project: ProjectUid, timeline: TimelineId): Promise<void> {
    const name = timelineKey(project, timeline);
    await this.#queued(name, async () => {
      const found = this.#timelines.get(name);
      this.#timelines.delete(name);
      this.#bundles.forget(timeline);
      this.onEnd(project, new LakebaseError('UNAVAILABLE', 'the timeline is attached anew; again'), timeline);
      if (isAttached(found)) await detach(found);
      await this.#removeDirectory(this.#files(project, timeline));
      if ((await this.#find(project, timeline)) === undefined)
        throw new LakebaseError('NOT_FOUND', `the object store has nothing of timeline ${timeline}`);
    });
  }

  /** One that cannot be attached because of its files here is laid out from the object store again. False when it is not such a one, or when the
   *  store does not have it: then the files here are all there is. */
  async restoreDamaged(project: ProjectUid, timeline: TimelineId): Promise<boolean> {
    const isSuch = (): boolean => isDamaged(this.#timelines.get(timelineKey(project, timeline)));
    if (this.remote === undefined || !isSuch()) return false;
    const { generation } = await this.remote.generations.attach(project);
    const found = await findIndex(this.remote.store, this.#files(project, timeline), { below: generation + 1, floor: 1, list: true });
    if (found === undefined || !isSuch()) return false;
    this.#log.warn({ project, timeline, version: found.index.version }, 'a damaged timeline is laid out from the object store again');
    await this.#refetch(project, timeline);
    return true;
  }

  // --- keys -----------------------------------------------------------------------------------------------------------------------

  #lock(project: string, reason: string): void {
    const error = this.#keys.source.project(project).locked ?? new LakebaseError('KEY_REVOKED', reason);
    const ended: Promise<unknown>[] = [];
    // First nobody gets anything any more, then what is in memory goes.
    const affected = [...this.#timelines].filter(([name]) => name.startsWith(`${project}/`));
    for (const [name, entry] of affected) if (isAttached(entry) || isLocked(entry)) this.#timelines.set(name, { locked: error });
    this.onEnd(project, error);
    for (const [name, entry] of affected) if (isAttached(entry)) ended.push(this.#queued(name, () => this.#end(entry, error)));
    // A worker may hold what an earlier job of the project left behind.
    ended.push(this.#context.compactor.forget(project, error), this.#context.flusher.forget(project, error));
    this.#log.warn({ project, reason, timelines: affected.length }, 'project locked');
    forgetLockedProject(project, ended, this.#log);
  }

  async #end(attached: Attached, error: LakebaseError): Promise<void> {
    this.#bundles.forget(attached.timeline.id, true);
    await detach(attached, error);
    attached.timeline.wipe();
  }

  #unlock(project: string): void {
    for (const [name, entry] of this.#timelines) {
      const [uid, timeline] = name.split('/') as [ProjectUid, TimelineId];
      if (uid !== project || !isLocked(entry)) continue;
      void this.#queued(name, async () => {
        if (isLocked(this.#timelines.get(name)) && !this.#closed) await this.#attachLocal(uid, timeline);
      });
    }
    this.#rotation.check(project);
  }

  /** Every reference of the project here and in the store. Rejects while one cannot be reached. */
  async #rewrap(project: string, kekVersion: number): Promise<number> {
    await Promise.allSettled([...(this.#creations.get(project) ?? [])]);
    if (project === TEMPLATE_ID) return this.templates.rewrap(kekVersion);
    let references = 0;
    const uid = project as ProjectUid;
    for (const timeline of await this.#allTimelines(uid)) {
      const entry = this.#timelines.get(timelineKey(project, timeline));
      if (isIdle(entry) && entry.idle.kekVersion >= kekVersion) continue;
      const { timeline: t, uploader } = await this.#use(uid, timeline);
      references += await t.storage.rewrap(kekVersion);
      await uploader?.rewrapped(kekVersion);
    }
    return references;
  }

  /** Every object of the project whose data key was made under a KEK older than `below`, here and in the store. */
  async #reEncrypt(
    project: ProjectUid,
    below: number,
    progress: (count: ReEncryptionCount) => void,
    signal: AbortSignal,
  ): Promise<ReEncryptionCount> {
    await Promise.allSettled([...(this.#creations.get(project) ?? [])]);
    let sum: ReEncryptionCount = { done: 0, total: 0, bytes: 0 };
    for (const timeline of await this.#allTimelines(project)) {
      const { timeline: t, uploader } = await this.#use(project, timeline);
      const before = sum;
      const add = (c: ReEncryptionCount): ReEncryptionCount =>
        (sum = { done: before.done + c.done, total: before.done + c.total, bytes: before.bytes + c.bytes });
      const bytesPerSecond = this.#config.reEncryptBytesPerSecond;
      add(await reEncrypt([t.storage], { below, bytesPerSecond, progress: (c) => progress(add(c)), signal }));
      await uploader?.flush();
    }
    return sum;
  }

  /** Also those that are not on this disk: what is not known here would lose its key. */
  async #allTimelines(project: ProjectUid): Promise<TimelineId[]> {
    const here = [...this.#timelines.keys()].filter((n) => n.startsWith(`${project}/`)).map((n) => n.slice(33) as TimelineId);
    if (this.remote === undefined) return here;
    try {
      const { timelines } = await this.remote.generations.attach(project);
      return [...new Set([...here, ...timelines.filter((t) => t.published > 0).map((t) => t.timeline)])];
    } catch (error) {
      // Whoever has it wraps its keys; a project that nobody knows has none.
      if (isCode(error, 'NOT_FOUND')) return here;
      if (isCode(error, 'FENCED') && this.remote.generations.standing(project) === 'moved') return [];
      throw error;
    }
  }

  #creation<T>(project: ProjectUid, timeline: TimelineId, run: () => Promise<T>): Promise<T> {
    let running = this.#creations.get(project);
    if (running === undefined) this.#creations.set(project, (running = new Set()));
    const made = this.#queued(timelineKey(project, timeline), run).finally(() => running.delete(made));
    running.add(made);
    return made;
  }

  // --- attachment -----------------------------------------------------------------------------------------------------------------

  /** Within the timeline's queue. What comes of it is in the table. */
  async #attachLocal(project: ProjectUid, id: TimelineId): Promise<void> {
    const name = timelineKey(project, id);
    const files = this.#files(project, id);
    const { keys } = files;
    if (keys.locked !== undefined) return void this.#timelines.set(name, { locked: keys.locked });
    try {
      const attached = await attachLocal(this.#context, files);
      if (attached === undefined) {
        // A creation that was cut short: the caller repeats it.
        this.#timelines.delete(name);
        await rm(files.directory, { recursive: true, force: true });
        return;
      }
      // The key may have gone since it opened the last file.
      if (keys.locked !== undefined) {
        this.#timelines.set(name, { locked: keys.locked });
        return await this.#end(attached, keys.locked);
      }
      if (attached.uploader !== undefined) {
        attached.uploader.onStale = () => {
          this.#refetch(project, id).catch((error: unknown) =>
            this.#log.error({ project, timeline: id, err: errorMessage(error) }, 'a stale timeline cannot be fetched anew'),
          );
        };
      }
      this.#timelines.set(name, attached);
      this.#rotation.check(project);
    } catch (error) {
      const wrapped = error instanceof LakebaseError ? error : new LakebaseError('INTERNAL', errorMessage(error), { cause: error });
      const log = this.#log.child({ project, timeline: id });
      if (wrapped.code === 'KEY_REVOKED' || wrapped.code === 'UNAVAILABLE') {
        log.warn({ err: wrapped.message }, 'the timeline cannot be attached now');
        this.#timelines.set(name, { locked: wrapped });
        if (keys.usable) setTimeout(() => this.#unlock(project), ATTACH_AGAIN_MS).unref();
        return;
      }
      log.error({ err: wrapped.message }, 'the timeline cannot be attached');
      this.#timelines.set(name, { error: wrapped });
    }
  }

  #files(project: ProjectUid, timeline: TimelineId): TimelineFiles {
    return {
      directory: join(this.#root, project, timeline),
      keys: this.#keys.source.project(project),
      cache: this.#frames,
      layers: this.#context.layers,
      project,
      timeline,
    };
  }

  /** One at a time for each timeline; the queue goes when nobody is in it. */
  async #queued<T>(name: string, run: () => Promise<T>): Promise<T> {
    let entry = this.#queues.get(name);
    if (entry === undefined) this.#queues.set(name, (entry = { queue: new SerialQueue(), users: 0 }));
    entry.users++;
    try {
      return await entry.queue.run(run);
    } finally {
      if (--entry.users === 0) this.#queues.delete(name);
    }
  }
}

/** All that its safekeepers have is here. */
const caughtUp = ({ timeline, receiver }: Attached): boolean =>
  timeline.broken === undefined && receiver.connectedTo !== undefined && receiver.senderLsn <= timeline.lastRecordLsn;
