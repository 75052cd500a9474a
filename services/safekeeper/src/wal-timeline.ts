/** One timeline on this member: control file and WAL store together as the acceptor of the election protocol (docs/protocols/election.md).
 *
 *  Invariants:
 *  - Everything that changes term, history or log runs in one turn of the event loop (the store and the control file are written
 *    synchronously), except an adoption, which is a queue of such turns and checks its term again in each.
 *  - A position is shown to anybody only after its fdatasync; a term only after the control file that holds it.
 *  - All WAL that arrives in one turn of the event loop becomes durable with one fdatasync at the end of that turn (the reserve of a timeline
 *    gathers a little longer: reserve.ts). */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { WalTimelineStatus } from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue, must } from '@lakebase/base';
import type { CipherProvider } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type Term, type TimelineId, formatLsn, lsn } from '@lakebase/ids';
import {
  type AcceptorState,
  type Configuration,
  type ControlFile,
  type MemberPosition,
  type Vote,
  describeConfiguration,
  handleConfiguration,
  handleVote,
  lineagesOf,
  mayCopy,
  mayServePeer,
  mayStream,
  majorityOf,
  memberCommitLsn,
  nodeOf,
  positionOf,
  readableLsn,
  staticConfiguration,
  voteOf,
  votersOf,
} from '@lakebase/wal-quorum';
import { type Damage as StoreDamage, WalArchive, WalStore } from '@lakebase/wal-store';
import { ControlKeeper, type Known } from './control-keeper.ts';
import { readControl, writeControl } from './control-store.ts';
import { loadWalKeys } from './wal-keys.ts';
import { PeerPulse, reserveOf } from './reserve.ts';
import { StoredProgress } from './stored-progress.ts';
import { statusOf } from './timeline-status.ts';
import { WalWriter } from './wal-writer.ts';
import { type KeyedWal, reEncryptTimeline, rewrapTimeline } from './wal-timeline-keys.ts';
import type { Feeder, TimelineOptions } from './wal-timeline-options.ts';

export type { Feeder, TimelineOptions } from './wal-timeline-options.ts';

export const WAL_DIR = 'wal';
const IDLE_MEMORY_MS = 60_000;

export class WalTimeline {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly dir: string;
  readonly memberId: string;
  /** One adoption at a time. */
  readonly adoptions = new SerialQueue();
  /** One change of receiver at a time: two of them would append the same bytes. */
  readonly subscriptions = new SerialQueue();
  /** This timeline's WAL in the object store. */
  readonly archive: WalArchive | undefined;
  readonly #stored: StoredProgress;
  #feeder: Feeder | undefined;

  readonly #log: Logger;
  readonly #options: TimelineOptions;
  readonly #store: WalStore;
  readonly #writer: WalWriter;
  readonly #keeper: ControlKeeper;
  #commitLsn: Lsn;
  #peers: ReadonlyMap<string, MemberPosition> = new Map();
  readonly #pulse = new PeerPulse();
  #listeners = new Set<() => void>();
  #idle: NodeJS.Timeout | undefined;
  #closed = false;
  #lockedBy: LakebaseError | undefined;

  /** Makes the control file of a timeline that this member never had, or lost (`control.damage` says so). */
  static async create(dir: string, control: ControlFile, options: TimelineOptions): Promise<WalTimeline> {
    await options.keys.ready();
    writeControl(dir, control);
    return new WalTimeline(dir, control, options, options.keys);
  }

  static async open(dir: string, options: TimelineOptions): Promise<WalTimeline> {
    const control = readControl(dir);
    return new WalTimeline(dir, control, options, await loadWalKeys(join(dir, WAL_DIR), options.keys, options.log));
  }

