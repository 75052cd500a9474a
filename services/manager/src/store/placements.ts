/** Which pageserver has a project and under which generation (docs/protocols/generations.md): rows in, rows out.
 *  Invariants: a generation is given out once, also after this database was put back to an earlier state (`seen` raises it); only the owner gets one. */
import type { AttachRequest, TimelineSize, ValidateRequest } from '@lakebase/api';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import type { Queryable } from '../metadata/database.ts';
import { type NodeDisk, type NodeLoad, PROJECT_BYTES_MIN, leastLoaded } from '../model/least-loaded.ts';

export interface PlacementRow {
  readonly project_uid: ProjectUid;
  /** Whom the newest generation was given to. */
  readonly owner: string;
  /** Whom computes ask. Another than the owner while a move is under way. */
  readonly serving: string;
  readonly generation: number;
}
export interface PublishedRow {
  readonly project_uid: ProjectUid;
  readonly timeline_id: TimelineId;
  /** Of the newest index that is known to be in the object store. */
  readonly published_generation: number;
  readonly published_version: number;
  readonly active: boolean;
}

/** Any constant of ours, not that of the Manager's own lock. */
const PLACING_LOCK = 0x4c42_504c;
const NUMBERED = 'unnest($1::text[], $2::bigint[]) AS a (project_uid, number)';

export const placementOf = async (q: Queryable, project: ProjectUid): Promise<PlacementRow | undefined> =>
  (await q.query<PlacementRow>('SELECT * FROM placements WHERE project_uid = $1', [project]))[0];

/** Gives a project that has no place yet one: the least loaded of `candidates` (pageservers, the preferred first). Two that come at once wait for each
 *  other, so that each counts what the other has placed. Undefined when there is no such project. */
export async function place(q: Queryable, project: ProjectUid, candidates: readonly NodeDisk[]): Promise<PlacementRow | undefined> {
  await q.query('SELECT pg_advisory_xact_lock($1)', [PLACING_LOCK]);
  await q.query(
    'INSERT INTO placements (project_uid, owner, serving) SELECT uid, $2, $2 FROM projects WHERE uid = $1 ON CONFLICT DO NOTHING',
    [project, leastLoaded(candidates, await loads(q))],
  );
  return placementOf(q, project);
}

/** By owner: who is to have a project after a move has room for it already. */
const loads = (q: Queryable): Promise<NodeLoad[]> =>
  q.query<NodeLoad>(
    `SELECT owner AS id, count(*)::int AS projects, sum(greatest(bytes, $1))::bigint AS bytes
     FROM placements LEFT JOIN (SELECT project_uid, sum(layer_bytes) AS bytes FROM branches GROUP BY project_uid) AS b USING (project_uid)
     GROUP BY owner`,
    [PROJECT_BYTES_MIN],
  );

/** What the owner of these timelines says; whoever was the owner before is not asked. */
export async function setSizes(q: Queryable, pageserver: string, sizes: readonly TimelineSize[]): Promise<void> {
  await q.query(
    `UPDATE branches b SET layer_bytes = s.layers, logical_bytes = s.logical
     FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS s (timeline_id, layers, logical), placements p
     WHERE b.timeline_id = s.timeline_id AND p.project_uid = b.project_uid AND p.owner = $4
       AND (b.layer_bytes, b.logical_bytes) IS DISTINCT FROM (s.layers, s.logical)`,
    [sizes.map((s) => s.timeline), sizes.map((s) => s.layerBytes), sizes.map((s) => s.logicalBytes), pageserver],
  );
}

/** The next generation of each project that `pageserver` owns; the rows of all that exist, as they are then. Projects from before there were placements are on `first`. */
export async function attach(
  q: Queryable,
  pageserver: string,
  wanted: AttachRequest['projects'],
  first: string,
): Promise<{ rows: PlacementRow[]; given: Set<ProjectUid>; raised: ProjectUid[] }> {
  const projects = wanted.map((w) => w.project);
  await q.query(
    `INSERT INTO placements (project_uid, owner, serving)
     SELECT uid, $2, $2 FROM projects WHERE uid = ANY ($1) AND state <> 'CREATING' ON CONFLICT DO NOTHING`,
    [projects, first],
  );
  const raised = await raise(
    q,
    projects,
    wanted.map((w) => w.seen),
  );
  const rows = await q.query<PlacementRow>(
    `UPDATE placements SET generation = generation + CASE WHEN owner = $2 THEN 1 ELSE 0 END WHERE project_uid = ANY ($1) RETURNING *`,
    [projects, pageserver],
  );
  return { rows, given: new Set(rows.filter((r) => r.owner === pageserver).map((r) => r.project_uid)), raised };
}

