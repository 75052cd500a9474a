/** A scrub of this safekeeper: control files, every WAL segment on its disk, and, by the first member that is there, the WAL objects in the store.
 *  It reads files itself and not through the log: finding damage that nobody has read yet must not make the member lose its vote.
 *  Invariants: the segment that is being written is called damaged only when it looks so again and again; an object is replaced only by WAL that was
 *  read and verified here; no WAL is ever deleted but a second copy of what was just found good. */
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { ScrubFindingKind } from '@lakebase/api';
import { LakebaseError, errorMessage, isCode, sleep } from '@lakebase/base';
import { wipeAndGiveBack } from '@lakebase/bytes';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, formatLsn, lsn } from '@lakebase/ids';
import { type SegmentKeys, checkSegment, fileSource } from '@lakebase/inspect';
import { WAL_OBJECT_SEGMENTS, walObject, walPrefix } from '@lakebase/object-store';
import type { OrphanMemory, ScrubJob } from '@lakebase/service-kit';
import { decodeControlFile } from '@lakebase/wal-quorum';
import { type WalArchive, decodeReferences, nextWalObject } from '@lakebase/wal-store';
import { controlPath } from './control-store.ts';
import { sourceOf } from './offload.ts';
import type { Timelines } from './timelines.ts';
import { WAL_DIR, type WalTimeline } from './wal-timeline.ts';

const OBJECT = /^([0-9a-f]{16})-([1248])$/;

/** Names of the objects that would hold the WAL of this one and more. */
function largerOf(name: string, project: ProjectUid, timeline: TimelineId, lineage: number): string[] {
  const [, start, segments] = OBJECT.exec(name) ?? [];
  if (start === undefined) return [];
  return WAL_OBJECT_SEGMENTS.filter((n) => n > Number(segments)).map((n) => {
    const size = n * WAL_SEGMENT_BYTES;
    return walObject(project, timeline, lsn(Math.floor(Number.parseInt(start, 16) / size) * size), n, lineage);
  });
}

export interface WalScrubHost {
  readonly orphans: OrphanMemory;
  readonly timelines: Timelines;
  /** No other member of the timeline that can be heard comes before this one: it looks after the objects. */
  readonly first: (timeline: WalTimeline) => boolean;
  readonly keysOf: (project: string) => SegmentKeys['keys'];
}

const SEGMENT = /^00000001[0-9A-F]{16}$/;
const LOOKS = 4;
const LOOK_AGAIN_MS = 250;
const REPAIR_TRIES = 120;
const READ_BYTES = 256 * 1024;

export async function scrubSafekeeper(host: WalScrubHost, job: ScrubJob): Promise<void> {
  const { timelines } = host;
  const all = [...timelines].filter((t) => job.project === null || t.project === job.project);
  let done = 0;
  job.timelines(0, all.length);
  for (const t of all) {
    job.signal.throwIfAborted();
    try {
      await new WalScrub(t, host, job).run();
    } catch (error) {
      job.signal.throwIfAborted();
      // Deleted or locked meanwhile.
      if (!t.closed && !isCode(error, 'KEY_REVOKED')) throw error;
      job.skipped(`${t.project}/${t.timeline}: ${errorMessage(error)}`);
    }
    job.timelines(++done, all.length);
  }
  host.orphans.save();
  for (const { name, error } of timelines.unusable()) {
    if (job.project !== null && !name.startsWith(job.project)) continue;
    if (isCode(error, 'CORRUPT')) {
      const [project = '', timeline = ''] = name.split('/');
      job.found({ kind: 'damaged', name: join(name, 'control'), where: 'disk', project, timeline, detail: error.message, outcome: 'left' });
    } else job.skipped(`${name}: ${errorMessage(error)}`);
  }
}

class WalScrub {
  readonly #t: WalTimeline;
  readonly #host: WalScrubHost;
  readonly #job: ScrubJob;

  constructor(timeline: WalTimeline, host: WalScrubHost, job: ScrubJob) {
    this.#t = timeline;
    this.#host = host;
    this.#job = job;
  }