  private constructor(dir: string, control: ControlFile, options: TimelineOptions, ciphers: CipherProvider) {
    this.dir = dir;
    this.project = control.project;
    this.timeline = control.timeline;
    this.memberId = options.memberId;
    this.#options = options;
    this.#log = options.log.child({ project: control.project, timeline: control.timeline });
    const fallback = { self: options.memberId, configuration: staticConfiguration(options.memberIds) };
    const whole = control.membership === null ? { ...control, membership: fallback } : control;
    this.#keeper = new ControlKeeper(dir, whole, () => this.#known, this.#log);
    this.#commitLsn = control.commitLsn;
    this.#stored = new StoredProgress(control.offloadedLsn, control.pagesLsn);
    const { project, timeline, startLsn } = control;
    if (options.objectStore !== undefined)
      this.archive = new WalArchive({
        store: options.objectStore,
        project,
        timeline,
        startLsn,
        lineages: lineagesOf(control),
        keys: options.keys,
        scratchDir: dir,
        log: this.#log,
      });
    this.#store = WalStore.open({
      dir: join(dir, WAL_DIR),
      ciphers,
      project: control.project,
      timeline: control.timeline,
      startLsn: control.startLsn,
      prevRecordLsn: control.prevRecordLsn,
      flushHint: control.flushHint,
      ringBytes: options.ringBytes,
      log: this.#log,
      ...(options.mayGrow === undefined ? {} : { mayGrow: options.mayGrow }),
    });
    this.#writer = new WalWriter({
      store: this.#store,
      log: this.#log,
      mayWait: () => this.#mayWait(),
      flushed: (flushLsn, seconds, bytes) => {
        options.onFlush?.(seconds, bytes);
        this.feeder?.flushed(flushLsn);
        this.#moved();
      },
      failed: (cause) => this.feeder?.drop(cause),
      healed: () => {
        this.#noteDamage();
        this.#moved();
      },
    });
    this.#noteDamage();
    this.#refreshCommit();
  }

  get state(): AcceptorState {
    const store = this.#store;
    return {
      self: this.self,
      configuration: this.configuration,
      term: this.#keeper.control.term,
      history: this.#keeper.control.history,
      flushLsn: store.flushLsn,
      flushRecordLsn: store.flushRecordLsn,
      lastRecordLsn: store.lastRecordLsn,
      commitLsn: this.#commitLsn,
      damage: this.#keeper.control.damage,
    };
  }
  get control(): ControlFile {
    return this.#keeper.control;
  }
  /** Who this member is in the configuration: its identity, which a machine that lost its disk does not get back. */
  get self(): string {
    return must(this.#keeper.control.membership, 'membership').self;
  }
  get configuration(): Configuration {
    return must(this.#keeper.control.membership, 'membership').configuration;
  }
  get term(): Term {
    return this.#keeper.control.term;
  }
  /** Of the WAL that this member holds (docs/protocols/wal-recovery.md). */
  get lineage(): number {
    return lineagesOf(this.#keeper.control).at(-1)?.number ?? 0;
  }
  get firstLsn(): Lsn {
    return this.#store.firstLsn;
  }
  get flushLsn(): Lsn {
    return this.#store.flushLsn;
  }
  get readableLsn(): Lsn {
    return readableLsn(this.state);
  }
  get position(): MemberPosition {
    return positionOf(this.state);
  }
  /** In the object store without a hole from the timeline's start to here. */
  get offloadedLsn(): Lsn {
    return this.#stored.offloadedLsn;
  }
  /** Where its tail in the object store ends, as far as known. */
  get tailLsn(): Lsn {
    return this.#stored.tailLsn;
  }
  /** The pageserver keeps what WAL up to here made where it outlives the pageserver. */
  get pagesLsn(): Lsn {
    return this.#stored.pagesLsn;
  }
  /** Who streams into this timeline now. */
  get feeder(): Feeder | undefined {
    return this.#feeder;
  }
  set feeder(feeder: Feeder | undefined) {
    this.#feeder = feeder;
    if (feeder === undefined) this.#armIdle();
  }
  get closed(): boolean {
    return this.#closed;
  }

  status(): WalTimelineStatus {
    return statusOf(this, this.#options.disk?.());
  }

  // --- receiving -----------------------------------------------------------------------------------------------------------

  /** WAL of the compute of `term`; made durable at the end of this turn, then the feeder is told. */
  appendFromCompute(term: Term, at: Lsn, bytes: Buffer, generation: number = this.configuration.generation): void {
    if (!mayStream(this.state, term, generation))
      throw new LakebaseError('FENCED', `term ${term} may not write here: the term is ${this.term}`);
    this.#append(at, bytes);
  }

  /** WAL copied from a peer while adopting or catching up in `term`. */
  appendFromPeer(term: Term, at: Lsn, bytes: Buffer): void {
    if (!mayCopy(this.state, term)) throw new LakebaseError('FENCED', `term ${term} may not write here: the term is ${this.term}`);
    this.#append(at, bytes);
  }

  #append(at: Lsn, bytes: Buffer): void {
    this.checkOpen();
    this.#writer.append(at, bytes);
  }

  /** Where the next byte goes; beyond the flush LSN while bytes of this turn wait for their fdatasync. */
  get appendLsn(): Lsn {
    return this.#store.appendLsn;
  }

  /** See reserve.ts. Nobody waits while members are being replaced. */
  #mayWait(): boolean {
    const { members, newMembers } = this.configuration;
    if (newMembers !== null || reserveOf(this.timeline, members) !== this.self) return false;
    return this.#pulse.carried(majorityOf(members), this.term, performance.now());
  }

  /** Everything appended is durable. */
  flush(): Lsn {
    return this.#writer.flush();
  }

  /** Drops bytes that are not durable yet, for a stream that broke off. */
  dropPending(): void {
    this.#writer.flushOrFail();
  }

  // --- election ------------------------------------------------------------------------------------------------------------

  /** Flush, persist, drop lower streams: in one turn. */
  vote(term: Term, configuration: Configuration = this.configuration): { granted: boolean; vote: Vote } {
    this.checkOpen();
    try {
      this.flush();
    } catch (error) {
      // A full disk loses only bytes that nobody was told of. Anything else makes the end of the log uncertain.
      this.#writer.fail(error);
      if (!(error instanceof LakebaseError) || error.code !== 'RESOURCE_EXHAUSTED') throw error;
    }
    if (configuration.generation > this.configuration.generation) this.follow(configuration);
    const decision = handleVote(this.state, term, configuration);
    if (!decision.granted) {
      this.#log.info({ term, own: this.term, reason: decision.reason }, 'vote refused');
      return { granted: false, vote: voteOf(this.state) };
    }
    this.raiseTerm(term);
    this.#log.info({ term, flushRecordLsn: formatLsn(this.#store.flushRecordLsn) }, 'vote granted');
    return { granted: true, vote: voteOf(this.state) };
  }

  /** Takes over a newer configuration, durably; streams whose computes count by an older one end. Refuses an older one. */
  follow(configuration: Configuration): void {
    this.checkOpen();
    const decision = handleConfiguration(this.state, configuration);
    if (decision.kind === 'same') return;
    if (decision.kind === 'older') throw new LakebaseError('CONFLICT', decision.reason);
    this.flush();
    this.persist({ membership: { self: this.self, configuration } });
    this.#log.info({ configuration: describeConfiguration(configuration) }, 'configuration taken over');
    if (this.feeder !== undefined && this.feeder.generation < configuration.generation)
      this.feeder.drop(
        new LakebaseError('FENCED', `configuration ${configuration.generation} is in force: this stream counts by an older one`),
      );
    this.#moved();
  }

  /** Every other member has told its position. */
  get hearsAll(): boolean {
    return votersOf(this.configuration).every((id) => id === this.self || this.#peers.has(id));
  }
  /** What the member on a node told last. */
  peerAt(node: string): MemberPosition | undefined {
    const id = votersOf(this.configuration).find((member) => nodeOf(member) === node);
    return id === undefined ? undefined : this.#peers.get(id);
  }

  /** Persists a higher term, then ends streams of lower ones. */
  raiseTerm(term: Term): void {
    this.persist({ term });
    if (this.feeder !== undefined && this.feeder.term < term)
      this.feeder.drop(new LakebaseError('FENCED', `term ${term} has been granted: the stream of term ${this.feeder.term} ends`));
    this.#moved();
  }

  /** Writes the control file with these changes and what else is known now. Throws with nothing changed when that fails. */
  persist(changes: Partial<Pick<ControlFile, 'term' | 'history' | 'flushHint' | 'damage' | 'membership'>> = {}): void {
    // Whoever opens it next owns the file.
    if (this.#lockedBy !== undefined) throw this.#lockedBy;
    this.#keeper.write(changes);
    // Adopting a term commits what precedes it even when not a byte moves.
    if (changes.history !== undefined) this.#moved();
  }

  get #known(): Known {
    return {
      flushHint: this.#hint(),
      commitLsn: this.#commitLsn,
      offloadedLsn: this.#stored.offloadedLsn,
      pagesLsn: this.#stored.pagesLsn,
    };
  }
  #hint(): Lsn {
    return this.#store.damage === undefined ? this.#store.flushLsn : this.#keeper.control.flushHint;
  }

  /** Cuts the log to end at `at`: hint first, then the log, both durable. */
  truncate(at: Lsn): void {
    this.checkOpen();
    if (at < this.readableLsn) throw new LakebaseError('CORRUPT', `refusing to truncate committed WAL at ${formatLsn(at)}`);
    this.persist({ flushHint: at });
    this.#store.truncate(at);
    this.#log.info({ lsn: formatLsn(at) }, 'divergent WAL truncated');
    this.#moved();
  }

  /** Begins the log anew at `at`, for a member whose own end the peers no longer hold. */
  restartAt(at: Lsn, lastRecordLsn: Lsn): void {
    this.checkOpen();
    this.persist({ flushHint: this.#keeper.control.startLsn });
    this.#store.restartAt(at, lastRecordLsn);
    this.persist();
    this.#moved();
  }

  /** The first place where a copy of this log can begin. */
  firstRecord(): { lsn: Lsn; lastRecordLsn: Lsn } {
    return this.#store.firstRecord();
  }

  // --- serving -------------------------------------------------------------------------------------------------------------

  /** WAL for readers, up to what is committed; for a peer adopting `peerTerm`, everything durable. */
  read(from: Lsn, max: number, peerTerm?: Term): Buffer {
    this.checkOpen();
    try {
      if (peerTerm === undefined) return this.#store.read(from, max, this.readableLsn);
      if (!mayServePeer(this.state, peerTerm)) throw new LakebaseError('FENCED', `this member's term is ${this.term}, not ${peerTerm}`);
      return this.#store.read(from, max);
    } catch (error) {
      this.#noteDamage();
      if (this.#store.holes.size > 0) this.#options.onHole?.(this);
      throw error;
    }
  }

  /** Segments that wait for {@link HoleRepair}. */
  get holes(): ReadonlyMap<number, StoreDamage> {
    return this.#store.holes;
  }
  holeStart(number: number): Lsn {
    return this.#store.holeStart(number);
  }
  leaveHole(number: number): void {
    this.checkOpen();
    this.#store.leaveHole(number);
  }
  replaceHole(number: number, bytes: Buffer): void {
    this.checkOpen();
    this.#store.replaceHole(number, bytes);
  }
  /** Nobody has its WAL for sure: this member lost it. */
  giveUpHole(number: number): void {
    this.checkOpen();
    this.#store.giveUpHole(number);
    this.#noteDamage();
  }
  /** Of the files here. */
  get diskBytes(): number {
    return this.#store.diskBytes;
  }

  /** Calls `listener` whenever the flush LSN, the term or the commit LSN moved. Returns the way to stop. */
  onMoved(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Positions of the other members, as last heard. */
  setPeers(peers: ReadonlyMap<string, MemberPosition>): void {
    this.#peers = peers;
    const now = performance.now();
    for (const [id, peer] of peers) this.#pulse.heard(id, peer.flushRecordLsn, peer.lastLogTerm, now);
    if (this.#refreshCommit()) this.#notify();
  }

  get peers(): ReadonlyMap<string, MemberPosition> {
    return this.#peers;
  }

  /** Learned here or from a peer: all three only rise. */
  noteOffloaded(at: Lsn): void {
    if (this.#stored.note('offloadedLsn', at)) this.#notify();
  }
  noteTail(at: Lsn): void {
    if (this.#stored.note('tailLsn', at)) this.#notify();
  }
  notePages(at: Lsn): void {
    if (this.#stored.note('pagesLsn', at)) this.#notify();
  }

  trim(before: Lsn): void {
    if (!this.#closed && this.#store.damage === undefined) this.#store.trim(before);
  }

  // --- inside --------------------------------------------------------------------------------------------------------------

  #refreshCommit(): boolean {
    const next = memberCommitLsn(this.state, this.#peers);
    if (next === this.#commitLsn) return false;
    this.#commitLsn = next;
    return true;
  }

  #moved(): void {
    this.#refreshCommit();
    this.#notify();
  }

  #notify(): void {
    if (this.#closed) return;
    for (const listener of this.#listeners) listener();
    this.#keeper.touch();
    this.#armIdle();
  }

  #armIdle(): void {
    if (this.#closed) return;
    this.#idle ??= setTimeout(() => {
      this.#idle = undefined;
      if (this.#feeder === undefined && !this.#closed) this.#store.releaseMemory();
    }, IDLE_MEMORY_MS).unref();
  }

  /** Damage found by the store: remember it durably, then cut it off so that it can be copied again. */
  #noteDamage(): void {
    const found = this.#store.damage;
    if (found === undefined) return;
    const reason = `${found.path} at ${formatLsn(found.lsn)}: ${found.message}`;
    this.#log.error(
      { path: found.path, lsn: formatLsn(found.lsn), err: found.message },
      'WAL is damaged: this member does not vote until a later term repaired it',
    );
    const kind = this.#keeper.control.damage?.kind ?? 'lost';
    this.persist({ damage: { kind, term: this.#keeper.control.term, reason }, flushHint: lsn(Math.min(found.lsn, this.#store.flushLsn)) });
    this.feeder?.drop(new LakebaseError('CORRUPT', reason));
    this.#store.discardDamage();
    this.#moved();
  }

  /** Throws when nothing may be read or written here any more, with the reason. */
  checkOpen(): void {
    if (this.#lockedBy !== undefined) throw new LakebaseError(this.#lockedBy.code, this.#lockedBy.message);
    if (this.#closed) throw new LakebaseError('CLOSED', `timeline ${this.timeline} is closing`);
  }

  /** Flushes, writes the control file and closes. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.feeder?.drop(new LakebaseError('CLOSED', 'the safekeeper is stopping'));
    this.dropPending();
    this.#keeper.writeIfChanged();
    this.#closed = true;
    this.#keeper.stop();
    clearTimeout(this.#idle);
    this.#writer.close();
    for (const listener of this.#listeners) listener();
    await this.#store.close();
  }

  /** The project's key is gone: streams end, nothing of the WAL stays in memory. What was acknowledged is on disk; what was not is dropped. */
  async lock(error: LakebaseError): Promise<void> {
    if (this.#closed) return;
    this.feeder?.drop(error);
    this.#writer.drop();
    this.#keeper.writeIfChanged();
    this.#lockedBy = error;
    this.#closed = true;
    this.#keeper.stop();
    clearTimeout(this.#idle);
    this.#writer.close();
    const closed = this.#store.wipe();
    for (const listener of this.#listeners) listener();
    await closed;
  }

  get #keyed(): KeyedWal {
    const { archive, offloadedLsn } = this;
    return { store: this.#store, archive, offloadedLsn, keys: this.#options.keys, checkOpen: () => this.checkOpen() };
  }
  rewrap(kekVersion: number, isOld: (reference: Buffer) => boolean): Promise<number> {
    return rewrapTimeline(this.#keyed, kekVersion, isOld);
  }

  reEncrypt(isOld: (reference: Buffer) => boolean, wrote: (bytes: number, left: number) => Promise<void>): Promise<void> {
    return reEncryptTimeline(this.#keyed, isOld, wrote);
  }

  /** Closes without keeping anything and removes the directory. */
  async destroy(): Promise<void> {
    this.feeder?.drop(new LakebaseError('NOT_FOUND', 'the timeline is being deleted'));
    this.#closed = true;
    this.#keeper.stop();
    clearTimeout(this.#idle);
    this.#writer.close();
    this.#writer.drop();
    for (const listener of this.#listeners) listener();
    await this.#store.close();
    rmSync(this.dir, { recursive: true, force: true });
  }
}
