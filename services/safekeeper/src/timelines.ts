/** All timelines of this member: opening at start, creating, rebuilding after a loss, deleting, and the receiver of each.
 *  Invariant: "no such timeline here" is never taken for "an empty timeline": where a peer has elected, a timeline that is missing here was
 *  lost, and starts as a rebuilt member that does not vote (docs/protocols/election.md). A timeline whose project's key may not be used is
 *  locked: neither lost nor open, nothing of it in memory, and opened again by itself. */
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  type CreateWalTimeline,
  type PeerAddress,
  type PeerStatus,
  SafekeeperClient,
  type SubscribeRequest,
  type WalTimelineStatus,
  internalToken,
} from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue, errorMessage, sleep, withDeadline } from '@lakebase/base';
import { decodeDekReference } from '@lakebase/envelope';
import {
  type ProjectUid,
  type Term,
  type TimelineId,
  WAL_SEGMENT_BYTES,
  formatLsn,
  lsn,
  parseLsn,
  parseProjectUid,
  parseTerm,
  parseTimelineId,
} from '@lakebase/ids';
import type { ObjectStore } from '@lakebase/object-store';
import type { StandbyStatus } from '@lakebase/pg-wire';
import { KeyReEncryption, KeyRotation, type ReEncryptionCount, type ServiceKeys, forgetGarbage } from '@lakebase/service-kit';
import { type ControlFile, type Elected, type MemberPosition, historyFromJson, historyUpTo, mayStream } from '@lakebase/wal-quorum';
import { isWithoutKey, rewrapStored } from '@lakebase/wal-store';
import { type AdoptionOptions, adopt, adoptFromPeers } from './adoption.ts';
import { ComputeReceiver } from './compute-receiver.ts';
import type { SafekeeperConfig } from './config.ts';
import { controlPath, syncDir } from './control-store.ts';
import { HoleRepair } from './hole-repair.ts';
import { type TimelineOptions, WalTimeline } from './wal-timeline.ts';

export interface TimelinesOptions {
  readonly config: SafekeeperConfig;
  readonly secret: string;
  readonly log: Logger;
  readonly keys: ServiceKeys;
  /** Ends the streams of a project's readers. */
  readonly onLock: (project: string) => void;
  readonly onMoved: (timeline: WalTimeline) => void;
  readonly onFlush: (seconds: number, bytes: number) => void;
  readonly mayGrow?: () => void;
  readonly disk?: () => { readonly pressure: number; readonly slowDisk: boolean };
  readonly objectStore?: ObjectStore;
}

const OPEN_AGAIN_MS = 1_000;
const PEER_ANSWER_MS = 2_000;
const keyOf = (project: string, timeline: string): string => `${project}/${timeline}`;

export class Timelines {
  readonly #options: TimelinesOptions;
  readonly #peers: readonly { readonly address: PeerAddress; readonly client: SafekeeperClient }[];
  readonly #open = new Map<string, WalTimeline>();
  /** Timelines whose control file cannot be used, with the reason. */
  readonly #broken = new Map<string, LakebaseError>();
  /** Timelines of projects whose key may not be used, with the reason. */
  readonly #locked = new Map<string, LakebaseError>();
  /** Who fed them: subscribed again when they are open again. */
  readonly #interrupted = new Map<string, SubscribeRequest>();
  readonly #rotation: KeyRotation;
  readonly #reEncryption: KeyReEncryption;
  #closed = false;
  readonly #positions = new Map<string, Map<string, MemberPosition>>();
  readonly #receivers = new Map<WalTimeline, ComputeReceiver>();
  readonly #unknownSince = new Map<string, number>();
  readonly #creations = new SerialQueue();
  readonly #holes: HoleRepair;

