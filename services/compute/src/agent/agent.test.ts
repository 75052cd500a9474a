import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { MSG, REL_ABSENT, decodeRequest, encodeErrorFrame, encodeFrame } from '@lakebase/api';
import { LakebaseError, silentLogger } from '@lakebase/base';
import { BLCKSZ, type Term, lsn, newProjectUid, newTimelineId } from '@lakebase/ids';
import { listening, servePageFrames } from '../testing/fake-page-service.ts';
import { BootSet } from './boot-set.ts';
import { type RoleRow, catalogStatements } from './catalog.ts';
import { PageClient } from './page-client.ts';
import { PageRelay } from './page-relay.ts';
import { pgIdentConf, postgresqlConf } from './settings.ts';

const tag = { spc: 1663, db: 5, rel: 16384, fork: 0 } as const;

describe('settings', () => {
  const input = {
    major: 18,
    term: 7 as Term,
    socketDir: "/tmp/o'dd",
    rule: { count: 2, names: ['sk1', 'sk2', 'sk3'] },
    generation: 0,
    sharedBuffers: '64MB',
  };
  it('the agent has the last word', () => {
    const conf = postgresqlConf({
      ...input,
      settings: { fsync: 'on', io_method: 'io_uring', work_mem: '8MB', 'bad name; x': '1', statement_timeout: "5s'\nfsync = on" },
    });
    assert.match(conf, /^work_mem = '8MB'$/m);
    assert.doesNotMatch(conf, /io_uring|fsync = 'on'|fsync = on|bad name/);
    assert.match(conf, /^synchronous_standby_names = 'ANY 2 \("sk1","sk2","sk3"\)'$/m);
    assert.match(conf, /^lakebase\.term = '7'$/m);
    assert.match(conf, /'\/tmp\/o''dd'/);
  });
  it('maps accounts once each', () =>
    assert.equal(pgIdentConf(['root', 'nobody', 'root']), 'lakebase "root" all\nlakebase "nobody" all\n'));
});

describe('catalog', () => {
  const have = new Map<string, RoleRow>([
    [
      'owner',
      {
        name: 'owner',
        verifier: 'v1',
        login: true,
        createdb: true,
        createrole: false,
        bypassrls: false,
        member_of: ['databricks_superuser'],
      },
    ],
  ]);
  const owner = { name: 'owner', verifier: 'v1', login: true, createdb: true, memberOf: ['databricks_superuser'] };
  const spec = { roles: [owner], databases: [], droppedRoles: [], droppedDatabases: [] };
  it('has nothing to say when all is as wanted', () => assert.deepEqual(catalogStatements(spec, have, new Map()), []));
  it('creates, alters, grants and drops; names and literals are quoted', () => {
    const out = catalogStatements(
      {
        roles: [
          { ...owner, verifier: "v'2" },
          { name: 'we"ird', verifier: null, login: false },
        ],
        databases: [
          { name: 'app', owner: 'owner' },
          { name: 'old', owner: 'owner' },
        ],
        droppedRoles: ['gone', 'owner'],
        droppedDatabases: ['trash', 'absent'],
      },
      new Map<string, RoleRow>([
        ...have,
        ['gone', { name: 'gone', verifier: null, login: true, createdb: false, createrole: false, bypassrls: false, member_of: [] }],
      ]),
      new Map([
        ['old', 'other'],
        ['trash', 'owner'],
      ]),
    );
    assert.deepEqual(out, [
      `ALTER ROLE "owner" LOGIN CREATEDB NOCREATEROLE NOBYPASSRLS PASSWORD 'v''2'`,
      'CREATE ROLE "we""ird" NOLOGIN NOCREATEDB NOCREATEROLE NOBYPASSRLS',
      'CREATE DATABASE "app" OWNER "owner"',
      'ALTER DATABASE "old" OWNER TO "owner"',
      'DROP DATABASE "trash" WITH (FORCE)',
      'DROP ROLE "gone"',
    ]);
  });
});

describe('boot set', () => {
  it('keeps early short runs, once each', () => {
    const set = new BootSet([{ tag, block: 1 }], 0);
    set.record(tag, 1, 2, 10);
    set.record(tag, 50, 100, 10); // a scan
    set.record(tag, 9, 1, 1e6); // too late
    assert.deepEqual(
      set.blocks().map((b) => b.block),
      [1, 2],
    );
    assert.equal(set.grown, true);
  });
});

