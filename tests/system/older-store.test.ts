/** The object store is put back to an earlier state while the pageserver's disk is lost: nothing is served from it, or put into it for the branch, until an
 *  operator says so; then the WAL that safekeepers still have brings back everything (docs/protocols/generations.md). */
import assert from 'node:assert/strict';
import { cpSync, existsSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';
import { Ledger } from './ledger.ts';

describe('an object store that was put back', () => {
  let cluster: Cluster;
  let ledger: Ledger;
  let branch: ReturnType<ClusterInternals['branch']>;
  before(async () => {
    cluster = await Cluster.start();
    ledger = new Ledger(cluster);
    await ledger.create();
    branch = new ClusterInternals(cluster).branch();
  });
  after(async () => {
    await ledger.stop();
    await cluster[Symbol.asyncDispose]();
  });

  const objects = (): string => join(cluster.home, 'objects');
  const pages = (): string => join(cluster.home, 'data', 'pageserver', 'timelines', branch.project, branch.timeline);
  const indexes = (): string[] =>
    readdirSync(join(objects(), 'projects', branch.project, 'timelines', branch.timeline)).filter((name) => name.startsWith('index-g'));
  async function writeAndUpload(): Promise<void> {
    ledger.start();
    await ledger.progress(50);
    await ledger.stop();
    const { pageserver } = new ClusterInternals(cluster);
    await pageserver.checkpoint(branch.project, branch.timeline);
    await pageserver.upload(branch.project, 30_000);
  }
  const refusal = (): Promise<Error> =>
    cluster.connect().then(
      async (client) => {
        await client.end();
        throw new Error('it was served');
      },
      (error: Error) => error,
    );

  it('serves nothing after a loss of the disk, and says what to do', async () => {
    await writeAndUpload();
    await cluster.stop();
    cpSync(objects(), `${objects()}.older`, { recursive: true });
    await cluster.up();
    await writeAndUpload();
    await cluster.stop();
    renameSync(objects(), `${objects()}.newer`);
    renameSync(`${objects()}.older`, objects());
    rmSync(join(cluster.home, 'data', 'pageserver'), { recursive: true });
    const before = indexes();
    await cluster.up();
    assert.match((await refusal()).message, /put back to an earlier state/);
    assert.match(cluster.log('manager'), /OLDER catalog/);
    assert.deepEqual(indexes(), before);
    assert.ok(!existsSync(pages()));
  });

  it('serves once that is accepted, with everything that safekeepers still have', async () => {
    const { code, stdout, stderr } = await cluster.cli(['storage', 'accept-older-store', 'default']);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /production/);
    await (await eventually('it can be connected to', () => cluster.connect(), 90_000)).end();
    await ledger.verify();
    await writeAndUpload();
    await ledger.verify();
  });
});
