/** One campaign of one major: suites on a stock server and on a compute, outputs compared, pages compared after every group, then a restart from
 *  storage. Everything found goes into one report; a campaign ends early only when it cannot go on. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Lsn } from '@lakebase/ids';
import type pg from 'pg';
import { type GroupOutcome, ownedDirectory, runGroup, type Target, type TestOutcome } from './driver.ts';
import { compareOutputs, type OutputVerdict } from './outputs.ts';
import { checkDatabase, PageReport } from './page-check.ts';
import { checkRelations } from './relation-check.ts';
import { amcheck, compareDumps, dump, type RestartReport } from './restart-check.ts';
import { checkSlru, headBundle, type SlruReport } from './slru-check.ts';
import type { SourceTree } from './source-tree.ts';
import type { SkippedSuite, Suite } from './suites.ts';
import { connectTo, OurSystem, stockLike, stockTarget } from './targets.ts';

export interface CampaignOptions {
  readonly tree: SourceTree;
  readonly suites: readonly Suite[];
  readonly skipped?: readonly SkippedSuite[];
  readonly tiny?: boolean;
  readonly kill?: boolean;
  /** Only the pages at the end of each suite, not after each group. */
  readonly pagesAtEnd?: boolean;
  readonly restart?: boolean;
  readonly log?: (line: string) => void;
  /** Keeps outputs of the suites here. */
  readonly outputDir?: string;
}

export interface CampaignReport {
  readonly tests: OutputVerdict[];
  readonly skipped: readonly SkippedSuite[];
  readonly pages: PageReport;
  readonly slru: SlruReport;
  readonly relations: { forks: number; mismatches: string[] };
  readonly problems: string[];
  restart: RestartReport | undefined;
  pageserverKills: number;
}

export async function runCampaign(options: CampaignOptions): Promise<CampaignReport> {
  const { tree, log = () => {} } = options;
  const report: CampaignReport = {
    tests: [],
    skipped: options.skipped ?? [],
    pages: new PageReport(),
    slru: { xids: 0, multixacts: 0, mismatches: [] },
    relations: { forks: 0, mismatches: [] },
    problems: [],
    restart: undefined,
    pageserverKills: 0,
  };
  const out = options.outputDir ?? mkdtempSync(join(tmpdir(), 'lb-conformance-out-'));
  ownedDirectory(out);
  await using system = await OurSystem.start({
    major: tree.major,
    prefix: tree.prefix,
    ...(options.tiny === undefined ? {} : { tiny: options.tiny }),
    ...(options.kill === undefined ? {} : { kill: options.kill }),
  });
  let ours = await system.target();
  await using stock = await stockLike(tree.major, tree.prefix, ours);
  const theirs = stockTarget(stock);
  for (const target of [ours, theirs]) await mustBeOf(tree, target);
  try {
    for (const suite of options.suites) {
      try {
        await runSuite(options, system, suite, theirs, ours, out, report, log);
      } catch (error) {
        report.problems.push(`${suite.name}: ${(error as Error).message}`);
        log(`${suite.name}: ${(error as Error).stack}`);
        ours = await system.target();
      }
    }
    system.stopKilling();
    await checkAll(system, ours, report, log);
    if (options.restart !== false) {
      ours = await restart(tree, system, theirs, ours, report, log);
      await checkAll(system, ours, report, log);
    }
  } catch (error) {
    report.problems.push((error as Error).message);
    log(String((error as Error).stack));
  } finally {
    report.pageserverKills = system.kills;
    if (options.outputDir === undefined) rmSync(out, { recursive: true, force: true });
  }
  return report;
}

/** Outputs and libraries of one build say nothing about another. */
async function mustBeOf(tree: SourceTree, target: Target): Promise<void> {
  const client = await connectTo(target, 'postgres');
  const { rows } = await client.query<{ v: string }>("SELECT split_part(current_setting('server_version'), ' ', 1) AS v");
  await client.end();
  if (rows[0]?.v !== tree.version) throw new Error(`${target.name} runs Postgres ${rows[0]?.v}, the tree is ${tree.version}`);
}

