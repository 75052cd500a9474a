/** /roles. Passwords are generated here, returned once in the answer's metadata, and kept as a SCRAM verifier only. */
import { isCode } from '@lakebase/base';
import { isDuplicate } from '../metadata/database.ts';
import { ApiError, badRequest, invalid } from '../model/api-error.ts';
import * as names from '../model/names.ts';
import { generatePassword, scramVerifier } from '../model/scram.ts';
import { catalogTarget } from '../reconcile/catalog-sync.ts';
import * as catalog from '../store/catalog.ts';
import { insertOperation } from '../store/operations.ts';
import {
  API,
  type ApiContext,
  type BranchParams,
  type ChildParams,
  type Routes,
  maskedFields,
  page,
  replyOperation,
  requireBranch,
  requireRole,
} from './api-context.ts';
import { settled } from './endpoints.ts';
import * as schemas from './schemas.ts';
import { roleView } from './views.ts';

const ROLES_MAX = 500;
/** How long an answer waits for the running compute to carry a change out. */
export const INLINE_MS = 5_000;
const AUTH_METHODS = ['LAKEBASE_OAUTH_V1', 'PG_PASSWORD_SCRAM_SHA_256', 'NO_LOGIN'] as const;
const IDENTITY_TYPES = ['USER', 'SERVICE_PRINCIPAL', 'GROUP'];
const MEMBERSHIPS = ['DATABRICKS_SUPERUSER'];

interface RoleSpec {
  readonly postgres_role?: string;
  readonly identity_type?: string;
  readonly auth_method?: string;
  readonly attributes?: { readonly createdb?: boolean; readonly createrole?: boolean; readonly bypassrls?: boolean };
  readonly membership_roles?: readonly string[];
}

