/** What the proxy knows from the Manager: endpoints, role secrets, token checks, and where running computes listen.
 *  Invariant: with the Manager down, everything that was looked up in the last minutes still works, so clients of running computes
 *  come and go undisturbed; nothing can be woken then, and nobody new gets in. */
import { createHmac, randomBytes } from 'node:crypto';
import { isCode } from '@lakebase/base';
import type { ManagerInternalClient, ResolvedEndpoint, RoleSecret, TokenIdentity, WokenEndpoint } from '@lakebase/api';
import { StaleCache, persistently } from './stale-cache.ts';

export interface Route {
  readonly computeId: string;
  readonly socketDir: string;
  readonly port: number;
}

export type ManagerCalls = Pick<ManagerInternalClient, 'resolve' | 'role' | 'token' | 'wake' | 'explain'>;

/** A burst of connections asks once which endpoint it means. Roles and tokens are asked for each time (calls at the same time are
 *  shared): a changed password or a revoked token must count at once. */
const ENDPOINT_FRESH_MS = 1_000;
const PATIENCE_MS = 2_000;
/** A Manager that is being restarted is back in seconds; a client rather waits than fails. */
const PERSIST_MS = 15_000;

export class Directory {
  readonly #manager: ManagerCalls;
  readonly #endpoints: StaleCache<ResolvedEndpoint>;
  readonly #roles: StaleCache<RoleSecret | null>;
  readonly #tokens: StaleCache<TokenIdentity>;
  readonly #routes = new Map<string, Route>();
  readonly #wakes = new Map<string, Promise<Route>>();
  /** Tokens are remembered by keyed hash only. */
  readonly #tokenKey = randomBytes(32);

  constructor(manager: ManagerCalls, staleMs: number) {
    this.#manager = manager;
    const options = { freshMs: 0, staleMs, patienceMs: PATIENCE_MS, persistMs: PERSIST_MS };
    this.#endpoints = new StaleCache({ ...options, freshMs: ENDPOINT_FRESH_MS });
    this.#roles = new StaleCache(options);
    this.#tokens = new StaleCache(options);
  }

  /** undefined: no such endpoint, or no single default one. */
  async resolve(endpoint: string | null): Promise<ResolvedEndpoint | undefined> {
    try {
      return await this.#endpoints.get(endpoint ?? '', () => this.#manager.resolve({ endpoint }));
    } catch (error) {
      // An id the Manager would never give out is as unknown as one it has not given out.
      if (isCode(error, 'NOT_FOUND') || isCode(error, 'INVALID_ARGUMENT') || isCode(error, 'INVALID_ID')) return undefined;
      throw error;
    }
  }

  /** Why the endpoint's compute just ended, where there is a reason worth telling. */
  async explain(endpointId: string): Promise<string | undefined> {
    return (await this.#manager.explain(endpointId)).reason ?? undefined;
  }

  /** null: no such role. */
  role(endpointId: string, role: string): Promise<RoleSecret | null> {
    return this.#roles.get(`${endpointId}/${role}`, async () => {
      try {
        return await this.#manager.role({ endpointId, role });
      } catch (error) {
        if (isCode(error, 'NOT_FOUND')) return null;
        throw error;
      }
    });
  }

  /** After a failed login: the next attempt asks again. */
  forgetRole(endpointId: string, role: string): void {
    this.#roles.delete(`${endpointId}/${role}`);
  }

  token(endpointId: string, role: string, token: string): Promise<TokenIdentity> {
    const key = createHmac('sha256', this.#tokenKey)
      .update(JSON.stringify([endpointId, role, token]))
      .digest('base64');
    return this.#tokens.get(key, () => this.#manager.token({ endpointId, role, token }));
  }

  /** Where the endpoint's compute listened last. */
  knownRoute(endpointId: string): Route | undefined {
    return this.#routes.get(endpointId);
  }

  /** The compute behind `route` does not answer: do not offer it again. */
  forgetRoute(endpointId: string, route: Route): void {
    if (this.#routes.get(endpointId) === route) this.#routes.delete(endpointId);
  }

  /** Starts the compute if need be. Clients that wait for the same endpoint share one call; one that goes away does not end it.
   *  Tried again while the Manager itself does not answer, until `deadline` (Date.now()). */
  wake(endpointId: string, deadline: number): Promise<Route> {
    const running = this.#wakes.get(endpointId);
    if (running !== undefined) return running;
    const call = this.#wake(endpointId, deadline).finally(() => this.#wakes.delete(endpointId));
    this.#wakes.set(endpointId, call);
    return call;
  }

  async #wake(endpointId: string, deadline: number): Promise<Route> {
    const woken: WokenEndpoint = await persistently(() => this.#manager.wake(endpointId), deadline - Date.now());
    const route: Route = { computeId: woken.computeId, socketDir: woken.socketDir, port: woken.port };
    this.#routes.set(endpointId, route);
    return route;
  }
}
