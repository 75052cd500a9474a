/** Finds Postgres's source tree with its built test drivers, and the installation that was built from it.
 *  Invariant: tree and installation are of the same version: expected outputs, `regress.so` and contrib's modules only fit the build they came with. */
import { execFileSync } from 'node:child_process';
import { existsSync, globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface SourceTree {
  readonly major: number;
  readonly version: string;
  /** Build directory: sources and objects together. */
  readonly source: string;
  /** Installation prefix (bin, lib, share). */
  readonly prefix: string;
}

export interface SourceOptions {
  readonly source?: string | undefined;
  readonly install?: string | undefined;
}

const PLACES = ['/opt/pgsrc/postgresql-*', '/usr/src/postgresql-*', '/usr/local/src/postgresql-*'];

export const HOW_TO_GET_ONE = `no Postgres source tree with built tests was found. Where apt has a deb-src line:
    cd /usr/src && apt-get source postgresql-18 && apt-get build-dep postgresql-18 && cd postgresql-18-18*/
elsewhere unpack https://ftp.postgresql.org/pub/source/ under /usr/src. Then
    ./configure --prefix=/opt/pg18 && make -j2 -C src all && make -C src install && make -C contrib all install
or name both: npm run conformance -- --major 18 --source DIR --install PREFIX`;

const versionOf = (source: string): string | undefined => {
  const config = join(source, 'src', 'include', 'pg_config.h');
  return existsSync(config) ? /^#define PG_VERSION "([^"]+)"/m.exec(readFileSync(config, 'utf8'))?.[1] : undefined;
};

/** Where `configure --prefix` said. */
const prefixOf = (source: string): string | undefined => {
  const made = join(source, 'src', 'Makefile.global');
  return existsSync(made) ? /^prefix := (.+)$/m.exec(readFileSync(made, 'utf8'))?.[1] : undefined;
};

/** The tree of a major, or the reason there is none. */
export function findSourceTree(major: number, options: SourceOptions = {}): SourceTree | string {
  const candidates = options.source === undefined ? PLACES.flatMap((pattern) => globSync(pattern)).sort() : [options.source];
  let reason = HOW_TO_GET_ONE;
  for (const source of candidates) {
    const version = versionOf(source);
    if (version === undefined || Number.parseInt(version, 10) !== major) continue;
    const prefix = options.install ?? prefixOf(source);
    if (prefix === undefined || !existsSync(join(prefix, 'bin', 'postgres'))) {
      reason = `${source} is built for ${prefix ?? 'no prefix'}, where nothing is installed: make -C src install && make -C contrib install`;
      continue;
    }
    if (!existsSync(join(source, 'src/test/regress/pg_regress')) || !existsSync(join(source, 'src/test/regress/regress.so'))) {
      reason = `${source} has no built tests: make -C src/test/regress && make -C src/test/isolation`;
      continue;
    }
    const installed = execFileSync(join(prefix, 'bin', 'postgres'), ['--version'], { encoding: 'utf8' });
    if (!installed.includes(` ${version}`)) {
      reason = `${prefix} has ${installed.trim()}, the tree is ${version}: name its own installation with --install`;
      continue;
    }
    return { major, version, source, prefix };
  }
  return reason;
}
