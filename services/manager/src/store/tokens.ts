/** Access tokens: the admin's personal token for the API, and short-lived credentials that serve as database passwords.
 *  Only hashes are stored. Tokens are 256 random bits; the row is found by its hash and compared once more in constant time. */
import { createHash, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto';
import type { Queryable } from '../metadata/database.ts';

export interface TokenRow {
  readonly hash: Buffer;
  readonly kind: 'ADMIN' | 'USER' | 'CREDENTIAL';
  readonly identity: string;
  readonly endpoint_uid: string | null;
  readonly user_id: number | null;
  /** Of a user's token: null for the account. */
  readonly workspace_id: string | null;
  readonly expire_time: Date | null;
}

export const ADMIN_PREFIX = 'lkb_pat_';
export const USER_PREFIX = 'lkb_usr_';
export const CREDENTIAL_PREFIX = 'lkb_cred_';
/** Longer presented values are refused unhashed. */
const TOKEN_BYTES_MAX = 512;

export const newToken = (prefix: string): string => prefix + randomBytes(32).toString('base64url');
const hashToken = (token: string): Buffer => createHash('sha256').update(token).digest();

export async function findToken(q: Queryable, kind: TokenRow['kind'], presented: string): Promise<TokenRow | undefined> {
  if (presented.length === 0 || presented.length > TOKEN_BYTES_MAX) return undefined;
  const hash = hashToken(presented);
  const row = (await q.query<TokenRow>('SELECT * FROM tokens WHERE hash = $1 AND kind = $2', [hash, kind]))[0];
  return row !== undefined && timingSafeEqual(row.hash, hash) ? row : undefined;
}

/** Makes `token` the only admin token. */
export async function setAdminToken(q: Queryable, token: string, identity: string): Promise<void> {
  const hash = hashToken(token);
  await q.query(`DELETE FROM tokens WHERE kind = 'ADMIN' AND hash <> $1`, [hash]);
  await q.query(`INSERT INTO tokens (hash, kind, identity) VALUES ($1, 'ADMIN', $2) ON CONFLICT (hash) DO NOTHING`, [hash, identity]);
}

export async function insertCredential(
  q: Queryable,
  token: string,
  c: { identity: string; endpointUid: string | null; expireTime: Date },
): Promise<void> {
  await q.query(`INSERT INTO tokens (hash, kind, identity, endpoint_uid, expire_time) VALUES ($1, 'CREDENTIAL', $2, $3, $4)`, [
    hashToken(token),
    c.identity,
    c.endpointUid,
    c.expireTime,
  ]);
}

/** Returns the token's public id. */
export async function insertUserToken(
  q: Queryable,
  token: string,
  t: { identity: string; user: number; workspace: string | null; expireTime: Date | null; comment: string },
): Promise<string> {
  const id = randomUUID();
  await q.query(
    `INSERT INTO tokens (hash, kind, identity, id, user_id, workspace_id, expire_time, comment) VALUES ($1, 'USER', $2, $3, $4, $5, $6, $7)`,
    [hashToken(token), t.identity, id, t.user, t.workspace, t.expireTime, t.comment],
  );
  return id;
}

/** A day's grace, so that an expired token is told from a forged one. */
export async function pruneTokens(q: Queryable): Promise<void> {
  await q.query(`DELETE FROM tokens WHERE expire_time < now() - interval '1 day'`);
}
