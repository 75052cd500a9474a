/** All timelines of this member: opening at start, creating, replacing, deleting, and the receiver of each.
 *  Invariant: "no such timeline here" is never taken for "an empty timeline": a timeline that was here and is missing was
 *  lost, and is never made again as the member it was: the Manager puts a new member in its place (docs/protocols/membership.md). A timeline whose project's key may not be used is
 *  locked: neither lost nor open, nothing of it in memory, and opened again by itself. */
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  type ArchiveEnd,
  type ArchiveEndRequest,
  type ConfigureRequest,
  type CreateWalTimeline,
  type PeerAddress,
  type PeerStatus,
  SafekeeperClient,
  type SafekeeperNode,
  type SubscribeRequest,
  type WalConfiguration,
  type WalTimelineStatus,
  internalToken,
} from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue, errorMessage } from '@lakebase/base';
import {
  type ProjectUid,
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
import type { ServiceKeys } from '@lakebase/service-kit';
import {
  type ControlFile,
  type Elected,
  type MemberPosition,
  configurationFromJson,
  describeConfiguration,
  lineagesOf,
  mayStream,
  votersOf,
} from '@lakebase/wal-quorum';
import { isWithoutKey } from '@lakebase/wal-store';
import { type AdoptionOptions, adopt, adoptFromPeers, catchUp } from './adoption.ts';
import { archiveEnd } from './archive-end.ts';
import { ComputeReceiver } from './compute-receiver.ts';
import type { SafekeeperConfig } from './config.ts';
import { controlPath, syncDir } from './control-store.ts';
import { HoleRepair } from './hole-repair.ts';
import { DiskIdentity } from './disk-identity.ts';
import { NewMembers } from './new-members.ts';
import type { NodeBook } from './node-book.ts';
import { findObjects, removeObjects } from './object-removal.ts';
import { type KeyedTimelines, TimelineKeys, keyOf } from './timeline-keys.ts';
import { type TimelineOptions, WalTimeline } from './wal-timeline.ts';

export interface TimelinesOptions {
  readonly config: SafekeeperConfig;
  readonly secret: string;
  readonly log: Logger;
  readonly keys: ServiceKeys;
  readonly nodes: NodeBook;
  /** Ends the streams of a project's readers. */
  readonly onLock: (project: string) => void;
  readonly onMoved: (timeline: WalTimeline) => void;
  readonly onFlush: (seconds: number, bytes: number) => void;
  readonly mayGrow?: () => void;
  readonly disk?: () => { readonly pressure: number; readonly slowDisk: boolean };
  readonly objectStore?: ObjectStore;
}

const OPEN_AGAIN_MS = 1_000;

export class Timelines {
  readonly #options: TimelinesOptions;
  readonly #nodes: NodeBook;
  readonly #identity: DiskIdentity;
  readonly #newMembers: NewMembers;
  readonly #open = new Map<string, WalTimeline>();
  /** Timelines whose control file cannot be used, with the reason. */
  readonly #broken = new Map<string, LakebaseError>();
  /** Timelines of projects whose key may not be used, with the reason. */
  readonly #locked = new Map<string, LakebaseError>();
  /** Who fed them: subscribed again when they are open again. */
  readonly #interrupted = new Map<string, SubscribeRequest>();
  readonly #keys: TimelineKeys;
  /** No compute is followed any more, and no WAL removed. */
  #stopping = false;
  #closed = false;
  /** Timelines that are noted and not there yet. */
  readonly #making = new Set<string>();
  /** Timelines are still being opened. */
  #busy = true;
  readonly #positions = new Map<string, Map<string, MemberPosition>>();
  readonly #receivers = new Map<WalTimeline, ComputeReceiver>();
  readonly #creations = new SerialQueue();
  readonly #holes: HoleRepair;

  constructor(options: TimelinesOptions) {
    this.#options = options;
    const { keys, log, secret, nodes } = options;
    this.#nodes = nodes;
    this.#identity = new DiskIdentity(options.config.dataDir);
    this.#newMembers = new NewMembers(options.config, this.#identity, nodes);
    this.#holes = new HoleRepair({ secret, log, peers: () => nodes.peers.map((p) => p.address) });
    this.#keys = new TimelineKeys(this.#keyed(), keys, log, options.config.reEncryptBytesPerSecond);
  }

  #keyed(): KeyedTimelines {
    const isClosed = (): boolean => this.#closed;
    return {
      open: this.#open,
      broken: this.#broken,
      locked: this.#locked,
      interrupted: this.#interrupted,
      receivers: this.#receivers,
      creations: this.#creations,
      get closed() {
        return isClosed();
      },
      openFromDisk: (project, timeline) => this.#openFromDisk(project, timeline),
      subscribe: (timeline, request) => this.subscribe(timeline, request),
      unusableDirs: (project) => this.#unusableDirs(project),
      onLock: (project) => this.#options.onLock(project),
    };
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
    this.#busy = false;
    this.#keys.start();
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
    return { secret: this.#options.secret, log: this.#options.log };
  }

  async #openFromDisk(project: ProjectUid, timeline: TimelineId): Promise<void> {
    const key = keyOf(project, timeline);
    const dir = this.#dir(project, timeline);
    // A creation that crashed before its control file was there never happened.
    if (!existsSync(controlPath(dir))) {
      if (!existsSync(join(dir, 'wal'))) return rmSync(dir, { recursive: true, force: true });
    }
    const options = this.#timelineOptions(project);
    const { keys } = options;
    if (keys.locked !== undefined) return void this.#locked.set(key, keys.locked);
    const { locks } = keys;
    try {
      const opened = await WalTimeline.open(dir, options);
      this.#locked.delete(key);
      this.#add(opened);
      if (keys.locks === locks) return this.#keys.check(project);
      // The key has gone meanwhile, and may be back: what was opened before is of no use.
      this.#keys.lock(project, 'the key went while the timeline was opened');
      if (keys.usable) this.#keys.unlock(project);
    } catch (error) {
      if (isWithoutKey(error)) {
        this.#locked.set(key, error as LakebaseError);
        if (keys.usable) setTimeout(() => this.#keys.unlock(project), OPEN_AGAIN_MS).unref();
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
    this.#identity.note(timeline.project, timeline.timeline, timeline.self);
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
      const control = this.#newMembers.fresh(project, timeline, request);
      await this.#newMembers.mayBecome(control, request.incarnation);
      return (await this.#make(control)).status();
    });
  }

  async #make(control: ControlFile): Promise<WalTimeline> {
    const options = this.#timelineOptions(control.project);
    await options.keys.ready();
    const dir = this.#dir(control.project, control.timeline);
    rmSync(this.#newMembers.tombstone(control.project, control.timeline), { force: true });
    const key = keyOf(control.project, control.timeline);
    this.#making.add(key);
    this.#identity.note(control.project, control.timeline, control.membership?.self ?? this.#options.config.id);
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    syncDir(join(dir, '..'));
    syncDir(this.#options.config.dataDir);
    this.#options.log.info(
      { project: control.project, timeline: control.timeline, startLsn: formatLsn(control.startLsn) },
      'timeline created',
    );
    try {
      return this.#add(await WalTimeline.create(dir, control, options));
    } finally {
      this.#making.delete(key);
    }
  }

  /** Takes over a configuration; with `make`, becomes a new member of it, in place of whatever is left of an earlier one. */
  async configure(project: ProjectUid, timeline: TimelineId, request: ConfigureRequest): Promise<WalTimelineStatus> {
    const configuration = configurationFromJson(request.configuration);
    this.#nodes.learn(request.nodes);
    return this.#creations.run(async () => {
      const { make } = request;
      const key = keyOf(project, timeline);
      const open = this.#open.get(key);
      if (make === null || open?.self === make.member) {
        const found = this.get(project, timeline);
        found.follow(configuration);
        return found.status();
      }
      const locked = this.#locked.get(key);
      if (locked !== undefined) throw locked;
      // A late request of an old change must not put an end to a member of a newer configuration.
      if (open !== undefined && (open.configuration.generation > configuration.generation || votersOf(configuration).includes(open.self)))
        throw new LakebaseError('CONFLICT', `${open.self} is here, by configuration ${describeConfiguration(open.configuration)}`);
      const control = this.#newMembers.fresh(project, timeline, {
        ...make.timeline,
        membership: { member: make.member, configuration: request.configuration },
      });
      if (this.#identity.membersOf(project, timeline).includes(make.member))
        throw new LakebaseError('CONFLICT', `${make.member} was on this disk and is lost`);
      await this.#newMembers.mayBecome(control, make.incarnation);
      await this.#timelineOptions(project).keys.ready();
      // WAL that a recovery did without may be looked at by a person yet.
      if (open !== undefined) await this.#drop(open, open.lineage === (lineagesOf(control).at(-1)?.number ?? 0));
      const dir = this.#dir(project, timeline);
      if (existsSync(dir)) renameSync(dir, `${dir}.unusable-${Date.now()}`);
      this.#broken.delete(key);
      return (await this.#make(control)).status();
    });
  }

  catchUp(timeline: WalTimeline, donor: PeerAddress): Promise<void> {
    const { secret } = this.#options;
    const client = new SafekeeperClient({ baseUrl: donor.httpUrl, token: internalToken(secret, 'service') });
    return catchUp(timeline, { address: donor, client }, this.#adoption);
  }

  configurationOf(timeline: WalTimeline): WalConfiguration {
    const notes = this.#identity.membersOf(timeline.project, timeline.timeline);
    return { configuration: timeline.configuration, addresses: this.#nodes.addressesOf(timeline.configuration), notes };
  }

  node(): SafekeeperNode {
    const lost = [...this.#identity].filter(({ project, timeline }) => {
      const key = keyOf(project, timeline);
      if (this.#busy || this.#making.has(key)) return false;
      return !this.#open.has(key) && !this.#locked.has(key) && !existsSync(this.#newMembers.tombstone(project, timeline));
    });
    return { id: this.#options.config.id, incarnation: this.#identity.incarnation, timelines: this.#open.size, lost };
  }

  archiveEnd(project: ProjectUid, timeline: TimelineId, request: ArchiveEndRequest): Promise<ArchiveEnd> {
    const { objectStore: store, keys, log, config } = this.#options;
    if (store === undefined) throw new LakebaseError('CONFIG', 'this safekeeper has no object store');
    return archiveEnd({ store, keys: keys.source.project(project), log, scratchDir: config.dataDir }, project, timeline, request);
  }

  /** `keepObjects`: the timeline goes on with other members. */
  async remove(project: ProjectUid, timeline: TimelineId, keepObjects = false): Promise<void> {
    await this.#creations.run(async () => {
      const key = keyOf(project, timeline);
      const open = this.#open.get(key);
      mkdirSync(join(this.#options.config.dataDir, project), { recursive: true, mode: 0o700 });
      writeFileSync(this.#newMembers.tombstone(project, timeline), '');
      for (const dir of this.#unusableDirs(project, timeline)) rmSync(dir, { recursive: true, force: true });
      this.#open.delete(key);
      this.#broken.delete(key);
      this.#locked.delete(key);
      this.#interrupted.delete(key);
      this.#positions.delete(key);
      const { objectStore: store, keys, log } = this.#options;
      const dir = this.#dir(project, timeline);
      const objects =
        store === undefined || keepObjects
          ? undefined
          : findObjects({ store, keys: keys.source.project(project), log }, project, timeline, dir, open);
      if (open === undefined) rmSync(this.#dir(project, timeline), { recursive: true, force: true });
      else await this.#drop(open);
      if (objects !== undefined) void removeObjects(objects, log, () => this.#closed);
    });
  }

  async #drop(open: WalTimeline, destroy = true): Promise<void> {
    const key = keyOf(open.project, open.timeline);
    this.#open.delete(key);
    this.#interrupted.delete(key);
    this.#positions.delete(key);
    await this.#receivers.get(open)?.stop();
    this.#receivers.delete(open);
    if (destroy) await open.destroy();
    else await open.close();
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
    const configuration = request.configuration === undefined ? timeline.configuration : configurationFromJson(request.configuration);
    timeline.follow(configuration);
    if (!mayStream(timeline.state, term, configuration.generation)) await adoptFromPeers(timeline, term, this.#nodes.peers, this.#adoption);
    const running = this.#receivers.get(timeline);
    if (running !== undefined && !running.stopped && JSON.stringify(running.request) === JSON.stringify(request)) return timeline.status();
    await running?.stop();
    if (timeline.term > term) throw new LakebaseError('FENCED', `term ${timeline.term} is newer than ${term}`);
    if (this.#stopping) throw new LakebaseError('CLOSED', 'the safekeeper is stopping');
    const receiver = new ComputeReceiver(timeline, request, {
      secret: this.#options.secret,
      peers: () => this.#nodes.addressesOf(timeline.configuration),
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
    if (timeline === undefined && existsSync(this.#newMembers.tombstone(status.project, status.timeline))) return;
    let positions = this.#positions.get(key);
    if (positions === undefined) this.#positions.set(key, (positions = new Map()));
    positions.set(status.member ?? peerId, position);
    if (timeline !== undefined) {
      timeline.setPeers(positions);
      // What another lineage has in the store is other WAL.
      if ((status.lineage ?? 0) !== timeline.lineage) return;
      if (status.offloadedLsn !== undefined) timeline.noteOffloaded(parseLsn(status.offloadedLsn));
      if (status.tailLsn !== undefined) timeline.noteTail(parseLsn(status.tailLsn));
      if (status.pagesLsn !== undefined) timeline.notePages(parseLsn(status.pagesLsn));
    }
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
    const { trimAfterBytes } = this.#options.config;
    if (trimAfterBytes === 0 || this.#stopping) return;
    let kept: number;
    // The segment before stays as well, so that whoever copies from here finds a record to begin at that the object store has.
    if (timeline.archive !== undefined) kept = timeline.offloadedLsn - WAL_SEGMENT_BYTES;
    else if (!timeline.hearsAll) return;
    else kept = Math.min(timeline.state.commitLsn, ...[...timeline.peers.values()].map((p) => p.flushRecordLsn));
    // What is kept for convenience goes first when the disk fills.
    const keep = timeline.archive !== undefined && (this.#options.disk?.().pressure ?? 0) > 0 ? 0 : trimAfterBytes;
    const before = Math.min(timeline.pagesLsn - keep, kept);
    if (before - timeline.firstLsn >= WAL_SEGMENT_BYTES) timeline.trim(lsn(before));
  }

  /** Directories that a rebuilding of their timeline moved aside. */
  #unusableDirs(project: string, timeline = ''): string[] {
    const dir = join(this.#options.config.dataDir, project);
    if (!existsSync(dir)) return [];
    return readdirSync(dir)
      .filter((name) => /\.unusable-\d+$/.test(name) && name.startsWith(timeline))
      .map((name) => join(dir, name));
  }

  /** No WAL comes from computes any more. */
  async endStreams(): Promise<void> {
    this.#stopping = true;
    await Promise.all([...this.#receivers.values()].map((receiver) => receiver.stop()));
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#keys.close();
    await this.endStreams();
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
