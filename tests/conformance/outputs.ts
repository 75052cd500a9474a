/** Compares what the two servers printed. Equal outputs are equal whatever the expected files say; an output that Postgres's own driver accepts is
 *  accepted too, because several outputs are right for some tests. Everything else must be in allowed-differences.ts. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ALLOWED_DIFFERENCES } from './allowed-differences.ts';
import type { TestOutcome } from './driver.ts';

export interface OutputVerdict {
  readonly test: string;
  readonly verdict: 'equal' | 'expected' | 'allowed' | 'different';
  /** The allowed difference's reason, or the first differing lines. */
  readonly detail: string;
  /** The driver's judgement on each side: [stock, ours]. */
  readonly ok: readonly [boolean, boolean];
}

export function compareOutputs(
  suite: string,
  stockDir: string,
  oursDir: string,
  stock: ReadonlyMap<string, boolean>,
  ours: readonly TestOutcome[],
): OutputVerdict[] {
  return ours.map(({ test, ok }) => {
    const stockOk = stock.get(test) ?? false;
    const [a, b] = [stockDir, oursDir].map((dir) => normalise(read(join(dir, 'results', `${test}.out`)), dir));
    const base = { test, ok: [stockOk, ok] as const };
    if (a !== undefined && a === b) return { ...base, verdict: 'equal', detail: '' };
    if (ok) return { ...base, verdict: 'expected', detail: '' };
    const differing = differentLines(a ?? '', b ?? '');
    const allowed = ALLOWED_DIFFERENCES.find((d) => d.suite === suite && d.test === test && differing.every((line) => d.lines.test(line)));
    if (allowed !== undefined) return { ...base, verdict: 'allowed', detail: allowed.reason };
    return { ...base, verdict: 'different', detail: differing.slice(0, 12).join('\n') };
  });
}

const read = (path: string): string | undefined => (existsSync(path) ? readFileSync(path, 'utf8') : undefined);

/** The two output directories have different names. */
const normalise = (text: string | undefined, dir: string): string | undefined => text?.replaceAll(dir, '<output>');

/** Lines only one side has (`<` stock, `>` ours), as a multiset: enough to judge and to read. */
export function differentLines(a: string, b: string): string[] {
  const count = new Map<string, number>();
  for (const line of a.split('\n')) count.set(line, (count.get(line) ?? 0) + 1);
  const extra: string[] = [];
  for (const line of b.split('\n')) {
    const left = count.get(line) ?? 0;
    if (left > 0) count.set(line, left - 1);
    else extra.push(`> ${line}`);
  }
  const missing = [...count].flatMap(([line, n]) => Array.from({ length: n }, () => `< ${line}`));
  const result = [...missing, ...extra];
  return result.length === 0 && a !== b ? ['the order of lines differs'] : result;
}
