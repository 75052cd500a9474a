/** Internal HTTP server: fastify with `/healthz` and `/metrics` open, everything else behind a bearer token, errors in our envelope.
 *  Invariants: a route without a declared scope function needs the `service` token; request bodies are bounded; no stack trace leaves. */
import { HTTP_STATUS, LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import { type TokenScope, verifyToken } from '@lakebase/api';
import { addFailpointRoutes } from './failpoints.ts';
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify';
import { guardMissing } from './memory.ts';
import { createMetricsRegistry } from './metrics.ts';
import type { Registry } from 'prom-client';
import { registerObjectStoreMetrics } from './object-store.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Scopes beyond `service` that may call this route, from the request. */
    scopes?: (request: FastifyRequest) => readonly TokenScope[];
  }
}

export interface HttpServerOptions {
  readonly log: Logger;
  readonly secret: string;
  readonly bodyLimitBytes?: number;
  /** Throws or returns details for /healthz. */
  readonly health?: () => Record<string, unknown>;
}

export interface HttpServer {
  readonly app: FastifyInstance;
  readonly metrics: Registry;
}

export function createHttpServer(options: HttpServerOptions): HttpServer {
  const app = fastify({
    bodyLimit: options.bodyLimitBytes ?? 1024 * 1024,
    forceCloseConnections: true,
    // A path that is no path at all never reaches a route or the handlers below.
    frameworkErrors: (error, _request, reply) =>
      void (reply as FastifyReply)
        .code(error.statusCode ?? 400)
        .send({ error_code: 'INVALID_ARGUMENT', message: `the path of the request is malformed: ${error.code}` }),
  });
  const metrics = createMetricsRegistry();
  registerObjectStoreMetrics(metrics);
  const unguarded = guardMissing();
  if (unguarded !== undefined) options.log.warn({}, unguarded);
  app.get('/healthz', async () => ({
    status: 'ok',
    ...(unguarded === undefined ? {} : { memoryUnguarded: unguarded }),
    ...(options.health?.() ?? {}),
  }));
  app.get('/metrics', async (_request, reply) => reply.type(metrics.contentType).send(await metrics.metrics()));
  app.addHook('onRequest', async (request) => {
    const path = request.routeOptions.url;
    if (path === '/healthz' || path === '/metrics') return;
    const header = request.headers.authorization ?? '';
    const presented = header.startsWith('Bearer ') ? header.slice(7) : '';
    const extra = request.routeOptions.config?.scopes?.(request) ?? [];
    if (verifyToken(options.secret, presented, ['service', ...extra]) === undefined) {
      throw new LakebaseError('UNAUTHENTICATED', 'a valid internal token is needed');
    }
  });
  app.setNotFoundHandler((request, reply) =>
    reply.code(404).send({ error_code: 'NOT_FOUND', message: `no route ${request.method} ${request.url.slice(0, 200)}` }),
  );
  app.setErrorHandler((error, request, reply) => {
    if (error instanceof LakebaseError) {
      return reply.code(HTTP_STATUS[error.code]).send({ error_code: error.code, message: error.message });
    }
    const status = (error as { statusCode?: number }).statusCode;
    if (status !== undefined && status < 500)
      return reply.code(status).send({ error_code: 'INVALID_ARGUMENT', message: errorMessage(error) });
    options.log.error({ err: errorMessage(error), stack: (error as Error).stack, url: request.url }, 'request failed');
    return reply.code(500).send({ error_code: 'INTERNAL', message: 'internal error; see the service log' });
  });
  addFailpointRoutes(app);
  return { app, metrics };
}