export const roleRoutes: Routes = (app, c) => {
  const BASE = `${API}/projects/:project/branches/:branch/roles`;
  const query = { type: 'object', properties: { role_id: { type: 'string', maxLength: 200 }, replace_existing: { type: 'boolean' } } };
  app.post(
    BASE,
    {
      schema: {
        tags: ['roles'],
        params: schemas.branchParams,
        querystring: query,
        body: schemas.roleBody,
        response: { 200: schemas.operation },
      },
    },
    async (request, reply) => {
      const path = request.params as BranchParams;
      const branch = await requireBranch(c.in(request), path);
      const spec = (request.body as { spec?: RoleSpec } | undefined)?.spec ?? {};
      const given = (request.query as { role_id?: string }).role_id;
      const id = names.requireId('role_id', given ?? spec.postgres_role?.toLowerCase().replaceAll('_', '-'));
      const postgresRole = names.checkRoleName(spec.postgres_role ?? given);
      const authMethod = readAuthMethod(spec) ?? (spec.identity_type === undefined ? 'PG_PASSWORD_SCRAM_SHA_256' : 'LAKEBASE_OAUTH_V1');
      const password = authMethod === 'PG_PASSWORD_SCRAM_SHA_256' ? generatePassword() : undefined;
      const write: catalog.RoleWrite = {
        postgresRole,
        authMethod,
        identityType: readIdentityType(spec),
        verifier: password === undefined ? null : await scramVerifier(password),
        createdb: spec.attributes?.createdb ?? false,
        createrole: spec.attributes?.createrole ?? false,
        bypassrls: spec.attributes?.bypassrls ?? false,
        membershipRoles: readMemberships(spec) ?? [],
      };
      if ((await catalog.listRoles(c.db, branch.timeline_id)).length >= ROLES_MAX)
        throw new ApiError('RESOURCE_EXHAUSTED', 'QUOTA_EXCEEDED', `a branch has at most ${ROLES_MAX} roles`);
      const resource = names.childName(path, 'roles', id);
      const target = catalogTarget('role', branch.timeline_id, id);
      let operation: string;
      try {
        operation = await c.db.transaction(async (tx) => {
          await catalog.insertRole(tx, branch.timeline_id, id, write);
          return insertOperation(tx, { workspace: request.workspace, resource, kind: 'CREATE_ROLE', target });
        });
      } catch (error) {
        throw isDuplicate(error) ? badRequest('role with that name already exists') : error;
      }
      await settled(c.endpoints.catalogChanged(branch.timeline_id, 'role', id, false), INLINE_MS);
      await replyOperation(c.in(request), reply, operation, password === undefined ? {} : { password });
    },
  );
  app.get(BASE, { schema: { tags: ['roles'], params: schemas.branchParams, querystring: schemas.listQuery } }, async (request) => {
    const path = request.params as BranchParams;
    const branch = await requireBranch(c.in(request), path);
    const cut = page(
      request,
      (await catalog.listRoles(c.db, branch.timeline_id)).filter((r) => !r.deleting),
      (r) => r.role_id,
    );
    return { roles: cut.items.map((r) => roleView(path, r)), next_page_token: cut.next_page_token };
  });
  app.get(`${BASE}/:id`, { schema: { tags: ['roles'], params: schemas.childParams, response: { 200: schemas.role } } }, async (request) => {
    const path = request.params as ChildParams;
    return roleView(path, await requireRole(c.in(request), path));
  });
  app.patch(
    `${BASE}/:id`,
    {
      schema: {
        tags: ['roles'],
        params: schemas.childParams,
        querystring: schemas.maskQuery,
        body: schemas.roleBody,
        response: { 200: schemas.operation },
      },
    },
    async (request, reply) => {
      const path = request.params as ChildParams;
      const role = await requireRole(c.in(request), path);
      const spec = (request.body as { spec?: RoleSpec } | undefined)?.spec ?? {};
      const fields = maskedFields(request, spec, ['auth_method', 'attributes', 'membership_roles', 'postgres_role', 'identity_type']);
      if (fields.has('postgres_role') && spec.postgres_role !== undefined && spec.postgres_role !== role.postgres_role)
        throw badRequest('a role cannot be renamed');
      const authMethod = (fields.has('auth_method') ? readAuthMethod(spec) : undefined) ?? role.auth_method;
      const attributes = fields.has('attributes') ? (spec.attributes ?? {}) : role;
      const memberships = fields.has('membership_roles') ? (readMemberships(spec) ?? []) : role.membership_roles;
      if (role.membership_roles.some((m) => !memberships.includes(m)))
        throw badRequest('taking a membership away is done with SQL: REVOKE databricks_superuser FROM …');
      const needsPassword = authMethod === 'PG_PASSWORD_SCRAM_SHA_256' && role.verifier === null;
      await change(
        c.in(request),
        reply,
        path,
        role,
        {
          authMethod,
          createdb: attributes.createdb ?? false,
          createrole: attributes.createrole ?? false,
          bypassrls: attributes.bypassrls ?? false,
          membershipRoles: memberships,
        },
        needsPassword,
      );
    },
  );
  app.post(
    `${BASE}/:id/reset-password`,
    { schema: { tags: ['roles'], params: schemas.childParams, response: { 200: schemas.operation } } },
    async (request, reply) => {
      const path = request.params as ChildParams;
      const role = await requireRole(c.in(request), path);
      if (role.auth_method !== 'PG_PASSWORD_SCRAM_SHA_256') throw badRequest(`role ${role.role_id} does not log in with a password`);
      await change(
        c.in(request),
        reply,
        path,
        role,
        {
          authMethod: role.auth_method,
          createdb: role.createdb,
          createrole: role.createrole,
          bypassrls: role.bypassrls,
          membershipRoles: role.membership_roles,
        },
        true,
      );
    },
  );
  app.delete(
    `${BASE}/:id`,
    { schema: { tags: ['roles'], params: schemas.childParams, response: { 200: schemas.operation } } },
    async (request, reply) => {
      const path = request.params as ChildParams;
      const role = await requireRole(c.in(request), path);
      if ((request.query as { reassign_owned_to?: string }).reassign_owned_to !== undefined)
        throw new ApiError('UNSUPPORTED', 'NOT_IMPLEMENTED', 'reassign_owned_to is not available: use REASSIGN OWNED in SQL');
      const owned = (await catalog.listDatabases(c.db, role.timeline_id)).find((d) => d.owner_role_id === role.role_id && !d.deleting);
      if (owned !== undefined) throw badRequest(`role ${role.role_id} owns database ${owned.database_id}: give it another owner first`);
      const target = catalogTarget('role', role.timeline_id, role.role_id);
      const operation = await c.db.transaction(async (tx) => {
        await catalog.setDeleting(tx, 'role', role.timeline_id, role.role_id, true);
        return insertOperation(tx, {
          workspace: request.workspace,
          resource: names.childName(path, 'roles', role.role_id),
          kind: 'DELETE_ROLE',
          target,
        });
      });
      await settled(c.endpoints.catalogChanged(role.timeline_id, 'role', role.role_id, true), INLINE_MS);
      await replyOperation(c.in(request), reply, operation);
    },
  );
};

