/** Carries WAL into the object store: eight segments at a time while it flows fast, what is complete when it rests or has waited long, and the rest as
 *  the tail then. One member of each timeline does it: the first by id of those that are there and have the WAL or nearly so; the next one when
 *  nothing comes of it for a while. Before a stop all that is committed goes there at once ({@link Offloader.drain}).
 *  Invariants: only committed WAL leaves this member; `offloadedLsn` rises only after the object is there and was checked; two members that do the same
 *  work do no harm (conditional puts); a store that is down costs nothing but disk. */
import { LakebaseError, type Logger, Slots, backoffDelay, errorMessage, failpoint, isCode, withDeadline } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn, lsn } from '@lakebase/ids';
import type { MemberPosition } from '@lakebase/wal-quorum';
import { type PutResult, WAL_OBJECT_BYTES, type WalArchive, nextWalObject } from '@lakebase/wal-store';
import type { WalTimeline } from './wal-timeline.ts';

export interface OffloadTimes {
  /** WAL that has not moved for this long rests. */
  readonly idleMs: number;
  /** Committed WAL does not wait longer than this: what a loss of all members may cost (docs/protocols/wal-recovery.md). */
  readonly ageMs: number;
  /** While a compute streams, tails because of a rest are at least this far apart. */
  readonly tailMs: number;
  /** Work that has not moved for this long is taken over by the next member. */
  readonly takeoverMs: number;
}

export interface OffloaderOptions {
  readonly memberId: string;
  readonly times: OffloadTimes;
  /** Ids of the other members that can be heard now. */
  readonly livePeers: () => readonly string[];
  /** How full this member's disk is, 0 to 1: from a half on complete segments do not wait. */
  readonly pressure: () => number;
  readonly log: Logger;
  readonly onPut?: (result: PutResult, kind: 'object' | 'tail', seconds: number) => void;
}

interface Work {
  /** When WAL last moved, and where it stood then. */
  movedAt: number;
  commitLsn: number;
  /** Since when there is something to do that nobody has done; undefined: there is nothing. */
  dueSince: number | undefined;
  /** How far the object store had it then. */
  storedLsn: number;
  /** Where committed WAL ended at which time, of what is not stored: the first one tells its age. */
  readonly seen: { readonly lsn: number; readonly at: number }[];
  tailAt: number;
  failures: number;
  retryAt: number;
  running: boolean;
}

/** Complete WAL up to `to`, then perhaps the tail. */
interface Task {
  readonly to: Lsn;
  readonly tail: boolean;
}

const TICK_MS = 1_000;
const RUNNING_MAX = 2;
/** While stopping nobody's commits compete with it. */
const DRAINING_MAX = 8;
const SEEN_MAX = 256;
/** How long a member that is a little behind is waited for. */
const BEHIND_MS = 5_000;
const SOURCE_BYTES = 512 * 1024;
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

export class Offloader {
  readonly #options: OffloaderOptions;
  readonly #work = new Map<WalTimeline, Work>();
  readonly #running = new Set<Promise<void>>();
  #timer: NodeJS.Timeout | undefined;
  #draining = false;
  #closed = false;

  constructor(options: OffloaderOptions) {
    this.#options = options;
  }

