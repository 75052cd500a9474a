/** Who a personal access token speaks as and where. Three kinds of token: the installation's admin token (account admin, and any workspace of the
 *  account), a user's token for one workspace, a user's token for the account. A user's rights are looked up at each request, so taking
 *  them away counts at once. */
import type { Queryable } from '../metadata/database.ts';
import { DEFAULT_ACCOUNT, DEFAULT_WORKSPACE } from '../model/names.ts';
import { findToken } from './tokens.ts';

/** Selects the workspace where a token may work in several; the header official clients send. */
export const WORKSPACE_HEADER = 'x-databricks-org-id';

export interface Principal {
  readonly identity: string;
  readonly account: string;
  readonly accountAdmin: boolean;
  /** Empty: none. */
  readonly workspace: string;
}

export async function findPrincipal(
  q: Queryable,
  presented: string,
  header: string | string[] | undefined,
): Promise<Principal | undefined> {
  const admin = await findToken(q, 'ADMIN', presented);
  if (admin !== undefined) {
    const workspace = header === undefined ? DEFAULT_WORKSPACE : await workspaceOfHeader(q, header);
    return workspace === undefined ? undefined : { identity: admin.identity, account: DEFAULT_ACCOUNT, accountAdmin: true, workspace };
  }
  const token = await findToken(q, 'USER', presented);
  if (token === undefined || (token.expire_time !== null && token.expire_time.getTime() <= Date.now())) return undefined;
  const [user] = await q.query<{ account_id: string; user_name: string; account_admin: boolean; member: boolean }>(
    `SELECT u.account_id, u.user_name, u.account_admin,
            EXISTS (SELECT FROM workspace_users w WHERE w.user_id = u.id AND w.workspace_id = $2) AS member
     FROM users u WHERE u.id = $1`,
    [token.user_id, token.workspace_id],
  );
  if (user === undefined) return undefined;
  const base = { identity: user.user_name, account: user.account_id };
  if (token.workspace_id === null) return { ...base, accountAdmin: user.account_admin, workspace: '' };
  if (!user.member) return undefined;
  if (header !== undefined && (await workspaceOfHeader(q, header)) !== token.workspace_id) return undefined;
  return { ...base, accountAdmin: false, workspace: token.workspace_id };
}

async function workspaceOfHeader(q: Queryable, header: string | string[]): Promise<string | undefined> {
  if (typeof header !== 'string' || !/^[0-9]{1,15}$/.test(header)) return undefined;
  return (await q.query<{ id: string }>('SELECT id FROM workspaces WHERE workspace_id = $1', [Number(header)]))[0]?.id;
}
