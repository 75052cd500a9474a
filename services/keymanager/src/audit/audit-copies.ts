/** The audit log in the object store, so that the loss of the key manager's disk is not the loss of what it saw. docs/formats/key-store.md
 *  Segments of about a megabyte, each named by its first line; the last one is replaced as it grows. A head says where the first begins.
 *  Invariants
 *  - Where a segment ends follows from the lines alone, so putting it again changes nothing and nobody has to remember what was put.
 *  - A line that says a key record was changed is copied after the copy of that record (`held`): a log that came back never knows of a newer record than
 *    came back with it.
 *  - What a record's copy notes of the log is in the log's copy ({@link AuditCopies.copied}).
 *  - Lines come back only as far as they follow one another. */
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { zstdCompress, zstdDecompress } from 'node:zlib';
import type { AuditEntry } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage, isCode } from '@lakebase/base';
import { AUDIT_HEAD_OBJECT, type ObjectStore, ReplacedObject, auditSegmentObject } from '@lakebase/object-store';
import { syncDirectory } from '../store/durable-file.ts';
import type { CopySeal } from '../store/sealed-copy.ts';
import { type AuditHead, NO_LINES, auditFileName, auditFiles, hashLine, parse, readAudit } from './audit-file.ts';
import { type AuditLog, lastLine } from './audit-log.ts';
import { type AuditAnchor, readAnchor, writeAnchor } from './audit-retention.ts';

const FORMAT = 'lakebase audit head 1';
const SEGMENT_BYTES = 1024 * 1024;
const SEGMENT_BYTES_MAX = 16 * SEGMENT_BYTES;
const SOON_MS = 500;
/** Probes that succeeded, as they do every few seconds. */
const ROUTINE_MS = 300_000;
const RETRY_MS = 5_000;
const PUT_MS = 10_000;
const CLOSE_MS = 3_000;
const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);

interface Head {
  readonly format: string;
  /** First line of the first segment there is, and of the last one when this was written. */
  readonly first: number;
  readonly last: number;
  readonly anchor: AuditAnchor | null;
}
interface Segment {
  readonly first: number;
  lines: string[];
  bytes: number;
  object: ReplacedObject;
}

export interface AuditCopiesOptions {
  readonly store: ObjectStore;
  readonly seal: CopySeal;
  readonly log: Logger;
  /** Changed records are not copied yet: lines wait for them. */
  readonly held: () => boolean;
  readonly routineMs?: number;
  readonly segmentBytes?: number;
}

export type RestoredLog =
  | { readonly kind: 'NOTHING' }
  | { readonly kind: 'RESTORED'; readonly lines: number; readonly last: number; readonly problem: string | undefined };

export class AuditCopies {
  readonly #o: AuditCopiesOptions;
  readonly #head: ReplacedObject;
  readonly #stop = new AbortController();
  #audit: AuditLog | undefined;
  #copied: AuditHead = NO_LINES;
  #segment: Segment | undefined;
  #headKnown: Head | undefined;
  #timer: NodeJS.Timeout | undefined;
  #dueAt = Infinity;
  #working: Promise<void> | undefined;
  #failing = false;

  constructor(options: AuditCopiesOptions) {
    this.#o = options;
    this.#head = new ReplacedObject(options.store, AUDIT_HEAD_OBJECT);
  }

  /** The last line that is known to be in the object store. */
  get copied(): AuditHead {
    return this.#copied;
  }
  /** Lines that a loss of the disk would take now. */
  get behind(): number {
    return Math.max(0, (this.#audit?.head.sequence ?? 0) - this.#copied.sequence);
  }

  /** Before the log is opened: what its disk lacks is written there from the copy, all at once. Lines that are on the disk stay as they are. */
  async restore(dir: string): Promise<RestoredLog> {
    const head = await this.#readHead();
    if (head === undefined) return { kind: 'NOTHING' };
    if (auditFiles(dir).length > 0 || existsSync(join(dir, 'anchor.json'))) return this.#extend(dir, head);
    const fresh = `${dir}.new`;
    rmSync(fresh, { recursive: true, force: true });
    mkdirSync(fresh, { recursive: true, mode: 0o700 });
    if (head.anchor !== null) writeAnchor(fresh, head.anchor);
    const restored = await this.#fetch(fresh, head.first, head.anchor ?? NO_LINES);
    syncDirectory(fresh);
    rmSync(dir, { recursive: true, force: true });
    renameSync(fresh, dir);
    syncDirectory(join(dir, '..'));
    this.#o.log.warn({ ...restored }, 'the audit log was not on the disk; it is restored from the object store');
    return { kind: 'RESTORED', ...restored };
  }

  /** A disk that was put back to an earlier day has fewer lines than their copy. */
  async #extend(dir: string, head: Head): Promise<RestoredLog> {
    let newest = 0;
    for (let first = head.last; ; ) {
      const lines = await this.#readSegment(first).catch(() => undefined);
      if (lines === undefined) break;
      newest = first + lines.length - 1;
      first = newest + 1;
    }
    const local = lastLine(dir) ?? readAnchor(dir) ?? NO_LINES;
    if (newest <= local.sequence) return { kind: 'NOTHING' };
    const restored = await this.#fetch(dir, head.first, local);
    syncDirectory(dir);
    this.#o.log.error(
      { ...restored, had: local.sequence },
      'the audit log on the disk was OLDER than its copy in the object store: the lines that were missing are added',
    );
    return { kind: 'RESTORED', ...restored };
  }

