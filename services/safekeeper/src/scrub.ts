/** A scrub of this safekeeper: control files, every WAL segment on its disk, and, by the first member that is there, the WAL objects in the store (scrub-objects.ts).
 *  It reads files itself and not through the log: finding damage that nobody has read yet must not make the member lose its vote.
 *  Invariants: the segment that is being written is called damaged only when it looks so again and again; no WAL on this disk is deleted. */
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { ScrubFindingKind } from '@lakebase/api';
import { LakebaseError, errorMessage, isCode, sleep } from '@lakebase/base';
import { wipeAndGiveBack } from '@lakebase/bytes';
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn, lsn } from '@lakebase/ids';
import { type SegmentKeys, checkSegment, fileSource } from '@lakebase/inspect';
import type { OrphanMemory, ScrubJob } from '@lakebase/service-kit';
import { decodeControlFile } from '@lakebase/wal-quorum';
import { decodeReferences } from '@lakebase/wal-store';
import { controlPath } from './control-store.ts';
import { scrubObjects } from './scrub-objects.ts';
import type { Timelines } from './timelines.ts';
import { WAL_DIR, type WalTimeline } from './wal-timeline.ts';

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
    if (archive !== undefined && this.#host.first(this.#t)) await scrubObjects(this.#t, archive, this.#host.orphans, this.#job);
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
