/** Accounts' workspaces, users, key configurations and shred reports: rows in, rows out. */
import { randomBytes, randomUUID } from 'node:crypto';
import type { Queryable } from '../metadata/database.ts';
import type { KmsProvider } from '@lakebase/api';

export type PricingTier = 'STANDARD' | 'PREMIUM' | 'ENTERPRISE';
export const PRICING_TIERS: readonly PricingTier[] = ['STANDARD', 'PREMIUM', 'ENTERPRISE'];

export interface WorkspaceRow {
  /** Our key. */
  readonly id: string;
  /** The number clients know. */
  readonly workspace_id: number;
  readonly account_id: string;
  readonly display_name: string;
  readonly pricing_tier: PricingTier;
  readonly managed_services_key_id: string | null;
  readonly create_time: Date;
}
export interface KeyRow {
  readonly id: string;
  readonly account_id: string;
  readonly use_cases: readonly string[];
  readonly provider: KmsProvider;
  readonly kms_key: string;
  readonly key_info: Readonly<Record<string, unknown>>;
  readonly sealed_options: Buffer;
  readonly create_time: Date;
}
export interface UserRow {
  readonly id: number;
  readonly account_id: string;
  readonly user_name: string;
  readonly account_admin: boolean;
  readonly create_time: Date;
  readonly workspaces: readonly number[];
}

const first = <T>(rows: readonly T[]): T | undefined => rows[0];

// --- workspaces ---

export const listWorkspaces = (q: Queryable, account: string): Promise<WorkspaceRow[]> =>
  q.query<WorkspaceRow>('SELECT * FROM workspaces WHERE account_id = $1 ORDER BY workspace_id', [account]);
export const workspaceByNumber = async (q: Queryable, account: string, number: number): Promise<WorkspaceRow | undefined> =>
  first(await q.query<WorkspaceRow>('SELECT * FROM workspaces WHERE account_id = $1 AND workspace_id = $2', [account, number]));
export const workspaceByKey = async (q: Queryable, id: string): Promise<WorkspaceRow | undefined> =>
  first(await q.query<WorkspaceRow>('SELECT * FROM workspaces WHERE id = $1', [id]));

export async function insertWorkspace(
  q: Queryable,
  w: { account: string; name: string; tier: PricingTier; key: string | null },
): Promise<WorkspaceRow> {
  const id = `ws-${randomBytes(8).toString('hex')}`;
  const rows = await q.query<WorkspaceRow>(
    `INSERT INTO workspaces (id, initialized, account_id, display_name, pricing_tier, managed_services_key_id) VALUES ($1, true, $2, $3, $4, $5) RETURNING *`,
    [id, w.account, w.name, w.tier, w.key],
  );
  return rows[0] as WorkspaceRow;
}
export async function updateWorkspace(
  q: Queryable,
  id: string,
  change: { name: string; tier: PricingTier; key: string | null },
): Promise<void> {
  await q.query('UPDATE workspaces SET display_name = $2, pricing_tier = $3, managed_services_key_id = $4 WHERE id = $1', [
    id,
    change.name,
    change.tier,
    change.key,
  ]);
}
export const deleteWorkspace = async (q: Queryable, id: string): Promise<void> =>
  void (await q.query('DELETE FROM workspaces WHERE id = $1', [id]));
export const projectsInWorkspace = async (q: Queryable, id: string): Promise<number> =>
  Number((await q.query<{ n: number }>('SELECT count(*)::int AS n FROM projects WHERE workspace_id = $1', [id]))[0]?.n ?? 0);

// --- key configurations ---

export const listKeys = (q: Queryable, account: string): Promise<KeyRow[]> =>
  q.query<KeyRow>('SELECT * FROM customer_managed_keys WHERE account_id = $1 ORDER BY create_time, id', [account]);
export const keyById = async (q: Queryable, id: string): Promise<KeyRow | undefined> =>
  first(await q.query<KeyRow>('SELECT * FROM customer_managed_keys WHERE id = $1', [id]));
