/** All timelines of this member: opening at start, creating, rebuilding after a loss, deleting, and the receiver of each.
 *  Invariant: "no such timeline here" is never taken for "an empty timeline": where a peer has elected, a timeline that is missing here was
 *  lost, and starts as a rebuilt member that does not vote (docs/protocols/election.md). */
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
import { LakebaseError, type Logger, SerialQueue, errorMessage, isCode, withDeadline } from '@lakebase/base';
import {
  type ProjectUid,
  type Term,
  type TimelineId,
  formatLsn,
  lsn,
  parseLsn,
  parseProjectUid,
  parseTerm,
  parseTimelineId,
} from '@lakebase/ids';
import type { StandbyStatus } from '@lakebase/pg-wire';
import { type ControlFile, type Elected, type MemberPosition, historyFromJson, historyUpTo, mayStream } from '@lakebase/wal-quorum';
import { type AdoptionOptions, adopt, adoptFromPeers } from './adoption.ts';
import { ComputeReceiver } from './compute-receiver.ts';
import type { SafekeeperConfig } from './config.ts';
import { controlPath, syncDir } from './control-store.ts';
import { type TimelineOptions, WalTimeline } from './wal-timeline.ts';

export interface TimelinesOptions {
  readonly config: SafekeeperConfig;
  readonly secret: string;
  readonly log: Logger;
  readonly onMoved: (timeline: WalTimeline) => void;
  readonly onFlush: (seconds: number, bytes: number) => void;
  readonly onFatal: (error: unknown) => void;
}

const PEER_ANSWER_MS = 2_000;
const keyOf = (project: string, timeline: string): string => `${project}/${timeline}`;

export class Timelines {
  readonly #options: TimelinesOptions;
  readonly #peers: readonly { readonly address: PeerAddress; readonly client: SafekeeperClient }[];
  readonly #open = new Map<string, WalTimeline>();
  /** Timelines whose control file cannot be used, with the reason. */
  readonly #broken = new Map<string, LakebaseError>();
  readonly #positions = new Map<string, Map<string, MemberPosition>>();
  readonly #receivers = new Map<WalTimeline, ComputeReceiver>();
  readonly #unknownSince = new Map<string, number>();
  readonly #creations = new SerialQueue();

  constructor(options: TimelinesOptions) {
    this.#options = options;
    const token = internalToken(options.secret, 'service');
    this.#peers = options.config.peers.map((address) => ({ address, client: new SafekeeperClient({ baseUrl: address.httpUrl, token }) }));
    mkdirSync(options.config.dataDir, { recursive: true, mode: 0o700 });
    for (const project of readdirSync(options.config.dataDir)) {
      if (!isId(project)) continue;
      for (const timeline of readdirSync(join(options.config.dataDir, project)))
        if (isId(timeline)) this.#openAtStart(project as ProjectUid, timeline as TimelineId);
    }
  }

  *[Symbol.iterator](): Iterator<WalTimeline> {
    yield* this.#open.values();
  }
  get size(): number {
    return this.#open.size;
  }
  get brokenCount(): number {
    return this.#broken.size;
  }

  get(project: ProjectUid, timeline: TimelineId): WalTimeline {
    const key = keyOf(project, timeline);
    const found = this.#open.get(key);
    if (found !== undefined) return found;
    const broken = this.#broken.get(key);
    throw broken ?? new LakebaseError('NOT_FOUND', `no timeline ${timeline} of project ${project} on this safekeeper`);
  }

  #dir(project: ProjectUid, timeline: TimelineId): string {
    return join(this.#options.config.dataDir, project, timeline);
  }

