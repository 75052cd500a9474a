/** Nothing of a customer's data lies readable in a compute's scratch or in any log file of the system, also what Postgres says about it;
 *  what it says can be read at the compute host. */
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';

const MARKER = 'MARKERofaCUSTOMER';

/** Files below `directory` that hold the marker. */
function holding(directory: string): string[] {
  const found: string[] = [];
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    try {
      if (readFileSync(path).includes(MARKER)) found.push(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error; // removed meanwhile
    }
  }
  return found;
}

describe('scratch', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;

  before(async () => {
    cluster = await Cluster.start();
    inside = new ClusterInternals(cluster);
  });
  after(() => cluster[Symbol.asyncDispose]());

  it('rows, errors and statements are in no file; the compute host has the messages', async () => {
    const client = await cluster.connect();
    await client.query(`CREATE TABLE t (what text PRIMARY KEY); INSERT INTO t VALUES ('${MARKER}')`);
    await assert.rejects(client.query(`INSERT INTO t VALUES ('${MARKER}')`), { code: '23505' });
    await client.query(`DO $$ BEGIN RAISE LOG '${MARKER} said'; END $$`);
    await client.query('CHECKPOINT').catch(() => {}); // not everybody may
    const compute = await eventually('the compute', () => inside.running());
    const { lines } = await inside.host.log(compute.computeId, 100);
    assert.ok(
      lines.some((line) => line.includes(`${MARKER} said`)),
      lines.join('\n'),
    );
    assert.ok(lines.some((line) => line.includes('duplicate key value')));
    assert.deepEqual(holding(join(cluster.scratchRoot(), 'computes')), []);
    assert.deepEqual(holding(join(cluster.home, 'logs')), []);
    assert.match(cluster.log('compute'), /ERROR: \(text withheld/);
    await client.end();

    cluster.kill('postgres');
    await eventually('its end is known', async () => ((await inside.host.status(compute.computeId)).state === 'FAILED' ? true : undefined));
    await assert.rejects(inside.host.log(compute.computeId), { code: /^(NOT_FOUND|UNAVAILABLE)$/ }); // gone with its agent, or going
    assert.deepEqual(holding(join(cluster.home, 'logs')), []);
    assert.doesNotMatch((await inside.host.status(compute.computeId)).error ?? '', new RegExp(MARKER));
  });
});
