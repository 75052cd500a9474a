/** Roles and databases of a branch. A row is *pending* until a compute has carried out its revision; only pending rows are sent. */
import type { DatabaseSpec, RoleSecret, RoleSpec } from '@lakebase/api';
import type { TimelineId } from '@lakebase/ids';
import type { Queryable } from '../metadata/database.ts';

export type AuthMethod = 'LAKEBASE_OAUTH_V1' | 'PG_PASSWORD_SCRAM_SHA_256' | 'NO_LOGIN';

export interface RoleRow {
  readonly timeline_id: TimelineId;
  readonly role_id: string;
  readonly postgres_role: string;
  readonly auth_method: AuthMethod;
  readonly identity_type: string | null;
  readonly verifier: string | null;
  readonly createdb: boolean;
  readonly createrole: boolean;
  readonly bypassrls: boolean;
  readonly membership_roles: readonly string[];
  readonly revision: number;
  readonly applied_revision: number;
  readonly deleting: boolean;
  readonly create_time: Date;
  readonly update_time: Date;
}
export interface DatabaseRow {
  readonly timeline_id: TimelineId;
  readonly database_id: string;
  readonly postgres_database: string;
  readonly owner_role_id: string;
  readonly owner: string;
  readonly revision: number;
  readonly applied_revision: number;
  readonly deleting: boolean;
  readonly create_time: Date;
  readonly update_time: Date;
}

export interface Pending {
  readonly roles: readonly RoleRow[];
  readonly databases: readonly DatabaseRow[];
}

const DATABASE =
  'SELECT d.*, r.postgres_role AS owner FROM databases d JOIN roles r ON r.timeline_id = d.timeline_id AND r.role_id = d.owner_role_id';

export const listRoles = (q: Queryable, t: TimelineId): Promise<RoleRow[]> =>
  q.query<RoleRow>('SELECT * FROM roles WHERE timeline_id = $1 ORDER BY create_time, role_id', [t]);
export const roleById = async (q: Queryable, t: TimelineId, id: string): Promise<RoleRow | undefined> =>
  (await q.query<RoleRow>('SELECT * FROM roles WHERE timeline_id = $1 AND role_id = $2', [t, id]))[0];
export const roleByName = async (q: Queryable, t: TimelineId, name: string): Promise<RoleRow | undefined> =>
  (await q.query<RoleRow>('SELECT * FROM roles WHERE timeline_id = $1 AND postgres_role = $2', [t, name]))[0];
export const listDatabases = (q: Queryable, t: TimelineId): Promise<DatabaseRow[]> =>
  q.query<DatabaseRow>(`${DATABASE} WHERE d.timeline_id = $1 ORDER BY d.create_time, d.database_id`, [t]);
export const databaseById = async (q: Queryable, t: TimelineId, id: string): Promise<DatabaseRow | undefined> =>
  (await q.query<DatabaseRow>(`${DATABASE} WHERE d.timeline_id = $1 AND d.database_id = $2`, [t, id]))[0];

export async function pendingCatalog(q: Queryable, t: TimelineId): Promise<Pending> {
  const roles = await q.query<RoleRow>(
    'SELECT * FROM roles WHERE timeline_id = $1 AND (deleting OR applied_revision < revision) ORDER BY create_time',
    [t],
  );
  const databases = await q.query<DatabaseRow>(
    `${DATABASE} WHERE d.timeline_id = $1 AND (d.deleting OR d.applied_revision < d.revision) ORDER BY d.create_time`,
    [t],
  );
  return { roles, databases };
}

