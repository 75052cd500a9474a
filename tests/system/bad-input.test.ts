/** Section 9: whatever arrives at any listener ends in a clear error; a full disk delays commits and loses none; a wrong start says in one
 *  line what to do. One system serves all of it, and at the end it must still be the same processes, with every acknowledged row. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { must } from '@lakebase/base';
import { parseLsn } from '@lakebase/ids';
import { Cluster, ClusterInternals, type ServiceName, eventually } from '@lakebase/testkit';
import { internalHttpCases } from './bad-input-internal-http.ts';
import { proxyCases } from './bad-input-proxy.ts';
import { publicApiCases } from './bad-input-public-api.ts';
import { storageCases } from './bad-input-storage.ts';
import { SmallDisk } from './full-disk.ts';
import { Ledger } from './ledger.ts';

const SERVICES: readonly ServiceName[] = ['sk1', 'sk2', 'sk3', 'pageserver', 'compute', 'manager', 'proxy'];
const CLI = join(import.meta.dirname, '..', '..', 'apps', 'cli', 'dist', 'main.js');
/** Room for a few segments of WAL. */
const DISK = 'size=96m,mode=755';

describe('bad input', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  let ledger: Ledger;
  let pids: Record<string, number[]>;
  let computes: number[];
  let disks: (SmallDisk | undefined)[];
  let future: Promise<string>;

  const alive = (): Record<string, number[]> =>
    Object.fromEntries(SERVICES.map((s) => [s, cluster.pids(s).filter((pid) => !computes.includes(pid))]));

  before(async () => {
    const home = mkdtempSync(join(tmpdir(), 'lb-bad-'));
    disks = ['sk2', 'sk3'].map((id) => SmallDisk.mount(join(home, 'data', id), DISK));
    try {
      cluster = await Cluster.start({ home });
    } catch (error) {
      for (const disk of disks) disk?.[Symbol.dispose]();
      throw error;
    }
    inside = new ClusterInternals(cluster);
    ledger = new Ledger(cluster);
    await ledger.create();
    ledger.start(1);
    await ledger.progress(5);
    await ledger.stop();
    computes = cluster.computePids();
    pids = alive();
    future = pageOfTheFuture().catch(String);
  });
  after(async () => {
    await ledger?.stop();
    await cluster?.stop();
    for (const disk of disks) disk?.[Symbol.dispose]();
    await cluster?.[Symbol.asyncDispose]();
  });

  proxyCases(() => cluster);
  publicApiCases(
    () => cluster,
    () => inside,
  );
  internalHttpCases(
    () => cluster,
    () => inside,
  );
  const pageOfTheFuture = storageCases(() => inside);

  it('a safekeeper with a full disk drops out, two of them make commits wait; space brings both back, and nothing acknowledged is lost', async (t) => {
    const [second, third] = disks;
    if (second === undefined || third === undefined) return t.skip('mounting a small file system is not permitted here');
    const { project, timeline } = inside.branch();
    const position = async (id: string): Promise<number> => parseLsn((await inside.safekeeper(id).status(project, timeline)).flushLsn);
    const writer = await cluster.connect();
    const admin = await inside.admin();
    await writer.query('CREATE TABLE bulk (filler text STORAGE EXTERNAL)');
    const bulk = (): Promise<unknown> => writer.query('INSERT INTO bulk SELECT repeat(md5(i::text), 1000) FROM generate_series(1, 1300) i'); // 41 MB: past every segment made ahead
    ledger.start(1);

    second.fill();
    await bulk();
    await eventually('the first full member says so', () => (/disk is full/.test(cluster.log('sk2')) ? true : undefined), 20_000);
    await ledger.progress(3);
    assert.ok((await position('sk2')) < (await position('sk1')), 'it is behind, and shows no more than it has');

    third.fill();
    const waiting = bulk().then(
      () => 'acknowledged',
      (error: Error) => `failed: ${error.message}`,
    );
    await eventually('the second full member says so', () => (/disk is full/.test(cluster.log('sk3')) ? true : undefined), 20_000);
    await eventually(
      'commits wait for the quorum',
      async () => {
        const { rows } = await admin.query(
          "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'INSERT INTO bulk%'",
        );
        return rows.length > 0 ? true : undefined;
      },
      20_000,
    );
    const stuck = ledger.acknowledged.size;
    assert.equal(await Promise.race([waiting, new Promise((resolve) => setTimeout(resolve, 500, 'waiting'))]), 'waiting');
    assert.ok(ledger.acknowledged.size - stuck <= 1, 'nothing is acknowledged without a quorum');

    second.release();
    third.release();
    assert.equal(await waiting, 'acknowledged');
    await ledger.progress(3);
    await ledger.stop();
    await eventually(
      'all three are level again',
      async () => {
        const [a, b, c] = await Promise.all(['sk1', 'sk2', 'sk3'].map(position));
        return a === b && b === c ? true : undefined;
      },
      20_000,
    );
    await ledger.verify();
    assert.equal(Number((await writer.query('SELECT count(*) AS n FROM bulk')).rows[0].n), 2_600);
    await Promise.all([writer.end(), admin.end()]);
  });

  it('a start that cannot be is one clear line and an exit code', async () => {
    const scratch = mkdtempSync(join(tmpdir(), 'lb-bad-up-'));
    const listener = createServer();
    const taken = await new Promise<number>((resolve) =>
      listener.listen(0, '127.0.0.1', () => resolve((listener.address() as { port: number }).port)),
    );
    writeFileSync(join(scratch, 'file'), '');
    mkdirSync(join(scratch, 'secret-home'));
    writeFileSync(join(scratch, 'secret-home', 'secret'), 'not hexadecimal\n');
    const readOnly = SmallDisk.mount(join(scratch, 'read-only'), 'ro,size=1m');
    const tiny = SmallDisk.mount(join(scratch, 'tiny'), 'size=1m,mode=755');
    try {
      const home = (name: string): NodeJS.ProcessEnv => ({ LAKEBASE_HOME: join(scratch, name) });
      const cases: [what: string, env: NodeJS.ProcessEnv, says: RegExp][] = [
        [
          'a second instance',
          {},
          new RegExp(`already running on this directory \\(process ${cluster.supervisorPid}\\): stop it first, or set LAKEBASE_HOME`),
        ],
        [
          'a taken Postgres port',
          { ...home('a'), LAKEBASE_PG_PORT: String(taken) },
          new RegExp(`port ${taken} is taken: set LAKEBASE_PG_PORT`),
        ],
        [
          'a taken HTTP port',
          { ...home('b'), LAKEBASE_PG_PORT: '0', LAKEBASE_HTTP_PORT: String(cluster.httpPort) },
          /LAKEBASE_(PG|HTTP)_PORT/,
        ],
        ['a port beyond all ports', { ...home('c'), LAKEBASE_PG_PORT: '99999' }, /LAKEBASE_PG_PORT/],
        ['a port that is a word', { ...home('d'), LAKEBASE_HTTP_PORT: 'http' }, /LAKEBASE_HTTP_PORT/],
        ['a home under a file', home('file/x'), /is not a directory/],
        ['a home that is a file', home('file'), /is not a directory/],
        ['a log level nobody knows', { ...home('e'), LAKEBASE_LOG_LEVEL: 'loud' }, /use debug, info, warn or error/],
        ['a certificate without its key', { ...home('f'), LAKEBASE_TLS_CERT: '/x' }, /set both or none/],
        ['no time to suspend', { ...home('g'), LAKEBASE_SUSPEND_SECONDS: '-1' }, /LAKEBASE_SUSPEND_SECONDS/],
        [
          'a damaged secret',
          { ...home('secret-home'), LAKEBASE_PG_PORT: '0' },
          /secret does not hold 64 hexadecimal digits|LAKEBASE_PG_PORT/,
        ],
        ...(readOnly === undefined
          ? []
          : [['a read-only home', home('read-only'), /read-only file system: make it writable/] as [string, NodeJS.ProcessEnv, RegExp]]),
        ...(tiny === undefined
          ? []
          : [['a full disk', home('tiny'), /is nearly full .*free some space/] as [string, NodeJS.ProcessEnv, RegExp]]),
      ];
      for (const [what, env, says] of cases) {
        const { code, stderr } = await up(env);
        assert.ok(code !== 0 && code !== null, `${what}: exit code ${code}`);
        assert.match(stderr, says, what);
        assert.equal(stderr.trim().split('\n').length, 1, `${what}: one line, not ${stderr}`);
      }
    } finally {
      listener.close();
      readOnly?.[Symbol.dispose]();
      tiny?.[Symbol.dispose]();
      rmSync(scratch, { recursive: true, force: true });
    }
  });

  /** `lakebase up` as it is, with this system's environment and these changes; killed when it should have given up long ago. */
  function up(env: NodeJS.ProcessEnv): Promise<{ code: number | null; stderr: string }> {
    return new Promise((resolve) => {
      const child = spawn(process.execPath, [CLI, 'up'], {
        cwd: cluster.home,
        env: { ...cluster.env, ...env },
        stdio: ['ignore', 'ignore', 'pipe'],
        timeout: 20_000,
      });
      let stderr = '';
      child.stderr.on('data', (chunk: Buffer) => {
        stderr += chunk.toString();
      });
      child.once('close', (code) => resolve({ code, stderr }));
    });
  }

  it('a page of the future is not waited for beyond the deadline', async () => {
    assert.match(await future, /^TIMEOUT: WAL up to 40000\/0 did not arrive within 30000 ms; ingested up to /);
  });

  it('after all that: the same processes, every acknowledged row, and new commits', async () => {
    assert.deepEqual(alive(), pids, 'no service died');
    assert.deepEqual(cluster.computePids(), computes, 'nor did the compute');
    assert.doesNotMatch(cluster.output, / died /);
    for (const service of SERVICES) assert.doesNotMatch(cluster.log(service), /"msg":"fatal"|uncaught|unhandledRejection/i, service);
    await ledger.verify();
    ledger.start(1);
    await ledger.progress(3);
    await ledger.stop();
    must(await inside.running(), 'the compute runs');
    // And what is in storage, without anything this compute still had.
    const suspended = await cluster.cli(['suspend']);
    assert.equal(suspended.code, 0, suspended.stderr);
    await ledger.verify();
    assert.notDeepEqual(cluster.computePids(), computes, 'a fresh compute answered');
  });
});