/** A page service at the far end of a socket: speaks the real protocol, answers with pages whose first byte is the block number. */
async function fakePageService(
  behave: { dropFirst?: boolean; error?: boolean } = {},
): Promise<{ port: number; close: () => void; connections: () => number }> {
  let connections = 0;
  const server = createServer((socket) => {
    connections++;
    const drop = behave.dropFirst === true && connections === 1;
    servePageFrames(socket, (frame) => {
      if (drop) return void socket.destroy();
      const request = decodeRequest(frame);
      if (request.type === 'getRelSize') {
        const size = Buffer.alloc(request.tag.rel === 1 ? 3 : 4);
        if (size.length === 4) size.writeUInt32BE(request.tag.rel === tag.rel ? request.lsn : REL_ABSENT);
        for (const b of encodeFrame(MSG.REL_SIZE, request.id, size)) socket.write(b);
        return;
      }
      if (behave.error === true || request.type !== 'getPages') {
        for (const b of encodeErrorFrame(request.id, new LakebaseError('NOT_FOUND', 'no such relation'))) socket.write(b);
        return;
      }
      const count = Buffer.alloc(2);
      count.writeUInt16BE(request.count);
      const pages = Buffer.concat(Array.from({ length: request.count }, (_, i) => Buffer.alloc(BLCKSZ, request.block + i)));
      for (const b of encodeFrame(MSG.PAGES, request.id, count, pages)) socket.write(b);
    });
  });
  return { port: await listening(server), close: () => server.close(), connections: () => connections };
}

const client = (port: number): PageClient =>
  new PageClient({
    host: '127.0.0.1',
    port,
    token: 't',
    project: newProjectUid(),
    timeline: newTimelineId(),
    log: silentLogger,
    retryMs: 5_000,
  });

describe('page client and relay', () => {
  it('many requests at once are matched by id; a broken connection is not seen', async () => {
    const service = await fakePageService({ dropFirst: true });
    const pages = client(service.port);
    const got = await Promise.all([1, 2, 3, 4, 5].map((b) => pages.getPages(tag, b, 2, lsn(100))));
    assert.deepEqual(
      got.map((p) => [p.length, p[0], p[BLCKSZ]]),
      [1, 2, 3, 4, 5].map((b) => [2 * BLCKSZ, b, b + 1]),
    );
    assert.equal(service.connections(), 2);
    pages.close();
    service.close();
    await assert.rejects(pages.getPages(tag, 1, 1, lsn(1)), { code: 'CLOSED' });
  });

  it('a relation has a size, none, or the answer is refused', async () => {
    const service = await fakePageService();
    const pages = client(service.port);
    assert.equal(await pages.getRelSize(tag, lsn(77)), 77);
    assert.equal(await pages.getRelSize({ ...tag, rel: 2 }, lsn(77)), undefined);
    await assert.rejects(pages.getRelSize({ ...tag, rel: 1 }, lsn(77)), { code: 'CORRUPT' });
    pages.close();
    service.close();
  });

  it('the relay answers the shim, and an error is an errno for that read only', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'lb-relay-'));
    const good = await fakePageService();
    const pages = client(good.port);
    const faults: number[] = [];
    const asked: number[] = [];
    const relay = new PageRelay({
      socketPath: join(dir, 's'),
      entries: [{ tag, source: tag, segment: 0 }],
      pages,
      lsn: lsn(5),
      log: silentLogger,
      onFault: (_t, block) => faults.push(block),
      added: (index) => {
        asked.push(index);
        return index === 1 ? { tag: { ...tag, rel: 16_400 }, source: { ...tag, rel: 16_400 }, segment: 0 } : undefined;
      },
    });
    await relay.listen();
    const socket = connect(join(dir, 's'));
    const ask = async (
      entry: number,
      block: number,
      count: number,
    ): Promise<{ errno: number; count: number; first: number | undefined }> => {
      const request = Buffer.alloc(32);
      request.writeUInt32LE(0x4c425251, 0);
      request.writeUInt32LE(entry, 4);
      request.writeUInt32LE(block, 8);
      request.writeUInt16LE(count, 12);
      request.writeUInt32LE(77, 16);
      socket.write(request);
      let bytes = Buffer.alloc(0);
      for (;;) {
        const [chunk] = (await once(socket, 'data')) as [Buffer];
        bytes = Buffer.concat([bytes, chunk]);
        if (bytes.length >= 24 && bytes.length === 24 + bytes.readUInt32LE(16) * BLCKSZ) break;
      }
      assert.equal(bytes.readUInt32LE(8), 77);
      return { errno: bytes.readUInt32LE(4), count: bytes.readUInt32LE(16), first: bytes[24] };
    };
    assert.deepEqual(await ask(0, 9, 3), { errno: 0, count: 3, first: 9 });
    assert.deepEqual(await ask(4, 0, 1), { errno: 5, count: 0, first: undefined });
    assert.deepEqual(await ask(0, 0, 129), { errno: 5, count: 0, first: undefined });
    assert.deepEqual(await ask(0, 8, 1), { errno: 0, count: 1, first: 8 });
    // One that came since the start is looked up once.
    for (const block of [3, 20]) assert.deepEqual(await ask(1, block, 1), { errno: 0, count: 1, first: block });
    assert.deepEqual(await ask(2, 0, 1), { errno: 5, count: 0, first: undefined });
    assert.deepEqual(asked, [4, 1, 2]);
    assert.deepEqual(faults, [9, 8, 3, 20]);
    socket.destroy();
    relay.close();
    pages.close();
    good.close();
    rmSync(dir, { recursive: true });
  });
});
