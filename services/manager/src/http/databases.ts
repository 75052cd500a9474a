/** /databases of a branch. */
import { isDuplicate } from '../metadata/database.ts';
import { ApiError, badRequest, invalid } from '../model/api-error.ts';
import * as names from '../model/names.ts';
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
  requireDatabase,
} from './api-context.ts';
import { settled } from './endpoints.ts';
import { INLINE_MS } from './roles.ts';
import * as schemas from './schemas.ts';
import { databaseView } from './views.ts';

const DATABASES_MAX = 500;

interface DatabaseSpec {
  readonly postgres_database?: string;
  readonly role?: string;
}

export const databaseRoutes: Routes = (app, c) => {
  const BASE = `${API}/projects/:project/branches/:branch/databases`;
  const query = { type: 'object', properties: { database_id: { type: 'string', maxLength: 200 }, replace_existing: { type: 'boolean' } } };
  app.post(
    BASE,
    {
      schema: {
        tags: ['databases'],
        params: schemas.branchParams,
        querystring: query,
        body: schemas.databaseBody,
        response: { 200: schemas.operation },
      },
    },
    async (request, reply) => {
      const path = request.params as BranchParams;
      const branch = await requireBranch(c.in(request), path);
      const spec = (request.body as { spec?: DatabaseSpec } | undefined)?.spec ?? {};
      const given = (request.query as { database_id?: string }).database_id;
      const id = names.requireId('database_id', given ?? spec.postgres_database?.toLowerCase().replaceAll('_', '-'));
      const name = names.checkDatabaseName(spec.postgres_database ?? given);
      const owner = await ownerRole(c, path, branch.timeline_id, spec.role);
      if ((await catalog.listDatabases(c.db, branch.timeline_id)).length >= DATABASES_MAX)
        throw new ApiError('RESOURCE_EXHAUSTED', 'QUOTA_EXCEEDED', `a branch has at most ${DATABASES_MAX} databases`);
      let operation: string;
      try {
        operation = await c.db.transaction(async (tx) => {
          await catalog.insertDatabase(tx, branch.timeline_id, id, name, owner);
          return insertOperation(tx, {
            workspace: request.workspace,
            resource: names.childName(path, 'databases', id),
            kind: 'CREATE_DATABASE',
            target: catalogTarget('database', branch.timeline_id, id),
          });
        });
      } catch (error) {
        throw isDuplicate(error) ? new ApiError('ALREADY_EXISTS', 'ALREADY_EXISTS', 'database with that name already exists') : error;
      }
      await settled(c.endpoints.catalogChanged(branch.timeline_id, 'database', id, false), INLINE_MS);
      await replyOperation(c.in(request), reply, operation);
    },
  );
  app.get(BASE, { schema: { tags: ['databases'], params: schemas.branchParams, querystring: schemas.listQuery } }, async (request) => {
    const path = request.params as BranchParams;
    const branch = await requireBranch(c.in(request), path);
    const cut = page(
      request,
      (await catalog.listDatabases(c.db, branch.timeline_id)).filter((d) => !d.deleting),
      (d) => d.database_id,
    );
    return { databases: cut.items.map((d) => databaseView(path, d)), next_page_token: cut.next_page_token };
  });
  app.get(
    `${BASE}/:id`,
    { schema: { tags: ['databases'], params: schemas.childParams, response: { 200: schemas.database } } },
    async (request) => {
      const path = request.params as ChildParams;
      return databaseView(path, await requireDatabase(c.in(request), path));
    },
  );
  app.patch(
    `${BASE}/:id`,
    {
      schema: {
        tags: ['databases'],
        params: schemas.childParams,
        querystring: schemas.maskQuery,
        body: schemas.databaseBody,
        response: { 200: schemas.operation },
      },
    },
    async (request, reply) => {
      const path = request.params as ChildParams;
      const database = await requireDatabase(c.in(request), path);
      const spec = (request.body as { spec?: DatabaseSpec } | undefined)?.spec ?? {};
      const fields = maskedFields(request, spec, ['postgres_database', 'role']);
      if (fields.has('postgres_database') && spec.postgres_database !== undefined && spec.postgres_database !== database.postgres_database)
        throw badRequest('a database cannot be renamed through the API: use ALTER DATABASE … RENAME in SQL');
      const owner = fields.has('role') ? await ownerRole(c, path, database.timeline_id, spec.role) : database.owner_role_id;
      const operation = await c.db.transaction(async (tx) => {
        if (owner !== database.owner_role_id) await catalog.updateDatabaseOwner(tx, database.timeline_id, database.database_id, owner);
        return insertOperation(tx, {
          workspace: request.workspace,
          resource: names.childName(path, 'databases', path.id),
          kind: 'UPDATE_DATABASE',
          target: catalogTarget('database', database.timeline_id, path.id),
        });
      });
      await settled(c.endpoints.catalogChanged(database.timeline_id, 'database', path.id, false), INLINE_MS);
      await replyOperation(c.in(request), reply, operation);
    },
  );
  app.delete(
    `${BASE}/:id`,
    { schema: { tags: ['databases'], params: schemas.childParams, response: { 200: schemas.operation } } },
    async (request, reply) => {
      const path = request.params as ChildParams;
      const database = await requireDatabase(c.in(request), path);
      const operation = await c.db.transaction(async (tx) => {
        await catalog.setDeleting(tx, 'database', database.timeline_id, path.id, true);
        return insertOperation(tx, {
          workspace: request.workspace,
          resource: names.childName(path, 'databases', path.id),
          kind: 'DELETE_DATABASE',
          target: catalogTarget('database', database.timeline_id, path.id),
        });
      });
      await settled(c.endpoints.catalogChanged(database.timeline_id, 'database', path.id, true), INLINE_MS);
      await replyOperation(c.in(request), reply, operation);
    },
  );
};

/** The owner named by its resource path, of this very branch; the branch's owner role when none is named. */
async function ownerRole(
  c: ApiContext,
  path: BranchParams,
  timeline: Parameters<typeof catalog.roleById>[1],
  role: string | undefined,
): Promise<string> {
  if (role === undefined) {
    if ((await catalog.roleById(c.db, timeline, names.OWNER_ROLE)) === undefined)
      throw invalid(`Field 'spec.role' is required, expected non-default value (not "")!`);
    return names.OWNER_ROLE;
  }
  const owner = names.parseChild('roles', role, 'spec.role');
  if (owner.project !== path.project || owner.branch !== path.branch)
    throw invalid('the owner of a database must be a role of the same branch');
  const row = await catalog.roleById(c.db, timeline, owner.id);
  if (row === undefined || row.deleting)
    throw new ApiError('NOT_FOUND', 'NOT_FOUND', `role not found; role_id:${JSON.stringify(owner.id)}`);
  return owner.id;
}
