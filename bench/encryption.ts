/** `npm run bench -- --encryption`: what encryption costs. The same system twice, both up at once: as it is (arm D of the campaign), and with storage and
 *  scratch unencrypted (arm C: LAKEBASE_TEST_PLAINTEXT and LAKEBASE_TEST_SCRATCH_PLAINTEXT). Cases take turns, ABBA. Besides rates, processor seconds of
 *  all processes for the same work: they depend less on who else is on the machine. One run of a case differs from the next by more than what is looked
 *  for, so there are many pairs of short ones, after one that does not count; judge the median of the pairs' ratios, and how far its quartiles are. */
import { type LakebaseArm, LakebaseArm as Arms, connect, query } from './arms.ts';
import type { Plan } from './cases.ts';
import { parsePgbench, pgbench } from './pgbench.ts';
import { type Report, percentile } from './report.ts';

/** Work whose cost is asked for. */
export interface Work {
  readonly id: string;
  /** What comes before it and is not measured. */
  readonly prepare?: (arm: LakebaseArm) => Promise<void>;
  /** Returns work per second, or runs per second where the work is fixed. */
  readonly run: (arm: LakebaseArm) => Promise<number>;
}

const CLIENTS = ['-n', '-M', 'prepared', '-c', '8', '-j', '2'];
/** Of each of eight clients, for a second of the plan: about as many as there are in one. */
const WRITES = 150;
const READS = 2_500;
/** Of runs of a case on either side. */
const PAIRS = 12;

export function encryptionWork(binary: string, plan: Plan): readonly Work[] {
  const bench = async (arm: LakebaseArm, ...args: string[]): Promise<number> =>
    parsePgbench(await pgbench(binary, await arm.connection(), [...CLIENTS, ...args])).tps;
  const statement =
    (sql: string): Work['run'] =>
    async (arm) => {
      const client = await connect(arm);
      try {
        const began = performance.now();
        await client.query(sql);
        return 1_000 / (performance.now() - began);
      } finally {
        await client.end();
      }
    };
  const scan = statement('SELECT count(*), max(length(filler)) FROM pgbench_accounts');
  const load = statement(
    `CREATE TABLE bulk AS SELECT i, md5(i::text) AS a, md5((i * 7)::text) AS b FROM generate_series(1, ${plan.copyRows}) i`,
  );
  return [
    {
      // As many transactions on either side, from a checkpoint on (the first change of a page after one is logged whole), until storage has done all they
      // gave it to do: what one side leaves undone would be counted as the other's, whose turn is next.
      id: 'TPC-B c=8, until storage has done its part',
      prepare: (arm) => arm.settle(),
      run: async (arm) => {
        const tps = await bench(arm, '-t', String(plan.seconds * WRITES));
        await arm.settle();
        return tps;
      },
    },
    {
      id: `select-only, ${plan.scale * 15} MB over 128 MB of buffers`,
      run: (arm) => bench(arm, '-S', '-t', String(plan.seconds * READS)),
    },
    { id: 'scan of pgbench_accounts from scratch', run: scan },
    {
      id: 'scan of pgbench_accounts, cold compute',
      prepare: async (arm) => {
        await arm.settle();
        await arm.cold();
      },
      run: scan,
    },
    {
      id: `COPY-like load of ${plan.copyRows} rows, until it is in layers`,
      prepare: (arm) => query(arm, 'DROP TABLE IF EXISTS bulk'),
      run: async (arm) => {
        const rate = await load(arm);
        await arm.settle();
        return rate;
      },
    },
  ];
}

export async function encryptionCases(binary: string, plan: Plan, report: Report): Promise<void> {
  await using encrypted = await Arms.start();
  await using plain = await Arms.plain();
  const arms = [encrypted, plain] as const;
  for (const arm of arms) await pgbench(binary, await arm.connection(), ['-i', '-q', '-s', String(plan.scale)]);
  for (const arm of arms) await arm.settle();
  const measured = async ({ prepare, run }: Work, arm: LakebaseArm): Promise<{ rate: number; cpu: number }> => {
    await prepare?.(arm);
    const before = arm.cpuSeconds();
    const rate = await run(arm);
    return { rate, cpu: arm.cpuSeconds() - before };
  };
  const cases = encryptionWork(binary, plan);
  const ratios = new Map<string, { rate: number[]; cpu: number[] }>(cases.map((c) => [c.id, { rate: [], cpu: [] }]));
  for (let pair = -1; pair < PAIRS; pair++)
    for (const work of cases) {
      const { id } = work;
      const [first, second] = pair % 2 === 0 ? arms : [plain, encrypted];
      const [a, b] = [await measured(work, first), await measured(work, second)];
      const [ours, theirs] = first === encrypted ? [a, b] : [b, a];
      if (pair < 0) continue;
      const list = ratios.get(id) as { rate: number[]; cpu: number[] };
      list.rate.push(ours.rate / theirs.rate);
      list.cpu.push(ours.cpu / theirs.cpu);
      process.stdout.write(`  ${id}: rate ${(ours.rate / theirs.rate).toFixed(3)}, processor time ${(ours.cpu / theirs.cpu).toFixed(3)}\n`);
    }
  const range = (list: readonly number[]): string =>
    `${middle(list).toFixed(2)} (${percentile(list, 0.25).toFixed(2)}–${percentile(list, 0.75).toFixed(2)})`;
  report.note(
    `encrypted against unencrypted, medians of ${PAIRS} pairs (and quartiles); a rate above 1 and processor time below 1 favour encryption:`,
  );
  for (const [id, { rate, cpu }] of ratios) report.note(`${id}: rate ${range(rate)}, processor time ${range(cpu)}`);
}

/** Of an even number: between the two in the middle. */
const middle = (list: readonly number[]): number => (percentile(list, 0.5) + percentile(list, 0.5 + 1 / (2 * list.length))) / 2;
