/** The project's key goes, comes back and changes, under a running pageserver: one project is locked and loses nothing, its neighbour does not
 *  notice. A stock server plays the safekeeper. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { PageserverClient, internalToken, timelineScope } from '@lakebase/api';
import { isCode, silentLogger } from '@lakebase/base';
import { type Lsn, parseLsn, parseProjectUid } from '@lakebase/ids';
import { LocalKeys } from '@lakebase/keys';
import { readControlFile } from '@lakebase/pg-format';
import { StockPostgres, eventually, freePort } from '@lakebase/testkit';
import pg from 'pg';
import { startPageserver } from './server.ts';
import { TEMPLATE_ID } from './template.ts';
import { PROJECT, PageClient, SECRET, TIMELINE, put, tarBytes } from './testing-client.ts';
import { testConfig } from './testing.ts';

const NEIGHBOUR = parseProjectUid('7'.repeat(32));
const TOKEN = internalToken(SECRET, timelineScope(PROJECT, TIMELINE));
const MARKER = 'marker-of-a-customer-';

/** Whole files below `directory`. */
function filesBelow(directory: string): Map<string, Buffer> {
  const found = new Map<string, Buffer>();
  for (const entry of readdirSync(directory, { withFileTypes: true, recursive: true }))
    if (entry.isFile()) found.set(join(entry.parentPath, entry.name), readFileSync(join(entry.parentPath, entry.name)));
  return found;
}