/** Rows as they are after this. */
export async function validate(q: Queryable, asked: ValidateRequest['projects']): Promise<{ rows: PlacementRow[]; raised: ProjectUid[] }> {
  const projects = asked.map((a) => a.project);
  const raised = await raise(
    q,
    projects,
    asked.map((a) => a.generation),
  );
  const published = asked.flatMap((a) => a.published.map((p) => ({ ...p, project: a.project, generation: a.generation })));
  if (published.length > 0)
    await q.query(
      `UPDATE branches b SET published_generation = p.generation, published_version = p.version
       FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS p (timeline_id, project_uid, generation, version)
       WHERE b.timeline_id = p.timeline_id AND b.project_uid = p.project_uid
         AND (p.generation, p.version) > (b.published_generation, b.published_version)`,
      [
        published.map((p) => p.timeline),
        published.map((p) => p.project),
        published.map((p) => p.generation),
        published.map((p) => p.version),
      ],
    );
  return { rows: await q.query<PlacementRow>('SELECT * FROM placements WHERE project_uid = ANY ($1)', [projects]), raised };
}

/** A generation above the one we know of was given out before this database was put back: the projects of which that is so. */
const raise = async (q: Queryable, projects: readonly ProjectUid[], seen: readonly number[]): Promise<ProjectUid[]> =>
  (
    await q.query<{ project_uid: ProjectUid }>(
      `UPDATE placements p SET generation = a.number FROM ${NUMBERED}
       WHERE p.project_uid = a.project_uid AND a.number > p.generation RETURNING p.project_uid`,
      [projects, seen],
    )
  ).map((r) => r.project_uid);

export const timelinesOf = (q: Queryable, projects: readonly string[]): Promise<PublishedRow[]> =>
  q.query<PublishedRow>(
    `SELECT b.project_uid, b.timeline_id, b.published_generation, b.published_version,
            EXISTS (SELECT FROM endpoints e WHERE e.timeline_id = b.timeline_id AND e.compute_id IS NOT NULL) AS active
     FROM branches b WHERE b.project_uid = ANY ($1) AND b.start_lsn IS NOT NULL`,
    [projects],
  );

/** Whatever index the store has of the project's timelines is new enough from now on. The places that were known before. */
export const acceptOlderStore = (
  q: Queryable,
  project: ProjectUid,
): Promise<{ branch_id: string; published_generation: number; published_version: number }[]> =>
  q.query(
    `UPDATE branches b SET published_generation = 1, published_version = 0
     FROM (SELECT * FROM branches WHERE project_uid = $1 AND published_generation > 0 FOR UPDATE) AS old
     WHERE b.timeline_id = old.timeline_id RETURNING old.branch_id, old.published_generation, old.published_version`,
    [project],
  );

/** The newest generation goes to another owner. */
export const giveTo = async (q: Queryable, project: ProjectUid, owner: string): Promise<PlacementRow> =>
  (
    await q.query<PlacementRow>('UPDATE placements SET owner = $2, generation = generation + 1 WHERE project_uid = $1 RETURNING *', [
      project,
      owner,
    ])
  )[0] as PlacementRow;
/** Only while the owner is still the one that caught up. */
export const setServing = async (q: Queryable, project: ProjectUid, pageserver: string): Promise<boolean> =>
  (await q.query('UPDATE placements SET serving = $2 WHERE project_uid = $1 AND owner = $2 RETURNING 1', [project, pageserver])).length > 0;
export const unfinishedMoves = (q: Queryable): Promise<PlacementRow[]> =>
  q.query<PlacementRow>('SELECT * FROM placements WHERE owner <> serving');
/** Computes of the project that were asked for and are not known to be gone. */
export const computesOf = async (q: Queryable, project: ProjectUid): Promise<string[]> =>
  (
    await q.query<{ compute_id: string }>(
      `SELECT e.compute_id FROM endpoints e JOIN branches b ON b.timeline_id = e.timeline_id WHERE b.project_uid = $1 AND e.compute_id IS NOT NULL`,
      [project],
    )
  ).map((r) => r.compute_id);