async function runSuite(
  options: CampaignOptions,
  system: OurSystem,
  suite: Suite,
  theirs: Target,
  ours: Target,
  out: string,
  report: CampaignReport,
  log: (line: string) => void,
): Promise<void> {
  const { tree } = options;
  const dir = (name: string): string => ownedDirectory(join(out, `${suite.name.replaceAll(/\W+/g, '-')}-${name}`));
  const [stockDir, oursDir] = [dir('stock'), dir('compute')];
  let [stockMs, oursMs] = [0, 0];
  for (const [i, group] of suite.groups.entries()) {
    const a = await runGroup(tree, suite, group, theirs, stockDir, i === 0);
    const b = await runGroup(tree, suite, group, ours, oursDir, i === 0);
    stockMs += a.ms;
    oursMs += b.ms;
    const verdicts = judge(suite, stockDir, oursDir, a, b, report);
    const bad = verdicts.filter((v) => v.verdict === 'different');
    log(
      `${suite.name} ${i + 1}/${suite.groups.length}: ${group.length} tests, stock ${Math.round(a.ms)} ms, ours ${Math.round(b.ms)} ms${bad.length === 0 ? '' : `, different: ${bad.map((v) => v.test).join(' ')}`}`,
    );
    for (const v of bad) log(`  ${v.test} (stock ${v.ok[0] ? 'ok' : 'not ok'}):\n${v.detail.replaceAll(/^/gm, '    ')}`);
    if (options.pagesAtEnd !== true || i === suite.groups.length - 1) await checkPages(system, ours, suite.dbname, report, log);
  }
  log(
    `${suite.name}: stock ${Math.round(stockMs / 1000)} s, ours ${Math.round(oursMs / 1000)} s; ${report.pages.pages} pages compared so far, ${report.pages.mismatchCount} differ`,
  );
}

function judge(suite: Suite, stockDir: string, oursDir: string, a: GroupOutcome, b: GroupOutcome, report: CampaignReport): OutputVerdict[] {
  if (a.failure !== undefined) report.problems.push(`stock: ${a.failure}`);
  if (b.failure !== undefined) report.problems.push(`compute: ${b.failure}`);
  const stock = new Map(a.outcomes.map((o: TestOutcome) => [o.test, o.ok]));
  const verdicts = compareOutputs(suite.name, stockDir, oursDir, stock, b.outcomes).map((v) => ({ ...v, test: `${suite.name}/${v.test}` }));
  report.tests.push(...verdicts);
  return verdicts;
}

async function checkPages(
  system: OurSystem,
  ours: Target,
  database: string,
  report: CampaignReport,
  log: (line: string) => void,
): Promise<void> {
  const before = report.pages.mismatchCount;
  report.pages.walStart = system.startLsn;
  using source = system.pages();
  const client = await connectTo(ours, database);
  try {
    await checkDatabase(client, source, report.pages);
  } finally {
    await client.end();
  }
  if (report.pages.mismatchCount > before)
    for (const m of report.pages.mismatches.slice(before)) log(`  PAGE ${m.relation} ${m.path} block ${m.block}: ${m.detail}`);
}

/** All databases, transaction status, and the list of relations. */
async function checkAll(system: OurSystem, ours: Target, report: CampaignReport, log: (line: string) => void): Promise<void> {
  report.pages.walStart = system.startLsn;
  using source = system.pages();
  const admin = await connectTo(ours, 'postgres');
  const clients: pg.Client[] = [];
  try {
    const { rows } = await admin.query<{ name: string }>(
      'SELECT datname AS name FROM pg_database WHERE datallowconn AND datconnlimit <> -2',
    );
    for (const { name } of rows) clients.push(await connectTo(ours, name));
    for (const client of clients) await checkDatabase(client, source, report.pages);
    const slru = await checkSlru(admin, source, system.head);
    report.slru.xids += slru.xids;
    report.slru.multixacts += slru.multixacts;
    report.slru.mismatches.push(...slru.mismatches);
    const bundle = await headBundle(source, () => system.head() as Promise<Lsn>);
    const relations = await checkRelations(bundle, clients);
    report.relations.forks += relations.forks;
    report.relations.mismatches.push(...relations.mismatches);
    log(
      `all ${clients.length} databases: ${report.pages.pages} pages so far, ${report.pages.mismatchCount} differ; ${slru.xids} xids and ${slru.multixacts} multixacts, ${slru.mismatches.length} differ; ${relations.forks} forks, ${relations.mismatches.length} differ`,
    );
    for (const line of [...slru.mismatches, ...relations.mismatches].slice(0, 10)) log(`  ${line}`);
  } finally {
    for (const client of [admin, ...clients]) await client.end();
  }
}

