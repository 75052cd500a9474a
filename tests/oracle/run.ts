/** One run of the redo oracle: a stock Postgres with wal_consistency_checking=all goes through a workload; its WAL is applied to an
 *  in-memory store by our redo and compared, record by record, with the images in the WAL, and at the end with the files of a stock
 *  standby that replayed the same WAL. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { formatLsn, type Lsn } from '@lakebase/ids';
import { blindSpots, type Comparison, compareWithStandby } from './compare.ts';
import { type Mismatch, PageStore } from './page-store.ts';
import { expectedTypes } from './record-types.ts';
import { OracleServer } from './server.ts';
import { controlCheckpoint, readWal } from './wal-source.ts';
import { runWorkload } from './workload.ts';
import { acrossTheEnd, nearWraparound } from './wrap.ts';

export interface OracleOptions {
  readonly major?: number;
  /** Prefix of a Postgres installation; the npm build by default. */
  readonly postgres?: string | null;
  /** Smoke (under a minute) or the long run that also reaches the rare record types. */
  readonly long?: boolean;
  readonly log?: (line: string) => void;
  /** Only the parts of the workload whose names contain one of these: for work on one resource manager. */
  readonly only?: readonly string[];
  /** Begins where 32-bit ids are about to start over; the path of a pg_resetwal of this major. */
  readonly wrapWith?: string;
  /** Keeps the directories for inspection. */
  readonly keep?: boolean;
  /** Runs this instead of the oracle's own workload; record types it does not reach are then not asked for. */
  readonly workload?: (primary: OracleServer) => Promise<void>;
}

export interface OracleReport {
  readonly records: number;
  readonly walBytes: number;
  readonly counts: readonly { name: string; records: number; images: number; restored: number }[];
  readonly notReached: readonly string[];
  readonly unreachable: readonly string[];
  readonly mismatches: readonly Mismatch[];
  readonly mismatchCount: number;
  readonly missingBlocks: number;
  readonly comparison: Comparison;
  /** Counters derived from WAL that contradict a shutdown checkpoint. */
  readonly counterMismatches: readonly Mismatch[];
  /** Kinds of comparison that did not notice a bit made wrong on purpose. */
  readonly blind: readonly string[];
  /** What redo did with mangled records other than refuse them. */
  readonly hostile: { readonly attempts: number; readonly refused: number; readonly failures: readonly string[] };
  readonly applyMs: number;
  /** Transactions, multixacts and members were handed out beyond the end of their 32-bit cycles. */
  readonly wrapped: boolean;
}

const SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: '',
  wal_level: 'logical',
  wal_consistency_checking: 'all',
  wal_compression: 'off',
  full_page_writes: 'on',
  track_commit_timestamp: 'on',
  max_prepared_transactions: '10',
  max_connections: '40',
  shared_buffers: '64MB',
  fsync: 'off',
  // Nothing may be removed: the WAL is read from pg_wal at the end.
  wal_keep_size: '100GB',
  max_wal_size: '4GB',
  checkpoint_timeout: '1h',
  autovacuum: 'off',
  log_min_messages: 'warning',
};

