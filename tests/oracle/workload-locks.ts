/** Row locks by several sessions: multixacts, locks on updated versions, and a speculative insertion that loses.
 *  Sessions are brought into a known state by waiting for what pg_locks shows, never by time alone. */
import type pg from 'pg';
import type { OracleServer } from './server.ts';
import { each, type Scene } from './workload.ts';

async function other(server: OracleServer, schema: string): Promise<pg.Client> {
  const db = await server.client();
  await each(db, [`SET search_path = ${schema}, public`, 'SET synchronous_commit = off']);
  return db;
}

export async function lockWorkload({ server, db, scale }: Scene, schema: string): Promise<void> {
  const rows = 1200 * scale;
  const b = await other(server, schema);
  await each(db, [
    'CREATE TABLE l(id int primary key, n int, v text)',
    'CREATE TABLE child(id int primary key, l int REFERENCES l)',
    `INSERT INTO l SELECT i, 0, 'l' FROM generate_series(1, ${rows}) i`,
    'INSERT INTO child SELECT i, i FROM generate_series(1, 100) i',
    'VACUUM (FREEZE) l',
    'BEGIN',
    'SELECT count(*) FROM (SELECT id FROM l FOR SHARE) q',
  ]);
  // Every row locked by a subtransaction of its own: as many different multixacts as rows.
  await each(b, [
    'BEGIN',
    `DO $$ BEGIN FOR i IN 1..${rows} LOOP BEGIN PERFORM id FROM l WHERE id = i FOR KEY SHARE; PERFORM pg_current_xact_id(); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$`,
  ]);
  await each(db, ['COMMIT']);
  await each(b, ['COMMIT']);
  await each(db, ['UPDATE l SET v = $$locked$$ WHERE id % 3 = 0', 'DELETE FROM l WHERE id > 1100', 'VACUUM l']);
  // A version that is being updated is locked by another session: the lock follows the chain.
  await each(db, ['BEGIN', 'UPDATE l SET n = n + 1 WHERE id < 30']);
  await each(b, [
    'BEGIN',
    'SELECT id FROM l WHERE id < 20 FOR KEY SHARE',
    'INSERT INTO child SELECT 1000 + i, i FROM generate_series(1, 20) i',
  ]);
  await each(db, ['COMMIT']);
  await each(b, ['COMMIT']);
  await each(db, [
    'VACUUM (FREEZE) l',
    'BEGIN',
    'UPDATE l SET n = 5 WHERE id = 1',
    'SAVEPOINT s',
    'SELECT id FROM l WHERE id < 10 FOR NO KEY UPDATE',
    'ROLLBACK TO s',
    'DELETE FROM child WHERE id = 1',
    'ABORT',
  ]);
  // Locks on all-frozen pages clear the frozen bit only; then on a version whose successor lies on a frozen page.
  await each(db, [
    'VACUUM (FREEZE) l',
    'SELECT id FROM l WHERE id % 100 = 0 FOR SHARE',
    'VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) l',
    'VACUUM l',
  ]);
  await server.close(b);
}

/** Two sessions insert one key at once through a unique index whose expression waits where we want it to. */
export async function conflictWorkload({ server, db }: Scene, schema: string): Promise<void> {
  await each(db, [
    'CREATE TABLE spec(key text, data text)',
    `CREATE FUNCTION wait_here(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
       IF pg_try_advisory_xact_lock(current_setting('oracle.session')::int, 1) THEN PERFORM pg_advisory_xact_lock(current_setting('oracle.session')::int, 2);
       ELSE PERFORM pg_advisory_xact_lock(current_setting('oracle.session')::int, 3); END IF; RETURN $1; END $$`,
    "SET oracle.session = '0'",
    'CREATE UNIQUE INDEX ON spec((wait_here(key)))',
  ]);
  const sessions = [await other(server, schema), await other(server, schema)];
  for (let s = 1; s <= 2; s++) {
    await each(sessions[s - 1] as pg.Client, [`SET oracle.session = '${s}'`]);
    for (let stage = 1; stage <= 3; stage++) await each(db, [`SELECT pg_advisory_lock(${s}, ${stage})`]);
  }
  const upserts = sessions.map((session) =>
    session.query("INSERT INTO spec VALUES ('k', 'x') ON CONFLICT (wait_here(key)) DO UPDATE SET data = spec.data || '!'"),
  );
  await waitForWaiters(db, 2);
  // Both have found no conflict; both insert speculatively and wait before the index entry.
  for (let s = 1; s <= 2; s++) await each(db, [`SELECT pg_advisory_unlock(${s}, 1)`, `SELECT pg_advisory_unlock(${s}, 3)`]);
  await waitForWaiters(db, 2, 2);
  await each(db, ['SELECT pg_advisory_unlock(2, 2)']);
  await upserts[1];
  await each(db, ['SELECT pg_advisory_unlock(1, 2)']);
  await upserts[0];
  await each(db, ['SELECT pg_advisory_unlock_all()', 'SELECT * FROM spec', 'VACUUM spec']);
  for (const session of sessions) await server.close(session);
}

async function waitForWaiters(db: pg.Client, count: number, stage = 3): Promise<void> {
  for (let tries = 0; ; tries++) {
    const { rows } = await db.query(
      `SELECT count(*)::int AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = ${stage}`,
    );
    if ((rows[0] as { n: number }).n >= count) return;
    if (tries > 2000) throw new Error(`only ${(rows[0] as { n: number }).n} sessions wait at stage ${stage}`);
    await db.query('SELECT pg_sleep(0.005)');
  }
}
