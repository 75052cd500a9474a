/** What is stored, seen and checked from outside: `lakebase inspect` and `lakebase scrub` on a running system with real files and objects. Damage done to an
 *  object, to a local layer and to a WAL segment is found by name, repaired from the other copy, and nothing acknowledged is missing afterwards. */
import assert from 'node:assert/strict';
import { existsSync, globSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { InspectReport, ScrubSummary } from '@lakebase/api';
import { Cluster, eventually } from '@lakebase/testkit';
import { Ledger } from './ledger.ts';

describe('what is stored', () => {
  let cluster: Cluster;
  let ledger: Ledger;

  before(async () => {
    cluster = await Cluster.start();
    ledger = new Ledger(cluster);
    await ledger.create();
    ledger.start(2);
    await ledger.progress(100);
    await ledger.stop();
    const client = await cluster.connect();
    await client.query('CREATE TABLE wide AS SELECT g, md5(g::text) AS h FROM generate_series(1, 20000) g');
    await client.query('CHECKPOINT');
    await client.end();
    const suspended = await cluster.cli(['suspend']);
    assert.equal(suspended.code, 0, suspended.stderr);
    await eventually('layers and an index are in the object store', () =>
      objects('*.layer').length > 0 && objects('index-*').length > 0 ? true : undefined,
    );
    await eventually('WAL is in the object store', () => (objects('wal/*').length > 0 ? true : undefined));
  });
  after(() => cluster[Symbol.asyncDispose]());

  const objects = (pattern: string): string[] => globSync(join(cluster.home, 'objects/projects/*/timelines/*', pattern)).sort();
  const files = (pattern: string): string[] => globSync(join(cluster.home, 'data', pattern)).sort();
  const flip = (path: string, share = 0.5): void => {
    const bytes = readFileSync(path);
    const at = Math.floor(bytes.length * share);
    bytes[at] = (bytes[at] as number) ^ 0x10;
    writeFileSync(path, bytes);
  };
  async function scrub(...args: string[]): Promise<{ code: number; summary: ScrubSummary; stderr: string; found: string[] }> {
    const { code, stdout, stderr } = await cluster.cli(['scrub', '--output', 'json', '--rate', '1000', ...args]);
    let summary: ScrubSummary;
    try {
      summary = JSON.parse(stdout) as ScrubSummary;
    } catch {
      throw new Error(`scrub ended with ${code}: ${stdout}${stderr}`);
    }
    const found = summary.services.flatMap((s) => s.findings.map((f) => `${s.service} ${f.kind} ${f.outcome} ${basename(f.name)}`));
    return { code, summary, stderr, found };
  }
  async function show(...args: string[]): Promise<InspectReport> {
    const { stdout, stderr } = await cluster.cli(['inspect', '--json', ...args]);
    assert.notEqual(stdout, '', stderr);
    return JSON.parse(stdout) as InspectReport;
  }

  it('inspect: every kind of file and object, by path, by key and by name, with its contents', async () => {
    const layers = files('pageserver/timelines/*/*/*.layer');
    const image = layers.find((f) => basename(f).startsWith('image'));
    const delta = layers.find((f) => basename(f).startsWith('delta'));
    assert.ok(image !== undefined && delta !== undefined, `${layers.map((f) => basename(f)).join(' ')}`);
    const kinds: [string[], RegExp][] = [
      [[image, '--all'], /"layer".*frames open/s],
      [[delta, '--frame', '0'], /entries of frame 0/],
      [[files('pageserver/timelines/*/*/index')[0] as string], /timeline index.*diskConsistentLsn/s],
      [[files('sk2/*/*/control')[0] as string], /WAL control file.*term history/s],
      [[files('sk2/*/*/wal/0*')[0] as string], /WAL segment.*records that begin here/s],
      [[objects('index-*')[0] as string], /timeline index/],
      [[objects('wal/*').find((f) => !f.endsWith('references')) as string], /WAL object.*records that begin here/s],
      [['control'], /WAL control file/],
      [['index'], /timeline index/],
      [[], /objects in file:/],
    ];
    for (const [args, expected] of kinds) {
      const report = await show(...args);
      assert.deepEqual(report.damage, [], args.join(' '));
      assert.match(JSON.stringify(report), expected, args.join(' '));
      assert.ok(!report.notes.some((n) => n.includes('no keys')), args.join(' '));
    }
    const suspend = files('pageserver/timelines/*/*/suspend-*')[0];
    if (suspend !== undefined) assert.match(JSON.stringify(await show(suspend)), /pgstat/);
  });

  it('inspect without keys, or elsewhere, shows what is not sealed and says so', async () => {
    const layer = files('pageserver/timelines/*/*/*.layer')[0] as string;
    const report = await show('--offline', layer);
    assert.match(JSON.stringify(report.notes), /no keys/);
    assert.equal(report.tables.length, 0);
    const copy = join(cluster.home, basename(layer));
    writeFileSync(copy, readFileSync(layer));
    assert.match(JSON.stringify((await show(copy)).notes), /not in its place/);
    writeFileSync(copy, 'nothing of ours');
    const { code, stderr } = await cluster.cli(['inspect', copy]);
    assert.equal(code, 1);
    assert.match(stderr, /none of our files/);
    assert.equal((await cluster.cli(['inspect', '/nonexistent/file'])).code, 1);
    assert.equal((await cluster.cli(['inspect', '../../secret'])).code, 1);
  });

  it('inspect page: a page, its tuples, and the records that made it', async () => {
    const client = await cluster.connect();
    const { rows } = await client.query<{ path: string; lsn: string }>(
      `SELECT pg_relation_filepath('ledger') AS path, pg_current_wal_flush_lsn()::text AS lsn`,
    );
    await client.end();
    const { path, lsn } = rows[0] as { path: string; lsn: string };
    const { code, stdout, stderr } = await cluster.cli(['inspect', 'page', path, '0', '--lsn', lsn]);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /pd_lsn +[0-9A-F]+\/[0-9A-F]+/);
    assert.match(stdout, /1 +normal +[0-9]+ +[0-9]+ +xmin [0-9]+/);
    assert.match(stdout, /what made it, newest first\n +end LSN/);
    assert.match(stdout, /record Heap|image/i);
    for (const wrong of [
      ['base/1/4294967295', '0'],
      [path, '4000000000'],
      ['nonsense', '0'],
      [path, 'x'],
    ] as [string, string][]) {
      const refused = await cluster.cli(['inspect', 'page', ...wrong]);
      assert.equal(refused.code, 1, wrong.join(' '));
      assert.match(refused.stderr, /lakebase: /);
    }
    const future = await cluster.cli(['inspect', 'page', path, '0', '--lsn', '7FFF/0']);
    assert.equal(future.code, 1);
  });

  it('scrub: nothing is wrong with a healthy system, and it says what it looked at', async () => {
    const { code, summary, stderr, found } = await scrub();
    assert.deepEqual(found, []);
    assert.equal(code, 0, stderr);
    assert.equal(summary.services.length, 4);
    for (const s of summary.services) assert.ok(s.objects > 0 && s.timelines.done === s.timelines.total, JSON.stringify(s));
    assert.match(stderr, /pageserver .* timelines/);
    const text = await cluster.cli(['scrub', '--project', 'default', '--rate', '1000']);
    assert.match(text.stdout, /0 findings, 0 put right, 0 left/);
    assert.equal((await cluster.cli(['scrub', '--project', 'no-such'])).code, 1);
  });

  it('scrub finds a flipped bit in an object, in a local layer and in a WAL segment by name, and repairs each', async () => {
    const object = objects('*.layer').find((f) => statSync(f).size > 100_000) as string;
    const layer = files('pageserver/timelines/*/*/*.layer').find((f) => basename(f) !== basename(object)) as string;
    const wal = objects('wal/*').find((f) => !f.endsWith('references')) as string;
    flip(object);
    flip(layer, 0.3);
    const first = await scrub();
    assert.equal(first.code, 1);
    assert.deepEqual(
      first.found.filter((f) => !f.includes(' orphan ')).sort(),
      [`pageserver damaged left ${basename(layer)}`, `pageserver damaged left ${basename(object)}`].sort(),
    );
    const damaged = await show('--store', object);
    assert.ok((await show('--store', '--all', object)).damage.length > 0 || damaged.damage.length > 0);
    const repaired = await scrub('--repair');
    assert.equal(repaired.code, 0, JSON.stringify(repaired.found));
    assert.ok(repaired.found.includes(`pageserver damaged repaired ${basename(object)}`));
    assert.ok(repaired.found.includes(`pageserver damaged repaired ${basename(layer)}`));
    if (!wal.endsWith('tail')) {
      flip(wal);
      assert.ok((await scrub('--repair')).found.some((f) => f.endsWith(`damaged repaired ${basename(wal)}`)));
    }
    assert.deepEqual((await scrub()).found, []);
    await ledger.verify();
  });

  it('the dashboard and the alerts name only metrics that a running system exports', async () => {
    const exported = new Set(['up']);
    for (const config of globSync(join(cluster.home, 'config/*.json'))) {
      const { httpPort, secretFile } = JSON.parse(readFileSync(config, 'utf8')) as { httpPort?: number; secretFile?: string };
      if (httpPort === undefined || secretFile === undefined) continue;
      // A spare one is configured and does not run.
      const text = await fetch(`http://127.0.0.1:${httpPort}/metrics`).then(
        (r) => r.text(),
        () => '',
      );
      for (const [, name, type] of text.matchAll(/^# TYPE (\S+) (\S+)$/gm)) {
        exported.add(name as string);
        if (type === 'histogram') for (const part of ['bucket', 'sum', 'count']) exported.add(`${name as string}_${part}`);
      }
    }
    // Seen from the source, and from what is compiled of it.
    const ops = ['../../ops/', '../../../ops/'].map((path) => new URL(path, import.meta.url)).find((url) => existsSync(url)) as URL;
    const rules = readFileSync(new URL('prometheus/rules.yml', ops), 'utf8');
    const dashboard = JSON.parse(readFileSync(new URL('grafana/lakebase.json', ops), 'utf8')) as {
      panels: { targets?: { expr: string }[] }[];
    };
    const exprs = [
      ...[...rules.matchAll(/^ +expr: (.+)$/gm)].map((m) => m[1] as string),
      ...dashboard.panels.flatMap((p) => (p.targets ?? []).map((t) => t.expr)),
    ];
    assert.ok(exprs.length > 40, `${exprs.length}`);
    const named = new Set(
      exprs.flatMap((e) => [...e.matchAll(/(?<![:\w"])(?:lakebase|nodejs|process)_[a-z0-9_]+(?!:)/g)].map((m) => m[0])),
    );
    assert.deepEqual(
      [...named].filter((name) => !exported.has(name)),
      [],
    );
    // Without `for` an alert comes at once: a key must not be silent for a minute unseen.
    for (const block of rules.split(/^ +- alert: /m).slice(1))
      assert.match(block, /^\w+\n +expr: .+\n(?: +for: \d+m\n)? +labels:\n +severity: (?:warning|critical)\n +annotations:\n +summary: .+/);
  });
});
