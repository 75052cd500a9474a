/** How to reach a branch: its default endpoint, owner role and password, as a URL or as the environment of a psql. */
import { existsSync, readFileSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';
import { type ApiClient, type Json, textOf } from './api-client.ts';
import { DEFAULTS } from './commands/context.ts';
import type { Home } from './home.ts';
import { statusOf } from './output.ts';

export interface Connection {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  /** Null: a role with a password of its own that only its user knows. */
  readonly password: string | null;
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
    throw new LakebaseError(
      'NOT_FOUND',
      `no password of an owner role is kept in ${home.credentialsFile}: name a role with --role, or give the owner a new password with "lakebase roles reset-password owner"`,
    );
  const isOwner = r.role === undefined || r.role === owner?.role;
  const password = isOwner ? (owner?.password ?? null) : await tokenFor(api, path, r.role as string, endpoint);
  return {
    host: textOf(hosts.host, 'localhost'),
    port: Number(hosts.port ?? 5432),
    user: isOwner ? (owner?.role ?? '') : (r.role as string),
    password,
    database: r.database ?? DEFAULTS.database,
    endpoint: r.project === DEFAULTS.project && r.branch === DEFAULTS.branch ? null : String(endpoint.uid),
  };
}

/** A role that logs in with tokens gets one made for this endpoint. */
async function tokenFor(api: ApiClient, path: string, role: string, endpoint: Json): Promise<string | null> {
  const row = (await api.list(`${path}/roles`, 'roles')).find((r) => statusOf(r).postgres_role === role);
  if (row === undefined || statusOf(row).auth_method !== 'LAKEBASE_OAUTH_V1') return null;
  return String((await api.call('POST', 'postgres/credentials', { endpoint: endpoint.name })).token);
}

function ownerCredential(home: Home, project: string, branch: string): { role: string; password: string } | undefined {
  if (!existsSync(home.credentialsFile)) return undefined;
  return (JSON.parse(readFileSync(home.credentialsFile, 'utf8')) as Record<string, { role: string; password: string }>)[
    `${project}/${branch}`
  ];
}

export function connectionUrl(c: Connection): string {
  const options = c.endpoint === null ? '' : `?options=endpoint%3D${c.endpoint}`;
  const password = c.password === null ? '' : `:${encodeURIComponent(c.password)}`;
  return `postgresql://${encodeURIComponent(c.user)}${password}@${c.host}:${c.port}/${encodeURIComponent(c.database)}${options}`;
}

/** libpq's environment: a password on a command line could be read by anybody on the machine. */
export const connectionEnv = (c: Connection): Record<string, string> => ({
  PGHOST: c.host,
  PGPORT: String(c.port),
  PGUSER: c.user,
  ...(c.password === null ? {} : { PGPASSWORD: c.password }),
  PGDATABASE: c.database,
  ...(c.endpoint === null ? {} : { PGOPTIONS: `endpoint=${c.endpoint}` }),
});
