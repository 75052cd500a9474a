/** Issue 3 section 1: projects of Postgres 17 and 16 work as those of 18 do. For each: work of every kind, suspend, resume, kill -9, and the same
 *  answers from indexes, from scans and from amcheck. LAKEBASE_FULL=1 runs 18 through the same too. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';
import pg from 'pg';
import { answers, checkStructures, copyDatabases, work } from './whole-workload.ts';

const MAJORS = process.env['LAKEBASE_FULL'] === '1' ? [18, 17, 16] : [17, 16];

describe('majors', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  before(async () => {
    cluster = await Cluster.start();
    inside = new ClusterInternals(cluster);
  });
  after(() => cluster[Symbol.asyncDispose]());

  const cli = (...args: string[]): Promise<string> => cluster.lakebase(...args).then((out) => out.trim());
  async function connect(url: string, database?: string): Promise<pg.Client> {
    const to = new URL(url);
    if (database !== undefined) to.pathname = `/${database}`;
    const client = new pg.Client({ connectionString: to.toString() });
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  for (const major of MAJORS) {
    it(`Postgres ${major}: work, suspend, kill, the same answers`, async () => {
      const project = `m${major}`;
      await cli('projects', 'create', project, '--pg-version', String(major));
      assert.match(await cli('projects', 'list'), new RegExp(`${project} .* ${major} `));
      await cli(
        'endpoints',
        'update',
        'primary',
        '--project',
        project,
        '--set',
        'max_prepared_transactions=10',
        '--set',
        'track_commit_timestamp=on',
      );
      const url = await cli('connection-string', '--project', project);
      const first = await connect(url);
      const version = (await first.query<{ v: string }>("SELECT current_setting('server_version_num') AS v")).rows[0]?.v ?? '';
      assert.equal(Math.floor(Number(version) / 10_000), major);
      await work(first);
      await copyDatabases(first);
      const copied = await connect(url, 'by_file_copy');
      await copied.query('CREATE TABLE here AS SELECT generate_series(1, 100) AS n');
      await copied.end();
      const before = await answers(first);
      assert.deepEqual(await answers(first, true), before, 'indexes and scans agree before anything happens');
      const stamp = (await first.query('SELECT pg_xact_commit_timestamp(xmin) AS at FROM truncated WHERE n = 42')).rows;
      await first.end();

      await cli('suspend', '--project', project);
      const second = await connect(url);
      assert.deepEqual(await answers(second), before, 'after a suspend');
      assert.deepEqual((await second.query('SELECT pg_xact_commit_timestamp(xmin) AS at FROM truncated WHERE n = 42')).rows, stamp);
      assert.deepEqual((await second.query("SELECT nextval('counter') AS v")).rows, [{ v: '121' }], 'sequences go on where they were');
      assert.deepEqual((await second.query('SELECT count(*) AS n FROM scratch')).rows, [{ n: '0' }], 'unlogged tables are empty');
      await second.query('UPDATE item SET filler = $1 WHERE id % 3 = 0', ['second']);
      await second.query("COMMIT PREPARED 'kept open'");
      const changed = await answers(second);
      const admin = await adminOf(version);
      await admin.query('CHECKPOINT');
      await second.query("UPDATE item SET filler = 'third' WHERE id % 4 = 0");
      await admin.end();
      const atKill = await answers(second);
      assert.notDeepEqual(changed, atKill);

      cluster.kill('postgres');
      await second.end().catch(() => {});
      const third = await eventually('a new compute', () => connect(url));
      assert.deepEqual(await answers(third), atKill, 'after kill -9');
      assert.deepEqual(await answers(third, true), atKill);
      const copy = await connect(url, 'by_file_copy');
      assert.deepEqual((await copy.query('SELECT sum(n) FROM here')).rows, [{ sum: '5050' }]);
      await copy.end();
      const again = await adminOf(version);
      assert.ok((await checkStructures(again)) > 100);
      await again.end();
      await third.end();
      await cli('suspend', '--project', project);
    });
  }

  it('an unsupported version is refused with the ones there are', async () => {
    const { code, stderr } = await cluster.cli(['projects', 'create', 'old', '--pg-version', '15']);
    assert.notEqual(code, 0);
    assert.match(stderr, /pg_version must be one of 18, 17, 16, got 15/);
  });

  async function adminOf(version: string): Promise<pg.Client> {
    for (const compute of (await inside.host.list()).computes.filter((c) => c.state === 'RUNNING')) {
      const client = await inside.admin(compute);
      if ((await client.query("SELECT current_setting('server_version_num') AS v")).rows[0].v === version) return client;
      await client.end();
    }
    throw new Error(`no compute of ${version} runs`);
  }
});
