/** Too few safekeepers are left, or nothing of the machine but its keys: WAL comes back from the object store under new members, up to a stated place, and
 *  nothing is begun anew over what is there (docs/protocols/wal-recovery.md). */
import assert from 'node:assert/strict';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { WalTimelineStatus } from '@lakebase/api';
import { type Lsn, type ProjectUid, type TimelineId, parseLsn } from '@lakebase/ids';
import { Cluster, ClusterInternals, eventually, processes } from '@lakebase/testkit';
import { Ledger } from './ledger.ts';
import { amcheck, checkBtrees } from './amcheck.ts';

const MEMBERS = ['sk1', 'sk2', 'sk3'] as const;
const SETTINGS = JSON.stringify({ offloadIdleMs: 500, offloadTailMs: 0, offloadAgeMs: 2_000 });

interface Recovery {
  readonly startLsn: string;
  readonly pageLsn: string;
  readonly walEndLsn: string;
  readonly by: string;
}

async function start(name: string): Promise<Cluster> {
  const home = mkdtempSync(join(tmpdir(), `lb-${name}-`));
  writeFileSync(join(home, 'safekeepers.json'), SETTINGS);
  return Cluster.start({ home });
}

/** Every process of the installation at once, as a power cut would. */
async function killAll(cluster: Cluster): Promise<void> {
  const own = (argv: readonly string[]): boolean => argv.some((a) => a === cluster.home || a.startsWith(`${cluster.home}/`));
  const pids = [cluster.supervisorPid, ...processes(own)];
  for (const pid of pids)
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // ended by itself
    }
  await cluster.stop('SIGKILL');
  await eventually('nothing runs any more', () => (processes(own).length === 0 ? true : undefined));
}

const recoveries = async (cluster: Cluster): Promise<readonly Recovery[]> => {
  const { code, stdout, stderr } = await cluster.cli(['storage', 'recoveries', '--json']);
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout) as Recovery[];
};

async function flushLsn(cluster: Cluster): Promise<Lsn> {
  const client = await cluster.connect();
  const { rows } = await client.query<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
  await client.end();
  return parseLsn(rows[0]?.lsn as string);
}

/** Commits again, a suspend and a start, amcheck. */
async function works(cluster: Cluster): Promise<void> {
  const client = await cluster.connect();
  await client.query(`CREATE TABLE after AS SELECT g AS n FROM generate_series(1, 200) g`);
  await client.end();
  const { code, stderr } = await cluster.cli(['suspend']);
  assert.equal(code, 0, stderr);
  const again = await cluster.connect();
  const { rows } = await again.query<{ n: number }>('SELECT count(*)::int AS n FROM after');
  assert.equal(rows[0]?.n, 200);
  await again.end();
  await amcheck(cluster);
}

