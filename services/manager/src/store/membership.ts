/** Who keeps the WAL of each timeline (docs/protocols/membership.md): rows in, rows out.
 *  Invariant: a configuration is replaced by compare-and-swap on its generation, together with what it means for wal_members, so no two
 *  configurations of one generation exist and a Manager that died in between finds everything it needs here. */
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import type { Queryable } from '../metadata/database.ts';

export interface ConfigurationRow {
  readonly timeline_id: TimelineId;
  readonly project_uid: ProjectUid;
  readonly generation: number;
  readonly members: readonly string[];
  readonly new_members: readonly string[] | null;
  readonly told: boolean;
  /** Of the newest lineage. */
  readonly start_lsn: string;
  readonly prev_record_lsn: string;
  readonly system_id: string;
  readonly pg_version: number;
  /** Where lineage 0 begins. */
  readonly first_lsn: string;
  /** Those after lineage 0. */
  readonly wal_lineages: readonly LineageEntry[];
}

/** A recovery, and the lineage of WAL that it began (docs/protocols/wal-recovery.md). */
export interface LineageEntry {
  readonly number: number;
  readonly startLsn: string;
  readonly prevRecordLsn: string;
  readonly pageLsn: string;
  readonly walEndLsn: string;
  readonly lastCommitTime: string | null;
  readonly time: string;
  readonly by: string;
}

const CONFIGURATION = `
  SELECT b.timeline_id, b.project_uid, p.system_id, p.pg_version, b.start_lsn AS first_lsn, b.wal_lineages,
         coalesce(b.wal_lineages -> -1 ->> 'startLsn', b.start_lsn) AS start_lsn,
         coalesce(b.wal_lineages -> -1 ->> 'prevRecordLsn', b.prev_record_lsn) AS prev_record_lsn,
         coalesce(c.generation, 0) AS generation, coalesce(c.told, true) AS told, c.new_members,
         coalesce(c.members, (SELECT jsonb_agg(m.member_id ORDER BY m.member_id) FROM wal_members m WHERE m.timeline_id = b.timeline_id)) AS members
  FROM branches b JOIN projects p ON p.uid = b.project_uid LEFT JOIN wal_configurations c ON c.timeline_id = b.timeline_id
  WHERE b.start_lsn IS NOT NULL AND p.state = 'READY'`;

export const configurationOf = async (q: Queryable, timeline: TimelineId): Promise<ConfigurationRow | undefined> =>
  (await q.query<ConfigurationRow>(`${CONFIGURATION} AND b.timeline_id = $1`, [timeline]))[0];

export const lineagesOf = (
  row: Pick<ConfigurationRow, 'first_lsn' | 'wal_lineages'>,
): readonly { readonly number: number; readonly startLsn: string }[] => [
  { number: 0, startLsn: row.first_lsn },
  ...row.wal_lineages.map(({ number, startLsn }) => ({ number, startLsn })),
];

export async function beginLineage(q: Queryable, timeline: TimelineId, entry: LineageEntry): Promise<void> {
  await q.query('UPDATE branches SET wal_lineages = wal_lineages || $2::jsonb WHERE timeline_id = $1', [timeline, JSON.stringify([entry])]);
}

/** Branches that were recovered, the latest recovery first. */
export const recoveries = (
  q: Queryable,
): Promise<{ project_id: string; branch_id: string; timeline_id: TimelineId; entry: LineageEntry }[]> =>
  q.query(
    `SELECT p.project_id, b.branch_id, b.timeline_id, entry FROM branches b JOIN projects p ON p.uid = b.project_uid,
       jsonb_array_elements(b.wal_lineages) AS entry ORDER BY entry ->> 'time' DESC`,
  );

/** The pageserver is told anew where the members are, and which lineage to follow. */
export async function forgetAnnounced(q: Queryable, timeline: TimelineId): Promise<void> {
  await q.query('UPDATE branches SET announced = NULL WHERE timeline_id = $1', [timeline]);
}

/** Branches in use of which it is not known where they begin: told by the pageserver once, and lost with the Manager's disk. */
export const withoutStart = (q: Queryable): Promise<{ timeline_id: TimelineId; project_uid: ProjectUid }[]> =>
  q.query(
    `SELECT b.timeline_id, b.project_uid FROM branches b JOIN projects p ON p.uid = b.project_uid WHERE p.state = 'READY' AND b.start_lsn IS NULL`,
  );

/** Also while the project is being made; undefined for the members of wal_members in generation 0. */
export const storedConfiguration = async (
  q: Queryable,
  timeline: TimelineId,
): Promise<Pick<ConfigurationRow, 'generation' | 'members' | 'new_members'> | undefined> =>
  (
    await q.query<ConfigurationRow>('SELECT generation, members, new_members FROM wal_configurations WHERE timeline_id = $1', [timeline])
  )[0];

/** Timelines where something is to be done: a change under way, a member that lost its data or has to leave, a member that was not told. */
export const unsettled = (q: Queryable): Promise<ConfigurationRow[]> =>
  q.query<ConfigurationRow>(
    `${CONFIGURATION} AND (c.new_members IS NOT NULL OR NOT c.told
       OR EXISTS (SELECT FROM wal_members m WHERE m.timeline_id = b.timeline_id AND m.wanted AND (m.lost OR m.evict)))
     ORDER BY b.timeline_id LIMIT 1000`,
  );

