/** F17: a pageserver that takes WAL in slowly. A writer who outruns it is slowed, smoothly: the lag stays below its bound, commits never stop, reads go
 *  on and see what was written, nothing runs out of memory; and when storage is fast again nobody is slowed. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { cpus, loadavg } from 'node:os';
import { after, before, describe, it } from 'node:test';
import { sleep } from '@lakebase/base';
import { parseLsn } from '@lakebase/ids';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';

const MB = 1 << 20;
const MAX_LAG = 64 * MB;
const SECONDS = process.env['LAKEBASE_FULL'] === '1' ? 120 : 25;
/** A piece of 128 KiB each: below 12 MB/s. */
const SLOW = 'delay(10)';
/** What a commit may take: a second; on a machine that does much else besides, whatever is not a stop. */
const commitMsMax = (): number => ((loadavg()[0] ?? 0) < 2 * cpus().length ? 1_000 : 5_000);

describe('back-pressure (F17)', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;

  before(async () => {
    cluster = await Cluster.start({ env: { LAKEBASE_FAILPOINTS_ROUTE: '1', LAKEBASE_MAX_INGEST_LAG_BYTES: String(MAX_LAG) } });
    inside = new ClusterInternals(cluster);
  });
  after(() => cluster[Symbol.asyncDispose]());

  const slow = (action: string): Promise<unknown> =>
    inside.pageserver.http.call('PUT', '/v1/failpoints/pageserver.ingest.before-piece', { action });

  it('a writer is slowed to what storage takes in, and nobody stops', async (t) => {
    const { project, timeline } = inside.branch();
    const setup = await cluster.connect();
    await setup.query('CREATE TABLE bulk (i int, pad text); CREATE TABLE ticks (n int PRIMARY KEY, at timestamptz DEFAULT now())');
    await setup.query('CREATE TABLE old AS SELECT g AS id, repeat(md5(g::text), 20) AS pad FROM generate_series(1, 30000) g');
    await setup.query('CREATE INDEX ON old (id)');
    await slow(SLOW);
    const until = performance.now() + SECONDS * 1_000;
    const going = (): boolean => performance.now() < until;

    let bulkRows = 0;
    const bulk = Array.from({ length: 2 }, async () => {
      const client = await cluster.connect();
      while (going()) {
        await client.query('INSERT INTO bulk SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 3000) i'); // 2 MB of WAL
        bulkRows += 3_000;
      }
      await client.end();
    });
    const commits: number[] = [];
    const committer = (async () => {
      const client = await cluster.connect();
      for (let n = 0; going(); n++) {
        const begun = performance.now();
        await client.query('INSERT INTO ticks (n) VALUES ($1)', [n]);
        commits.push(performance.now() - begun);
        await sleep(20);
      }
      await client.end();
    })();
    const reads: number[] = [];
    const reader = (async () => {
      const client = await cluster.connect();
      while (going()) {
        const expected = commits.length;
        const begun = performance.now();
        const { rows } = await client.query<{ n: number; ok: boolean }>(
          'SELECT (SELECT count(*)::int FROM ticks) AS n, (SELECT pad = repeat(md5(id::text), 20) FROM old WHERE id = $1) AS ok',
          [1 + Math.floor((reads.length * 7_919) % 30_000)],
        );
        reads.push(performance.now() - begun);
        assert.ok((rows[0]?.n ?? 0) >= expected && rows[0]?.ok === true, 'reads see what was committed');
        await sleep(20);
      }
      await client.end();
    })();
    const lags: number[] = [];
    const watcher = (async () => {
      while (going()) {
        const ingested = parseLsn((await inside.pageserver.status(project, timeline)).lastRecordLsn);
        const { rows } = await setup.query<{ lsn: string }>('SELECT pg_current_wal_lsn()::text AS lsn');
        // The position is read after the other, so this is more than it was at any one moment.
        lags.push(parseLsn(rows[0]?.lsn ?? '0/0') - ingested);
        await sleep(200);
      }
    })();
    await Promise.all([...bulk, committer, reader, watcher]);
    const status = await inside.running();
    const pressure = status?.backpressure;
    const rss = cluster
      .pids('pageserver')
      .map((pid) => Number(/VmRSS:\s+([0-9]+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024);
    const sorted = [...commits].sort((a, b) => a - b);
    t.diagnostic(
      `lag at most ${Math.round(Math.max(...lags) / MB)} of ${MAX_LAG / MB} MB; ${commits.length} commits, p50 ${Math.round(sorted[commits.length >> 1] ?? 0)} ms, ` +
        `longest ${Math.round(sorted.at(-1) ?? 0)} ms; ${reads.length} reads, longest ${Math.round(Math.max(...reads))} ms; ${bulkRows} rows; ` +
        `slept ${pressure?.sleptMs} ms, allowed ${pressure?.allowedBytesPerSecond} B/s; pageserver ${Math.round(Math.max(...rss))} MB`,
    );
    assert.ok(Math.max(...lags) <= MAX_LAG, `lag of ${Math.max(...lags)} bytes`);
    assert.ok(Math.max(...lags) > MAX_LAG / 4, 'the writer was faster than storage');
    assert.ok((pressure?.sleptMs ?? 0) > 1_000, 'it was slowed');
    assert.ok((sorted.at(-1) ?? Infinity) < commitMsMax(), 'commits go on');
    assert.ok(reads.length > SECONDS && Math.max(...rss) < 1_200);

    await slow('off');
    await eventually('nobody is slowed', async () =>
      (await inside.running())?.backpressure?.allowedBytesPerSecond === null ? true : undefined,
    );
    const { rows } = await setup.query<{ n: number }>('SELECT count(*)::int AS n FROM bulk');
    assert.equal(rows[0]?.n, bulkRows);
    const port = (JSON.parse(readFileSync(`${cluster.home}/config/compute.json`, 'utf8')) as { httpPort: number }).httpPort;
    const metrics = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    assert.match(metrics, /^lakebase_compute_ingest_lag_bytes\{.*\} \d+$/m);
    assert.match(metrics, /^lakebase_compute_wal_slept_seconds\{.*\} [1-9]/m);
    await setup.end();
  });
});
