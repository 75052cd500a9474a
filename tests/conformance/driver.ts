/** Runs one group of a suite with Postgres's own driver (pg_regress or pg_isolation_regress) against a running server.
 *  Invariants: the driver runs under the server's account (tests write files as both); its output directory is ours, never the source tree;
 *  results of all groups of a suite gather in one directory. */
import { spawn } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { accountName, unprivilegedAccount } from '@lakebase/service-kit';
import type { SourceTree } from './source-tree.ts';
import type { Suite } from './suites.ts';

export interface Target {
  readonly name: string;
  readonly socketDir: string;
  readonly port: number;
}

export const SUPERUSER = 'lakebase_admin';
const GROUP_LIMIT_MS = 20 * 60_000;

export interface TestOutcome {
  readonly test: string;
  /** As the driver judged it against the expected files. */
  readonly ok: boolean;
}

export interface GroupOutcome {
  readonly outcomes: readonly TestOutcome[];
  /** Set when the driver itself failed. */
  readonly failure: string | undefined;
  readonly ms: number;
}

const account = unprivilegedAccount();

export function ownedDirectory(path: string): string {
  mkdirSync(path, { recursive: true });
  if (account !== undefined) chownSync(path, account.uid, account.gid);
  chmodSync(path, 0o755);
  return path;
}

/** `first`: the driver makes the database; later groups go on in it. */
export async function runGroup(
  tree: SourceTree,
  suite: Suite,
  group: readonly string[],
  target: Target,
  outputDir: string,
  first: boolean,
): Promise<GroupOutcome> {
  ownedDirectory(outputDir);
  const scheduleFile = join(outputDir, 'group.schedule');
  // The isolation driver takes one test a line; contrib's tests depend on each other in order.
  const parallel = suite.kind === 'regress' && suite.name === 'regress';
  writeFileSync(scheduleFile, parallel ? `test: ${group.join(' ')}\n` : group.map((test) => `test: ${test}\n`).join(''));
  const driver =
    suite.kind === 'regress'
      ? join(tree.source, 'src/test/regress/pg_regress')
      : join(tree.source, 'src/test/isolation/pg_isolation_regress');
  const started = performance.now();
  const { code, output } = await run(
    driver,
    [
      `--inputdir=${suite.inputDir}`,
      ...(tree.major >= 16 ? [`--expecteddir=${suite.inputDir}`] : []),
      `--outputdir=${outputDir}`,
      `--bindir=${join(tree.prefix, 'bin')}`,
      `--host=${target.socketDir}`,
      `--port=${target.port}`,
      `--user=${SUPERUSER}`,
      `--dbname=${suite.dbname}`,
      `--schedule=${scheduleFile}`,
      ...suite.arguments,
      ...(first ? [] : ['--use-existing']),
    ],
    { cwd: suite.inputDir, limitMs: GROUP_LIMIT_MS, libDir: join(tree.prefix, 'lib') },
  );
  const outcomes = parseTap(output);
  const complete = outcomes.length === group.length;
  return {
    outcomes,
    failure: complete && (code === 0 || code === 1) ? undefined : `${suite.name}: the driver ended with ${code}:\n${output.slice(-3_000)}`,
    ms: performance.now() - started,
  };
}

/** `ok 1     + boolean   38 ms` (16 and later). */
export function parseTap(output: string): TestOutcome[] {
  return [...output.matchAll(/^(not )?ok \d+\s+[-+] (\S+)/gm)].map((m) => ({ test: m[2] as string, ok: m[1] === undefined }));
}

/** Runs a program under the server's account. */
export function run(
  program: string,
  args: readonly string[],
  options: { readonly cwd?: string; readonly limitMs?: number; readonly libDir?: string; readonly onOutput?: (chunk: Buffer) => void } = {},
): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: options.cwd ?? '/',
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PATH: '/usr/local/bin:/usr/bin:/bin',
        LC_ALL: 'C',
        TMPDIR: '/tmp',
        USER: accountName(account?.uid ?? process.getuid?.() ?? 0),
        ...(options.libDir === undefined ? {} : { LD_LIBRARY_PATH: options.libDir }),
      },
      ...(account === undefined ? {} : { uid: account.uid, gid: account.gid }),
    });
    const chunks: Buffer[] = [];
    const keep = (chunk: Buffer): void => {
      chunks.push(chunk);
      options.onOutput?.(chunk);
    };
    child.stdout.on('data', keep);
    child.stderr.on('data', keep);
    const timer = setTimeout(() => child.kill('SIGKILL'), options.limitMs ?? 600_000);
    child.once('error', reject);
    child.once('close', (code) => {
      clearTimeout(timer);
      resolve({ code, output: Buffer.concat(chunks).toString('utf8') });
    });
  });
}
