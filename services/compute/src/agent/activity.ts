/** Watches whether anything is going on in a compute. Activity is a running query, an open transaction, a replication stream of somebody
 *  else's, or a running autovacuum; an idle connection is not. */
import type { ComputeStatus } from '@lakebase/api';
import type { Client } from 'pg';
import { ADMIN_ROLE } from './settings.ts';

export type Activity = ComputeStatus['activity'];

export const AGENT_APPLICATION = 'lakebase-agent';
/** The agent's own connections. */
const OURS = `(usename IS NOT DISTINCT FROM '${ADMIN_ROLE}' AND application_name = '${AGENT_APPLICATION}')`;

const QUERY = `
  SELECT backend_type, state, application_name FROM pg_stat_activity
  WHERE pid <> pg_backend_pid() AND NOT ${OURS}
    AND ((backend_type = 'client backend' AND state IS DISTINCT FROM 'idle')
      OR backend_type = 'autovacuum worker' OR backend_type = 'parallel worker'
      OR (backend_type = 'walsender' AND application_name <> ALL ($1)))
  ORDER BY backend_type LIMIT 1`;
const LAST_CHANGE = `SELECT max(state_change) AS at FROM pg_stat_activity WHERE backend_type = 'client backend' AND NOT ${OURS}`;

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
