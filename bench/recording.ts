/** WAL of a pgbench run, recorded once and then replayed by both sides: stock crash recovery, and ours. A cluster is loaded, stopped cleanly,
 *  started again, driven and killed; what lies between the clean stop and the kill is the WAL that is measured.
 *  Invariants: the server is dead and its files are left as the kill left them; no checkpoint lies in the measured part. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { isCode } from '@lakebase/base';
import { type Lsn, segmentNumber, walFileName } from '@lakebase/ids';
import { WalDecoder, readControlFile } from '@lakebase/pg-format';
import { StockPostgres } from '@lakebase/testkit';
import { pgbench } from './pgbench.ts';

const CHUNK_BYTES = 1 << 20;

export interface Recording extends AsyncDisposable {
  /** A data directory as initdb left it. */
  readonly template: string;
  readonly walDir: string;
  /** Where crash recovery begins, and the end of the last whole record. */
  readonly start: Lsn;
  readonly end: Lsn;
  readonly records: number;
  /** Recovers a copy of the killed cluster with stock Postgres. */
  recover(): Promise<Recovery>;
}

export interface Recovery {
  readonly elapsedSeconds: number;
  readonly cpuSeconds: number;
}

export interface RecordingOptions {
  readonly pgbench: string;
  readonly scale: number;
  readonly seconds: number;
  readonly fullPageWrites: boolean;
}

export async function record(options: RecordingOptions): Promise<Recording> {
  const server = StockPostgres.create({
    settings: {
      shared_buffers: '256MB',
      max_connections: '50',
      fsync: 'off',
      synchronous_commit: 'off',
      full_page_writes: options.fullPageWrites ? 'on' : 'off',
      wal_level: 'replica',
      max_wal_senders: '0',
      max_wal_size: '32GB',
      wal_keep_size: '16GB',
      checkpoint_timeout: '1h',
      autovacuum: 'on',
      log_checkpoints: 'off',
    },
  });
  try {
    const template = join(server.directory, 'template');
    execFileSync('cp', ['-a', server.pgdata, template]);
    await server.start();
    await pgbench(options.pgbench, server.clientConfig, ['-i', '-q', '-s', String(options.scale)]);
    await server.stop();
    const start = readControlFile(readFileSync(join(server.pgdata, 'global/pg_control'))).checkPointCopy.redo;
    await server.start();
    await pgbench(options.pgbench, server.clientConfig, ['-n', '-M', 'prepared', '-c', '8', '-j', '1', '-T', String(options.seconds)]);
    await server.stop('SIGKILL');
    rmSync(join(server.pgdata, 'postmaster.pid'), { force: true });
    const walDir = join(server.pgdata, 'pg_wal');
    const counted = count(walDir, start);
    return {
      template,
      walDir,
      start,
      ...counted,
      recover: () => recover(server),
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    };
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

/** Walks the WAL to where it ends, as recovery would. */
function count(walDir: string, start: Lsn): { end: Lsn; records: number } {
  const decoder = new WalDecoder({ startLsn: start, major: 18 });
  let records = 0;
  try {
    for (let at: number = start; ; ) {
      const file = join(walDir, walFileName(segmentNumber(at)));
      if (!existsSync(file)) break;
      const bytes = readFileSync(file);
      for (let from = at % bytes.length; from < bytes.length; from += CHUNK_BYTES) {
        decoder.push(bytes.subarray(from, Math.min(bytes.length, from + CHUNK_BYTES)));
        while (decoder.next() !== undefined) records++;
      }
      at += bytes.length - (at % bytes.length);
    }
  } catch (error) {
    // The first record that does not check out is where the WAL ends.
    if (!isCode(error, 'CORRUPT')) throw error;
  }
  return { end: decoder.endLsn, records };
}

async function recover(source: StockPostgres): Promise<Recovery> {
  await using copy = StockPostgres.copyOf(source);
  await copy.start();
  await copy.stop();
  const log = readFileSync(copy.logPath, 'utf8');
  const done = /redo done at [0-9A-F/]+ system usage: CPU: user: ([0-9.]+) s, system: ([0-9.]+) s, elapsed: ([0-9.]+) s/.exec(log);
  if (done === null) throw new Error(`no recovery in the log of ${copy.logPath}:\n${log.slice(-2_000)}`);
  return { cpuSeconds: Number(done[1]) + Number(done[2]), elapsedSeconds: Number(done[3]) };
}
