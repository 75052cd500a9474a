/** Section 7.3: suspend and resume again and again under intermittent load. 50 times with LAKEBASE_FULL=1, a smoke form otherwise. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster, ClusterInternals, eventually, processes } from '@lakebase/testkit';

const TIMES = process.env['LAKEBASE_FULL'] === '1' ? 50 : 6;

describe('suspend and resume', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;

  before(async () => {
    cluster = await Cluster.start();
    inside = new ClusterInternals(cluster);
    const client = await cluster.connect();
    await client.query('CREATE TABLE t (n serial PRIMARY KEY, filler text); CREATE SEQUENCE s; CREATE UNLOGGED TABLE u (n int)');
    await client.end();
  });
  after(() => cluster[Symbol.asyncDispose]());

  async function suspend(): Promise<void> {
    const { code, stderr } = await cluster.cli(['suspend']);
    assert.equal(code, 0, stderr);
    await eventually('no compute', async () =>
      (await inside.host.list()).computes.every((c) => c.state === 'STOPPED' || c.state === 'FAILED') ? true : undefined,
    );
  }

  it(`${TIMES} times: same data, exact sequences, counters kept, nothing leaked`, async () => {
    let expected = 0;
    let inserted = 0;
    const ours = (): number => processes((argv) => argv.some((a) => a.startsWith(cluster.home))).length;
    let atRest: number | undefined;
    for (let i = 0; i < TIMES; i++) {
      const client = await cluster.connect();
      assert.deepEqual(
        (await client.query<{ v: string }>("SELECT nextval('s') AS v")).rows,
        [{ v: String(++expected) }],
        'the sequence goes on where it was',
      );
      await client.query("INSERT INTO t (filler) SELECT repeat('x', 200) FROM generate_series(1, 100)");
      inserted += 100;
      const { rows } = await client.query<{ c: string; m: number }>('SELECT count(*) AS c, max(n) AS m FROM t');
      assert.deepEqual(rows, [{ c: String(inserted), m: inserted }]);
      await client.query('SELECT pg_stat_force_next_flush()');
      const stats = await eventually(
        'statistics are there',
        async () => {
          const r = await client.query<{ ins: string }>("SELECT n_tup_ins AS ins FROM pg_stat_user_tables WHERE relname = 't'");
          return Number(r.rows[0]?.ins) === inserted ? inserted : undefined;
        },
        10_000,
      );
      assert.equal(stats, inserted, 'autovacuum counters survive');
      await client.end();
      await suspend();
      assert.equal(cluster.computePids().length, 0, 'no Postgres is left');
      await eventually('no scratch directory is left', () =>
        readdirSync(join(cluster.scratchRoot(), 'computes')).length === 0 ? true : undefined,
      );
      atRest ??= await eventually('the spare agent is back', () => ours());
      await eventually('no process is left', () => (ours() <= (atRest ?? 0) ? true : undefined));
    }
  });

  it('a crash never makes a sequence go back', async () => {
    const client = await cluster.connect();
    const { rows } = await client.query<{ v: string }>("SELECT nextval('s') AS v");
    await client.end();
    cluster.kill('postgres');
    const next = await eventually('a new compute', () => cluster.connect());
    const again = await next.query<{ v: string }>("SELECT nextval('s') AS v");
    await next.end();
    assert.ok(Number(again.rows[0]?.v) > Number(rows[0]?.v));
  });

  it('an endpoint suspends by itself when idle, and not while a transaction is open', async () => {
    const { code, stderr } = await cluster.cli(['endpoints', 'update', 'primary', '--suspend-timeout', '3']);
    assert.equal(code, 0, stderr);
    const client = await cluster.connect();
    await client.query('BEGIN');
    await client.query('SELECT 1');
    await new Promise((resolve) => setTimeout(resolve, 9_000)); // longer than the timeout and its polling: nothing may happen
    assert.equal((await client.query<{ one: number }>('SELECT 1 AS one')).rows[0]?.one, 1);
    await client.query('COMMIT');
    await client.end();
    await eventually('the endpoint is idle', async () => ((await inside.running()) === undefined ? true : undefined), 30_000);
    const woken = await cluster.connect();
    assert.equal((await woken.query<{ one: number }>('SELECT 1 AS one')).rows[0]?.one, 1);
    await woken.end();
  });
});