  /** `timeline` may have moved. Cheap: called at every flush. */
  touch(timeline: WalTimeline): void {
    if (timeline.archive === undefined || this.#closed) return;
    const now = performance.now();
    const commitLsn = timeline.readableLsn;
    const work = this.#work.get(timeline);
    if (work === undefined) {
      if (!isPending(timeline)) return;
      const fresh = {
        movedAt: now,
        dueSince: undefined,
        commitLsn,
        seen: [{ lsn: commitLsn, at: now }],
        tailAt: Number.NEGATIVE_INFINITY,
        failures: 0,
        retryAt: 0,
        running: false,
      };
      this.#work.set(timeline, { ...fresh, storedLsn: storedLsn(timeline) });
    } else if (work.commitLsn !== commitLsn) {
      work.commitLsn = commitLsn;
      work.movedAt = now;
    }
    this.#arm(Math.min(TICK_MS, this.#options.times.idleMs));
  }

  #arm(ms: number): void {
    if (!this.#draining && !this.#closed) this.#timer ??= setTimeout(() => this.#tick(), ms).unref();
  }

  /** How long the oldest committed WAL here has waited, in seconds. */
  get ageSeconds(): number {
    const now = performance.now();
    let oldest = now;
    for (const [timeline, work] of this.#work) {
      const first = work.seen.find(({ lsn: at }) => at > storedLsn(timeline));
      if (!timeline.closed && first !== undefined) oldest = Math.min(oldest, first.at);
    }
    return (now - oldest) / 1_000;
  }

  /** Puts what is committed here and not in the object store yet, the tail included, for at most `ms`. Nobody is waited for: what a member before this
   *  one has is that member's to put, also when it stops at the same moment. What could not be put stays on the disk, as after a kill. */
  async drain(ms: number): Promise<void> {
    this.#draining = true;
    clearTimeout(this.#timer);
    const failures = new Map<WalTimeline | undefined, unknown>();
    const started = performance.now();
    await withDeadline(this.#putAll(failures), ms, 'object store').catch((error: unknown) => failures.set(undefined, error));
    this.#closed = true;
    const left = [...this.#work.keys()].filter((timeline) => this.#isOurs(timeline));
    if (left.length === 0) return;
    const [reason] = failures.values();
    const about = { timelines: left.length, ms: Math.round(performance.now() - started), err: errorMessage(reason) };
    this.#options.log.warn(
      about,
      'stopping although not all committed WAL is in the object store: it stays on the disk until the next start',
    );
  }

  /** Every timeline until there is nothing left of it or it failed. */
  async #putAll(failures: Map<WalTimeline | undefined, unknown>): Promise<void> {
    await Promise.allSettled(this.#running);
    const slots = new Slots(DRAINING_MAX);
    for (;;) {
      const todo = [...this.#work].filter(([timeline]) => this.#isOurs(timeline) && !failures.has(timeline));
      if (todo.length === 0 || this.#closed) return;
      const puts = todo.map(([timeline, work]) => slots.use(() => this.#offload(timeline, work, { to: completeOf(timeline), tail: true })));
      for (const [i, put] of (await Promise.allSettled(puts)).entries())
        if (put.status === 'rejected') failures.set(todo[i]?.[0], put.reason);
    }
  }

  /** There is something to put, this member can, and nobody before it has it. */
  #isOurs(timeline: WalTimeline): boolean {
    if (timeline.closed || !isPending(timeline) || !isCarrier(timeline)) return false;
    return !this.#before(timeline).some((peer) => peer.flushRecordLsn >= timeline.readableLsn);
  }

  /** Waits for what is being put. */
  async close(): Promise<void> {
    // What a drain gave up may hang for as long as the store does.
    const abandoned = this.#draining;
    this.#closed = true;
    clearTimeout(this.#timer);
    if (!abandoned) await Promise.allSettled(this.#running);
  }

  #tick(): void {
    this.#timer = undefined;
    if (this.#closed) return;
    const now = performance.now();
    for (const [timeline, work] of this.#work) {
      if (work.running) continue;
      if (timeline.closed || !isPending(timeline)) {
        this.#work.delete(timeline);
        continue;
      }
      if (!isCarrier(timeline)) continue;
      look(timeline, work, now);
      if (this.#running.size >= RUNNING_MAX || now < work.retryAt) continue;
      const task = this.#due(timeline, work, now);
      if (task === undefined) continue;
      work.dueSince ??= now;
      if (now - work.dueSince < this.#patienceMs(timeline, task)) continue;
      this.#start(timeline, work, task);
    }
    if (this.#work.size > 0) this.#arm(Math.min(TICK_MS, this.#options.times.idleMs));
  }

  /** What is to be done now. */
  #due(timeline: WalTimeline, work: Work, now: number): Task | undefined {
    const { idleMs, ageMs, tailMs } = this.#options.times;
    const { readableLsn: commit, offloadedLsn } = timeline;
    const rests = now - work.movedAt >= idleMs;
    const complete = completeOf(timeline);
    const full = Math.floor(commit / WAL_OBJECT_BYTES) * WAL_OBJECT_BYTES;
    const old = now - (work.seen[0]?.at ?? now) >= ageMs;
    const to = rests || old || this.#options.pressure() >= 0.5 ? complete : full;
    const mayTail = old || (rests && (timeline.feeder === undefined || now - work.tailAt >= tailMs));
    const tail = mayTail && commit > Math.max(timeline.tailLsn, complete);
    return to > offloadedLsn || tail ? { to: lsn(Math.max(to, offloadedLsn)), tail } : undefined;
  }

  /** How long this member leaves `task` to those that come before it. What is heard of a member is a moment old: who lacks the WAL may have it by now. */
  #patienceMs(timeline: WalTimeline, task: Task): number {
    // Under load everybody is a little behind; what counts is the WAL that is to go.
    const { takeoverMs } = this.#options.times;
    const needed = task.tail ? timeline.readableLsn : task.to;
    let patience = 0;
    for (const peer of this.#before(timeline)) {
      if (peer.flushRecordLsn >= needed) patience += takeoverMs;
      else if (peer.flushRecordLsn + WAL_OBJECT_BYTES >= needed) patience += Math.min(BEHIND_MS, takeoverMs);
    }
    return patience;
  }

  /** Positions of the members that can be heard and come before this one. */
  #before(timeline: WalTimeline): MemberPosition[] {
    const { livePeers, memberId } = this.#options;
    return livePeers()
      .filter((id) => id < memberId)
      .map((id) => timeline.peerAt(id))
      .filter((peer) => peer !== undefined);
  }

  #start(timeline: WalTimeline, work: Work, task: Task): void {
    work.running = true;
    const run = this.#offload(timeline, work, task)
      .then(
        () => {
          work.failures = 0;
          work.dueSince = undefined;
        },
        (error: unknown) => this.#failed(timeline, work, error),
      )
      .finally(() => {
        work.running = false;
        this.#running.delete(run);
        this.#arm(0);
      });
    this.#running.add(run);
  }

  #failed(timeline: WalTimeline, work: Work, error: unknown): void {
    if (timeline.closed || this.#closed) return;
    const first = work.failures === 0;
    work.retryAt = performance.now() + backoffDelay(work.failures++, { baseMs: 1_000, maxMs: 60_000 });
    const { log } = this.#options;
    if (isCode(error, 'CLOSED') || isCode(error, 'KEY_REVOKED')) return;
    log[first ? 'warn' : 'debug'](
      { timeline: timeline.timeline, offloadedLsn: formatLsn(timeline.offloadedLsn), err: errorMessage(error) },
      'WAL cannot be put into the object store; it stays here and is tried again',
    );
  }

  async #offload(timeline: WalTimeline, work: Work, task: Task): Promise<void> {
    const archive = timeline.archive as WalArchive;
    const source = sourceOf(timeline);
    while (!this.#closed && !timeline.closed) {
      const from = timeline.offloadedLsn;
      const next = nextWalObject(from, task.to);
      if (next === undefined) break;
      await failpoint('safekeeper.offload.before-put');
      const started = performance.now();
      const result = await archive.put(from, next, source);
      await failpoint('safekeeper.offload.after-put');
      this.#done(timeline, result, 'object', started);
      timeline.noteOffloaded(next.end);
    }
    const commit = timeline.readableLsn;
    const { offloadedLsn } = timeline;
    if (!task.tail || this.#closed || commit <= offloadedLsn || commit - offloadedLsn > WAL_SEGMENT_BYTES) return;
    work.tailAt = performance.now();
    const result = await archive.putTail(offloadedLsn, commit, source);
    this.#done(timeline, result, 'tail', work.tailAt);
    timeline.noteTail(result.end);
  }

  #done(timeline: WalTimeline, result: PutResult, kind: 'object' | 'tail', started: number): void {
    const seconds = (performance.now() - started) / 1_000;
    this.#options.onPut?.(result, kind, seconds);
    const { name, start, end, put, storedBytes } = result;
    this.#options.log.info(
      {
        timeline: timeline.timeline,
        object: name,
        start: formatLsn(start),
        end: formatLsn(end),
        put,
        storedBytes,
        ms: Math.round(seconds * 1_000),
      },
      'WAL offloaded',
    );
  }
}

/** In the object store, complete or as the tail, as far as known. */
const storedLsn = ({ offloadedLsn, tailLsn }: WalTimeline): number => Math.max(offloadedLsn, tailLsn);

/** Notes where WAL and the store are now. */
function look(timeline: WalTimeline, work: Work, now: number): void {
  const stored = storedLsn(timeline);
  if (work.storedLsn !== stored) {
    work.storedLsn = stored;
    work.dueSince = undefined;
  }
  const first = work.seen.findIndex(({ lsn: at }) => at > stored);
  work.seen.splice(0, first < 0 ? work.seen.length : first);
  const commit = timeline.readableLsn;
  const last = work.seen.at(-1);
  if (commit <= (last?.lsn ?? stored)) return;
  // While the store is away for long, later WAL counts as old as that before it.
  if (last !== undefined && work.seen.length >= SEEN_MAX) work.seen.pop();
  work.seen.push({ lsn: commit, at: last !== undefined && work.seen.length >= SEEN_MAX - 1 ? last.at : now });
}

/** End of the last complete segment of committed WAL. */
const completeOf = ({ readableLsn }: WalTimeline): Lsn => lsn(Math.floor(readableLsn / WAL_SEGMENT_BYTES) * WAL_SEGMENT_BYTES);

/** Committed WAL that is in no object and no tail. */
const isPending = (timeline: WalTimeline): boolean =>
  timeline.readableLsn > storedLsn(timeline) || completeOf(timeline) > timeline.offloadedLsn;

/** What a member does not hold it cannot carry: a new one begins where its donor did. */
const isCarrier = ({ firstLsn, offloadedLsn }: WalTimeline): boolean => firstLsn <= offloadedLsn;

/** Committed WAL of this member. Reading and decrypting runs in the event loop: commits get a turn after every piece. */
export function sourceOf(timeline: WalTimeline): (from: Lsn, max: number) => Promise<Buffer> {
  return async (from, max) => {
    await nextTurn();
    if (from < timeline.firstLsn) throw new LakebaseError('UNAVAILABLE', `this member does not hold WAL at ${formatLsn(from)} any more`);
    return timeline.read(from, Math.min(max, SOURCE_BYTES));
  };
}