export async function insertKey(q: Queryable, k: Omit<KeyRow, 'id' | 'create_time'>): Promise<KeyRow> {
  const rows = await q.query<KeyRow>(
    `INSERT INTO customer_managed_keys (id, account_id, use_cases, provider, kms_key, key_info, sealed_options) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING *`,
    [randomUUID(), k.account_id, k.use_cases, k.provider, k.kms_key, JSON.stringify(k.key_info), k.sealed_options],
  );
  return rows[0] as KeyRow;
}
export const deleteKey = async (q: Queryable, id: string): Promise<void> =>
  void (await q.query('DELETE FROM customer_managed_keys WHERE id = $1', [id]));
/** What still uses a key configuration, in words. */
export async function usersOfKey(q: Queryable, id: string): Promise<string[]> {
  const rows = await q.query<{ what: string }>(
    `SELECT 'workspace ' || workspace_id AS what FROM workspaces WHERE managed_services_key_id = $1
     UNION ALL SELECT 'project ' || project_id FROM projects WHERE managed_key_id = $1`,
    [id],
  );
  return rows.map((r) => r.what);
}
export const setProjectKey = async (q: Queryable, project: string, key: string | null): Promise<void> =>
  void (await q.query('UPDATE projects SET managed_key_id = $2, update_time = now() WHERE uid = $1', [project, key]));

// --- users ---

const USER = `SELECT u.*, coalesce(array_agg(w.workspace_id::int ORDER BY w.workspace_id) FILTER (WHERE w.workspace_id IS NOT NULL), '{}') AS workspaces
  FROM users u LEFT JOIN workspace_users m ON m.user_id = u.id LEFT JOIN workspaces w ON w.id = m.workspace_id`;
export const listUsers = (q: Queryable, account: string): Promise<UserRow[]> =>
  q.query<UserRow>(`${USER} WHERE u.account_id = $1 GROUP BY u.id ORDER BY u.id`, [account]);
export const userById = async (q: Queryable, account: string, id: number): Promise<UserRow | undefined> =>
  first(await q.query<UserRow>(`${USER} WHERE u.account_id = $1 AND u.id = $2 GROUP BY u.id`, [account, id]));
export const userByName = async (q: Queryable, account: string, name: string): Promise<UserRow | undefined> =>
  first(await q.query<UserRow>(`${USER} WHERE u.account_id = $1 AND u.user_name = $2 GROUP BY u.id`, [account, name]));
export async function insertUser(q: Queryable, account: string, name: string, admin: boolean): Promise<number> {
  const rows = await q.query<{ id: number }>('INSERT INTO users (account_id, user_name, account_admin) VALUES ($1, $2, $3) RETURNING id', [
    account,
    name,
    admin,
  ]);
  return (rows[0] as { id: number }).id;
}
export const deleteUser = async (q: Queryable, id: number): Promise<void> => void (await q.query('DELETE FROM users WHERE id = $1', [id]));
export const assignUser = async (q: Queryable, workspace: string, user: number): Promise<void> =>
  void (await q.query('INSERT INTO workspace_users (workspace_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING', [workspace, user]));
export const unassignUser = async (q: Queryable, workspace: string, user: number): Promise<void> =>
  void (await q.query('DELETE FROM workspace_users WHERE workspace_id = $1 AND user_id = $2', [workspace, user]));

// --- shred reports ---

export async function insertShredReport(
  q: Queryable,
  r: { project: string; account: string; workspace: string; projectId: string; report: object },
): Promise<void> {
  await q.query(
    `INSERT INTO shred_reports (project_uid, account_id, workspace_id, project_id, report) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
    [r.project, r.account, r.workspace, r.projectId, JSON.stringify(r.report)],
  );
}
export const listShredReports = (q: Queryable, account: string): Promise<{ project_id: string; report: object }[]> =>
  q.query('SELECT project_id, report FROM shred_reports WHERE account_id = $1 ORDER BY create_time', [account]);
