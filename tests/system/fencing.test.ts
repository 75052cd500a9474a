/** Section 7.2: two computes on one branch. And what a session gives up that turns the wait for the quorum off. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { must, sleep } from '@lakebase/base';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';
import type pg from 'pg';

const parentOf = (pid: number): number => Number(/^PPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);

/** 'acknowledged', or 'waiting' when no answer came in `ms`, or the error. */
function outcome(client: pg.Client, sql: string, ms: number): Promise<string> {
  return Promise.race([
    client.query(sql).then(
      () => 'acknowledged',
      (e: Error) => `error: ${e.message}`,
    ),
    sleep(ms).then(() => 'waiting'),
  ]);
}

describe('one branch, two computes', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;

  before(async () => {
    cluster = await Cluster.start();
    inside = new ClusterInternals(cluster);
    const client = await cluster.connect();
    await client.query('CREATE TABLE fence (n int, by text)');
    await client.query("INSERT INTO fence VALUES (1, 'old')");
    await client.end();
  });
  after(() => cluster[Symbol.asyncDispose]());

  it('the older one, unable even to notice, acknowledges nothing after the newer has started', async () => {
    const old = must(await inside.running(), 'running compute');
    const onOld = await inside.admin(old);
    const agent = parentOf(must(old.pid, 'postmaster'));
    process.kill(agent, 'SIGSTOP'); // so that it cannot stop its Postgres
    cluster.kill('manager', 'SIGSTOP'); // so that it cannot stop a compute it never wanted
    try {
      const rival = await inside.host.start('rival-1', await inside.rivalSpec());
      assert.equal(rival.state, 'RUNNING');
      assert.ok((rival.term ?? 0) > (old.term ?? 0));
      assert.notEqual(await outcome(onOld, "INSERT INTO fence VALUES (2, 'old')", 3_000), 'acknowledged');
      const onNew = await inside.admin(rival);
      await onNew.query("INSERT INTO fence VALUES (3, 'new')");
      const { rows } = await onNew.query<{ n: number; by: string }>('SELECT n, by FROM fence ORDER BY n');
      assert.deepEqual(rows, [
        { n: 1, by: 'old' },
        { n: 3, by: 'new' },
      ]);
      await onNew.end();
    } finally {
      process.kill(agent, 'SIGCONT');
    }
    await eventually('the fenced compute has stopped itself', async () =>
      (await inside.host.status(old.computeId)).state === 'FAILED' ? true : undefined,
    );
    assert.match((await inside.host.status(old.computeId)).error ?? '', /fenced/);
    await onOld.end().catch(() => {});
    await inside.host.stop('rival-1', 'fast');
    cluster.kill('manager', 'SIGCONT');
    // Clients are served again by a third compute, with the rival's row.
    const client = await eventually('a compute for clients', async () => cluster.connect());
    const { rows } = await client.query<{ n: number }>('SELECT n FROM fence ORDER BY n');
    assert.deepEqual(
      rows.map((r) => r.n),
      [1, 3],
    );
    await client.end();
  });

  it('pins what synchronous_commit means: `on` waits for the quorum, `local` and `off` do not', async () => {
    const patient = await cluster.connect();
    const hasty = await cluster.connect();
    const names = ['sk1', 'sk2', 'sk3'] as const;
    for (const name of names) cluster.kill(name, 'SIGSTOP');
    try {
      assert.equal(await outcome(patient, "INSERT INTO fence VALUES (10, 'on')", 2_000), 'waiting');
      for (const mode of ['off', 'local']) {
        await hasty.query(`SET synchronous_commit = ${mode}`);
        assert.equal(await outcome(hasty, `INSERT INTO fence VALUES (11, '${mode}')`, 10_000), 'acknowledged');
      }
    } finally {
      for (const name of names) cluster.kill(name, 'SIGCONT');
    }
    await eventually('the patient commit is acknowledged', async () => {
      const client = await cluster.connect();
      const { rows } = await client.query('SELECT 1 FROM fence WHERE n = 10');
      await client.end();
      return rows.length === 1 ? true : undefined;
    });
    await hasty.end();
    await patient.end();
  });

  it('two of three safekeepers away: commits wait, reads go on, nothing fails', async () => {
    const writer = await cluster.connect();
    const reader = await cluster.connect();
    cluster.kill('sk1', 'SIGSTOP');
    cluster.kill('sk2', 'SIGSTOP');
    let commit: Promise<unknown>;
    try {
      commit = writer.query("INSERT INTO fence VALUES (20, 'late')");
      await reader.query('SELECT count(*) FROM fence');
      assert.equal(await Promise.race([commit.then(() => 'acknowledged'), sleep(1_500).then(() => 'waiting')]), 'waiting');
    } finally {
      cluster.kill('sk1', 'SIGCONT');
      cluster.kill('sk2', 'SIGCONT');
    }
    await commit;
    await writer.end();
    await reader.end();
  });
});
