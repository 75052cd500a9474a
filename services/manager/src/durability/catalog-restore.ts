/** Brings the database to where the chain in the object store ends, before anything else uses it. docs/formats/catalog-object.md, "At the start".
 *  Invariants
 *  - The chain is the truth about what was acknowledged: a database that lacks links of it takes them, whatever its age; it never goes back.
 *  - A restore is one transaction: a kill leaves what was there before.
 *  - Local changes that are not in the chain yet stay, on top of what it has, unless the database is of another past than the chain. */
import { LakebaseError, type Logger } from '@lakebase/base';
import { type Database, type Queryable, appliedMigration, applyMigrations } from '../metadata/database.ts';
import { migrations } from '../metadata/migrations.ts';
import { type CatalogChain, type Head, type Link, NOWHERE, type Position } from './catalog-chain.ts';
import { type Changes, OWN_RELATIONS, RELATIONS, type Snapshot, applyChanges, committedChanges, writeSnapshot } from './change-log.ts';

export interface Local {
  /** Number of its schema; 0: nothing is there. */
  readonly schema: number;
  /** What it contains of the chain; undefined: of none yet. */
  readonly position: Position | undefined;
}
export interface Restored extends Position {
  readonly head: Head | undefined;
  readonly what: 'NOTHING' | 'CAUGHT_UP' | 'RESTORED';
}

export async function readLocal(db: Queryable): Promise<Local> {
  const schema = await appliedMigration(db);
  const [there] = await db.query<{ there: boolean }>(`SELECT to_regclass('catalog_copy') IS NOT NULL AS there`);
  if (there?.there !== true) return { schema, position: undefined };
  const [row] = await db.query<Position>('SELECT number, hash FROM catalog_copy');
  return { schema, position: row === undefined ? undefined : { number: row.number, hash: row.hash } };
}

export async function writePosition(tx: Queryable, installation: string, { number, hash }: Position): Promise<void> {
  await tx.query(
    `INSERT INTO catalog_copy (installation, number, hash) VALUES ($1, $2, $3)
     ON CONFLICT (one) DO UPDATE SET installation = EXCLUDED.installation, number = EXCLUDED.number, hash = EXCLUDED.hash`,
    [installation, number, hash],
  );
}

export interface RestoreOptions {
  readonly db: Database;
  readonly chain: CatalogChain;
  readonly installation: string;
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** The database is in use: only what it lacks may be added. */
  readonly inUse?: boolean;
}

/** Where the next link goes. */
export async function catchUp(o: RestoreOptions): Promise<Restored> {
  const { db, chain, log } = o;
  const [row] = await installationOf(db);
  if (row !== undefined && row.installation !== o.installation)
    throw new LakebaseError(
      'CONFIG',
      `the metadata database is that of installation ${row.installation}, and the installation secret here is that of ${o.installation}: put the right secret file back`,
    );
  const local = await readLocal(db);
  const head = await headOf(o);
  if (head === undefined) {
    if ((local.position?.number ?? 0) > 0)
      log.error(
        { store: chain.location, ...local.position },
        'the object store has no catalog though this one was copied there: it is another store, or was emptied; the catalog is copied anew',
      );
    return { ...(local.position ?? NOWHERE), head, what: 'NOTHING' };
  }
  const { position } = local;
  if (position !== undefined && position.number > 0) {
    const known = await added(o, head, local, position);
    if (known !== undefined) return known;
  } else if (local.schema > 0)
    log.error({}, 'the metadata database is from before its first copy, and the object store has a newer catalog: it is replaced by that');
  if (o.inUse === true)
    throw new LakebaseError(
      'CONFLICT',
      'the catalog in the object store is of another past than the metadata database: the Manager has to start anew',
    );
  return rebuild(o, head, local.schema > 0);
}

/** A kill may have come between the first link and the first head. */
async function headOf({ chain, signal }: RestoreOptions): Promise<Head | undefined> {
  const head = await chain.head({ signal });
  if (head !== undefined || (await chain.hashAt(1, { signal })) === undefined) return head;
  return { snapshots: [1], removed: 0 };
}

const installationOf = async (db: Queryable): Promise<{ installation: string }[]> =>
  (await readLocal(db)).position === undefined ? [] : db.query<{ installation: string }>('SELECT installation FROM catalog_copy');

