/** `npm run bench [-- --quick] [--only throughput,bulk,…]`: every case in one run, arms interleaved, ratios printed, JSON written to
 *  bench/results/. Judge ratios only; the machine is whatever it is. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { LakebaseArm, stockArm, syncArm } from './arms.ts';
import { type Plan, bulk, coldScan, hotSelect, resume, throughProxy, throughput } from './cases.ts';
import { cipherShare } from './cipher-share.ts';
import { encryptionCases } from './encryption.ts';
import { findPgbench } from './pgbench.ts';
import { Report } from './report.ts';
import { storageCases } from './storage.ts';
import { warmResume } from './warm-resume.ts';

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean' },
    only: { type: 'string' },
    encryption: { type: 'boolean' },
    'cipher-share': { type: 'boolean' },
    help: { type: 'boolean' },
  },
});
if (values.help === true) {
  process.stdout.write(
    'usage: npm run bench [-- --quick] [--encryption] [--cipher-share] [--only hot,throughput,proxy,bulk,cold,resume,warm,storage]\n',
  );
  process.exit(0);
}
const plan: Plan =
  values.quick === true
    ? { seconds: 5, rounds: 1, scale: 20, hotScale: 5, copyRows: 500_000, resumes: 8 }
    : { seconds: 10, rounds: 3, scale: 70, hotScale: 5, copyRows: 2_000_000, resumes: 40 };
const only = values.only?.split(',');
const ofItsOwn = values.encryption === true || values['cipher-share'] === true;
const wanted = (name: string): boolean => !ofItsOwn && (only === undefined || only.includes(name));

const binary = findPgbench();
if (binary === undefined) {
  process.stderr.write(
    "lakebase: the benchmark needs pgbench; install your distribution's Postgres client tools (Debian: apt install postgresql-contrib)\n",
  );
  process.exit(1);
}
const report = new Report();
if (values.encryption === true) await encryptionCases(binary, plan, report);
if (values['cipher-share'] === true) await cipherShare(binary, plan, report);
if (['hot', 'throughput', 'proxy', 'bulk', 'cold', 'resume'].some(wanted)) {
  await using ours = await LakebaseArm.start();
  await using stock = await stockArm();
  await using sync = await syncArm();
  const arms = [ours, stock, sync];
  if (wanted('hot')) await hotSelect(binary, arms, plan, report);
  if (wanted('throughput')) await throughput(binary, arms, plan, report);
  if (wanted('proxy')) await throughProxy(binary, ours, plan, report);
  if (wanted('bulk') || wanted('cold')) await bulk(arms, plan, report);
  if (wanted('cold')) await coldScan(arms, plan, report);
  if (wanted('resume')) await resume(ours, plan, report);
}
if (wanted('warm'))
  await warmResume(binary, values.quick === true ? { scale: 35, seconds: 20, rounds: 1 } : { scale: 35, seconds: 60, rounds: 2 }, report);
if (wanted('storage')) await storageCases(plan, report);

const machine = `${cpus().length} × ${cpus()[0]?.model ?? 'unknown CPU'}, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.version}`;
const table = report.table();
process.stdout.write(`\n${machine}\n\n${table}\n`);
const results = join(import.meta.dirname, 'results');
mkdirSync(results, { recursive: true });
const path = join(results, `${new Date().toISOString().replaceAll(':', '')}.json`);
writeFileSync(path, `${JSON.stringify({ machine, plan, samples: report.samples, notes: report.notes }, null, 1)}\n`);
process.stdout.write(`\nwritten to ${path}\n`);