/** False when somebody else was first. */
export async function swapConfiguration(
  q: Queryable,
  timeline: TimelineId,
  before: number,
  next: { readonly generation: number; readonly members: readonly string[]; readonly newMembers: readonly string[] | null },
): Promise<boolean> {
  const { generation, members, newMembers } = next;
  const values = [timeline, generation, JSON.stringify(members), newMembers === null ? null : JSON.stringify(newMembers)];
  const rows =
    before === 0
      ? await q.query(
          `INSERT INTO wal_configurations (timeline_id, generation, members, new_members) VALUES ($1, $2, $3, $4)
           ON CONFLICT DO NOTHING RETURNING 1`,
          values,
        )
      : await q.query(
          `UPDATE wal_configurations SET generation = $2, members = $3, new_members = $4, told = false
           WHERE timeline_id = $1 AND generation = $5 RETURNING 1`,
          [...values, before],
        );
  // The pageserver is told where the members are.
  if (rows.length > 0) await q.query('UPDATE branches SET announced = NULL WHERE timeline_id = $1', [timeline]);
  return rows.length > 0;
}

export async function setTold(q: Queryable, timeline: TimelineId, generation: number): Promise<void> {
  await q.query('UPDATE wal_configurations SET told = true WHERE timeline_id = $1 AND generation = $2', [timeline, generation]);
}

/** A new member on a node that may have held another one of the timeline before. */
export async function placeMember(q: Queryable, timeline: TimelineId, project: ProjectUid, node: string, member: string): Promise<void> {
  await q.query(
    `INSERT INTO wal_members (timeline_id, project_uid, safekeeper_id, member_id, wanted) VALUES ($1, $2, $3, $4, true)
     ON CONFLICT (timeline_id, safekeeper_id) DO UPDATE SET member_id = $4, wanted = true, made = false, lost = false, evict = false`,
    [timeline, project, node, member],
  );
}
/** The member is no more: its node's copy is removed, unless another member has its place there already. */
export async function dismissMember(q: Queryable, timeline: TimelineId, member: string): Promise<void> {
  await q.query('UPDATE wal_members SET wanted = false WHERE timeline_id = $1 AND member_id = $2', [timeline, member]);
}
export async function setJoined(q: Queryable, timeline: TimelineId, member: string): Promise<void> {
  await q.query('UPDATE wal_members SET made = true WHERE timeline_id = $1 AND member_id = $2', [timeline, member]);
}
/** After a change was given up: the member of before has its place on the node again, as lost as it is. */
export async function restoreMember(q: Queryable, timeline: TimelineId, node: string, member: string, lost: boolean): Promise<void> {
  await q.query(
    'UPDATE wal_members SET member_id = $3, wanted = true, made = true, lost = $4 WHERE timeline_id = $1 AND safekeeper_id = $2',
    [timeline, node, member, lost],
  );
}

// ---- nodes

export interface NodeRow {
  readonly id: string;
  readonly incarnation: string;
  readonly seen_time: Date;
  readonly members: number;
  readonly lost: number;
  readonly leaving: number;
}

export const nodeRows = (q: Queryable): Promise<NodeRow[]> =>
  q.query<NodeRow>(
    `SELECT n.id, n.incarnation, n.seen_time, count(m.*) FILTER (WHERE m.wanted) AS members,
            count(m.*) FILTER (WHERE m.wanted AND m.lost) AS lost, count(m.*) FILTER (WHERE m.wanted AND m.evict) AS leaving
     FROM safekeeper_nodes n LEFT JOIN wal_members m ON m.safekeeper_id = n.id GROUP BY n.id ORDER BY n.id`,
  );

/** Records which disk a node has. With another disk than before, all its members are lost; returns how many. */
export async function seeDisk(q: Queryable, node: string, incarnation: string): Promise<number> {
  const [before] = await q.query<{ incarnation: string }>('SELECT incarnation FROM safekeeper_nodes WHERE id = $1 FOR UPDATE', [node]);
  await q.query(
    'INSERT INTO safekeeper_nodes (id, incarnation) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET incarnation = $2, seen_time = now()',
    [node, incarnation],
  );
  if (before === undefined || before.incarnation === incarnation) return 0;
  const lost = await q.query(
    `UPDATE wal_members m SET lost = true FROM branches b
     WHERE b.timeline_id = m.timeline_id AND b.start_lsn IS NOT NULL AND m.safekeeper_id = $1 AND m.wanted AND NOT m.lost RETURNING 1`,
    [node],
  );
  return lost.length;
}

export async function loseMember(q: Queryable, timeline: string, node: string, member: string): Promise<boolean> {
  const rows = await q.query(
    `UPDATE wal_members SET lost = true WHERE timeline_id = $1 AND safekeeper_id = $2 AND member_id = $3 AND wanted AND NOT lost RETURNING 1`,
    [timeline, node, member],
  );
  return rows.length > 0;
}

/** Every place on this node goes to another one. Returns how many. */
export async function evictNode(q: Queryable, node: string): Promise<number> {
  return (await q.query('UPDATE wal_members SET evict = true WHERE safekeeper_id = $1 AND wanted RETURNING 1', [node])).length;
}

export const diskOf = async (q: Queryable, node: string): Promise<string | undefined> =>
  (await q.query<{ incarnation: string }>('SELECT incarnation FROM safekeeper_nodes WHERE id = $1', [node]))[0]?.incarnation;
