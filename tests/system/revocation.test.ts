/** Issue 4, section 5: the key goes, and within seconds nothing of the project is served by any process, while the rest runs on; the key comes
 *  back, and everything is there by itself. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { KeyedProject } from './key-scene.ts';
import { Ledger } from './ledger.ts';

/** From the key's disappearance to no data served: 5 s between probes, and some. */
const REVOKED_MS = 15_000;

describe('revocation', () => {
  let cluster: Cluster;
  let project: KeyedProject;
  let other: Ledger;
  let ledger: Ledger;

  before(async () => {
    cluster = await Cluster.start();
    project = await KeyedProject.create(cluster, 'secrets');
    other = new Ledger(cluster);
    await other.create();
    other.start(1);
    ledger = new Ledger(project);
    await ledger.create();
    ledger.start(1);
    await ledger.progress(50);
    await other.progress(50);
  });
  after(async () => {
    project?.restore();
    await Promise.all([other?.stop(), ledger?.stop()]);
    await cluster?.[Symbol.asyncDispose]();
  });

  it('ends open sessions with the reason, refuses new ones, API calls, reads and appends; others run on', async () => {
    const idle = await project.connect();
    await idle.query('SELECT 1');
    const told = new Promise<Error & { code?: string }>((resolve) => idle.once('error', resolve));
    const errorsBefore = [...other.errors.values()].length;
    const began = performance.now();
    project.revoke();
    const error = await told;
    const ms = performance.now() - began;
    assert.equal(error.code, '57P01', error.message);
    assert.match(error.message, /customer-managed key of this project is revoked/);
    assert.ok(ms < REVOKED_MS, `sessions ended after ${ms} ms`);
    process.stdout.write(`# from the key's disappearance to the end of sessions: ${Math.round(ms)} ms\n`);

    await assert.rejects(project.connect(), (e: Error & { code?: string }) => e.code === '57P03' && /revoked/.test(e.message));
    assert.equal(await project.state(), 'REVOKED');
    assert.equal(cluster.computePids().length, 1, 'only the other project has a compute');

    const internals = new ClusterInternals(cluster);
    const [timeline = ''] = readdirSync(join(cluster.home, 'data', 'pageserver', 'timelines', project.uid));
    const ids = [parseProjectUid(project.uid), parseTimelineId(timeline)] as const;
    await assert.rejects(internals.pageserver.checkpoint(...ids), { code: 'KEY_REVOKED' });
    for (const sk of ['sk1', 'sk2', 'sk3'])
      await assert.rejects(internals.safekeeper(sk).vote(...ids, { term: 1_000_000 as never }), { code: 'KEY_REVOKED' });

    await other.progress(50);
    assert.equal([...other.errors.values()].length, errorsBefore, JSON.stringify([...other.errors]));
  });

  it('the key comes back: everything acknowledged is there, by itself', async () => {
    const began = performance.now();
    project.restore();
    await ledger.progress(20, 30_000);
    process.stdout.write(`# from the key's return to the next commits: ${Math.round(performance.now() - began)} ms\n`);
    await ledger.verify();
    assert.equal(await project.state(), 'ACTIVE');
  });

  it('revoked while storage is being restarted: it comes up without the project, and with it when the key is back', async () => {
    project.revoke();
    await eventually('revoked', async () => ((await project.state()) === 'REVOKED' ? true : undefined));
    for (const name of ['pageserver', 'sk1', 'sk2'] as const) cluster.kill(name);
    await other.progress(50);
    await assert.rejects(project.connect(), { code: '57P03' });
    cluster.kill('manager');
    await eventually('the Manager is back and still refuses', async () => {
      try {
        await (await project.connect()).end();
      } catch (error) {
        return /revoked/.test((error as Error).message) ? true : undefined;
      }
      throw new Error('a revoked project was served');
    });
    project.restore();
    await ledger.progress(20, 60_000);
    await ledger.verify();
    await other.verify();
  });

  it('WAL that was acknowledged but not ingested when the key went is there when it is back', async () => {
    const client = await project.connect();
    const insert = (from: number): Promise<unknown> =>
      client.query('INSERT INTO late SELECT n FROM generate_series($1::int, $1::int + 999) n', [from]);
    await client.query('CREATE TABLE late (n int PRIMARY KEY)');
    await insert(1); // so that the next one needs no page that is not there
    // From here on no WAL reaches a page: the quorum alone has it.
    cluster.kill('pageserver', 'SIGSTOP');
    await insert(1_001);
    project.revoke();
    await eventually('revoked', async () => ((await project.state()) === 'REVOKED' ? true : undefined));
    await eventually('only the other project has a compute', () => (cluster.computePids().length <= 1 ? true : undefined));
    cluster.kill('pageserver');
    project.restore();
    const again = await eventually('the project is served again', () => project.connect());
    const { rows } = await again.query('SELECT count(*)::int AS n, sum(n)::int AS sum FROM late');
    assert.deepEqual(rows, [{ n: 2_000, sum: 2_001_000 }]);
    await again.end();
    await ledger.progress(20, 60_000);
    await ledger.verify();
  });

  it('the audit log tells it all, to the account admin only', async () => {
    const { body } = await project.account.raw('GET', 'accounts/default/audit-log');
    const lines = String(body['text'])
      .split('\n')
      .filter((l) => l !== '');
    assert.ok(lines.length > 5);
    for (const action of ['BIND_KEY|CREATE_WORKSPACE', 'TERMINATE_COMPUTES', 'REVOKED|STATE'])
      assert.ok(
        lines.some((l) => new RegExp(action).test(l)),
        `${action} in ${lines.length} lines`,
      );
    assert.equal((await project.account.raw('GET', 'accounts/other/audit-log')).status, 404);
  });

  it("the key manager's disk is lost: its records come back from the object store, and nobody notices", async () => {
    const records = join(cluster.home, 'data', 'keymanager');
    cluster.kill('keymanager');
    rmSync(records, { recursive: true });
    // Its watch may still be the former process's: the log is only the new one's.
    const restored = async (): Promise<true | undefined> =>
      /RECORD_RESTORED/.test(String((await project.account.raw('GET', 'accounts/default/audit-log')).body['text'])) ? true : undefined;
    await eventually('the key manager is back with what it had', restored, 30_000);
    await ledger.progress(20, 30_000);
    cluster.kill('pageserver'); // nothing of it hangs on keys in memory
    await ledger.progress(20, 30_000);
    await ledger.verify();
    await other.verify();
    assert.equal(await project.state(), 'ACTIVE');
  });

  it('deleting the project destroys its keys and says so', async () => {
    await ledger.stop();
    await project.api.operate('DELETE', `projects/${project.name}`);
    const reports = (await project.account.call('GET', 'accounts/default/shred-reports'))['shred_reports'] as Record<string, unknown>[];
    const report = reports.find((r) => r['project_id'] === project.name);
    assert.ok((report?.['destroyedKeks'] as unknown[] | undefined)?.length === 1, JSON.stringify(reports));
    assert.match(String(report?.['statement']), /./);
  });
});
