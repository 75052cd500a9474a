/** Compute host HTTP surface (token: `service`). The host runs one agent process per compute and keeps one spare warm.
 *
 *    POST   /v1/templates/:major           {pageserver?}  initdb a pristine cluster and send it to the pageserver with this URL -> TemplateInfo
 *    PUT    /v1/computes/:computeId        ComputeSpec -> ComputeStatus once it accepts connections, or an error with the reason
 *    GET    /v1/computes                   -> { computes: ComputeStatus[] }
 *    GET    /v1/computes/:computeId        -> ComputeStatus; with ?look=true its activity is read now, not up to two seconds ago
 *    PATCH  /v1/computes/:computeId        ComputeChange -> ComputeStatus      (applied to the running server)
 *    POST   /v1/computes/:computeId/stop   { mode: 'fast' | 'immediate' } -> ComputeStatus when gone (idempotent)
 *    GET    /v1/computes/:computeId/log?lines=200  -> PostgresLogTail: what Postgres said last. It may hold data: it lies in the agent's memory only
 *    GET    /v1/computes/:computeId/roles/:role  -> RoleSecret (from pg_authid) */
import type { ConfigurationJson, PeerAddress } from './safekeeper.ts';
import { HttpClient, type HttpClientOptions } from './http-client.ts';

export interface RoleSpec {
  /** Postgres role name. */
  readonly name: string;
  /** SCRAM-SHA-256$… verifier; null: no password login. */
  readonly verifier: string | null;
  readonly login: boolean;
  readonly createdb?: boolean;
  readonly createrole?: boolean;
  readonly bypassrls?: boolean;
  readonly memberOf?: readonly string[];
}
export interface DatabaseSpec {
  readonly name: string;
  readonly owner: string;
}

export interface ComputeSpec {
  readonly projectUid: string;
  readonly timelineId: string;
  readonly endpointId: string;
  readonly pgVersion: number;
  readonly systemId: string;
  /** The members of the branch's WAL, by member id. */
  readonly safekeepers: readonly PeerAddress[];
  /** By which they count; absent: their set has never been changed. */
  readonly walConfiguration?: ConfigurationJson;
  readonly pageserver: { readonly httpUrl: string; readonly pageHost: string; readonly pagePort: number };
  readonly roles: readonly RoleSpec[];
  readonly databases: readonly DatabaseSpec[];
  /** Names dropped through the API: removed at start when still there. */
  readonly droppedRoles?: readonly string[];
  readonly droppedDatabases?: readonly string[];
  /** postgresql.conf settings asked for by the user; agent-owned ones are refused by the Manager. */
  readonly settings: Readonly<Record<string, string>>;
}
/** `pageserver`: the project was moved; reads go there from now on. */
export type ComputeChange = Partial<
  Pick<ComputeSpec, 'roles' | 'databases' | 'droppedRoles' | 'droppedDatabases' | 'settings' | 'pageserver'>
>;

export type ComputeState = 'STARTING' | 'RUNNING' | 'STOPPING' | 'STOPPED' | 'FAILED';

export interface ComputeStatus {
  readonly computeId: string;
  readonly endpointId: string;
  readonly state: ComputeState;
  readonly error: string | null;
  readonly term: number | null;
  readonly startLsn: string | null;
  /** Directory of the Unix socket and the port in its name (.s.PGSQL.<port>); null until RUNNING. */
  readonly socketDir: string | null;
  readonly port: number;
  readonly pid: number | null;
  /** Milliseconds from the request to the end of each stage. */
  readonly stages: Readonly<Record<string, number>>;
  /** ISO time when something was last active; null while never. `active` says whether something is now. */
  readonly activity: { readonly active: boolean; readonly lastActiveAt: string | null; readonly reason: string | null };
  /** Absent until there is a data directory. */
  readonly disk?: ComputeDisk;
  /** Absent until RUNNING. */
  readonly backpressure?: ComputeBackpressure;
}

/** The compute's local disk (docs/protocols/shim-agent.md, Dropping). */
export interface ComputeDisk {
  /** Below the data directory, as last measured. */
  readonly scratchBytes: number;
  /** Pages as storage has them: what can be dropped. */
  readonly cleanBytes: number;
  /** Bound on those now; null: not measured yet. */
  readonly cleanBudgetBytes: number | null;
  readonly droppedBytes: number;
  readonly prefetchedBytes: number;
  /** Of the hot set; null: there was none. `full`: the bound of the disk was reached. */
  readonly prefetch: 'running' | 'complete' | 'full' | 'stopped' | 'failed' | null;
  /** Writes that found the disk full and went on after pages were dropped; and those for which there was nothing to drop. */
  readonly roomsMade: number;
  readonly roomsDenied: number;
  /** Rounds of settling; changed pages that became clean in them because storage has them; new pages that came into the map in them. */
  readonly rounds: number;
  readonly settledBytes: number;
  readonly adoptedBytes: number;
}

/** How far storage is behind the writer, and how much that slows it (docs/flows/backpressure.md). */
export interface ComputeBackpressure {
  readonly ingestLagBytes: number;
  /** Null: unknown. */
  readonly offloadLagBytes: number | null;
  /** 0…1, of the disks of a majority of the safekeepers. */
  readonly pressure: number;
  /** Null: not slowed. */
  readonly allowedBytesPerSecond: number | null;
  /** What all slowing has taken so far. */
  readonly sleptMs: number;
}
export interface RoleSecret {
  readonly name: string;
  readonly verifier: string | null;
  readonly login: boolean;
}

export interface PostgresLogTail {
  /** Oldest first. */
  readonly lines: readonly string[];
}

export class ComputeHostClient {
  readonly http: HttpClient;
  constructor(options: HttpClientOptions) {
    this.http = new HttpClient(options);
  }

  start(id: string, spec: ComputeSpec): Promise<ComputeStatus> {
    return this.http.call('PUT', `/v1/computes/${id}`, spec, { timeoutMs: 120_000 });
  }
  status(id: string, look = false): Promise<ComputeStatus> {
    return this.http.call('GET', `/v1/computes/${id}${look ? '?look=true' : ''}`);
  }
  list(): Promise<{ computes: ComputeStatus[] }> {
    return this.http.call('GET', '/v1/computes', undefined, { timeoutMs: 5_000 });
  }
  change(id: string, change: ComputeChange): Promise<ComputeStatus> {
    return this.http.call('PATCH', `/v1/computes/${id}`, change);
  }
  stop(id: string, mode: 'fast' | 'immediate'): Promise<ComputeStatus> {
    return this.http.call('POST', `/v1/computes/${id}/stop`, { mode }, { timeoutMs: 120_000 });
  }
  log(id: string, lines = 200): Promise<PostgresLogTail> {
    return this.http.call('GET', `/v1/computes/${id}/log?lines=${lines}`);
  }
  role(id: string, role: string): Promise<RoleSecret> {
    return this.http.call('GET', `/v1/computes/${id}/roles/${encodeURIComponent(role)}`);
  }
  /** `pageserver`: its HTTP address; the host's own when it is not said. */
  makeTemplate(major: number, pageserver?: string): Promise<unknown> {
    return this.http.call('POST', `/v1/templates/${major}`, pageserver === undefined ? {} : { pageserver }, { timeoutMs: 120_000 });
  }
}
