/** Section 7.1: kill -9 every kind of process under load, in turn, and lose nothing. The long random form is chaos.ts. */
import assert from 'node:assert/strict';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster, eventually } from '@lakebase/testkit';
import { Ledger } from './ledger.ts';

describe('kill -9 under load', () => {
  let cluster: Cluster;
  let ledger: Ledger;

  before(async () => {
    cluster = await Cluster.start();
    ledger = new Ledger(cluster);
    await ledger.create();
    ledger.start();
    await ledger.progress(50);
  });
  after(async () => {
    await ledger.stop();
    await cluster[Symbol.asyncDispose]();
  });

  it('the compute: the next one has every acknowledged row', async () => {
    for (let i = 0; i < 2; i++) {
      assert.ok(cluster.kill('postgres').length > 0);
      await ledger.progress(50);
    }
    await ledger.verify();
  });

  it('one safekeeper, then another: commits go on', async () => {
    for (const name of ['sk1', 'sk2', 'sk3'] as const) {
      assert.ok(cluster.kill(name).length > 0);
      await ledger.progress(30);
      await eventually(`${name} is back`, () => (cluster.pids(name).length > 0 ? true : undefined));
      await ledger.progress(30);
    }
    await ledger.verify();
  });

  it('the pageserver: queries wait, none is wrong', async () => {
    cluster.kill('pageserver');
    await ledger.progress(30);
    cluster.kill('postgres'); // the next compute reads everything from the restarted pageserver
    await ledger.progress(30);
    await ledger.verify();
  });

  it('the proxy and the Manager', async () => {
    cluster.kill('proxy');
    await ledger.progress(30);
    cluster.kill('manager');
    await ledger.progress(30);
    cluster.kill('compute');
    await ledger.progress(30);
    await ledger.verify();
  });

  it('the compute and its directory: same', async () => {
    await ledger.progress(20);
    const computes = join(cluster.scratchRoot(), 'computes');
    cluster.kill('postgres');
    for (const dir of readdirSync(computes)) rmSync(join(computes, dir), { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
    await ledger.progress(50);
    await ledger.verify();
  });

  it('the supervisor and everything, then a second start on the same directory', async () => {
    await ledger.stop();
    process.kill(cluster.supervisorPid, 'SIGKILL');
    for (const name of ['sk1', 'sk2', 'sk3', 'pageserver', 'compute', 'manager', 'proxy'] as const) {
      for (const pid of cluster.pids(name)) process.kill(pid, 'SIGKILL');
    }
    await eventually('nothing of it runs', () =>
      cluster.computePids().length === 0 && cluster.pids('sk1').length === 0 ? true : undefined,
    );
    await cluster.up();
    await ledger.verify();
    ledger.start();
    await ledger.progress(20);
  });
});
