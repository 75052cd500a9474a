/** /projects and /branches. Creating a project writes its whole first content in one transaction and leaves the rest to the reconciler. */
import { newProjectUid, newTimelineId } from '@lakebase/ids';
import { type Queryable, isDuplicate } from '../metadata/database.ts';
import { ApiError, badRequest, invalid, managedByParent } from '../model/api-error.ts';
import { parseDuration } from '../model/duration.ts';
import * as names from '../model/names.ts';
import { scramVerifier } from '../model/scram.ts';
import { insertDatabase, insertRole } from '../store/catalog.ts';
import { insertEndpoint } from '../store/endpoints.ts';
import { completeOperation, insertOperation, openOperations } from '../store/operations.ts';
import { workspaceByKey } from '../store/accounts.ts';
import * as store from '../store/projects.ts';
import { API, type ApiContext, type Routes, maskedFields, page, replyOperation, requireBranch, requireProject } from './api-context.ts';
import { type SettingsInput, mergeDefaults } from './endpoint-settings.ts';
import * as schemas from './schemas.ts';
import { fullEncryption } from './encryption.ts';
import { branchView, briefEncryption, projectView } from './views.ts';

const PROJECTS_MAX = 1_000;
const RETENTION_SECONDS = 604_800;
const RETENTION = { min: 0, max: 35 * 86_400 };

interface ProjectSpec {
  readonly display_name?: string;
  readonly pg_version?: number;
  readonly history_retention_duration?: string;
  readonly default_endpoint_settings?: SettingsInput;
}

export const projectRoutes: Routes = (app, c) => {
  app.post(
    `${API}/projects`,
    { schema: { tags: ['projects'], querystring: queryOf('project_id'), body: schemas.projectBody, response: { 200: schemas.operation } } },
    async (request, reply) => {
      const id = names.requireId('project_id', (request.query as { project_id?: string }).project_id);
      const operation = await createProject(
        c.in(request),
        id,
        (request.body as { spec?: ProjectSpec } | undefined)?.spec ?? {},
        request.identity,
      );
      await replyOperation(c.in(request), reply, operation);
    },
  );
  app.get(`${API}/projects`, { schema: { tags: ['projects'], querystring: schemas.listQuery } }, async (request) => {
    const cut = page(
      request,
      (await store.listProjects(c.db, request.workspace)).filter((p) => p.state !== 'DELETING'),
      (p) => p.project_id,
    );
    return {
      projects: cut.items.map((p) => projectView(p, names.DEFAULT_BRANCH, briefEncryption(c, p))),
      next_page_token: cut.next_page_token,
    };
  });
  app.get(
    `${API}/projects/:project`,
    { schema: { tags: ['projects'], params: schemas.projectParams, response: { 200: schemas.project } } },
    async (request) => {
      const p = await requireProject(c.in(request), (request.params as { project: string }).project);
      return projectView(p, names.DEFAULT_BRANCH, await fullEncryption(c, p));
    },
  );
  app.patch(
    `${API}/projects/:project`,
    {
      schema: {
        tags: ['projects'],
        params: schemas.projectParams,
        querystring: schemas.maskQuery,
        body: schemas.projectBody,
        response: { 200: schemas.operation },
      },
    },
    async (request, reply) => {
      const project = await requireProject(c.in(request), (request.params as { project: string }).project);
      const spec = (request.body as { spec?: ProjectSpec }).spec ?? {};
      const fields = maskedFields(request, spec, [
        'display_name',
        'history_retention_duration',
        'default_endpoint_settings',
        'enable_pg_native_login',
        'custom_tags',
        'budget_policy_id',
      ]);
      const displayName = fields.has('display_name') ? spec.display_name : project.display_name;
      if (displayName === undefined) throw invalid('Field spec.display_name is required by the update_mask');
      const retention = fields.has('history_retention_duration')
        ? parseDuration('spec.history_retention_duration', spec.history_retention_duration, RETENTION)
        : project.retention_seconds;
      const defaults = fields.has('default_endpoint_settings')
        ? mergeDefaults(project.default_endpoint_settings, spec.default_endpoint_settings)
        : project.default_endpoint_settings;
      const operation = await c.db.transaction(async (tx) => {
        await tx.query(
          'UPDATE projects SET display_name = $2, retention_seconds = $3, default_endpoint_settings = $4, update_time = now() WHERE uid = $1',
          [project.uid, displayName, retention, JSON.stringify(defaults)],
        );
        const op = await insertOperation(tx, {
          workspace: project.workspace_id,
          resource: names.projectName(project.project_id),
          kind: 'UPDATE_PROJECT',
          target: `project-update:${project.uid}`,
        });
        await completeOperation(tx, op, { response: {} });
        return op;
      });
      await replyOperation(c.in(request), reply, operation);
    },
  );
  app.delete(
    `${API}/projects/:project`,
    { schema: { tags: ['projects'], params: schemas.projectParams, response: { 200: schemas.operation } } },
    async (request, reply) => {
      const project = await requireProject(c.in(request), (request.params as { project: string }).project);
      const operation = await c.db.transaction(async (tx) => {
        const target = `project:${project.uid}`;
        const running = (await openOperations(tx, target)).find((o) => o.kind === 'DELETE_PROJECT');
        if (running !== undefined) return running.id;
        for (const open of await openOperations(tx, target))
          await completeOperation(tx, open.id, {
            error: { error_code: 'RESOURCE_CONFLICT', message: 'the project was deleted', details: [] },
          });
        await store.markProjectDeleting(tx, project.uid);
        return insertOperation(tx, {
          workspace: project.workspace_id,
          resource: names.projectName(project.project_id),
          kind: 'DELETE_PROJECT',
          target,
        });
      });
      c.credentials.removeProject(project.workspace_id, project.project_id);
      c.projects.kick(project.uid);
      await replyOperation(c.in(request), reply, operation);
    },
  );

  const BRANCHES = `${API}/projects/:project/branches`;
  app.get(BRANCHES, { schema: { tags: ['branches'], params: schemas.projectParams, querystring: schemas.listQuery } }, async (request) => {
    const { project } = request.params as { project: string };
    const { uid } = await requireProject(c.in(request), project);
    const cut = page(request, await store.listBranches(c.db, uid), (b) => b.branch_id);
    return { branches: cut.items.map(branchView), next_page_token: cut.next_page_token };
  });
  app.get(
    `${BRANCHES}/:branch`,
    { schema: { tags: ['branches'], params: schemas.branchParams, response: { 200: schemas.branch } } },
    async (request) => branchView(await requireBranch(c.in(request), request.params as { project: string; branch: string })),
  );
  app.post(BRANCHES, { schema: { hide: true } }, async () => {
    throw new ApiError('UNSUPPORTED', 'NOT_IMPLEMENTED', 'creating branches is not available in this version');
  });
  app.delete(`${BRANCHES}/:branch`, { schema: { hide: true } }, async (request) => {
    const b = await requireBranch(c.in(request), request.params as { project: string; branch: string });
    throw badRequest(`cannot delete root branch '${b.branch_id}': delete the project instead`, [managedByParent]);
  });
};

