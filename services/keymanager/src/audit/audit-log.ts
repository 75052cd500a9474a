/** Append-only, hash-chained log of what happened to keys, and who did it.
 *  Invariants
 *  - {@link AuditLog.record} resolves when the line is durable; what it reports on is not answered to anybody before that.
 *  - Lines never hold key material, wrapped keys or credentials.
 *  - A line torn by a crash was not durable, so nobody was told: it is cut off at the next start, which is itself a line.
 *  - A broken chain is told (a line, a metric, /healthz) and does not stop the service: a damaged log must not take the data away. */
import { chmodSync, closeSync, fdatasync, fstatSync, fsyncSync, ftruncateSync, mkdirSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { AuditEntry } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import { type AuditHead, type AuditLine, NO_LINES, auditFileName, auditFiles, hashLine, verifyAudit } from './audit-file.ts';
import { type AuditRetention, anchorAfter, prunable, readAnchor, removeAnchored, writeAnchor } from './audit-retention.ts';
import { syncDirectory } from '../store/durable-file.ts';

const FILE_BYTES_MAX = 64 * 1024 * 1024;
/** A quiet log begins a new file now and then, so that old lines can go while newer ones stay. */
const FILE_DAYS_MAX = 7;
const DAY_MS = 86_400_000;
const FILES_AT_START = 4;
const TEXT_MAX = 2_000;
const LAZY_MS = 1_000;
const datasync = promisify(fdatasync);

export interface AuditLogOptions {
  readonly dir: string;
  readonly log: Logger;
  readonly now: () => number;
  /** Heads that key records noted. */
  readonly expect?: readonly AuditHead[];
  readonly onLine?: (line: AuditLine) => void;
  /** Told of every line that is written. */
  readonly appended?: (entry: AuditEntry) => void;
  /** What is kept; everything when absent. */
  readonly retention?: AuditRetention;
  /** Lines of which the newest of each subject outlives its file. */
  readonly isChange?: (line: AuditLine) => boolean;
  /** Of one file, for tests. */
  readonly fileBytesMax?: number;
}

export class AuditLog {
  readonly #o: AuditLogOptions;
  #fd: number;
  #bytes: number;
  #head: AuditHead;
  #durable: AuditHead;
  #problem: string | undefined;
  /** Lines written but not known to be durable. */
  #dirty = false;
  #syncing: Promise<void> | undefined;
  #lazy: NodeJS.Timeout | undefined;
  #closed = false;
  #fileSince: number;
  #pruning: Promise<number> | undefined;

  private constructor(options: AuditLogOptions, fd: number, head: AuditHead) {
    this.#o = options;
    this.#fd = fd;
    this.#bytes = fstatSync(fd).size;
    this.#head = head;
    this.#durable = head;
    this.#fileSince = options.now();
  }

  static async open(options: AuditLogOptions): Promise<AuditLog> {
    mkdirSync(options.dir, { recursive: true, mode: 0o700 });
    chmodSync(options.dir, 0o700);
    let anchor: ReturnType<typeof readAnchor>;
    let anchorProblem: string | undefined;
    try {
      anchor = readAnchor(options.dir);
    } catch (error) {
      anchorProblem = errorMessage(error);
    }
    removeAnchored(options.dir, anchor);
    for (const line of anchor?.changes ?? []) options.onLine?.(line);
    const files = auditFiles(options.dir);
    const newest = files.at(-1);
    const cut = newest === undefined ? 0 : cutTornLine(newest.path);
    // A quarter of a gigabyte now (a second or so), everything in verifyAll: years of lines must not delay a start.
    const verdict = await verifyAudit(options.dir, {
      from: files.at(-FILES_AT_START)?.first ?? 1,
      anchor,
      ...(options.expect === undefined ? {} : { expect: options.expect }),
      ...(options.onLine === undefined ? {} : { onLine: options.onLine }),
    });
    let head: AuditHead;
    if (verdict.ok) head = verdict.head;
    else head = lastLine(options.dir) ?? anchor ?? NO_LINES;
    const path = newest?.path ?? join(options.dir, auditFileName((anchor?.sequence ?? 0) + 1));
    const log = new AuditLog(options, openSync(path, 'a', 0o600), head);
    syncDirectory(options.dir);
    if (cut > 0)
      log.append({ ...OWN, action: 'AUDIT_REPAIR', result: 'OK', detail: `a line of ${cut} bytes that a crash had torn was cut off` });
    if (anchorProblem !== undefined) log.#broken(anchorProblem);
    else if (!verdict.ok) log.#broken(`${verdict.file}, line ${verdict.sequence}: ${verdict.problem}`);
    return log;
  }

  /** Set when the chain does not hold. */
  get problem(): string | undefined {
    return this.#problem;
  }
  get head(): AuditHead {
    return this.#head;
  }
  /** The last line that a crash cannot take away: what records may note. */
  get durableHead(): AuditHead {
    return this.#durable;
  }
  get dir(): string {
    return this.#o.dir;
  }

  /** Checks every line there is; slow, in the background. */
  async verifyAll(expect: readonly AuditHead[] = []): Promise<boolean> {
    await this.flush();
    await this.#pruning; // files must not go while they are read
    const verdict = await verifyAudit(this.#o.dir, { expect, anchor: readAnchor(this.#o.dir) });
    if (!verdict.ok && this.#problem === undefined) this.#broken(`${verdict.file}, line ${verdict.sequence}: ${verdict.problem}`);
    return verdict.ok;
  }

  /** Durable on return. */
  async record(entry: AuditEntry): Promise<number> {
    const { sequence } = this.append(entry);
    await this.flush();
    return sequence;
  }

  /** In the file on return, durable within a second or with the next {@link record}. */
  append(entry: AuditEntry): AuditHead {
    if (this.#closed) throw new LakebaseError('CLOSED', 'the audit log is closed');
    const text = JSON.stringify({
      sequence: this.#head.sequence + 1,
      time: new Date(this.#o.now()).toISOString(),
      actor: short(entry.actor),
      action: short(entry.action),
      account: short(entry.account),
      subject: short(entry.subject),
      result: entry.result,
      detail: short(entry.detail),
      previous: this.#head.hash,
    });
    const bytes = Buffer.from(`${text}\n`);
    const full = this.#bytes + bytes.length > (this.#o.fileBytesMax ?? FILE_BYTES_MAX);
    if (full || (this.#bytes > 0 && this.#o.now() - this.#fileSince > FILE_DAYS_MAX * DAY_MS)) this.#nextFile();
    const written = writeSync(this.#fd, bytes);
    if (written !== bytes.length) {
      ftruncateSync(this.#fd, this.#bytes); // disk full: half a line must not stay
      throw new LakebaseError('RESOURCE_EXHAUSTED', 'the disk of the audit log is full: free some space');
    }
    this.#bytes += bytes.length;
    this.#head = { sequence: this.#head.sequence + 1, hash: hashLine(text) };
    this.#dirty = true;
    this.#lazy ??= setTimeout(() => {
      this.#lazy = undefined;
      void this.flush().catch((error: unknown) => this.#o.log.error({ err: errorMessage(error) }, 'cannot sync the audit log'));
    }, LAZY_MS).unref();
    this.#o.appended?.(entry);
    return this.#head;
  }

  /** Everything appended so far is durable on return; callers at the same time share a sync. */
  async flush(): Promise<void> {
    while (this.#dirty || this.#syncing !== undefined) {
      if (this.#syncing !== undefined) await this.#syncing;
      else {
        const head = this.#head;
        this.#dirty = false;
        this.#syncing = datasync(this.#fd)
          .then(() => void (this.#durable = head))
          .catch((error: unknown) => {
            this.#dirty = true;
            throw error;
          })
          .finally(() => (this.#syncing = undefined));
        await this.#syncing;
      }
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    await this.#pruning?.catch(() => {});
    await this.flush();
    this.#closed = true;
    clearTimeout(this.#lazy);
    closeSync(this.#fd);
  }

  /** Removes files that need not be kept; resolves with how many. One at a time. */
  prune(): Promise<number> {
    return (this.#pruning ??= this.#prune().finally(() => (this.#pruning = undefined)));
  }

  async #prune(): Promise<number> {
    const { dir, retention, isChange = () => false, now } = this.#o;
    if (retention === undefined || this.#closed || this.#problem !== undefined) return 0; // of a broken chain everything is evidence
    const doomed = prunable(dir, retention, now());
    if (doomed.length === 0) return 0;
    const anchor = await anchorAfter(dir, doomed, isChange);
    const detail = `lines up to ${anchor.sequence} are removed with their ${doomed.length} files (kept: ${retention.keepDays} days, ${retention.keepBytes} bytes; 0 is no limit); the last has SHA-256 ${anchor.hash}`;
    await this.record({ ...OWN, action: 'AUDIT_PRUNE', result: 'OK', detail });
    writeAnchor(dir, anchor);
    return removeAnchored(dir, anchor);
  }

  #nextFile(): void {
    const old = this.#fd;
    fsyncSync(old);
    if (this.#syncing === undefined) closeSync(old);
    else void this.#syncing.catch(() => {}).finally(() => closeSync(old)); // a sync of it is under way in another thread
    this.#fd = openSync(join(this.#o.dir, auditFileName(this.#head.sequence + 1)), 'ax', 0o600);
    this.#bytes = 0;
    this.#fileSince = this.#o.now();
    syncDirectory(this.#o.dir);
  }

  #broken(problem: string): void {
    this.#problem = problem;
    this.#o.log.error({ problem }, 'the chain of the audit log is broken');
    this.append({ ...OWN, action: 'AUDIT_BROKEN', result: 'FAILED', detail: problem });
  }
}

const OWN = { actor: 'keymanager', account: '', subject: 'audit log' } as const;
const short = (text: string): string => (text.length > TEXT_MAX ? `${text.slice(0, TEXT_MAX)}…` : text);

/** Bytes cut off. */
function cutTornLine(path: string): number {
  const fd = openSync(path, 'r+');
  try {
    const { size } = fstatSync(fd);
    const tail = Buffer.alloc(Math.min(size, 64 * 1024));
    readSync(fd, tail, 0, tail.length, size - tail.length);
    const torn = tail.length - (tail.lastIndexOf(0x0a) + 1);
    if (torn > 0) {
      ftruncateSync(fd, size - torn);
      fsyncSync(fd);
    }
    return torn;
  } finally {
    closeSync(fd);
  }
}

/** Where to go on after a broken chain. */
export function lastLine(dir: string): AuditHead | undefined {
  for (const { path, first } of auditFiles(dir).reverse()) {
    const fd = openSync(path, 'r');
    try {
      const { size } = fstatSync(fd);
      const tail = Buffer.alloc(Math.min(size, 64 * 1024));
      readSync(fd, tail, 0, tail.length, size - tail.length);
      const text = tail.toString('utf8').trimEnd().split('\n').at(-1) ?? '';
      if (text === '') continue;
      const sequence = /^\{"sequence":([0-9]{1,15}),/.exec(text)?.[1];
      return { sequence: sequence === undefined ? first : Number(sequence), hash: hashLine(text) };
    } finally {
      closeSync(fd);
    }
  }
  return undefined;
}
