/** Makes a tree to test from the distribution's source package: `apt-get source`, configure, build, install, all below one directory of the user.
 *  Nothing of the machine is changed and no root is needed; what a build needs from the machine (compiler, bison, flex, libreadline…) is taken as it is.
 *  Invariant: a tree counts as made only when its install ended well; a broken attempt is begun again. */
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';

const MADE = '.made-by-conformance';

/** Directory of the built tree; an explanation when it cannot be had. */
export function fetchSource(
  major: number,
  root: string,
  say: (line: string) => void,
): { source: string; install: string } | { reason: string } {
  if (spawnSync('apt-get', ['--version']).status !== 0)
    return { reason: 'this machine has no apt-get; take the source from https://ftp.postgresql.org/pub/source/ and name it with --source' };
  const place = join(root, String(major));
  const install = join(place, 'install');
  const log = join(place, 'build.log');
  const tree = (): string | undefined =>
    readdirSync(place).find(
      (name) =>
        new RegExp(`^postgresql-${major}-${major}[^/]*$`).test(name) &&
        !name.includes('.orig') &&
        existsSync(join(place, name, 'configure')),
    );
  mkdirSync(place, { recursive: true });
  if (existsSync(join(place, MADE))) return { source: join(place, tree() as string), install };
  rmSync(place, { recursive: true, force: true });
  mkdirSync(place, { recursive: true });
  const out = openSync(log, 'a');
  const run = (cwd: string, command: string, ...args: string[]): boolean => {
    say(`${command} ${args.join(' ')}`);
    return spawnSync(command, args, { cwd, stdio: ['ignore', out, out] }).status === 0;
  };
  try {
    if (!run(place, 'apt-get', 'source', '--download-only', `postgresql-${major}`))
      return { reason: `apt-get source postgresql-${major} failed (${log}): is there a deb-src line for a release that has it?` };
    const archive = readdirSync(place).find((name) => /\.orig\.tar\.\w+$/.test(name));
    if (archive === undefined) return { reason: `the source package of postgresql-${major} has no .orig.tar (${log})` };
    // Upstream's tree, without the distribution's patches: those move the installation to fixed places.
    const top = execFileSync('tar', ['-tf', archive], { cwd: place, encoding: 'utf8', maxBuffer: 1 << 28 }).split('/')[0] as string;
    const source = join(place, `postgresql-${major}-${top.replace(/^postgresql-/, '')}`);
    mkdirSync(source);
    const jobs = `-j${availableParallelism()}`;
    const steps: readonly (readonly [string, ...string[]])[] = [
      ['tar', '-xf', join(place, archive), '--strip-components=1'],
      ['./configure', `--prefix=${install}`, '--without-icu', ...optional(), 'CFLAGS=-O2'],
      ['make', '-s', jobs, '-C', 'src', 'all'],
      ['make', '-s', '-C', 'src', 'install'],
      ['make', '-s', jobs, '-C', 'contrib', 'all'],
      ['make', '-s', '-C', 'contrib', 'install'],
      ['make', '-s', '-C', 'src/test/regress'],
      ['make', '-s', '-C', 'src/test/isolation'],
    ];
    for (const [command, ...args] of steps)
      if (!run(source, command, ...args)) return { reason: `'${command} ${args.join(' ')}' failed in ${source}; see ${log}` };
    writeFileSync(join(place, MADE), '');
    return { source, install };
  } finally {
    closeSync(out);
  }
}

/** What the machine has headers for. */
function optional(): string[] {
  const has = (...paths: string[]): boolean => paths.some((p) => existsSync(p));
  return [
    ...(has('/usr/include/lz4.h') ? ['--with-lz4'] : []),
    ...(has('/usr/include/zstd.h') ? ['--with-zstd'] : []),
    ...(has('/usr/include/readline/readline.h') ? [] : ['--without-readline']),
    ...(has('/usr/include/tcl8.6/tcl.h', '/usr/include/tcl.h') ? ['--with-tcl'] : []),
    ...(spawnSync('perl', ['-MExtUtils::Embed', '-e', 'ldopts']).status === 0 &&
    spawnSync('sh', ['-c', 'ls /usr/lib/*/libperl.so']).status === 0
      ? ['--with-perl']
      : []),
  ];
}
