/** Where the objects of an installation are: LAKEBASE_OBJECT_STORE (a URL), else `<home>/objectstore.json`, else the directory `<home>/objects`
 *  (docs/operating/object-store.md). Invariant: an installation that has used one store never starts on another unnoticed, which would look as if
 *  everything were lost: the place is remembered in `<home>/config/objectstore-location`. */
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import { type ObjectStoreConfig, checkObjectStoreConfig, objectStoreLocation, parseObjectStoreUrl } from '@lakebase/service-kit';
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

/** Throws CONFIG where an earlier start used another store. */
export function rememberObjectStore(home: Home, config: ObjectStoreConfig): void {
  const file = join(home.config, 'objectstore-location');
  const inside = config.kind === 'directory' && config.path.startsWith(`${home.dir}/`);
  // The default moves with its home directory.
  const location = inside ? `home:${config.path.slice(home.dir.length)}` : objectStoreLocation(config);
  if (existsSync(file)) {
    const known = readFileSync(file, 'utf8').trim();
    if (known === location) return;
    throw new LakebaseError(
      'CONFIG',
      `this installation keeps its objects in ${known}, and is now told to use ${location}: set ${OBJECT_STORE_VARIABLE} or ${home.objectStoreFile} ` +
        `as before; or, if every object has been copied there, remove ${file}`,
    );
  }
  writeFileSync(`${file}.new`, `${location}\n`, { flush: true });
  renameSync(`${file}.new`, file);
}
