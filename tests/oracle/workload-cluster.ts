/** What concerns more than one table: databases, the relation map, rewrites of catalogs under a logical slot, backup and restore points,
 *  replication origins, logical messages, generic WAL, transaction id consumption and freezing of every database. */
import type pg from 'pg';
import type { OracleServer } from './server.ts';
import { each, type Scene } from './workload.ts';

/** Transactions per page of the largest SLRU kind: enough to move all of them on. */
const XIDS = 36_000;

export async function clusterWorkload({ db, server, long }: Scene, schema: string): Promise<void> {
  // Images in every format this build has, one after the other; compressing all of them would only take time.
  const { rows } = await db.query("SELECT enumvals FROM pg_settings WHERE name = 'wal_compression'");
  for (const method of (rows[0] as { enumvals: string[] }).enumvals.filter(
    (name) => name === 'pglz' || name === 'lz4' || name === 'zstd',
  )) {
    await each(db, [
      `SET wal_compression = ${method}`,
      `CREATE TABLE compressed_${method} AS SELECT i, repeat('abc', i % 90) AS t FROM generate_series(1, 400) i`,
      `CREATE INDEX ON compressed_${method}(t, i)`,
      `UPDATE compressed_${method} SET t = md5(t) WHERE i % 7 = 0`,
      'CHECKPOINT',
      `UPDATE compressed_${method} SET t = 'x' WHERE i % 5 = 0`,
      `VACUUM compressed_${method}`,
      'RESET wal_compression',
    ]);
  }
  await each(db, [
    `SELECT pg_create_logical_replication_slot('slot_${schema}', 'pgoutput')`,
    'CREATE TABLE rewritten(id int primary key, v text)',
    "INSERT INTO rewritten SELECT i, 'r' || i FROM generate_series(1, 500) i",
    'BEGIN',
    'CREATE TABLE ddl1(i int)',
    'ALTER TABLE ddl1 ADD COLUMN j int',
    'ALTER TABLE rewritten ADD COLUMN w int DEFAULT 5',
    'DROP TABLE ddl1',
    'COMMIT',
    'VACUUM FULL pg_class',
    'VACUUM FULL pg_attribute',
    'VACUUM FULL pg_database',
    'DELETE FROM rewritten WHERE id % 3 = 0',
    'CLUSTER rewritten USING rewritten_pkey',
    'VACUUM FULL rewritten',
    'REINDEX TABLE rewritten',
    `SELECT pg_drop_replication_slot('slot_${schema}')`,
    `SELECT pg_replication_origin_create('origin_${schema}')`,
    `SELECT pg_replication_origin_advance('origin_${schema}', '1/12345678')`,
    `SELECT pg_replication_origin_create('gone_${schema}')`,
    `SELECT pg_replication_origin_advance('gone_${schema}', '0/42')`,
    `SELECT pg_replication_origin_drop('gone_${schema}')`,
    `SELECT pg_replication_origin_session_setup('origin_${schema}')`,
    'BEGIN',
    `SELECT pg_replication_origin_xact_setup('1/22345678', now())`,
    "INSERT INTO rewritten VALUES (100001, 'from afar')",
    'COMMIT',
    'SELECT pg_replication_origin_session_reset()',
    "SELECT pg_logical_emit_message(true, 'prefix', repeat('m', 10000))",
    "SELECT pg_logical_emit_message(false, 'prefix', 'not transactional')",
    'CREATE EXTENSION IF NOT EXISTS bloom SCHEMA public',
    'CREATE TABLE bl(a int, b int)',
    'INSERT INTO bl SELECT i, i % 7 FROM generate_series(1, 800) i',
    'CREATE INDEX bl_i ON bl USING bloom(a, b)',
    'INSERT INTO bl SELECT i, i % 7 FROM generate_series(1, 600) i',
    'DELETE FROM bl WHERE a % 2 = 0',
    'VACUUM bl',
    `SELECT pg_create_restore_point('${schema}')`,
    `SELECT pg_backup_start('${schema}', true)`,
    'INSERT INTO bl SELECT i, i FROM generate_series(1, 100) i',
    'SELECT pg_backup_stop(false)',
    'CHECKPOINT',
    'SELECT pg_switch_wal()',
    'INSERT INTO bl SELECT i, i FROM generate_series(1, 10) i',
    // Object ids by the thousand.
    `SELECT count(lo_create(0)) FROM generate_series(1, ${long ? 9000 : 100})`,
    'SET allow_in_place_tablespaces = on',
    `CREATE TABLESPACE space_${schema} LOCATION ''`,
    `DROP TABLESPACE space_${schema}`,
    // Locks a standby must take, and a snapshot of running transactions.
    'BEGIN',
    'LOCK TABLE bl IN ACCESS EXCLUSIVE MODE',
    'SELECT pg_log_standby_snapshot()',
    'COMMIT',
  ]);
  await each(db, [
    `CREATE DATABASE ${schema}_log STRATEGY wal_log`,
    `CREATE DATABASE ${schema}_copy STRATEGY file_copy`,
    `CREATE DATABASE ${schema}_gone STRATEGY file_copy`,
  ]);
  for (const name of [`${schema}_log`, `${schema}_copy`]) {
    const there = await server.client(name);
    await each(there, [
      'CREATE TABLE here(i int primary key)',
      'INSERT INTO here SELECT generate_series(1, 300)',
      'VACUUM FULL pg_class',
      'DELETE FROM here WHERE i < 100',
      'VACUUM here',
    ]);
    await server.close(there);
  }
  await each(db, [
    `CREATE DATABASE ${schema}_second TEMPLATE ${schema}_copy STRATEGY file_copy`,
    `CREATE DATABASE ${schema}_third TEMPLATE ${schema}_log STRATEGY wal_log`,
    `DROP DATABASE ${schema}_gone`,
    `DROP DATABASE ${schema}_copy`,
  ]);
}

/** Moves transaction and multixact horizons in every database, so that commit logs and multixacts are truncated. */
export async function freezeEverything(server: OracleServer, long: boolean): Promise<void> {
  const db = await server.client();
  await burnXids(db, long);
  await freezeDatabases(server, db);
  await server.close(db);
}

async function burnXids(db: pg.Client, long: boolean): Promise<void> {
  await each(db, [
    'SET synchronous_commit = off',
    'CREATE PROCEDURE burn(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..n LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$',
  ]);
  await each(db, [`CALL burn(${XIDS / 6})`]);
  // Subtransactions that write to a temporary table: an id each, no WAL, and one commit that spans pages of the commit log.
  await each(db, ['CREATE TEMP TABLE burnt(i int)']);
  const subtransactions = (n: number): string =>
    `DO $$ BEGIN FOR i IN 1..${n} LOOP BEGIN INSERT INTO burnt VALUES (i); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$`;
  const wanted = long ? 1_150_000 : XIDS;
  for (let burnt = 0; burnt < wanted; burnt += 100_000)
    await each(db, [subtransactions(Math.min(100_000, wanted - burnt)), 'TRUNCATE burnt']);
}

export async function freezeDatabases(server: OracleServer, db: pg.Client): Promise<void> {
  await each(db, ['ALTER DATABASE template0 ALLOW_CONNECTIONS true']);
  const { rows } = await db.query('SELECT datname FROM pg_database');
  for (const { datname } of rows as { datname: string }[]) {
    const there = await server.client(datname);
    await each(there, ['SET vacuum_cost_delay = 0', 'VACUUM (FREEZE)']);
    await server.close(there);
  }
  await each(db, ['ALTER DATABASE template0 ALLOW_CONNECTIONS false', 'CHECKPOINT']);
}
