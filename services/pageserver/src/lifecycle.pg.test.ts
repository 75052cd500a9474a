/** Timelines between disk, memory and the object store: a lost disk, idle timelines, a project on two pageservers, crashes at every step of an upload.
 *  A stock server plays the safekeeper; the Manager's part is played in memory. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { NO_INDEX, PageserverClient, internalToken, timelineScope } from '@lakebase/api';
import { isCode, must, silentLogger, sleep } from '@lakebase/base';
import { type Lsn, type ProjectUid, type TimelineId, parseLsn, parseTimelineId } from '@lakebase/ids';
import { layerBytesOf } from '@lakebase/layers';
import { DirectoryStore, type ObjectStore, indexObject, timelinePrefix } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import { readControlFile } from '@lakebase/pg-format';
import { StockPostgres, freePort } from '@lakebase/testkit';
import pg from 'pg';
import type { PageserverConfig } from './config.ts';
import { type Pageserver, startPageserver } from './server.ts';
import { PROJECT, PageClient, SECRET, TIMELINE, put, tarBytes } from './testing-client.ts';
import { FakePlacements } from './testing-placements.ts';
import { testConfig, testServiceKeys } from './testing.ts';

const TOKEN = internalToken(SECRET, timelineScope(PROJECT, TIMELINE));
const QUICK: Partial<PageserverConfig> = { validateMs: 50, uploadMs: 50, waitLsnTimeoutMs: 5_000, detachAfterMs: 3_600_000 };

/** Without a printed difference of megabytes. */
const same = (a: Buffer, b: Buffer): void => assert.ok(a.equals(b), 'the pages are others');

const filesBelow = (path: string): Set<string> => new Set(readdirSync(path, { recursive: true, encoding: 'utf8' }));

/** For states that have no event. What it throws meanwhile is no answer. */
async function until(reached: () => boolean, ms = 10_000): Promise<void> {
  for (const deadline = performance.now() + ms; ; await sleep(20)) {
    try {
      if (reached()) return;
    } catch (error) {
      if (performance.now() > deadline) throw error;
    }
    assert.ok(performance.now() < deadline, 'not in time');
  }
}

