/** Copies of key records in the object store, so that the loss of the key manager's disk is not the loss of all data: one object for each
 *  project, and a manifest that says which there are. docs/formats/key-store.md
 *  Invariants
 *  - Key material is in the copy before it is in use: {@link RecordCopies.put} is awaited before a new KEK, or a new wrapping, is current.
 *  - What is destroyed leaves the copy too: it is put again until it was, also over restarts (every record is put once after a start).
 *  - A copy never replaces a record that is on the disk, and one older than the manifest says is not used.
 *  - Without the root key that sealed the manifest nothing starts: a new installation must not write over the copies of another. */
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, type Logger, SerialQueue, backoffDelay, errorMessage, isCode, sleep, withDeadline } from '@lakebase/base';
import { type ProjectUid, parseProjectUid } from '@lakebase/ids';
import { KEY_MANIFEST_OBJECT, type ObjectStore, keyRecordObject } from '@lakebase/object-store';
import type { AuditHead } from '../audit/audit-file.ts';
import { readAnchor, writeAnchor } from '../audit/audit-retention.ts';
import { auditFiles } from '../audit/audit-file.ts';
import { replaceFile } from './durable-file.ts';
import { type ProjectRecord, decodeRecord, encodeRecord } from './project-record.ts';
import type { CopySeal } from './sealed-copy.ts';

const FORMAT = 'lakebase key manifest 1';
const PUT_MS = 10_000;
const CLOSE_MS = 3_000;
const RETRY = { baseMs: 500, maxMs: 60_000 };
const AT_ONCE = 8;
/** Wraps that the copy may not know of: two steps of what a record reserves. */
const WRAPS_MARGIN = 2 ** 21;

interface Manifest {
  readonly format: string;
  /** The newest revision that is known to be copied. */
  readonly projects: Readonly<Record<string, number>>;
}

export interface RecordCopiesOptions {
  readonly store: ObjectStore;
  readonly seal: CopySeal;
  readonly log: Logger;
  /** How far the audit log is copied: a record's copy notes no later line, which might not come back. */
  readonly auditCopied?: () => AuditHead;
}

export class RecordCopies {
  readonly #o: RecordCopiesOptions;
  readonly #stop = new AbortController();
  #manifest = new Map<string, number>();
  /** The newest record of each project that is not copied yet. */
  readonly #waiting = new Map<ProjectUid, ProjectRecord>();
  /** What this process put. A change that failed may have put a revision that the disk never got: the same number with other content follows. */
  readonly #copied = new Map<ProjectUid, { readonly revision: number; readonly content: Buffer }>();
  readonly #queues = new Map<ProjectUid, SerialQueue>();
  readonly #manifestQueue = new SerialQueue();
  #manifestDirty = false;
  #working: Promise<void> | undefined;

  constructor(options: RecordCopiesOptions) {
    this.#o = options;
  }

  /** Projects whose newest record is not in the object store yet. */
  get pending(): number {
    return this.#waiting.size;
  }

