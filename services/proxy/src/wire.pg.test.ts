/** pg-wire's client against a stock Postgres: queries, SCRAM by the server's own verifier, physical replication. Here because the
 *  library must not know how to find an installation. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Lsn, parseLsn } from '@lakebase/ids';
import { PgConnection, PgError, PROTOCOL_3_2, buildVerifier, formatVerifier, parseVerifier } from '@lakebase/pg-wire';
import { TestPostgres } from './test-harness.ts';

const server = new TestPostgres();
before(() => server.init());
after(() => server.remove());

const one = async (c: PgConnection, sql: string): Promise<string | null | undefined> => (await c.query(sql))[0]?.rows[0]?.[0];

describe('PgConnection with Postgres', () => {
  it('runs queries, reports errors and stays usable, in 3.0 and 3.2', async () => {
    for (const protocol of [undefined, PROTOCOL_3_2]) {
      const c = await PgConnection.connect({
        host: server.dir,
        port: server.port,
        user: 'postgres',
        database: 'postgres',
        ...(protocol === undefined ? {} : { protocol }),
      });
      assert.equal(c.cancelKeyLength, protocol === undefined ? 4 : 32);
      const results = await c.query("select 1 as a, null as b; values ('x'), ('ü')");
      assert.deepEqual(
        results.map((r) => [r.tag, r.columns.map((f) => f.name), r.rows]),
        [
          ['SELECT 1', ['a', 'b'], [['1', null]]],
          ['SELECT 2', ['column1'], [['x'], ['ü']]],
        ],
      );
      await assert.rejects(c.query('select nonsense'), (e) => e instanceof PgError && e.sqlstate === '42703');
      assert.equal(await one(c, "select length(repeat('y', 1000000))"), '1000000');
      const sleeping = assert.rejects(c.query('select pg_sleep(30)'), (e) => e instanceof PgError && e.sqlstate === '57014');
      const other = await server.connect();
      while ((await one(other, "select count(*) from pg_stat_activity where query = 'select pg_sleep(30)' and state = 'active'")) !== '1');
      await c.cancel();
      await sleeping;
      await other.end();
      await c.end();
    }
  });

  it('makes verifiers that Postgres accepts, and reads Postgres’s own', async () => {
    const c = await server.connect();
    const verifier = await buildVerifier('pencil ü');
    await c.query(`create role scram login password '${formatVerifier(verifier)}'`);
    assert.equal(await one(c, "select rolpassword from pg_authid where rolname = 'scram'"), formatVerifier(verifier));
    await c.query("alter role scram password 'other'");
    const theirs = parseVerifier((await one(c, "select rolpassword from pg_authid where rolname = 'scram'")) ?? '');
    assert.deepEqual(await buildVerifier('other', theirs), theirs);
    await c.end();
  });

  it('follows WAL as it is written, and reports positions the server believes', async () => {
    const c = await server.connect();
    const start = parseLsn((await one(c, 'select pg_current_wal_flush_lsn()')) ?? '');
    const begin = (start - (start % 8192)) as Lsn;
    const standby = await PgConnection.connect({
      host: server.dir,
      port: server.port,
      user: 'postgres',
      replication: 'physical',
      parameters: { application_name: 'sk1' },
    });
    assert.match((await one(standby, 'IDENTIFY_SYSTEM')) ?? '', /^\d+$/);
    let end = begin;
    let onProgress = (): void => {};
    const stream = await standby.startReplication(
      { startLsn: begin },
      {
        onXLogData: async (m) => {
          assert.equal(m.start, end, 'no gap');
          await Promise.resolve();
          end = (m.start + m.data.length) as Lsn;
          stream.sendStatus({ write: end, flush: end, apply: 0 as Lsn });
          onProgress();
        },
        onKeepalive: (m) => {
          if (m.replyRequested) stream.sendStatus({ write: end, flush: end, apply: 0 as Lsn });
        },
      },
    );
    await c.query('create table w as select g, repeat(md5(g::text), 10) from generate_series(1, 50000) g');
    const target = parseLsn((await one(c, 'select pg_current_wal_insert_lsn()')) ?? '');
    await new Promise<void>((resolve) => {
      onProgress = () => end >= target && resolve();
      onProgress();
    });
    while (parseLsn((await one(c, "select flush_lsn from pg_stat_replication where application_name = 'sk1'")) ?? '0/0') < target);
    await stream.stop();
    assert.match((await one(standby, 'IDENTIFY_SYSTEM')) ?? '', /^\d+$/);
    // Postgres switches to streaming first and looks at the position then.
    const ahead = await standby.startReplication({ startLsn: 0x7fff_0000_0000 as Lsn }, { onXLogData: () => {} });
    await assert.rejects(ahead.ended, (e) => e instanceof PgError && /ahead of the WAL/.test(e.message));
    await assert.rejects(standby.startReplication({ startLsn: end, slot: 'none' }, { onXLogData: () => {} }), PgError);
    // A server that stops ends the stream, and the connection.
    const last = await standby.startReplication({ startLsn: end }, { onXLogData: (m) => report(m.start + m.data.length) });
    const report = (lsn: number): void => last.sendStatus({ write: lsn as Lsn, flush: lsn as Lsn, apply: lsn as Lsn });
    await c.end();
    await server.stop();
    await standby.closed;
    await server.start();
  });
});
