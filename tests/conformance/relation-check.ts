/** The list of relation forks storage would start a compute with, against the catalogs of all databases: nothing missing, nothing left behind. */
import type { StartBundle } from '@lakebase/api';
import { FORK_FSM, FORK_INIT, FORK_MAIN, FORK_VM, relPath } from '@lakebase/ids';
import type pg from 'pg';

interface ExpectedRow {
  readonly spc: number;
  readonly db: number;
  readonly node: number;
  readonly persistence: string;
  readonly name: string;
}

const EXPECTED = `
  SELECT CASE WHEN c.reltablespace = 0 THEN d.dattablespace ELSE c.reltablespace END::int8::float8 AS spc,
         CASE WHEN c.relisshared THEN 0 ELSE d.oid::int8::float8 END AS db,
         pg_relation_filenode(c.oid)::int8::float8 AS node, c.relpersistence AS persistence, c.oid::regclass::text AS name
  FROM pg_class c CROSS JOIN (SELECT * FROM pg_database WHERE datname = current_database()) d
  WHERE pg_relation_filenode(c.oid) IS NOT NULL AND c.relpersistence <> 't'`;

/** `databases`: a client per database that accepts connections. */
export async function checkRelations(
  bundle: StartBundle,
  databases: readonly pg.Client[],
): Promise<{ forks: number; mismatches: string[] }> {
  const mismatches: string[] = [];
  const expected = new Map<string, ExpectedRow>();
  const known = new Set<number>([0]);
  for (const client of databases)
    for (const row of (await client.query<ExpectedRow>(EXPECTED)).rows) {
      expected.set(`${row.spc}/${row.db}/${row.node}`, row);
      known.add(row.db);
    }
  const stored = new Map<string, Set<number>>();
  for (const { tag } of bundle.relations) {
    if (!known.has(tag.db)) continue;
    const key = `${tag.spc}/${tag.db}/${tag.rel}`;
    stored.set(key, (stored.get(key) ?? new Set()).add(tag.fork));
    if (!expected.has(key)) mismatches.push(`${relPath(tag)} (tablespace ${tag.spc}) is in storage and in no catalog`);
  }
  for (const [key, row] of expected) {
    const forks = stored.get(key);
    if (row.persistence === 'u') {
      if (forks?.has(FORK_INIT) !== true) mismatches.push(`${row.name} (${key}): unlogged, and storage has no init fork`);
    } else if (forks?.has(FORK_MAIN) !== true)
      mismatches.push(`${row.name} (${key}): storage has no main fork${forks === undefined ? '' : `, only ${[...forks].join()}`}`);
    for (const fork of forks ?? [])
      if (![FORK_MAIN, FORK_FSM, FORK_VM, FORK_INIT].includes(fork as 0)) mismatches.push(`${row.name}: fork ${fork}`);
  }
  return { forks: bundle.relations.length, mismatches };
}
