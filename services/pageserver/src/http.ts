/** HTTP routes of the pageserver (contract: packages/api/src/pageserver.ts). */
import { LakebaseError } from '@lakebase/base';
import { type AttachedProject, type CreatePageTimeline, type ProjectReadiness, type TokenScope, timelineScope } from '@lakebase/api';
import { type ProjectUid, type TimelineId, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { Readable } from 'node:stream';
import { type Static, type TSchema, Type } from 'typebox';
import { Value } from 'typebox/value';
import type { TimelineStore } from './store.ts';

const createSchema = Type.Object(
  {
    pgVersion: Type.Integer({ minimum: 16, maximum: 18 }),
    systemId: Type.String({ pattern: '^[0-9]{1,20}$' }),
    safekeepers: Type.Array(
      Type.Object({
        id: Type.String({ maxLength: 64 }),
        httpUrl: Type.String({ maxLength: 512 }),
        pgHost: Type.String({ maxLength: 512 }),
        pgPort: Type.Integer({ minimum: 1, maximum: 65535 }),
      }),
      { minItems: 0, maxItems: 15 },
    ),
    walLineage: Type.Optional(Type.Integer({ minimum: 0 })),
    walLineageStart: Type.Optional(Type.String({ maxLength: 17 })),
  },
  { additionalProperties: false },
);

const peerSchema = createSchema.properties.safekeepers;
const attachedSchema = Type.Object({
  project: Type.String({ pattern: '^[0-9a-f]{32}$' }),
  generation: Type.Integer({ minimum: 1 }),
  timelines: Type.Array(
    Type.Object({
      timeline: Type.String({ pattern: '^[0-9a-f]{32}$' }),
      published: Type.Object({ generation: Type.Integer({ minimum: 0 }), version: Type.Integer({ minimum: 0 }) }),
      safekeepers: peerSchema,
      active: Type.Optional(Type.Boolean()),
    }),
  ),
});

type Params = { project: string; timeline: string };
const ids = (request: FastifyRequest): [ProjectUid, TimelineId] => {
  const p = request.params as Params;
  return [parseProjectUid(p.project), parseTimelineId(p.timeline)];
};
/** Routes marked (T) in the contract: the timeline's own token will do. */
const ownToken = (request: FastifyRequest): readonly TokenScope[] => {
  const p = request.params as Params;
  return [timelineScope(p.project, p.timeline)];
};
const TIMELINE = '/v1/timelines/:project/:timeline';
const SUSPEND_STATE_BYTES_MAX = 256 << 20;
const TEMPLATE_BYTES_MAX = 2 ** 30;

export function registerRoutes(app: FastifyInstance, store: TimelineStore): void {
  // Bodies that are not JSON reach their handler as a stream or as bytes.
  app.addContentTypeParser('application/x-tar', (_request, payload, done) => done(null, payload));
  app.addContentTypeParser('application/octet-stream', { parseAs: 'buffer' }, (_request, body, done) => done(null, body));

  app.put('/v1/templates/:major', { bodyLimit: TEMPLATE_BYTES_MAX }, async (request) => {
    const body = request.body as Readable | Buffer;
    const stream = Buffer.isBuffer(body) ? (await import('node:stream')).Readable.from([body]) : body;
    return store.templates.put(majorOf(request), stream);
  });
  app.get('/v1/templates/:major', async (request) => store.templates.info(majorOf(request)));

  app.put(TIMELINE, async (request) => {
    const body = checked(createSchema, request.body) as CreatePageTimeline;
    if (BigInt(body.systemId) > 0xffff_ffff_ffff_ffffn) throw new LakebaseError('INVALID_ARGUMENT', 'systemId does not fit 64 bits');
    return store.create(...ids(request), body);
  });
  app.get(TIMELINE, { config: { scopes: ownToken } }, async (request) => store.status(...ids(request)));
  app.delete(TIMELINE, async (request, reply) => {
    await store.remove(...ids(request));
    return reply.code(204).send();
  });
  app.post(`${TIMELINE}/checkpoint`, async (request) => {
    const timeline = await store.timeline(...ids(request));
    await timeline.checkpoint();
    return timeline.status();
  });
  app.put(`${TIMELINE}/suspend-state`, { bodyLimit: SUSPEND_STATE_BYTES_MAX, config: { scopes: ownToken } }, async (request, reply) => {
    await store.starts.putSuspendState(...ids(request), bytesOf(request));
    return reply.code(204).send();
  });
  app.put(`${TIMELINE}/boot-set`, { config: { scopes: ownToken } }, async (request, reply) => {
    await store.starts.putBootSet(...ids(request), bytesOf(request));
    return reply.code(204).send();
  });
}

/** How the Manager moves projects (packages/api/src/placement.ts). */
export function registerPlacementRoutes(app: FastifyInstance, store: TimelineStore): void {
  app.put('/v1/projects/:project', async (request): Promise<ProjectReadiness> => {
    const given = checked(attachedSchema, request.body) as unknown as AttachedProject;
    if (given.project !== projectOf(request)) throw new LakebaseError('INVALID_ARGUMENT', 'the body is about another project');
    await store.moves.takeOver(given);
    return { lagBytes: store.moves.lagOf(given.project) ?? null };
  });
  app.get(
    '/v1/projects/:project',
    async (request): Promise<ProjectReadiness> => ({ lagBytes: store.moves.lagOf(projectOf(request)) ?? null }),
  );
  app.post('/v1/projects/:project/upload', async (request) => {
    await store.moves.upload(projectOf(request));
    return {};
  });
  app.delete('/v1/projects/:project', async (request, reply) => {
    await store.moves.letGo(projectOf(request));
    return reply.code(204).send();
  });
}

const projectOf = (request: FastifyRequest): ProjectUid => parseProjectUid((request.params as { project: string }).project);

function majorOf(request: FastifyRequest): number {
  const { major } = request.params as { major: string };
  if (!/^(16|17|18)$/.test(major)) throw new LakebaseError('INVALID_ARGUMENT', 'the major version is 16, 17 or 18');
  return Number(major);
}

function bytesOf(request: FastifyRequest): Buffer {
  if (!Buffer.isBuffer(request.body)) throw new LakebaseError('INVALID_ARGUMENT', 'send the body as application/octet-stream');
  return request.body;
}

function checked<T extends TSchema>(schema: T, body: unknown): Static<T> {
  const first = Value.Errors(schema, body)[0];
  if (first !== undefined) throw new LakebaseError('INVALID_ARGUMENT', `${first.instancePath || 'body'} ${first.message}`);
  return body as Static<T>;
}