export async function runOracle(options: OracleOptions = {}): Promise<OracleReport> {
  const { major = 18, postgres = null, long = false, log = () => {}, keep = false, only, wrapWith } = options;
  const root = mkdtempSync(join(tmpdir(), 'lakebase-oracle-'));
  spawnSync('chmod', ['755', root]);
  const primary = new OracleServer(join(root, 'primary'), join(root, 'p'), major, postgres);
  const baseDir = join(root, 'base');
  const standbyDir = join(root, 'standby');
  let standby: OracleServer | undefined;
  try {
    primary.initdb();
    primary.configure(SETTINGS);
    // Started once so that the settings pg_control records are in place before the base copy is taken.
    await primary.start();
    await primary.stop();
    if (wrapWith !== undefined) await nearWraparound(primary, wrapWith);
    copyDir(primary.dataDir, baseDir);
    copyDir(primary.dataDir, standbyDir);
    const from = controlCheckpoint(baseDir);

    await primary.start();
    if (wrapWith !== undefined) await acrossTheEnd(primary);
    if (options.workload !== undefined) await options.workload(primary);
    else await runWorkload(primary, { long, log, ...(only === undefined ? {} : { only }) });
    await primary.stop();
    const last = controlCheckpoint(primary.dataDir);
    log(`workload done: WAL ${formatLsn(from)} to ${formatLsn(last)}, ${Math.round((last - from) / 1e6)} MB`);

    const walDir = join(primary.dataDir, 'pg_wal');
    const store = new PageStore(baseDir, major);
    const started = performance.now();
    let records = 0;
    const end = readWal({ walDir, major, afterRecordAt: from, lastRecordLsn: last }, (record) => {
      records++;
      store.apply(record);
    });
    const applyMs = performance.now() - started;
    log(`applied ${records} records in ${Math.round(applyMs)} ms, ${store.mismatchCount} mismatches`);
    // Said at once: where Postgres's own redo differs from its images, the standby stops and there is no report.
    for (const m of store.mismatches.slice(0, 10)) log(`  ${m.where}: ${m.detail}`);

    standby = new OracleServer(standbyDir, join(root, 's'), major, postgres);
    await replayOnStandby(standby, walDir, last);
    const reached = controlCheckpoint(standbyDir);
    if (reached !== last) throw new Error(`the standby stopped at ${formatLsn(reached)}, not at ${formatLsn(last)}:\n${standby.log}`);
    const comparison = compareWithStandby(store, standbyDir);
    const notReached = expectedTypes(major).filter(
      (type) => !store.counts.has(type.name) && type.unreachable === undefined && (long || !type.long),
    );
    return {
      records,
      walBytes: end - from,
      counts: [...store.counts].map(([name, count]) => ({ name, ...count })).sort((a, b) => a.name.localeCompare(b.name)),
      notReached: notReached.map((type) => type.name),
      unreachable: expectedTypes(major)
        .filter((type) => !store.counts.has(type.name) && type.unreachable !== undefined)
        .map((type) => `${type.name}: ${type.unreachable}`),
      mismatches: store.mismatches,
      mismatchCount: store.mismatchCount,
      missingBlocks: store.missingBlocks,
      comparison,
      counterMismatches: store.counterModel.mismatches,
      hostile: store.hostile,
      blind: [...store.blindTypes, ...blindSpots(store, standbyDir, comparison)],
      applyMs,
      wrapped: store.counterModel.wrapped,
    };
  } finally {
    await primary.stop('SIGQUIT');
    await standby?.stop('SIGQUIT');
    if (keep) log(`kept ${root}`);
    else rmSync(root, { recursive: true, force: true });
  }
}

function copyDir(from: string, to: string): void {
  const result = spawnSync('cp', ['-a', from, to], { encoding: 'utf8' });
  if (result.status !== 0) throw new Error(`cannot copy ${from}: ${result.stderr}`);
}

/** Replays up to and including the record at `last`, then shuts down. Queries are off: they would set hint bits. */
async function replayOnStandby(standby: OracleServer, walDir: string, last: Lsn): Promise<void> {
  standby.configure({
    hot_standby: 'off',
    // A hard link: recovery only reads it, and a gigabyte is not copied.
    restore_command: `ln -f ${walDir}/%f %p`,
    recovery_target_lsn: formatLsn(last),
    recovery_target_inclusive: 'on',
    recovery_target_action: 'shutdown',
    recovery_target_timeline: 'current',
    // The parameter change of the workload needs these on a standby.
    max_connections: '60',
    // Messages only about what stops it; a differing page would be fatal here too.
    log_min_messages: 'warning',
  });
  standby.writeFile('recovery.signal', '');
  await standby.runToEnd();
}

/** What must be zero. */
export const failures = (report: OracleReport): number =>
  report.mismatchCount +
  report.comparison.differenceCount +
  report.counterMismatches.length +
  report.blind.length +
  report.missingBlocks +
  report.notReached.length;

export function formatReport(report: OracleReport): string {
  const lines = report.counts.map(
    (c) =>
      `${c.name.padEnd(32)} ${String(c.records).padStart(8)} records ${String(c.images).padStart(8)} compared ${String(c.restored).padStart(7)} restored`,
  );
  const c = report.comparison;
  lines.push(
    `${report.records} records, ${Math.round(report.walBytes / 1e6)} MB of WAL, ${report.mismatchCount} pages differ from their image, ${report.missingBlocks} blocks missing`,
    `standby: ${c.relations} forks, ${c.pages} pages (${c.vmPages} VM, ${c.fsmPages} FSM), ${c.slruPages} SLRU pages, ${c.relmaps} relmaps, ${c.twophase} prepared, ${c.origins} origins: ${c.differenceCount} differences`,
  );
  lines.push(
    `mangled records: ${report.hostile.attempts}, of which redo refused ${report.hostile.refused}; ${report.hostile.failures.length} other outcomes`,
  );
  for (const failure of report.hostile.failures) lines.push(`HOSTILE ${failure}`);
  for (const m of report.counterMismatches) lines.push(`COUNTER ${m.where}: ${m.detail}`);
  for (const name of report.blind) lines.push(`BLIND ${name}: a bit made wrong on purpose went unnoticed`);
  for (const m of report.mismatches.slice(0, 20)) lines.push(`MISMATCH ${m.where}: ${m.detail}`);
  for (const m of c.differences.slice(0, 40)) lines.push(`DIFFERENCE ${m.where}: ${m.detail}`);
  for (const name of report.notReached) lines.push(`NOT REACHED ${name}`);
  for (const name of report.unreachable) lines.push(`unreachable ${name}`);
  return lines.join('\n');
}
