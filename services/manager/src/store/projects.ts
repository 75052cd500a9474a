/** Projects, their branches and the WAL members of each timeline: rows in, rows out. */
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import type { Queryable } from '../metadata/database.ts';

export interface EndpointDefaults {
  readonly autoscaling_limit_min_cu: number;
  readonly autoscaling_limit_max_cu: number;
  /** Null: never suspended. */
  readonly suspend_timeout_seconds: number | null;
  readonly pg_settings: Readonly<Record<string, string>>;
}
export interface ProjectRow {
  readonly uid: ProjectUid;
  readonly workspace_id: string;
  readonly project_id: string;
  readonly display_name: string;
  readonly owner: string;
  readonly pg_version: number;
  readonly system_id: string;
  readonly retention_seconds: number;
  readonly default_endpoint_settings: EndpointDefaults;
  readonly state: 'CREATING' | 'READY' | 'DELETING';
  readonly error: string | null;
  /** Customer-managed key of the project; null: the installation root key. */
  readonly managed_key_id: string | null;
  /** Bytes of the layers of its branches; what has not been told yet counts as none. */
  readonly stored_bytes: number;
  readonly create_time: Date;
  readonly update_time: Date;
}
export interface BranchRow {
  readonly timeline_id: TimelineId;
  readonly project_uid: ProjectUid;
  readonly project_id: string;
  readonly branch_id: string;
  readonly uid: string;
  readonly is_default: boolean;
  readonly is_protected: boolean;
  readonly state: 'INIT' | 'READY';
  readonly state_change_time: Date;
  readonly start_lsn: string | null;
  readonly prev_record_lsn: string | null;
  /** Null until its pageserver has told it. */
  readonly logical_bytes: number | null;
  readonly create_time: Date;
  readonly update_time: Date;
}
export interface WalMemberRow {
  readonly timeline_id: TimelineId;
  readonly project_uid: ProjectUid;
  readonly safekeeper_id: string;
  readonly wanted: boolean;
  readonly made: boolean;
  readonly member_id: string;
  readonly lost: boolean;
  readonly evict: boolean;
}

const PROJECT =
  'SELECT p.*, (SELECT coalesce(sum(layer_bytes), 0)::bigint FROM branches WHERE project_uid = p.uid) AS stored_bytes FROM projects p';
const BRANCH = 'SELECT b.*, p.project_id FROM branches b JOIN projects p ON p.uid = b.project_uid';

export async function insertProject(
  q: Queryable,
  p: Omit<ProjectRow, 'state' | 'error' | 'stored_bytes' | 'create_time' | 'update_time'>,
): Promise<void> {
  await q.query(
    `INSERT INTO projects (uid, workspace_id, project_id, display_name, owner, pg_version, system_id, retention_seconds, default_endpoint_settings, managed_key_id, state)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'CREATING')`,
    [
      p.uid,
      p.workspace_id,
      p.project_id,
      p.display_name,
      p.owner,
      p.pg_version,
      p.system_id,
      p.retention_seconds,
      JSON.stringify(p.default_endpoint_settings),
      p.managed_key_id,
    ],
  );
}

export async function insertBranch(q: Queryable, b: { timeline: TimelineId; project: ProjectUid; id: string; uid: string }): Promise<void> {
  await q.query(
    `INSERT INTO branches (timeline_id, project_uid, branch_id, uid, is_default, state) VALUES ($1, $2, $3, $4, true, 'INIT')`,
    [b.timeline, b.project, b.id, b.uid],
  );
}

export async function insertWalMembers(
  q: Queryable,
  timeline: TimelineId,
  project: ProjectUid,
  safekeepers: readonly string[],
): Promise<void> {
  await q.query(
    `INSERT INTO wal_members (timeline_id, project_uid, safekeeper_id, member_id, wanted) SELECT $1, $2, id, id, true FROM unnest($3::text[]) AS id
     ON CONFLICT DO NOTHING`,
    [timeline, project, safekeepers],
  );
  await q.query('INSERT INTO wal_configurations (timeline_id, generation, members, told) VALUES ($1, 1, $2, true) ON CONFLICT DO NOTHING', [
    timeline,
    JSON.stringify(safekeepers),
  ]);
}

export const listProjects = (q: Queryable, workspace: string): Promise<ProjectRow[]> =>
  q.query<ProjectRow>(`${PROJECT} WHERE p.workspace_id = $1 ORDER BY p.create_time, p.project_id`, [workspace]);
export const projectById = async (q: Queryable, workspace: string, id: string): Promise<ProjectRow | undefined> =>
  (await q.query<ProjectRow>(`${PROJECT} WHERE p.workspace_id = $1 AND p.project_id = $2`, [workspace, id]))[0];
export const projectByUid = async (q: Queryable, uid: string): Promise<ProjectRow | undefined> =>
  (await q.query<ProjectRow>(`${PROJECT} WHERE p.uid = $1`, [uid]))[0];
export const unfinishedProjects = (q: Queryable): Promise<{ uid: ProjectUid }[]> =>
  q.query(`SELECT uid FROM projects WHERE state <> 'READY'`);

export const listBranches = (q: Queryable, project: ProjectUid): Promise<BranchRow[]> =>
  q.query<BranchRow>(`${BRANCH} WHERE p.uid = $1 ORDER BY b.create_time, b.branch_id`, [project]);
