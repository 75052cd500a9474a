/** Scrubs one timeline: every file its index names, on this disk and in the object store, read whole, hashed, opened frame by frame; then what the
 *  store has beyond that. Invariants: a copy replaces another only after it was itself found good, under the same name; nothing is deleted that the
 *  newest index names, or that a newer generation may name, or without the Manager's word that our generation is the newest, asked afterwards. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, errorMessage, isCode } from '@lakebase/base';
import type { ScrubFindingKind } from '@lakebase/api';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { type ByteSource, bufferSource, checkLayer, fileSource, openSealed, parseIndex, readWhole } from '@lakebase/inspect';
import { INDEX_MAGIC, type ObjectEntry, type ObjectKeys, type TimelineIndex, keyFromText, namesOf } from '@lakebase/layers';
import { type ObjectStore, indexObject, timelineObject, timelinePrefix } from '@lakebase/object-store';
import type { OrphanMemory, ScrubJob } from '@lakebase/service-kit';

/** What the scrubber needs of a timeline, attached or not. */
export interface ScrubSubject {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly keys: ObjectKeys;
  readonly directory: string;
  readonly store: ObjectStore | undefined;
  /** The newest one now: it changes while we read. */
  index(): TimelineIndex;
  /** Generation under which this pageserver may write now; undefined: none. */
  generation(): number | undefined;
  /** The local copy is no good and the store's is: fetches it. */
  refetch(name: string): Promise<void>;
  /** Writes the index anew, here and in the store, and waits until it is there. */
  republish(): Promise<void>;
  /** Rejects unless the Manager says that our generation is the newest. */
  confirm(): Promise<void>;
}

/** A file that the index names. */
export interface Named {
  readonly name: string;
  readonly layer: boolean;
  readonly bytes: number | undefined;
  readonly hash: string | undefined;
  readonly reference: Buffer;
}

type Outcome = { readonly state: 'good' } | { readonly state: 'absent' } | { readonly state: ScrubFindingKind; readonly detail: string };

const SEALED_BYTES_MAX = 512 << 20;
const DELETE_AT_ONCE = 500;

export async function scrubTimeline(subject: ScrubSubject, job: ScrubJob, orphans: OrphanMemory): Promise<void> {
  for (const name of namesOf(subject.index())) await new FileScrub(subject, job, name).run();
  await scrubLocalIndex(subject, job);
  if (subject.store === undefined) return;
  await scrubRemoteIndex(subject, job, subject.store);
  await scrubOrphans(subject, job, subject.store, orphans);
}

/** One file: its copy here and its copy in the store. */
class FileScrub {
  readonly #s: ScrubSubject;
  readonly #job: ScrubJob;
  readonly #name: string;
  readonly #path: string;
  readonly #key: string;

  constructor(subject: ScrubSubject, job: ScrubJob, name: string) {
    this.#s = subject;
    this.#job = job;
    this.#name = name;
    this.#path = join(subject.directory, name);
    this.#key = timelineObject(subject.project, subject.timeline, name);
  }

