/** The account API: key configurations, workspaces, users, tokens (Databricks's shapes where it has them; docs/protocols/account-api.md).
 *  Invariants: only account admins get here (http/server.ts); a key is bound only after the key manager has wrapped and unwrapped with it; a bound
 *  configuration cannot be deleted; every change is in the audit log before it is made. */
import type { AuditEntry, CheckResult, KmsKeyConfig } from '@lakebase/api';
import type { FastifyRequest } from 'fastify';
import { isDuplicate } from '../metadata/database.ts';
import { ApiError, badRequest, invalid, notFound } from '../model/api-error.ts';
import { parseDuration, rfc3339 } from '../model/duration.ts';
import { kmsOf, readKeyInfo, readUseCases, sealOptions } from '../model/key-info.ts';
import { DEFAULT_WORKSPACE } from '../model/names.ts';
import * as store from '../store/accounts.ts';
import { USER_PREFIX, insertUserToken, newToken } from '../store/tokens.ts';
import type { ApiContext, Routes } from './api-context.ts';

export const ACCOUNTS = '/api/2.0/accounts/:account';
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
const TOKEN_SECONDS = { min: 60, max: 366 * 86_400 };

type Json = Record<string, unknown>;

export const accountRoutes: Routes = (app, c) => {
  const schema = { schema: { tags: ['account'] } };

  // --- key configurations ---
  const KEYS = `${ACCOUNTS}/customer-managed-keys`;
  app.post(KEYS, schema, async (request) => {
    const account = accountOf(request);
    const body = bodyOf(request);
    const useCases = readUseCases(body['use_cases']);
    const { field, info, kms } = readKeyInfo(body, c.config.localKeysDir);
    await audit(c, request, 'CREATE_KEY_CONFIGURATION', kms.key, `${kms.provider}, use cases ${useCases.join(' ')}`);
    const row = await store.insertKey(c.db, {
      account_id: account,
      use_cases: useCases,
      provider: kms.provider,
      kms_key: kms.key,
      key_info: { [field]: info },
      sealed_options: sealOptions(c.secret, kms.key, kms.options ?? {}),
    });
    return keyView(row);
  });
  app.get(KEYS, schema, async (request) => (await store.listKeys(c.db, accountOf(request))).map(keyView));
  app.get(`${KEYS}/:key`, schema, async (request) => keyView(await requireKey(c, request)));
  app.delete(`${KEYS}/:key`, schema, async (request) => {
    const row = await requireKey(c, request);
    const users = await store.usersOfKey(c.db, row.id);
    if (users.length > 0)
      throw new ApiError(
        'CONFLICT',
        'RESOURCE_CONFLICT',
        `the key configuration is in use by ${users.slice(0, 5).join(', ')}${users.length > 5 ? ` and ${users.length - 5} more` : ''}: bind them to another key first`,
      );
    await audit(c, request, 'DELETE_KEY_CONFIGURATION', row.kms_key, row.id);
    await store.deleteKey(c.db, row.id);
    return keyView(row);
  });
  // A dry run of a configuration that is not stored yet, and of one that is.
  app.post(`${KEYS}/check`, schema, async (request) =>
    checkView(await check(c, request, readKeyInfo(bodyOf(request), c.config.localKeysDir).kms)),
  );
  app.post(`${KEYS}/:key/check`, schema, async (request) =>
    checkView(await check(c, request, kmsOf(c.secret, await requireKey(c, request)))),
  );

  // --- workspaces ---
  const WORKSPACES = `${ACCOUNTS}/workspaces`;
  app.get(WORKSPACES, schema, async (request) => (await store.listWorkspaces(c.db, accountOf(request))).map(workspaceView));
  app.get(`${WORKSPACES}/:workspace`, schema, async (request) => workspaceView(await requireWorkspace(c, request)));
  app.post(WORKSPACES, schema, async (request) => {
    const account = accountOf(request);
    const body = bodyOf(request);
    const name = requireName('workspace_name', body['workspace_name']);
    const tier = readTier(body['pricing_tier']) ?? 'ENTERPRISE';
    const key = await readBinding(c, request, body['managed_services_customer_managed_key_id'], tier);
    await audit(c, request, 'CREATE_WORKSPACE', name, `tier ${tier}, key ${key ?? 'none'}`);
    return workspaceView(await store.insertWorkspace(c.db, { account, name, tier, key }));
  });
  app.patch(`${WORKSPACES}/:workspace`, schema, async (request) => {
    const workspace = await requireWorkspace(c, request);
    const body = bodyOf(request);
    const tier = readTier(body['pricing_tier']) ?? workspace.pricing_tier;
    const named = body['managed_services_customer_managed_key_id'];
    const key = named === undefined ? workspace.managed_services_key_id : await readBinding(c, request, named, tier);
    if (tier !== 'ENTERPRISE' && key !== null)
      throw badRequest('a workspace with a customer-managed key stays on the ENTERPRISE tier: unbind the key first');
    const name = body['workspace_name'] === undefined ? workspace.display_name : requireName('workspace_name', body['workspace_name']);
    const action = key === workspace.managed_services_key_id ? 'UPDATE_WORKSPACE' : key === null ? 'UNBIND_KEY' : 'BIND_KEY';
    await audit(c, request, action, String(workspace.workspace_id), `tier ${tier}, key ${key ?? 'none'}; new projects inherit it`);
    await store.updateWorkspace(c.db, workspace.id, { name, tier, key });
    return workspaceView({ ...workspace, display_name: name, pricing_tier: tier, managed_services_key_id: key });
  });
  app.delete(`${WORKSPACES}/:workspace`, schema, async (request) => {
    const workspace = await requireWorkspace(c, request);
    if (workspace.id === DEFAULT_WORKSPACE) throw badRequest('the default workspace cannot be deleted');
    const projects = await store.projectsInWorkspace(c.db, workspace.id);
    if (projects > 0) throw new ApiError('CONFLICT', 'RESOURCE_CONFLICT', `the workspace has ${projects} projects: delete them first`);
    await audit(c, request, 'DELETE_WORKSPACE', String(workspace.workspace_id), workspace.display_name);
    await store.deleteWorkspace(c.db, workspace.id);
    return workspaceView(workspace);
  });
  const ASSIGNMENTS = `${WORKSPACES}/:workspace/permissionassignments/principals/:user`;
  app.put(ASSIGNMENTS, schema, async (request) => {
    const [workspace, user] = [await requireWorkspace(c, request), await requireUser(c, request)];
    await audit(c, request, 'ASSIGN_USER', user.user_name, `workspace ${workspace.workspace_id}`);
    await store.assignUser(c.db, workspace.id, user.id);
    return { principal: { principal_id: user.id, user_name: user.user_name }, permissions: ['USER'] };
  });
  app.delete(ASSIGNMENTS, schema, async (request) => {
    const [workspace, user] = [await requireWorkspace(c, request), await requireUser(c, request)];
    await audit(c, request, 'UNASSIGN_USER', user.user_name, `workspace ${workspace.workspace_id}`);
    await store.unassignUser(c.db, workspace.id, user.id);
    return {};
  });

  // --- users and their tokens ---
  const USERS = `${ACCOUNTS}/scim/v2/Users`;
  app.get(USERS, schema, async (request) => {
    const users = (await store.listUsers(c.db, accountOf(request))).map(userView);
    return { schemas: ['urn:ietf:params:scim:api:messages:2.0:ListResponse'], totalResults: users.length, Resources: users };
  });
  app.get(`${USERS}/:user`, schema, async (request) => userView(await requireUser(c, request)));
  app.post(USERS, schema, async (request, reply) => {
    const account = accountOf(request);
    const body = bodyOf(request);
    const name = requireName('userName', body['userName']);
    const roles = Array.isArray(body['roles']) ? (body['roles'] as Json[]) : [];
    const admin = roles.some((r) => r['value'] === 'account_admin');
    await audit(c, request, 'CREATE_USER', name, admin ? 'account admin' : 'user');
    try {
      const id = await store.insertUser(c.db, account, name, admin);
      return await reply.code(201).send(userView((await store.userById(c.db, account, id)) as store.UserRow));
    } catch (error) {
      throw isDuplicate(error) ? new ApiError('ALREADY_EXISTS', 'ALREADY_EXISTS', `user ${name} exists`) : error;
    }
  });
  app.delete(`${USERS}/:user`, schema, async (request) => {
    const user = await requireUser(c, request);
    await audit(c, request, 'DELETE_USER', user.user_name, 'its tokens end with it');
    await store.deleteUser(c.db, user.id);
    return {};
  });
  app.post(`${ACCOUNTS}/tokens`, schema, async (request) => {
    const account = accountOf(request);
    const body = bodyOf(request);
    const user = await store.userByName(c.db, account, requireName('user_name', body['user_name']));
    if (user === undefined) throw notFound(`user not found: ${String(body['user_name'])}`);
    const number = body['workspace_id'];
    const workspace =
      number === undefined || number === null
        ? undefined
        : await store.workspaceByNumber(c.db, account, readNumber('workspace_id', number));
    if (number !== undefined && number !== null && workspace === undefined) throw notFound('workspace not found');
    if (workspace === undefined && !user.account_admin)
      throw badRequest(`${user.user_name} is no account admin: name a workspace_id for the token`);
    if (workspace !== undefined && !user.workspaces.includes(workspace.workspace_id))
      throw badRequest(`${user.user_name} is not assigned to workspace ${workspace.workspace_id}`);
    const lifetime = body['lifetime_seconds'];
    const seconds =
      lifetime === undefined ? undefined : parseDuration('lifetime_seconds', `${readNumber('lifetime_seconds', lifetime)}s`, TOKEN_SECONDS);
    const expireTime = seconds === undefined ? null : new Date(Date.now() + seconds * 1000);
    const comment = typeof body['comment'] === 'string' ? body['comment'].slice(0, 200) : '';
    await audit(c, request, 'CREATE_TOKEN', user.user_name, workspace === undefined ? 'account' : `workspace ${workspace.workspace_id}`);
    const token = newToken(USER_PREFIX);
    const id = await insertUserToken(c.db, token, {
      identity: user.user_name,
      user: user.id,
      workspace: workspace?.id ?? null,
      expireTime,
      comment,
    });
    return {
      token_value: token,
      token_info: {
        token_id: id,
        user_name: user.user_name,
        comment,
        ...(expireTime === null ? {} : { expiry_time: expireTime.getTime() }),
      },
    };
  });
};