async function restart(
  tree: SourceTree,
  system: OurSystem,
  theirs: Target,
  before: Target,
  report: CampaignReport,
  log: (line: string) => void,
): Promise<Target> {
  const first = await dump(tree, before);
  const ours = await system.restartCompute();
  const second = await dump(tree, ours);
  const dumpDifferences = compareDumps(first, second);
  const known = new Set((await amcheck(tree, theirs)).map(anonymous));
  const complaints = (await amcheck(tree, ours)).filter((line) => !known.has(anonymous(line)));
  report.restart = { dumpBytes: first.length, dumpDifferences, amcheck: complaints };
  log(
    `fresh from storage: dump of ${first.length} bytes ${dumpDifferences.length === 0 ? 'equal' : 'DIFFERENT'}, amcheck ${complaints.length} complaints (${known.size} on stock too)`,
  );
  for (const line of [...dumpDifferences.slice(0, 20), ...complaints]) log(`  ${line}`);
  return ours;
}

/** Block numbers and file names may differ between two servers. */
const anonymous = (line: string): string => line.replaceAll(/\d+/g, 'N');

export function failuresOf(report: CampaignReport): number {
  return (
    report.tests.filter((t) => t.verdict === 'different').length +
    report.pages.mismatchCount +
    report.slru.mismatches.length +
    report.relations.mismatches.length +
    report.problems.length +
    (report.restart?.dumpDifferences.length ?? 0) +
    (report.restart?.amcheck.length ?? 0)
  );
}

export function formatCampaign(report: CampaignReport): string {
  const count = (verdict: OutputVerdict['verdict']): number => report.tests.filter((t) => t.verdict === verdict).length;
  const p = report.pages;
  const lines = [
    `${report.tests.length} tests: ${count('equal')} equal to stock, ${count('expected')} as expected files say, ${count('allowed')} allowed differences, ${count('different')} different`,
    `${report.tests.filter((t) => !t.ok[0]).length} not as expected on stock, ${report.tests.filter((t) => !t.ok[1]).length} on the compute`,
    `${p.pages} pages of ${p.forks} forks compared (${p.vmPages} VM, of which ${p.vmLost} lack bits that WAL never had, ${p.fsmPages} FSM, ${p.sequences} sequences; ${p.emptyTail} empty, ${p.unlogged} unlogged not compared): ${p.mismatchCount} differ`,
    `${report.slru.xids} xids, ${report.slru.multixacts} multixacts: ${report.slru.mismatches.length} differ; ${report.relations.forks} forks listed: ${report.relations.mismatches.length} differ`,
  ];
  if (report.restart !== undefined)
    lines.push(
      `restart: dump of ${report.restart.dumpBytes} bytes, ${report.restart.dumpDifferences.length} lines differ; pg_amcheck: ${report.restart.amcheck.length} complaints`,
    );
  if (report.pageserverKills > 0) lines.push(`pageserver killed ${report.pageserverKills} times`);
  for (const t of report.tests) if (t.verdict === 'different') lines.push(`DIFFERENT ${t.test}\n${t.detail}`);
  for (const t of report.tests) if (t.verdict === 'allowed') lines.push(`allowed ${t.test}: ${t.detail}`);
  for (const [reason, n] of p.allowed) lines.push(`allowed ${n} pages: ${reason}`);
  for (const m of p.mismatches)
    lines.push(
      `PAGE ${m.relation} ${m.path} block ${m.block}, compute ${m.computeLsn}, storage ${m.storageLsn}: ${m.detail}`,
      ...m.records.map((r) => `    ${r}`),
    );
  for (const m of [...report.slru.mismatches.slice(0, 20), ...report.relations.mismatches.slice(0, 20)]) lines.push(`MISMATCH ${m}`);
  for (const m of report.restart?.dumpDifferences ?? []) lines.push(`DUMP ${m}`);
  for (const m of report.restart?.amcheck ?? []) lines.push(`AMCHECK ${m}`);
  for (const m of report.problems) lines.push(`PROBLEM ${m}`);
  for (const s of report.skipped) lines.push(`not run ${s.name}: ${s.reason}`);
  return lines.join('\n');
}
