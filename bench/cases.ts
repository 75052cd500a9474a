/** The cases that run against a server: throughput by pgbench, bulk work, cold reads, resume. Storage's own cases are in storage.ts. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chmodSync } from 'node:fs';
import { type Arm, type LakebaseArm, connect, query } from './arms.ts';
import { parsePgbench, pgbench } from './pgbench.ts';
import { type Report, median, percentile } from './report.ts';

export interface Plan {
  readonly seconds: number;
  readonly rounds: number;
  readonly scale: number;
  readonly hotScale: number;
  readonly copyRows: number;
  readonly resumes: number;
}

const CLIENTS = [1, 8, 32];
const SELECT_ONLY = ['-n', '-S', '-M', 'prepared', '-c', '8', '-j', '2'];

/** ABBA: the order turns round every round, so that drift of the machine hits every arm alike. */
const ordered = (arms: readonly Arm[], round: number): readonly Arm[] => (round % 2 === 0 ? arms : [...arms].reverse());

export async function throughput(binary: string, arms: readonly Arm[], plan: Plan, report: Report): Promise<void> {
  for (const arm of arms) await pgbench(binary, await arm.connection(), ['-i', '-q', '-s', String(plan.scale)]);
  for (const arm of arms) await arm.settle();
  for (let round = 0; round < plan.rounds; round++) {
    for (const clients of CLIENTS) {
      for (const arm of ordered(arms, round)) {
        const out = await pgbench(binary, await arm.connection(), [
          '-n',
          '-M',
          'prepared',
          '-c',
          String(clients),
          '-j',
          String(Math.min(clients, 2)),
          '-T',
          String(plan.seconds),
        ]);
        report.add({ id: `TPC-B c=${clients}`, unit: 'tps', arm: arm.name, value: parsePgbench(out).tps, higher: true });
      }
    }
    for (const arm of ordered(arms, round)) {
      const out = await pgbench(binary, await arm.connection(), [...SELECT_ONLY, '-T', String(plan.seconds)]);
      report.add({
        id: `select-only, ${plan.scale * 15} MB over 128 MB of buffers, c=8`,
        unit: 'tps',
        arm: arm.name,
        value: parsePgbench(out).tps,
        higher: true,
      });
    }
  }
}

/** Fits shared buffers. */
export async function hotSelect(binary: string, arms: readonly Arm[], plan: Plan, report: Report): Promise<void> {
  for (const arm of arms) {
    const connection = await arm.connection();
    await pgbench(binary, connection, ['-i', '-q', '-s', String(plan.hotScale)]);
    await pgbench(binary, connection, [...SELECT_ONLY, '-T', '3']);
  }
  for (let round = 0; round < plan.rounds; round++) {
    for (const arm of ordered(arms, round)) {
      const out = await pgbench(binary, await arm.connection(), [...SELECT_ONLY, '-T', String(plan.seconds)]);
      report.add({ id: 'select-only hot c=8', unit: 'tps', arm: arm.name, value: parsePgbench(out).tps, higher: true });
    }
  }
}

export async function bulk(arms: readonly Arm[], plan: Plan, report: Report): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), 'lb-bench-'));
  chmodSync(dir, 0o777);
  const file = join(dir, 'rows.tsv');
  try {
    const source = arms.find((a) => a.name === 'stock') ?? (arms[0] as Arm);
    await query(source, `COPY (SELECT i, md5(i::text), md5((i * 7)::text) FROM generate_series(1, ${plan.copyRows}) i) TO '${file}'`);
    for (let round = 0; round < plan.rounds; round++) {
      for (const arm of ordered(arms, round)) {
        await query(arm, 'DROP TABLE IF EXISTS bulk; CREATE TABLE bulk (i bigint, a text, b text)');
        await timed(arm, report, `COPY ${plan.copyRows} rows`, `COPY bulk FROM '${file}'`);
        await timed(arm, report, 'CREATE INDEX on text', 'CREATE INDEX ON bulk (a)');
      }
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

export async function coldScan(arms: readonly Arm[], plan: Plan, report: Report): Promise<void> {
  for (const arm of arms) await query(arm, 'VACUUM ANALYZE bulk');
  for (const arm of arms) await arm.settle();
  for (let round = 0; round < plan.rounds; round++) {
    for (const arm of ordered(arms, round).filter((a) => a.name !== 'sync')) {
      await arm.cold();
      await timed(arm, report, 'cold full scan (with megabytes in the note)', 'SELECT count(*), max(b) FROM bulk');
    }
  }
  const client = await connect(arms[0] as Arm);
  const { rows } = await client.query<{ mb: string }>("SELECT pg_relation_size('bulk') / 1048576 AS mb");
  await client.end();
  report.note(`the scanned table has ${rows[0]?.mb} MB`);
}

async function timed(arm: Arm, report: Report, id: string, sql: string): Promise<void> {
  const client = await connect(arm);
  await client.query('SELECT 1');
  const begun = performance.now();
  await client.query(sql);
  report.add({ id, unit: 's', arm: arm.name, value: (performance.now() - begun) / 1_000, higher: false });
  await client.end();
}

/** Connect to first row through the proxy, from a suspended endpoint. */
export async function resume(arm: LakebaseArm, plan: Plan, report: Report): Promise<void> {
  const times: number[] = [];
  const stages: Record<string, number[]> = {};
  for (let i = 0; i < plan.resumes; i++) {
    await arm.suspend();
    const begun = performance.now();
    const client = await arm.cluster.connect();
    await client.query('SELECT count(*) FROM pg_class');
    times.push(performance.now() - begun);
    await client.end();
    for (const [name, ms] of Object.entries((await arm.compute())?.stages ?? {})) (stages[name] ??= []).push(ms);
  }
  for (const value of times)
    report.samples.push({ id: 'resume from zero, connect to first row', unit: 'ms', arm: 'lakebase', value, higher: false });
  report.note(
    `resume from zero: median ${median(times).toFixed(0)} ms, p95 ${percentile(times, 0.95).toFixed(0)} ms, max ${Math.max(...times).toFixed(0)} ms over ${times.length}`,
  );
  report.note(
    `resume stages, median ms since the agent took the request: ${Object.entries(stages)
      .map(([n, v]) => `${n} ${median(v).toFixed(0)}`)
      .join(', ')}`,
  );
}

/** The same select-only load through the proxy: what the relay costs. */
export async function throughProxy(binary: string, arm: LakebaseArm, plan: Plan, report: Report): Promise<void> {
  const url = new URL(arm.cluster.url);
  const proxied = {
    host: '127.0.0.1',
    port: arm.cluster.pgPort,
    user: decodeURIComponent(url.username),
    database: url.pathname.slice(1),
    password: decodeURIComponent(url.password),
  };
  for (const clients of [1, 8]) {
    for (let round = 0; round < plan.rounds; round++) {
      const args = ['-n', '-S', '-M', 'prepared', '-c', String(clients), '-j', '1', '-T', String(plan.seconds)];
      const direct = parsePgbench(await pgbench(binary, await arm.connection(), args));
      const through = parsePgbench(await pgbench(binary, proxied, args));
      report.add({
        id: `select-only through the proxy c=${clients} (stock column: same compute, direct)`,
        unit: 'tps',
        arm: 'lakebase',
        value: through.tps,
        higher: true,
      });
      report.add({
        id: `select-only through the proxy c=${clients} (stock column: same compute, direct)`,
        unit: 'tps',
        arm: 'stock',
        value: direct.tps,
        higher: true,
      });
    }
  }
}
