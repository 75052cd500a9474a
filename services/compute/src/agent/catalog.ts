/** Brings roles and databases of the running server to what the Manager asked for. Statements are built from quoted identifiers only;
 *  one query reads what is there, so a start with nothing to change costs one round trip. */
import type { DatabaseSpec, RoleSecret, RoleSpec } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import type { Client } from 'pg';
import { ADMIN_ROLE } from './settings.ts';

/** What an API-made owner gets instead of superuser. Made in the template; contents in template.ts. */
export const SUPERUSER_GROUP = 'databricks_superuser';

export interface CatalogSpec {
  readonly roles: readonly RoleSpec[];
  readonly databases: readonly DatabaseSpec[];
  readonly droppedRoles: readonly string[];
  readonly droppedDatabases: readonly string[];
}

export interface RoleRow {
  name: string;
  verifier: string | null;
  login: boolean;
  createdb: boolean;
  createrole: boolean;
  bypassrls: boolean;
  member_of: string[];
}

const ident = (name: string): string => `"${name.replaceAll('"', '""')}"`;
const literal = (text: string): string => `'${text.replaceAll("'", "''")}'`;

export async function applyCatalog(client: Client, spec: CatalogSpec): Promise<number> {
  const statements = catalogStatements(spec, await readRoles(client), await readDatabases(client));
  for (const statement of statements) await client.query(statement);
  return statements.length;
}

/** Pure: the statements that lead from what is there to what is wanted. */
export function catalogStatements(
  spec: CatalogSpec,
  roles: ReadonlyMap<string, RoleRow>,
  databases: ReadonlyMap<string, string>,
): string[] {
  const out: string[] = [];
  for (const role of spec.roles) {
    if (role.name === ADMIN_ROLE) continue;
    const have = roles.get(role.name);
    const attributes = [
      role.login ? 'LOGIN' : 'NOLOGIN',
      role.createdb === true ? 'CREATEDB' : 'NOCREATEDB',
      role.createrole === true ? 'CREATEROLE' : 'NOCREATEROLE',
      role.bypassrls === true ? 'BYPASSRLS' : 'NOBYPASSRLS',
    ].join(' ');
    const password = role.verifier === null ? '' : ` PASSWORD ${literal(role.verifier)}`;
    if (have === undefined) out.push(`CREATE ROLE ${ident(role.name)} ${attributes}${password}`);
    else if (roleDiffers(role, have)) out.push(`ALTER ROLE ${ident(role.name)} ${attributes}${password}`);
    for (const group of role.memberOf ?? [])
      if (have === undefined || !have.member_of.includes(group)) out.push(`GRANT ${ident(group)} TO ${ident(role.name)}`);
  }
  for (const database of spec.databases) {
    const owner = databases.get(database.name);
    if (owner === undefined) out.push(`CREATE DATABASE ${ident(database.name)} OWNER ${ident(database.owner)}`);
    else if (owner !== database.owner) out.push(`ALTER DATABASE ${ident(database.name)} OWNER TO ${ident(database.owner)}`);
  }
  const wantedDatabases = new Set(spec.databases.map((d) => d.name));
  for (const name of spec.droppedDatabases)
    if (databases.has(name) && !wantedDatabases.has(name)) out.push(`DROP DATABASE ${ident(name)} WITH (FORCE)`);
  const wantedRoles = new Set(spec.roles.map((r) => r.name));
  for (const name of spec.droppedRoles)
    if (roles.has(name) && !wantedRoles.has(name) && name !== ADMIN_ROLE) out.push(`DROP ROLE ${ident(name)}`);
  return out;
}

function roleDiffers(want: RoleSpec, have: RoleRow): boolean {
  return (
    want.login !== have.login ||
    (want.createdb === true) !== have.createdb ||
    (want.createrole === true) !== have.createrole ||
    (want.bypassrls === true) !== have.bypassrls ||
    (want.verifier !== null && want.verifier !== have.verifier)
  );
}

async function readRoles(client: Client): Promise<Map<string, RoleRow>> {
  const { rows } = await client.query<RoleRow>(`
    SELECT r.rolname AS name, r.rolpassword AS verifier, r.rolcanlogin AS login, r.rolcreatedb AS createdb, r.rolcreaterole AS createrole, r.rolbypassrls AS bypassrls,
           ARRAY(SELECT g.rolname::text FROM pg_auth_members m JOIN pg_authid g ON g.oid = m.roleid WHERE m.member = r.oid) AS member_of
    FROM pg_authid r WHERE r.rolname !~ '^pg_'`);
  return new Map(rows.map((row) => [row.name, row]));
}

async function readDatabases(client: Client): Promise<Map<string, string>> {
  const { rows } = await client.query<{ name: string; owner: string }>(
    'SELECT d.datname AS name, r.rolname AS owner FROM pg_database d JOIN pg_authid r ON r.oid = d.datdba',
  );
  return new Map(rows.map((row) => [row.name, row.owner]));
}

export async function readRoleSecret(client: Client, name: string): Promise<RoleSecret> {
  const { rows } = await client.query<{ verifier: string | null; login: boolean }>(
    `SELECT rolpassword AS verifier, rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > now()) AS login FROM pg_authid WHERE rolname = $1 AND rolname <> $2`,
    [name, ADMIN_ROLE],
  );
  const row = rows[0];
  if (row === undefined) throw new LakebaseError('NOT_FOUND', `no role ${JSON.stringify(name)}`);
  return { name, verifier: row.verifier, login: row.login };
}
