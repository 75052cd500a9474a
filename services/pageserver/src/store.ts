/** All templates and timelines of this pageserver, by identity, under one data directory:
 *  `templates/<major>/`, `timelines/<project>/<timeline>/`. Invariant: creation, deletion and attachment of one timeline never overlap. */
import { readdirSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { LakebaseError, type Logger, SerialQueue, errorMessage, withDeadline } from '@lakebase/base';
import {
  type BlockRef,
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
import { plainProvider } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type TimelineId, formatLsn, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { FrameCache, type LayerFiles, openObject, sealObject, syncDirectory } from '@lakebase/layers';
import type { Readable } from 'node:stream';
import { readFileSync } from 'node:fs';
import { BOOT_OBJECT_MAGIC, OBJECT_VERSION, SUSPEND_OBJECT_MAGIC, buildStartBundle } from './bundle.ts';
import { BundleCache } from './bundle-cache.ts';
import { Compactor } from './compactor.ts';
import type { PageserverConfig } from './config.ts';
import { CacheBudget } from './page-cache.ts';
import { TimelineStorage, ensureDirectory } from './storage.ts';
import { TEMPLATE_ID, importTemplate, instantiate, templateInfo } from './template.ts';
import { Timeline } from './timeline.ts';
import { WalReceiver } from './wal-receiver.ts';

interface Attached {
  readonly timeline: Timeline;
  readonly receiver: WalReceiver;
  bootSet: readonly BlockRef[];
}

/** A timeline whose files fail a check: listed, answers with its error, touches nothing. */
interface Damaged {
  readonly error: LakebaseError;
}

const key = (project: string, timeline: string): string => `${project}/${timeline}`;
const STOP_FLUSH_MS = 10_000;
const BUNDLE_CACHE_BYTES = 16 << 20;
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
  readonly #timelines = new Map<string, Attached | Damaged>();
  readonly #queues = new Map<string, SerialQueue>();

  constructor(config: PageserverConfig, secret: string, log: Logger) {
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
  }

  async close(): Promise<void> {
    const attached = [...this.#timelines.values()].filter((t) => 'timeline' in t);
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
    return this.#queue(`template/${major}`).run(() => importTemplate(body, major, this.#templateFiles(major)));
  }
  template(major: number): TemplateInfo {
    const info = templateInfo(this.#templateFiles(major));
    if (info === undefined) throw new LakebaseError('NOT_FOUND', `there is no template for Postgres ${major}`);
    return info;
  }

  // --- timelines ---

  async create(project: ProjectUid, timeline: TimelineId, request: CreatePageTimeline): Promise<PageTimelineStatus> {
    return this.#queue(key(project, timeline)).run(async () => {
      const existing = this.#timelines.get(key(project, timeline));
      if (existing !== undefined) {
        if ('error' in existing) throw existing.error;
        const index = existing.timeline.storage.index;
        if (index.systemId !== request.systemId || index.pgVersion !== request.pgVersion)
          throw new LakebaseError('ALREADY_EXISTS', `timeline ${timeline} exists with another system id or Postgres version`);
        await existing.timeline.storage.update({ extra: { safekeepers: request.safekeepers } });
        existing.receiver.safekeepers = request.safekeepers;
        return existing.timeline.status();
      }
      const files = this.#files(project, timeline);
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
    const found = this.#timelines.get(key(project, timeline));
    if (found === undefined) throw new LakebaseError('NOT_FOUND', `there is no timeline ${timeline} here`);
    if ('error' in found) throw found.error;
    return found;
  }

  /** Status also of a timeline whose files are damaged. */
  status(project: ProjectUid, timeline: TimelineId): PageTimelineStatus {
    const found = this.#timelines.get(key(project, timeline));
    if (found === undefined || !('error' in found)) return this.get(project, timeline).status();
    return {
      project,
      timeline,
      pgVersion: 0,
      systemId: '0',
      startLsn: '0/0',
      startPrevRecordLsn: '0/0',
      lastRecordLsn: '0/0',
      diskConsistentLsn: '0/0',
      logicalSizeBytes: 0,
      state: 'BROKEN',
      error: found.error.message,
      layers: 0,
    };
  }

  async remove(project: ProjectUid, timeline: TimelineId): Promise<void> {
    return this.#queue(key(project, timeline)).run(async () => {
      const found = this.#timelines.get(key(project, timeline));
      this.#timelines.delete(key(project, timeline));
      this.#bundles.forget(timeline);
      if (found !== undefined && 'timeline' in found) {
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
    const now = this.#timelines.get(key(t.project, t.id));
    const same =
      now !== undefined && 'timeline' in now && now.timeline === t && now.bootSet === bootSet && t.storage.index.suspend === suspend;
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
    await t.waitFor(state.lsn);
    if (t.lastRecordLsn !== state.lsn)
      throw new LakebaseError(
        'CONFLICT',
        `the timeline has gone on to ${formatLsn(t.lastRecordLsn)}; a suspend state at ${formatLsn(state.lsn)} is too late`,
      );
    t.fileImages(state.pages);
    await t.checkpoint();
    const sealed = sealObject(SUSPEND_OBJECT_MAGIC, OBJECT_VERSION, project, body, t.storage.files.ciphers);
    await t.storage.putObject('suspend', sealed, (file) => ({ suspend: { lsn: state.lsn, file } }));
    this.#bundles.forget(t.id);
    this.#buildAhead(t);
  }

  async putBootSet(project: ProjectUid, timeline: TimelineId, body: Buffer): Promise<void> {
    const attached = this.#attached(project, timeline);
    const blocks = decodeBootSet(body);
    const sealed = sealObject(BOOT_OBJECT_MAGIC, OBJECT_VERSION, project, encodeBootSet(blocks), attached.timeline.storage.files.ciphers);
    await attached.timeline.storage.putObject('bootset', sealed, (file) => ({ bootSet: file }));
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
    for (const t of this.#timelines.values()) if ('timeline' in t) yield t;
  }
  get damaged(): number {
    return [...this.#timelines.values()].filter((t) => 'error' in t).length;
  }
  get caches(): { frames: FrameCache; pages: CacheBudget } {
    return { frames: this.#cache, pages: this.#budget };
  }

  async #attach(project: ProjectUid, id: TimelineId): Promise<void> {
    const files = this.#files(project, id);
    const log = this.#log.child({ project, timeline: id });
    try {
      const storage = await TimelineStorage.open(files, this.#config, this.#compactor.run, log, this.#flusher.run);
      if (storage === undefined) {
        // A creation that was cut short: the caller repeats it.
        await rm(files.directory, { recursive: true, force: true });
        return;
      }
      const timeline = new Timeline(storage, this.#config, this.#budget, log);
      const safekeepers = (storage.index.extra['safekeepers'] ?? []) as PeerAddress[];
      const receiver = new WalReceiver(timeline, safekeepers, internalToken(this.#secret, timelineScope(project, id)));
      this.#timelines.set(key(project, id), { timeline, receiver, bootSet: readBootSet(storage) });
    } catch (error) {
      const wrapped = error instanceof LakebaseError ? error : new LakebaseError('INTERNAL', errorMessage(error), { cause: error });
      log.error({ err: wrapped.message }, 'the timeline cannot be attached');
      this.#timelines.set(key(project, id), { error: wrapped });
    }
  }

  #files(project: ProjectUid, timeline: TimelineId): LayerFiles {
    return {
      directory: join(this.#config.dataDir, 'timelines', project, timeline),
      ciphers: plainProvider,
      cache: this.#cache,
      project,
      timeline,
    };
  }
  #templateFiles(major: number): LayerFiles {
    return {
      directory: join(this.#config.dataDir, 'templates', String(major)),
      ciphers: plainProvider,
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

function readBootSet(storage: TimelineStorage): readonly BlockRef[] {
  const file = storage.index.bootSet;
  if (file === null) return [];
  const path = join(storage.files.directory, file);
  return decodeBootSet(
    openObject(BOOT_OBJECT_MAGIC, OBJECT_VERSION, storage.files.project, readFileSync(path), storage.files.ciphers, path),
  );
}
