/** Runs pgbench and reads its summary. pgbench is not in the npm build of Postgres: it comes from the machine. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { findTool } from '@lakebase/testkit';
import type { Arm } from './arms.ts';

export interface PgbenchResult {
  readonly tps: number;
  readonly latencyMs: number;
}

export const findPgbench = (): string | undefined => findTool('pgbench');

const run = promisify(execFile);

export async function pgbench(
  binary: string,
  connection: Awaited<ReturnType<Arm['connection']>> & { password?: string },
  args: readonly string[],
): Promise<string> {
  const { stdout } = await run(
    binary,
    ['-h', connection.host, '-p', String(connection.port), '-U', connection.user, ...args, connection.database],
    {
      maxBuffer: 1 << 26,
      env: {
        ...process.env,
        PGCONNECT_TIMEOUT: '30',
        PGSSLMODE: 'disable',
        ...(connection.password === undefined ? {} : { PGPASSWORD: connection.password }),
      },
    },
  );
  return stdout;
}

export function parsePgbench(output: string): PgbenchResult {
  const tps = /tps = ([0-9.]+) \(without/.exec(output) ?? /tps = ([0-9.]+)/.exec(output);
  const latency = /latency average = ([0-9.]+) ms/.exec(output);
  if (tps === null || latency === null) throw new Error(`cannot read pgbench's summary:\n${output}`);
  return { tps: Number(tps[1]), latencyMs: Number(latency[1]) };
}
