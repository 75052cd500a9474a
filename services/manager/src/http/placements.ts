/** Routes of placements (packages/api/src/placement.ts): generations for pageservers; for an administrator moves, and the acceptance of an object store that
 *  was put back (docs/protocols/generations.md). */
import type { AttachRequest, PlaceRequest, ValidateRequest } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { type ProjectUid, parseProjectUid } from '@lakebase/ids';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { acceptOlderStore } from '../store/placements.ts';
import { projectById } from '../store/projects.ts';
import type { ApiContext } from './api-context.ts';
import { ApiError } from '../model/api-error.ts';

const PROJECTS_MAX = 1_000;
const BODY_BYTES_MAX = 4 << 20;
const uid = Type.String({ pattern: '^[0-9a-f]{32}$' });
const generation = Type.Integer({ minimum: 0, maximum: 0xffff_ffff });
const attachBody = Type.Object({ projects: Type.Array(Type.Object({ project: uid, seen: generation }), { maxItems: PROJECTS_MAX }) });
const bytes = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const size = Type.Object({ timeline: uid, layerBytes: bytes, logicalBytes: bytes });
const publishedVersion = Type.Object({ timeline: uid, version: Type.Integer({ minimum: 0 }) });
const validateBody = Type.Object({
  projects: Type.Array(
    Type.Object({ project: uid, generation, published: Type.Array(publishedVersion), sizes: Type.Optional(Type.Array(size)) }),
    { maxItems: PROJECTS_MAX },
  ),
});
const placeBody = Type.Object({ pageserver: Type.String({ minLength: 1, maxLength: 64 }) });

export function placementRoutes(app: FastifyInstance, c: ApiContext): void {
  const hidden = (body: unknown) => ({ schema: { hide: true, body }, bodyLimit: BODY_BYTES_MAX });
  const pageserver = (request: FastifyRequest): string => (request.params as { id: string }).id;
  app.post('/internal/v1/pageservers/:id/attach', hidden(attachBody), async (request) =>
    c.placements.attach(pageserver(request), request.body as AttachRequest),
  );
  app.post('/internal/v1/pageservers/:id/validate', hidden(validateBody), async (request) =>
    c.placements.validate(pageserver(request), request.body as ValidateRequest),
  );
  app.post('/internal/v1/projects/:project/place', hidden(placeBody), async (request) =>
    c.placements.move(parseProjectUid((request.params as { project: string }).project), (request.body as PlaceRequest).pageserver),
  );
  app.get('/internal/v1/projects/:project/published', { schema: { hide: true } }, async (request) =>
    c.placements.published(parseProjectUid((request.params as { project: string }).project)),
  );
  // The administrator's: by the project's name.
  const named = async (request: FastifyRequest): Promise<ProjectUid> => {
    if (!request.accountAdmin)
      throw new ApiError('PERMISSION_DENIED', 'PERMISSION_DENIED', 'only an administrator of the account may do this');
    const name = (request.params as { project: string }).project;
    const project = await projectById(c.db, request.workspace, name);
    if (project === undefined) throw new LakebaseError('NOT_FOUND', `there is no project ${name}`);
    return project.uid as ProjectUid;
  };
  app.post('/api/2.0/lakebase/projects/:project/place', hidden(placeBody), async (request) =>
    c.placements.move(await named(request), (request.body as PlaceRequest).pageserver),
  );
  app.post('/api/2.0/lakebase/projects/:project/accept-older-store', { schema: { hide: true } }, async (request) => {
    const project = await named(request);
    const rows = await c.db.transaction((tx) => acceptOlderStore(tx, project));
    return {
      branches: rows.map((r) => ({ branch: r.branch_id, generation: r.published_generation, version: r.published_version })),
    };
  });
}