describe('every safekeeper loses its disk', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  let branch: { project: ProjectUid; timeline: TimelineId };
  let ledger: Ledger;

  before(async () => {
    cluster = await start('lost-sks');
    inside = new ClusterInternals(cluster);
    branch = inside.branch();
    ledger = new Ledger(cluster);
    await ledger.create();
    ledger.start();
    await ledger.progress(100);
  });
  after(async () => {
    await ledger.stop();
    await cluster[Symbol.asyncDispose]();
  });

  const status = (member: string): Promise<WalTimelineStatus> => inside.safekeeper(member).status(branch.project, branch.timeline);
  const loseDisks = (members: readonly string[], where: string): void => {
    // Nobody may see one of them lost and act before the others are.
    const pids = members.flatMap((m) => cluster.kill(m as 'sk1', 'SIGSTOP'));
    mkdirSync(join(cluster.home, where), { recursive: true });
    for (const m of members) renameSync(join(cluster.home, 'data', m), join(cluster.home, where, m));
    for (const pid of pids) process.kill(pid, 'SIGKILL');
  };

  it('one of three takes the ordinary way, and loses nothing', async () => {
    loseDisks(['sk2'], 'lost-1');
    await eventually(
      'a new member has its place',
      async () => {
        const s = await status('sk2');
        return s.member !== 'sk2' && s.damaged === null && s.lineages === undefined ? true : undefined;
      },
      90_000,
    );
    await ledger.progress(50);
    await ledger.verify();
    assert.deepEqual(await recoveries(cluster), []);
  });

  it('all of them: the WAL goes on where the pages end, by itself, and nothing is lost that the pageserver had', async () => {
    await ledger.stop();
    const end = await flushLsn(cluster);
    await eventually('the pageserver has everything', async () =>
      parseLsn((await inside.pageserver.status(branch.project, branch.timeline)).lastRecordLsn) >= end ? true : undefined,
    );
    loseDisks(MEMBERS, 'lost-3');
    const [done] = await eventually('it was brought back', async () => {
      const all = await recoveries(cluster);
      return all.length > 0 ? all : undefined;
    });
    assert.equal(done?.by, 'manager');
    assert.ok(parseLsn(done?.startLsn as string) >= end);
    ledger.start();
    await ledger.progress(50, 90_000);
    await ledger.verify();
    for (const member of MEMBERS) {
      const s = await eventually(`${member} is there`, () => status(member));
      assert.ok(s.term > 1_000_000_000 && s.lineages?.length === 2, JSON.stringify(s));
    }
    await ledger.stop();
    await works(cluster);
  });

  it('two of them: nothing by itself; an administrator sees what there is, and accepts the loss', async () => {
    interface Report {
      readonly members: readonly { id: string; state: string; commitLsn: string | null }[];
      readonly unasked: boolean;
      readonly refusal: string | null;
      readonly startLsn: string;
      readonly done: boolean;
    }
    const recover = async (...more: string[]): Promise<Report> => {
      const { code, stdout, stderr } = await cluster.cli(['storage', 'recover-wal', 'default', '--json', ...more]);
      assert.equal(code, 0, stderr);
      return (JSON.parse(stdout) as { branches: Report[] }).branches[0] as Report;
    };
    ledger.start();
    await ledger.progress(30);
    await ledger.stop();
    const suspended = await cluster.cli(['suspend']);
    assert.equal(suspended.code, 0, suspended.stderr);
    assert.match((await recover()).refusal ?? '', /nothing is lost/);
    const refused = await cluster.cli(['storage', 'recover-wal', 'default', '--accept-loss']);
    assert.notEqual(refused.code, 0, refused.stdout);
    const end = parseLsn((await status('sk3')).commitLsn);
    loseDisks(['sk1', 'sk2'], 'lost-2');
    await eventually('both are seen to be lost, and that it is not for the Manager to say', async () => {
      const { stdout } = await cluster.cli(['storage', 'safekeepers', '--json']);
      const { changes } = JSON.parse(stdout) as { changes: { problem: string | null }[] };
      return changes.some((c) => /too few members are left.*--accept-loss/.test(c.problem ?? '')) ? true : undefined;
    });
    assert.equal((await recoveries(cluster)).length, 1);
    const dry = await eventually('what is left is in the object store', async () => {
      const report = await recover();
      return report.refusal === null ? report : undefined;
    });
    assert.deepEqual([dry.unasked, dry.done], [false, false]);
    assert.ok(dry.members.some((m) => m.state === 'there' && m.id.startsWith('sk3')) && parseLsn(dry.startLsn) >= end, JSON.stringify(dry));
    const done = await recover('--accept-loss');
    assert.equal(done.done, true);
    assert.ok(parseLsn((await recoveries(cluster))[0]?.startLsn as string) >= end);
    ledger.start();
    await ledger.progress(50, 90_000);
    await ledger.verify();
    assert.ok(readdirSync(join(cluster.home, 'data', 'sk3', branch.project)).some((n) => n.includes('.unusable-')));
  });
});

