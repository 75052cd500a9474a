/** What becomes of this pageserver's timelines when a project's key goes, comes back, or gets another version (docs/flows/key-path.md).
 *  Invariant: from the moment a project's key is lost nothing of it is answered, and soon nothing of it is in memory; it comes back by itself. */
import { LakebaseError, type Logger } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { KeyUpkeep, type ReEncryptionCount, type ServiceKeys } from '@lakebase/service-kit';
import { forgetLockedProject } from './locked-memory.ts';
import { reEncrypt } from './re-encryption.ts';
import { TEMPLATE_ID } from './template.ts';
import type { Templates } from './templates.ts';
import { isAttached, isIdle, isLocked } from './timeline-entry.ts';
import type { TimelineTable } from './timeline-table.ts';

const ATTACH_AGAIN_MS = 1_000;

export class TimelineKeys {
  readonly #table: TimelineTable;
  readonly #templates: Templates;
  readonly #keys: ServiceKeys;
  readonly #log: Logger;
  readonly #upkeep: KeyUpkeep;

  constructor(table: TimelineTable, templates: Templates, keys: ServiceKeys) {
    const { log } = table.context;
    this.#table = table;
    this.#templates = templates;
    this.#keys = keys;
    this.#log = log;
    this.#upkeep = new KeyUpkeep(keys, log, {
      rewrap: (project, version) => this.#rewrap(project, version),
      reEncrypt: (project, below, progress, signal) => this.#reEncrypt(project as ProjectUid, below, progress, signal),
    });
    keys.source.onChange((project, usable, reason) => (usable ? this.#unlock(project) : this.#lock(project, reason)));
    table.onAttached = (project) => this.#upkeep.check(project);
    table.onUnavailable = (project) => void setTimeout(() => this.#unlock(project), ATTACH_AGAIN_MS).unref();
  }

  start(): void {
    this.#upkeep.start();
  }
  close(): Promise<void> {
    return this.#upkeep.close();
  }

  #lock(project: string, reason: string): void {
    const error = this.#keys.source.project(project).locked ?? new LakebaseError('KEY_REVOKED', reason);
    const ended: Promise<unknown>[] = [];
    // First nobody gets anything any more, then what is in memory goes.
    const affected = this.#table.of(project);
    for (const [name, entry] of affected) if (isAttached(entry) || isLocked(entry)) this.#table.put(name, { locked: error });
    this.#table.onEnd(project, error);
    for (const [name, entry] of affected) if (isAttached(entry)) ended.push(this.#table.queued(name, () => this.#table.end(entry, error)));
    // A worker may hold what an earlier job of the project left behind.
    ended.push(this.#table.context.compactor.forget(project, error), this.#table.context.flusher.forget(project, error));
    this.#log.warn({ project, reason, timelines: affected.length }, 'project locked');
    forgetLockedProject(project, ended, this.#log);
  }

  #unlock(project: string): void {
    for (const [name, entry] of this.#table.of(project)) {
      if (!isLocked(entry)) continue;
      const [uid, timeline] = name.split('/') as [ProjectUid, TimelineId];
      void this.#table.queued(name, async () => {
        if (isLocked(this.#table.get(name)) && !this.#table.closed) await this.#table.attachLocal(uid, timeline);
      });
    }
    this.#upkeep.check(project);
  }

  /** Every reference of the project here and in the store. Rejects while one cannot be reached. */
  async #rewrap(project: string, kekVersion: number): Promise<number> {
    await this.#table.created(project);
    if (project === TEMPLATE_ID) return this.#templates.rewrap(kekVersion);
    let references = 0;
    const uid = project as ProjectUid;
    for (const timeline of await this.#table.timelinesOf(uid)) {
      const entry = this.#table.entry(project, timeline);
      if (isIdle(entry) && entry.idle.kekVersion >= kekVersion) continue;
      const { timeline: t, uploader } = await this.#table.use(uid, timeline);
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
    await this.#table.created(project);
    let sum: ReEncryptionCount = { done: 0, total: 0, bytes: 0 };
    for (const timeline of await this.#table.timelinesOf(project)) {
      const { timeline: t, uploader } = await this.#table.use(project, timeline);
      const before = sum;
      const add = (c: ReEncryptionCount): ReEncryptionCount =>
        (sum = { done: before.done + c.done, total: before.done + c.total, bytes: before.bytes + c.bytes });
      const bytesPerSecond = this.#table.context.config.reEncryptBytesPerSecond;
      add(await reEncrypt([t.storage], { below, bytesPerSecond, progress: (c) => progress(add(c)), signal }));
      await uploader?.flush();
    }
    return sum;
  }
}
