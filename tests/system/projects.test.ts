/** Section 6 on the real system: projects, roles, databases and settings asked for through the CLI (which is the API) reach the computes, whether
 *  they run or sleep; projects are apart; a deleted one is gone. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster, eventually } from '@lakebase/testkit';
import pg from 'pg';

describe('projects, roles, databases', () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await Cluster.start();
  });
  after(() => cluster[Symbol.asyncDispose]());

  const cli = (...args: string[]): Promise<string> => cluster.lakebase(...args);
  const json = <T>(...args: string[]): Promise<T> => cluster.lakebaseJson<T>(...args);

  async function connect(url: string): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: url.trim() });
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  it('a second project has its own data, and its own endpoint name in the connection string', async () => {
    await cli('projects', 'create', 'second');
    const one = await connect(await cli('connection-string'));
    const two = await connect(await cli('connection-string', '--project', 'second'));
    await one.query("CREATE TABLE where_am_i AS SELECT 'first' AS name");
    await two.query("CREATE TABLE where_am_i AS SELECT 'second' AS name");
    assert.deepEqual((await one.query('SELECT name FROM where_am_i')).rows, [{ name: 'first' }]);
    assert.deepEqual((await two.query('SELECT name FROM where_am_i')).rows, [{ name: 'second' }]);
    const identifiers = await Promise.all(
      [one, two].map(async (c) => (await c.query<{ s: string }>('SELECT system_identifier AS s FROM pg_control_system()')).rows[0]?.s),
    );
    assert.notEqual(identifiers[0], identifiers[1]);
    await one.end();
    await two.end();
  });

  it('roles and databases made while the compute runs, and while it sleeps', async () => {
    for (const [role, database, asleep] of [
      ['app-one', 'db-one', false],
      ['app-two', 'db-two', true],
    ] as const) {
      if (asleep) await cli('suspend');
      const made = await json<Record<string, unknown>>('roles', 'create', role);
      const password = /"password":\s*"([^"]+)"/.exec(JSON.stringify(made))?.[1];
      assert.ok(password !== undefined, `a password is printed once: ${JSON.stringify(made)}`);
      await cli('databases', 'create', database, '--owner', role);
      const url = new URL((await cli('connection-string')).trim());
      const name = (await json<{ status?: { postgres_role?: string } }>('roles', 'get', role)).status?.postgres_role ?? role;
      url.username = encodeURIComponent(name);
      url.password = encodeURIComponent(password);
      url.pathname = `/${(await json<{ status?: { postgres_database?: string } }>('databases', 'get', database)).status?.postgres_database ?? database}`;
      const client = await eventually('the new role logs in to its database', () => connect(url.toString()));
      await client.query('CREATE TABLE mine (n int)');
      assert.equal((await client.query<{ u: string }>('SELECT current_user AS u')).rows[0]?.u, name);
      await client.end();
    }
  });

  it('a password changed with SQL counts at once, and after a suspend', async () => {
    const url = new URL((await cli('connection-string')).trim());
    const old = url.toString();
    const client = await connect(old);
    await client.query("ALTER ROLE owner PASSWORD 'Changed-by-SQL-2026'");
    await client.end();
    await assert.rejects(connect(old), { code: '28P01' });
    url.password = encodeURIComponent('Changed-by-SQL-2026');
    await (await connect(url.toString())).end();
    await cli('suspend');
    await (await connect(url.toString())).end();
    await cli('roles', 'reset-password', 'owner');
  });

  it('settings reach the compute, and the ones storage depends on are refused', async () => {
    await cli('endpoints', 'update', 'primary', '--set', 'work_mem=7MB');
    await cli('suspend');
    const client = await connect(await cli('connection-string'));
    assert.equal((await client.query<{ work_mem: string }>('SHOW work_mem')).rows[0]?.work_mem, '7MB');
    await client.end();
    const refused = await cluster.cli(['endpoints', 'update', 'primary', '--set', 'fsync=on']);
    assert.notEqual(refused.code, 0);
    assert.match(refused.stderr, /fsync/);
  });

  it('a token from the API is a password, for a role that uses tokens', async () => {
    const token = readFileSync(join(cluster.home, 'admin-token'), 'utf8').trim();
    const api = `http://127.0.0.1:${cluster.httpPort}/api/2.0/postgres`;
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
    const created = await fetch(`${api}/projects/default/branches/production/roles?role_id=by-token`, {
      method: 'POST',
      headers,
      body: JSON.stringify({ spec: { postgres_role: 'by_token', auth_method: 'LAKEBASE_OAUTH_V1' } }),
    });
    assert.equal(created.status, 200, await created.clone().text());
    const credential = (await (
      await fetch(`${api}/credentials`, {
        method: 'POST',
        headers,
        body: JSON.stringify({ endpoint: 'projects/default/branches/production/endpoints/primary' }),
      })
    ).json()) as { token: string; expire_time: string };
    assert.ok(Date.parse(credential.expire_time) > Date.now());
    const url = new URL((await cli('connection-string')).trim());
    url.username = 'by_token';
    url.password = encodeURIComponent(credential.token);
    const client = await eventually('the token is taken', () => connect(url.toString()));
    await client.end();
    url.password = encodeURIComponent(`${credential.token.slice(0, -2)}xx`);
    await assert.rejects(connect(url.toString()), { code: '28P01' });
  });

  it('a deleted project is gone', async () => {
    const url = await cli('connection-string', '--project', 'second');
    await cli('projects', 'delete', 'second');
    await assert.rejects(connect(url));
    assert.doesNotMatch(await cli('projects', 'list'), /second/);
  });
});