  async run(): Promise<void> {
    await this.#control();
    for (const name of this.#segmentNames()) await this.#segment(name);
    const { archive } = this.#t;
    if (archive !== undefined && this.#host.first(this.#t)) await this.#objects(archive);
  }

  #found(kind: ScrubFindingKind, where: 'disk' | 'store', name: string, detail: string, outcome: 'left' | 'repaired' = 'left'): void {
    this.#job.found({ kind, name, where, project: this.#t.project, timeline: this.#t.timeline, detail, outcome });
  }

  /** What is in memory was read from a good one. */
  async #control(): Promise<void> {
    const path = controlPath(this.#t.dir);
    this.#job.object();
    try {
      decodeControlFile(readFileSync(path), path);
    } catch (error) {
      if (this.#t.closed) throw error;
      if (!this.#job.repair) return this.#found('damaged', 'disk', path, errorMessage(error));
      this.#t.persist();
      this.#found('damaged', 'disk', path, errorMessage(error), 'repaired');
    }
  }

  #segmentNames(): string[] {
    return readdirSync(join(this.#t.dir, WAL_DIR))
      .filter((name) => SEGMENT.test(name))
      .sort();
  }

  #references(): ReadonlyMap<string, Buffer> {
    try {
      return decodeReferences(readFileSync(join(this.#t.dir, WAL_DIR, 'references')));
    } catch {
      // None, or damaged: then the headers' references are used, as they are when the log is opened.
      return new Map();
    }
  }

  get #openWith(): SegmentKeys {
    const keys = this.#host.keysOf(this.#t.project);
    return { keys, referenceOf: (h) => this.#references().get(h.salt.toString('hex')) ?? h.keyReference };
  }

  async #segment(name: string): Promise<void> {
    const path = join(this.#t.dir, WAL_DIR, name);
    const openWith = this.#openWith;
    let damage: string | undefined;
    for (let look = 0; look < LOOKS; look++) {
      if (look > 0) await sleep(LOOK_AGAIN_MS, this.#job.signal);
      damage = await this.#look(path, openWith);
      if (damage === undefined) return;
    }
    // Trimmed, or closed, since.
    if (this.#t.closed || !this.#segmentNames().includes(name)) return;
    const repaired = this.#job.repair ? await this.#repairSegment(name) : undefined;
    const then = repaired === undefined ? '' : repaired === true ? '' : `; not repaired: ${repaired}`;
    this.#found('damaged', 'disk', path, `${damage as string}${then}`, repaired === true ? 'repaired' : 'left');
  }

  /** What is wrong with the file; undefined: nothing. */
  async #look(path: string, openWith: SegmentKeys): Promise<string | undefined> {
    const before = this.#t.flushLsn;
    try {
      const source = await fileSource(path);
      try {
        this.#job.object();
        const check = await checkSegment(source, openWith);
        check.wal?.fill(0);
        await this.#job.spent(source.size);
        if (check.damage !== undefined) return check.damage;
        // A file that is only prepared has no frames.
        if (check.endLsn === undefined) return undefined;
        const mustReach = Math.min((check.header.segment + 1) * WAL_SEGMENT_BYTES, before);
        return check.endLsn < mustReach
          ? `it ends at ${formatLsn(check.endLsn)}; WAL up to ${formatLsn(lsn(mustReach))} was synced`
          : undefined;
      } finally {
        await source.close();
      }
    } catch (error) {
      this.#job.signal.throwIfAborted();
      if (isCode(error, 'NOT_FOUND')) return undefined;
      if (isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED')) return errorMessage(error);
      throw error;
    }
  }

  /** True, or why not. Whoever reads the damaged place makes it a hole, and holes are filled from the object store or a peer (hole-repair.ts). */
  async #repairSegment(name: string): Promise<true | string> {
    const segment = Number.parseInt(name.slice(8, 16), 16) * 256 + Number.parseInt(name.slice(16), 16);
    const t = this.#t;
    const end = (segment + 1) * WAL_SEGMENT_BYTES;
    if (end > t.readableLsn)
      return 'the segment is being written; when it is read the member gives up what is damaged and copies it again from its peers';
    try {
      for (let at: number = Math.max(t.firstLsn, segment * WAL_SEGMENT_BYTES); at < end && !t.holes.has(segment); )
        at += await readSome(t, lsn(at), end);
    } catch (error) {
      if (!isCode(error, 'CORRUPT')) return errorMessage(error);
    }
    for (let tries = 0; t.holes.has(segment) && tries < REPAIR_TRIES; tries++) await sleep(LOOK_AGAIN_MS, this.#job.signal);
    if (t.holes.has(segment)) return 'its WAL could be had neither from the object store nor from a peer; it is tried again and again';
    const path = join(t.dir, WAL_DIR, name);
    const again = this.#segmentNames().includes(name) ? await this.#look(path, this.#openWith) : undefined;
    return again ?? true;
  }

  /** Every byte up to `offloadedLsn` must come out of some object. */
  async #objects(archive: WalArchive): Promise<void> {
    const good = new Set<string>();
    for (let at: Lsn = archive.options.startLsn; at < this.#t.offloadedLsn; ) {
      this.#job.signal.throwIfAborted();
      const { end, name, problem, kind } = await this.#object(archive, at);
      if (problem === undefined) good.add(name);
      if (problem !== undefined && kind !== undefined) {
        const repaired = this.#job.repair && kind !== 'unreadable' ? await this.#putAgain(archive, at, end) : undefined;
        const then = typeof repaired === 'string' ? `; not repaired: ${repaired}` : '';
        this.#found(kind, 'store', name, `${problem}${then}`, repaired === true ? 'repaired' : 'left');
      }
      at = end;
    }
    await this.#superseded(archive, good);
  }

  /** Two members that did the same work at different times may have left an object inside of a larger one, which everybody reads instead. It goes when the
   *  larger one was just found good. */
  async #superseded(archive: WalArchive, good: ReadonlySet<string>): Promise<void> {
    const { store, project, timeline } = archive.options;
    const { lineage } = this.#t;
    const prefix = walPrefix(project, timeline, lineage);
    const found: string[] = [];
    for (let after: string | undefined; ; ) {
      const page = await store.list(prefix, { signal: this.#job.signal, ...(after === undefined ? {} : { after }) });
      for (const { key } of page.objects)
        if (!good.has(key) && largerOf(key.slice(prefix.length), project, timeline, lineage).some((name) => good.has(name)))
          found.push(key);
      after = page.next;
      if (after === undefined) break;
    }
    const old = this.#host.orphans.seen(prefix, found, this.#job.orphanAgeMs);
    if (this.#job.deleteOrphans && old.length > 0) await store.delete(old, { signal: this.#job.signal });
    for (const name of old)
      this.#job.found({
        kind: 'orphan',
        name,
        where: 'store',
        project,
        timeline,
        detail: 'a larger object has the same WAL',
        outcome: this.#job.deleteOrphans ? 'deleted' : 'left',
      });
  }

  async #object(archive: WalArchive, at: Lsn): Promise<{ end: Lsn; name: string; problem?: string; kind?: ScrubFindingKind }> {
    const named = await this.#nameAt(archive, at);
    this.#job.object();
    try {
      const reader = await archive.find(at);
      if (reader === undefined) return { ...named, kind: 'missing', problem: `WAL at ${formatLsn(at)} was put there and is in no object` };
      for (let p: Lsn = at; p < reader.header.end; ) {
        const bytes = await reader.read(p, WAL_SEGMENT_BYTES);
        p = lsn(p + bytes.length);
        const { length } = bytes;
        wipeAndGiveBack(bytes);
        await this.#job.spent(length);
      }
      reader.wipe();
      return { end: reader.header.end, name: reader.name };
    } catch (error) {
      this.#job.signal.throwIfAborted();
      if (isCode(error, 'KEY_REVOKED') || isCode(error, 'CLOSED')) throw error;
      const damaged = isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED');
      return { ...named, kind: damaged ? 'damaged' : isCode(error, 'NOT_FOUND') ? 'missing' : 'unreadable', problem: errorMessage(error) };
    }
  }

  /** The object that is there for `at`, whatever is in it, or the one that should be. */
  async #nameAt(archive: WalArchive, at: Lsn): Promise<{ name: string; end: Lsn }> {
    const { store, project, timeline } = archive.options;
    for (const segments of WAL_OBJECT_SEGMENTS) {
      const size = segments * WAL_SEGMENT_BYTES;
      const aligned = Math.floor(at / size) * size;
      const name = walObject(project, timeline, lsn(aligned), segments, this.#t.lineage);
      const there = await store.head(name).then(
        () => true,
        () => false,
      );
      if (there) return { name, end: lsn(aligned + size) };
    }
    const next = nextWalObject(at, this.#t.offloadedLsn);
    const end = next?.end ?? lsn((Math.floor(at / WAL_SEGMENT_BYTES) + 1) * WAL_SEGMENT_BYTES);
    return {
      name: next === undefined ? `WAL at ${formatLsn(at)}` : walObject(project, timeline, next.aligned, next.segments, this.#t.lineage),
      end,
    };
  }

  /** From this member's own WAL, which is verified as it is read. */
  async #putAgain(archive: WalArchive, from: Lsn, to: Lsn): Promise<true | string> {
    try {
      for (let at = from; at < to; ) {
        const next = nextWalObject(at, to);
        if (next === undefined) throw new LakebaseError('INTERNAL', `no object ends at or before ${formatLsn(to)}`);
        await archive.put(at, next, sourceOf(this.#t));
        at = next.end;
      }
      return true;
    } catch (error) {
      this.#job.signal.throwIfAborted();
      return errorMessage(error);
    }
  }
}

/** Commits get a turn between two pieces. */
async function readSome(t: WalTimeline, from: Lsn, end: number): Promise<number> {
  await new Promise<void>((resolve) => void setImmediate(resolve));
  const bytes = t.read(from, Math.min(READ_BYTES, end - from));
  const { length } = bytes;
  wipeAndGiveBack(bytes);
  if (length === 0) throw new LakebaseError('NOT_FOUND', `there is no WAL at ${formatLsn(from)}`);
  return length;
}
