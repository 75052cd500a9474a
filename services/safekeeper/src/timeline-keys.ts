/** What becomes of this member's timelines when a project's key goes, comes back, or gets another version (docs/flows/key-path.md).
 *  Invariant: from the moment a key is lost nothing of the project is served or taken, and soon nothing of it is in memory; its timelines open again by
 *  themselves, and whoever fed them is followed again. */
import type { SubscribeRequest, WalTimelineStatus } from '@lakebase/api';
import { LakebaseError, type Logger, type SerialQueue, errorMessage, sleep } from '@lakebase/base';
import { decodeDekReference } from '@lakebase/envelope';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { KeyUpkeep, type ReEncryptionCount, type ServiceKeys, forgetGarbage } from '@lakebase/service-kit';
import { rewrapStored } from '@lakebase/wal-store';
import { join } from 'node:path';
import type { ComputeReceiver } from './compute-receiver.ts';
import type { WalTimeline } from './wal-timeline.ts';

export const keyOf = (project: string, timeline: string): string => `${project}/${timeline}`;

/** The timelines, as keys change what they are. */
export interface KeyedTimelines {
  readonly open: Map<string, WalTimeline>;
  /** Timelines whose control file cannot be used, with the reason. */
  readonly broken: Map<string, LakebaseError>;
  /** Timelines of projects whose key may not be used, with the reason. */
  readonly locked: Map<string, LakebaseError>;
  /** Who fed them: subscribed again when they are open again. */
  readonly interrupted: Map<string, SubscribeRequest>;
  readonly receivers: Map<WalTimeline, ComputeReceiver>;
  /** Creations, openings and removals, one at a time. */
  readonly creations: SerialQueue;
  readonly closed: boolean;
  openFromDisk(project: ProjectUid, timeline: TimelineId): Promise<void>;
  subscribe(timeline: WalTimeline, request: SubscribeRequest): Promise<WalTimelineStatus>;
  unusableDirs(project: string): string[];
  /** Ends the streams of a project's readers. */
  onLock(project: string): void;
}

export class TimelineKeys {
  readonly #t: KeyedTimelines;
  readonly #keys: ServiceKeys;
  readonly #log: Logger;
  readonly #bytesPerSecond: number;
  readonly #upkeep: KeyUpkeep;

  constructor(timelines: KeyedTimelines, keys: ServiceKeys, log: Logger, reEncryptBytesPerSecond: number) {
    this.#t = timelines;
    this.#keys = keys;
    this.#log = log;
    this.#bytesPerSecond = reEncryptBytesPerSecond;
    this.#upkeep = new KeyUpkeep(keys, log, {
      rewrap: (project, version) => this.#rewrap(project, version),
      reEncrypt: (project, below, progress, signal) => this.#reEncrypt(project, below, progress, signal),
    });
    keys.source.onChange((project, usable, reason) => (usable ? this.unlock(project) : this.lock(project, reason)));
  }

  start(): void {
    this.#upkeep.start();
  }
  close(): Promise<void> {
    return this.#upkeep.close();
  }
  /** A timeline has been opened: what it holds may be of an older version. */
  check(project: string): void {
    this.#upkeep.check(project);
  }

  lock(project: string, reason: string): void {
    const error = this.#keys.source.project(project).locked ?? new LakebaseError('KEY_REVOKED', reason);
    for (const key of this.#t.locked.keys()) if (key.startsWith(`${project}/`)) this.#t.locked.set(key, error);
    const ended: Promise<unknown>[] = [];
    for (const timeline of [...this.#t.open.values()].filter((t) => t.project === project)) {
      const key = keyOf(project, timeline.timeline);
      this.#t.open.delete(key);
      this.#t.locked.set(key, error);
      const receiver = this.#t.receivers.get(timeline);
      this.#t.receivers.delete(timeline);
      if (receiver !== undefined && !receiver.stopped) this.#t.interrupted.set(key, receiver.request);
      ended.push(timeline.lock(error));
      if (receiver !== undefined) ended.push(receiver.stop());
    }
    this.#t.onLock(project);
    this.#log.warn({ project, reason, timelines: ended.length }, 'project locked');
    void Promise.allSettled(ended)
      .then(() => forgetGarbage())
      .catch((cause: unknown) => this.#log.error({ project, err: errorMessage(cause) }, 'memory of a locked project was not cleaned up'));
  }

  unlock(project: string): void {
    for (const key of this.#t.locked.keys()) {
      const [uid, id] = key.split('/') as [ProjectUid, TimelineId];
      if (uid !== project) continue;
      void this.#t.creations
        .run(async () => {
          if (this.#t.closed || !this.#t.locked.has(key)) return;
          await this.#t.openFromDisk(uid, id);
          const timeline = this.#t.open.get(key);
          const request = this.#t.interrupted.get(key);
          if (timeline === undefined || request === undefined) return;
          this.#t.interrupted.delete(key);
          await this.#t.subscribe(timeline, request);
        })
        .catch((error: unknown) =>
          this.#log.info({ project, timeline: id, err: errorMessage(error) }, 'the compute is not followed again'),
        );
    }
    this.#upkeep.check(project);
  }

  /** Every reference of the project here. Rejects while one cannot be reached. */
  async #rewrap(project: string, kekVersion: number): Promise<number> {
    // A timeline that is being made has taken its key already.
    await this.#t.creations.run(async () => {});
    for (const key of [...this.#t.locked.keys(), ...this.#t.broken.keys()])
      if (key.startsWith(`${project}/`)) throw new LakebaseError('UNAVAILABLE', `timeline ${key} is not open`);
    const isOld = (reference: Buffer): boolean => decodeDekReference(reference).kekVersion < kekVersion;
    let references = 0;
    for (const timeline of [...this.#t.open.values()].filter((t) => t.project === project))
      references += await timeline.rewrap(kekVersion, isOld);
    return references + (await this.#rewrapUnusable(project, isOld));
  }

  /** What was set aside whole keeps its keys: a person may still want to look at it. */
  async #rewrapUnusable(project: string, isOld: (reference: Buffer) => boolean): Promise<number> {
    const keys = this.#keys.source.project(project);
    let references = 0;
    for (const dir of this.#t.unusableDirs(project))
      references += await rewrapStored(join(dir, 'wal'), this.#log, isOld, (list) => keys.rewrap(list));
    return references;
  }

  /** Every segment and object of the project here whose data key was made under an older KEK, at a bounded rate. */
  async #reEncrypt(
    project: string,
    below: number,
    progress: (count: ReEncryptionCount) => void,
    signal: AbortSignal,
  ): Promise<ReEncryptionCount> {
    await this.#t.creations.run(async () => {});
    for (const key of [...this.#t.locked.keys(), ...this.#t.broken.keys()])
      if (key.startsWith(`${project}/`)) throw new LakebaseError('UNAVAILABLE', `timeline ${key} is not open`);
    const isOld = (reference: Buffer): boolean => decodeDekReference(reference).kekVersion < below;
    let count: ReEncryptionCount = { done: 0, total: 0, bytes: 0 };
    const wrote = async (bytes: number, left: number): Promise<void> => {
      signal.throwIfAborted();
      const done = count.done + (bytes > 0 ? 1 : 0);
      count = { done, total: done + left, bytes: count.bytes + bytes };
      progress(count);
      await sleep((bytes / this.#bytesPerSecond) * 1_000, signal);
    };
    for (const timeline of [...this.#t.open.values()].filter((t) => t.project === project)) await timeline.reEncrypt(isOld, wrote);
    return { ...count, total: count.done };
  }
}