const queryOf = (name: string): object => ({
  type: 'object',
  properties: { [name]: { type: 'string', maxLength: 200 }, replace_existing: { type: 'boolean' } },
});

/** Returns the id of the operation. */
export async function createProject(
  c: Pick<ApiContext, 'workspace' | 'db' | 'config' | 'credentials' | 'projects'>,
  id: string,
  spec: ProjectSpec,
  owner: string,
): Promise<string> {
  const { config, workspace } = c;
  const pgVersion = spec.pg_version ?? (config.pgVersions[0] as number);
  if (!config.pgVersions.includes(pgVersion))
    throw invalid(`Field spec.pg_version must be one of ${config.pgVersions.join(', ')}, got ${pgVersion}`);
  const retention =
    spec.history_retention_duration === undefined
      ? RETENTION_SECONDS
      : parseDuration('spec.history_retention_duration', spec.history_retention_duration, RETENTION);
  const defaults = mergeDefaults(
    { autoscaling_limit_min_cu: 1, autoscaling_limit_max_cu: 1, suspend_timeout_seconds: config.suspendTimeoutSeconds, pg_settings: {} },
    spec.default_endpoint_settings,
  );
  const exists = new ApiError('ALREADY_EXISTS', 'ALREADY_EXISTS', 'project with such id already exists in the workspace');
  if ((await store.projectById(c.db, workspace, id)) !== undefined) throw exists;
  if ((await store.listProjects(c.db, workspace)).length >= PROJECTS_MAX)
    throw new ApiError('RESOURCE_EXHAUSTED', 'QUOTA_EXCEEDED', `a workspace has at most ${PROJECTS_MAX} projects`);
  const uid = newProjectUid();
  const timeline = newTimelineId();
  const { password } = c.credentials.ensure(workspace, id, names.DEFAULT_BRANCH, names.OWNER_ROLE);
  await c.credentials.kept();
  let operation: string;
  try {
    operation = await c.db.transaction(async (tx: Queryable) => {
      await store.insertProject(tx, {
        uid,
        workspace_id: workspace,
        project_id: id,
        display_name: spec.display_name ?? id,
        owner,
        pg_version: pgVersion,
        system_id: names.newSystemId(),
        retention_seconds: retention,
        default_endpoint_settings: defaults,
        managed_key_id: (await workspaceByKey(tx, workspace))?.managed_services_key_id ?? null,
      });
      await store.insertBranch(tx, { timeline, project: uid, id: names.DEFAULT_BRANCH, uid: names.newUid('br') });
      await store.insertWalMembers(
        tx,
        timeline,
        uid,
        config.safekeepers.map((s) => s.id),
      );
      await insertEndpoint(tx, {
        uid: names.newUid('ep'),
        timeline,
        id: names.DEFAULT_ENDPOINT,
        minCu: defaults.autoscaling_limit_min_cu,
        maxCu: defaults.autoscaling_limit_max_cu,
        suspendTimeoutSeconds: defaults.suspend_timeout_seconds,
        pgSettings: defaults.pg_settings,
      });
      await insertRole(tx, timeline, names.OWNER_ROLE, {
        postgresRole: names.OWNER_ROLE,
        authMethod: 'PG_PASSWORD_SCRAM_SHA_256',
        identityType: null,
        verifier: await scramVerifier(password),
        createdb: true,
        createrole: true,
        bypassrls: true,
        membershipRoles: ['DATABRICKS_SUPERUSER'],
      });
      await insertDatabase(tx, timeline, names.DEFAULT_DATABASE_ID, names.DEFAULT_DATABASE, names.OWNER_ROLE);
      return insertOperation(tx, { workspace, resource: names.projectName(id), kind: 'CREATE_PROJECT', target: `project:${uid}` });
    });
  } catch (error) {
    throw isDuplicate(error) ? exists : error;
  }
  c.projects.kick(uid);
  return operation;
}
