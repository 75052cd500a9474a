/** Suspend, start fresh from storage, and look: pg_dumpall before and after must be equal (unlogged tables apart: they are empty on a fresh compute, as
 *  after a crash), pg_amcheck must find nothing it does not also find on the
 *  stock server that ran the same suites. */
import { join } from 'node:path';
import { differentLines } from './outputs.ts';
import { run, SUPERUSER, type Target } from './driver.ts';
import type { SourceTree } from './source-tree.ts';

export interface RestartReport {
  readonly dumpBytes: number;
  readonly dumpDifferences: readonly string[];
  readonly amcheck: readonly string[];
}

const connection = (t: Target): string[] => ['-h', t.socketDir, '-p', String(t.port), '-U', SUPERUSER];

export async function dump(tree: SourceTree, target: Target): Promise<string> {
  const { code, output } = await run(
    join(tree.prefix, 'bin', 'pg_dumpall'),
    [...connection(target), '--no-sync', '--no-unlogged-table-data'],
    {
      libDir: join(tree.prefix, 'lib'),
      limitMs: 900_000,
    },
  );
  if (code !== 0) throw new Error(`pg_dumpall of ${target.name} ended with ${code}:\n${output.slice(-2_000)}`);
  // Since the August 2025 releases a dump is bracketed by a random key.
  return output.replaceAll(/^\\(un)?restrict .*$/gm, '');
}

/** Lines of complaint; empty when all is well. */
export async function amcheck(tree: SourceTree, target: Target): Promise<string[]> {
  const { code, output } = await run(
    join(tree.prefix, 'bin', 'pg_amcheck'),
    [...connection(target), '--all', '--install-missing', '--heapallindexed', '--parent-check', '--no-strict-names'],
    { libDir: join(tree.prefix, 'lib'), limitMs: 1_800_000 },
  );
  const lines = output.split('\n').filter((line) => line.trim() !== '');
  return code === 0 ? [] : [`pg_amcheck ended with ${code}`, ...lines.slice(0, 40)];
}

export function compareDumps(before: string, after: string): string[] {
  return before === after ? [] : differentLines(before, after).slice(0, 40);
}
