/** Failpoints of a process: armed by LAKEBASE_FAILPOINTS when it starts, and, only in a process started with LAKEBASE_FAILPOINTS_ROUTE=1, by an internal
 *  route with the service token (docs/operating/failpoints.md). A worker thread arms its own by the same environment. */
import {
  LakebaseError,
  armFailpoint,
  armFailpoints,
  failpointReached,
  failpointStatus,
  onFailpointKill,
  releaseFailpoint,
} from '@lakebase/base';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { parseConfig } from './config.ts';

export const FAILPOINTS_ENV = 'LAKEBASE_FAILPOINTS';
export const FAILPOINTS_ROUTE_ENV = 'LAKEBASE_FAILPOINTS_ROUTE';

let routeOpen = false;

/** Call once in each thread that has failpoints. Throws CONFIG for a name or an action there is not: a test must not wait for what never comes. */
export function failpointsFromEnvironment(env: NodeJS.ProcessEnv): void {
  onFailpointKill(() => process.kill(process.pid, 'SIGKILL'));
  routeOpen = env[FAILPOINTS_ROUTE_ENV] === '1';
  try {
    armFailpoints(env[FAILPOINTS_ENV] ?? '');
  } catch (error) {
    throw new LakebaseError('CONFIG', `${FAILPOINTS_ENV}: ${(error as Error).message}`, { cause: error });
  }
}

const changeSchema = Type.Object(
  { action: Type.Optional(Type.String({ maxLength: 100 })), release: Type.Optional(Type.Boolean()) },
  { additionalProperties: false },
);
const WAIT_MS_MAX = 60_000;

/** PUT /v1/failpoints/NAME {action} or {release: true}; GET /v1/failpoints; GET /v1/failpoints/NAME?hits=N waits for the N-th hit. */
export function addFailpointRoutes(app: FastifyInstance): void {
  if (!routeOpen) return;
  app.get('/v1/failpoints', async () => ({ failpoints: failpointStatus() }));
  app.put('/v1/failpoints/:name', async (request) => {
    const { name } = request.params as { name: string };
    const change = checked(request.body);
    if (change.action !== undefined) armFailpoint(name, change.action);
    if (change.release === true) releaseFailpoint(name);
    return { failpoints: failpointStatus() };
  });
  app.get('/v1/failpoints/:name', async (request) => {
    const { name } = request.params as { name: string };
    const { hits = '0', ms = '10000' } = request.query as { hits?: string; ms?: string };
    if (!/^[0-9]{1,9}$/.test(hits) || !/^[0-9]{1,9}$/.test(ms)) throw new LakebaseError('INVALID_ARGUMENT', 'hits and ms are numbers');
    return failpointReached(name, Number(hits), AbortSignal.timeout(Math.min(Number(ms), WAIT_MS_MAX)));
  });
}

function checked(body: unknown): { action?: string; release?: boolean } {
  try {
    return parseConfig(changeSchema, body ?? {}, 'request body');
  } catch (error) {
    throw new LakebaseError('INVALID_ARGUMENT', (error as Error).message, { cause: error });
  }
}
