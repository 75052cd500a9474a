/** Resource names are paths, `projects/p/branches/b/endpoints/e`. Ids come from outside: one pattern, checked here. */
import { randomBytes } from 'node:crypto';
import { RESOURCE_ID } from '@lakebase/ids';
import { ApiError, invalid } from './api-error.ts';

/** Account of an installation. */
export const DEFAULT_ACCOUNT = 'default';
export const DEFAULT_WORKSPACE = 'default';
export const DEFAULT_PROJECT = 'default';
export const DEFAULT_BRANCH = 'production';
export const DEFAULT_ENDPOINT = 'primary';
export const DEFAULT_DATABASE = 'databricks_postgres';
export const DEFAULT_DATABASE_ID = 'databricks-postgres';
export const OWNER_ROLE = 'owner';
export const SUPERUSER_GROUP = 'databricks_superuser';

export interface BranchPath {
  readonly project: string;
  readonly branch: string;
}

export const projectName = (project: string): string => `projects/${project}`;
export const branchName = (p: BranchPath): string => `projects/${p.project}/branches/${p.branch}`;
export const childName = (p: BranchPath, kind: 'endpoints' | 'roles' | 'databases', id: string): string => `${branchName(p)}/${kind}/${id}`;

/** The id in a create request's query string. */
export function requireId(field: string, value: unknown): string {
  if (typeof value !== 'string' || value === '') throw invalid(`Field '${field}' is required, expected non-default value (not "")!`);
  if (!RESOURCE_ID.test(value)) throw invalid(`Field ${field} must match pattern ${RESOURCE_ID.source}, got '${value.slice(0, 80)}'.`);
  return value;
}

/** `projects/p/branches/b/<kind>/id`, strictly. */
export function parseChild(kind: 'endpoints' | 'roles' | 'databases', text: unknown, field: string): BranchPath & { id: string } {
  const parts = typeof text === 'string' ? text.split('/') : [];
  const [a, project, b, branch, c, id] = parts;
  if (
    parts.length !== 6 ||
    a !== 'projects' ||
    b !== 'branches' ||
    c !== kind ||
    ![project, branch, id].every((x) => RESOURCE_ID.test(x as string))
  )
    throw invalid(`Field '${field}' must be a resource name projects/{project}/branches/{branch}/${kind}/{id}`);
  return { project: project as string, branch: branch as string, id: id as string };
}

/** `ep-` and 60 random bits in letters that make a DNS label: unguessable enough that a name is not an existence oracle. */
export function newUid(prefix: 'ep' | 'br'): string {
  const alphabet = 'abcdefghijklmnopqrstuvwxyz234567';
  let out = '';
  for (const byte of randomBytes(12)) out += alphabet[byte & 31];
  return `${prefix}-${out}`;
}

export const newComputeId = (): string => `compute-${randomBytes(8).toString('hex')}`;

/** Decimal, positive, below 2^63: what Postgres takes as a system identifier, and never zero. */
export function newSystemId(): string {
  return String((randomBytes(8).readBigUInt64BE() >> 1n) | 1n);
}

const RESERVED_ROLES = new Set([
  'public',
  'none',
  'postgres',
  'lakebase_admin',
  'lakebase',
  SUPERUSER_GROUP,
  'current_user',
  'session_user',
  'current_role',
  'user',
]);
const RESERVED_DATABASES = new Set(['postgres', 'template0', 'template1']);

function checkPgName(what: string, field: string, name: unknown): string {
  if (typeof name !== 'string' || name === '') throw invalid(`Field '${field}' is required, expected non-default value (not "")!`);
  // NAMEDATALEN - 1; longer names would be cut silently by Postgres.
  if (Buffer.byteLength(name) > 63) throw invalid(`${what} name is longer than 63 bytes`);
  // eslint-disable-next-line no-control-regex -- control characters in names only serve to fool terminals and logs
  if (/[\u0000-\u001f\u007f]/.test(name)) throw invalid(`${what} name has control characters`);
  return name;
}

export function checkRoleName(name: unknown): string {
  const ok = checkPgName('role', 'spec.postgres_role', name);
  if (isReservedRole(ok)) throw new ApiError('INVALID_ARGUMENT', 'BAD_REQUEST', `role name ${JSON.stringify(ok)} is reserved`);
  return ok;
}

export const isReservedRole = (name: string): boolean => RESERVED_ROLES.has(name.toLowerCase()) || name.toLowerCase().startsWith('pg_');

export function checkDatabaseName(name: unknown): string {
  const ok = checkPgName('database', 'spec.postgres_database', name);
  if (RESERVED_DATABASES.has(ok)) throw new ApiError('INVALID_ARGUMENT', 'BAD_REQUEST', `database name ${JSON.stringify(ok)} is reserved`);
  return ok;
}
