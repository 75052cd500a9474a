/** HTTP routes of the compute host: shapes are checked here, meaning in {@link Computes}. */
import type { ComputeChange, ComputeSpec } from '@lakebase/api';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import type { Computes } from './computes.ts';

const id = Type.Object({ id: Type.String({ maxLength: 63 }) });
const peer = Type.Object({ id: Type.String(), httpUrl: Type.String(), pgHost: Type.String(), pgPort: Type.Integer() });
const role = Type.Object({
  name: Type.String({ minLength: 1, maxLength: 63 }),
  verifier: Type.Union([Type.String(), Type.Null()]),
  login: Type.Boolean(),
  createdb: Type.Optional(Type.Boolean()),
  createrole: Type.Optional(Type.Boolean()),
  bypassrls: Type.Optional(Type.Boolean()),
  memberOf: Type.Optional(Type.Array(Type.String())),
});
const change = {
  roles: Type.Array(role),
  databases: Type.Array(Type.Object({ name: Type.String({ minLength: 1, maxLength: 63 }), owner: Type.String() })),
  droppedRoles: Type.Optional(Type.Array(Type.String())),
  droppedDatabases: Type.Optional(Type.Array(Type.String())),
  settings: Type.Record(Type.String(), Type.String()),
};
const pageserver = Type.Object({ httpUrl: Type.String(), pageHost: Type.String(), pagePort: Type.Integer() });
const spec = Type.Object({
  projectUid: Type.String(),
  timelineId: Type.String(),
  endpointId: Type.String({ pattern: '^[A-Za-z0-9_-]{1,128}$' }),
  pgVersion: Type.Integer(),
  systemId: Type.String({ pattern: '^[0-9]{1,20}$' }),
  safekeepers: Type.Array(peer, { minItems: 1, maxItems: 7 }),
  walConfiguration: Type.Optional(
    Type.Object({
      generation: Type.Integer({ minimum: 0 }),
      members: Type.Array(Type.String()),
      // Null first: the checker tries in this order, and would make [''] of null.
      newMembers: Type.Union([Type.Null(), Type.Array(Type.String())]),
    }),
  ),
  pageserver,
  ...change,
});

export function routes(app: FastifyInstance, computes: Computes): void {
  app.get('/v1/computes', async () => ({ computes: computes.list() }));
  const look = Type.Object({ look: Type.Boolean({ default: false }) });
  app.get('/v1/computes/:id', { schema: { params: id, querystring: look } }, async (r) => {
    const compute = (r.params as { id: string }).id;
    return (r.query as { look: boolean }).look ? computes.look(compute) : computes.status(compute);
  });
  app.put('/v1/computes/:id', { schema: { params: id, body: spec } }, async (r) =>
    computes.start((r.params as { id: string }).id, r.body as ComputeSpec),
  );
  app.patch('/v1/computes/:id', { schema: { params: id, body: Type.Partial(Type.Object({ ...change, pageserver })) } }, async (r) =>
    computes.change((r.params as { id: string }).id, r.body as ComputeChange),
  );
  app.post(
    '/v1/computes/:id/stop',
    { schema: { params: id, body: Type.Object({ mode: Type.Union([Type.Literal('fast'), Type.Literal('immediate')]) }) } },
    async (r) => computes.stop((r.params as { id: string }).id, (r.body as { mode: 'fast' | 'immediate' }).mode),
  );
  const lines = Type.Object({ lines: Type.Integer({ minimum: 1, maximum: 2_000, default: 200 }) });
  app.get('/v1/computes/:id/log', { schema: { params: id, querystring: lines } }, async (r) =>
    computes.log((r.params as { id: string }).id, (r.query as { lines: number }).lines),
  );
  app.get('/v1/computes/:id/roles/:role', async (r) => computes.role((r.params as { id: string }).id, (r.params as { role: string }).role));
}