test('lock, unlock, start while locked, rotation', { timeout: 180_000 }, async () => {
  await using stock = StockPostgres.create({
    settings: {
      wal_keep_size: '1GB',
      fsync: 'off',
      autovacuum: 'off',
      listen_addresses: '127.0.0.1',
      password_encryption: 'scram-sha-256',
    },
  });
  writeFileSync(join(stock.pgdata, 'pg_hba.conf'), 'local all all trust\nhost replication pageserver 127.0.0.1/32 scram-sha-256\n');
  const pgPort = await freePort();
  const directory = mkdtempSync(join(tmpdir(), 'lb-psk-'));
  const config = testConfig(directory, { waitLsnTimeoutMs: 10_000 });
  const source = new LocalKeys();
  const retired: string[] = [];
  const keys = { source, retire: async (project: string, below: number) => void retired.push(`${project} ${below}`), client: undefined };
  const start = () => startPageserver(config, SECRET, silentLogger, keys);
  let server = await start();
  const client = (): PageserverClient =>
    new PageserverClient({ baseUrl: `http://127.0.0.1:${server.httpPort}`, token: internalToken(SECRET, 'service') });
  const state = async (): Promise<string> => (await client().status(PROJECT, TIMELINE)).state;
  const revoked = (e: unknown): boolean => isCode(e, 'KEY_REVOKED');
  try {
    assert.equal((await put(server.httpPort, '/v1/templates/18', await tarBytes(stock.pgdata), 'application/x-tar')).status, 200);
    const systemId = String(readControlFile(readFileSync(join(stock.pgdata, 'global/pg_control'))).systemId);
    const safekeepers = [{ id: 'sk1', httpUrl: 'http://x', pgHost: '127.0.0.1', pgPort }];
    await client().create(PROJECT, TIMELINE, { pgVersion: 18, systemId, safekeepers });
    await client().create(NEIGHBOUR, TIMELINE, { pgVersion: 18, systemId, safekeepers: [] });
    stock.configure({ port: String(pgPort) });
    await stock.start();
    await using sql = new (class extends pg.Client {
      [Symbol.asyncDispose] = () => this.end();
    })({ ...stock.clientConfig, port: pgPort });
    await sql.connect();
    await sql.query(`create role pageserver replication login password '${internalToken(SECRET, 'service')}'`);
    await sql.query('create table t (id int primary key, v text)');
    let rows = 0;
    const grow = async (): Promise<Lsn> => {
      await sql.query(`insert into t select i, '${MARKER}' || i from generate_series(${rows + 1}, ${(rows += 2000)}) i`);
      return parseLsn(((await sql.query('select pg_current_wal_flush_lsn()::text lsn')).rows[0] as { lsn: string }).lsn);
    };
    let lsn = await grow();
    const {
      rows: [{ f, db }],
    } = (await sql.query(
      "select pg_relation_filenode('t')::int f, (select oid::int from pg_database where datname = 'postgres') db",
    )) as unknown as {
      rows: [{ f: number; db: number }];
    };
    const tag = { spc: 1663, db, rel: f, fork: 0 };
    const content = async (pages: PageClient): Promise<number> => {
      const all = await pages.pages(tag, 0, 128, lsn);
      return Buffer.concat(all).toString('latin1').split(MARKER).length - 1;
    };
    const open = () => PageClient.open(server.pagePort, TOKEN);
    let pages = await open();
    assert.equal(await content(pages), rows);
    await client().checkpoint(PROJECT, TIMELINE);
    lsn = await grow();
    assert.equal(await content(pages), rows, 'from layers and memory');
    for (const [name, bytes] of filesBelow(directory)) assert.equal(bytes.indexOf(MARKER), -1, name);

    // The neighbour's connection lives through all of it.
    const beside = await PageClient.open(server.pagePort, internalToken(SECRET, 'service'), TIMELINE, NEIGHBOUR);
    const catalog = { spc: 1663, db, rel: 1259, fork: 0 };
    const before = await beside.pages(catalog, 0, 4);
    assert.ok(before.length > 0);

    // Lock.
    const waiting = pages.pages(tag, 0, 1, (lsn + 2 ** 30) as Lsn).catch((error: unknown) => error);
    source.revoke(PROJECT);
    await pages.closed;
    void waiting;
    await assert.rejects(open(), revoked);
    assert.equal(await state(), 'LOCKED');
    await assert.rejects(client().checkpoint(PROJECT, TIMELINE), revoked);
    await assert.rejects(client().create(PROJECT, TIMELINE, { pgVersion: 18, systemId, safekeepers }), revoked);
    assert.deepEqual(await beside.pages(catalog, 0, 4), before);
    lsn = await grow(); // what was committed while it was locked
    source.restore(PROJECT);
    await eventually('the timeline is back', async () => ((await state()) === 'ACTIVE' ? true : undefined));
    pages = await open();
    assert.equal(await content(pages), rows);

    // Again and again, also in the middle of an attachment.
    for (let i = 0; i < 5; i++) {
      source.revoke(PROJECT);
      source.restore(PROJECT);
      if (i % 2 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await eventually('the timeline is back', async () => ((await state()) === 'ACTIVE' ? true : undefined));
    pages = await open();
    assert.equal(await content(pages), rows);

    // A start while it is locked.
    source.revoke(PROJECT);
    await server.close();
    lsn = await grow();
    server = await start();
    assert.equal(await state(), 'LOCKED');
    assert.equal((await client().status(NEIGHBOUR, TIMELINE)).state, 'ACTIVE');
    source.restore(PROJECT);
    await eventually('the timeline is back', async () => ((await state()) === 'ACTIVE' ? true : undefined));
    pages = await open();
    assert.equal(await content(pages), rows);

    // Another KEK: only the index is written, and then the old one is not needed.
    await client().checkpoint(PROJECT, TIMELINE);
    const onDisk = filesBelow(join(directory, 'timelines', PROJECT));
    source.rotate(PROJECT);
    source.rotate(TEMPLATE_ID);
    await eventually('nothing of the old KEK is left', () =>
      retired.includes(`${PROJECT} 2`) && retired.includes(`${TEMPLATE_ID} 2`) ? true : undefined,
    );
    source.destroy(PROJECT, 2);
    source.destroy(TEMPLATE_ID, 2);
    for (const [name, bytes] of filesBelow(join(directory, 'timelines', PROJECT)))
      assert.equal(bytes.equals(onDisk.get(name) as Buffer), !name.endsWith('/index'), name);
    lsn = await grow();
    assert.equal(await content(pages), rows, 'clients noticed nothing');
    await server.close();
    server = await start();
    pages = await open();
    assert.equal(await content(pages), rows);
    await client().create(parseProjectUid('8'.repeat(32)), TIMELINE, { pgVersion: 18, systemId, safekeepers: [] });

    // An interrupted rotation goes on at the next start.
    source.rotate(PROJECT);
    await server.close();
    server = await start();
    await eventually('the rotation is done', () => (retired.includes(`${PROJECT} 3`) ? true : undefined));
    source.destroy(PROJECT, 3);
    await server.close();
    server = await start();
    pages = await open();
    assert.equal(await content(pages), rows);
  } finally {
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  }
});
