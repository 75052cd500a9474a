/** Where an installation keeps everything: one directory, `.lakebase` of the working directory or LAKEBASE_HOME. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LakebaseError } from '@lakebase/base';

export interface Home {
  readonly dir: string;
  readonly config: string;
  readonly logs: string;
  readonly data: string;
  readonly secretFile: string;
  readonly lockFile: string;
  readonly portsFile: string;
  readonly adminTokenFile: string;
  readonly credentialsFile: string;
  /** Key files: `root.key`, and those `lakebase keys create-local` makes. */
  readonly keysDir: string;
  readonly rootKeyFile: string;
  /** Settings of the key manager that an operator may write; it need not be there. */
  readonly keySettingsFile: string;
  /** Settings of the safekeepers that an operator may write; it need not be there. */
  readonly safekeeperSettingsFile: string;
  /** Settings of the pageservers that an operator may write; it need not be there. */
  readonly pageserverSettingsFile: string;
  /** Which object store to use, where it is not the directory of the installation; it need not be there. */
  readonly objectStoreFile: string;
}

export function homeFrom(env: NodeJS.ProcessEnv, cwd: string): Home {
  const named = env.LAKEBASE_HOME;
  const dir = resolve(cwd, named === undefined || named === '' ? '.lakebase' : named);
  return {
    dir,
    config: join(dir, 'config'),
    logs: join(dir, 'logs'),
    data: join(dir, 'data'),
    secretFile: join(dir, 'secret'),
    lockFile: join(dir, 'lock'),
    portsFile: join(dir, 'config', 'ports.json'),
    adminTokenFile: join(dir, 'admin-token'),
    credentialsFile: join(dir, 'credentials.json'),
    keysDir: join(dir, 'keys'),
    rootKeyFile: join(dir, 'keys', 'root.key'),
    keySettingsFile: join(dir, 'keymanager.json'),
    safekeeperSettingsFile: join(dir, 'safekeepers.json'),
    pageserverSettingsFile: join(dir, 'pageservers.json'),
    objectStoreFile: join(dir, 'objectstore.json'),
  };
}

/** The repository: services and the shim are found from here. */
export function repositoryRoot(): string {
  let dir = dirname(fileURLToPath(import.meta.url));
  for (; dir !== dirname(dir); dir = dirname(dir)) if (existsSync(join(dir, 'services')) && existsSync(join(dir, 'apps'))) return dir;
  throw new LakebaseError('CONFIG', 'cannot find the services beside the CLI: run it from a checkout of the repository');
}

/** `LAKEBASE_PG_PORT` and `LAKEBASE_HTTP_PORT`. */
export function portFromEnv(env: NodeJS.ProcessEnv, name: string, otherwise: number): number {
  const text = env[name];
  if (text === undefined || text === '') return otherwise;
  const port = Number(text);
  if (!Number.isInteger(port) || port < 1 || port > 65_535)
    throw new LakebaseError('CONFIG', `${name}=${text} is not a port: use a number from 1 to 65535`);
  return port;
}

export const PG_PORT = 55_432;
export const HTTP_PORT = 58_080;

/** What `lakebase up` on this directory wrote about itself; undefined before the first start. */
export interface Running {
  readonly httpPort: number;
  readonly pgPort: number;
}
export function readPorts(home: Home): Running | undefined {
  try {
    return JSON.parse(readFileSync(home.portsFile, 'utf8')) as Running;
  } catch {
    return undefined;
  }
}
