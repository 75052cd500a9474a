/** Scrubs a timeline's WAL objects, of every lineage (docs/operating/scrub.md). What is there is listed once; what somebody may read is read whole; the rest is told as
 *  orphans.
 *  Invariants: an object is replaced only by WAL that was read and verified here; what may be the only copy of a byte that is part of the timeline is
 *  never an orphan; nothing of a lineage that this member does not know is touched, as it may be newer than what this member knows. */
import type { ScrubFindingKind } from '@lakebase/api';
import { LakebaseError, errorMessage, isCode } from '@lakebase/base';
import { wipeAndGiveBack } from '@lakebase/bytes';
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn, lsn } from '@lakebase/ids';
import { type ObjectStore, type ObjectTag, walObject, walPrefix, walTailObject } from '@lakebase/object-store';
import type { OrphanMemory, ScrubJob } from '@lakebase/service-kit';
import { type FoundTrailer, type WalArchive, type WalObjectReader, nextWalObject } from '@lakebase/wal-store';
import { sourceOf } from './offload.ts';
import type { WalTimeline } from './wal-timeline.ts';

/** A complete object, by its name: where the WAL in it begins and ends. */
interface StoredObject {
  readonly key: string;
  readonly start: number;
  readonly end: number;
}
/** What the store has of one lineage. */
interface StoredLineage {
  readonly objects: StoredObject[];
  tail: boolean;
  references: boolean;
}
interface Problem {
  readonly kind: ScrubFindingKind;
  readonly name: string;
  readonly problem: string;
}

const NAME = /^(?:l([0-9a-f]{8})-)?(?:([0-9a-f]{16})-([1248])|(tail)|references)$/;
/** The tail is replaced while it is read; it is called damaged only when nobody did. */
const TAIL_LOOKS = 4;

export async function scrubObjects(timeline: WalTimeline, archive: WalArchive, orphans: OrphanMemory, job: ScrubJob): Promise<void> {
  await new ObjectScrub(timeline, archive, orphans, job).run();
}

class ObjectScrub {
  readonly #t: WalTimeline;
  readonly #archive: WalArchive;
  readonly #memory: OrphanMemory;
  readonly #job: ScrubJob;
  readonly #prefix: string;
  readonly #stored = new Map<number, StoredLineage>();
  /** What nobody reads, and why. */
  readonly #orphans = new Map<string, string>();

  constructor(timeline: WalTimeline, archive: WalArchive, memory: OrphanMemory, job: ScrubJob) {
    this.#t = timeline;
    this.#archive = archive;
    this.#memory = memory;
    this.#job = job;
    this.#prefix = walPrefix(timeline.project, timeline.timeline);
  }

  async run(): Promise<void> {
    const lineages: WalArchive[] = [];
    for (let a: WalArchive | undefined = this.#archive; a !== undefined; a = a.older) lineages.unshift(a);
    // Before the list is made: what is promised by now is in it.
    const { offloadedLsn, tailLsn } = this.#t;
    await this.#list(lineages);
    for (const archive of lineages) {
      const stored = this.#of(archive);
      if (archive === this.#archive) {
        await this.#newest(stored, offloadedLsn);
        await this.#newestTail(stored, tailLsn);
      } else await this.#older(archive, stored);
      if (stored.references) await this.#references(archive);
    }
    await this.#tellOrphans();
  }

  #of(archive: WalArchive): StoredLineage {
    return this.#stored.get(archive.lineage) ?? { objects: [], tail: false, references: false };
  }

