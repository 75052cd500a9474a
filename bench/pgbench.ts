/** Runs pgbench and reads its summary. pgbench is not in the npm build of Postgres: it comes from the machine. */
import { execFile } from 'node:child_process';
import { existsSync, globSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Arm } from './arms.ts';

export interface PgbenchResult {
  readonly tps: number;
  readonly latencyMs: number;
}

export function findPgbench(): string | undefined {
  const places = [
    ...globSync('/opt/pg18/bin'),
    ...globSync('/usr/lib/postgresql/*/bin').sort().reverse(),
    ...(process.env['PATH'] ?? '').split(':'),
  ];
  return places.map((dir) => join(dir, 'pgbench')).find((path) => existsSync(path));
}

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