// --- shared with http/encryption.ts ---

/** Other accounts do not exist for a caller. */
export function accountOf(request: FastifyRequest): string {
  const { account } = request.params as { account: string };
  if (account !== request.account) throw notFound(`account not found: ${account.slice(0, 100)}`);
  return account;
}
export function bodyOf(request: FastifyRequest): Json {
  const body = request.body ?? {};
  if (typeof body !== 'object' || Array.isArray(body)) throw invalid('the body must be a JSON object');
  return body as Json;
}
export async function requireKeyById(c: Pick<ApiContext, 'db'>, account: string, id: unknown): Promise<store.KeyRow> {
  const row = typeof id === 'string' && UUID.test(id) ? await store.keyById(c.db, id) : undefined;
  if (row?.account_id !== account) throw notFound(`customer_managed_key_id not found: ${String(id).slice(0, 100)}`);
  return row;
}
export async function requireWorkspace(c: Pick<ApiContext, 'db'>, request: FastifyRequest): Promise<store.WorkspaceRow> {
  const { workspace } = request.params as { workspace: string };
  const row = await store.workspaceByNumber(c.db, accountOf(request), readNumber('workspace_id', workspace));
  if (row === undefined) throw notFound(`workspace not found: ${workspace}`);
  return row;
}
export const audit = (
  c: Pick<ApiContext, 'keys'>,
  request: FastifyRequest,
  action: string,
  subject: string,
  detail: string,
  result: AuditEntry['result'] = 'OK',
): Promise<unknown> => c.keys.audit({ actor: request.identity, account: request.account, action, subject, detail, result });

