/** The workload that reaches every record type of record-types.ts on a stock Postgres.
 *  It runs twice, with full-page writes on and then off, each in a schema of its own; what needs a restart, another database or many
 *  transaction ids comes between and after. Only its WAL matters; results of queries are not checked here. */
import type pg from 'pg';
import type { OracleServer } from './server.ts';
import { brinWorkload } from './workload-brin.ts';
import { btreeWorkload } from './workload-btree.ts';
import { clusterWorkload, freezeEverything } from './workload-cluster.ts';
import { ginWorkload } from './workload-gin.ts';
import { gistWorkload } from './workload-gist.ts';
import { hashWorkload } from './workload-hash.ts';
import { heapWorkload, manyBlocks } from './workload-heap.ts';
import { conflictWorkload, lockWorkload } from './workload-locks.ts';
import { overwriteContrecord } from './workload-crash.ts';
import { spgistWorkload } from './workload-spgist.ts';

export interface WorkloadOptions {
  readonly long: boolean;
  readonly log: (line: string) => void;
  /** Only these parts; the record types and kinds of file the others would reach are then reported as missing. */
  readonly only?: readonly string[];
}

export interface Scene {
  readonly server: OracleServer;
  readonly db: pg.Client;
  readonly long: boolean;
  /** Size factor: 1 in the smoke run. */
  readonly scale: number;
}

/** Runs each statement on its own, so that each is its own transaction. */
export async function each(db: pg.Client, statements: readonly string[]): Promise<void> {
  for (const statement of statements) {
    try {
      await db.query(statement);
    } catch (error) {
      throw new Error(`${statement}: ${String(error)}`, { cause: error });
    }
  }
}

async function session(server: OracleServer, schema: string): Promise<pg.Client> {
  const db = await server.client();
  await each(db, [`CREATE SCHEMA IF NOT EXISTS ${schema}`, `SET search_path = ${schema}, public`, `SET synchronous_commit = off`]);
  return db;
}

export async function runWorkload(server: OracleServer, options: WorkloadOptions): Promise<void> {
  const timed = async (what: string, work: () => Promise<void>): Promise<void> => {
    if (options.only?.every((part) => !what.includes(part)) === true) return;
    const started = performance.now();
    await work();
    options.log(`  ${what}: ${Math.round(performance.now() - started)} ms`);
  };
  for (const fullPageWrites of [true, false]) {
    const schema = fullPageWrites ? 'fpw_on' : 'fpw_off';
    if (!fullPageWrites) {
      const db = await server.client();
      await each(db, ['ALTER SYSTEM SET full_page_writes = off', 'SELECT pg_reload_conf()', 'CHECKPOINT']);
      await server.close(db);
    }
    const db = await session(server, schema);
    const scene: Scene = { server, db, long: options.long, scale: options.long ? 3 : 1 };
    await timed(`${schema} heap`, () => heapWorkload(scene));
    await timed(`${schema} locks`, () => lockWorkload(scene, schema));
    await timed(`${schema} conflict`, () => conflictWorkload(scene, schema));
    await timed(`${schema} btree`, () => btreeWorkload(scene));
    await timed(`${schema} hash`, () => hashWorkload(scene));
    await timed(`${schema} gin`, () => ginWorkload(scene));
    await timed(`${schema} gist`, () => gistWorkload(scene));
    await timed(`${schema} spgist`, () => spgistWorkload(scene));
    await timed(`${schema} brin`, () => brinWorkload(scene));
    await timed(`${schema} cluster`, () => clusterWorkload(scene, schema));
    if (!fullPageWrites) await timed('many blocks', () => manyBlocks(scene));
    await server.close(db);
  }
  await timed('freeze', () => freezeEverything(server, options.long));
  await timed('parameter change and crash', () => parametersAndCrash(server));
  if (options.long) await timed('torn record', () => overwriteContrecord(server));
  if (options.long) await timed('hint bits', () => hintImages(server));
  const db = await session(server, 'last');
  // Left open: its state must be in pg_twophase at the end.
  await each(db, [
    'CREATE TABLE prepared(i int)',
    'BEGIN',
    'INSERT INTO prepared VALUES (1)',
    "PREPARE TRANSACTION 'left open'",
    'CHECKPOINT',
  ]);
}

/** A restart with another max_connections, then a crash in the middle of work. */
async function parametersAndCrash(server: OracleServer): Promise<void> {
  await server.stop();
  server.configure({ max_connections: '42' });
  await server.start();
  const db = await session(server, 'crash');
  await each(db, [
    'CREATE TABLE c(i int primary key, t text)',
    'CREATE UNLOGGED TABLE u(i int primary key)',
    'INSERT INTO u SELECT generate_series(1, 100)',
    // Waited for, and with it all before: the tables must be there after the crash.
    'SET synchronous_commit = on',
    "INSERT INTO c VALUES (0, 'flushed')",
    'SET synchronous_commit = off',
  ]);
  await each(db, [
    "INSERT INTO c SELECT i, repeat('x', 100) FROM generate_series(1, 2000) i",
    'BEGIN',
    'UPDATE c SET t = $$y$$ WHERE i % 3 = 0',
    "SELECT pg_logical_emit_message(false, 'p', 'x')",
  ]);
  await server.stop('SIGKILL');
  await server.start();
  const again = await session(server, 'crash');
  await each(again, [
    'INSERT INTO u SELECT generate_series(1, 100)',
    'DELETE FROM c WHERE i % 5 = 0',
    'VACUUM c',
    'SELECT count(*) FROM c',
  ]);
}

/** wal_log_hints makes hint-bit changes write FPI_FOR_HINT. */
async function hintImages(server: OracleServer): Promise<void> {
  await server.stop();
  server.configure({ wal_log_hints: 'on', full_page_writes: 'on' });
  await server.start();
  const db = await session(server, 'hints');
  await each(db, [
    'ALTER SYSTEM RESET full_page_writes',
    'SELECT pg_reload_conf()',
    'CREATE TABLE h(i int primary key)',
    'INSERT INTO h SELECT generate_series(1, 3000)',
    'CHECKPOINT',
    'SELECT count(*) FROM h',
    'DELETE FROM h WHERE i % 2 = 0',
    'CHECKPOINT',
    'SELECT count(*) FROM h',
    'VACUUM h',
    'CHECKPOINT',
    'DELETE FROM h WHERE i < 1000',
    'VACUUM (FREEZE) h',
  ]);
  await server.stop();
  server.configure({ wal_log_hints: 'off' });
  await server.start();
}
