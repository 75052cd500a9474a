/** Storage's own figures on recorded pgbench WAL, without and with full-page images: ingest and redo against stock crash recovery of the
 *  very same WAL, GetPage by the number of records to apply. Ours runs as a program of the pageserver (services/pageserver/src/bench.ts),
 *  which prints one JSON object. Rounds are interleaved with recoveries. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { loadavg } from 'node:os';
import { promisify } from 'node:util';
import { formatLsn } from '@lakebase/ids';
import type { Plan } from './cases.ts';
import { findPgbench } from './pgbench.ts';
import { type Recording, record } from './recording.ts';
import { type Report, format } from './report.ts';

interface Rate {
  readonly perSecond: number;
  readonly perCpuSecond: number;
}
interface Pages {
  readonly requests: number;
  readonly perSecond: number;
  readonly medianUs: number;
  readonly p99Us: number;
}
interface StorageFigures {
  readonly decode: Rate;
  readonly decodeAndIndex: Rate;
  readonly redo: Rate & { readonly applied: number };
  readonly ingest: Rate & {
    readonly readablePerSecond: number;
    readonly readablePerCpuSecond: number;
    readonly eventLoopDelayMaxMs: number;
  };
  readonly getPage?: Record<string, Pages | number>;
}

const run = promisify(execFile);
const programs = join(import.meta.dirname, '..', 'services', 'pageserver', 'src');
const program = join(programs, 'bench.ts');

async function measure(recording: Recording, parts: string): Promise<StorageFigures> {
  const args = [
    '--conditions=lakebase-source',
    program,
    '--template',
    recording.template,
    '--wal',
    recording.walDir,
    '--warm',
    formatLsn(recording.start),
    '--end',
    formatLsn(recording.end),
  ];
  const { stdout } = await run(process.execPath, args, { maxBuffer: 1 << 24, env: { ...process.env, BENCH_ONLY: parts } });
  return JSON.parse(stdout) as StorageFigures;
}

export async function storageCases(plan: Plan, report: Report): Promise<void> {
  const binary = findPgbench();
  if (binary === undefined) return report.note('storage cases need pgbench');
  for (const fullPageWrites of [false, true]) {
    const name = fullPageWrites ? 'with full-page images' : 'without full-page images';
    await using recording = await record({
      pgbench: binary,
      scale: Math.min(10, Math.ceil(plan.scale / 4)),
      seconds: Math.min(plan.seconds * 2, 20),
      fullPageWrites,
    });
    const megabytes = (recording.end - recording.start) / (1 << 20);
    report.note(`WAL ${name}: ${recording.records} records, ${format(megabytes)} MB, of pgbench TPC-B`);
    for (let round = 0; round < plan.rounds; round++) await compare(recording, name, report);
    if (!fullPageWrites) {
      await getPages(recording, report);
      await neighbours(recording, report);
    }
  }
  report.note(
    `storage: load average at the end ${loadavg()
      .map((n) => n.toFixed(1))
      .join(' ')}; a CPU second is one of any thread; merging of layers is not in these figures`,
  );
}

async function compare(recording: Recording, name: string, report: Report): Promise<void> {
  // Redo by itself: in the pageserver, too, code that files records and code that applies them are not compiled for each other's callers.
  const ours = { ...(await measure(recording, 'decode,index,ingest')), redo: (await measure(recording, 'redo')).redo };
  const stock = await recording.recover();
  const theirs = {
    perSecond: recording.records / stock.elapsedSeconds,
    perCpuSecond: recording.records / Math.max(0.01, stock.cpuSeconds),
  };
  const add = (what: string, mine: number, his: number, unit: string): void => {
    report.add({ id: `${what}, ${name} (stock column: crash recovery)`, unit, arm: 'lakebase', value: mine, higher: true });
    report.add({ id: `${what}, ${name} (stock column: crash recovery)`, unit, arm: 'stock', value: his, higher: true });
  };
  add('WAL ingest until readable', ours.ingest.readablePerSecond, theirs.perSecond, 'records/s');
  add('WAL ingest until readable, per CPU second of its thread', ours.ingest.readablePerCpuSecond, theirs.perCpuSecond, 'records/CPU s');
  add('WAL ingest until durable in layers', ours.ingest.perSecond, theirs.perSecond, 'records/s');
  add('WAL ingest until durable, per CPU second', ours.ingest.perCpuSecond, theirs.perCpuSecond, 'records/CPU s');
  add('redo of every record', ours.redo.perSecond, theirs.perSecond, 'records/s');
  add('redo of every record, per CPU second', ours.redo.perCpuSecond, theirs.perCpuSecond, 'records/CPU s');
  report.note(
    `${name}: decoding ${format(ours.decode.perCpuSecond)} records per CPU second, decoding and filing ${format(ours.decodeAndIndex.perCpuSecond)}; longest event loop delay while ingesting ${ours.ingest.eventLoopDelayMaxMs} ms`,
  );
}

async function getPages(recording: Recording, report: Report): Promise<void> {
  const { getPage = {} } = await measure(recording, 'ingest,pages');
  const times: string[] = [];
  for (const records of [0, 1, 10, 100]) {
    const figures = getPage[`records${records}`] as Pages | undefined;
    if (figures === undefined) continue;
    report.add({
      id: `GetPage depth 1, ${records} records to apply, median`,
      unit: 'µs',
      arm: 'lakebase',
      value: figures.medianUs,
      higher: false,
    });
    times.push(`${records} records p50 ${figures.medianUs} µs p99 ${figures.p99Us} µs (${figures.requests} pages)`);
  }
  report.note(`GetPage over TCP at depth 1, pages not in the cache: ${times.join('; ')}`);
  const cold = getPage['coldDepth64'] as Pages | undefined;
  const hot = getPage['hotDepth64'] as Pages | undefined;
  if (cold !== undefined)
    report.add({ id: 'GetPage depth 64, pages from layers', unit: 'pages/s', arm: 'lakebase', value: cold.perSecond, higher: true });
  if (hot !== undefined)
    report.add({ id: 'GetPage depth 64, pages mostly cached', unit: 'pages/s', arm: 'lakebase', value: hot.perSecond, higher: true });
}

interface Neighbours {
  readonly getPageP50Us: number;
  readonly getPageP99Us: number;
  readonly loopDelayP99Ms: number;
  readonly turnCpuP99Ms: number;
  readonly turnCpuMaxMs: number;
  readonly rssMb: number;
}

/** What bulk WAL of one branch costs reads of the others, with a hundred idle branches attached. */
async function neighbours({ template, walDir, end }: Recording, report: Report): Promise<void> {
  const args = ['--conditions=lakebase-source', join(programs, 'bench-neighbours.ts'), '--template', template, '--wal', walDir];
  const { stdout } = await run(process.execPath, [...args, '--end', formatLsn(end), '--seconds', '8'], { maxBuffer: 1 << 24 });
  const { idle, quiet, loaded } = JSON.parse(stdout) as { idle: number; quiet: Neighbours; loaded: Neighbours & { rssMaxMb: number } };
  const text = (n: Neighbours): string =>
    `GetPage p50 ${n.getPageP50Us} µs p99 ${n.getPageP99Us} µs, event loop delay p99 ${n.loopDelayP99Ms} ms, processor time of a turn p99 ${n.turnCpuP99Ms} ms max ${n.turnCpuMaxMs} ms`;
  report.note(
    `${idle} idle branches, quiet: ${text(quiet)}; while another takes bulk WAL: ${text(loaded)}, ${loaded.rssMaxMb} MB resident`,
  );
}
