/** Operations, database credentials, and who the caller is. */
import { notFound, invalid } from '../model/api-error.ts';
import { parseDuration, rfc3339 } from '../model/duration.ts';
import { parseChild } from '../model/names.ts';
import { operationById } from '../store/operations.ts';
import { CREDENTIAL_PREFIX, insertCredential, newToken } from '../store/tokens.ts';
import { API, type Routes, replyOperation, requireEndpoint } from './api-context.ts';
import * as schemas from './schemas.ts';

const TTL_SECONDS = { min: 300, max: 3_600 };
const TTL_SECONDS_DEFAULT = 3_600;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

export const miscRoutes: Routes = (app, c) => {
  const operationPaths = ['projects/:project', 'projects/:project/branches/:branch', 'projects/:project/branches/:branch/:kind/:id'];
  for (const prefix of operationPaths) {
    app.get(
      `${API}/${prefix}/operations/:operation`,
      { schema: { tags: ['operations'], response: { 200: schemas.operation } } },
      async (request, reply) => {
        const { operation: id } = request.params as { operation: string };
        const row = UUID.test(id) ? await operationById(c.db, id) : undefined;
        if (row?.workspace_id !== request.workspace || !request.url.startsWith(`${API}/${row.resource}/operations/`))
          throw notFound('operation not found');
        await replyOperation(c.in(request), reply, id);
      },
    );
  }

  app.post(
    `${API}/credentials`,
    { schema: { tags: ['credentials'], body: schemas.credentialBody, response: { 200: schemas.credential } } },
    async (request) => {
      const body = (request.body ?? {}) as { endpoint?: string; expire_time?: string | null; ttl?: string | null };
      if (body.endpoint === undefined || body.endpoint === '')
        throw invalid(`Field 'endpoint' is required, expected non-default value (not "")!`);
      const endpoint = await requireEndpoint(c.in(request), parseChild('endpoints', body.endpoint, 'endpoint'));
      const now = Date.now();
      let seconds = TTL_SECONDS_DEFAULT;
      if (typeof body.ttl === 'string') seconds = parseDuration('ttl', body.ttl, TTL_SECONDS);
      else if (typeof body.expire_time === 'string') {
        seconds = (Date.parse(body.expire_time) - now) / 1000;
        if (!(seconds > 0 && seconds <= TTL_SECONDS.max))
          throw invalid(`Field expire_time must be a time within the next ${TTL_SECONDS.max}s`);
      }
      const token = newToken(CREDENTIAL_PREFIX);
      const expireTime = new Date(now + seconds * 1000);
      await insertCredential(c.db.local, token, { identity: request.identity, endpointUid: endpoint.uid, expireTime });
      return { token, expire_time: rfc3339(expireTime) };
    },
  );

  app.get('/api/2.0/preview/scim/v2/Me', { schema: { tags: ['identity'] } }, async (request) => ({
    schemas: ['urn:ietf:params:scim:schemas:core:2.0:User'],
    id: '1',
    userName: request.identity,
    displayName: request.identity,
    active: true,
    emails: [{ type: 'work', value: request.identity, primary: true }],
    groups: [{ display: 'admins', value: 'admins', type: 'direct' }],
  }));
};
