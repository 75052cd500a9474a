/** The Manager's disk is lost under load, put back from an earlier day, and its object store goes away: projects, roles, passwords and computes are there
 *  afterwards, what was acknowledged counts, and no generation goes backwards. docs/formats/catalog-object.md */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { existsSync, readFileSync, readdirSync, readlinkSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { PlacementClient, internalToken } from '@lakebase/api';
import { must } from '@lakebase/base';
import { Cluster, eventually, processes } from '@lakebase/testkit';
import pg from 'pg';
import { Ledger } from './ledger.ts';

type Json = Record<string, any>; // oxlint-disable-line no-explicit-any -- answers are read freely in tests

/** A Manager with an empty directory makes a cluster first; on a busy machine that takes a while. */
const START_MS = 240_000;

describe('the Manager loses its catalog', () => {
  let cluster: Cluster;
  let ledger: Ledger;
  let directory: string;
  before(async () => {
    cluster = await Cluster.start();
    directory = join(cluster.home, 'data', 'manager');
    ledger = new Ledger(cluster);
    await ledger.create();
  });
  after(() => cluster[Symbol.asyncDispose]());

  const cli = (...args: string[]): Promise<string> => cluster.lakebase(...args);
  const json = <T>(...args: string[]): Promise<T> => cluster.lakebaseJson<T>(...args);

  async function call(method: string, path: string, body?: unknown): Promise<{ status: number; body: Json }> {
    const token = readFileSync(join(cluster.home, 'admin-token'), 'utf8').trim();
    const response = await fetch(`http://127.0.0.1:${cluster.httpPort}/api/2.0/postgres/${path}`, {
      method,
      headers: { authorization: `Bearer ${token}`, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return { status: response.status, body: (await response.json()) as Json };
  }
  const healthy = (): Promise<Json> =>
    eventually(
      'the Manager',
      async () => {
        const response = await fetch(`http://127.0.0.1:${cluster.httpPort}/healthz`);
        return response.ok ? ((await response.json()) as Json) : undefined;
      },
      START_MS,
    );
  const copied = (): Promise<Json> =>
    eventually(
      'the copy',
      async () => {
        const health = await healthy();
        return health['catalogCopy'] === 'OK' ? health : undefined;
      },
      START_MS,
    );

  async function login(url: string): Promise<void> {
    const client = new pg.Client({ connectionString: url });
    client.on('error', () => {});
    await client.connect();
    await client.query('SELECT 1');
    await client.end();
  }

  async function metadata<T extends object>(sql: string): Promise<T[]> {
    const secret = readFileSync(join(cluster.home, 'secret'), 'utf8').trim();
    const password = createHmac('sha256', Buffer.from(secret, 'hex')).update('lakebase-metadata-v1').digest('base64url');
    const client = new pg.Client({ host: join(directory, 'run'), port: 5432, user: 'lakebase', password, database: 'postgres' });
    await client.connect();
    try {
      return (await client.query(sql)).rows as T[];
    } finally {
      await client.end();
    }
  }
  const generations = async (): Promise<Map<string, number>> =>
    new Map(
      (await metadata<{ project_uid: string; generation: string }>('SELECT project_uid, generation FROM placements')).map((r) => [
        r.project_uid,
        Number(r.generation),
      ]),
    );

  /** Everything under the Manager's directory goes while it runs, and then the Manager and its Postgres. */
  function loseDisk(): void {
    const postmaster = processes((argv) => /(^|\/)postgres$/.test(argv[0] ?? '') && argv.includes('-D')).filter((pid) =>
      cwdOf(pid).startsWith(directory),
    );
    assert.equal(postmaster.length, 1, 'the metadata database');
    rmSync(directory, { recursive: true, force: true });
    for (const pid of postmaster) process.kill(pid, 'SIGKILL');
    cluster.kill('manager');
    rmSync(directory, { recursive: true, force: true });
  }

  it('rm -rf and kill -9 under load: everything acknowledged is there, and no generation goes backwards', async () => {
    await cli('projects', 'create', 'second');
    const secondUrl = (await cli('connection-string', '--project', 'second')).trim();
    const made = await json<Json>('roles', 'create', 'app', '--project', 'second');
    const password = must(/"password":\s*"([^"]+)"/.exec(JSON.stringify(made))?.[1], 'a password');
    const appUrl = new URL(secondUrl);
    appUrl.username = 'app';
    appUrl.password = encodeURIComponent(password);
    await login(secondUrl);
    await login(appUrl.toString());
    const before = await generations();
    assert.ok(
      [...before.values()].every((g) => g > 0),
      JSON.stringify([...before]),
    );

    ledger.start();
    await ledger.progress(20);
    // Changes of the catalog all the while: what was answered must be there afterwards.
    const acknowledged = new Set<string>();
    let changing = true;
    const changes = (async () => {
      for (let i = 0; changing; i++) {
        const id = `r${i}`;
        const body = { spec: { postgres_role: id, auth_method: 'NO_LOGIN' } };
        const answer = await call('POST', `projects/second/branches/production/roles?role_id=${id}`, body).catch(() => undefined);
        if (answer?.status === 200) acknowledged.add(id);
        else await new Promise((r) => setTimeout(r, 50));
      }
    })();
    await eventually('changes', () => (acknowledged.size >= 10 ? true : undefined));
    loseDisk();
    const lostAt = performance.now();
    await copied();
    const backMs = Math.round(performance.now() - lostAt);
    const more = acknowledged.size;
    await eventually('changes go on', () => (acknowledged.size > more ? true : undefined), START_MS);
    changing = false;
    await changes;
    await ledger.progress(20);
    await ledger.stop();

    assert.match(cluster.log('manager'), /THE CATALOG WAS RESTORED/);
    const projects = (await call('GET', 'projects')).body['projects'] as Json[];
    assert.deepEqual(
      projects.map((p) => String(p['name'])).toSorted((a, b) => (a < b ? -1 : 1)),
      ['projects/default', 'projects/second'],
    );
    const roles = ((await call('GET', 'projects/second/branches/production/roles?page_size=500')).body['roles'] as Json[]).map((r) =>
      String(r['name']),
    );
    const missing = [...acknowledged].filter((id) => !roles.some((name) => name.endsWith(`/${id}`)));
    assert.deepEqual(missing, [], 'acknowledged roles');
    for (const [project, generation] of await generations())
      assert.ok(generation >= (before.get(project) ?? 0), `generation of ${project}: ${generation}, was ${before.get(project)}`);
    await login(secondUrl);
    await login(appUrl.toString());
    await ledger.verify();
    await cli('suspend', '--project', 'second');
    await login(appUrl.toString());

    // Nothing is left over: timelines on disks are those of the catalog.
    const known = new Set((await metadata<{ t: string }>('SELECT timeline_id AS t FROM branches')).map((r) => r.t));
    const timelines = join(cluster.home, 'data', 'pageserver', 'timelines');
    for (const project of readdirSync(timelines))
      for (const timeline of readdirSync(join(timelines, project)))
        assert.ok(known.has(timeline) || /^0{32}$/.test(project), `${project}/${timeline}`);
    assert.ok(backMs < START_MS, `${backMs} ms`);
  });

  it('put back from an earlier day: it catches up', async () => {
    const aside = `${directory}.aside`;
    await cluster.stop();
    execFileSync('cp', ['-a', directory, aside]); // with its owners
    await cluster.up();
    await cli('projects', 'create', 'later');
    const url = (await cli('connection-string', '--project', 'later')).trim();
    await login(url);
    const before = await generations();
    await cluster.stop();
    rmSync(directory, { recursive: true });
    renameSync(aside, directory);
    await cluster.up();
    assert.match(cluster.log('manager'), /it has caught up/);
    await login(url);
    for (const [project, generation] of before)
      assert.ok(((await generations()).get(project) ?? 0) >= generation, `generation of ${project}`);
    await ledger.verify();
  });

  it('while the object store is away changes are refused and databases run on; afterwards all is well by itself', async () => {
    const objects = join(cluster.home, 'objects');
    assert.ok(existsSync(objects));
    const token = internalToken(readFileSync(join(cluster.home, 'secret'), 'utf8').trim(), 'service');
    const placements = new PlacementClient('pageserver', { baseUrl: `http://127.0.0.1:${cluster.httpPort}`, token });
    const project = must(
      (await metadata<{ uid: string }>(`SELECT uid FROM projects WHERE project_id = 'second'`))[0],
      'the second project',
    ).uid;
    renameSync(objects, `${objects}.away`);
    writeFileSync(objects, 'a disk that is not mounted');
    try {
      const refused = await call('POST', 'projects?project_id=refused', {});
      assert.equal(refused.status, 503);
      assert.match(JSON.stringify(refused.body), /nothing was changed.*object store/);
      const began = performance.now();
      assert.equal((await call('POST', 'projects?project_id=refused', {})).status, 503);
      assert.ok(performance.now() - began < 2_000, 'the second refusal does not wait');
      assert.equal((await healthy())['catalogCopy'], 'STORE_AWAY');
      await assert.rejects(placements.attach({ projects: [{ project: project as never, seen: 0 }] }), { code: 'UNAVAILABLE' });
      // Reads, log-ins, suspend, wake.
      assert.equal((await call('GET', 'projects')).status, 200);
      await login(cluster.url);
      await ledger.verify();
    } finally {
      rmSync(objects);
      renameSync(`${objects}.away`, objects);
    }
    await copied();
    assert.equal((await call('GET', 'projects/refused')).status, 404);
    await cli('projects', 'create', 'after');
    await login((await cli('connection-string', '--project', 'after')).trim());
  });

  it('another installation does not start over it', async () => {
    await cluster.stop();
    const secret = join(cluster.home, 'secret');
    const good = readFileSync(secret);
    const links = readdirSync(join(cluster.home, 'objects', 'catalog')).length;
    rmSync(directory, { recursive: true });
    writeFileSync(secret, `${'ab'.repeat(32)}\n`, { mode: 0o600 });
    await assert.rejects(cluster.up(), /secret/);
    assert.equal(readdirSync(join(cluster.home, 'objects', 'catalog')).length, links);
    writeFileSync(secret, good, { mode: 0o600 });
    await cluster.up();
    await ledger.verify();
  });
});

function cwdOf(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/cwd`);
  } catch {
    return ''; // ended meanwhile
  }
}
