/** Issue 4, section 5, the proof: markers are planted wherever customer data goes, then every file of every process is searched, and after a
 *  revocation the memory of every service. Nothing may be found. The same search finds them where encryption is switched off, so it works. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { Cluster, ClusterInternals, type ServiceName, eventually } from '@lakebase/testkit';
import type pg from 'pg';
import { KeyedProject } from './key-scene.ts';
import { keysOf } from './key-needles.ts';
import { type Finding, type Needles, mayReadMemory, scanFiles, scanMemory, textNeedles } from './scan.ts';

const SERVICES: readonly ServiceName[] = ['keymanager', 'sk1', 'sk2', 'sk3', 'pageserver', 'manager', 'proxy', 'compute'];

/** Not written out anywhere in whole, so that neither this file nor a log of the test holds one. */
const marker = (what: string): string => ['Zq7', what, 'Xw9', 'Kp4', 'Vd2'].join('');
const M = {
  table: marker('table'),
  key: marker('index'),
  toast: marker('toast'),
  wal: marker('message'),
  name: marker('name').toLowerCase(),
  temp: marker('temp'),
  error: marker('error'),
  password: marker('password'),
  statistics: marker('statistics'),
  notification: marker('notification'),
  /** What the full-text index makes of `table`. */
  lexeme: marker('table').toLowerCase(),
} as const;
/** Where a sequence stands: eight bytes that are nothing else. */
const SEQUENCE = 0x5a71_13c4_d20e_9b37n;
const SEQUENCE_NAME = 'position of the sequence';

function needles(): Map<string, Buffer> {
  const position = Buffer.alloc(8);
  position.writeBigInt64LE(SEQUENCE);
  return textNeedles(...Object.values(M)).set(SEQUENCE_NAME, position);
}

interface Planted {
  readonly client: pg.Client;
  /** Files of the compute, below its data directory, by what is in them. */
  readonly files: Readonly<Record<'table' | 'index' | 'gin' | 'toast' | 'sequence' | 'statistics', string>>;
}

async function plant(project: KeyedProject): Promise<Planted> {
  const client = await project.connect();
  await client.query(`CREATE TABLE planted (id int PRIMARY KEY, plain text, keyed text, long text)`);
  await client.query(`ALTER TABLE planted ALTER long SET STORAGE EXTERNAL`);
  await client.query(`INSERT INTO planted SELECT n, $1 || n, $2 || n, repeat($3, 500) FROM generate_series(1, 300) n`, [
    M.table,
    M.key,
    M.toast,
  ]);
  await client.query(
    `CREATE INDEX by_key ON planted (keyed); CREATE INDEX by_word ON planted USING gin (to_tsvector('simple', plain));
     CREATE SEQUENCE ${M.name} START ${SEQUENCE}; SELECT nextval('${M.name}')`,
  );
  await client.query(`INSERT INTO planted SELECT n, $1, $2, NULL FROM generate_series(1000, 1500) n; `.replace('; ', ''), [M.table, M.key]);
  // The most common value goes to pg_statistic.
  await client.query(`CREATE TABLE counted AS SELECT '${M.statistics}'::text AS word FROM generate_series(1, 200); ANALYZE`);
  await client.query(`LISTEN planted; NOTIFY planted, '${M.notification}'`);
  await client.query(`SELECT pg_logical_emit_message(false, 'x', $1)`, [M.wal]);
  await client.query(`CREATE ROLE planted_role LOGIN PASSWORD '${M.password}'`);
  await assert.rejects(client.query(`SELECT ('${M.error}' || 'x')::int`)); // a statement and a message for the server log
  // A sort that spills, kept open so that its files are there.
  await client.query(`SET work_mem = '64kB'; BEGIN`);
  await client.query(`DECLARE spilled CURSOR FOR SELECT '${M.temp}' || n FROM generate_series(1, 60000) n ORDER BY md5(n::text)`);
  await client.query('FETCH 10 FROM spilled');
  const { rows } = await client.query<Planted['files']>(
    `SELECT pg_relation_filepath('planted') AS table, pg_relation_filepath('by_key') AS index, pg_relation_filepath('by_word') AS gin,
       pg_relation_filepath((SELECT reltoastrelid FROM pg_class WHERE relname = 'planted')) AS toast,
       pg_relation_filepath('${M.name}') AS sequence, pg_relation_filepath('pg_statistic') AS statistics`,
  );
  return { client, files: rows[0] as Planted['files'] };
}

