/** Carries what a timeline has on its disk into the object store: files first, then the index that names them, then what no index names any more
 *  goes (docs/protocols/generations.md). Runs beside everything else and is repeated for as long as it takes.
 *  Invariants: an index is put only after everything it names is there; {@link Uploader.remoteConsistentLsn} moves, and anything is deleted, only
 *  after the Manager has confirmed the generation of the index that was put, asked after the put; nothing is put without a generation. */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, type Logger, backoffDelay, errorMessage, failpoint, isCode, sleep } from '@lakebase/base';
import { decodeDekReference } from '@lakebase/envelope';
import type { Lsn, ProjectUid, TimelineId } from '@lakebase/ids';
import { type TimelineIndex, namesOf, sealIndex, sealedObjectsOf } from '@lakebase/layers';
import { type ObjectStore, ReplacedObject, indexObject, timelineObject } from '@lakebase/object-store';
import type { Generations } from './generations.ts';
import { findIndex, isOlder } from './remote-index.ts';
import type { TimelineStorage } from './storage.ts';

export interface UploadPolicy {
  /** Changes go up when they cover this much WAL… */
  readonly uploadBytes: number;
  /** …or are this old. */
  readonly uploadMs: number;
}
export interface UploadTarget {
  readonly store: ObjectStore;
  readonly generations: Generations;
  readonly counters: UploadCounters;
}
export interface UploadCounters {
  puts: number;
  putBytes: number;
  indexPuts: number;
  deletes: number;
  failures: number;
}

const RETRY = { baseMs: 200, maxMs: 30_000 };
const PUTS_AT_ONCE = 2;
/** While WAL comes fast there is mostly one such layer already when a merge of those before it ends. */
const UNMERGED_MAX = 1;
const GENERATIONS_WITHOUT_INDEX = 16;

export class Uploader {
  readonly #storage: TimelineStorage;
  readonly #target: UploadTarget;
  readonly #policy: UploadPolicy;
  readonly #log: Logger;
  readonly #project: ProjectUid;
  readonly #timeline: TimelineId;
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;
  /** In the store under the name, put by us or named by an index there. */
  readonly #there = new Set<string>();
  /** No index in the store names it any more, or none did. */
  readonly #garbage = new Set<string>();
  /** Generations below ours that have an index in the store. */
  readonly #olderIndexes = new Set<number>();
  #generation: number | undefined;
  /** The index of our generation. */
  #indexObject: ReplacedObject | undefined;
  /** `storage.changes` of the newest index that was put and confirmed. */
  #uploadedChanges = -1;
  #dirtySince: number | undefined;
  #urgent = false;
  #stale = false;
  #wake: () => void = () => {};
  #waiters: { changes: number; resolve: () => void; reject: (error: unknown) => void }[] = [];
  remoteConsistentLsn: Lsn;
  /** KEK version of the index in the store; 0: not known. */
  indexKekVersion = 0;
  /** The store holds a newer state of this timeline than this disk: what is here must be replaced. Uploads nothing then. */
  onStale: () => void = () => {};

  constructor(storage: TimelineStorage, target: UploadTarget, policy: UploadPolicy, log: Logger) {
    this.#storage = storage;
    this.#target = target;
    this.#policy = policy;
    this.#log = log;
    this.#project = storage.files.project as ProjectUid;
    this.#timeline = storage.files.timeline as TimelineId;
    const { remote } = storage.index;
    this.remoteConsistentLsn = (remote?.diskConsistentLsn ?? 0) as Lsn;
    for (const name of remote?.names ?? []) this.#there.add(name);
    // What was put is compared with what is here by its bookkeeping; what came after it in the index is not known to have been put.
    if (remote !== null && remote !== undefined && remote.version >= storage.index.version - 1) this.#uploadedChanges = storage.changes;
    else this.#dirtySince = performance.now();
    storage.onChange = () => {
      if (!this.clean) this.#dirtySince ??= performance.now();
      this.#wake();
    };
    this.#done = this.#run();
  }