export const branchesOf = (q: Queryable, project: ProjectUid): Promise<BranchRow[]> =>
  q.query<BranchRow>(`${BRANCH} WHERE p.uid = $1 ORDER BY b.create_time`, [project]);
export const branchByPath = async (q: Queryable, workspace: string, project: string, branch: string): Promise<BranchRow | undefined> =>
  (
    await q.query<BranchRow>(`${BRANCH} WHERE p.workspace_id = $1 AND p.project_id = $2 AND b.branch_id = $3`, [workspace, project, branch])
  )[0];

export async function setBranchStart(q: Queryable, timeline: TimelineId, startLsn: string, prevRecordLsn: string): Promise<void> {
  await q.query('UPDATE branches SET start_lsn = $2, prev_record_lsn = $3, update_time = now() WHERE timeline_id = $1', [
    timeline,
    startLsn,
    prevRecordLsn,
  ]);
}
/** `version`: the row as it was read before its pageserver was told; nothing is noted when it has changed since, so that it is told again. */
export async function setAnnounced(q: Queryable, timeline: TimelineId, addresses: string, version?: string): Promise<void> {
  await q.query('UPDATE branches SET announced = $2 WHERE timeline_id = $1 AND ($3::text IS NULL OR xmin::text = $3)', [
    timeline,
    addresses,
    version ?? null,
  ]);
}
export interface UnannouncedBranch extends BranchRow {
  readonly pg_version: number;
  readonly system_id: string;
  readonly wal_lineages: readonly { readonly number: number; readonly startLsn: string }[];
  /** Of the row: another one after any change of it. */
  readonly version: string;
}
/** Branches whose pageserver still follows the safekeepers at other addresses than these. */
export const unannounced = (q: Queryable, addresses: string): Promise<UnannouncedBranch[]> =>
  q.query(
    `SELECT b.*, b.xmin::text AS version, p.project_id, p.pg_version, p.system_id FROM branches b JOIN projects p ON p.uid = b.project_uid
     WHERE p.state = 'READY' AND b.start_lsn IS NOT NULL AND b.announced IS DISTINCT FROM $1::jsonb`,
    [addresses],
  );
export async function setProjectError(q: Queryable, uid: ProjectUid, error: string | null): Promise<void> {
  await q.query('UPDATE projects SET error = $2 WHERE uid = $1 AND error IS DISTINCT FROM $2', [uid, error]);
}
export async function setProjectReady(q: Queryable, uid: ProjectUid): Promise<void> {
  await q.query(
    `UPDATE branches SET state = 'READY', state_change_time = now(), update_time = now() WHERE project_uid = $1 AND state = 'INIT'`,
    [uid],
  );
  await q.query(
    `UPDATE endpoints e SET state = 'IDLE', update_time = now() FROM branches b WHERE b.timeline_id = e.timeline_id AND b.project_uid = $1 AND e.state = 'INIT'`,
    [uid],
  );
  await q.query(`UPDATE projects SET state = 'READY', error = NULL, update_time = now() WHERE uid = $1`, [uid]);
}
/** From here on the project only goes away: desired state of everything below it follows. */
export async function markProjectDeleting(q: Queryable, uid: ProjectUid): Promise<void> {
  await q.query(`UPDATE projects SET state = 'DELETING', error = NULL, update_time = now() WHERE uid = $1`, [uid]);
  await q.query('UPDATE endpoints e SET disabled = true FROM branches b WHERE b.timeline_id = e.timeline_id AND b.project_uid = $1', [uid]);
  await q.query('UPDATE wal_members SET wanted = false WHERE project_uid = $1', [uid]);
}
export async function deleteProjectRows(q: Queryable, uid: ProjectUid): Promise<void> {
  await q.query('DELETE FROM projects WHERE uid = $1', [uid]);
}

export const walMembers = (q: Queryable, timeline: TimelineId): Promise<WalMemberRow[]> =>
  q.query<WalMemberRow>('SELECT * FROM wal_members WHERE timeline_id = $1 ORDER BY safekeeper_id', [timeline]);
/** Members whose observed state is not the wanted one; those still waiting for the pageserver's answer are left out, and those that take
 *  another's place (reconcile/membership.ts makes them). */
export const laggingMembers = (q: Queryable): Promise<WalMemberRow[]> =>
  q.query<WalMemberRow>(
    `SELECT m.* FROM wal_members m LEFT JOIN branches b ON b.timeline_id = m.timeline_id 
     WHERE NOT m.wanted OR (NOT m.made AND NOT m.lost AND m.member_id = m.safekeeper_id AND b.start_lsn IS NOT NULL)`,
  );
export async function setMemberMade(q: Queryable, m: WalMemberRow): Promise<void> {
  await q.query('UPDATE wal_members SET made = true WHERE timeline_id = $1 AND safekeeper_id = $2', [m.timeline_id, m.safekeeper_id]);
}
/** Only when still unwanted: a member is never forgotten while it may be needed. */
export async function forgetMember(q: Queryable, m: WalMemberRow): Promise<void> {
  await q.query('DELETE FROM wal_members WHERE timeline_id = $1 AND safekeeper_id = $2 AND NOT wanted', [m.timeline_id, m.safekeeper_id]);
}
