/** The service from outside: HTTP, page service, WAL from a walsender (a stock server plays the safekeeper), restart, suspend state, bad input. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { PageserverClient, decodeStartBundle, encodeBootSet, encodeSuspendState, internalToken, timelineScope } from '@lakebase/api';
import { isCode, silentLogger } from '@lakebase/base';
import { BLCKSZ, type Lsn, MAX_LSN, formatLsn, parseLsn, parseTimelineId } from '@lakebase/ids';
import { readControlFile } from '@lakebase/pg-format';
import { StockPostgres } from '@lakebase/testkit';
import pg from 'pg';
import { startPageserver } from './server.ts';
import { PROJECT, PageClient, SECRET, TIMELINE, put, tarBytes } from './testing-client.ts';
import { testConfig, testServiceKeys } from './testing.ts';

const TOKEN = internalToken(SECRET, timelineScope(PROJECT, TIMELINE));

test('templates, timelines, streaming ingest, reads, restart, suspend state and refusals', { timeout: 120_000 }, async () => {
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
  const { freePort } = await import('@lakebase/testkit');
  const pgPort = await freePort();
  const directory = mkdtempSync(join(tmpdir(), 'lb-pss-'));
  const config = testConfig(directory, { waitLsnTimeoutMs: 2_000 });
  let server = await startPageserver(config, SECRET, silentLogger, testServiceKeys);
  try {
    // Template and timeline.
    const tar = await tarBytes(stock.pgdata);
    const control = readControlFile(readFileSync(join(stock.pgdata, 'global/pg_control')));
    assert.equal((await put(server.httpPort, '/v1/templates/18', tar, 'application/x-tar', 'wrong')).status, 401);
    assert.equal(
      (await put(server.httpPort, '/v1/templates/18', Buffer.from('no tar at all'.repeat(100)), 'application/x-tar')).status,
      400,
    );
    assert.equal((await put(server.httpPort, '/v1/templates/18', tar, 'application/x-tar')).status, 200);
    let client = new PageserverClient({ baseUrl: `http://127.0.0.1:${server.httpPort}`, token: internalToken(SECRET, 'service') });
    const template = await client.template(18);
    await assert.rejects(client.template(17), (e: unknown) => isCode(e, 'NOT_FOUND'));
    const request = {
      pgVersion: 18,
      systemId: String(control.systemId),
      safekeepers: [{ id: 'sk1', httpUrl: 'http://x', pgHost: '127.0.0.1', pgPort }],
    };
    const startedAt = performance.now();
    const created = await client.create(PROJECT, TIMELINE, request);
    console.log(
      `timeline created in ${(performance.now() - startedAt).toFixed(0)} ms, template layer ${(template.layerBytes / 1e6).toFixed(1)} MB`,
    );
    assert.equal(created.startLsn, template.endLsn);
    assert.deepEqual((await client.create(PROJECT, TIMELINE, request)).startLsn, created.startLsn);
    await assert.rejects(client.create(PROJECT, TIMELINE, { ...request, systemId: '5' }), (e: unknown) => isCode(e, 'ALREADY_EXISTS'));

    // WAL by streaming replication; waits by LSN.
    stock.configure({ port: String(pgPort) });
    await stock.start();
    const sql = new pg.Client({ ...stock.clientConfig, port: pgPort });
    await sql.connect();
    await sql.query(`create role pageserver replication login password '${internalToken(SECRET, 'service')}'`);
    await sql.query('create table t (id int primary key, v text)');
    await sql.query("insert into t select i, 'row ' || i from generate_series(1, 5000) i");
    const { rows } = await sql.query(
      "select pg_current_wal_flush_lsn()::text lsn, pg_relation_filenode('t')::int f, (select oid::int from pg_database where datname = 'postgres') db, pg_relation_size('t')::int size",
    );
    const { lsn, f, db, size } = rows[0] as { lsn: string; f: number; db: number; size: number };
    const tag = { spc: 1663, db, rel: f, fork: 0 };
    let pages = await PageClient.open(server.pagePort, TOKEN);
    const all = await pages.pages(tag, 0, 128, parseLsn(lsn));
    assert.equal(all.length * BLCKSZ, size);
    assert.ok(
      all.every((p) => p.readUInt16LE(14) > 0),
      'every page is initialised',
    );
    const sizeFrame = await pages.call({ type: 'getRelSize', tag, lsn: MAX_LSN });
    assert.equal(sizeFrame.payload.readUInt32BE(0) * BLCKSZ, size);
    assert.equal(
      (await pages.call({ type: 'getRelSize', tag: { ...tag, rel: 999_999 }, lsn: MAX_LSN })).payload.readUInt32BE(0),
      0xffff_ffff,
    );
    const pipelined = await Promise.all(Array.from({ length: 200 }, (_, i) => pages.pages(tag, i % all.length, 1)));
    pipelined.forEach((p, i) => assert.ok((p[0] as Buffer).equals(all[i % all.length] as Buffer)));

    // Refusals.
    await assert.rejects(PageClient.open(server.pagePort, 'forged'), (e: unknown) => isCode(e, 'UNAUTHENTICATED'));
    await assert.rejects(
      PageClient.open(server.pagePort, internalToken(SECRET, 'service'), parseTimelineId('9'.repeat(32))),
      (e: unknown) => isCode(e, 'NOT_FOUND'),
    );
    const far = (parseLsn(lsn) + 2 ** 40) as Lsn;
    const waited = performance.now();
    await assert.rejects(pages.pages(tag, 0, 1, far), (e: unknown) => isCode(e, 'TIMEOUT'));
    assert.ok(performance.now() - waited > 1_900);
    // Refused, it neither ends its own side nor says more: the server must not keep the socket for it.
    const connections = async (): Promise<number> => {
      const text = await (await fetch(`http://127.0.0.1:${server.httpPort}/metrics`)).text();
      return Number(/^lakebase_page_connections (\d+)$/m.exec(text)?.[1]);
    };
    const before = await connections();
    const garbage = connect({ port: server.pagePort, host: '127.0.0.1', allowHalfOpen: true });
    const refused = new Promise((resolve) => garbage.on('end', resolve));
    garbage.on('error', () => {});
    garbage.write('GET / HTTP/1.1\r\n\r\n');
    garbage.resume();
    await refused;
    const deadline = performance.now() + 5_000;
    while ((await connections()) > before) assert.ok(performance.now() < deadline, 'the refused connection is still held');
    garbage.destroy();
    pages.socket.write(Buffer.from([0x7f, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0, 1]));
    await pages.closed;

    // Restart: everything is there again, from layers and from the same WAL.
    await client.checkpoint(PROJECT, TIMELINE);
    await sql.query("update t set v = v || '!' where id % 10 = 0");
    await server.close();
    await sql.end();
    await stock.stop();
    const stopped = readControlFile(readFileSync(join(stock.pgdata, 'global/pg_control')));
    await stock.start();
    server = await startPageserver(config, SECRET, silentLogger, testServiceKeys);
    client = new PageserverClient({ baseUrl: `http://127.0.0.1:${server.httpPort}`, token: internalToken(SECRET, 'service') });
    pages = await PageClient.open(server.pagePort, TOKEN);
    const file = readFileSync(join(stock.pgdata, `base/${db}/${f}`));
    await pages.pages(tag, 0, 1, (stopped.checkPoint + 8) as Lsn);
    await stock.stop('SIGQUIT');
    const status = await client.status(PROJECT, TIMELINE);
    const end = parseLsn(status.lastRecordLsn);
    assert.ok(end > stopped.checkPoint, `${status.lastRecordLsn} ${formatLsn(stopped.checkPoint)}`);
    const after = await pages.pages(tag, 0, 128, end);
    assert.equal(after.length * BLCKSZ, file.length);
    after.forEach((p, b) => assert.equal(p.readUInt32LE(4), file.readUInt32LE(b * BLCKSZ + 4), `pd_lsn of block ${b}`));

    // Suspend state and boot set go into the next bundle.
    const kept = Buffer.alloc(BLCKSZ, 9).fill(0, 0, 8);
    const state = {
      lsn: end,
      files: [{ path: 'pg_stat/pgstat.stat', bytes: Buffer.from('stats') }],
      pages: [{ tag: { ...tag, fork: 0 as const }, block: 1, bytes: kept }],
    };
    const base = `/v1/timelines/${PROJECT}/${TIMELINE}`;
    assert.equal(
      (await put(server.httpPort, `${base}/suspend-state`, encodeSuspendState(state), 'application/octet-stream', TOKEN)).status,
      204,
    );
    assert.equal(
      (
        await put(
          server.httpPort,
          `${base}/boot-set`,
          encodeBootSet([{ tag: { ...tag, fork: 0 as const }, block: 1 }]),
          'application/octet-stream',
          TOKEN,
        )
      ).status,
      204,
    );
    assert.equal((await put(server.httpPort, `${base}/boot-set`, Buffer.from('junk'), 'application/octet-stream', TOKEN)).status, 500);
    for (let round = 0; round < 2; round++) {
      const { payload } = await pages.call({ type: 'getStartBundle', lsn: end, waitMs: 1_000 });
      const bundle = decodeStartBundle(payload);
      assert.equal(bundle.cleanSuspend, true);
      assert.ok(bundle.prevRecordLsn >= stopped.checkPoint);
      assert.equal(bundle.files.find((x) => x.path === 'pg_stat/pgstat.stat')?.bytes.toString(), 'stats');
      assert.equal(bundle.bootPages.length, 1);
      assert.ok(bundle.bootPages[0]?.bytes.equals(kept));
      assert.ok((await pages.pages(tag, 1, 1, end))[0]?.equals(kept));
      if (round === 0) {
        await server.close();
        server = await startPageserver(config, SECRET, silentLogger, testServiceKeys);
        pages = await PageClient.open(server.pagePort, TOKEN);
      }
    }

    // A damaged layer is named, and the other timelines' service goes on.
    await server.close();
    const dir = join(directory, 'timelines', PROJECT, TIMELINE);
    const layer = join(dir, readdirSync(dir).find((n) => n.startsWith('image-')) as string);
    const bytes = readFileSync(layer);
    writeFileSync(layer, bytes.subarray(0, bytes.length - 100));
    server = await startPageserver(config, SECRET, silentLogger, testServiceKeys);
    client = new PageserverClient({ baseUrl: `http://127.0.0.1:${server.httpPort}`, token: internalToken(SECRET, 'service') });
    const broken = await client.status(PROJECT, TIMELINE);
    assert.equal(broken.state, 'BROKEN');
    assert.match(broken.error ?? '', /image-.*\.layer/);
    await assert.rejects(PageClient.open(server.pagePort, TOKEN), (e: unknown) => isCode(e, 'CORRUPT'));
    await client.remove(PROJECT, TIMELINE);
    await assert.rejects(client.status(PROJECT, TIMELINE), (e: unknown) => isCode(e, 'NOT_FOUND'));
  } finally {
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  }
});