  /** Everything that is on this disk is in the store. */
  get clean(): boolean {
    return this.#uploadedChanges === this.#storage.changes;
  }

  get pendingBytes(): number {
    return Math.max(0, this.#storage.diskConsistentLsn - this.remoteConsistentLsn);
  }

  /** Layers that are not in the store and will be merged with others. */
  get #unmerged(): number {
    return this.#storage.index.layers.filter((d) => d.level === 0 && d.kind === 'delta' && !this.#there.has(d.name)).length;
  }

  /** Soon: no need to wait for more. */
  hurry(): void {
    this.#urgent = true;
    this.#wake();
  }

  /** Within this time, not later. */
  soon(ms: number): void {
    if (this.clean) return;
    this.#dirtySince = Math.min(this.#dirtySince ?? performance.now(), performance.now() + ms - this.#policy.uploadMs);
    this.#wake();
  }

  /** Resolves when the index in the store is sealed under this version of the KEK or a newer one, and so is all it names. */
  async rewrapped(kekVersion: number): Promise<void> {
    if (this.indexKekVersion < kekVersion) this.#uploadedChanges = -1;
    await this.flush();
  }

  /** Resolves when what is on disk now is in the store and confirmed. */
  flush(): Promise<void> {
    if (this.clean) return Promise.resolve();
    return new Promise((resolve, reject) => {
      this.#waiters.push({ changes: this.#storage.changes, resolve, reject });
      this.hurry();
    });
  }

