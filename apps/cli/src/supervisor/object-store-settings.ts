/** Where the objects of an installation are: LAKEBASE_OBJECT_STORE (a URL), else `<home>/objectstore.json`, else the directory `<home>/objects`
 *  (docs/operating/object-store.md). Invariant: an installation that has used one store never starts on another unnoticed, which would look as if
 *  everything were lost: the place is remembered in `<home>/config/objectstore-location`. */
import { existsSync, readFileSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import {
  type ObjectStoreConfig,
  checkObjectStoreConfig,
  objectStoreLocation,
  parseObjectStoreUrl,
  probeObjectStore,
} from '@lakebase/service-kit';
import type { Home } from '../home.ts';

export const OBJECT_STORE_VARIABLE = 'LAKEBASE_OBJECT_STORE';

export function readObjectStoreSettings(home: Home, url: string | null): ObjectStoreConfig {
  if (url !== null) return parseObjectStoreUrl(url, OBJECT_STORE_VARIABLE);
  if (!existsSync(home.objectStoreFile)) return { kind: 'directory', path: join(home.dir, 'objects') };
  let settings: unknown;
  try {
    settings = JSON.parse(readFileSync(home.objectStoreFile, 'utf8'));
  } catch (cause) {
    throw new LakebaseError('CONFIG', `cannot read ${home.objectStoreFile}: ${(cause as Error).message}`, { cause });
  }
  return checkObjectStoreConfig(settings, home.objectStoreFile);
}

/** Checks the store by using it, and remembers it. Throws CONFIG where an earlier start used another one, or where this one cannot do what is needed.
 *  A store that was good before and does not answer now is no reason not to start: commits do not need it. */
export async function requireObjectStore(home: Home, config: ObjectStoreConfig, say: (line: string) => void): Promise<void> {
  const file = join(home.config, 'objectstore-location');
  const inside = config.kind === 'directory' && config.path.startsWith(`${home.dir}/`);
  // The default moves with its home directory.
  const location = inside ? `home:${config.path.slice(home.dir.length)}` : objectStoreLocation(config);
  const known = existsSync(file) ? readFileSync(file, 'utf8').trim() : undefined;
  if (known !== undefined && known !== location)
    throw new LakebaseError(
      'CONFIG',
      `this installation keeps its objects in ${known}, and is now told to use ${location}: set ${OBJECT_STORE_VARIABLE} or ${home.objectStoreFile} ` +
        `as before; or, if every object has been copied there, remove ${file}`,
    );
  if (known !== undefined && config.kind === 'directory' && isEmpty(config.path))
    throw new LakebaseError(
      'CONFIG',
      `the object store ${config.path} is empty or not there: mount its disk, or restore it; to begin anew without what was in it, remove ${file}`,
    );
  try {
    await probeObjectStore(config);
  } catch (error) {
    const { code, message } = error as LakebaseError;
    if (known === undefined || (code !== 'UNAVAILABLE' && code !== 'RESOURCE_EXHAUSTED'))
      throw new LakebaseError('CONFIG', `the object store ${objectStoreLocation(config)} cannot be used: ${message}`, { cause: error });
    say(`the object store does not answer; starting without it, commits go on: ${message}`);
  }
  if (known !== undefined) return;
  writeFileSync(`${file}.new`, `${location}\n`, { flush: true });
  renameSync(`${file}.new`, file);
}

function isEmpty(directory: string): boolean {
  try {
    return readdirSync(directory).length === 0;
  } catch {
    return true;
  }
}