  /** Writes the lines behind `after` into files of `dir`, as far as they follow one another. */
  async #fetch(dir: string, from: number, after: AuditHead): Promise<{ lines: number; last: number; problem: string | undefined }> {
    let last = after;
    let problem: string | undefined;
    for (let first = from; problem === undefined; ) {
      let found: string[] | undefined;
      try {
        found = await this.#readSegment(first);
      } catch (error) {
        if (!isCode(error, 'CORRUPT')) throw error;
        problem = error.message;
      }
      if (found === undefined) break;
      first += found.length;
      const wanted = found.filter((text) => (parse(text)?.sequence ?? 0) > last.sequence);
      const at = wanted.findIndex((text, i) => parse(text)?.previous !== (i === 0 ? last.hash : hashLine(wanted[i - 1] as string)));
      if (at >= 0) problem = `line ${parse(wanted[at] as string)?.sequence ?? '?'} of the copy does not follow the one before`;
      const good = at >= 0 ? wanted.slice(0, at) : wanted;
      if (good.length === 0) continue;
      writeFileSync(join(dir, auditFileName(last.sequence + 1)), `${good.join('\n')}\n`, { mode: 0o600, flush: true });
      last = { sequence: last.sequence + good.length, hash: hashLine(good.at(-1) as string) };
    }
    return { lines: last.sequence - after.sequence, last: last.sequence, problem };
  }

  /** The log is open: what its copy lacks follows. */
  start(audit: AuditLog): void {
    this.#audit = audit;
    this.#due(0);
  }

  /** A line was written. */
  noticed(entry: AuditEntry): void {
    const routine = entry.action === 'KMS_UNWRAP' && entry.result === 'OK';
    this.#due(routine ? (this.#o.routineMs ?? ROUTINE_MS) : SOON_MS);
  }

  /** Everything that is durable is copied, or the error of it. */
  async flush(): Promise<void> {
    await this.#working?.catch(() => {});
    await this.#copy();
  }

  async close(): Promise<void> {
    clearTimeout(this.#timer);
    const giveUp = setTimeout(() => this.#stop.abort(new LakebaseError('CLOSED', 'stopped')), CLOSE_MS);
    try {
      await this.#working?.catch(() => {});
      if (this.#audit !== undefined && !this.#failing) await this.#audit.flush().then(() => this.#copy());
    } catch (error) {
      this.#o.log.warn({ err: errorMessage(error) }, 'the newest audit lines are not copied; they are at the next start');
    } finally {
      clearTimeout(giveUp);
      this.#stop.abort(new LakebaseError('CLOSED', 'stopped'));
    }
  }

  #due(ms: number): void {
    const at = performance.now() + ms;
    if (this.#audit === undefined || this.#stop.signal.aborted || at >= this.#dueAt) return;
    this.#dueAt = at;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#dueAt = Infinity;
      if (this.#working === undefined) this.#working = this.#round().finally(() => (this.#working = undefined));
      else void this.#working.finally(() => this.#due(0)); // what came after its look
    }, ms).unref();
  }

  async #round(): Promise<void> {
    try {
      await this.#audit?.flush();
      await this.#copy();
      if (this.#failing) this.#o.log.info({}, 'audit lines are copied to the object store again');
      this.#failing = false;
      if (this.#o.held()) this.#due(SOON_MS);
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      if (!this.#failing)
        this.#o.log.error({ err: errorMessage(error) }, 'audit lines are not copied to the object store; it is tried again');
      this.#failing = true;
      this.#due(RETRY_MS);
    }
  }

  async #copy(): Promise<void> {
    const audit = this.#audit;
    if (audit === undefined || this.#o.held()) return;
    const { dir } = audit;
    const until = audit.durableHead;
    if (until.sequence === this.#copied.sequence && until.hash === this.#copied.hash) return;
    this.#segment ??= await this.#firstSegment(dir);
    const limit = this.#o.segmentBytes ?? SEGMENT_BYTES;
    for await (const text of readAudit(dir, this.#segment.first + this.#segment.lines.length - 1)) {
      const sequence = parse(text)?.sequence ?? 0;
      if (sequence > until.sequence) break;
      if (this.#segment.bytes >= limit) {
        await this.#put(this.#segment);
        this.#segment = this.#newSegment(sequence);
      }
      this.#segment.lines.push(text);
      this.#segment.bytes += text.length + 1;
    }
    if (this.#segment.lines.length > 0) await this.#put(this.#segment);
    await this.#keepHead(dir, this.#segment.first);
  }

  async #put(segment: Segment): Promise<void> {
    const name = auditSegmentObject(segment.first);
    const sealed = await this.#o.seal.seal(name, await compress(Buffer.from(segment.lines.join('\n'))));
    await segment.object.put(sealed, { signal: AbortSignal.any([this.#stop.signal, AbortSignal.timeout(PUT_MS)]) });
    this.#copied = { sequence: segment.first + segment.lines.length - 1, hash: hashLine(segment.lines.at(-1) as string) };
  }

  #newSegment(first: number): Segment {
    return { first, lines: [], bytes: 0, object: new ReplacedObject(this.#o.store, auditSegmentObject(first)) };
  }

  /** Where to go on: the newest one that this disk has the lines of. */
  async #firstSegment(dir: string): Promise<Segment> {
    const begin = (readAnchor(dir)?.sequence ?? 0) + 1;
    this.#headKnown = await this.#readHead();
    const last = this.#headKnown?.last ?? 0;
    return this.#newSegment(last >= begin ? last : begin);
  }

  /** Which segment is the first, which the last, and what was removed before. */
  async #keepHead(dir: string, last: number): Promise<void> {
    const anchor = readAnchor(dir) ?? null;
    const known = this.#headKnown;
    if (known?.last === last && (known.anchor?.sequence ?? 0) === (anchor?.sequence ?? 0)) return;
    let first = known?.first ?? last;
    const gone: string[] = [];
    // Only what lies wholly before the anchor, and never the one that grows.
    while (anchor !== null && first < last) {
      const lines = await this.#readSegment(first);
      if (lines !== undefined && first + lines.length - 1 > anchor.sequence) break;
      gone.push(auditSegmentObject(first));
      first = lines === undefined ? last : first + lines.length;
    }
    const head: Head = { format: FORMAT, first, last, anchor };
    const sealed = await this.#o.seal.seal(AUDIT_HEAD_OBJECT, Buffer.from(JSON.stringify(head)));
    await this.#head.put(sealed, { signal: AbortSignal.any([this.#stop.signal, AbortSignal.timeout(PUT_MS)]) });
    this.#headKnown = head;
    if (gone.length > 0) await this.#o.store.delete(gone);
  }

  async #readHead(): Promise<Head | undefined> {
    const bytes = await this.#get(AUDIT_HEAD_OBJECT);
    if (bytes === undefined) return undefined;
    const head = JSON.parse((await this.#o.seal.open(AUDIT_HEAD_OBJECT, bytes)).toString('utf8')) as Head;
    if (head.format !== FORMAT)
      throw new LakebaseError('UNSUPPORTED', `${AUDIT_HEAD_OBJECT} has format ${head.format}, which this version does not know`);
    return head;
  }

  async #readSegment(first: number): Promise<string[] | undefined> {
    const name = auditSegmentObject(first);
    const bytes = await this.#get(name);
    if (bytes === undefined) return undefined;
    const plain = await this.#o.seal.open(name, bytes);
    const text = (await decompress(plain, { maxOutputLength: SEGMENT_BYTES_MAX })).toString('utf8');
    const lines = text.split('\n');
    if (parse(lines[0] ?? '')?.sequence !== first) throw new LakebaseError('CORRUPT', `object ${name} does not begin with line ${first}`);
    return lines;
  }

  async #get(name: string): Promise<Buffer | undefined> {
    try {
      return (await this.#o.store.get(name)).bytes;
    } catch (error) {
      if (isCode(error, 'NOT_FOUND')) return undefined;
      throw error;
    }
  }
}