  /** Larger objects first: of two that hold the same WAL they are the ones that are read. */
  async #list(lineages: readonly WalArchive[]): Promise<void> {
    const starts = new Map(lineages.map((a) => [a.lineage, a.options.startLsn]));
    const { store } = this.#archive.options;
    for (let after: string | undefined; ; ) {
      const page = await store.list(this.#prefix, { signal: this.#job.signal, ...(after === undefined ? {} : { after }) });
      for (const { key } of page.objects) this.#sort(key, starts);
      after = page.next;
      if (after === undefined) break;
    }
    for (const { objects } of this.#stored.values()) objects.sort((a, b) => b.end - b.start - (a.end - a.start));
  }

  #sort(key: string, starts: ReadonlyMap<number, Lsn>): void {
    const match = NAME.exec(key.slice(this.#prefix.length));
    if (match === null) return;
    const [, number, at, segments, tail] = match;
    const lineage = number === undefined ? 0 : Number.parseInt(number, 16);
    const start = starts.get(lineage);
    if (start === undefined) return;
    let stored = this.#stored.get(lineage);
    if (stored === undefined) this.#stored.set(lineage, (stored = { objects: [], tail: false, references: false }));
    if (at !== undefined) {
      const aligned = Number.parseInt(at, 16);
      stored.objects.push({ key, start: Math.max(aligned, start), end: aligned + Number(segments) * WAL_SEGMENT_BYTES });
    } else if (tail !== undefined) stored.tail = true;
    else stored.references = true;
  }

  /** Every byte up to `offloadedLsn` must come out of a complete object: the tail is replaced by the next one. */
  async #newest(stored: StoredLineage, offloadedLsn: Lsn): Promise<void> {
    const archive = this.#archive;
    const good = new Set<string>();
    for (let at: Lsn = archive.options.startLsn; at < offloadedLsn; ) {
      const read = await this.#read(archive, at);
      if ('end' in read && !isTail(archive, read.name)) {
        good.add(read.name);
        at = read.end;
        continue;
      }
      const { name, end } = newestAt(archive, stored, at, offloadedLsn);
      const missing = { kind: 'missing', name, problem: `WAL at ${formatLsn(at)} was put there and is in no complete object` } as const;
      const found: Problem = 'kind' in read ? { ...read, name } : missing;
      await this.#settle(found, () => this.#putAgain(at, end));
      at = end;
    }
    this.#insideOf(stored, good);
  }

  /** What the timeline reads of a lineage ends where the next one begins. Its own WAL may end before that: the last of it went with the safekeepers then,
   *  and only what is behind a gap shows that there is one. */
  async #older(archive: WalArchive, stored: StoredLineage): Promise<void> {
    const { end } = archive;
    const good = new Set<string>();
    const tail = walTailObject(this.#t.project, this.#t.timeline, archive.lineage);
    const tailStart = await startOfTail(archive);
    let tailIsRead = false;
    for (let at: number = archive.options.startLsn; at < end; ) {
      const read = await this.#read(archive, lsn(at));
      if ('end' in read) {
        if (read.name === tail) tailIsRead = true;
        else good.add(read.name);
        at = read.end;
        continue;
      }
      const here = stored.objects.find((o) => o.start <= at && at < o.end);
      const behind = [...stored.objects.map((o) => o.start), tailStart].filter((start) => start > at && start < end);
      const next = here?.end ?? Math.min(end, ...behind);
      // No complete object holds the place, and the tail cannot be read.
      const isOfTail = here === undefined && read.kind !== 'missing';
      tailIsRead ||= isOfTail;
      if (here !== undefined || isOfTail || next < end)
        await this.#settle({
          kind: read.kind,
          name: here?.key ?? (isOfTail ? tail : `WAL at ${formatLsn(lsn(at))} of lineage ${archive.lineage}`),
          problem: `${read.problem}; it is WAL of before a recovery, of which no safekeeper has a copy`,
        });
      at = next;
    }
    for (const { key, start } of stored.objects)
      if (start >= end) this.#orphans.set(key, 'a recovery began the next lineage before it: it is not WAL of the timeline');
    if (stored.tail && !tailIsRead) this.#orphans.set(tail, 'complete objects have the same WAL, or it is not WAL of the timeline');
    this.#insideOf(stored, good);
  }

  /** Two members that did the same work at different times may have left an object inside of a larger one, which everybody reads instead. It goes when the
   *  larger one was just found good. */
  #insideOf({ objects }: StoredLineage, good: ReadonlySet<string>): void {
    const larger = objects.filter((o) => good.has(o.key));
    for (const { key, start, end } of objects)
      if (!good.has(key) && larger.some((o) => o.start <= start && end <= o.end))
        this.#orphans.set(key, 'a larger object has the same WAL');
  }

  /** Of what is read for `at`: all of it. */
  async #read(archive: WalArchive, at: Lsn): Promise<{ readonly end: Lsn; readonly name: string } | Omit<Problem, 'name'>> {
    this.#job.signal.throwIfAborted();
    this.#job.object();
    try {
      const reader = await archive.find(at);
      if (reader === undefined) return { kind: 'missing', problem: `WAL at ${formatLsn(at)} is in no object` };
      await this.#readWhole(reader, at);
      return { end: reader.header.end, name: reader.name };
    } catch (error) {
      return this.#problem(error);
    }
  }

  async #readWhole(reader: WalObjectReader, from: Lsn): Promise<void> {
    for (let at: Lsn = from; at < reader.header.end; ) {
      const bytes = await reader.read(at, WAL_SEGMENT_BYTES);
      const { length } = bytes;
      wipeAndGiveBack(bytes);
      at = lsn(at + length);
      await this.#job.spent(length);
    }
    reader.wipe();
  }

  #problem(error: unknown): Omit<Problem, 'name'> {
    this.#job.signal.throwIfAborted();
    if (isCode(error, 'KEY_REVOKED') || isCode(error, 'CLOSED')) throw error;
    const damaged = isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED');
    return { kind: damaged ? 'damaged' : isCode(error, 'NOT_FOUND') ? 'missing' : 'unreadable', problem: errorMessage(error) };
  }

  /** The newest committed WAL: in no other object, and on the members' disks. */
  async #newestTail(stored: StoredLineage, tailLsn: Lsn): Promise<void> {
    if (!stored.tail && tailLsn <= this.#t.offloadedLsn) return;
    const { store, project, timeline } = this.#archive.options;
    const name = walTailObject(project, timeline, this.#archive.lineage);
    let found: Omit<Problem, 'name'> | undefined;
    let tag: string | undefined;
    for (let look = 0; look < TAIL_LOOKS; look++) {
      const now = await tagOf(store, name);
      // Still the one that was found to be no good.
      if (look > 0 && now === tag) break;
      tag = now;
      found = await this.#tail(tailLsn);
      if (found === undefined) return;
    }
    if (found !== undefined) await this.#settle({ ...found, name }, () => this.#putTailAgain(tag, tailLsn));
  }

  async #tail(tailLsn: Lsn): Promise<Omit<Problem, 'name'> | undefined> {
    this.#job.object();
    try {
      const trailer = await this.#archive.tail();
      // Complete objects have its WAL by now: nobody reads it any more, and the next one takes its place.
      if (Math.max(trailer?.header.end ?? 0, tailLsn) <= this.#t.offloadedLsn) return undefined;
      if (trailer === undefined) return { kind: 'missing', problem: 'it was put there' };
      if (trailer.header.end < tailLsn)
        return {
          kind: 'damaged',
          problem: `it ends at ${formatLsn(trailer.header.end)}; one with WAL up to ${formatLsn(tailLsn)} was put there`,
        };
      await this.#readWhole(await this.#archive.open(trailer), trailer.header.start);
      return undefined;
    } catch (error) {
      return this.#problem(error);
    }
  }

  async #references(archive: WalArchive): Promise<void> {
    this.#job.object();
    try {
      await archive.references.check();
    } catch (error) {
      const found = this.#problem(error);
      // Gone with the timeline since the list was made.
      if (found.kind !== 'missing') await this.#settle({ ...found, name: archive.references.name });
    }
  }

  async #settle(found: Problem, repair?: () => Promise<true | string>): Promise<void> {
    const repaired = repair !== undefined && this.#job.repair && found.kind !== 'unreadable' ? await repair() : undefined;
    const { project, timeline } = this.#t;
    const detail = typeof repaired === 'string' ? `${found.problem}; not repaired: ${repaired}` : found.problem;
    this.#job.found({
      kind: found.kind,
      name: found.name,
      where: 'store',
      project,
      timeline,
      detail,
      outcome: repaired === true ? 'repaired' : 'left',
    });
  }

  /** From this member's own WAL, which is verified as it is read. */
  async #putAgain(from: Lsn, to: Lsn): Promise<true | string> {
    try {
      for (let at = from; at < to; ) {
        const next = nextWalObject(at, to);
        if (next === undefined) throw new LakebaseError('INTERNAL', `no object ends at or before ${formatLsn(to)}`);
        await this.#archive.put(at, next, sourceOf(this.#t));
        at = next.end;
      }
      return true;
    } catch (error) {
      this.#job.signal.throwIfAborted();
      return errorMessage(error);
    }
  }

  /** `tag`: of the one that is no good; undefined: there is none. */
  async #putTailAgain(tag: ObjectTag | undefined, tailLsn: Lsn): Promise<true | string> {
    const { offloadedLsn: from, readableLsn: to } = this.#t;
    if (to < tailLsn) return `this member knows WAL as committed up to ${formatLsn(to)} only`;
    if (to <= from || to - from > WAL_SEGMENT_BYTES) return 'its WAL goes into a complete object, and the next tail takes its place';
    try {
      await this.#archive.replaceTail(from, to, sourceOf(this.#t), tag);
      return true;
    } catch (error) {
      this.#job.signal.throwIfAborted();
      return errorMessage(error);
    }
  }

  async #tellOrphans(): Promise<void> {
    const { store } = this.#archive.options;
    const old = this.#memory.seen(this.#prefix, [...this.#orphans.keys()], this.#job.orphanAgeMs);
    if (this.#job.deleteOrphans && old.length > 0) await store.delete(old, { signal: this.#job.signal });
    const { project, timeline } = this.#t;
    for (const name of old)
      this.#job.found({
        kind: 'orphan',
        name,
        where: 'store',
        project,
        timeline,
        detail: this.#orphans.get(name) as string,
        outcome: this.#job.deleteOrphans ? 'deleted' : 'left',
      });
  }
}