/** Enterprise tier, and a key that wraps and unwraps right now; the refusal says what is missing. */
export async function requireBindable(c: ApiContext, request: FastifyRequest, row: store.KeyRow, tier: store.PricingTier): Promise<void> {
  if (tier !== 'ENTERPRISE')
    throw new ApiError(
      'PERMISSION_DENIED',
      'PERMISSION_DENIED',
      `customer-managed keys need the ENTERPRISE tier, the workspace is on ${tier}: set pricing_tier first`,
    );
  if (!row.use_cases.includes('MANAGED_SERVICES')) throw badRequest('the key configuration does not have the use case MANAGED_SERVICES');
  const result = await check(c, request, kmsOf(c.secret, row));
  if (!result.ok) throw badRequest(`the key cannot be bound: ${result.message}`, [checkView(result)]);
}

const check = (c: ApiContext, request: FastifyRequest, kms: KmsKeyConfig): Promise<CheckResult> =>
  c.keys.check({ account: accountOf(request), kms, actor: request.identity });

async function readBinding(c: ApiContext, request: FastifyRequest, id: unknown, tier: store.PricingTier): Promise<string | null> {
  if (id === undefined || id === null || id === '') return null;
  const row = await requireKeyById(c, accountOf(request), id);
  await requireBindable(c, request, row, tier);
  return row.id;
}