  get #timelineOptions(): TimelineOptions {
    const { config, log, onFlush, onFatal } = this.#options;
    return {
      memberId: config.id,
      memberCount: config.peers.length + 1,
      memberIds: [config.id, ...config.peers.map((p) => p.id)],
      ringBytes: config.ringBytes,
      log,
      onFlush,
      onFatal,
    };
  }

  get #adoption(): AdoptionOptions {
    return { secret: this.#options.secret, rebuildDelayMs: this.#options.config.rebuildDelayMs, log: this.#options.log };
  }

  #openAtStart(project: ProjectUid, timeline: TimelineId): void {
    const dir = this.#dir(project, timeline);
    // A creation that crashed before its control file was there never happened.
    if (!existsSync(controlPath(dir))) {
      if (!existsSync(join(dir, 'wal'))) return rmSync(dir, { recursive: true, force: true });
    }
    try {
      this.#add(WalTimeline.open(dir, this.#timelineOptions));
    } catch (error) {
      const cause =
        error instanceof LakebaseError
          ? error
          : new LakebaseError('CORRUPT', `${controlPath(dir)}: ${errorMessage(error)}; restore this member from its peers`);
      this.#options.log.error({ timeline, err: cause.message }, 'timeline cannot be opened');
      this.#broken.set(keyOf(project, timeline), cause);
    }
  }

  #add(timeline: WalTimeline): WalTimeline {
    const key = keyOf(timeline.project, timeline.timeline);
    this.#open.set(key, timeline);
    this.#unknownSince.delete(key);
    const positions = this.#positions.get(key);
    if (positions !== undefined) timeline.setPeers(positions);
    timeline.onMoved(() => this.#options.onMoved(timeline));
    this.#options.onMoved(timeline);
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
      const broken = this.#broken.get(keyOf(project, timeline));
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
      };
      const known = (await this.#askPeers(project, timeline)).filter((s) => s.term > 0);
      rmSync(this.#tombstone(project, timeline), { force: true });
      return (known.length > 0 ? this.#rebuilt(project, timeline, known) : this.#make(control)).status();
    });
  }

  #make(control: ControlFile): WalTimeline {
    const dir = this.#dir(control.project, control.timeline);
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    syncDir(join(dir, '..'));
    syncDir(this.#options.config.dataDir);
    this.#options.log.info(
      { project: control.project, timeline: control.timeline, startLsn: formatLsn(control.startLsn) },
      'timeline created',
    );
    return this.#add(WalTimeline.create(dir, control, this.#timelineOptions));
  }

  async #askPeers(project: ProjectUid, timeline: TimelineId): Promise<WalTimelineStatus[]> {
    const answers = await Promise.allSettled(
      this.#peers.map(({ client, address }) => withDeadline(client.status(project, timeline), PEER_ANSWER_MS, address.id)),
    );
    return answers.filter((a) => a.status === 'fulfilled').map((a) => a.value);
  }

  /** Starts again what this member had lost: it knows nothing of its promises and does not vote until it has joined a new term. */
  #rebuilt(project: ProjectUid, timeline: TimelineId, known: readonly WalTimelineStatus[]): WalTimeline {
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
      this.#open.delete(key);
      this.#broken.delete(key);
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
    if (!mayStream(timeline.state, term)) await adoptFromPeers(timeline, term, this.#peers, this.#adoption);
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
    if (timeline !== undefined) timeline.setPeers(positions);
    else if (position.term > 0) this.#unknown(status.project, status.timeline);
  }

  /** A peer has elected on a timeline that is not here. */
  #unknown(project: ProjectUid, timeline: TimelineId): void {
    const key = keyOf(project, timeline);
    if (this.#unknownSince.has(key)) return;
    this.#unknownSince.set(key, performance.now());
    setTimeout(() => {
      if (!this.#unknownSince.delete(key) || this.#open.has(key)) return;
      this.#creations
        .run(async () => {
          if (this.#open.has(key) || existsSync(this.#tombstone(project, timeline))) return;
          const known = (await this.#askPeers(project, timeline)).filter((s) => s.term > 0);
          if (known.length === 0) return;
          const dir = this.#dir(project, timeline);
          if (existsSync(dir)) renameSync(dir, `${dir}.unusable-${Date.now()}`);
          this.#broken.delete(key);
          this.#rebuilt(project, timeline, known);
        })
        .catch((error: unknown) => {
          if (!isCode(error, 'UNAVAILABLE'))
            this.#options.log.warn({ timeline, err: errorMessage(error) }, 'cannot rebuild a lost timeline');
        });
    }, this.#options.config.lostAfterMs).unref();
  }

  /** The pageserver has made pages durable up to here: older WAL may go once every peer has it too. */
  onPageserverStatus(timeline: WalTimeline, status: StandbyStatus): void {
    const { trimAfterBytes, peers } = this.#options.config;
    if (trimAfterBytes === 0 || timeline.peers.size < peers.length) return;
    const durable = status.apply > 0 ? Math.min(status.flush, status.apply) : status.flush;
    const everywhere = Math.min(timeline.state.commitLsn, ...[...timeline.peers.values()].map((p) => p.flushRecordLsn));
    const before = Math.min(durable - trimAfterBytes, everywhere);
    if (before > timeline.firstLsn) timeline.trim(lsn(before));
  }

  async close(): Promise<void> {
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
