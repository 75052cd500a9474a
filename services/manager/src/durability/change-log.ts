/** The catalog as rows to carry elsewhere and bring back: changes as triggers noted them (metadata/migrations.ts, step 5), the whole state, and how both
 *  are put into a database again. Rows stay JSON text throughout, so nothing is lost on the way (numbers, microseconds, bytes).
 *  Invariants
 *  - For one row, a higher id of a change is the later change: it was drawn while the row was locked.
 *  - Putting the same changes in once more, in order, changes nothing.
 *  - Whoever puts rows in does it with the triggers silent (`lakebase.copied` off), in one transaction. */
import type { Queryable } from '../metadata/database.ts';
import { LakebaseError } from '@lakebase/base';

export interface Change {
  readonly id: number;
  readonly relation: string;
  /** JSON of the key's columns. */
  readonly key: string;
  /** JSON of the row; null: it is gone. */
  readonly row: string | null;
}
export interface Changes {
  readonly changes: readonly Change[];
}
export interface Snapshot {
  /** JSON of all rows, by relation. */
  readonly relations: Readonly<Record<string, string>>;
  /** Last values that were given out, by relation. */
  readonly identities: Readonly<Record<string, number>>;
  /** Changes that are contained and were not copied before. */
  readonly contains: readonly number[];
}

/** All relations of the catalog; those that others refer to come first. A test compares them with what the migrations make. */
export const RELATIONS = [
  'accounts',
  'customer_managed_keys',
  'workspaces',
  'users',
  'workspace_users',
  'projects',
  'branches',
  'endpoints',
  'roles',
  'databases',
  'seen_roles',
  'tokens',
  'wal_members',
  'wal_configurations',
  'safekeeper_nodes',
  'placements',
  'operations',
  'shred_reports',
  'owner_credentials',
] as const;
/** Belong to the database, not to the catalog. */
export const OWN_RELATIONS = ['schema_migrations', 'catalog_outbox', 'catalog_copy'] as const;

const CHANGE = 'id, relation, key::text AS key, content::text AS row';

/** Changes of the caller's own transaction; they leave the outbox with it. */
export const takeOwnChanges = (tx: Queryable): Promise<Change[]> =>
  tx.query<Change>(`DELETE FROM catalog_outbox WHERE transaction = pg_current_xact_id_if_assigned() RETURNING ${CHANGE}`);

/** Changes that were committed without waiting for the copy. */
export const committedChanges = (q: Queryable): Promise<Change[]> => q.query<Change>(`SELECT ${CHANGE} FROM catalog_outbox ORDER BY id`);

export async function readSnapshot(tx: Queryable): Promise<Snapshot> {
  const contains = (await tx.query<{ id: number }>('SELECT id FROM catalog_outbox ORDER BY id')).map((r) => r.id);
  const relations: Record<string, string> = {};
  const identities: Record<string, number> = {};
  for (const { name, identity } of await shapes(tx)) {
    const [row] = await tx.query<{ rows: string }>(`SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]')::text AS rows FROM ${name} t`);
    relations[name] = row?.rows ?? '[]';
    if (identity === null) continue;
    const [last] = await tx.query<{ last: number | null }>(
      'SELECT pg_sequence_last_value(pg_get_serial_sequence($1, $2)::regclass) AS last',
      [name, identity],
    );
    if (typeof last?.last === 'number') identities[name] = last.last;
  }
  return { relations, identities, contains };
}

/** Nothing else is left in the catalog afterwards. */
export async function writeSnapshot(tx: Queryable, { relations, identities }: Snapshot): Promise<void> {
  const known = await shapes(tx);
  const unknown = Object.keys(relations).find((name) => !known.some((s) => s.name === name));
  if (unknown !== undefined)
    throw new LakebaseError('CORRUPT', `the copy of the catalog has a relation ${unknown}, which its schema has not`);
  await tx.query(`TRUNCATE ${known.map((s) => s.name).join(', ')}`);
  for (const { name, identity } of known) {
    await tx.query(`INSERT INTO ${name} OVERRIDING SYSTEM VALUE SELECT * FROM jsonb_populate_recordset(NULL::${name}, $1::jsonb)`, [
      relations[name] ?? '[]',
    ]);
    if (identity !== null) await raiseIdentity(tx, name, identity, identities[name] ?? 0);
  }
}

export async function applyChanges(tx: Queryable, changes: readonly Change[]): Promise<void> {
  const known = new Map((await shapes(tx)).map((s) => [s.name, s]));
  for (const { relation, key, row } of changes) {
    const shape = known.get(relation);
    if (shape === undefined) throw new LakebaseError('CORRUPT', `the copy of the catalog changes ${relation}, which its schema has not`);
    await tx.query(row === null ? shape.remove : shape.put, [row ?? key]);
    if (row !== null && shape.identity !== null) await raiseIdentity(tx, shape.name, shape.identity, 0);
  }
}

/** Numbers that were given out are not given out again. */
async function raiseIdentity(tx: Queryable, relation: string, column: string, least: number): Promise<void> {
  await tx.query(
    `SELECT setval(s, v) FROM (SELECT pg_get_serial_sequence($1, $2)::regclass AS s) AS q,
       LATERAL (SELECT greatest($3::bigint, pg_sequence_last_value(s), (SELECT max(${column}) FROM ${relation})) AS v) AS n WHERE v > 0`,
    [relation, column, least],
  );
}

interface Shape {
  readonly name: string;
  /** Column with numbers that are given out. */
  readonly identity: string | null;
  /** Statements with the JSON of a row, or of a key, as their parameter. */
  readonly put: string;
  readonly remove: string;
}

/** Of the relations that the database has: an older schema has fewer. */
async function shapes(q: Queryable): Promise<Shape[]> {
  const rows = await q.query<{ relation: string; name: string; identity: boolean; in_key: boolean }>(
    `SELECT c.relname AS relation, a.attname AS name, a.attidentity = 'a' AS identity, a.attnum = ANY (i.indkey) AS in_key
     FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
       JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.oid = to_regclass(c.relname) AND c.relkind = 'r' AND c.relname = ANY ($1) ORDER BY a.attnum`,
    [RELATIONS],
  );
  return RELATIONS.flatMap((name) => {
    const columns = rows.filter((r) => r.relation === name);
    if (columns.length === 0) return [];
    const key = columns.filter((c) => c.in_key).map((c) => c.name);
    const set = columns.filter((c) => !c.in_key && !c.identity).map((c) => `${c.name} = EXCLUDED.${c.name}`);
    const from = `FROM jsonb_populate_record(NULL::${name}, $1::jsonb)`;
    const put = `INSERT INTO ${name} OVERRIDING SYSTEM VALUE SELECT * ${from} ON CONFLICT (${key.join(', ')}) DO ${
      set.length === 0 ? 'NOTHING' : `UPDATE SET ${set.join(', ')}`
    }`;
    const remove = `DELETE FROM ${name} WHERE (${key.join(', ')}) = (SELECT ${key.join(', ')} ${from})`;
    return [{ name, identity: columns.find((c) => c.identity)?.name ?? null, put, remove }];
  });
}
