/** What the proxy asks the Manager (token: `service`). The public API is the Databricks Postgres API under /api/2.0/postgres.
 *
 *    POST /internal/v1/resolve   ResolveRequest -> ResolvedEndpoint     which endpoint a client means; 404 without an existence oracle
 *    POST /internal/v1/role      RoleLookup -> RoleSecret               verifier of a role (from the running compute, else last known)
 *    POST /internal/v1/token     TokenCheck -> TokenIdentity            a credential given as password
 *    POST /internal/v1/explain   { endpointId } -> EndpointNotice       why a compute just ended, when there is a reason to tell its clients
 *    POST /internal/v1/wake      { endpointId } -> WokenEndpoint        long poll: starts the compute and answers when it accepts connections */
import { HttpClient, type HttpClientOptions } from './http-client.ts';
import type { RoleSecret } from './compute.ts';

export interface ResolveRequest {
  /** From `options=endpoint=…`, else from the first SNI label, else null: the single-endpoint default. */
  readonly endpoint: string | null;
}
export interface ResolvedEndpoint {
  readonly endpointId: string;
  readonly state: 'INIT' | 'ACTIVE' | 'IDLE' | 'DEGRADED';
  readonly disabled: boolean;
}
export interface RoleLookup {
  readonly endpointId: string;
  readonly role: string;
}
export interface TokenCheck {
  readonly endpointId: string;
  readonly role: string;
  readonly token: string;
}
export interface TokenIdentity {
  readonly valid: boolean;
  readonly reason: string | null;
}
export interface EndpointNotice {
  readonly reason: string | null;
}
export interface WokenEndpoint {
  readonly endpointId: string;
  readonly computeId: string;
  readonly socketDir: string;
  readonly port: number;
  readonly stages: Readonly<Record<string, number>>;
}

export class ManagerInternalClient {
  readonly http: HttpClient;
  constructor(options: HttpClientOptions) {
    this.http = new HttpClient(options);
  }

  resolve(body: ResolveRequest): Promise<ResolvedEndpoint> {
    return this.http.call('POST', '/internal/v1/resolve', body, { timeoutMs: 10_000 });
  }
  role(body: RoleLookup): Promise<RoleSecret> {
    return this.http.call('POST', '/internal/v1/role', body, { timeoutMs: 10_000 });
  }
  token(body: TokenCheck): Promise<TokenIdentity> {
    return this.http.call('POST', '/internal/v1/token', body, { timeoutMs: 10_000 });
  }
  explain(endpointId: string): Promise<EndpointNotice> {
    return this.http.call('POST', '/internal/v1/explain', { endpointId }, { timeoutMs: 1_000 });
  }
  wake(endpointId: string, signal?: AbortSignal): Promise<WokenEndpoint> {
    return this.http.call('POST', '/internal/v1/wake', { endpointId }, { timeoutMs: 120_000, ...(signal === undefined ? {} : { signal }) });
  }
}