type Change = Omit<catalog.RoleWrite, 'postgresRole' | 'identityType' | 'verifier'>;

async function change(
  c: ApiContext,
  reply: Parameters<typeof replyOperation>[1],
  path: ChildParams,
  role: catalog.RoleRow,
  write: Change,
  newPassword: boolean,
): Promise<void> {
  const password = newPassword ? generatePassword() : undefined;
  const former = c.credentials.get(c.workspace, path.project, path.branch);
  const isOwner = former?.role === role.postgres_role;
  const resource = names.childName(path, 'roles', role.role_id);
  const target = catalogTarget('role', role.timeline_id, role.role_id);
  // Null leaves the password in the server as it is, whoever set it last; a role that is not applied yet keeps the one it waits with.
  const unapplied = role.applied_revision === 0 ? role.verifier : null;
  const verifier = password !== undefined ? await scramVerifier(password) : unapplied;
  if (password !== undefined && isOwner) {
    c.credentials.set(c.workspace, path.project, path.branch, { role: role.postgres_role, password });
    await c.credentials.kept();
  }
  const operation = await c.db
    .transaction(async (tx) => {
      await catalog.updateRole(tx, role.timeline_id, role.role_id, {
        ...write,
        verifier: write.authMethod === 'PG_PASSWORD_SCRAM_SHA_256' ? (verifier ?? role.verifier) : null,
      });
      return insertOperation(tx, { workspace: c.workspace, resource, kind: 'UPDATE_ROLE', target });
    })
    .catch((error: unknown) => {
      // Nothing was changed: the former password is the one that counts.
      if (password !== undefined && isOwner && isCode(error, 'UNAVAILABLE'))
        c.credentials.set(c.workspace, path.project, path.branch, former);
      throw error;
    });
  await settled(c.endpoints.catalogChanged(role.timeline_id, 'role', role.role_id, false), INLINE_MS);
  await replyOperation(c, reply, operation, password === undefined ? {} : { password });
}

function readAuthMethod(spec: RoleSpec): catalog.AuthMethod | undefined {
  if (spec.auth_method === undefined) return undefined;
  const found = AUTH_METHODS.find((m) => m === spec.auth_method);
  if (found === undefined) throw invalid(`Field spec.auth_method must be one of ${AUTH_METHODS.join(', ')}`);
  return found;
}
function readIdentityType(spec: RoleSpec): string | null {
  if (spec.identity_type === undefined) return null;
  if (!IDENTITY_TYPES.includes(spec.identity_type)) throw invalid(`Field spec.identity_type must be one of ${IDENTITY_TYPES.join(', ')}`);
  return spec.identity_type;
}
function readMemberships(spec: RoleSpec): readonly string[] | undefined {
  for (const m of spec.membership_roles ?? [])
    if (!MEMBERSHIPS.includes(m)) throw invalid(`Field spec.membership_roles must be among ${MEMBERSHIPS.join(', ')}`);
  return spec.membership_roles;
}
