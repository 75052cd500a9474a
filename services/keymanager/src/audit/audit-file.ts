/** The audit log's files and its chain: `audit-<first sequence, 12 digits>.log`, JSON lines, each with the SHA-256 of the line before.
 *  docs/formats/key-store.md. Reading and checking only; nothing here writes. */
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

export interface AuditLine {
  readonly sequence: number;
  readonly time: string;
  readonly actor: string;
  readonly action: string;
  readonly account: string;
  readonly subject: string;
  readonly result: string;
  readonly detail: string;
  /** SHA-256 of the previous line's text, hexadecimal; 64 zeros for the first. */
  readonly previous: string;
}

export interface AuditHead {
  readonly sequence: number;
  /** Of the last line. */
  readonly hash: string;
}

export const NO_LINES: AuditHead = { sequence: 0, hash: '0'.repeat(64) };
export const hashLine = (text: string): string => createHash('sha256').update(text).digest('hex');
export const auditFileName = (first: number): string => `audit-${String(first).padStart(12, '0')}.log`;

export function auditFiles(dir: string): { readonly path: string; readonly first: number }[] {
  if (!existsSync(dir)) return [];
  return readdirSync(dir)
    .map((name) => /^audit-([0-9]{12})\.log$/.exec(name))
    .filter((match) => match !== null)
    .map((match) => ({ path: join(dir, match[0]), first: Number(match[1]) }))
    .sort((a, b) => a.first - b.first);
}

export type AuditVerdict =
  | { readonly ok: true; readonly head: AuditHead; readonly lines: number }
  | { readonly ok: false; readonly file: string; readonly sequence: number; readonly problem: string };

export interface VerifyOptions {
  readonly from?: number;
  readonly expect?: readonly AuditHead[];
  /** The last line of those that were removed by age or size (audit-retention.ts). */
  readonly anchor?: AuditHead | undefined;
  /** Told of every line whose place in the chain is right. */
  readonly onLine?: (line: AuditLine) => void;
}

/** Checks the whole chain, or from the file on that holds `from`. `expect` are heads noted elsewhere (in key records): the log must contain
 *  them, so that it cannot be cut short or replaced by another one unseen. */
export async function verifyAudit(dir: string, options: VerifyOptions = {}): Promise<AuditVerdict> {
  const all = auditFiles(dir);
  const { from = 1, expect = [], anchor } = options;
  const files = all.filter((f, i) => (all[i + 1]?.first ?? Infinity) > from);
  const noted = new Map(expect.filter((e) => e.sequence >= (files[0]?.first ?? 1)).map((e) => [e.sequence, e.hash]));
  let head: AuditHead | undefined = files[0] === undefined || files[0].first === 1 ? NO_LINES : undefined;
  if (anchor !== undefined && (files[0] === undefined || files[0].first === anchor.sequence + 1)) head = anchor;
  else if (files[0] !== undefined && files[0].first > 1 && files[0] === all[0])
    return {
      ok: false,
      file: files[0].path,
      sequence: 1,
      problem: `lines are missing before this file, which begins with ${files[0].first}`,
    };
  let lines = 0;
  for (const { path, first } of files) {
    const bad = (problem: string): AuditVerdict => ({ ok: false, file: path, sequence: (head?.sequence ?? first - 1) + 1, problem });
    if (head !== undefined && first !== head.sequence + 1) return bad(`lines are missing before this file, which begins with ${first}`);
    for await (const text of createInterface({ input: createReadStream(path), crlfDelay: 0 })) {
      const line = parse(text);
      if (line === undefined) return bad('not an audit line');
      if (line.sequence !== (head?.sequence ?? first - 1) + 1) return bad(`sequence ${line.sequence} is out of order`);
      if (head !== undefined && line.previous !== head.hash)
        return bad('it does not follow the line before: that one or this one was changed');
      head = { sequence: line.sequence, hash: hashLine(text) };
      lines++;
      options.onLine?.(line);
      const want = noted.get(line.sequence);
      if (want !== undefined && want !== head.hash) return bad('it is not the line that the key records noted: the log was replaced');
    }
  }
  const last = Math.max(0, ...expect.map((e) => e.sequence));
  if (last > (head ?? NO_LINES).sequence)
    return {
      ok: false,
      file: files.at(-1)?.path ?? dir,
      sequence: (head ?? NO_LINES).sequence + 1,
      problem: `the log was cut short: key records know of line ${last}`,
    };
  return { ok: true, head: head ?? NO_LINES, lines };
}

export function parse(text: string): AuditLine | undefined {
  try {
    const line = JSON.parse(text) as AuditLine;
    return Number.isSafeInteger(line.sequence) && typeof line.previous === 'string' ? line : undefined;
  } catch {
    return undefined;
  }
}

/** Lines after `after`, as stored. */
export async function* readAudit(dir: string, after: number): AsyncGenerator<string> {
  const all = auditFiles(dir);
  for (const [i, { path }] of all.entries()) {
    if ((all[i + 1]?.first ?? Infinity) <= after + 1) continue;
    for await (const text of createInterface({ input: createReadStream(path), crlfDelay: 0 })) {
      if ((parse(text)?.sequence ?? 0) > after) yield text;
    }
  }
}
