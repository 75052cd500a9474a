/** Nothing is begun anew over a store that belongs to an installation: its secret and its root key must be here (docs/operating/recovery.md). */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { LakebaseError, isCode } from '@lakebase/base';
import {
  type ObjectStoreConfig,
  installationOf,
  objectStoreLocation,
  putInstallationMark,
  readInstallationMark,
  rootKeyMark,
} from '@lakebase/service-kit';
import type { Home } from '../home.ts';

/** Throws CONFIG for what is missing or another one's. A store that does not answer says nothing: then only an installation that is whole may go on.
 *  Answers whether the store is still to be marked. */
export async function requireOwnStore(home: Home, config: ObjectStoreConfig, say: (line: string) => void): Promise<boolean> {
  if (config.kind === 'directory' && isEmpty(config.path)) return true;
  const location = objectStoreLocation(config);
  let found: Awaited<ReturnType<typeof readInstallationMark>>;
  try {
    found = await readInstallationMark(config);
  } catch (error) {
    if (isCode(error, 'UNAVAILABLE') && existsSync(home.secretFile)) return false;
    const { message } = error as LakebaseError;
    throw new LakebaseError('CONFIG', `cannot find out whose objects are in ${location}: ${message}`, { cause: error });
  }
  const { mark, used } = found;
  if (!used) return true;
  const since = mark === undefined ? '' : ` of ${mark.createTime}`;
  const belongs = `the object store ${location} belongs to an installation${since}`;
  const elsewhere = 'or begin a new one with another object store or prefix (LAKEBASE_OBJECT_STORE)';
  for (const [what, file] of [
    ['secret', home.secretFile],
    ['root key', home.rootKeyFile],
  ] as const)
    if (!existsSync(file))
      throw new LakebaseError(
        'CONFIG',
        `${belongs} whose ${what} is not here: restore ${file} from where it is kept, and everything comes back; ${elsewhere}`,
      );
  if (mark === undefined) return true;
  if (mark.installation !== installationOf(readFileSync(home.secretFile, 'utf8')))
    throw new LakebaseError('CONFIG', `${belongs} with another secret than ${home.secretFile}: restore that one, ${elsewhere}`);
  if (mark.rootKey !== rootKeyMark(readFileSync(home.rootKeyFile, 'utf8')))
    throw new LakebaseError('CONFIG', `${belongs} with another root key than ${home.rootKeyFile}: restore that one, ${elsewhere}`);
  if (!existsSync(home.data) || isEmpty(home.data))
    say(`nothing is left here of the installation${since}: bringing it back from ${location}; this may take a while`);
  return false;
}

export async function markStore(home: Home, config: ObjectStoreConfig): Promise<void> {
  if (!existsSync(home.rootKeyFile)) return;
  await putInstallationMark(config, {
    installation: installationOf(readFileSync(home.secretFile, 'utf8')),
    rootKey: rootKeyMark(readFileSync(home.rootKeyFile, 'utf8')),
    createTime: new Date().toISOString(),
  });
}

function isEmpty(directory: string): boolean {
  try {
    return readdirSync(directory).length === 0;
  } catch {
    return true;
  }
}