const tagOf = (store: ObjectStore, name: string): Promise<string | undefined> =>
  store.head(name).then(
    ({ tag }) => tag,
    (error: unknown) => {
      if (isCode(error, 'NOT_FOUND')) return undefined;
      throw error;
    },
  );

const isTail = (archive: WalArchive, name: string): boolean =>
  name === walTailObject(archive.options.project, archive.options.timeline, archive.lineage);

/** The object that is there for `at`, whatever is in it, or the one that should be. */
function newestAt(archive: WalArchive, stored: StoredLineage, at: Lsn, offloadedLsn: Lsn): { name: string; end: Lsn } {
  const there = stored.objects.find((o) => o.start <= at && at < o.end);
  if (there !== undefined) return { name: there.key, end: lsn(there.end) };
  const next = nextWalObject(at, offloadedLsn);
  if (next === undefined)
    return { name: `WAL at ${formatLsn(at)}`, end: lsn((Math.floor(at / WAL_SEGMENT_BYTES) + 1) * WAL_SEGMENT_BYTES) };
  const { project, timeline } = archive.options;
  return { name: walObject(project, timeline, next.aligned, next.segments, archive.lineage), end: next.end };
}

/** Infinity: there is none, or it cannot be told. */
async function startOfTail(archive: WalArchive): Promise<number> {
  let found: FoundTrailer | undefined;
  try {
    found = await archive.tail();
  } catch (error) {
    if (!isCode(error, 'CORRUPT') && !isCode(error, 'UNSUPPORTED')) throw error;
  }
  return found?.header.start ?? Number.POSITIVE_INFINITY;
}
