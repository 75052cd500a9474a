/** Old files of the audit log go, what they proved stays: `audit/anchor.json` holds the sequence number and hash of the last line that was
 *  removed, so that the chain of what is left begins there, and the newest revision of each key record that a removed line knew of, so that
 *  an older copy of a record (from before a shredding, say) is still known for one. docs/formats/key-store.md
 *  Invariants: the newest file is never removed; a line AUDIT_PRUNE that names what goes is durable before the anchor is, and the anchor
 *  before a file goes; a removal cut short is finished at the next start. */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import { removeFile, replaceFile } from '../store/durable-file.ts';
import { type AuditHead, type AuditLine, auditFiles, hashLine, readAudit } from './audit-file.ts';

const FORMAT = 'lakebase audit anchor 1';
const DAY_MS = 86_400_000;

export interface AuditRetention {
  /** Files whose last line is older go; 0: none by age. */
  readonly keepDays: number;
  /** The oldest files go while there is more; 0: none by size. */
  readonly keepBytes: number;
}

/** The last line that was removed, and change lines that say which revision of a record is the newest: one for each project. */
export interface AuditAnchor extends AuditHead {
  readonly changes: readonly AuditLine[];
}

const anchorPath = (dir: string): string => join(dir, 'anchor.json');

/** Undefined when nothing was ever removed. */
export function readAnchor(dir: string): AuditAnchor | undefined {
  if (!existsSync(anchorPath(dir))) return undefined;
  try {
    const [head = '', body = ''] = readFileSync(anchorPath(dir), 'utf8').split('\n');
    const { format, sha256 } = JSON.parse(head) as { format?: string; sha256?: string };
    if (format === FORMAT && sha256 === hashLine(body)) return JSON.parse(body) as AuditAnchor;
  } catch {
    /* told below */
  }
  throw new LakebaseError('CORRUPT', `${anchorPath(dir)} is damaged: restore it from a backup of the key manager's directory`);
}

/** Files to remove now, oldest first. */
export function prunable(dir: string, keep: AuditRetention, now: number): string[] {
  const files = auditFiles(dir).map(({ path }) => ({ path, ...sizeAndAge(path, now) }));
  const doomed: string[] = [];
  let bytes = files.reduce((sum, f) => sum + f.bytes, 0);
  for (const file of files.slice(0, -1)) {
    const old = keep.keepDays > 0 && file.ageMs > keep.keepDays * DAY_MS;
    const tooMuch = keep.keepBytes > 0 && bytes > keep.keepBytes;
    if (!old && !tooMuch) break; // only from the old end: what is left is one piece
    doomed.push(file.path);
    bytes -= file.bytes;
  }
  return doomed;
}

function sizeAndAge(path: string, now: number): { bytes: number; ageMs: number } {
  const { size, mtimeMs } = statSync(path);
  return { bytes: size, ageMs: now - mtimeMs };
}

/** What the anchor will say once these files are gone. `isChange`: lines to keep the newest of, by subject. */
export async function anchorAfter(dir: string, doomed: readonly string[], isChange: (line: AuditLine) => boolean): Promise<AuditAnchor> {
  const files = auditFiles(dir);
  const next = files[doomed.length];
  if (next === undefined) throw new LakebaseError('INTERNAL', 'the newest audit file is never removed');
  const before = readAnchor(dir);
  const changes = new Map((before?.changes ?? []).map((line) => [line.subject, line]));
  let last: AuditHead | undefined;
  for await (const text of readAudit(dir, before?.sequence ?? 0)) {
    const line = JSON.parse(text) as AuditLine;
    if (line.sequence >= next.first) break;
    last = { sequence: line.sequence, hash: hashLine(text) };
    if (isChange(line)) changes.set(line.subject, line);
  }
  if (last?.sequence !== next.first - 1) throw new LakebaseError('CORRUPT', 'the audit log has a gap; nothing of it is removed');
  return { ...last, changes: [...changes.values()] };
}

export function writeAnchor(dir: string, anchor: AuditAnchor): void {
  const body = JSON.stringify(anchor);
  replaceFile(anchorPath(dir), Buffer.from(`${JSON.stringify({ format: FORMAT, sha256: hashLine(body) })}\n${body}\n`));
}

/** Removes every file that lies wholly before the anchor. */
export function removeAnchored(dir: string, anchor: AuditAnchor | undefined): number {
  const files = auditFiles(dir);
  const doomed = anchor === undefined ? [] : files.slice(0, -1).filter((_, i) => (files[i + 1]?.first ?? Infinity) <= anchor.sequence + 1);
  for (const { path } of doomed) removeFile(path);
  return doomed.length;
}
