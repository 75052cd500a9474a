/** Makes the pristine cluster of a major once and sends it to the pageserver as a tar of a cleanly shut down data directory.
 *  New projects are copies of it: none of them runs initdb. */
import { spawn } from 'node:child_process';
import { chownSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { LakebaseError, type Logger } from '@lakebase/base';
import type { Account, PostgresInstallation } from '@lakebase/service-kit';
import { pack } from 'tar-stream';
import { SUPERUSER_GROUP } from '../agent/catalog.ts';
import { ADMIN_ROLE } from '../agent/settings.ts';

export const DEFAULT_DATABASE = 'databricks_postgres';

/** Run by the single-user backend: one statement a line. No REPLICATION for users: Postgres counts any walsender that calls itself `sk1` towards
 *  the quorum, so a role that may open replication connections could acknowledge commits that no safekeeper has. */
const statements = (major: number): string[] => [
  `CREATE ROLE ${SUPERUSER_GROUP} NOLOGIN CREATEDB CREATEROLE BYPASSRLS`,
  `GRANT pg_read_all_data, pg_write_all_data, pg_monitor, pg_signal_backend, pg_create_subscription, pg_checkpoint${major >= 17 ? ', pg_maintain' : ''} TO ${SUPERUSER_GROUP} WITH ADMIN OPTION`,
  `CREATE DATABASE ${DEFAULT_DATABASE} OWNER ${SUPERUSER_GROUP} STRATEGY FILE_COPY`,
];
const SKIPPED = new Set([
  'pg_wal',
  'postgresql.conf',
  'postgresql.auto.conf',
  'pg_hba.conf',
  'pg_ident.conf',
  'postmaster.opts',
  'pg_stat_tmp',
]);

export interface TemplateOptions {
  readonly installation: PostgresInstallation;
  readonly account: Account | undefined;
  readonly dataDir: string;
  readonly pageserverHttpUrl: string;
  readonly token: string;
  readonly log: Logger;
}

export async function makeTemplate(options: TemplateOptions): Promise<unknown> {
  const { installation, account, log } = options;
  const pgdata = join(options.dataDir, `template-${installation.major}`);
  rmSync(pgdata, { recursive: true, force: true });
  mkdirSync(pgdata, { recursive: true, mode: 0o700 });
  if (account !== undefined) chownSync(pgdata, account.uid, account.gid);
  try {
    log.info({ major: installation.major }, 'making the template cluster');
    await run(options, 'initdb', [
      '-D',
      pgdata,
      '-U',
      ADMIN_ROLE,
      '--auth=peer',
      '--encoding=UTF8',
      ...initdbByMajor(installation.major),
      '--no-sync',
      '--no-instructions',
    ]);
    await run(
      options,
      'postgres',
      ['--single', '-D', pgdata, '-c', 'fsync=off', '-c', 'full_page_writes=off', 'postgres'],
      `${statements(installation.major).join('\n')}\n`,
    );
    return await upload(options, pgdata);
  } finally {
    rmSync(pgdata, { recursive: true, force: true });
  }
}

/** Checksums are off everywhere: they would put a page image into WAL for every hint bit; initdb 18 is the first that has them on.
 *  Strings compare by bytes and change case by Unicode, the same on every machine: the builtin provider, or libc's C.UTF-8 for case before 17. */
const initdbByMajor = (major: number): string[] => [
  ...(major >= 18 ? ['--no-data-checksums'] : []),
  ...(major >= 17 ? ['--locale-provider=builtin', '--builtin-locale=C.UTF-8', '--locale=C'] : ['--locale=C', '--lc-ctype=C.UTF-8']),
];

function run(options: TemplateOptions, tool: string, args: readonly string[], input = ''): Promise<void> {
  const { installation, account } = options;
  return new Promise((resolve, reject) => {
    const child = spawn(join(installation.binDir, tool), args, {
      cwd: '/',
      env: { PATH: '/usr/bin:/bin', LD_LIBRARY_PATH: installation.libDir, LC_ALL: 'C', TZ: 'UTC' },
      stdio: ['pipe', 'pipe', 'pipe'],
      ...(account === undefined ? {} : { uid: account.uid, gid: account.gid }),
    });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => {
      output = (output + chunk.toString()).slice(-4_000);
    });
    child.stderr.on('data', (chunk: Buffer) => {
      output = (output + chunk.toString()).slice(-4_000);
    });
    child.once('error', reject);
    child.once('close', (code) => {
      // The single-user backend exits 0 even when a statement failed.
      if (code === 0 && !/^(?:.*\b)?(?:ERROR|FATAL|PANIC):/m.test(output)) resolve();
      else reject(new LakebaseError('UNAVAILABLE', `${tool} failed while making the template cluster: ${output.trim().slice(-1_000)}`));
    });
    child.stdin.end(input);
  });
}

async function upload(options: TemplateOptions, pgdata: string): Promise<unknown> {
  const tar = pack();
  const url = `${options.pageserverHttpUrl}/v1/templates/${options.installation.major}`;
  const sent = fetch(url, {
    method: 'PUT',
    body: Readable.toWeb(Readable.from(tar)) as never,
    duplex: 'half',
    headers: { authorization: `Bearer ${options.token}`, 'content-type': 'application/x-tar' },
    signal: AbortSignal.timeout(120_000),
  } as RequestInit);
  for (const path of files(pgdata, '')) {
    const bytes = readFileSync(join(pgdata, path));
    await new Promise<void>((resolve, reject) =>
      tar.entry({ name: path, size: bytes.length }, bytes, (error) => (error === null || error === undefined ? resolve() : reject(error))),
    );
  }
  tar.finalize();
  const response = await sent;
  const text = await response.text();
  if (!response.ok) throw new LakebaseError('UNAVAILABLE', `PUT ${url}: HTTP ${response.status} ${text.slice(0, 300)}`);
  return JSON.parse(text);
}

function* files(root: string, dir: string): Generator<string> {
  for (const name of readdirSync(join(root, dir)).sort()) {
    const path = dir === '' ? name : `${dir}/${name}`;
    if (SKIPPED.has(name)) continue;
    if (statSync(join(root, path)).isDirectory()) yield* files(root, path);
    else yield path;
  }
}