/** Adds the links that the database lacks. Undefined when it cannot be done that way. */
async function added(o: RestoreOptions, head: Head, local: Local, position: Position): Promise<Restored | undefined> {
  const { chain, db, log, signal } = o;
  const there = await chain.hashAt(position.number, { signal });
  if (there === undefined) {
    if (position.number < (head.snapshots.at(-1) ?? 0)) {
      log.error({ ...position }, 'the metadata database is older than everything that is kept of its copy: it is restored whole');
      return undefined;
    }
    const newest = await tip(o, head);
    if (newest >= position.number)
      throw new LakebaseError('CORRUPT', `link ${position.number} of the catalog is missing in ${chain.location}`);
    log.error(
      { local: position.number, store: newest },
      'the object store has an OLDER catalog than this one: it was put back to an earlier day; this one stays and is copied anew',
    );
    return { ...position, head, what: 'NOTHING' };
  }
  if (there !== position.hash) {
    log.error({ ...position }, 'the metadata database is of another past than its copy in the object store: it is restored from that');
    return undefined;
  }
  const links: Link[] = [];
  for await (const link of chain.links(position, { signal })) links.push(link);
  const last = links.at(-1);
  if (last === undefined) return { ...position, head, what: 'NOTHING' };
  if (links.some((l) => l.header.schema !== local.schema)) return undefined;
  await db.transaction(async (tx) => {
    // Whoever changes something at this moment is waited for, the outbox last, as they use it last.
    await tx.query(`LOCK TABLE ${RELATIONS.join(', ')} IN SHARE ROW EXCLUSIVE MODE`);
    await tx.query('LOCK TABLE catalog_outbox IN SHARE ROW EXCLUSIVE MODE');
    for (const link of links) await apply(tx, link);
    const contained = links.flatMap(idsOf);
    await tx.query('DELETE FROM catalog_outbox WHERE id = ANY ($1)', [contained]);
    await applyChanges(tx, await committedChanges(tx));
    await writePosition(tx, o.installation, last);
  });
  const message =
    'the metadata database was older than its copy in the object store (a backup put back, or a kill in the middle of a change): it has caught up';
  log.warn({ from: position.number, to: last.number }, message);
  return { number: last.number, hash: last.hash, head, what: 'CAUGHT_UP' };
}

/** Everything from the newest snapshot on. */
async function rebuild(o: RestoreOptions, head: Head, replaces: boolean): Promise<Restored> {
  const { chain, db, log, signal } = o;
  const began = performance.now();
  const first = head.snapshots[0];
  if (first === undefined) throw new LakebaseError('CORRUPT', 'the head of the catalog names no snapshot');
  const known = migrations.at(-1)?.number ?? 0;
  let last: Link | undefined;
  let links = 0;
  let since = '';
  await db.transaction(async (tx) => {
    if (replaces) since = await keepAside(tx);
    let schema = 0;
    for await (const link of chain.links({ number: first - 1, hash: '' }, { signal })) {
      const { kind, schema: wanted } = link.header;
      if (wanted > known)
        throw new LakebaseError(
          'CONFIG',
          `the catalog in the object store is at migration ${wanted} and this version knows ${known}: start a newer version`,
        );
      if (last === undefined && kind !== 'snapshot') throw new LakebaseError('CORRUPT', `link ${first} of the catalog is no snapshot`);
      if (kind === 'snapshot' && wanted > schema) await applyMigrations(tx, (schema = wanted));
      if (wanted !== schema) throw new LakebaseError('CORRUPT', `link ${link.number} of the catalog is of schema ${wanted}, not ${schema}`);
      await apply(tx, link);
      last = link;
      links++;
    }
    if (last === undefined)
      throw new LakebaseError('CORRUPT', `snapshot ${first} of the catalog, which its head names, is missing in ${chain.location}`);
    await tx.query(`SELECT setval(pg_get_serial_sequence('catalog_outbox', 'id'), $1)`, [1_000_000 * (last.number + 1)]);
    await writePosition(tx, o.installation, last);
  });
  const { number, hash } = last as unknown as Link;
  const [count] = await db.query<{ projects: number }>('SELECT count(*)::int AS projects FROM projects');
  log.warn(
    {
      snapshot: first,
      number,
      links,
      projects: count?.projects,
      ms: Math.round(performance.now() - began),
      ...(since === '' ? {} : { keptAside: since }),
    },
    'THE CATALOG WAS RESTORED from the object store: the metadata database was empty, or of another past',
  );
  return { number, hash, head, what: 'RESTORED' };
}

/** What is replaced stays under another name, for people. */
async function keepAside(tx: Queryable): Promise<string> {
  const name = `replaced_${Date.now()}`;
  const found = await tx.query<{ name: string }>(
    'SELECT relname AS name FROM pg_class WHERE oid = to_regclass(relname) AND relkind = $1 AND relname = ANY ($2)',
    ['r', [...RELATIONS, ...OWN_RELATIONS]],
  );
  await tx.query(`CREATE SCHEMA ${name}`);
  for (const relation of found) await tx.query(`ALTER TABLE ${relation.name} SET SCHEMA ${name}`);
  await tx.query(`DROP FUNCTION IF EXISTS catalog_changed() CASCADE`);
  return name;
}

async function apply(tx: Queryable, { header, content }: Link): Promise<void> {
  if (header.kind === 'snapshot') await writeSnapshot(tx, content as Snapshot);
  else await applyChanges(tx, (content as Changes).changes);
}

const idsOf = ({ header, content }: Link): readonly number[] =>
  header.kind === 'snapshot' ? (content as Snapshot).contains : (content as Changes).changes.map((c) => c.id);

/** Number of the last link there is. */
async function tip({ chain, signal }: RestoreOptions, head: Head): Promise<number> {
  let newest = 0;
  for await (const link of chain.links({ number: (head.snapshots[0] ?? 1) - 1, hash: '' }, { signal })) newest = link.number;
  return newest;
}
