/** What the proxy asks (packages/api/src/manager-internal.ts). Answers of resolve do not tell a disabled secret from a missing one. */
import type { EndpointNotice, ResolveRequest, ResolvedEndpoint, RoleLookup, RoleSecret, TokenCheck, TokenIdentity } from '@lakebase/api';
import { LakebaseError, errorMessage, isCode } from '@lakebase/base';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { DEFAULT_BRANCH, DEFAULT_ENDPOINT, DEFAULT_PROJECT, DEFAULT_WORKSPACE, isReservedRole } from '../model/names.ts';
import * as catalog from '../store/catalog.ts';
import { type EndpointRow, endpointByUid, listAllEndpoints } from '../store/endpoints.ts';
import { findToken } from '../store/tokens.ts';
import type { ApiContext } from './api-context.ts';
import { currentState } from './views.ts';

type Context = Pick<ApiContext, 'db' | 'endpoints' | 'keyStates' | 'log'>;

const NAME_CHARS_MAX = 128;

export function internalRoutes(app: FastifyInstance, c: Context): void {
  const hidden = { schema: { hide: true } };
  app.post('/internal/v1/resolve', hidden, async (request): Promise<ResolvedEndpoint> => {
    const { endpoint } = bodyOf<ResolveRequest>(request);
    const row = endpoint === null || endpoint === undefined ? await defaultEndpoint(c) : await namedEndpoint(c, text('endpoint', endpoint));
    if (row === undefined || row.project_state === 'DELETING') throw new LakebaseError('NOT_FOUND', 'no such endpoint');
    const controller = c.endpoints.peek(row.uid);
    return { endpointId: row.uid, state: currentState(row, controller), disabled: row.disabled };
  });

  app.post('/internal/v1/role', hidden, async (request): Promise<RoleSecret> => {
    const { endpointId, role } = bodyOf<RoleLookup>(request);
    return roleSecret(c, await requireRow(c, endpointId), text('role', role));
  });

  app.post('/internal/v1/token', hidden, async (request): Promise<TokenIdentity> => {
    const { endpointId, role, token } = bodyOf<TokenCheck>(request);
    return checkToken(c, endpointId, text('role', role), token);
  });

  app.post('/internal/v1/explain', hidden, async (request): Promise<EndpointNotice> => {
    const row = await requireRow(c, bodyOf<{ endpointId: string }>(request).endpointId);
    return { reason: c.keyStates.refusal(row.project_uid) ?? null };
  });

  app.post('/internal/v1/wake', hidden, async (request) => {
    const { endpointId } = bodyOf<{ endpointId: string }>(request);
    return c.endpoints.wake(text('endpointId', endpointId));
  });
}

function bodyOf<T>(request: FastifyRequest): T {
  if (typeof request.body !== 'object' || request.body === null || Array.isArray(request.body))
    throw new LakebaseError('INVALID_ARGUMENT', 'a JSON object is needed');
  return request.body as T;
}
function text(field: string, value: unknown): string {
  if (typeof value !== 'string' || value === '' || value.length > NAME_CHARS_MAX)
    throw new LakebaseError('INVALID_ARGUMENT', `${field} must be a string of 1 to ${NAME_CHARS_MAX} characters`);
  return value;
}

async function requireRow(c: Context, uid: unknown): Promise<EndpointRow> {
  const row = await endpointByUid(c.db, text('endpointId', uid));
  if (row === undefined) throw new LakebaseError('NOT_FOUND', 'no such endpoint');
  return row;
}

/** No name given: the endpoint every installation starts with; when that is gone, the only one there is. */
async function defaultEndpoint(c: Context): Promise<EndpointRow | undefined> {
  const all = (await listAllEndpoints(c.db)).filter((e) => e.workspace_id === DEFAULT_WORKSPACE);
  const first = all.find((e) => e.project_id === DEFAULT_PROJECT && e.branch_id === DEFAULT_BRANCH && e.endpoint_id === DEFAULT_ENDPOINT);
  return first ?? (all.length === 1 ? all[0] : undefined);
}

