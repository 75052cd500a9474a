/** Endpoint rows, always joined with the branch and project they run on. */
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import type { Queryable } from '../metadata/database.ts';

export interface EndpointRow {
  readonly uid: string;
  readonly timeline_id: TimelineId;
  readonly endpoint_id: string;
  readonly endpoint_type: 'ENDPOINT_TYPE_READ_WRITE' | 'ENDPOINT_TYPE_READ_ONLY';
  readonly min_cu: number;
  readonly max_cu: number;
  readonly suspend_timeout_seconds: number | null;
  readonly disabled: boolean;
  readonly pg_settings: Readonly<Record<string, string>>;
  readonly state: 'INIT' | 'ACTIVE' | 'IDLE';
  readonly compute_id: string | null;
  readonly last_error: string | null;
  readonly last_active_time: Date | null;
  readonly start_time: Date | null;
  readonly suspend_time: Date | null;
  readonly create_time: Date;
  readonly update_time: Date;
  readonly branch_id: string;
  readonly project_id: string;
  readonly workspace_id: string;
  readonly project_uid: ProjectUid;
  readonly project_state: 'CREATING' | 'READY' | 'DELETING';
  readonly project_error: string | null;
  readonly pg_version: number;
  readonly system_id: string;
}

const SELECT = `SELECT e.*, b.branch_id, p.project_id, p.workspace_id, p.uid AS project_uid, p.state AS project_state, p.error AS project_error, p.pg_version, p.system_id
  FROM endpoints e JOIN branches b ON b.timeline_id = e.timeline_id JOIN projects p ON p.uid = b.project_uid`;

export const listAllEndpoints = (q: Queryable): Promise<EndpointRow[]> =>
  q.query<EndpointRow>(`${SELECT} ORDER BY p.create_time, e.create_time`);
export const listEndpoints = (q: Queryable, timeline: TimelineId): Promise<EndpointRow[]> =>
  q.query<EndpointRow>(`${SELECT} WHERE e.timeline_id = $1 ORDER BY e.create_time, e.endpoint_id`, [timeline]);
export const endpointByUid = async (q: Queryable, uid: string): Promise<EndpointRow | undefined> =>
  (await q.query<EndpointRow>(`${SELECT} WHERE e.uid = $1`, [uid]))[0];
export const endpointById = async (q: Queryable, timeline: TimelineId, id: string): Promise<EndpointRow | undefined> =>
  (await q.query<EndpointRow>(`${SELECT} WHERE e.timeline_id = $1 AND e.endpoint_id = $2`, [timeline, id]))[0];
export const endpointsOfProject = (q: Queryable, project: ProjectUid): Promise<EndpointRow[]> =>
  q.query<EndpointRow>(`${SELECT} WHERE p.uid = $1`, [project]);

export interface NewEndpoint {
  readonly uid: string;
  readonly timeline: TimelineId;
  readonly id: string;
  readonly minCu: number;
  readonly maxCu: number;
  readonly suspendTimeoutSeconds: number | null;
  readonly pgSettings: Readonly<Record<string, string>>;
}
export async function insertEndpoint(q: Queryable, e: NewEndpoint): Promise<void> {
  await q.query(
    `INSERT INTO endpoints (uid, timeline_id, endpoint_id, endpoint_type, min_cu, max_cu, suspend_timeout_seconds, pg_settings, state)
     VALUES ($1, $2, $3, 'ENDPOINT_TYPE_READ_WRITE', $4, $5, $6, $7, 'INIT')`,
    [e.uid, e.timeline, e.id, e.minCu, e.maxCu, e.suspendTimeoutSeconds, JSON.stringify(e.pgSettings)],
  );
}

export interface EndpointChange {
  readonly minCu: number;
  readonly maxCu: number;
  readonly suspendTimeoutSeconds: number | null;
  readonly disabled: boolean;
  readonly pgSettings: Readonly<Record<string, string>>;
}
export async function updateEndpoint(q: Queryable, uid: string, c: EndpointChange): Promise<void> {
  await q.query(
    'UPDATE endpoints SET min_cu = $2, max_cu = $3, suspend_timeout_seconds = $4, disabled = $5, pg_settings = $6, update_time = now() WHERE uid = $1',
    [uid, c.minCu, c.maxCu, c.suspendTimeoutSeconds, c.disabled, JSON.stringify(c.pgSettings)],
  );
}

/** Written before the start is asked for: whatever happens next, this compute is known and can be found or stopped. */
export async function setStarting(q: Queryable, uid: string, computeId: string): Promise<void> {
  await q.query(`UPDATE endpoints SET compute_id = $2, start_time = now() WHERE uid = $1`, [uid, computeId]);
}
export async function setActive(q: Queryable, uid: string, computeId: string): Promise<void> {
  await q.query(`UPDATE endpoints SET state = 'ACTIVE', last_error = NULL, last_active_time = now() WHERE uid = $1 AND compute_id = $2`, [
    uid,
    computeId,
  ]);
}
/** The compute is gone for certain. */
export async function setIdle(q: Queryable, uid: string, computeId: string, error: string | null): Promise<void> {
  await q.query(
    `UPDATE endpoints SET state = CASE state WHEN 'INIT' THEN 'INIT' ELSE 'IDLE' END, compute_id = NULL, suspend_time = now(), last_error = $3 WHERE uid = $1 AND compute_id = $2`,
    [uid, computeId, error],
  );
}
export async function setLastError(q: Queryable, uid: string, error: string): Promise<void> {
  await q.query(`UPDATE endpoints SET last_error = $2, state = CASE state WHEN 'ACTIVE' THEN 'IDLE' ELSE state END WHERE uid = $1`, [
    uid,
    error,
  ]);
}
export async function setLastActive(q: Queryable, uid: string, at: Date): Promise<void> {
  await q.query('UPDATE endpoints SET last_active_time = greatest(last_active_time, $2) WHERE uid = $1', [uid, at]);
}
