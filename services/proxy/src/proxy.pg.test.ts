/** The proxy with a real Postgres behind it and a Manager from memory: what clients see. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { after, before, beforeEach, describe, it } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import pg from 'pg';
import postgres from 'postgres';
import type { ProxyServer } from './proxy-server.ts';
import { FakeManager, TestPostgres, proxyConfig, startProxy, temporaryDirectory } from './test-harness.ts';

const server = new TestPostgres();
const manager = new FakeManager();
const dataDir = temporaryDirectory();
let proxy: ProxyServer;

before(async () => {
  await server.init();
  manager.addEndpoint('ep-one');
  manager.addEndpoint('ep-off', { disabled: true });
  manager.defaultEndpoint = 'ep-one';
  await manager.addRole('alice', 'wonder land');
  await manager.addRole('tok', null);
  await manager.addRole('nologin', 'x', false);
  manager.tokens.set('good-token', { valid: true, reason: null });
  await manager.start();
  proxy = await startProxy(proxyConfig(manager.url, dataDir));
});
after(async () => {
  await proxy?.stop();
  await manager.stop();
  await server.remove();
  rmSync(dataDir, { recursive: true, force: true });
});
beforeEach(() => {
  manager.onWake = async () => ({ socketDir: server.dir, port: server.port });
});

const options = (more: pg.ClientConfig = {}): pg.ClientConfig => ({
  host: '127.0.0.1',
  port: proxy.port,
  user: 'alice',
  password: 'wonder land',
  database: 'app',
  ...more,
});
async function client(more: pg.ClientConfig = {}): Promise<pg.Client> {
  const c = new pg.Client(options(more));
  c.on('error', () => {});
  await c.connect();
  return c;
}
const rejected =
  (sqlstate: string, text?: RegExp) =>
  (error: unknown): boolean => {
    assert.equal((error as { code?: string }).code, sqlstate, String(error));
    if (text !== undefined) assert.match((error as Error).message, text);
    return true;
  };

describe('clients', () => {
  it('node-postgres: queries, parameters, errors, notices, transactions', async () => {
    const c = await client({ application_name: 'tea party', options: '-c work_mem=5MB -c endpoint=ep-one' });
    const r = await c.query('select current_user u, current_database() d, $1::int + 1 n', [41]);
    assert.deepEqual(r.rows, [{ u: 'alice', d: 'app', n: 42 }]);
    assert.equal((await c.query('show application_name')).rows[0].application_name, 'tea party');
    assert.equal((await c.query('show work_mem')).rows[0].work_mem, '5MB');
    await assert.rejects(c.query('select 1/0'), rejected('22012'));
    assert.equal((await c.query("select length(repeat('x', 30000000)) n")).rows[0].n, 30_000_000);
    assert.equal((await c.query("select repeat('x', 3000000) t")).rows[0].t.length, 3_000_000);
    await c.end();
  });

  it('postgres.js: pipelined queries, TLS, COPY both ways', async () => {
    const sql = postgres({ ...options(), username: 'alice', max: 3, ssl: { rejectUnauthorized: false } } as postgres.Options<{}>);
    const rows = await Promise.all(Array.from({ length: 50 }, (_, i) => sql`select ${i}::int as i`));
    assert.deepEqual(
      rows.map((r) => r[0]?.['i']),
      Array.from({ length: 50 }, (_, i) => i),
    );
    await sql`create table tea (n int)`;
    const input = await sql`copy tea from stdin`.writable();
    for (let i = 0; i < 10_000; i++) input.write(`${i}\n`);
    await new Promise<void>((resolve, reject) => input.on('error', reject).on('finish', resolve).end());
    let bytes = 0;
    for await (const chunk of await sql`copy tea to stdout`.readable()) bytes += (chunk as Buffer).length;
    assert.equal(bytes, 48_890);
    await sql.end();
  });

  it('SCRAM-SHA-256-PLUS over TLS', async () => {
    const c = await client({ ssl: { rejectUnauthorized: false }, enableChannelBinding: true } as pg.ClientConfig);
    assert.equal((await c.query('select 1 as one')).rows[0].one, 1);
    await c.end();
  });

  it('cancel reaches the compute, a wrong key does not', async () => {
    const c = await client();
    const slow = c.query('select pg_sleep(30)');
    const other = await client();
    for (;;) {
      const n = (await other.query("select count(*)::int n from pg_stat_activity where query like 'select pg_sleep%' and state='active'"))
        .rows[0].n;
      if (n === 1) break;
    }
    const target = c as unknown as { processID: number; secretKey: number };
    const key = target.secretKey;
    const cancel = (): void =>
      (new pg.Client(options()) as unknown as { cancel(c: unknown, q: unknown): void }).cancel(
        c,
        (c as never)['activeQuery'] ?? (c as never)['_activeQuery'],
      );
    target.secretKey = key ^ 1;
    cancel();
    const stillRunning = await other.query(
      "select count(*)::int n from pg_stat_activity where query like 'select pg_sleep%' and state='active'",
    );
    assert.equal(stillRunning.rows[0].n, 1);
    target.secretKey = key;
    cancel();
    await assert.rejects(slow, rejected('57014'));
    await Promise.all([c.end(), other.end()]);
  });
});

describe('authentication', () => {
  it('refuses a wrong password, an unknown role, an unknown endpoint and a role without login in the same words', async () => {
    const messages = new Set<string>();
    for (const more of [{ password: 'x' }, { user: 'nobody-here' }, { options: 'endpoint=ep-none' }]) {
      await assert.rejects(client(more), (error) => {
        messages.add((error as Error).message.replace(/"[^"]*"/, '"…"'));
        return rejected('28P01')(error);
      });
    }
    assert.equal(messages.size, 1);
    await assert.rejects(client({ user: 'nologin', password: 'x' }), rejected('28000', /not permitted to log in/));
  });

  it('takes a token as password', async () => {
    const c = await client({ user: 'tok', password: 'good-token' });
    assert.equal((await c.query('select current_user u')).rows[0].u, 'tok');
    await c.end();
    await assert.rejects(client({ user: 'tok', password: 'bad-token' }), rejected('28P01'));
  });

  it('a changed password counts at once', async () => {
    await (await client()).end();
    await manager.addRole('alice', 'new');
    await assert.rejects(client(), rejected('28P01'));
    await (await client({ password: 'new' })).end();
    await manager.addRole('alice', 'wonder land');
    await (await client()).end();
  });

  it('passes the compute’s own refusals on', async () => {
    await assert.rejects(client({ database: 'nowhere' }), rejected('3D000'));
    await assert.rejects(client({ options: '-c no_such_setting=1' }), rejected('42704'));
  });

  it('refuses a disabled endpoint after the password only, and physical replication', async () => {
    await assert.rejects(client({ options: 'endpoint=ep-off', password: 'x' }), rejected('28P01'));
    await assert.rejects(client({ options: 'endpoint=ep-off' }), rejected('57P03', /disabled/));
    await assert.rejects(client({ replication: 'true' } as pg.ClientConfig), rejected('0A000'));
  });
});

describe('waking', () => {
  it('holds clients while the compute starts, with one wake for all of them', async () => {
    await server.stop();
    const gate = Promise.withResolvers<void>();
    const asked = Promise.withResolvers<void>();
    manager.calls.wake = 0;
    manager.onWake = async () => {
      asked.resolve();
      await gate.promise;
      await server.start();
      return { socketDir: server.dir, port: server.port };
    };
    const waiting = Promise.all(Array.from({ length: 20 }, () => client()));
    await asked.promise;
    gate.resolve();
    const clients = await waiting;
    assert.equal(manager.calls.wake, 1);
    for (const c of clients) assert.equal((await c.query('select 1 as x')).rows[0].x, 1);
    await Promise.all(clients.map((c) => c.end()));
  });

  it('says why a compute does not start', async () => {
    await server.stop();
    for (const [code, sqlstate] of [
      ['UNAVAILABLE', '08006'],
      ['RESOURCE_EXHAUSTED', '53300'],
      ['CONFLICT', '57P03'],
    ] as const) {
      manager.onWake = async () => {
        throw new LakebaseError(code, 'the moon is wrong');
      };
      await assert.rejects(client(), rejected(sqlstate, /the moon is wrong/));
    }
    await server.start();
  });

  it('tells sessions when their compute dies, idle or busy', async () => {
    const idle = await client(),
      busy = await client();
    const told = new Promise<Error>((resolve) => idle.once('error', resolve));
    const sleeping = assert.rejects(busy.query('select pg_sleep(60)'), (e) => /terminat/i.test((e as Error).message));
    const other = await server.connect();
    for (;;) {
      const [r] = await other.query(
        "select 1 from pg_stat_activity where query like 'select pg_sleep%'  and state='active' and pid <> pg_backend_pid()",
      );
      if (r?.rows.length === 1) break;
    }
    other.destroy();
    await server.stop('SIGKILL');
    assert.equal(((await told) as { code?: string }).code, '57P01');
    await sleeping;
    manager.onWake = async () => {
      await server.start();
      return { socketDir: server.dir, port: server.port };
    };
    await (await client()).end();
  });

  it('serves running computes with the Manager down', async () => {
    await (await client()).end();
    await manager.stop();
    const c = await client();
    assert.equal((await c.query('select 1 as x')).rows[0].x, 1);
    await c.end();
    await assert.rejects(client({ password: 'wrong' }), rejected('28P01'));
    // Somebody new waits for the Manager to come back.
    manager.tokens.set('other-token', { valid: true, reason: null });
    const newcomer = client({ user: 'tok', password: 'other-token' });
    await manager.start();
    await (await newcomer).end();
  });
});