describe('life of a timeline', () => {
  let stock: StockPostgres;
  let sql: pg.Client;
  let tar: Buffer;
  let systemId: string;
  let peer: { id: string; httpUrl: string; pgHost: string; pgPort: number };
  let directory: string;
  let store: MemoryStore;
  let placements: FakePlacements;
  const servers = new Set<Pageserver>();

  before(async () => {
    stock = StockPostgres.create({
      settings: {
        wal_keep_size: '1GB',
        fsync: 'off',
        autovacuum: 'off',
        listen_addresses: '127.0.0.1',
        password_encryption: 'scram-sha-256',
      },
    });
    writeFileSync(join(stock.pgdata, 'pg_hba.conf'), 'local all all trust\nhost replication pageserver 127.0.0.1/32 scram-sha-256\n');
    tar = await tarBytes(stock.pgdata);
    systemId = String(readControlFile(readFileSync(join(stock.pgdata, 'global/pg_control'))).systemId);
    const pgPort = await freePort();
    peer = { id: 'sk1', httpUrl: 'http://x', pgHost: '127.0.0.1', pgPort };
    stock.configure({ port: String(pgPort) });
    await stock.start();
    sql = new pg.Client({ ...stock.clientConfig, port: pgPort });
    await sql.connect();
    await sql.query(`create role pageserver replication login password '${internalToken(SECRET, 'service')}'`);
    await sql.query('create table t (id int primary key, v text)');
  });
  after(async () => {
    // Also when the set-up failed half-way: what goes on running keeps this file from ending.
    await (sql as pg.Client | undefined)?.end();
    await (stock as StockPostgres | undefined)?.[Symbol.asyncDispose]();
  });

  async function fresh(): Promise<void> {
    directory = mkdtempSync(join(tmpdir(), 'lb-psl-'));
    store = new MemoryStore();
    placements = new FakePlacements();
    placements.safekeepers = [peer];
    placements.add(PROJECT, [TIMELINE], 'ps');
  }
  async function clean(): Promise<void> {
    for (const server of servers) await server.close();
    servers.clear();
    rmSync(directory, { recursive: true, force: true });
  }
  async function start(id = 'ps', overrides: Partial<PageserverConfig> = {}, objects: ObjectStore = store): Promise<Pageserver> {
    const config = testConfig(join(directory, id), { id, ...QUICK, ...overrides });
    const server = await startPageserver(config, SECRET, silentLogger, testServiceKeys, { store: objects, calls: placements.of(id) });
    servers.add(server);
    return server;
  }
  async function stop(server: Pageserver): Promise<void> {
    servers.delete(server);
    await server.close();
  }
  const client = (server: Pageserver): PageserverClient =>
    new PageserverClient({ baseUrl: `http://127.0.0.1:${server.httpPort}`, token: internalToken(SECRET, 'service') });
  async function create(server: Pageserver): Promise<void> {
    assert.equal((await put(server.httpPort, '/v1/templates/18', tar, 'application/x-tar')).status, 200);
    await client(server).create(PROJECT, TIMELINE, { pgVersion: 18, systemId, safekeepers: [peer] });
  }
  /** Rows, and where their pages are. */
  async function write(rows: number): Promise<{ lsn: Lsn; tag: { spc: number; db: number; rel: number; fork: number }; blocks: number }> {
    await sql.query('insert into t select (select coalesce(max(id), 0) from t) + g, $1 from generate_series(1, $2) g', [
      'x'.repeat(100),
      rows,
    ]);
    const { rows: found } = await sql.query(
      "select pg_current_wal_flush_lsn()::text lsn, pg_relation_filenode('t')::int f, (select oid::int from pg_database where datname = 'postgres') db, pg_relation_size('t')::int / 8192 blocks",
    );
    const { lsn, f, db, blocks } = found[0] as { lsn: string; f: number; db: number; blocks: number };
    assert.ok(blocks > 0);
    return { lsn: parseLsn(lsn), tag: { spc: 1663, db, rel: f, fork: 0 }, blocks };
  }
  /** As a compute: what ends because the timeline is attached anew is asked again. */
  async function pagesOf(server: Pageserver, at: Awaited<ReturnType<typeof write>>): Promise<Buffer> {
    for (const deadline = performance.now() + 10_000; ; await sleep(20)) {
      try {
        return await pagesOnce(server, at);
      } catch (error) {
        if (!isCode(error, 'UNAVAILABLE') || performance.now() > deadline) throw error;
      }
    }
  }
  async function pagesOnce(server: Pageserver, at: Awaited<ReturnType<typeof write>>): Promise<Buffer> {
    const pages = await PageClient.open(server.pagePort, TOKEN);
    try {
      const all: Buffer[] = [];
      for (let b = 0; b < at.blocks; b += 64) all.push(...(await pages.pages(at.tag, b, Math.min(64, at.blocks - b), at.lsn)));
      assert.equal(all.length, at.blocks);
      return Buffer.concat(all);
    } finally {
      pages.socket.destroy();
      await pages.closed;
    }
  }
  const uploaded = async (server: Pageserver): Promise<void> => {
    await client(server).checkpoint(PROJECT, TIMELINE);
    await server.store.moves.upload(PROJECT);
  };

  test('F13: a lost disk comes back from the object store and the WAL, also while nobody has told the pageserver anything', async () => {
    await fresh();
    try {
      let server = await start();
      await create(server);
      assert.ok(store.objects.has(indexObject(PROJECT, TIMELINE, 1)), 'a new timeline is in the store when its creation is answered');
      const first = await write(5_000);
      await pagesOf(server, first);
      await uploaded(server);
      const second = await write(2_000);
      const before = await pagesOf(server, second);
      await stop(server);
      rmSync(join(directory, 'ps'), { recursive: true, force: true });
      server = await start();
      assert.equal([...server.store.attached()].length, 0);
      const began = performance.now();
      same(await pagesOf(server, second), before);
      console.log(`readable ${(performance.now() - began).toFixed(0)} ms after the first question, ${store.calls.list} lists`);
      // And the creation that the Manager may repeat makes no empty one in its place.
      const status = await client(server).create(PROJECT, TIMELINE, { pgVersion: 18, systemId, safekeepers: [peer] });
      assert.ok(parseLsn(status.lastRecordLsn) >= second.lsn);
      await assert.rejects(
        PageClient.open(server.pagePort, internalToken(SECRET, 'service'), parseTimelineId('9'.repeat(32))),
        (e: unknown) => isCode(e, 'NOT_FOUND'),
      );
    } finally {
      await clean();
    }
  });

  test('a recovery of the WAL that is given up is undone; after one that was made its older lineages are over', async () => {
    await fresh();
    try {
      const server = await start();
      await create(server);
      const body = { pgVersion: 18, systemId, safekeepers: [] };
      const lineage = async (number: number, start?: string): Promise<number | undefined> => {
        const more = start === undefined ? {} : { walLineageStart: start };
        return (await client(server).create(PROJECT, TIMELINE, { ...body, walLineage: number, ...more })).walLineage;
      };
      assert.equal(await lineage(3), 3);
      assert.equal(await lineage(0), 0);
      assert.equal(await lineage(4), 4);
      const { lastRecordLsn } = await client(server).status(PROJECT, TIMELINE);
      assert.equal(await lineage(4, lastRecordLsn), 4);
      // Of a Manager that has not heard of it.
      for (const late of [0, 3]) await assert.rejects(lineage(late), (e: unknown) => isCode(e, 'CONFLICT'));
      assert.equal(await lineage(9), 9);
      assert.equal(await lineage(4, lastRecordLsn), 4);
      await stop(server);
      const again = await start();
      await assert.rejects(client(again).create(PROJECT, TIMELINE, { ...body, walLineage: 0 }), (e: unknown) => isCode(e, 'CONFLICT'));
      assert.equal((await client(again).status(PROJECT, TIMELINE)).walLineage, 4);
    } finally {
      await clean();
    }
  });

  test('without the Manager what is on disk is served and ingested; uploads wait', async () => {
    await fresh();
    try {
      let server = await start();
      await create(server);
      const first = await write(1_000);
      await pagesOf(server, first);
      await stop(server);
      placements.down = true;
      server = await start();
      const puts = store.calls.put;
      const second = await write(1_000);
      await pagesOf(server, second);
      await client(server).checkpoint(PROJECT, TIMELINE);
      assert.equal(store.calls.put, puts);
      placements.down = false;
      await server.store.moves.upload(PROJECT);
      assert.ok(store.objects.has(indexObject(PROJECT, TIMELINE, 2)));
      assert.ok(!store.objects.has(indexObject(PROJECT, TIMELINE, 1)));
    } finally {
      await clean();
    }
  });

  test('an idle timeline leaves memory, is not attached by a start, and is there when asked', async () => {
    await fresh();
    try {
      let server = await start('ps', { detachAfterMs: 300 });
      await create(server);
      const at = await write(1_000);
      const before = await pagesOf(server, at);
      await until(() => server.store.idle === 1);
      assert.equal([...server.store.attached()].length, 0);
      same(await pagesOf(server, at), before);
      await until(() => server.store.idle === 1);
      await stop(server);
      server = await start('ps', { detachAfterMs: 3_600_000 });
      assert.equal([...server.store.attached()].length, 0);
      assert.equal(server.store.idle, 1);
      const later = await write(1_000);
      assert.equal((await pagesOf(server, later)).length, later.blocks * 8192);
      assert.equal((await client(server).status(PROJECT, TIMELINE)).state, 'ACTIVE');
      await stop(server);
      // Attached again: a start takes it up by itself.
      server = await start();
      assert.equal([...server.store.attached()].length, 1);
      // A held connection keeps it.
      const pages = await PageClient.open(server.pagePort, TOKEN);
      pages.socket.destroy();
      await client(server).remove(PROJECT, TIMELINE);
      assert.deepEqual(
        [...store.objects.keys()].filter((k) => k.startsWith(timelinePrefix(PROJECT, TIMELINE))),
        [],
      );
    } finally {
      await clean();
    }
  });

  test('a thousand idle timelines cost a start next to nothing, and each is there when asked', async () => {
    await fresh();
    try {
      let server = await start('ps', { detachAfterMs: 200 });
      await create(server);
      const at = await write(100);
      const before = await pagesOf(server, at);
      await until(() => server.store.idle === 1);
      await stop(server);
      const count = Number(process.env['LAKEBASE_IDLE_TIMELINES'] ?? 1_000);
      const project = join(directory, 'ps', 'timelines', PROJECT);
      // Their layers are in the object store only, and they are of another identity than their directories say: a start that opened one would say so.
      for (let i = 1; i < count; i++)
        for (const file of ['index', 'idle'])
          cpSync(join(project, TIMELINE, file), join(project, i.toString(16).padStart(32, '0'), file), { recursive: true });
      const rss = process.memoryUsage().rss;
      const began = performance.now();
      server = await start();
      const ms = performance.now() - began;
      console.log(
        `${count} idle timelines: started in ${ms.toFixed(0)} ms, ${((process.memoryUsage().rss - rss) / 1e6).toFixed(0)} MB more memory`,
      );
      assert.equal(server.store.idle, count);
      assert.equal(server.store.damaged, 0);
      assert.equal([...server.store.attached()].length, 0);
      same(await pagesOf(server, at), before);
      assert.equal([...server.store.attached()].length, 1);
    } finally {
      await clean();
    }
  });

  test('the Manager is told how large a timeline is, and whoever asks how large the disk is', async () => {
    await fresh();
    try {
      const server = await start();
      await create(server);
      const { storage } = server.store.get(PROJECT, TIMELINE);
      const told = (): number | undefined => placements.sizes.get(TIMELINE)?.layerBytes;
      await until(() => told() === layerBytesOf(storage.index));
      const empty = layerBytesOf(storage.index);
      const relations = placements.sizes.get(TIMELINE)?.logicalBytes ?? 0;
      assert.ok(empty > 0 && relations > empty);
      await pagesOf(server, await write(3_000));
      await client(server).checkpoint(PROJECT, TIMELINE);
      await until(() => told() === layerBytesOf(storage.index));
      assert.ok(layerBytesOf(storage.index) > empty);
      assert.ok((placements.sizes.get(TIMELINE)?.logicalBytes ?? 0) > relations);
      await server.store.disk.check();
      const { disk } = await client(server).health(5_000);
      assert.ok(disk !== undefined && disk.capacityBytes >= server.store.disk.free && !disk.full);
    } finally {
      await clean();
    }
  });

  test('a project moves to another pageserver and back; the old one answers FENCED and keeps nothing', async () => {
    await fresh();
    try {
      const a = await start('ps');
      const b = await start('other');
      await create(a);
      const first = await write(3_000);
      let before = await pagesOf(a, first);
      const project = must(placements.projects.get(PROJECT), 'the project');
      const move = async (from: Pageserver, to: Pageserver, id: string): Promise<void> => {
        await client(from).upload(PROJECT, 10_000);
        project.owner = id;
        project.generation++;
        const published = project.timelines.get(TIMELINE) ?? NO_INDEX;
        const timelines = [{ timeline: TIMELINE as TimelineId, published, safekeepers: [peer], active: true }];
        let { lagBytes } = await client(to).takeOver({ project: PROJECT as ProjectUid, generation: project.generation, timelines }, 10_000);
        // Both read until the new one serves.
        same(await pagesOf(from, first), before);
        for (const deadline = performance.now() + 10_000; lagBytes === null || lagBytes > 0; ) {
          assert.ok(performance.now() < deadline, `still ${lagBytes} bytes behind`);
          await sleep(10);
          ({ lagBytes } = await client(to).readiness(PROJECT));
        }
        project.serving = id;
        await client(from).letGo(PROJECT);
      };
      await move(a, b, 'other');
      same(await pagesOf(b, first), before);
      await assert.rejects(PageClient.open(a.pagePort, TOKEN), (e: unknown) => isCode(e, 'FENCED'));
      assert.ok(!existsSync(join(directory, 'ps', 'timelines', PROJECT, TIMELINE)));
      const second = await write(1_000);
      const all = await pagesOf(b, second);
      before = await pagesOf(b, first);
      await move(b, a, 'ps');
      same(await pagesOf(a, second), all);
      await assert.rejects(PageClient.open(b.pagePort, TOKEN), (e: unknown) => isCode(e, 'FENCED'));
      assert.deepEqual(readdirSync(join(directory, 'other', 'timelines', PROJECT)), []);
    } finally {
      await clean();
    }
  });

  test('a disk that was put back to an earlier state is replaced by what the store has', async () => {
    await fresh();
    try {
      let server = await start();
      await create(server);
      await write(1_000);
      await uploaded(server);
      await stop(server);
      cpSync(join(directory, 'ps'), join(directory, 'backup'), { recursive: true });
      server = await start();
      const later = await write(3_000);
      const before = await pagesOf(server, later);
      await uploaded(server);
      await server.store.get(PROJECT, TIMELINE).storage.compact();
      await uploaded(server);
      await stop(server);
      rmSync(join(directory, 'ps'), { recursive: true, force: true });
      cpSync(join(directory, 'backup'), join(directory, 'ps'), { recursive: true });
      server = await start();
      same(await pagesOf(server, later), before);
      await server.store.moves.upload(PROJECT).catch(() => {});
      await until(() => (server.store.get(PROJECT, TIMELINE).storage.index.remote?.generation ?? 0) >= 2);
      same(await pagesOf(server, later), before);
    } finally {
      await clean();
    }
  });

  test('a store that was put back to an earlier state is not served from after a loss of the disk, until the right one is back or an operator accepts it', async () => {
    await fresh();
    try {
      const [objects, older, newer] = ['objects', 'older', 'newer'].map((name) => join(directory, name)) as [string, string, string];
      const startThere = (): Promise<Pageserver> => start('ps', {}, new DirectoryStore(objects));
      const becomes = (state: string): void => {
        rmSync(objects, { recursive: true });
        cpSync(state, objects, { recursive: true });
      };
      const loseDisk = (): void => rmSync(join(directory, 'ps'), { recursive: true });
      const known = () => must(placements.projects.get(PROJECT)?.timelines.get(TIMELINE), 'its newest index');
      const putBack = (e: unknown): boolean => isCode(e, 'CONFLICT') && /put back to an earlier state.*accept-older-store/.test(e.message);
      let server = await startThere();
      await create(server);
      await write(1_000);
      await uploaded(server);
      cpSync(objects, older, { recursive: true });
      const first = known();
      const at = await write(1_000);
      const before = await pagesOf(server, at);
      await uploaded(server);
      // One process: it is the version that tells.
      assert.ok(known().generation === first.generation && known().version > first.version);
      await stop(server);
      cpSync(objects, newer, { recursive: true });

      becomes(older);
      loseDisk();
      server = await startThere();
      await assert.rejects(pagesOf(server, at), putBack);
      await assert.rejects(client(server).create(PROJECT, TIMELINE, { pgVersion: 18, systemId, safekeepers: [peer] }), putBack);
      assert.deepEqual(filesBelow(objects), filesBelow(older));
      assert.ok(!existsSync(join(directory, 'ps', 'timelines', PROJECT, TIMELINE)));
      becomes(newer);
      same(await pagesOf(server, at), before);
      await stop(server);

      // The same with an empty one, of which nothing can be accepted.
      rmSync(objects, { recursive: true });
      loseDisk();
      server = await startThere();
      await assert.rejects(pagesOf(server, at), putBack);
      await stop(server);

      cpSync(older, objects, { recursive: true });
      server = await startThere();
      await assert.rejects(pagesOf(server, at), putBack);
      placements.projects.get(PROJECT)?.timelines.set(TIMELINE, { generation: 1, version: 0 });
      // The WAL behind it is still there.
      same(await pagesOf(server, at), before);
      const later = await write(1_000);
      const all = await pagesOf(server, later);
      await uploaded(server);
      assert.ok(known().generation > first.generation);
      await stop(server);
      loseDisk();
      server = await startThere();
      same(await pagesOf(server, later), all);
    } finally {
      await clean();
    }
  });

  test('a timeline that is on the disk outlives a store that was put back: what that lacks is put again', async () => {
    await fresh();
    try {
      const [objects, older] = ['objects', 'older'].map((name) => join(directory, name)) as [string, string];
      let server = await start('ps', {}, new DirectoryStore(objects));
      await create(server);
      await write(1_000);
      await uploaded(server);
      cpSync(objects, older, { recursive: true });
      await write(1_000);
      await uploaded(server);
      await stop(server);
      rmSync(objects, { recursive: true });
      cpSync(older, objects, { recursive: true });
      server = await start('ps', {}, new DirectoryStore(objects));
      const at = await write(1_000);
      const before = await pagesOf(server, at);
      await uploaded(server);
      await stop(server);
      rmSync(join(directory, 'ps'), { recursive: true });
      server = await start('ps', {}, new DirectoryStore(objects));
      same(await pagesOf(server, at), before);
    } finally {
      await clean();
    }
  });
});
