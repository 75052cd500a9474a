/** `npm run bench -- --cipher-share`: which part of the system's processor time encryption takes, by samples of every stack (Linux `perf`, as root). Two
 *  systems side by side differ by more from run to run than encryption costs; this is one system, and its figures vary by tenths of a percent.
 *  A sample counts when anything on its stack is there for encryption's sake: ciphers, keys, what wipes plain memory or gives back what a cipher returned,
 *  the shim's XTS and the locks it needs, everything of the key manager. Compiled JavaScript is named by V8's jitdump, which knows when which code was where
 *  (the simpler perf map does not: it counted redo and copies as ciphers, up to a tenth of the time, 2026-11). What it cannot see: our own lines that V8 compiled
 *  into their callers (the calls they make are seen), and garbage. Hashes of objects are not encryption and do not count. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { LakebaseError, sleep } from '@lakebase/base';
import { Cluster, type ServiceName } from '@lakebase/testkit';
import { LakebaseArm } from './arms.ts';
import type { Plan } from './cases.ts';
import { encryptionWork } from './encryption.ts';
import { pgbench } from './pgbench.ts';
import { type Report, median } from './report.ts';

const SERVICES: readonly ServiceName[] = ['keymanager', 'sk1', 'sk2', 'sk3', 'pageserver', 'compute', 'manager', 'proxy'];
const SAMPLES_PER_SECOND = 2_999;
const ROUNDS = 3;
/** Told of each run. */
const REASONS = 12;
/** Until perf has attached to every processor. */
const PERF_STARTS_MS = 500;

const NODE = /\/(node|libnode[^/]*)$/;
const LIBRARIES = /\/(pgshim|libcrypto)[^/]*\.so/;
const OURS =
  /^JS:.*(packages\/(envelope|keys)\/|bytes\/dist\/(give-back|off-heap)|compute\/dist\/scratch-cipher|node:internal\/crypto\/(cipher|keys|hkdf|random))/;
const CIPHERS = /node::crypto::|ncrypto::|^_?(aes|gcm|ghash|vpaes)|^ossl_|^(EVP|CRYPTO|OPENSSL)_|ArrayBufferPrototypeTransfer/;
const HASHES = /Hash|Digest|sha(1|256|512)|SHA(1|256|512)/;
const SHIM = /xts|first_tweaks|may_hold_zeros|decrypt_around_zeros/;
const LOCKS = /fcntl_setlk|posix_lock_inode/;

interface Frame {
  readonly symbol: string;
  /** Program, library or, of compiled JavaScript, the file made of it. */
  readonly of: string;
}
interface Sample {
  readonly command: string;
  readonly pid: number;
  readonly stack: readonly Frame[];
}

/** What on a sample's stack is there for encryption's sake, the outermost of it; undefined: nothing. */
export function forEncryption(stack: readonly Frame[]): string | undefined {
  const hashes = stack.some(({ symbol, of }) => NODE.test(of) && HASHES.test(symbol));
  return stack.findLast(
    ({ symbol, of }) =>
      OURS.test(symbol) ||
      LOCKS.test(symbol) ||
      (!hashes && NODE.test(of) && CIPHERS.test(symbol)) ||
      (LIBRARIES.test(of) && SHIM.test(symbol)),
  )?.symbol;
}

