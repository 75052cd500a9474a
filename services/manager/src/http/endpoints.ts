/** /endpoints: list, get, update of limits, suspension, settings and `disabled`; and our own start and suspend. */
import { ApiError, badRequest, managedByParent } from '../model/api-error.ts';
import { childName } from '../model/names.ts';
import { checkPgSettings } from '../model/settings.ts';
import { type EndpointChange, type EndpointRow, endpointByUid, listEndpoints, updateEndpoint } from '../store/endpoints.ts';
import { type OperationKind, insertOperation } from '../store/operations.ts';
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
  requireEndpoint,
} from './api-context.ts';
import { type SettingsInput, checkLimits, readSuspension } from './endpoint-settings.ts';
import * as schemas from './schemas.ts';
import { endpointView } from './views.ts';

interface EndpointSpec extends SettingsInput {
  readonly disabled?: boolean;
  readonly settings?: { readonly pg_settings?: Record<string, unknown> };
}
const FIELDS = ['autoscaling_limit_min_cu', 'autoscaling_limit_max_cu', 'suspension', 'disabled', 'settings', 'endpoint_type', 'group'];
/** How long an answer waits for its operation, so that quick ones come back done. */
const INLINE_MS = 1_000;

export const endpointRoutes: Routes = (app, c) => {
  const BASE = `${API}/projects/:project/branches/:branch/endpoints`;
  app.get(BASE, { schema: { tags: ['endpoints'], params: schemas.branchParams, querystring: schemas.listQuery } }, async (request) => {
    const branch = await requireBranch(c.in(request), request.params as BranchParams);
    const cut = page(request, await listEndpoints(c.db, branch.timeline_id), (e) => e.endpoint_id);
    return { endpoints: cut.items.map((e) => endpointView(e, c.controllerOf(e.uid), c.config)), next_page_token: cut.next_page_token };
  });
  app.get(
    `${BASE}/:id`,
    { schema: { tags: ['endpoints'], params: schemas.childParams, response: { 200: schemas.endpoint } } },
    async (request) => {
      const row = await requireEndpoint(c.in(request), request.params as ChildParams);
      return endpointView(row, c.controllerOf(row.uid), c.config);
    },
  );
  app.patch(
    `${BASE}/:id`,
    {
      schema: {
        tags: ['endpoints'],
        params: schemas.childParams,
        querystring: schemas.maskQuery,
        body: schemas.endpointBody,
        response: { 200: schemas.operation },
      },
    },
    async (request, reply) => {
      const row = await requireEndpoint(c.in(request), request.params as ChildParams);
      const spec = (request.body as { spec?: EndpointSpec } | undefined)?.spec ?? {};
      const change = changeOf(row, spec, maskedFields(request, spec, FIELDS));
      await updateEndpoint(c.db, row.uid, change);
      const operation = await start(c, row, 'UPDATE_ENDPOINT', async () => {
        const controller = await c.endpoints.controller(row.uid);
        controller.setSuspendTimeout(change.suspendTimeoutSeconds);
        if (change.disabled) await c.endpoints.suspend(row.uid);
        else if (JSON.stringify(change.pgSettings) !== JSON.stringify(row.pg_settings))
          await c.endpoints.settingsChanged((await endpointByUid(c.db, row.uid)) as EndpointRow);
      });
      await replyOperation(c.in(request), reply, operation);
    },
  );
  app.post(
    `${BASE}/:id/start`,
    { schema: { tags: ['endpoints'], params: schemas.childParams, response: { 200: schemas.operation } } },
    async (request, reply) => {
      const row = await requireEndpoint(c.in(request), request.params as ChildParams);
      await replyOperation(c.in(request), reply, await start(c, row, 'START_ENDPOINT', async () => void (await c.endpoints.wake(row.uid))));
    },
  );
  app.post(
    `${BASE}/:id/suspend`,
    { schema: { tags: ['endpoints'], params: schemas.childParams, response: { 200: schemas.operation } } },
    async (request, reply) => {
      const row = await requireEndpoint(c.in(request), request.params as ChildParams);
      await replyOperation(c.in(request), reply, await start(c, row, 'SUSPEND_ENDPOINT', () => c.endpoints.suspend(row.uid)));
    },
  );
  app.post(BASE, { schema: { hide: true } }, async () => {
    throw new ApiError(
      'UNSUPPORTED',
      'NOT_IMPLEMENTED',
      'creating endpoints is not available in this version: every branch has its read-write endpoint',
    );
  });
  app.delete(`${BASE}/:id`, { schema: { hide: true } }, async (request) => {
    const row = await requireEndpoint(c.in(request), request.params as ChildParams);
    throw badRequest(`Cannot delete read-write endpoint '${row.endpoint_id}'. Read-write endpoints cannot be deleted.`, [managedByParent]);
  });
};

function changeOf(row: EndpointRow, spec: EndpointSpec, fields: ReadonlySet<string>): EndpointChange {
  const min = (fields.has('autoscaling_limit_min_cu') ? spec.autoscaling_limit_min_cu : undefined) ?? row.min_cu;
  const max = (fields.has('autoscaling_limit_max_cu') ? spec.autoscaling_limit_max_cu : undefined) ?? row.max_cu;
  checkLimits(min, max);
  const named = fields.has('suspension') || fields.has('suspend_timeout_duration') || fields.has('no_suspension');
  const suspend = named ? readSuspension('spec', spec) : undefined;
  return {
    minCu: min,
    maxCu: max,
    suspendTimeoutSeconds: suspend === undefined ? row.suspend_timeout_seconds : suspend,
    disabled: fields.has('disabled') ? (spec.disabled ?? false) : row.disabled,
    pgSettings: fields.has('settings') ? checkPgSettings(spec.settings?.pg_settings) : row.pg_settings,
  };
}

/** Records the operation, runs its work, and returns its id once it is done or a moment has passed. */
async function start(c: ApiContext, row: EndpointRow, kind: OperationKind, work: () => Promise<void>): Promise<string> {
  const name = childName({ project: row.project_id, branch: row.branch_id }, 'endpoints', row.endpoint_id);
  const id = await insertOperation(c.db, { workspace: row.workspace_id, resource: name, kind, target: `endpoint:${row.uid}` });
  await settled(c.endpoints.runEndpointOperation(id, work), INLINE_MS);
  return id;
}

/** Resolves when `work` has settled or `ms` have passed, whichever is first. */
export async function settled(work: Promise<unknown>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  await Promise.race([work.catch(() => {}), new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)))]);
  clearTimeout(timer);
}
