/** Watches whether anything is going on in a compute. Activity is a running query, an open transaction, a replication stream of somebody
 *  else's, or a running autovacuum; an idle connection is not. */
import type { ComputeStatus } from '@lakebase/api';
import type { Client } from 'pg';

export type Activity = ComputeStatus['activity'];

const QUERY = `
  SELECT backend_type, state, application_name FROM pg_stat_activity
  WHERE pid <> pg_backend_pid()
    AND ((backend_type = 'client backend' AND state IS DISTINCT FROM 'idle')
      OR backend_type = 'autovacuum worker' OR backend_type = 'parallel worker'
      OR (backend_type = 'walsender' AND application_name <> ALL ($1)))
  ORDER BY backend_type LIMIT 1`;
const LAST_CHANGE = `SELECT max(state_change) AS at FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`;

/** `safekeepers`: application names of our own streams, which never count. */
export async function readActivity(client: Client, safekeepers: readonly string[], previous: Activity): Promise<Activity> {
  const { rows } = await client.query<{ backend_type: string; state: string | null }>(QUERY, [safekeepers]);
  const row = rows[0];
  if (row !== undefined)
    return {
      active: true,
      lastActiveAt: new Date().toISOString(),
      reason: row.backend_type === 'client backend' ? `client: ${row.state ?? 'starting'}` : row.backend_type,
    };
  const last = await client.query<{ at: Date | null }>(LAST_CHANGE);
  const at = last.rows[0]?.at?.toISOString() ?? null;
  const lastActiveAt = at !== null && (previous.lastActiveAt === null || at > previous.lastActiveAt) ? at : previous.lastActiveAt;
  return { active: false, lastActiveAt, reason: null };
}