/** Everything to disk that can go there. */
async function settle(cluster: Cluster, project: KeyedProject): Promise<void> {
  const internals = new ClusterInternals(cluster);
  for (const compute of (await internals.host.list()).computes.filter((c) => c.state === 'RUNNING')) {
    const admin = await internals.admin(compute);
    await admin.query('CHECKPOINT');
    await admin.end();
  }
  const timelines = join(cluster.home, 'data', 'pageserver', 'timelines', project.uid);
  for (const timeline of readdirSync(timelines)) await internals.pageserver.checkpoint(project.uid as never, timeline as never);
}

const suspend = (project: KeyedProject): Promise<unknown> =>
  project.api.operate('POST', `projects/${project.name}/branches/production/endpoints/primary/suspend`, {});

/** Layers, index, WAL and the key record of the project are in the store: `<home>/objects`, part of what is searched. */
async function inObjectStore(cluster: Cluster, project: KeyedProject): Promise<void> {
  const dir = join(cluster.home, 'objects');
  await eventually(
    'the project is in the object store',
    () => {
      const names = existsSync(dir) ? (readdirSync(dir, { recursive: true }) as string[]).filter((name) => name.includes(project.uid)) : [];
      const has = (pattern: RegExp): boolean => names.some((name) => pattern.test(name));
      return has(/\.layer$/) && has(/\/index-g/) && has(/\/wal\//) && has(/^keymanager\/projects\//) ? true : undefined;
    },
    60_000,
  );
}

const files = (cluster: Cluster, more: Needles = new Map()): ReturnType<typeof scanFiles> =>
  scanFiles([cluster.home, cluster.scratchRoot()], new Map([...needles(), ...more]));
const places = (findings: readonly Finding[]): string =>
  findings
    .map((f) => `${f.needle.replace(/^Zq7|Xw9Kp4Vd2$/g, '')} in ${f.where} at ${f.offset}${f.context === undefined ? '' : ` ${f.context}`}`)
    .join('\n');

function memory(cluster: Cluster, what: Needles): Finding[] {
  return SERVICES.flatMap((service) =>
    cluster.pids(service).flatMap((pid) => (scanMemory(pid, what) ?? []).map((f) => ({ ...f, where: `${service}, ${f.where}` }))),
  );
}

describe('plaintext', () => {
  it('is nowhere on disk, running and asleep, and nowhere in memory after a revocation; keys neither', async (t) => {
    await using cluster = await Cluster.start();
    const project = await KeyedProject.create(cluster, 'planted');
    const { client } = await plant(project);
    await settle(cluster, project);
    const keys = await keysOf(cluster, project);
    // The key file is the customer's KMS in this test; the administrator's file of generated passwords has those of owners, and they open
    // nothing without the key (docs/security/threat-model.md).
    const credentials = join(cluster.home, 'credentials.json');
    const found = (): { text: string; files: number; bytes: number } => {
      const { findings, ...rest } = files(cluster, new Map([...keys.all, ...textNeedles(project.password)]));
      const left = findings.filter(
        (f) => !f.where.startsWith(project.keyFile) && !(f.needle === project.password && f.where === credentials),
      );
      return { text: places(left), ...rest };
    };
    const running = found();
    t.diagnostic(`${running.files} files, ${(running.bytes / 2 ** 20).toFixed(0)} MB searched while the compute runs`);
    assert.equal(running.text, '');
    await client.end();

    await suspend(project);
    await inObjectStore(cluster, project);
    const asleep = found();
    t.diagnostic(
      `${asleep.files} files, ${(asleep.bytes / 2 ** 20).toFixed(0)} MB searched when it is asleep, the object store among them`,
    );
    assert.equal(asleep.text, '');

    // Read everything once more so that it is in caches, then take the key away.
    const reader = await project.connect();
    await reader.query(`SELECT sum(length(long)), max(plain), max(keyed), (SELECT last_value FROM ${M.name}) FROM planted`);
    const pid = cluster.pids('pageserver')[0] as number;
    if (!mayReadMemory(pid)) return t.skip('this user may not read the memory of other processes: the search of memory needs root');
    const inUse = memory(cluster, new Map([...needles(), ...keys.all]));
    const has = (needle: string, service: RegExp): boolean => inUse.some((f) => f.needle === needle && service.test(f.where));
    assert.ok(has(M.table, /^pageserver|^compute/), 'the search of memory finds no data although a project is being read');
    assert.ok(has('KEK 1', /^keymanager/), 'the search of memory finds no KEK although the project is in use');
    for (const sk of ['sk1', 'sk2', 'sk3'])
      assert.ok(has(`data key of a segment of ${sk}`, new RegExp(`^${sk}`)), `the search of memory finds no data key in ${sk}`);
    for (const name of keys.keks.keys())
      assert.ok(!inUse.some((f) => f.needle === name && !f.where.startsWith('keymanager')), places(inUse));
    project.revoke();
    await eventually('revoked', async () => ((await project.state()) === 'REVOKED' ? true : undefined));
    await eventually('no compute of it runs', () => (cluster.computePids().length === 0 ? true : undefined));
    // Garbage collectors may take a moment: what counts is that it is gone within the bound for revocations.
    let left: Finding[] = [];
    const everything = new Map([...needles(), ...keys.all]);
    await eventually('memory is clean', () => ((left = memory(cluster, everything)).length === 0 ? true : undefined), 15_000).catch(
      () => {},
    );
    assert.equal(places(left), '');
    assert.equal(found().text, '');
    project.restore();
  });

  it('is found by the same search where encryption is switched off', async () => {
    await using cluster = await Cluster.start({ env: { LAKEBASE_TEST_PLAINTEXT: '1', LAKEBASE_TEST_SCRATCH_PLAINTEXT: '1' } });
    const project = await KeyedProject.create(cluster, 'bare-as-can-be');
    const planted = await plant(project);
    await settle(cluster, project);
    const { findings: running } = files(cluster);
    await planted.client.end();
    await suspend(project);
    await inObjectStore(cluster, project);
    const findings = [...running, ...files(cluster).findings];
    const found = (needle: string, where: RegExp): boolean => findings.some((f) => f.needle === needle && where.test(f.where));
    for (const needle of [M.table, M.key, M.toast, M.wal, M.statistics, SEQUENCE_NAME])
      assert.ok(found(needle, /\/sk[123]\//), `WAL holds ${needle}`);
    for (const needle of [M.table, M.toast, SEQUENCE_NAME]) assert.ok(found(needle, /\/pageserver\//), `layers hold ${needle}`);
    const inFile: readonly (readonly [keyof Planted['files'], string])[] = [
      ['table', M.table],
      ['index', M.key],
      ['gin', M.lexeme],
      ['toast', M.toast],
      ['sequence', SEQUENCE_NAME],
      ['statistics', M.statistics],
    ];
    for (const [what, needle] of inFile)
      assert.ok(found(needle, new RegExp(`/pgdata/${planted.files[what]}$`)), `${what} of the compute, ${planted.files[what]}`);
    assert.ok(found(M.temp, /pgsql_tmp/), 'temporary files of the compute');
    assert.ok(found(M.wal, /pg_wal/), 'WAL of the compute');
    for (const needle of [M.table, M.toast])
      assert.ok(found(needle, /\/objects\/.*\.layer$/), `a layer in the object store holds ${needle}`);
    // WAL there is compressed, with or without encryption, so a search of bytes says little about it; its frames are tested in packages/wal-store.
    assert.ok(!findings.some((f) => f.needle === M.password), 'a password is stored nowhere, not even unencrypted');
    const catalog = scanFiles([join(cluster.home, 'data', 'manager')], textNeedles('bare-as-can-be', project.password));
    assert.deepEqual([...new Set(catalog.findings.map((f) => f.needle))], ['bare-as-can-be'], "the Manager's catalog: names, no passwords");
  });
});

/** Keeps the import honest: a needle must never be in this file. */
assert.ok(!readFileSync(import.meta.filename, 'latin1').includes(M.table));