/** By uid (`ep-…`), or by resource path as the CLI prints it. */
async function namedEndpoint(c: Context, name: string): Promise<EndpointRow | undefined> {
  if (!name.includes('/')) return endpointByUid(c.db, name.toLowerCase());
  return (await listAllEndpoints(c.db)).find(
    (e) => e.workspace_id === DEFAULT_WORKSPACE && `projects/${e.project_id}/branches/${e.branch_id}/endpoints/${e.endpoint_id}` === name,
  );
}

/** The running server is the truth; what it last said is the next best. A role nobody has heard of may have been made with SQL in a
 *  session we did not see, so the endpoint is woken to ask. */
async function roleSecret(c: Context, row: EndpointRow, role: string): Promise<RoleSecret> {
  const running = c.endpoints.peek(row.uid)?.running;
  if (running === undefined) {
    const known = await catalog.lastKnownSecret(c.db, row.timeline_id, role);
    if (known !== undefined) return known;
    if (isReservedRole(role) || row.disabled) throw new LakebaseError('NOT_FOUND', 'no such role');
    const { computeId } = await c.endpoints.wake(row.uid);
    try {
      return await askCompute(c, row, role, computeId);
    } catch (error) {
      // Remembered until the next suspend asks again: guessing names must not keep an endpoint awake.
      if (isCode(error, 'NOT_FOUND'))
        await catalog.rememberSecret(c.db.local, row.timeline_id, { name: role, verifier: null, login: false });
      throw error;
    }
  }
  try {
    return await askCompute(c, row, role, running.computeId);
  } catch (error) {
    const known = await catalog.lastKnownSecret(c.db, row.timeline_id, role);
    // The compute knows no such role though the API made it: its change may still be on the way, or SQL dropped it.
    if (isCode(error, 'NOT_FOUND')) {
      const pending = await catalog.roleByName(c.db, row.timeline_id, role);
      if (pending === undefined || pending.applied_revision > 0 || known === undefined) throw error;
      return known;
    }
    if (known === undefined) throw error;
    c.log.warn({ endpoint: row.uid, err: errorMessage(error) }, 'cannot ask the compute about a role; using what it last said');
    return known;
  }
}

async function askCompute(c: Context, row: EndpointRow, role: string, computeId: string): Promise<RoleSecret> {
  if (isReservedRole(role)) throw new LakebaseError('NOT_FOUND', 'no such role');
  const secret = await c.endpoints.roleOf(computeId, role);
  await catalog.rememberSecret(c.db.local, row.timeline_id, secret);
  return secret;
}

/** A credential opens the roles the API made and those with a password of their own on its endpoint; never the server's own roles. */
async function checkToken(c: Context, endpointId: string, role: string, token: unknown): Promise<TokenIdentity> {
  const no = (reason: string): TokenIdentity => ({ valid: false, reason });
  if (typeof token !== 'string') return no('no token');
  const row = await findToken(c.db, 'CREDENTIAL', token);
  if (row === undefined) return no('the token is not known');
  if (row.expire_time !== null && row.expire_time.getTime() <= Date.now()) return no('the token has expired');
  if (row.endpoint_uid !== null && row.endpoint_uid !== endpointId) return no('the token is for another endpoint');
  if (isReservedRole(role)) return no('the role is reserved');
  const endpoint = await endpointByUid(c.db, endpointId);
  if (endpoint === undefined) return no('no such endpoint');
  const made = await catalog.roleByName(c.db, endpoint.timeline_id, role);
  if (made !== undefined)
    return made.auth_method === 'NO_LOGIN' || made.deleting ? no('the role may not log in') : { valid: true, reason: null };
  try {
    const secret = await roleSecret(c, endpoint, role);
    return secret.login && secret.verifier !== null ? { valid: true, reason: null } : no('the role may not log in');
  } catch (error) {
    if (isCode(error, 'NOT_FOUND')) return no('no such role');
    throw error;
  }
}
