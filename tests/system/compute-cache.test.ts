/** Issue 5, section 4: a compute's disk has a bound, which data larger than it does not notice; and a resumed compute fetches what the last one used
 *  before it is asked for. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { ComputeDisk } from '@lakebase/api';
import { must } from '@lakebase/base';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';

const MB = 1 << 20;
const CACHE = 64 * MB;
const SUM = "SELECT count(*) || '/' || sum(hashtext(t::text)) AS sum FROM ";

describe("a compute's cache", () => {
  let cluster: Cluster;
  let inside: ClusterInternals;

  before(async () => {
    cluster = await Cluster.start({ env: { LAKEBASE_CACHE_BYTES: String(CACHE) } });
    inside = new ClusterInternals(cluster);
  });
  after(() => cluster[Symbol.asyncDispose]());

  async function value(sql: string): Promise<string> {
    const client = await cluster.connect();
    try {
      return String((await client.query<{ sum: string }>(sql)).rows[0]?.sum);
    } finally {
      await client.end();
    }
  }
  async function resume(): Promise<void> {
    const { code, stderr } = await cluster.cli(['suspend']);
    assert.equal(code, 0, stderr);
    await eventually('no compute is left', async () => ((await inside.running()) === undefined ? true : undefined));
    await value('SELECT 1 AS sum');
  }
  /** As told by the agent now. */
  async function look(): Promise<{ disk: ComputeDisk; fetched: number }> {
    const status = await inside.host.status(must(await inside.running(), 'a running compute').computeId, true);
    return { disk: must(status.disk, 'disk'), fetched: status.stages['blocksFetched'] ?? 0 };
  }
  const settled = (): Promise<{ disk: ComputeDisk; fetched: number }> =>
    eventually('the hot set is fetched', async () => {
      const now = await look();
      return now.disk.prefetch === null || now.disk.prefetch === 'running' ? undefined : now;
    });

  it('a resumed compute has what the last one used before anybody asks', async () => {
    const client = await cluster.connect();
    await client.query('CREATE TABLE small AS SELECT g AS id, repeat(md5(g::text), 8) AS pad FROM generate_series(1, 30000) g'); // 9 MB
    await client.query('CREATE TABLE unused AS SELECT * FROM small');
    await client.query('VACUUM ANALYZE small');
    await client.end();
    const sum = await value(`${SUM} small t`);
    await resume(); // all of it was written: all of it is hot
    let before = await settled();
    assert.equal(before.disk.prefetch, 'complete');
    assert.ok(before.disk.prefetchedBytes > 18 * MB);
    assert.equal(await value(`${SUM} small t`), sum);
    let after_ = await look();
    assert.ok(after_.fetched - before.fetched < 60, `${after_.fetched - before.fetched} blocks were missing`);
    // Nobody used the other table: some computes later it is left alone.
    for (let i = 0; i < 3; i++) {
      await resume();
      before = await settled();
      assert.equal(await value(`${SUM} small t`), sum);
    }
    assert.ok(before.disk.prefetchedBytes > 9 * MB && before.disk.prefetchedBytes < 16 * MB, `${before.disk.prefetchedBytes / MB} MB`);
    // A crash loses no more of it than the last minutes.
    cluster.kill('postgres');
    await eventually('a new compute answers', async () => (await value(`${SUM} small t`).catch(() => undefined)) === sum || undefined);
    after_ = await settled();
    assert.ok(after_.disk.prefetchedBytes > 9 * MB);
  });

  it('data larger than the bound is read and changed as ever', async () => {
    const client = await cluster.connect();
    await client.query('CREATE TABLE big (id int PRIMARY KEY, n int, pad text)');
    for (let i = 0; i < 10; i++)
      await client.query('INSERT INTO big SELECT g, 0, repeat(md5(g::text), 24) FROM generate_series($1::int, $1::int + 9999) g', [
        i * 10_000,
      ]);
    // Else the first scan sets hint bits, which makes every page a changed one, and those stay until a round has settled them (docs/protocols/shim-agent.md, Rounds).
    await client.query('VACUUM (FREEZE) big');
    await client.end();
    await resume();
    const sum = await value(`${SUM} (SELECT id, pad FROM big) t`); // 80 MB
    await Promise.all(
      [1, 2, 3, 4].map(async (n) => {
        const one = await cluster.connect();
        for (let i = 0; i < 30; i++) {
          const at = (n * 7_919 + i * 104_729) % 99_000;
          const { rows } = await one.query<{ ok: boolean }>(
            'SELECT bool_and(pad = repeat(md5(id::text), 24)) AND count(*) = 500 AS ok FROM big WHERE id BETWEEN $1 AND $1 + 499',
            [at],
          );
          assert.equal(rows[0]?.ok, true);
          await one.query('UPDATE small SET id = -id WHERE id = $1', [i * 4 + n]);
        }
        await one.end();
      }),
    );
    assert.equal(await value(`${SUM} (SELECT id, pad FROM big) t`), sum);
    assert.equal(await value('SELECT count(*) AS sum FROM small WHERE id < 0'), '120');
    const { disk } = await look();
    assert.ok(disk.droppedBytes > 40 * MB, JSON.stringify(disk));
    assert.ok(disk.scratchBytes < CACHE + 32 * MB, JSON.stringify(disk));
    assert.equal(disk.roomsDenied, 0);
    await resume();
    assert.ok(['full', 'complete'].includes(String((await settled()).disk.prefetch)));
    assert.equal(await value(`${SUM} (SELECT id, pad FROM big) t`), sum);
  });
});
