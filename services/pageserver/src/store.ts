/** All templates and timelines of this pageserver, by identity, under one data directory:
 *  `templates/<major>/`, `timelines/<project>/<timeline>/`. Invariants: creation, deletion and attachment of one timeline never overlap; from
 *  the moment a project's key is lost nothing of it is answered, and soon nothing of it is in memory; it comes back by itself. */
import { readdirSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { LakebaseError, type Logger, SerialQueue, errorMessage, withDeadline } from '@lakebase/base';
import {
  type CreatePageTimeline,
  type PageTimelineStatus,
  type PeerAddress,
  type TemplateInfo,
  decodeBootSet,
  decodeSuspendState,
  encodeBootSet,
  internalToken,
  timelineScope,
} from '@lakebase/api';
import { type Lsn, type ProjectUid, type TimelineId, formatLsn, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { FrameCache, sealObject, syncDirectory, wipeFreeChunks } from '@lakebase/layers';
import { KeyRotation, type ServiceKeys, forgetGarbage } from '@lakebase/service-kit';
import { wipeScratch } from '@lakebase/pg-format';
import type { Readable } from 'node:stream';
import { BOOT_OBJECT_MAGIC, SUSPEND_OBJECT_MAGIC, buildStartBundle, readObject } from './bundle.ts';
import { BundleCache } from './bundle-cache.ts';
import { Compactor } from './compactor.ts';
import type { PageserverConfig } from './config.ts';
import { CacheBudget } from './page-cache.ts';
import { type TimelineFiles, TimelineStorage, ensureDirectory } from './storage.ts';
import { TEMPLATE_ID, importTemplate, instantiate, rewrapTemplate, templateInfo } from './template.ts';
import { Timeline } from './timeline.ts';
import { type Attached, type Entry, absentStatus, isAttached, isLocked, timelineKey } from './timeline-entry.ts';
import { WalReceiver } from './wal-receiver.ts';

const STOP_FLUSH_MS = 10_000;
const BUNDLE_CACHE_BYTES = 16 << 20;
const ATTACH_AGAIN_MS = 1_000;
const DELETED_SUFFIX = '.deleted';

export class TimelineStore {
  readonly #config: PageserverConfig;
  readonly #secret: string;
  readonly #log: Logger;
  readonly #cache: FrameCache;
  readonly #budget: CacheBudget;
  readonly #compactor = new Compactor();
  readonly #flusher = new Compactor();
  readonly #bundles = new BundleCache(BUNDLE_CACHE_BYTES);
  readonly #timelines = new Map<string, Entry>();
  readonly #keys: ServiceKeys;
  readonly #rotation: KeyRotation;
  /** Under way, by project: their keys may be of any version until they are done. */
  readonly #creations = new Map<string, Set<Promise<unknown>>>();
  /** Ends what the project's clients have under way. Called before memory is zeroed: nothing of it may still be sent. */
  onLock: (project: string, error: LakebaseError) => void = () => {};
  #closed = false;
  readonly #queues = new Map<string, SerialQueue>();

  constructor(config: PageserverConfig, secret: string, log: Logger, keys: ServiceKeys) {
    this.#keys = keys;
    this.#rotation = new KeyRotation({ ...keys, log, rewrap: (project, version) => this.#rewrap(project, version) });
    keys.source.onChange((project, usable, reason) => (usable ? this.#unlock(project) : this.#lock(project, reason)));
    this.#config = config;
    this.#secret = secret;
    this.#log = log;
    this.#cache = new FrameCache(config.frameCacheBytes);
    this.#budget = new CacheBudget(config.pageCacheBytes);
  }

  /** Attaches every timeline on disk. A damaged one does not hold up the others. */
  async open(): Promise<void> {
    const root = join(this.#config.dataDir, 'timelines');
    await ensureDirectory(root);
    await ensureDirectory(join(this.#config.dataDir, 'templates'));
    for (const project of readdirSync(root)) {
      if (!/^[0-9a-f]{32}$/.test(project)) continue;
      for (const timeline of readdirSync(join(root, project))) {
        if (timeline.endsWith(DELETED_SUFFIX)) await rm(join(root, project, timeline), { recursive: true, force: true });
        if (/^[0-9a-f]{32}$/.test(timeline)) await this.#attach(parseProjectUid(project), parseTimelineId(timeline));
      }
    }
    this.#rotation.start();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#rotation.close();
    const attached = [...this.#timelines.values()].filter(isAttached);
    await Promise.all(
      attached.map(async (t) => {
        await withDeadline(t.receiver.stop(), STOP_FLUSH_MS, 'stop of the WAL receiver').catch(() => {});
        // Saves the next start the WAL since the last flush; a failure only costs that.
        await withDeadline(t.timeline.checkpoint(), STOP_FLUSH_MS, 'flush at stop').catch((error: unknown) =>
          this.#log.warn({ err: errorMessage(error) }, 'flush at stop failed'),
        );
        await t.timeline.close();
      }),
    );
    this.#timelines.clear();
    await this.#compactor.close();
    await this.#flusher.close();
  }

  // --- templates ---

  async putTemplate(major: number, body: Readable): Promise<TemplateInfo> {
    // The template has a key of its own, under the installation's root.
    await this.#keys.client?.createProject(TEMPLATE_ID as ProjectUid, {
      account: 'installation',
      configurationId: null,
      kms: { provider: 'LOCAL', key: 'root' },
      actor: this.#config.id,
    });
    const files = this.#templateFiles(major);
    return this.#queue(`template/${major}`).run(async () => {
      await files.keys.ready();
      return importTemplate(body, major, files);
    });
  }
  async template(major: number): Promise<TemplateInfo> {
    const info = await templateInfo(this.#templateFiles(major));
    if (info === undefined) throw new LakebaseError('NOT_FOUND', `there is no template for Postgres ${major}`);
    return info;
  }

  // --- timelines ---

  async create(project: ProjectUid, timeline: TimelineId, request: CreatePageTimeline): Promise<PageTimelineStatus> {
    return this.#creation(project, timeline, async () => {
      const existing = this.#timelines.get(timelineKey(project, timeline));
      if (existing !== undefined) {
        if (!isAttached(existing)) throw isLocked(existing) ? existing.locked : existing.error;
        const index = existing.timeline.storage.index;
        if (index.systemId !== request.systemId || index.pgVersion !== request.pgVersion)
          throw new LakebaseError('ALREADY_EXISTS', `timeline ${timeline} exists with another system id or Postgres version`);
        await existing.timeline.storage.update({ extra: { safekeepers: request.safekeepers } });
        existing.receiver.safekeepers = request.safekeepers;
        return existing.timeline.status();
      }
      const files = this.#files(project, timeline);
      await files.keys.ready();
      await ensureDirectory(dirname(files.directory));
      await this.#queue(`template/${request.pgVersion}`).run(() =>
        instantiate(this.#templateFiles(request.pgVersion), files, request.systemId, { safekeepers: request.safekeepers }),
      );
      await syncDirectory(join(this.#config.dataDir, 'timelines'));
      await this.#attach(project, timeline);
      return this.get(project, timeline).status();
    });
  }

  get(project: string, timeline: string): Timeline {
    return this.#attached(project, timeline).timeline;
  }

  #attached(project: string, timeline: string): Attached {
    const found = this.#timelines.get(timelineKey(project, timeline));
    if (found === undefined) throw new LakebaseError('NOT_FOUND', `there is no timeline ${timeline} here`);
    if (!isAttached(found)) throw isLocked(found) ? found.locked : found.error;
    return found;
  }

  /** Status also of a timeline that is locked or damaged. */
  status(project: ProjectUid, timeline: TimelineId): PageTimelineStatus {
    const found = this.#timelines.get(timelineKey(project, timeline));
    return found === undefined || isAttached(found) ? this.get(project, timeline).status() : absentStatus(project, timeline, found);
  }

  async remove(project: ProjectUid, timeline: TimelineId): Promise<void> {
    return this.#queue(timelineKey(project, timeline)).run(async () => {
      const found = this.#timelines.get(timelineKey(project, timeline));
      this.#timelines.delete(timelineKey(project, timeline));
      this.#bundles.forget(timeline);
      if (isAttached(found)) {
        const stopped = found.receiver.stop();
        await found.timeline.close();
        await stopped;
      }
      const { directory } = this.#files(project, timeline);
      // Renamed first: a removal that is cut short is finished at the next start, never half a timeline.
      await rename(directory, directory + DELETED_SUFFIX).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT') throw error;
      });
      await rm(directory + DELETED_SUFFIX, { recursive: true, force: true });
    });
  }

  async startBundle(t: Timeline, lsn: Lsn, waitMs: number): Promise<Buffer> {
    const at = await this.#bundleLsn(t, lsn, waitMs);
    if (at !== t.lastRecordLsn) return buildStartBundle(t, at, this.#attached(t.project, t.id).bootSet);
    const known = this.#bundles.get(t.id, at);
    if (known !== undefined) return known;
    const { bootSet } = this.#attached(t.project, t.id);
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
    const { timeline: t } = this.#attached(project, timeline);
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
    if (!running) this.#buildAhead(t);
  }

  async putBootSet(project: ProjectUid, timeline: TimelineId, body: Buffer): Promise<void> {
    const attached = this.#attached(project, timeline);
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

  /** For metrics and health. */
  *attached(): Generator<{ timeline: Timeline; receiver: WalReceiver }> {
    for (const t of this.#timelines.values()) if (isAttached(t)) yield t;
  }
  get locked(): number {
    return [...this.#timelines.values()].filter(isLocked).length;
  }
  get damaged(): number {
    return [...this.#timelines.values()].filter((t) => 'error' in t).length;
  }
  get caches(): { frames: FrameCache; pages: CacheBudget } {
    return { frames: this.#cache, pages: this.#budget };
  }

  // --- keys ---

  #lock(project: string, reason: string): void {
    const error = this.#keys.source.project(project).locked ?? new LakebaseError('KEY_REVOKED', reason);
    const ended: Promise<unknown>[] = [];
    // First nobody gets anything any more, then what is in memory goes.
    const affected = [...this.#timelines].filter(([name]) => name.startsWith(`${project}/`));
    for (const [name, entry] of affected) if (isAttached(entry) || isLocked(entry)) this.#timelines.set(name, { locked: error });
    this.onLock(project, error);
    for (const [name, entry] of affected) if (isAttached(entry)) ended.push(this.#queue(name).run(() => this.#end(entry, error)));
    // A worker may hold what an earlier job of the project left behind.
    ended.push(this.#compactor.forget(project, error), this.#flusher.forget(project, error));
    this.#log.warn({ project, reason, timelines: affected.length }, 'project locked');
    void Promise.allSettled(ended)
      .then(() =>
        forgetGarbage(() => {
          wipeFreeChunks();
          wipeScratch();
        }),
      )
      .catch((cause: unknown) => this.#log.error({ project, err: errorMessage(cause) }, 'memory of a locked project was not cleaned up'));
  }

  async #end({ timeline, receiver }: Attached, error: LakebaseError): Promise<void> {
    this.#bundles.forget(timeline.id, true);
    const stopped = receiver.stop();
    await timeline.close(error);
    await stopped;
    timeline.wipe();
  }

  #unlock(project: string): void {
    for (const [name, entry] of this.#timelines) {
      const [uid, timeline] = name.split('/') as [ProjectUid, TimelineId];
      if (uid !== project || !isLocked(entry)) continue;
      void this.#queue(name).run(async () => {
        if (isLocked(this.#timelines.get(name)) && !this.#closed) await this.#attach(uid, timeline);
      });
    }
    this.#rotation.check(project);
  }

  /** Every reference of the project here. Rejects while one cannot be reached. */
  async #rewrap(project: string, kekVersion: number): Promise<number> {
    await Promise.allSettled([...(this.#creations.get(project) ?? [])]);
    let references = 0;
    if (project === TEMPLATE_ID) {
      for (const major of readdirSync(join(this.#config.dataDir, 'templates')))
        references += await this.#queue(`template/${major}`).run(() =>
          rewrapTemplate(this.#templateFiles(Number(major)), kekVersion, this.#log),
        );
      return references;
    }
    for (const [name, entry] of this.#timelines) {
      if (!name.startsWith(`${project}/`)) continue;
      if (!isAttached(entry)) throw new LakebaseError('UNAVAILABLE', `timeline ${name} is not attached`);
      references += await entry.timeline.storage.rewrap(kekVersion);
    }
    return references;
  }

  #creation<T>(project: ProjectUid, timeline: TimelineId, run: () => Promise<T>): Promise<T> {
    let running = this.#creations.get(project);
    if (running === undefined) this.#creations.set(project, (running = new Set()));
    const made = this.#queue(timelineKey(project, timeline))
      .run(run)
      .finally(() => running.delete(made));
    running.add(made);
    return made;
  }

  async #attach(project: ProjectUid, id: TimelineId): Promise<void> {
    const name = timelineKey(project, id);
    const files = this.#files(project, id);
    const { keys } = files;
    const log = this.#log.child({ project, timeline: id });
    if (keys.locked !== undefined) return void this.#timelines.set(name, { locked: keys.locked });
    try {
      const storage = await TimelineStorage.open(files, this.#config, this.#compactor.run, log, this.#flusher.run);
      if (storage === undefined) {
        // A creation that was cut short: the caller repeats it.
        this.#timelines.delete(name);
        await rm(files.directory, { recursive: true, force: true });
        return;
      }
      const timeline = new Timeline(storage, this.#config, this.#budget, log);
      const bootSet = readBootSet(storage);
      const safekeepers = (storage.index.extra['safekeepers'] ?? []) as PeerAddress[];
      const receiver = new WalReceiver(timeline, safekeepers, internalToken(this.#secret, timelineScope(project, id)));
      const attached = { timeline, receiver, bootSet };
      // The key may have gone since it opened the last file.
      if (keys.locked !== undefined) {
        this.#timelines.set(name, { locked: keys.locked });
        return await this.#end(attached, keys.locked);
      }
      this.#timelines.set(name, attached);
      this.#rotation.check(project);
    } catch (error) {
      const wrapped = error instanceof LakebaseError ? error : new LakebaseError('INTERNAL', errorMessage(error), { cause: error });
      if (wrapped.code === 'KEY_REVOKED' || wrapped.code === 'UNAVAILABLE') {
        log.warn({ err: wrapped.message }, 'the timeline cannot be attached without its keys');
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
      directory: join(this.#config.dataDir, 'timelines', project, timeline),
      keys: this.#keys.source.project(project),
      cache: this.#cache,
      project,
      timeline,
    };
  }
  #templateFiles(major: number): TimelineFiles {
    return {
      directory: join(this.#config.dataDir, 'templates', String(major)),
      keys: this.#keys.source.project(TEMPLATE_ID),
      cache: this.#cache,
      project: TEMPLATE_ID,
      timeline: TEMPLATE_ID,
    };
  }
  #queue(name: string): SerialQueue {
    let queue = this.#queues.get(name);
    if (queue === undefined) {
      queue = new SerialQueue();
      this.#queues.set(name, queue);
    }
    return queue;
  }
}

function readBootSet({ index, files }: TimelineStorage): Attached['bootSet'] {
  return index.bootSet === null ? [] : decodeBootSet(readObject(BOOT_OBJECT_MAGIC, files, index.bootSet));
}
