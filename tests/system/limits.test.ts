/** Pins what docs/operating/limits.md says stock Postgres, or this version, cannot give here: each limit is what it says, and no more. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Cluster, ClusterInternals, type ServiceName, eventually } from '@lakebase/testkit';

describe('known limits', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  before(async () => {
    cluster = await Cluster.start();
    inside = new ClusterInternals(cluster);
  });
  after(() => cluster[Symbol.asyncDispose]());

  it('tablespaces with a location, replication roles and slots are refused to users, in the compute and by Postgres', async () => {
    const client = await cluster.connect();
    for (const statement of [
      "CREATE TABLESPACE elsewhere LOCATION '/tmp'",
      "CREATE TABLESPACE in_place LOCATION ''",
      'CREATE ROLE streamer REPLICATION LOGIN',
      'CREATE ROLE root SUPERUSER',
      "SELECT pg_create_logical_replication_slot('mine', 'pgoutput')",
      "SELECT pg_create_physical_replication_slot('mine')",
      "ALTER SYSTEM SET fsync = 'on'",
      "SET synchronous_standby_names = ''",
    ])
      await assert.rejects(client.query(statement), (e: { code?: string }) => e.code === '42501' || e.code === '55P02', statement);
    assert.deepEqual((await client.query('SELECT 1 AS one')).rows, [{ one: 1 }], 'the session, and storage, go on');
    await client.end();
    await (await cluster.connect()).end();
  });

  it('a cancelled wait for the quorum leaves a commit that is visible in this compute, with a warning', async () => {
    const client = await cluster.connect();
    const other = await cluster.connect();
    await client.query('CREATE TABLE seen (n int)');
    const stopped = (['sk1', 'sk2'] as ServiceName[]).flatMap((name) => cluster.pids(name));
    const warnings: string[] = [];
    client.on('notice', (notice) => warnings.push(notice.message ?? ''));
    const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    for (const pid of stopped) process.kill(pid, 'SIGSTOP');
    try {
      const inserted = client.query('INSERT INTO seen VALUES (1)');
      await eventually('the commit waits', async () => {
        const waiting = await other.query("SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'", [rows[0]?.pid]);
        return waiting.rows.length === 1 ? true : undefined;
      });
      assert.deepEqual((await other.query('SELECT n FROM seen')).rows, [], 'not visible while it waits');
      await other.query('SELECT pg_cancel_backend($1)', [rows[0]?.pid]);
      await inserted;
      assert.match(warnings.join(' '), /canceling wait for synchronous replication/);
      assert.deepEqual((await other.query('SELECT n FROM seen')).rows, [{ n: 1 }]);
    } finally {
      for (const pid of stopped) process.kill(pid, 'SIGCONT');
    }
    // Once the quorum is back it is as durable as any other.
    await client.query('INSERT INTO seen VALUES (2)');
    await client.end();
    await other.end();
    cluster.kill('postgres');
    const again = await eventually('a new compute', () => cluster.connect());
    assert.deepEqual((await again.query('SELECT n FROM seen ORDER BY n')).rows, [{ n: 1 }, { n: 2 }]);
    await again.end();
  });

  it('settings that storage depends on are refused where they are asked for', async () => {
    for (const [setting, says] of [
      ['wal_level=minimal', /wal_level can be replica or logical/],
      ['full_page_writes=on', /full_page_writes belongs to Lakebase/],
      ['allow_in_place_tablespaces=on', /allow_in_place_tablespaces belongs to Lakebase/],
      ['max_slot_wal_keep_size=-1', /max_slot_wal_keep_size belongs to Lakebase/],
    ] as const) {
      const { code, stderr } = await cluster.cli(['endpoints', 'update', 'primary', '--set', setting]);
      assert.notEqual(code, 0);
      assert.match(stderr, says);
    }
    assert.ok((await inside.host.list()).computes.length > 0);
  });
});