const requireKey = (c: ApiContext, request: FastifyRequest): Promise<store.KeyRow> =>
  requireKeyById(c, accountOf(request), (request.params as { key: string }).key);

async function requireUser(c: ApiContext, request: FastifyRequest): Promise<store.UserRow> {
  const { user } = request.params as { user: string };
  const row = await store.userById(c.db, accountOf(request), readNumber('user id', user));
  if (row === undefined) throw notFound(`user not found: ${user}`);
  return row;
}

function readNumber(field: string, value: unknown): number {
  const number = typeof value === 'string' && /^[0-9]{1,15}$/.test(value) ? Number(value) : value;
  if (typeof number !== 'number' || !Number.isSafeInteger(number) || number < 0) throw invalid(`Field ${field} must be a number`);
  return number;
}
function requireName(field: string, value: unknown): string {
  if (typeof value !== 'string' || value.trim() === '') throw invalid(`Field '${field}' is required, expected non-default value (not "")!`);
  // eslint-disable-next-line no-control-regex -- control characters in names only serve to fool terminals and logs
  if (value.length > 256 || /[\u0000-\u001f\u007f]/.test(value)) throw invalid(`Field ${field} must be at most 256 printable characters`);
  return value;
}
function readTier(value: unknown): store.PricingTier | undefined {
  if (value === undefined) return undefined;
  const tier = store.PRICING_TIERS.find((t) => t === value);
  if (tier === undefined) throw invalid(`Field pricing_tier must be one of ${store.PRICING_TIERS.join(', ')}`);
  return tier;
}

const keyView = (k: store.KeyRow): Json => ({
  customer_managed_key_id: k.id,
  account_id: k.account_id,
  creation_time: k.create_time.getTime(),
  use_cases: k.use_cases,
  ...k.key_info,
});
const workspaceView = (w: store.WorkspaceRow): Json => ({
  account_id: w.account_id,
  workspace_id: w.workspace_id,
  workspace_name: w.display_name,
  pricing_tier: w.pricing_tier,
  workspace_status: 'RUNNING',
  creation_time: w.create_time.getTime(),
  ...(w.managed_services_key_id === null ? {} : { managed_services_customer_managed_key_id: w.managed_services_key_id }),
});
const userView = (u: store.UserRow): Json => ({
  schemas: ['urn:ietf:params:scim:schemas:core:2.0:User'],
  id: String(u.id),
  userName: u.user_name,
  active: true,
  roles: u.account_admin ? [{ value: 'account_admin' }] : [],
  workspaces: u.workspaces,
  meta: { created: rfc3339(u.create_time) },
});
const checkView = (r: CheckResult): Json => ({
  '@type': 'type.lakebase.dev/KeyCheck',
  ok: r.ok,
  outcome: r.outcome,
  message: r.message,
  key_id: r.keyId,
  key_version: r.keyVersion,
});
