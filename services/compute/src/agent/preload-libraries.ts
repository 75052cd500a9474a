/** What `shared_preload_libraries` may name: libraries that are there, and whose WAL storage can replay.
 *  A library that registers a WAL resource manager of its own must do so while it is preloaded and imports the function that does it by name, so
 *  it is known before Postgres starts and nothing of it gets into WAL. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { preloadLibraries } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';

const REGISTERS = 'RegisterCustomRmgr';

export function checkPreloadLibraries(settings: Readonly<Record<string, string>>, libDir: string): void {
  for (const name of preloadLibraries(settings['shared_preload_libraries'] ?? '') ?? []) {
    const library = find(name, libDir);
    if (library === undefined)
      throw new LakebaseError('CONFIG', `shared_preload_libraries names ${name}, which this Postgres has not: change the setting`);
    if (library.includes(REGISTERS))
      throw new LakebaseError(
        'UNSUPPORTED',
        `shared_preload_libraries names ${name}, which writes WAL records of its own resource manager: storage cannot replay them; change the setting`,
      );
  }
}

/** Postgres's library directory is `lib/postgresql` or, in some builds, `lib` itself. */
function find(name: string, libDir: string): Buffer | undefined {
  const file = name.endsWith('.so') ? name : `${name}.so`;
  for (const dir of [join(libDir, 'postgresql'), libDir]) {
    try {
      return readFileSync(join(dir, file));
    } catch {
      // not here
    }
  }
  return undefined;
}
