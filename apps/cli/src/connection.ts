/** How to reach a branch: its default endpoint, owner role and password, as a URL or as the environment of a psql. */
import { existsSync, readFileSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';
import type { ApiClient, Json } from './api-client.ts';
import { DEFAULTS } from './commands/context.ts';
import type { Home } from './home.ts';
import { statusOf } from './output.ts';

export interface Connection {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database: string;
  /** Null for the branch that connections without a name go to. */
  readonly endpoint: string | null;
}

export interface ConnectionRequest {
  readonly project: string;
  readonly branch: string;
  readonly role?: string | undefined;
  readonly database?: string | undefined;
}

export async function findConnection(api: ApiClient, home: Home, r: ConnectionRequest): Promise<Connection> {
  const path = `projects/${encodeURIComponent(r.project)}/branches/${encodeURIComponent(r.branch)}`;
  const [endpoint] = await api.list(`${path}/endpoints`, 'endpoints');
  if (endpoint === undefined) throw new LakebaseError('NOT_FOUND', `branch ${r.branch} has no endpoint`);
  const hosts = (statusOf(endpoint).hosts ?? {}) as Json;
  const owner = ownerCredential(home, r.project, r.branch);
  if (r.role === undefined && owner === undefined)
    throw new LakebaseError('NOT_FOUND', `no password of an owner role is kept in ${home.credentialsFile}: name a role with --role, or give the owner a new password with "lakebase roles reset-password owner"`);
  const isOwner = r.role === undefined || r.role === owner?.role;
  // Not the owner: a token made for this endpoint serves as the password.
  const password = isOwner ? (owner?.password ?? '') : String((await api.call('POST', 'postgres/credentials', { endpoint: endpoint.name })).token);
  return {
    host: String(hosts.host ?? 'localhost'),
    port: Number(hosts.port ?? 5432),
    user: isOwner ? (owner?.role ?? '') : (r.role as string),
    password,
    database: r.database ?? DEFAULTS.database,
    endpoint: r.project === DEFAULTS.project && r.branch === DEFAULTS.branch ? null : String(endpoint.uid),
  };
}

function ownerCredential(home: Home, project: string, branch: string): { role: string; password: string } | undefined {
  if (!existsSync(home.credentialsFile)) return undefined;
  return (JSON.parse(readFileSync(home.credentialsFile, 'utf8')) as Record<string, { role: string; password: string }>)[`${project}/${branch}`];
}

export function connectionUrl(c: Connection): string {
  const options = c.endpoint === null ? '' : `?options=endpoint%3D${c.endpoint}`;
  return `postgresql://${encodeURIComponent(c.user)}:${encodeURIComponent(c.password)}@${c.host}:${c.port}/${encodeURIComponent(c.database)}${options}`;
}

/** libpq's environment: a password on a command line could be read by anybody on the machine. */
export const connectionEnv = (c: Connection): Record<string, string> => ({
  PGHOST: c.host, PGPORT: String(c.port), PGUSER: c.user, PGPASSWORD: c.password, PGDATABASE: c.database, ...(c.endpoint === null ? {} : { PGOPTIONS: `endpoint=${c.endpoint}` }),
});
