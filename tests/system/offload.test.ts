/** Issue 5, section 3: WAL goes to the object store, leaves the safekeepers' disks, and is all there for whoever reads it, whatever is killed, wiped,
 *  stalled or full meanwhile. LAKEBASE_FULL=1 writes a gigabyte and measures the puts. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { type WalTimelineStatus, internalToken } from '@lakebase/api';
import { type Lsn, WAL_SEGMENT_BYTES, parseLsn, segmentNumber, walFileName } from '@lakebase/ids';
import { PgConnection } from '@lakebase/pg-wire';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';

const FULL = process.env['LAKEBASE_FULL'] === '1';
const MEMBERS = ['sk1', 'sk2', 'sk3'] as const;
type Member = (typeof MEMBERS)[number];
const SEG = WAL_SEGMENT_BYTES;
/** 20,000 rows of this are some 14 MB of WAL. */
const ROWS = 'INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 20000) i';
const ROUNDS = FULL ? 75 : 4;

describe('WAL in the object store', () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  let first: string;
  let end: Lsn;

  before(async () => {
    const home = mkdtempSync(join(tmpdir(), 'lb-offload-'));
    writeFileSync(join(home, 'safekeepers.json'), JSON.stringify({ offloadIdleMs: 1_000, offloadTailMs: 0, trimAfterBytes: 1 }));
    cluster = await Cluster.start({ home, env: { LAKEBASE_FAILPOINTS_ROUTE: '1' } });
    inside = new ClusterInternals(cluster);
  });
  after(() => cluster[Symbol.asyncDispose]());

  const status = (member: Member): Promise<WalTimelineStatus> => {
    const { project, timeline } = inside.branch();
    return inside.safekeeper(member).status(project, timeline);
  };
  const port = (member: Member): number =>
    (JSON.parse(readFileSync(join(cluster.home, 'config', `${member}.json`), 'utf8')) as { pgPort: number }).pgPort;

  async function metric(member: Member, name: string): Promise<number> {
    const { httpPort } = JSON.parse(readFileSync(join(cluster.home, 'config', `${member}.json`), 'utf8')) as { httpPort: number };
    const text = await (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text();
    return text
      .split('\n')
      .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
      .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
  }

  /** All WAL of the branch up to `to`, as any reader gets it. */
  async function digest(member: Member, to: Lsn): Promise<string> {
    const { project, timeline } = inside.branch();
    const from = parseLsn((await status(member)).startLsn);
    const connection = await PgConnection.connect({
      host: '127.0.0.1',
      port: port(member),
      user: 'reader',
      password: internalToken(inside.secret, 'service'),
      replication: 'physical',
      parameters: { options: `-c lakebase.project=${project} -c lakebase.timeline=${timeline}` },
    });
    const hash = createHash('sha256');
    try {
      await new Promise<void>((resolve, reject) => {
        let at: number = from;
        connection
          .startReplication(
            { startLsn: from },
            {
              onXLogData: (m) => {
                if (m.start !== at) return reject(new Error(`WAL at ${m.start} instead of ${at}`));
                hash.update(m.data.subarray(0, Math.max(0, to - at)));
                at += m.data.length;
                if (at >= to) resolve();
              },
            },
          )
          .then((stream) => stream.ended)
          .then(() => reject(new Error('ended early')))
          .catch(reject);
        connection.closed.then((e) => reject(e ?? new Error('closed')), reject);
      });
    } finally {
      connection.destroy();
    }
    return hash.digest('hex');
  }

  const digestEventually = (member: Member): Promise<string> => eventually(`${member} serves all WAL`, () => digest(member, end));

  it('is put there and trimmed on all members once the pageserver has it too', async () => {
    const client = await cluster.connect();
    await client.query('CREATE TABLE t (id int, pad text)');
    for (let i = 0; i < ROUNDS; i++) await client.query(ROWS);
    const { rows } = await client.query<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
    end = parseLsn(rows[0]?.lsn as string);
    await client.end();
    const complete = Math.floor(end / SEG) * SEG;
    await eventually('it is committed', async () => (parseLsn((await status('sk1')).commitLsn) >= end ? true : undefined));
    // Before anything may be trimmed: the pageserver has nothing in the object store yet, or not all.
    first = await digest('sk1', end);
    const { code, stderr } = await cluster.cli(['suspend']);
    assert.equal(code, 0, stderr);
    for (const member of MEMBERS)
      await eventually(
        `${member} has trimmed`,
        async () => {
          const s = await status(member);
          return parseLsn(s.offloadedLsn ?? '0/0') >= complete && parseLsn(s.firstLsn ?? '0/0') >= complete - SEG ? true : undefined;
        },
        120_000,
      );
    let puts = 0;
    let bytes = 0;
    let stored = 0;
    for (const member of MEMBERS) {
      puts += await metric(member, 'lakebase_safekeeper_offload_puts_total');
      bytes += await metric(member, 'lakebase_safekeeper_offloaded_bytes_total');
      stored += await metric(member, 'lakebase_safekeeper_offload_stored_bytes_total');
    }
    const gigabytes = end / 1024 ** 3;
    process.stdout.write(
      `# ${gigabytes.toFixed(2)} GB of WAL: ${puts} puts, ${(puts / gigabytes).toFixed(1)} per GB, ${(stored / bytes).toFixed(3)} of its size stored\n`,
    );
    if (FULL) assert.ok(puts / gigabytes <= 16, `${puts} puts`);
    for (const member of MEMBERS) assert.equal(await digest(member, end), first, member);
  });

  it('is all there after kill -9 of everything that serves it', async () => {
    for (const name of ['sk1', 'sk2', 'pageserver', 'sk3'] as const) cluster.kill(name);
    for (const member of MEMBERS) assert.equal(await digestEventually(member), first, member);
  });

  it('is all there when a member lost what is offloaded, and when it lost a whole segment', async () => {
    const { project, timeline } = inside.branch();
    const oldest = parseLsn((await status('sk3')).firstLsn as string);
    cluster.kill('sk3');
    const wal = join(cluster.home, 'data', 'sk3', project, timeline, 'wal');
    rmSync(join(wal, walFileName(segmentNumber(oldest))), { force: true });
    assert.equal(await digestEventually('sk3'), first);
    assert.ok(readdirSync(wal).length > 0);
    // And one that is there but does not open.
    const before = parseLsn((await status('sk2')).firstLsn as string);
    cluster.kill('sk2');
    const path = join(cluster.home, 'data', 'sk2', project, timeline, 'wal', walFileName(segmentNumber(before)));
    const damaged = readFileSync(path);
    damaged.fill(0x55, 5_000_000, 5_000_100);
    writeFileSync(path, damaged);
    await eventually('sk2 is back', () => status('sk2').then(() => true));
    // The first reader finds it; the next one gets the bytes from the object store.
    assert.equal(await digestEventually('sk2'), first);
    assert.equal((await status('sk2')).damaged, null, 'it votes on');
  });

  it('the compute starts again and sees everything', async () => {
    const client = await cluster.connect();
    assert.deepEqual((await client.query('SELECT count(*)::int AS n FROM t')).rows, [{ n: 20_000 * ROUNDS }]);
    await client.end();
  });

  it('one stalled disk is not felt by commits, and seen (F16)', async () => {
    const { httpPort } = JSON.parse(readFileSync(join(cluster.home, 'config', 'sk2.json'), 'utf8')) as { httpPort: number };
    const client = await cluster.connect();
    const arm = (action: string): Promise<Response> =>
      fetch(`http://127.0.0.1:${httpPort}/v1/failpoints/safekeeper.wal.before-sync`, {
        method: 'PUT',
        headers: { authorization: `Bearer ${internalToken(inside.secret, 'service')}`, 'content-type': 'application/json' },
        body: JSON.stringify({ action }),
      });
    assert.equal((await arm('delay(1500)@3+')).ok, true);
    const times: number[] = [];
    for (let i = 0; i < 40; i++) {
      const started = performance.now();
      await client.query('INSERT INTO t VALUES (1)');
      times.push(performance.now() - started);
    }
    times.sort((a, b) => a - b);
    const median = times[20] as number;
    process.stdout.write(
      `# one of three disks stalls 1.5 s at every flush: commits p50 ${median.toFixed(1)} ms, max ${times.at(-1)?.toFixed(1)} ms\n`,
    );
    assert.ok(median < 700, `${median} ms`);
    await eventually('it is seen', async () => ((await metric('sk2', 'lakebase_safekeeper_slow_disk')) === 1 ? true : undefined));
    await eventually('it can be told to stop', async () => ((await arm('off')).ok ? true : undefined));
    await client.end();
  });
});