  async run(): Promise<void> {
    const remoteExpected = (): boolean => this.#s.index().remote?.names.includes(this.#name) === true;
    const here = await this.#checked(() => (existsSync(this.#path) ? fileSource(this.#path) : Promise.resolve(undefined)));
    const { store } = this.#s;
    const there = store === undefined || !remoteExpected() ? undefined : await this.#checked(() => objectSource(store, this.#key));
    // A merge may have replaced it meanwhile: then nobody misses it.
    if (this.#named() === undefined) return;
    if (there !== undefined && there.state !== 'good' && remoteExpected())
      await this.#settle('store', this.#key, there, here.state === 'good' ? () => this.#toStore(store as ObjectStore) : undefined);
    const canFetch = there?.state === 'good';
    // A file that is only in the store is no finding: this disk is a cache.
    if (here.state !== 'good' && !(here.state === 'absent' && (canFetch || remoteExpected())))
      await this.#settle('disk', this.#path, here, canFetch ? () => this.#toDisk() : undefined);
  }

  #named(): Named | undefined {
    return namedOf(this.#s.index(), this.#name);
  }

  async #checked(opened: () => Promise<ByteSource | undefined>): Promise<Outcome> {
    const named = this.#named();
    if (named === undefined) return { state: 'absent' };
    let source: ByteSource | undefined;
    try {
      source = await opened();
      if (source === undefined) return { state: 'absent' };
      this.#job.object();
      await checkNamed(source, named, this.#s, this.#job);
      return { state: 'good' };
    } catch (error) {
      this.#job.signal.throwIfAborted();
      if (isCode(error, 'NOT_FOUND')) return { state: 'absent' };
      if (isCode(error, 'KEY_REVOKED') || isCode(error, 'CLOSED')) throw error;
      const damaged = isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED');
      return { state: damaged ? 'damaged' : 'unreadable', detail: errorMessage(error) };
    } finally {
      await source?.close();
    }
  }

  async #settle(where: 'store' | 'disk', name: string, found: Outcome, repair: (() => Promise<void>) | undefined): Promise<void> {
    const kind: ScrubFindingKind = found.state === 'absent' ? 'missing' : (found.state as ScrubFindingKind);
    let detail = 'detail' in found ? found.detail : `the index names it${repair === undefined ? ', and there is no other copy here' : ''}`;
    let outcome: 'left' | 'repaired' = 'left';
    if (repair === undefined) detail += kind === 'damaged' ? '; no good copy of it was found' : '';
    else if (this.#job.repair && kind !== 'unreadable')
      try {
        await repair();
        outcome = 'repaired';
      } catch (error) {
        this.#job.signal.throwIfAborted();
        detail += `; repair failed: ${errorMessage(error)}`;
      }
    this.#job.found({ kind, name, where, project: this.#s.project, timeline: this.#s.timeline, detail, outcome });
  }

  /** The same name and content: harmless whoever does it. */
  async #toStore(store: ObjectStore): Promise<void> {
    const { size } = await sizeOf(this.#path);
    await store.put(this.#key, { path: this.#path, size }, { signal: this.#job.signal });
    await this.#again(() => objectSource(store, this.#key));
  }

  async #toDisk(): Promise<void> {
    await this.#s.refetch(this.#name);
    if (this.#named() !== undefined) await this.#again(() => fileSource(this.#path));
  }

  async #again(opened: () => Promise<ByteSource | undefined>): Promise<void> {
    const now = await this.#checked(opened);
    if (now.state !== 'good') throw new LakebaseError('CORRUPT', `the new copy is ${now.state}${'detail' in now ? `: ${now.detail}` : ''}`);
  }
}

export function namedOf(index: TimelineIndex, name: string): Named | undefined {
  const layer = index.layers.find((d) => d.name === name);
  if (layer !== undefined) return { name, layer: true, bytes: layer.bytes, hash: layer.hash, reference: keyFromText(layer.key) };
  for (const value of Object.values(index) as (Partial<ObjectEntry> | null | undefined)[])
    if (value?.file === name) return { name, layer: false, bytes: value.bytes, hash: value.hash, reference: keyFromText(value.key ?? '') };
  return undefined;
}

/** Throws CORRUPT for whatever is not as it was written. */
export async function checkNamed(
  source: ByteSource,
  named: Named,
  { project, timeline, keys }: Pick<ScrubSubject, 'project' | 'timeline' | 'keys'>,
  job: ScrubJob,
): Promise<void> {
  if (named.bytes !== undefined && source.size !== named.bytes)
    throw new LakebaseError('CORRUPT', `${named.name} has ${source.size} bytes, the index says ${named.bytes}`);
  if (named.layer) {
    const { sha256 } = await checkLayer(source, { keys, reference: named.reference }, (bytes) => job.spent(bytes));
    if (sha256 !== named.hash)
      throw new LakebaseError('CORRUPT', `${named.name} is not the file that the index names: its SHA-256 differs`);
    return;
  }
  const bytes = await readWhole(source, SEALED_BYTES_MAX);
  await job.spent(bytes.length);
  if (named.hash !== undefined && createHash('sha256').update(bytes).digest('hex') !== named.hash)
    throw new LakebaseError('CORRUPT', `${named.name} is not the file that the index names: its SHA-256 differs`);
  // Its kind is bound with its name.
  const magic = bytes.length < 4 ? 0 : bytes.readUInt32BE(0);
  const payload = await openSealed(bufferSource(named.name, bytes), magic, { project, timeline }, { keys, reference: named.reference });
  payload.fill(0);
}

async function scrubLocalIndex(s: ScrubSubject, job: ScrubJob): Promise<void> {
  const path = join(s.directory, 'index');
  if (!existsSync(path)) return;
  job.object();
  try {
    await openIndexFrom(await fileSource(path), s, job);
  } catch (error) {
    await settleIndex(s, job, 'disk', path, error);
  }
}

async function scrubRemoteIndex(s: ScrubSubject, job: ScrubJob, store: ObjectStore): Promise<void> {
  const before = s.index().remote;
  if (before === null || before === undefined) return;
  const key = indexObject(s.project, s.timeline, before.generation);
  try {
    const source = await objectSource(store, key);
    const moved = s.index().remote?.generation !== before.generation;
    if (source === undefined) {
      if (!moved) throw new LakebaseError('NOT_FOUND', 'the newest index is not in the store');
      return;
    }
    job.object();
    const index = await openIndexFrom(source, s, job);
    if (index.version < before.version)
      throw new LakebaseError('CORRUPT', `the index in the store has version ${index.version}; version ${before.version} was put there`);
  } catch (error) {
    if (s.index().remote?.version !== before.version) return;
    await settleIndex(s, job, 'store', key, error);
  }
}

async function openIndexFrom(source: ByteSource, { project, timeline, keys }: ScrubSubject, job: ScrubJob): Promise<TimelineIndex> {
  try {
    const payload = await openSealed(source, INDEX_MAGIC, { project, timeline }, { keys });
    await job.spent(source.size);
    return parseIndex(payload, source.name);
  } finally {
    await source.close();
  }
}

/** What is in memory was read from a good one: it is written again. */
async function settleIndex(s: ScrubSubject, job: ScrubJob, where: 'disk' | 'store', name: string, error: unknown): Promise<void> {
  job.signal.throwIfAborted();
  if (isCode(error, 'KEY_REVOKED') || isCode(error, 'CLOSED')) throw error;
  const kind: ScrubFindingKind = isCode(error, 'NOT_FOUND')
    ? 'missing'
    : isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED')
      ? 'damaged'
      : 'unreadable';
  let detail = errorMessage(error);
  let outcome: 'left' | 'repaired' = 'left';
  if (job.repair && kind !== 'unreadable')
    try {
      await s.republish();
      outcome = 'repaired';
    } catch (failure) {
      detail += `; repair failed: ${errorMessage(failure)}`;
    }
  job.found({ kind, name, where, project: s.project, timeline: s.timeline, detail, outcome });
}

const INDEX_NAME = /^index-g([0-9a-f]{8})$/;
const WRITER = /-g([0-9a-f]{8})(?:\.layer)?$/;

/** Objects of the timeline that its newest index does not name. WAL has its own scrubber. */
async function scrubOrphans(s: ScrubSubject, job: ScrubJob, store: ObjectStore, memory: OrphanMemory): Promise<void> {
  const prefix = timelinePrefix(s.project, s.timeline);
  const found: string[] = [];
  let after: string | undefined;
  do {
    job.signal.throwIfAborted();
    const page = await store.list(prefix, { signal: job.signal, ...(after === undefined ? {} : { after }) });
    for (const { key } of page.objects) {
      const name = key.slice(prefix.length);
      if (!name.startsWith('wal/') && isOrphan(s, name)) found.push(key);
    }
    after = page.next;
  } while (after !== undefined);
  const old = new Set(memory.seen(prefix, found, job.orphanAgeMs));
  let deleted: readonly string[] = [];
  let why = '';
  if (job.deleteOrphans && old.size > 0)
    try {
      // Asked after the list was read, and compared with the newest index once more after the answer.
      await s.confirm();
      const doomed = [...old].filter((key) => isOrphan(s, key.slice(prefix.length)));
      for (let i = 0; i < doomed.length; i += DELETE_AT_ONCE)
        await store.delete(doomed.slice(i, i + DELETE_AT_ONCE), { signal: job.signal });
      deleted = doomed;
    } catch (error) {
      job.signal.throwIfAborted();
      why = `; not deleted: ${errorMessage(error)}`;
    }
  const gone = new Set(deleted);
  for (const key of found) {
    if (!gone.has(key) && !isOrphan(s, key.slice(prefix.length))) continue;
    const detail = old.has(key) ? `no index names it${why}` : 'no index names it; not yet long enough to be deleted';
    // One that is young may be on its way into an index: nothing is wrong with it.
    if (old.has(key))
      job.found({
        kind: 'orphan',
        name: key,
        where: 'store',
        project: s.project,
        timeline: s.timeline,
        detail,
        outcome: gone.has(key) ? 'deleted' : 'left',
      });
  }
}

/** Nothing of ours names it, and no newer generation can. */
function isOrphan(s: ScrubSubject, name: string): boolean {
  const index = s.index();
  const ours = s.generation();
  if (ours === undefined) return false;
  const indexOf = INDEX_NAME.exec(name)?.[1];
  const published = index.remote?.generation;
  if (indexOf !== undefined) return published !== undefined && Number.parseInt(indexOf, 16) < published;
  const writer = WRITER.exec(name)?.[1];
  if (writer !== undefined && Number.parseInt(writer, 16) > ours) return false;
  return !namesOf(index).includes(name) && index.remote?.names.includes(name) !== true;
}

/** Undefined when there is no such object. */
export async function objectSource(store: ObjectStore, key: string): Promise<ByteSource | undefined> {
  let size: number;
  try {
    ({ size } = await store.head(key));
  } catch (error) {
    if (isCode(error, 'NOT_FOUND')) return undefined;
    throw error;
  }
  return {
    name: key.slice(key.lastIndexOf('/') + 1),
    size,
    async read(offset, length) {
      const { bytes } = await store.get(key, { range: { offset, length } });
      if (bytes.length !== length) throw new LakebaseError('CORRUPT', `object ${key} is cut short`);
      return bytes;
    },
    async close() {},
  };
}

async function sizeOf(path: string): Promise<{ size: number }> {
  const source = await fileSource(path);
  await source.close();
  return source;
}
