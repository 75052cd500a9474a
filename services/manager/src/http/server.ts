/** The Manager's listener. /healthz, /metrics and /openapi.json are open; /internal needs the service token; everything else a personal
 *  access token. Invariants: bodies are bounded; errors are envelopes, ours on /internal and Databricks's elsewhere; no stack trace leaves. */
import swagger from '@fastify/swagger';
import { verifyToken } from '@lakebase/api';
import { HTTP_STATUS, LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify';
import { type Registry, createMetricsRegistry } from '@lakebase/service-kit';
import type { Database } from '../metadata/database.ts';
import { ApiError, badRequest, publicError } from '../model/api-error.ts';
import { WORKSPACE_HEADER, findPrincipal } from '../store/principals.ts';

export interface ServerOptions {
  readonly log: Logger;
  readonly secret: string;
  readonly db: Database;
  readonly health: () => Record<string, unknown>;
  readonly metrics?: Registry;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Who the personal access token speaks as. */
    identity: string;
    /** Account of the token. */
    account: string;
    /** May manage the account: keys, workspaces, users. */
    accountAdmin: boolean;
    /** Workspace the request works in; empty where the token is for the account only. */
    workspace: string;
  }
}

const UNSTORABLE = 'text must not contain NUL characters or halves of surrogate pairs';

/** JSON can spell text that Postgres cannot keep: refused here, once for all routes. */
function storable(key: string, value: unknown): unknown {
  for (const text of [key, value])
    if (typeof text === 'string' && (text.includes('\0') || !text.isWellFormed())) throw badRequest(UNSTORABLE);
  return value;
}

const ME_PATH = '/api/2.0/preview/scim/v2/Me';
const denied = (message: string): ApiError => new ApiError('PERMISSION_DENIED', 'PERMISSION_DENIED', message);

const OPEN = new Set(['/healthz', '/metrics', '/openapi.json']);

export async function createManagerServer(o: ServerOptions): Promise<FastifyInstance> {
  const app = fastify({
    bodyLimit: 256 * 1024,
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 200 },
    ajv: { customOptions: { removeAdditional: false, coerceTypes: true } },
    // A path that is no path at all never reaches a route or the handlers below.
    frameworkErrors: (error, _request, reply) =>
      void (reply as FastifyReply)
        .code(error.statusCode ?? 400)
        .send(publicError(badRequest(`the path of the request is malformed: ${error.code}`))),
  });
  const metrics = o.metrics ?? createMetricsRegistry();
  app.decorateRequest('identity', '');
  app.decorateRequest('account', '');
  app.decorateRequest('accountAdmin', false);
  app.decorateRequest('workspace', '');
  await app.register(swagger, {
    openapi: {
      info: {
        title: 'Lakebase',
        description: 'Projects, branches, endpoints, roles and databases, in the shape of the Databricks Postgres API.',
        version: '2.0',
      },
      components: { securitySchemes: { pat: { type: 'http', scheme: 'bearer' } } },
      security: [{ pat: [] }],
    },
  });
  app.get('/healthz', { schema: { hide: true } }, async () => ({ status: 'ok', ...o.health() }));
  app.get('/metrics', { schema: { hide: true } }, async (_request, reply) => reply.type(metrics.contentType).send(await metrics.metrics()));
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger());

  app.addHook('onRequest', async (request) => {
    if (/%00/.test(request.url)) throw badRequest(UNSTORABLE);
    const path = request.routeOptions.url ?? '';
    if (OPEN.has(path)) return;
    const header = request.headers.authorization ?? '';
    const presented = header.startsWith('Bearer ') ? header.slice(7) : '';
    if (isInternal(request)) {
      if (verifyToken(o.secret, presented, ['service']) === undefined)
        throw new LakebaseError('UNAUTHENTICATED', 'a valid internal token is needed');
      return;
    }
    const principal = await findPrincipal(o.db, presented, request.headers[WORKSPACE_HEADER]);
    if (principal === undefined)
      throw new ApiError(
        'UNAUTHENTICATED',
        'UNAUTHENTICATED',
        'Credential was not sent or is not valid: send "Authorization: Bearer <token>"',
      );
    Object.assign(request, principal);
    // Two separate powers: whoever manages keys needs no data, whoever works with data manages no keys.
    if (path.startsWith('/api/2.0/accounts/')) {
      if (!principal.accountAdmin) throw denied('this needs a token of an account admin');
    } else if (principal.workspace === '' && path !== ME_PATH)
      throw denied('this token is for the account, not for a workspace: it cannot reach projects');
  });
  // A DELETE or an empty POST with a JSON content type is common among generated clients.
  app.removeContentTypeParser('application/json');
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (_request, body, done) => {
    if (body === '') return done(null, undefined);
    try {
      done(null, JSON.parse(body as string, storable));
    } catch (error) {
      done(error instanceof ApiError ? error : badRequest('the body is not valid JSON'));
    }
  });
  app.setNotFoundHandler((request, reply) => {
    const error = new LakebaseError('NOT_FOUND', `No API found for '${request.method} ${request.url.slice(0, 200)}'`);
    return reply.code(404).send(envelope(request, error));
  });
  app.setErrorHandler((error, request, reply) => {
    if (error instanceof LakebaseError) {
      if (error.code === 'UNAUTHENTICATED') reply.header('www-authenticate', 'Bearer');
      return reply.code(HTTP_STATUS[error.code]).send(envelope(request, error));
    }
    const status = (error as { statusCode?: number }).statusCode;
    if (status !== undefined && status < 500)
      return reply.code(status).send(envelope(request, new LakebaseError('INVALID_ARGUMENT', errorMessage(error))));
    o.log.error({ err: errorMessage(error), stack: (error as Error).stack, url: request.url }, 'request failed');
    return reply.code(500).send(envelope(request, new LakebaseError('INTERNAL', 'internal error; see the log of the Manager')));
  });
  return app;
}

const isInternal = (request: FastifyRequest): boolean => (request.routeOptions.url ?? request.url).startsWith('/internal/');

function envelope(request: FastifyRequest, error: LakebaseError): object {
  return isInternal(request) ? { error_code: error.code, message: error.message } : publicError(error);
}