describe('nothing is left of the machine but the object store, the root key and the secret', () => {
  let cluster: Cluster;
  let url: string;
  let marker: Lsn;

  before(async () => {
    cluster = await start('lost-all');
    url = cluster.url;
  });
  after(() => cluster[Symbol.asyncDispose]());

  const client = (): Promise<Awaited<ReturnType<Cluster['connect']>>> =>
    cluster.connect({ connectionString: url.replace(/sslmode=\w+/, 'sslmode=disable'), connectionTimeoutMillis: 60_000 });
  /** What is committed up to there outlives the machine. */
  const offloaded = async (to: Lsn): Promise<void> => {
    const inside = new ClusterInternals(cluster);
    const { project, timeline } = inside.branch();
    await eventually('it is in the object store', async () => {
      for (const m of MEMBERS) {
        const { offloadedLsn = '0/0', tailLsn = '0/0' } = await inside.safekeeper(m).status(project, timeline);
        if (Math.max(parseLsn(offloadedLsn), parseLsn(tailLsn)) >= to) return true;
      }
      return undefined;
    });
  };
  const kept = (): string => join(cluster.home, '..', `${cluster.home.split('/').at(-1) as string}-kept`);
  const remove = (...keep: readonly string[]): void => {
    for (const name of readdirSync(cluster.home))
      if (!keep.includes(name)) rmSync(join(cluster.home, name), { recursive: true, force: true });
  };

  it('what was offloaded comes back with npm start, is said, and goes on', async () => {
    const c = await client();
    await c.query('CREATE TABLE t (n bigint PRIMARY KEY, filler text)');
    await c.query(`INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g`);
    await c.query(`INSERT INTO t VALUES (0, 'marker')`);
    const { rows } = await c.query<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
    marker = parseLsn(rows[0]?.lsn as string);
    await offloaded(marker);
    // The compute goes on writing while everything ends.
    const writing = (async () => {
      for (let n = 1_000_001; ; n++) await c.query('INSERT INTO t VALUES ($1, $2)', [n, 'late']);
    })().catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 300));
    await killAll(cluster);
    await writing;
    await c.end().catch(() => {});
    mkdirSync(kept());
    for (const name of ['secret', 'keys']) cpSync(join(cluster.home, name), join(kept(), name), { recursive: true });
    remove('objects');
    cpSync(kept(), cluster.home, { recursive: true });
    assert.deepEqual(readdirSync(cluster.home).sort(), ['keys', 'objects', 'secret']);
    await cluster.up();
    assert.match(cluster.output, /nothing is left here of the installation/);
    const again = await eventually('it can be connected to', client, 120_000);
    const all = await again.query<{ n: number; marker: number }>(
      `SELECT count(*) FILTER (WHERE n BETWEEN 1 AND 20000)::int AS n, count(*) FILTER (WHERE filler = 'marker')::int AS marker FROM t`,
    );
    assert.deepEqual(all.rows, [{ n: 20_000, marker: 1 }]);
    await again.end();
    const [done] = await recoveries(cluster);
    assert.ok(done !== undefined && parseLsn(done.startLsn) >= marker && done.by === 'manager', JSON.stringify(done));
    await eventually('it is said', () => (/is back up to .* is LOST/.test(cluster.output) ? true : undefined));
  });

  it('is written to, suspended, started, killed and started as before', async () => {
    const own = { connect: client } as unknown as Cluster;
    const c = await client();
    await c.query(`INSERT INTO t SELECT 2000000 + g, 'after' FROM generate_series(1, 200) g`);
    await c.end();
    const { code, stderr } = await cluster.cli(['suspend']);
    assert.equal(code, 0, stderr);
    const ledger = new Ledger(own);
    await ledger.create();
    ledger.start();
    await ledger.progress(50);
    cluster.kill('postgres');
    await ledger.progress(30);
    cluster.kill('sk2');
    cluster.kill('pageserver');
    await ledger.progress(30);
    await ledger.stop();
    await ledger.verify();
    const admin = await new ClusterInternals(cluster).admin();
    await checkBtrees(admin);
    const heap = await admin.query("SELECT * FROM verify_heapam('t')");
    assert.deepEqual(heap.rows, []);
    await admin.end();
  });

  it("a start without the secret, without the root key, or with another installation's is refused", async () => {
    const last = await client();
    const { rows: end } = await last.query<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
    await last.end();
    // A clean stop puts what is committed into the store.
    await cluster.stop();
    const refused = async (what: RegExp): Promise<void> => {
      const before = readdirSync(join(cluster.home, 'objects')).length;
      const { code, stderr } = await cluster.cli(['up']);
      assert.notEqual(code, 0);
      assert.match(stderr, what);
      assert.equal(readdirSync(join(cluster.home, 'objects')).length, before);
    };
    remove('objects');
    await refused(/belongs to an installation .* whose secret is not here: restore .*\/secret/);
    remove('objects');
    cpSync(join(kept(), 'secret'), join(cluster.home, 'secret'));
    await refused(/whose root key is not here: restore .*\/keys\/root\.key/);
    remove('objects');
    cpSync(kept(), cluster.home, { recursive: true });
    writeFileSync(join(cluster.home, 'secret'), `${'ab'.repeat(32)}\n`, { mode: 0o600 });
    await refused(/with another secret than/);
    remove('objects');
    cpSync(kept(), cluster.home, { recursive: true });
    const key = readFileSync(join(cluster.home, 'keys', 'root.key'), 'utf8');
    writeFileSync(
      join(cluster.home, 'keys', 'root.key'),
      key.replace(/./, (d) => (d === '0' ? '1' : '0')),
      { mode: 0o600 },
    );
    await refused(/with another root key than/);
    // And with what belongs to it, once more.
    remove('objects');
    cpSync(kept(), cluster.home, { recursive: true });
    rmSync(kept(), { recursive: true });
    await cluster.up();
    const c = await eventually('it can be connected to', client, 120_000);
    const { rows } = await c.query<{ n: number }>('SELECT count(*)::int AS n FROM ledger');
    assert.ok((rows[0]?.n ?? 0) >= 100);
    await c.end();
    const done = await recoveries(cluster);
    assert.equal(done.length, 2);
    assert.ok(
      done.some(({ startLsn }) => parseLsn(startLsn) >= parseLsn(end[0]?.lsn as string)),
      JSON.stringify(done),
    );
  });
});
