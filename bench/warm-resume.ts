/** The first minute after a resume (campaign P4): select-only over four times shared_buffers on a fresh compute with the operating system's cache
 *  dropped, once with the hot set of the last compute fetched in the background, once without, and stock Postgres
 *  restarted over the same cold disk. */
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Cluster } from '@lakebase/testkit';
import { type Arm, LakebaseArm, query, stockArm } from './arms.ts';
import { parsePgbench, pgbench } from './pgbench.ts';
import { type Report, percentile } from './report.ts';

export interface WarmPlan {
  /** 15 MB each; 128 MB of shared buffers. */
  readonly scale: number;
  readonly seconds: number;
  readonly rounds: number;
}

const SELECT = ['-n', '-S', '-M', 'prepared', '-c', '8', '-j', '2'];
const HOT_SECONDS = 10;
const NEAR = 0.9;

export async function warmResume(binary: string, plan: WarmPlan, report: Report): Promise<void> {
  for (const way of ['hot set', 'nothing ahead', 'stock'] as const) {
    await using arm: Arm = way === 'stock' ? await stockArm() : await lakebase(way === 'hot set');
    await pgbench(binary, await arm.connection(), ['-i', '-q', '-s', String(plan.scale)]);
    await arm.settle();
    for (let round = 0; round < plan.rounds; round++) await measure(binary, arm, way, plan, report);
  }
}

async function lakebase(prefetch: boolean): Promise<LakebaseArm> {
  return new LakebaseArm(await Cluster.start({ env: { LAKEBASE_PREFETCH: prefetch ? '1' : '0' } }));
}

async function measure(binary: string, arm: Arm, way: string, plan: WarmPlan, report: Report): Promise<void> {
  // Everything local: the hot speed to compare with, and the set to remember.
  await query(arm, 'SELECT sum(abalance) FROM pgbench_accounts');
  await pgbench(binary, await arm.connection(), [...SELECT, '-T', String(HOT_SECONDS)]);
  const hot = parsePgbench(await pgbench(binary, await arm.connection(), [...SELECT, '-T', String(HOT_SECONDS)])).tps;
  await arm.cold();
  const first = await firstMinute(binary, arm, plan.seconds);
  const reached = first.perSecond.findIndex((tps) => tps >= NEAR * hot);
  const disk = arm instanceof LakebaseArm ? (await arm.compute())?.disk : undefined;
  const mean = first.perSecond.reduce((a, b) => a + b, 0) / Math.max(1, first.perSecond.length);
  const fetched =
    disk === undefined ? '' : `; prefetched ${Math.round((disk.prefetchedBytes ?? 0) / 2 ** 20)} MB (${disk.prefetch ?? 'off'})`;
  report.note(
    `resume, ${plan.scale * 15} MB select-only c=8, ${way}: hot ${hot.toFixed(0)} tps; first ${plan.seconds} s ${mean.toFixed(0)} tps (${((100 * mean) / hot).toFixed(0)} % of hot), ` +
      `p50 ${first.p50.toFixed(2)} ms, p99 ${first.p99.toFixed(2)} ms; ${NEAR * 100} % of hot ${reached < 0 ? 'not reached' : `after ${reached + 1} s`}; ` +
      `by second ${first.perSecond
        .slice(0, 15)
        .map((n) => Math.round(n))
        .join(' ')}${fetched}`,
  );
  report.samples.push({
    id: `first ${plan.seconds} s after a resume, ${way}, part of hot speed`,
    unit: '',
    arm: arm.name,
    value: mean / hot,
    higher: true,
  });
  report.samples.push({ id: `the same, p99, ${way}`, unit: 'ms', arm: arm.name, value: first.p99, higher: false });
}

async function firstMinute(binary: string, arm: Arm, seconds: number) {
  const dir = mkdtempSync(join(tmpdir(), 'lb-warm-'));
  try {
    const args = [...SELECT, '-T', String(seconds), '-l', `--log-prefix=${join(dir, 'log')}`];
    await pgbench(binary, await arm.connection(), args);
    const latencies: number[] = [];
    const counts = new Map<number, number>();
    for (const name of readdirSync(dir)) {
      for (const line of readFileSync(join(dir, name), 'utf8').split('\n')) {
        const fields = line.split(' '); // client, transaction, µs, script, epoch seconds, µs
        if (fields.length < 6) continue;
        latencies.push(Number(fields[2]) / 1_000);
        const second = Number(fields[4]);
        counts.set(second, (counts.get(second) ?? 0) + 1);
      }
    }
    const keys = [...counts.keys()].sort((a, b) => a - b);
    // The first and the last second of the clock are parts of one.
    const perSecond = keys.slice(0, -1).map((k) => counts.get(k) ?? 0);
    return { perSecond, p50: percentile(latencies, 0.5), p99: percentile(latencies, 0.99) };
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}