export async function cipherShare(binary: string, plan: Plan, report: Report): Promise<void> {
  if (spawnSync('perf', ['--version']).status !== 0 || process.getuid?.() !== 0)
    throw new LakebaseError('CONFIG', 'the share of ciphers is sampled with perf, as root: install it (Debian: apt install linux-perf)');
  const directory = mkdtempSync(join(tmpdir(), 'lb-share-'));
  try {
    await using arm = new LakebaseArm(await Cluster.start({ env: { NODE_OPTIONS: '--perf-prof' } }));
    await pgbench(binary, await arm.connection(), ['-i', '-q', '-s', String(plan.scale)]);
    await arm.settle();
    const shares = new Map<string, number[]>();
    for (let round = 0; round <= ROUNDS; round++)
      for (const work of encryptionWork(binary, plan)) {
        await work.prepare?.(arm);
        if (round === 0) {
          await work.run(arm); // what it compiles is not what is asked for
          continue;
        }
        const recording = join(directory, 'perf.data');
        const pids = new Set(processes(arm.cluster));
        const stop = await record(recording);
        try {
          await work.run(arm);
        } finally {
          await stop();
        }
        for (const pid of processes(arm.cluster)) pids.add(pid);
        const { share, most } = await shareOf(recording, pids, new Set(arm.cluster.pids('keymanager')));
        process.stdout.write(`  ${work.id}: ${percent(share)} % (${most})\n`);
        shares.set(work.id, [...(shares.get(work.id) ?? []), share]);
      }
    report.note(`part of the system's processor time that encryption takes, median of ${ROUNDS} runs (and extremes):`);
    for (const [id, list] of shares)
      report.note(`${id}: ${percent(median(list))} % (${percent(Math.min(...list))}–${percent(Math.max(...list))})`);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

const percent = (share: number): string => (share * 100).toFixed(1);

/** Records every processor until the returned function is called. */
async function record(path: string): Promise<() => Promise<void>> {
  const perf = spawn('perf', ['record', '-k', 'mono', '-F', String(SAMPLES_PER_SECOND), '-g', '-a', '-o', path], { stdio: 'ignore' });
  const exited = once(perf, 'exit');
  await sleep(PERF_STARTS_MS);
  return async () => {
    if (!perf.kill('SIGINT'))
      throw new LakebaseError('CONFIG', `perf record ended by itself, with ${perf.exitCode}: may this user sample all processors?`);
    await exited;
  };
}

async function shareOf(
  recording: string,
  pids: ReadonlySet<number>,
  keyManager: ReadonlySet<number>,
): Promise<{ share: number; most: string }> {
  const named = `${recording}.named`;
  const inject = spawn('perf', ['inject', '-j', '-i', recording, '-o', named], { stdio: 'ignore' });
  const [code] = (await once(inject, 'exit')) as [number];
  if (code !== 0) throw new LakebaseError('INTERNAL', `perf inject ended with ${code}`);
  let [all, encryption] = [0, 0];
  const reasons = new Map<string, number>();
  for await (const sample of samples(named)) {
    // Backends and parallel workers come and go; there is no other Postgres here.
    if (!pids.has(sample.pid) && sample.command !== 'postgres') continue;
    all++;
    const symbol = forEncryption(sample.stack);
    const ofKeyManager = keyManager.has(sample.pid);
    if (symbol === undefined && !ofKeyManager) continue;
    encryption++;
    const reason = ofKeyManager ? 'key manager' : `${sample.command} ${symbol?.replace(/^JS:.'?|(?: |:\d|file:|node:).*$/g, '')}`;
    reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
  }
  for (const name of readdirSync(join(named, '..'))) if (name.startsWith('jitted-')) rmSync(join(named, '..', name));
  if (all === 0) throw new LakebaseError('INTERNAL', 'perf took no sample of the system');
  const most = [...reasons].sort((a, b) => b[1] - a[1]).slice(0, REASONS);
  return { share: encryption / all, most: most.map(([reason, n]) => `${reason} ${percent(n / all)}`).join(', ') };
}

/** A sample is a line `command pid/tid`, a line `address symbol (file)` for each frame, innermost first, and an empty line. */
async function* samples(path: string): AsyncGenerator<Sample> {
  const perf = spawn('perf', ['script', '-i', path, '-F', 'comm,pid,tid,ip,sym,dso'], { stdio: ['ignore', 'pipe', 'ignore'] });
  let head: { command: string; pid: number } | undefined;
  let stack: Frame[] = [];
  for await (const line of createInterface({ input: perf.stdout })) {
    if (line.trim() === '') {
      if (head !== undefined) yield { ...head, stack };
      head = undefined;
      stack = [];
    } else if (head === undefined) {
      const [, command = '', pid = ''] = /^\s*(.*?)\s+(\d+)\/\d+\s*$/.exec(line) ?? [];
      head = { command, pid: Number(pid) };
    } else {
      const [, symbol = '', of = ''] = /^\s*[0-9a-f]+ (.*) \((.*)\)$/.exec(line) ?? [];
      stack.push({ symbol, of });
    }
  }
}

/** All processes of a system: its services and what they started. */
function processes(cluster: Cluster): number[] {
  const children = new Map<number, number[]>();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
      children.set(parent, [...(children.get(parent) ?? []), Number(name)]);
    } catch {
      // it has just ended
    }
  }
  const all = SERVICES.flatMap((service) => cluster.pids(service));
  for (let i = 0; i < all.length; i++) all.push(...(children.get(all[i] as number) ?? []));
  return all;
}