  /** Writes what the disk lacks from the copies, before anything else opens the directory. Resolves with the projects that came back. */
  async restore(recordsDir: string, auditDir: string): Promise<ProjectUid[]> {
    const manifest = await this.#readManifest();
    if (manifest === undefined) return [];
    this.#manifest = new Map(Object.entries(manifest.projects));
    mkdirSync(recordsDir, { recursive: true, mode: 0o700 });
    const here = new Set(readdirSync(recordsDir));
    const missing = [...this.#manifest.keys()].filter((project) => !here.has(`${project}.json`)).map(parseProjectUid);
    const restored: ProjectRecord[] = [];
    for (let at = 0; at < missing.length; at += AT_ONCE)
      for (const record of await Promise.all(missing.slice(at, at + AT_ONCE).map((project) => this.#readCopy(project))))
        if (record !== undefined) restored.push(record);
    if (restored.length === 0) return [];
    for (const record of restored) replaceFile(join(recordsDir, `${record.project}.json`), encodeRecord(record));
    if (auditFiles(auditDir).length === 0) lostLog(auditDir, restored);
    this.#o.log.warn(
      { projects: restored.length, of: missing.length },
      'key records were not on the disk; they are restored from the object store',
    );
    return restored.map((r) => r.project);
  }

  /** The copy holds this revision, or a newer one, on return. UNAVAILABLE when the object store does not take it in time. */
  async put(record: ProjectRecord): Promise<void> {
    try {
      await withDeadline(this.#put(record, AbortSignal.timeout(PUT_MS)), PUT_MS + 1_000, 'copy of a key record');
    } catch (cause) {
      throw new LakebaseError(
        'UNAVAILABLE',
        `the object store does not take the copy of the key record of project ${record.project}, without which the loss of one disk would be the loss of its data: ${errorMessage(cause)}`,
        { cause },
      );
    }
  }

  /** In the background, until it worked. */
  later(record: ProjectRecord): void {
    if (this.#stop.signal.aborted) return;
    const known = this.#waiting.get(record.project);
    if (known === undefined || known.revision <= record.revision) this.#waiting.set(record.project, record);
    this.#working ??= this.#work().finally(() => (this.#working = undefined));
  }

  /** What waits gets a moment more. */
  async close(): Promise<void> {
    if (this.#working !== undefined) await withDeadline(this.#working, CLOSE_MS, 'copies of key records').catch(() => {});
    this.#stop.abort(new LakebaseError('CLOSED', 'stopped'));
    await this.#working;
  }

  async #work(): Promise<void> {
    for (let attempt = 0; this.#waiting.size > 0 && !this.#stop.signal.aborted; ) {
      const some = [...this.#waiting.values()].slice(0, AT_ONCE);
      const results = await Promise.allSettled(
        some.map(async (record) => {
          await this.#put(record, AbortSignal.any([this.#stop.signal, AbortSignal.timeout(PUT_MS)]));
          if (this.#waiting.get(record.project) === record) this.#waiting.delete(record.project);
        }),
      );
      const failed = results.find((r) => r.status === 'rejected');
      if (failed === undefined) {
        attempt = 0;
        continue;
      }
      if (this.#stop.signal.aborted) return;
      if (attempt === 0)
        this.#o.log.error(
          { pending: this.#waiting.size, err: errorMessage(failed.reason) },
          'key records are not copied to the object store; it is tried again',
        );
      await sleep(backoffDelay(attempt++, RETRY), this.#stop.signal).catch(() => {});
    }
  }

  /** Older revisions never follow newer ones. */
  #put(record: ProjectRecord, signal: AbortSignal): Promise<void> {
    let queue = this.#queues.get(record.project);
    if (queue === undefined) this.#queues.set(record.project, (queue = new SerialQueue()));
    return queue.run(async () => {
      const noted = this.#o.auditCopied?.();
      const content = encodeRecord(noted !== undefined && noted.sequence < record.audit.sequence ? { ...record, audit: noted } : record);
      const copied = this.#copied.get(record.project);
      if (copied !== undefined && (copied.revision > record.revision || copied.content.equals(content))) return;
      const name = keyRecordObject(record.project);
      await this.#o.store.put(name, await this.#o.seal.seal(name, content), { signal });
      this.#copied.set(record.project, { revision: record.revision, content });
      await this.#noteRevision(record, signal);
    });
  }
  async #noteRevision({ project, revision }: ProjectRecord, signal: AbortSignal): Promise<void> {
    if (this.#manifest.get(project) !== revision) {
      this.#manifest.set(project, revision);
      this.#manifestDirty = true;
    }
    // Those that come meanwhile are in the next one together.
    await this.#manifestQueue.run(async () => {
      if (!this.#manifestDirty) return;
      this.#manifestDirty = false;
      try {
        const manifest: Manifest = { format: FORMAT, projects: Object.fromEntries(this.#manifest) };
        const sealed = await this.#o.seal.seal(KEY_MANIFEST_OBJECT, Buffer.from(JSON.stringify(manifest)));
        await this.#o.store.put(KEY_MANIFEST_OBJECT, sealed, { signal });
      } catch (error) {
        this.#manifestDirty = true;
        throw error;
      }
    });
  }

  async #readManifest(): Promise<Manifest | undefined> {
    let bytes: Buffer;
    try {
      ({ bytes } = await this.#o.store.get(KEY_MANIFEST_OBJECT));
    } catch (error) {
      if (isCode(error, 'NOT_FOUND')) return undefined;
      throw error;
    }
    const manifest = JSON.parse((await this.#o.seal.open(KEY_MANIFEST_OBJECT, bytes)).toString('utf8')) as Manifest;
    if (manifest.format !== FORMAT)
      throw new LakebaseError('UNSUPPORTED', `${KEY_MANIFEST_OBJECT} has format ${manifest.format}, which this version does not know`);
    return manifest;
  }

  async #readCopy(project: ProjectUid): Promise<ProjectRecord | undefined> {
    const name = keyRecordObject(project);
    try {
      const { bytes } = await this.#o.store.get(name);
      const record = decodeRecord(await this.#o.seal.open(name, bytes), project);
      const wanted = this.#manifest.get(project) as number;
      if (record.revision < wanted)
        throw new LakebaseError('CORRUPT', `object ${name} is an older copy: revision ${record.revision}, and ${wanted} was stored`);
      const keks = record.keks.map((k) => (k.state === 'CURRENT' ? { ...k, wrapsReserved: k.wrapsReserved + WRAPS_MARGIN } : k));
      return { ...record, keks };
    } catch (error) {
      if (error instanceof LakebaseError && ['CORRUPT', 'NOT_FOUND'].includes(error.code)) {
        this.#o.log.error(
          { project, err: error.message },
          'a key record is neither on the disk nor in the object store; the project stays locked',
        );
        return undefined;
      }
      throw error;
    }
  }
}

/** The audit log went with the disk: its chain begins anew behind the last line that a record noted, and says so. */
function lostLog(auditDir: string, records: readonly ProjectRecord[]): void {
  if (existsSync(auditDir) && readAnchor(auditDir) !== undefined) return;
  const newest = records.reduce<AuditHead>((head, { audit }) => (audit.sequence > head.sequence ? audit : head), {
    sequence: 0,
    hash: '0'.repeat(64),
  });
  if (newest.sequence === 0) return;
  mkdirSync(auditDir, { recursive: true, mode: 0o700 });
  writeAnchor(auditDir, { ...newest, changes: [] });
}