  constructor(options: TimelinesOptions) {
    this.#options = options;
    const token = internalToken(options.secret, 'service');
    this.#peers = options.config.peers.map((address) => ({ address, client: new SafekeeperClient({ baseUrl: address.httpUrl, token }) }));
    const { keys, log, secret } = options;
    this.#holes = new HoleRepair({ secret, log, peers: () => options.config.peers });
    this.#rotation = new KeyRotation({ ...keys, log, rewrap: (project, version) => this.#rewrap(project, version) });
    this.#reEncryption = new KeyReEncryption({
      source: keys.source,
      report: keys.reportReEncryption,
      log,
      run: (project, below, progress, signal) => this.#reEncrypt(project, below, progress, signal),
    });
    keys.source.onChange((project, usable, reason) => (usable ? this.#unlock(project) : this.#lock(project, reason)));
  }

  /** Opens everything on disk. */
  async open(): Promise<void> {
    const { dataDir } = this.#options.config;
    mkdirSync(dataDir, { recursive: true, mode: 0o700 });
    for (const project of readdirSync(dataDir)) {
      if (!isId(project)) continue;
      for (const timeline of readdirSync(join(dataDir, project)))
        if (isId(timeline)) await this.#creations.run(() => this.#openFromDisk(project as ProjectUid, timeline as TimelineId));
    }
    this.#rotation.start();
    this.#reEncryption.start();
  }

  *[Symbol.iterator](): Iterator<WalTimeline> {
    yield* this.#open.values();
  }
  get size(): number {
    return this.#open.size;
  }
  get lockedCount(): number {
    return this.#locked.size;
  }
  get brokenCount(): number {
    return this.#broken.size;
  }

  /** Those that are not open, by `project/timeline`, with the reason. */
  *unusable(): Generator<{ readonly name: string; readonly error: LakebaseError }> {
    for (const [name, error] of [...this.#locked, ...this.#broken]) yield { name, error };
  }

  get(project: ProjectUid, timeline: TimelineId): WalTimeline {
    const key = keyOf(project, timeline);
    const found = this.#open.get(key);
    if (found !== undefined) return found;
    const broken = this.#locked.get(key) ?? this.#broken.get(key);
    throw broken ?? new LakebaseError('NOT_FOUND', `no timeline ${timeline} of project ${project} on this safekeeper`);
  }

  #dir(project: ProjectUid, timeline: TimelineId): string {
    return join(this.#options.config.dataDir, project, timeline);
  }

  #timelineOptions(project: ProjectUid): TimelineOptions {
    const { config, keys, log, onFlush, mayGrow, disk } = this.#options;
    return {
      memberId: config.id,
      memberCount: config.peers.length + 1,
      memberIds: [config.id, ...config.peers.map((p) => p.id)],
      ringBytes: config.ringBytes,
      ...(this.#options.objectStore === undefined ? {} : { objectStore: this.#options.objectStore }),
      keys: keys.source.project(project),
      log,
      onFlush,
      onHole: (timeline) => this.#holes.touch(timeline),
      ...(mayGrow === undefined ? {} : { mayGrow }),
      ...(disk === undefined ? {} : { disk }),
    };
  }

  get #adoption(): AdoptionOptions {
    return { secret: this.#options.secret, rebuildDelayMs: this.#options.config.rebuildDelayMs, log: this.#options.log };
  }

  async #openFromDisk(project: ProjectUid, timeline: TimelineId): Promise<void> {
    const key = keyOf(project, timeline);
    const dir = this.#dir(project, timeline);
    // A creation that crashed before its control file was there never happened.
    if (!existsSync(controlPath(dir))) {
      if (!existsSync(join(dir, 'wal'))) return rmSync(dir, { recursive: true, force: true });
    }
    const options = this.#timelineOptions(project);
    if (options.keys.locked !== undefined) return void this.#locked.set(key, options.keys.locked);
    try {
      const opened = await WalTimeline.open(dir, options);
      this.#locked.delete(key);
      this.#add(opened);
      // The key may have gone meanwhile.
      const { locked } = this.#options.keys.source.project(project);
      if (locked !== undefined) return this.#lock(project, locked.message);
      this.#rotation.check(project);
    } catch (error) {
      if (isWithoutKey(error)) {
        this.#locked.set(key, error as LakebaseError);
        if (options.keys.usable) setTimeout(() => this.#unlock(project), OPEN_AGAIN_MS).unref();
        return this.#options.log.warn({ timeline, err: errorMessage(error) }, 'the timeline cannot be opened without its keys');
      }
      this.#locked.delete(key);
      const cause =
        error instanceof LakebaseError
          ? error
          : new LakebaseError('CORRUPT', `${controlPath(dir)}: ${errorMessage(error)}; restore this member from its peers`);
      this.#options.log.error({ timeline, err: cause.message }, 'timeline cannot be opened');
      this.#broken.set(key, cause);
    }
  }

  #add(timeline: WalTimeline): WalTimeline {
    const key = keyOf(timeline.project, timeline.timeline);
    this.#open.set(key, timeline);
    this.#unknownSince.delete(key);
    const positions = this.#positions.get(key);
    if (positions !== undefined) timeline.setPeers(positions);
    timeline.onMoved(() => {
      this.#trim(timeline);
      this.#options.onMoved(timeline);
    });
    this.#options.onMoved(timeline);
    this.#holes.touch(timeline);
    return timeline;
  }

  // --- creation and deletion -----------------------------------------------------------------------------------------------

  create(project: ProjectUid, timeline: TimelineId, request: CreateWalTimeline): Promise<WalTimelineStatus> {
    return this.#creations.run(async () => {
      const existing = this.#open.get(keyOf(project, timeline));
      if (existing !== undefined) {
        const c = existing.control;
        if (c.systemId.toString() !== request.systemId || formatLsn(c.startLsn) !== formatLsn(parseLsn(request.startLsn)))
          throw new LakebaseError('ALREADY_EXISTS', `timeline ${timeline} exists with another system identifier or start LSN`);
        return existing.status();
      }
      const key = keyOf(project, timeline);
      const broken = this.#locked.get(key) ?? this.#broken.get(key);
      if (broken !== undefined) throw broken;
      const startLsn = parseLsn(request.startLsn);
      const control: ControlFile = {
        project,
        timeline,
        systemId: BigInt(request.systemId),
        pgVersion: request.pgVersion,
        term: 0 as Term,
        history: [],
        startLsn,
        prevRecordLsn: parseLsn(request.prevRecordLsn),
        commitLsn: startLsn,
        flushHint: startLsn,
        damage: null,
        membership: null,
        offloadedLsn: startLsn,
        pagesLsn: startLsn,
      };
      const known = (await this.#askPeers(project, timeline)).filter((s) => s.term > 0);
      rmSync(this.#tombstone(project, timeline), { force: true });
      return (await (known.length > 0 ? this.#rebuilt(project, timeline, known) : this.#make(control))).status();
    });
  }

  async #make(control: ControlFile): Promise<WalTimeline> {
    const options = this.#timelineOptions(control.project);
    await options.keys.ready();
    const dir = this.#dir(control.project, control.timeline);
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    syncDir(join(dir, '..'));
    syncDir(this.#options.config.dataDir);
    this.#options.log.info(
      { project: control.project, timeline: control.timeline, startLsn: formatLsn(control.startLsn) },
      'timeline created',
    );
    return this.#add(await WalTimeline.create(dir, control, options));
  }

  async #askPeers(project: ProjectUid, timeline: TimelineId): Promise<WalTimelineStatus[]> {
    const answers = await Promise.allSettled(
      this.#peers.map(({ client, address }) => withDeadline(client.status(project, timeline), PEER_ANSWER_MS, address.id)),
    );
    return answers.filter((a) => a.status === 'fulfilled').map((a) => a.value);
  }

  /** Starts again what this member had lost: it knows nothing of its promises and does not vote until it has joined a new term. */
  #rebuilt(project: ProjectUid, timeline: TimelineId, known: readonly WalTimelineStatus[]): Promise<WalTimeline> {
    const best = known.reduce((a, b) => (parseLsn(b.flushRecordLsn) > parseLsn(a.flushRecordLsn) ? b : a));
    const term = parseTerm(Math.max(...known.map((s) => s.term)));
    const startLsn = parseLsn(best.startLsn);
    this.#options.log.warn({ project, timeline, term }, 'timeline was lost here and is being rebuilt from its peers');
    return this.#make({
      project,
      timeline,
      systemId: BigInt(best.systemId),
      pgVersion: best.pgVersion,
      term,
      history: historyUpTo(historyFromJson(best.termHistory), startLsn),
      startLsn,
      prevRecordLsn: parseLsn(best.prevRecordLsn),
      commitLsn: startLsn,
      flushHint: startLsn,
      damage: { kind: 'rebuilt', term, reason: `the data of this timeline was lost on ${this.#options.config.id}` },
      membership: null,
      offloadedLsn: startLsn,
      pagesLsn: startLsn,
    });
  }

  #tombstone(project: ProjectUid, timeline: TimelineId): string {
    return `${this.#dir(project, timeline)}.deleted`;
  }

  async remove(project: ProjectUid, timeline: TimelineId): Promise<void> {
    await this.#creations.run(async () => {
      const key = keyOf(project, timeline);
      const open = this.#open.get(key);
      mkdirSync(join(this.#options.config.dataDir, project), { recursive: true, mode: 0o700 });
      writeFileSync(this.#tombstone(project, timeline), '');
      for (const dir of this.#unusableDirs(project, timeline)) rmSync(dir, { recursive: true, force: true });
      this.#open.delete(key);
      this.#broken.delete(key);
      this.#locked.delete(key);
      this.#interrupted.delete(key);
      this.#positions.delete(key);
      if (open === undefined) return rmSync(this.#dir(project, timeline), { recursive: true, force: true });
      await this.#receivers.get(open)?.stop();
      this.#receivers.delete(open);
      await open.destroy();
    });
  }

  // --- terms ---------------------------------------------------------------------------------------------------------------

  async elected(timeline: WalTimeline, request: Elected, donor: PeerAddress): Promise<void> {
    await adopt(timeline, request, donor, this.#adoption);
  }

  subscribe(timeline: WalTimeline, request: SubscribeRequest): Promise<WalTimelineStatus> {
    return timeline.subscriptions.run(() => this.#subscribe(timeline, request));
  }

  async #subscribe(timeline: WalTimeline, request: SubscribeRequest): Promise<WalTimelineStatus> {
    const term = parseTerm(request.term);
    if (timeline.term > term) throw new LakebaseError('FENCED', `term ${timeline.term} is newer than ${term}`);
    if (!mayStream(timeline.state, term, timeline.configuration.generation))
      await adoptFromPeers(timeline, term, this.#peers, this.#adoption);
    const running = this.#receivers.get(timeline);
    if (running !== undefined && !running.stopped && JSON.stringify(running.request) === JSON.stringify(request)) return timeline.status();
    await running?.stop();
    if (timeline.term > term) throw new LakebaseError('FENCED', `term ${timeline.term} is newer than ${term}`);
    const receiver = new ComputeReceiver(timeline, request, {
      secret: this.#options.secret,
      peers: this.#options.config.peers,
      log: this.#options.log,
    });
    this.#receivers.set(timeline, receiver);
    receiver.start();
    return timeline.status();
  }

  // --- peers ---------------------------------------------------------------------------------------------------------------

  onPeerStatus(peerId: string, status: PeerStatus, position: MemberPosition): void {
    const key = keyOf(status.project, status.timeline);
    const timeline = this.#open.get(key);
    if (timeline === undefined && existsSync(this.#tombstone(status.project, status.timeline))) return;
    let positions = this.#positions.get(key);
    if (positions === undefined) this.#positions.set(key, (positions = new Map()));
    positions.set(peerId, position);
    if (timeline !== undefined) {
      timeline.setPeers(positions);
      if (status.offloadedLsn !== undefined) timeline.noteOffloaded(parseLsn(status.offloadedLsn));
      if (status.tailLsn !== undefined) timeline.noteTail(parseLsn(status.tailLsn));
      if (status.pagesLsn !== undefined) timeline.notePages(parseLsn(status.pagesLsn));
    } else if (this.#locked.has(key)) return;
    else if (position.term > 0) this.#unknown(status.project, status.timeline);
  }

  /** A peer has elected on a timeline that is not here. */
  #unknown(project: ProjectUid, timeline: TimelineId): void {
    const key = keyOf(project, timeline);
    if (this.#unknownSince.has(key)) return;
    this.#unknownSince.set(key, performance.now());
    setTimeout(() => {
      if (!this.#unknownSince.delete(key) || this.#open.has(key) || this.#locked.has(key)) return;
      this.#creations
        .run(async () => {
          if (this.#open.has(key) || this.#locked.has(key) || existsSync(this.#tombstone(project, timeline))) return;
          // Before anything is moved aside: without keys nothing can take its place.
          await this.#timelineOptions(project).keys.ready();
          const known = (await this.#askPeers(project, timeline)).filter((s) => s.term > 0);
          if (known.length === 0) return;
          const dir = this.#dir(project, timeline);
          if (existsSync(dir)) renameSync(dir, `${dir}.unusable-${Date.now()}`);
          this.#broken.delete(key);
          await this.#rebuilt(project, timeline, known);
        })
        .catch((error: unknown) => {
          if (!isWithoutKey(error)) this.#options.log.warn({ timeline, err: errorMessage(error) }, 'cannot rebuild a lost timeline');
        });
    }, this.#options.config.lostAfterMs).unref();
  }

  /** The pageserver has made pages durable up to here. The others hear it from this member. */
  onPageserverStatus(timeline: WalTimeline, status: StandbyStatus): void {
    timeline.notePages(lsn(status.apply > 0 ? Math.min(status.flush, status.apply) : status.flush));
  }

  /** The disk fills: what may go, goes now. */
  trimAll(): void {
    for (const timeline of this.#open.values()) this.#trim(timeline);
  }
  get diskBytes(): number {
    let bytes = 0;
    for (const timeline of this.#open.values()) bytes += timeline.diskBytes;
    return bytes;
  }

  /** WAL that the pageserver has done with may go once it is in the object store; without one, once every peer has it too. */
  #trim(timeline: WalTimeline): void {
    const { trimAfterBytes, peers } = this.#options.config;
    if (trimAfterBytes === 0) return;
    let kept: number;
    // The segment before stays as well, so that whoever copies from here finds a record to begin at that the object store has.
    if (timeline.archive !== undefined) kept = timeline.offloadedLsn - WAL_SEGMENT_BYTES;
    else if (timeline.peers.size < peers.length) return;
    else kept = Math.min(timeline.state.commitLsn, ...[...timeline.peers.values()].map((p) => p.flushRecordLsn));
    // What is kept for convenience goes first when the disk fills.
    const keep = timeline.archive !== undefined && (this.#options.disk?.().pressure ?? 0) > 0 ? 0 : trimAfterBytes;
    const before = Math.min(timeline.pagesLsn - keep, kept);
    if (before - timeline.firstLsn >= WAL_SEGMENT_BYTES) timeline.trim(lsn(before));
  }

  // --- keys ----------------------------------------------------------------------------------------------------------------

  #lock(project: string, reason: string): void {
    const error = this.#options.keys.source.project(project).locked ?? new LakebaseError('KEY_REVOKED', reason);
    for (const key of this.#locked.keys()) if (key.startsWith(`${project}/`)) this.#locked.set(key, error);
    const ended: Promise<unknown>[] = [];
    for (const timeline of [...this.#open.values()].filter((t) => t.project === project)) {
      const key = keyOf(project, timeline.timeline);
      this.#open.delete(key);
      this.#locked.set(key, error);
      const receiver = this.#receivers.get(timeline);
      this.#receivers.delete(timeline);
      if (receiver !== undefined && !receiver.stopped) this.#interrupted.set(key, receiver.request);
      ended.push(timeline.lock(error));
      if (receiver !== undefined) ended.push(receiver.stop());
    }
    this.#options.onLock(project);
    this.#options.log.warn({ project, reason, timelines: ended.length }, 'project locked');
    void Promise.allSettled(ended)
      .then(() => forgetGarbage())
      .catch((cause: unknown) =>
        this.#options.log.error({ project, err: errorMessage(cause) }, 'memory of a locked project was not cleaned up'),
      );
  }

  #unlock(project: string): void {
    for (const key of this.#locked.keys()) {
      const [uid, id] = key.split('/') as [ProjectUid, TimelineId];
      if (uid !== project) continue;
      void this.#creations
        .run(async () => {
          if (this.#closed || !this.#locked.has(key)) return;
          await this.#openFromDisk(uid, id);
          const timeline = this.#open.get(key);
          const request = this.#interrupted.get(key);
          if (timeline === undefined || request === undefined) return;
          this.#interrupted.delete(key);
          await this.subscribe(timeline, request);
        })
        .catch((error: unknown) =>
          this.#options.log.info({ project, timeline: id, err: errorMessage(error) }, 'the compute is not followed again'),
        );
    }
    this.#rotation.check(project);
  }

  /** Every reference of the project here. Rejects while one cannot be reached. */
  async #rewrap(project: string, kekVersion: number): Promise<number> {
    // A timeline that is being made has taken its key already.
    await this.#creations.run(async () => {});
    for (const key of [...this.#locked.keys(), ...this.#broken.keys()])
      if (key.startsWith(`${project}/`)) throw new LakebaseError('UNAVAILABLE', `timeline ${key} is not open`);
    const isOld = (reference: Buffer): boolean => decodeDekReference(reference).kekVersion < kekVersion;
    let references = 0;
    for (const timeline of [...this.#open.values()].filter((t) => t.project === project))
      references += await timeline.rewrap(kekVersion, isOld);
    return references + (await this.#rewrapUnusable(project, isOld));
  }

  /** What was set aside whole keeps its keys: a person may still want to look at it. */
  async #rewrapUnusable(project: string, isOld: (reference: Buffer) => boolean): Promise<number> {
    const keys = this.#options.keys.source.project(project);
    let references = 0;
    for (const dir of this.#unusableDirs(project))
      references += await rewrapStored(join(dir, 'wal'), this.#options.log, isOld, (list) => keys.rewrap(list));
    return references;
  }
  /** Directories that a rebuilding of their timeline moved aside. */
  #unusableDirs(project: string, timeline = ''): string[] {
    const dir = join(this.#options.config.dataDir, project);
    if (!existsSync(dir)) return [];
    return readdirSync(dir)
      .filter((name) => /\.unusable-\d+$/.test(name) && name.startsWith(timeline))
      .map((name) => join(dir, name));
  }

  /** Every segment and object of the project here whose data key was made under an older KEK, at a bounded rate. */
  async #reEncrypt(
    project: string,
    below: number,
    progress: (count: ReEncryptionCount) => void,
    signal: AbortSignal,
  ): Promise<ReEncryptionCount> {
    await this.#creations.run(async () => {});
    for (const key of [...this.#locked.keys(), ...this.#broken.keys()])
      if (key.startsWith(`${project}/`)) throw new LakebaseError('UNAVAILABLE', `timeline ${key} is not open`);
    const isOld = (reference: Buffer): boolean => decodeDekReference(reference).kekVersion < below;
    let count: ReEncryptionCount = { done: 0, total: 0, bytes: 0 };
    const wrote = async (bytes: number, left: number): Promise<void> => {
      signal.throwIfAborted();
      const done = count.done + (bytes > 0 ? 1 : 0);
      count = { done, total: done + left, bytes: count.bytes + bytes };
      progress(count);
      await sleep((bytes / this.#options.config.reEncryptBytesPerSecond) * 1_000, signal);
    };
    for (const timeline of [...this.#open.values()].filter((t) => t.project === project)) await timeline.reEncrypt(isOld, wrote);
    return { ...count, total: count.done };
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#reEncryption.close();
    await this.#rotation.close();
    this.#unknownSince.clear();
    await Promise.all([...this.#receivers.values()].map((receiver) => receiver.stop()));
    await Promise.all([...this.#open.values()].map((timeline) => timeline.close()));
    this.#open.clear();
  }
}

function isId(name: string): boolean {
  try {
    parseTimelineId(name);
    return parseProjectUid(name) !== undefined;
  } catch {
    return false;
  }
}