export interface RoleWrite {
  readonly postgresRole: string;
  readonly authMethod: AuthMethod;
  readonly identityType: string | null;
  readonly verifier: string | null;
  readonly createdb: boolean;
  readonly createrole: boolean;
  readonly bypassrls: boolean;
  readonly membershipRoles: readonly string[];
}
export async function insertRole(q: Queryable, t: TimelineId, id: string, r: RoleWrite): Promise<void> {
  await q.query(
    `INSERT INTO roles (timeline_id, role_id, postgres_role, auth_method, identity_type, verifier, createdb, createrole, bypassrls, membership_roles)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
    [t, id, r.postgresRole, r.authMethod, r.identityType, r.verifier, r.createdb, r.createrole, r.bypassrls, r.membershipRoles],
  );
}
export async function updateRole(
  q: Queryable,
  t: TimelineId,
  id: string,
  r: Omit<RoleWrite, 'postgresRole' | 'identityType'>,
): Promise<void> {
  await q.query(
    `UPDATE roles SET auth_method = $3, verifier = $4, createdb = $5, createrole = $6, bypassrls = $7, membership_roles = $8, revision = revision + 1, update_time = now()
     WHERE timeline_id = $1 AND role_id = $2`,
    [t, id, r.authMethod, r.verifier, r.createdb, r.createrole, r.bypassrls, r.membershipRoles],
  );
  await q.query(
    'DELETE FROM seen_roles s USING roles r WHERE r.timeline_id = $1 AND r.role_id = $2 AND s.timeline_id = $1 AND s.name = r.postgres_role',
    [t, id],
  );
}
export async function insertDatabase(q: Queryable, t: TimelineId, id: string, name: string, ownerRoleId: string): Promise<void> {
  await q.query('INSERT INTO databases (timeline_id, database_id, postgres_database, owner_role_id) VALUES ($1, $2, $3, $4)', [
    t,
    id,
    name,
    ownerRoleId,
  ]);
}
export async function updateDatabaseOwner(q: Queryable, t: TimelineId, id: string, ownerRoleId: string): Promise<void> {
  await q.query(
    'UPDATE databases SET owner_role_id = $3, revision = revision + 1, update_time = now() WHERE timeline_id = $1 AND database_id = $2',
    [t, id, ownerRoleId],
  );
}

export type CatalogKind = 'role' | 'database';
const TABLE = { role: 'roles', database: 'databases' } as const;
const ID = { role: 'role_id', database: 'database_id' } as const;

export async function setDeleting(q: Queryable, kind: CatalogKind, t: TimelineId, id: string, deleting: boolean): Promise<void> {
  await q.query(`UPDATE ${TABLE[kind]} SET deleting = $3, update_time = now() WHERE timeline_id = $1 AND ${ID[kind]} = $2`, [
    t,
    id,
    deleting,
  ]);
}
export async function setApplied(q: Queryable, kind: CatalogKind, t: TimelineId, id: string, revision: number): Promise<void> {
  await q.query(`UPDATE ${TABLE[kind]} SET applied_revision = greatest(applied_revision, $3) WHERE timeline_id = $1 AND ${ID[kind]} = $2`, [
    t,
    id,
    revision,
  ]);
}
export async function deleteCatalogRow(q: Queryable, kind: CatalogKind, t: TimelineId, id: string): Promise<void> {
  await q.query(`DELETE FROM ${TABLE[kind]} WHERE timeline_id = $1 AND ${ID[kind]} = $2`, [t, id]);
}

/** Last known secret of a role: the API's own when a change of it is still to be carried out, else what a compute last said. */
export async function lastKnownSecret(q: Queryable, t: TimelineId, name: string): Promise<RoleSecret | undefined> {
  const role = await roleByName(q, t, name);
  if (role !== undefined && (role.deleting || role.applied_revision < role.revision)) return roleSecret(role);
  const seen = (
    await q.query<{ verifier: string | null; login: boolean }>(
      'SELECT verifier, login FROM seen_roles WHERE timeline_id = $1 AND name = $2',
      [t, name],
    )
  )[0];
  if (seen !== undefined) return { name, verifier: seen.verifier, login: seen.login };
  return role === undefined ? undefined : roleSecret(role);
}
export async function rememberSecret(q: Queryable, t: TimelineId, s: RoleSecret): Promise<void> {
  await q.query(
    `INSERT INTO seen_roles (timeline_id, name, verifier, login) VALUES ($1, $2, $3, $4)
     ON CONFLICT (timeline_id, name) DO UPDATE SET verifier = $3, login = $4, seen_time = now()
     WHERE seen_roles.verifier IS DISTINCT FROM $3 OR seen_roles.login <> $4`,
    [t, s.name, s.verifier, s.login],
  );
}
export async function forgetSecret(q: Queryable, t: TimelineId, name: string): Promise<void> {
  await q.query('DELETE FROM seen_roles WHERE timeline_id = $1 AND name = $2', [t, name]);
}
export async function knownRoleNames(q: Queryable, t: TimelineId): Promise<string[]> {
  const rows = await q.query<{ name: string }>(
    'SELECT postgres_role AS name FROM roles WHERE timeline_id = $1 UNION SELECT name FROM seen_roles WHERE timeline_id = $1 LIMIT 1000',
    [t],
  );
  return rows.map((row) => row.name);
}

const roleSecret = (r: RoleRow): RoleSecret => ({
  name: r.postgres_role,
  verifier: r.verifier,
  login: r.auth_method !== 'NO_LOGIN' && !r.deleting,
});

export const roleSpec = (r: RoleRow): RoleSpec => ({
  name: r.postgres_role,
  verifier: r.verifier,
  login: r.auth_method !== 'NO_LOGIN',
  createdb: r.createdb,
  createrole: r.createrole,
  bypassrls: r.bypassrls,
  memberOf: r.membership_roles.map((m) => m.toLowerCase()),
});
export const databaseSpec = (d: DatabaseRow): DatabaseSpec => ({ name: d.postgres_database, owner: d.owner });
