/** What computes start from, and what they leave behind for the next start: start bundles, suspend states and boot sets (docs/protocols/page-service.md).
 *  Invariant: a bundle that is kept holds exactly what a new one for the same LSN would. */
import { LakebaseError, errorMessage } from '@lakebase/base';
import { decodeBootSet, decodeSuspendState, encodeBootSet } from '@lakebase/api';
import { type Lsn, type ProjectUid, type TimelineId, formatLsn } from '@lakebase/ids';
import { sealObject } from '@lakebase/layers';
import { BOOT_OBJECT_MAGIC, SUSPEND_OBJECT_MAGIC, buildStartBundle } from './bundle.ts';
import type { PageserverConfig } from './config.ts';
import type { Timeline } from './timeline.ts';
import { isAttached } from './timeline-entry.ts';
import type { TimelineTable } from './timeline-table.ts';

export class StartStates {
  readonly #table: TimelineTable;
  readonly #config: PageserverConfig;

  constructor(table: TimelineTable) {
    this.#table = table;
    this.#config = table.context.config;
  }

  async bundle(t: Timeline, lsn: Lsn, waitMs: number): Promise<Buffer> {
    const at = await this.#bundleLsn(t, lsn, waitMs);
    if (at !== t.lastRecordLsn) return buildStartBundle(t, at, this.#table.known(t.project, t.id).bootSet);
    const known = this.#table.bundles.get(t.id, at);
    if (known !== undefined) return known;
    const { bootSet } = this.#table.known(t.project, t.id);
    const { suspend } = t.storage.index;
    const bundle = await buildStartBundle(t, at, bootSet);
    // What went into it may have changed while pages were read.
    const now = this.#table.entry(t.project, t.id);
    const same = isAttached(now) && now.timeline === t && now.bootSet === bootSet && t.storage.index.suspend === suspend;
    if (same && t.lastRecordLsn === at) this.#table.bundles.set(t.id, at, bundle);
    return bundle;
  }
  async #bundleLsn(t: Timeline, lsn: Lsn, waitMs: number): Promise<Lsn> {
    if (lsn === Number.MAX_SAFE_INTEGER) return t.lastRecordLsn;
    await t.waitFor(lsn, Math.min(waitMs, this.#config.waitLsnTimeoutMs));
    t.checkReadable(lsn);
    return lsn;
  }

  async putSuspendState(project: ProjectUid, timeline: TimelineId, body: Buffer): Promise<void> {
    const { timeline: t, uploader } = await this.#table.use(project, timeline);
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
    this.#table.bundles.forget(t.id);
    if (running) return;
    uploader?.soon(this.#config.uploadAfterSuspendMs);
    this.#buildAhead(t);
  }

  async putBootSet(project: ProjectUid, timeline: TimelineId, body: Buffer): Promise<void> {
    const attached = await this.#table.use(project, timeline);
    const blocks = decodeBootSet(body);
    await attached.timeline.storage.putObject(
      'bootset',
      (name, key) => sealObject(BOOT_OBJECT_MAGIC, { project, timeline, name }, encodeBootSet(blocks), key),
      (bootSet) => ({ bootSet }),
    );
    attached.bootSet = blocks;
    this.#table.bundles.forget(timeline);
  }

  /** The next thing to happen to a suspended timeline is a start from here. */
  #buildAhead(t: Timeline): void {
    setImmediate(() => {
      this.bundle(t, t.lastRecordLsn, 1).catch((error: unknown) =>
        t.log.warn({ err: errorMessage(error) }, 'the next start bundle cannot be built ahead'),
      );
    });
  }
}
