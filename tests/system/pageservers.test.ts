/** Two pageservers: a project moves between them under load, one that was paused comes back with an old generation (F25), one loses its disk (F13).
 *  After each: no acknowledged row is lost, and nobody saw an error. */
import assert from 'node:assert/strict';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster, eventually } from '@lakebase/testkit';
import { Ledger } from './ledger.ts';

describe('two pageservers', () => {
  let cluster: Cluster;
  let ledger: Ledger;
  before(async () => {
    cluster = await Cluster.start({ env: { LAKEBASE_PAGESERVERS: '2' } });
    ledger = new Ledger(cluster);
    await ledger.create();
    const client = await cluster.connect();
    await client.query("CREATE TABLE read_from AS SELECT i AS id, repeat('x', 500) AS filler FROM generate_series(1, 40000) i");
    await client.end();
    // What is read from now on has to come from a pageserver.
    cluster.kill('postgres');
    await (await eventually('the endpoint is back', () => cluster.connect())).end();
  });
  after(() => cluster[Symbol.asyncDispose]());

  /** Reads pages nobody has read yet, and writes, while `run` is on; the longest time one statement took. */
  async function under(run: () => Promise<void>): Promise<number> {
    const client = await cluster.connect();
    let longest = 0;
    let stop = false;
    let id = 1;
    const reading = (async () => {
      while (!stop) {
        const began = performance.now();
        await client.query('SELECT length(filler) FROM read_from WHERE ctid = $1::tid', [`(${(id += 7) % 2800},1)`]);
        longest = Math.max(longest, performance.now() - began);
      }
    })();
    ledger.start();
    await ledger.progress(20);
    longest = 0;
    await run();
    await ledger.progress(20);
    stop = true;
    await reading;
    await ledger.stop();
    await client.end();
    assert.deepEqual([...ledger.errors], []);
    await ledger.verify();
    return longest;
  }
  async function move(to: string): Promise<void> {
    const { code, stderr } = await cluster.cli(['storage', 'move', 'default', '--to', to]);
    assert.equal(code, 0, stderr);
  }

  it('a project moves there and back under load', async () => {
    for (const to of ['pageserver2', 'pageserver']) {
      const longest = await under(() => move(to));
      console.log(`move to ${to}: the longest read took ${longest.toFixed(0)} ms`);
      assert.ok(longest < 10_000);
    }
    const refused = await cluster.cli(['storage', 'move', 'default', '--to', 'nowhere']);
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /there is no pageserver nowhere/);
  });

  it('F25: one that was paused while another took over can do no harm when it goes on', async () => {
    const [paused] = cluster.kill('pageserver', 'SIGSTOP');
    assert.ok(paused !== undefined);
    try {
      await under(() => move('pageserver2'));
    } finally {
      process.kill(paused, 'SIGCONT');
    }
    await eventually('the old one has learned it', () => (/moved away/.test(lastLines('pageserver')) ? true : undefined));
    await under(async () => {});
  });

  it('F13: the disk of the one that serves is lost under load', async () => {
    const { dataDir } = JSON.parse(readFileSync(join(cluster.home, 'config', 'pageserver2.json'), 'utf8')) as { dataDir: string };
    const longest = await under(async () => {
      cluster.kill('pageserver2');
      rmSync(dataDir, { recursive: true, force: true });
      await eventually('it serves again', () => (/laid out from the object store/.test(lastLines('pageserver2')) ? true : undefined));
    });
    console.log(`lost disk: the longest read took ${longest.toFixed(0)} ms`);
    // And of the one that has no project, to which the next goes: templates are made again.
    const first = JSON.parse(readFileSync(join(cluster.home, 'config', 'pageserver.json'), 'utf8')) as {
      dataDir: string;
      httpPort: number;
    };
    const [old] = cluster.kill('pageserver');
    rmSync(first.dataDir, { recursive: true, force: true });
    await eventually('it is back', async () => {
      const [pid] = cluster.pids('pageserver');
      const { ok } = await fetch(`http://127.0.0.1:${first.httpPort}/healthz`);
      return ok && pid !== old ? true : undefined;
    });
    const { code, stderr } = await cluster.cli(['projects', 'create', 'another']);
    assert.equal(code, 0, stderr);
  });

  function lastLines(service: 'pageserver' | 'pageserver2'): string {
    return cluster.log(service).split('\n').slice(-20).join('\n');
  }
});