  /** Ends between two steps; what is not up stays for the next time. */
  async stop(): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'the timeline is shutting down'));
    this.#wake();
    await this.#done;
    for (const w of this.#waiters.splice(0)) w.reject(this.#stop.signal.reason);
  }

  async #run(): Promise<void> {
    await this.#checkOnce();
    for (let failures = 0; !this.#stop.signal.aborted; ) {
      await this.#due();
      if (this.#stop.signal.aborted) return;
      try {
        if (this.#stale || !(await this.#round())) return;
        failures = 0;
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        this.#target.counters.failures++;
        // A superseded generation: a new one may come, from the store's newest state then.
        if (isCode(error, 'FENCED')) this.#generation = undefined;
        this.#log.warn({ err: errorMessage(error), attempt: failures }, 'upload failed; trying again');
        await sleep(backoffDelay(failures++, RETRY), this.#stop.signal).catch(() => {});
        this.#urgent = true;
      }
    }
  }

  /** Also when there is nothing to upload: what is stale here may name what is gone from the store. */
  async #checkOnce(): Promise<void> {
    for (let attempt = 0; !this.#stop.signal.aborted; attempt++) {
      try {
        if ((await this.#ready()) === undefined) this.#stale = true;
        return;
      } catch {
        await sleep(backoffDelay(attempt, RETRY), this.#stop.signal).catch(() => {});
      }
    }
  }

  /** Waits until an upload is worth its puts. */
  async #due(): Promise<void> {
    for (;;) {
      if (this.#stop.signal.aborted) return;
      if (!this.clean) {
        const since = this.#dirtySince ?? performance.now();
        const left = since + this.#policy.uploadMs - performance.now();
        // Files that a merge is about to replace, now or when a few more have come, are not worth a put, unless it takes very long.
        const worth = this.#storage.compacting ? 3 : this.#unmerged > UNMERGED_MAX ? 2 : 1;
        const enough = this.pendingBytes >= this.#policy.uploadBytes * worth;
        if (this.#urgent || left <= 0 || enough) return;
        await this.#woken(left);
      } else {
        this.#urgent = false;
        this.#settle();
        await this.#woken();
      }
    }
  }

  #woken(ms?: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(resolve, Math.max(1, ms));
      timer?.unref();
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #settle(): void {
    this.#waiters = this.#waiters.filter((w) => {
      if (w.changes > this.#uploadedChanges) return true;
      w.resolve();
      return false;
    });
  }

  /** One consistent state of the disk goes up. False when this disk's state is stale. */
  async #round(): Promise<boolean> {
    const { store, generations, counters } = this.#target;
    const storage = this.#storage;
    const generation = await this.#ready();
    if (generation === undefined) return false;
    // On disk before anything is put under it: what is put is known as our own afterwards.
    if (storage.index.generation < generation) await storage.adopt(generation);
    const { index, changes } = storage;
    const before = { puts: counters.puts, pending: this.pendingBytes, urgent: this.#urgent, unmerged: this.#unmerged };
    this.#urgent = false;
    this.#dirtySince = undefined;
    if (!(await this.#putFiles(index))) {
      this.#dirtySince = performance.now();
      this.#urgent = true;
      return true;
    }
    await failpoint('pageserver.upload.before-index');
    const key = indexObject(this.#project, this.#timeline, generation);
    const name = key.slice(key.lastIndexOf('/') + 1);
    const { bytes, reference } = await sealIndex({ ...index, generation, remote: null }, name, storage.files.keys);
    // An index put that was given up as unanswered must not come through after a newer one: what it names may be deleted by then.
    if (this.#indexObject?.key !== key) this.#indexObject = new ReplacedObject(store, key);
    await this.#indexObject.put(bytes);
    counters.puts++;
    counters.indexPuts++;
    counters.putBytes += bytes.length;
    await failpoint('pageserver.upload.after-index');
    this.#log.debug(
      { walBytes: before.pending, urgent: before.urgent, puts: counters.puts - before.puts, unmerged: before.unmerged },
      'uploaded',
    );
    generations.published(this.#project, this.#timeline, { generation, version: index.version });
    await generations.validate(this.#project);
    const names = namesOf(index);
    const named = new Set(names);
    for (const old of this.#there) if (!named.has(old)) this.#garbage.add(old);
    await storage.setRemote({ generation, version: index.version, diskConsistentLsn: index.diskConsistentLsn, names });
    this.remoteConsistentLsn = index.diskConsistentLsn as Lsn;
    this.#uploadedChanges = changes;
    this.indexKekVersion = reference.length === 0 ? Number.MAX_SAFE_INTEGER : decodeDekReference(reference).kekVersion;
    if (!this.clean) this.#dirtySince ??= performance.now();
    try {
      await this.#collectGarbage(named);
    } finally {
      this.#settle();
    }
    return true;
  }

  /** Our generation, once it is known that nobody has published since what is on this disk was written. */
  async #ready(): Promise<number | undefined> {
    const { generations, store } = this.#target;
    const attached = await generations.attachEventually(this.#project, this.#stop.signal);
    const { generation } = attached;
    if (generation === this.#generation) return generation;
    const { index, files } = this.#storage;
    const published = attached.timelines.find((t) => t.timeline === this.#timeline)?.published.generation ?? 0;
    // What this disk comes from is the lowest that is of interest, and after a store was put back it may be below what was published since.
    const floor = Math.max(1, index.remote?.generation ?? Math.min(published, generation));
    let found = await findIndex(store, files, { below: generation + 1, floor, list: false });
    if (index.remote !== null && index.remote !== undefined && isOlder(found, index.remote)) {
      // What was put once need not be there: what is, an index below says, however old it is.
      this.#there.clear();
      found ??= await findIndex(store, files, { below: floor, floor, list: true });
      this.#uploadedChanges = -1;
      this.#dirtySince ??= performance.now();
      this.#log.error(
        { there: found?.index.generation ?? null, put: index.remote.generation },
        'the object store has an older state of this timeline than was put there: it was put back to an earlier state; what it lacks is put again',
      );
    }
    if (found !== undefined && found.index.generation >= generation && index.generation < generation) {
      // Nobody but us may have this generation: the Manager has forgotten some.
      generations.refuse(this.#project, found.index.generation);
      throw new LakebaseError('UNAVAILABLE', `generation ${generation} was in use before; asking for a higher one`);
    }
    // Versions grow along a line of generations: a higher one of our own line means that this disk was put back.
    if (found !== undefined && (found.index.generation > index.generation || found.index.version > index.version)) {
      this.#log.warn(
        { ours: index.generation, newest: found.index.generation },
        'the store has a newer state of this timeline than this disk',
      );
      this.onStale();
      return undefined;
    }
    if (found !== undefined) {
      const same = new Map(namedWithHash(index));
      for (const [n, hash] of namedWithHash(found.index))
        if (!same.has(n)) this.#garbage.add(n);
        else if (same.get(n) === hash) this.#there.add(n);
        else this.#there.delete(n);
      this.#olderIndexes.add(found.index.generation);
    } else this.#there.clear();
    this.#generation = generation;
    // The next one shall not have to try too many names.
    if (found !== undefined && generation - found.index.generation > GENERATIONS_WITHOUT_INDEX) this.#uploadedChanges = -1;
    return generation;
  }

  /** False when maintenance removed a file meanwhile: the state to put is another one now. */
  async #putFiles(index: TimelineIndex): Promise<boolean> {
    const { store, counters } = this.#target;
    const { directory } = this.#storage.files;
    const sizes = new Map(index.layers.map((d) => [d.name, d.bytes]));
    // What a merge may replace while the others go up comes last.
    const fleeting = new Set(index.layers.filter((d) => d.level === 0 && d.kind === 'delta').map((d) => d.name));
    const lacking = namesOf(index).filter((name) => !this.#there.has(name));
    const todo = [...lacking.filter((name) => !fleeting.has(name)), ...lacking.filter((name) => fleeting.has(name))];
    let stale = false;
    const put = async (): Promise<void> => {
      for (let name = todo.shift(); name !== undefined && !stale; name = todo.shift()) {
        this.#stop.signal.throwIfAborted();
        await failpoint('pageserver.upload.before-layer');
        const path = join(directory, name);
        try {
          const size = sizes.get(name) ?? statSync(path).size;
          await store.put(timelineObject(this.#project, this.#timeline, name), { path, size }, { signal: this.#stop.signal });
          counters.puts++;
          counters.putBytes += size;
        } catch (error) {
          if (namesOf(this.#storage.index).includes(name)) throw error;
          stale = true;
          return;
        }
        this.#there.add(name);
        await failpoint('pageserver.upload.after-layer');
        // A merge that ended meanwhile has replaced what is still to be put: what it made goes up in its place.
        stale ||= this.#storage.index.layers !== index.layers && todo.some((n) => !namesOf(this.#storage.index).includes(n));
      }
    };
    await Promise.all(Array.from({ length: PUTS_AT_ONCE }, put));
    return !stale;
  }

  /** What is left undone is done after the next index, or found by the scrubber. */
  async #collectGarbage(named: ReadonlySet<string>): Promise<void> {
    const { store, counters } = this.#target;
    const names = [...this.#garbage].filter((name) => !named.has(name));
    const keys = [
      ...names.map((name) => timelineObject(this.#project, this.#timeline, name)),
      ...[...this.#olderIndexes].filter((g) => g !== this.#generation).map((g) => indexObject(this.#project, this.#timeline, g)),
    ];
    if (keys.length === 0) return;
    await failpoint('pageserver.delete.before-objects');
    await store.delete(keys, { signal: this.#stop.signal });
    counters.deletes += keys.length;
    for (const name of names) {
      this.#garbage.delete(name);
      this.#there.delete(name);
    }
    this.#olderIndexes.clear();
  }
}

/** Two files of one name and another content are two files: a disk that was put back may have used a name again. */
function namedWithHash(index: TimelineIndex): [string, string][] {
  const { layers } = index;
  return [
    ...layers.map((d): [string, string] => [d.name, d.hash]),
    ...sealedObjectsOf(index).map((o): [string, string] => [o.file, o.hash ?? '']),
  ];
}
