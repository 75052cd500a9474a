/** PgConnection against PgServerSession over a Unix socket: both halves of the protocol, no Postgres needed. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { type Server, type Socket, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import { type Lsn, lsn } from '@lakebase/ids';
import {
  PgConnection,
  PgError,
  type PgServerOptions,
  PgServerSession,
  type StandbyStatus,
  type XLogData,
  buildVerifier,
  textColumn,
} from './index.ts';

let dir = '';
let port = 5000;
const servers: Server[] = [];
const sockets = new Set<Socket>();

before(() => {
  dir = mkdtempSync(join(tmpdir(), 'pgwire-'));
});
after(() => {
  for (const s of servers) s.close();
  for (const s of sockets) s.destroy();
  rmSync(dir, { recursive: true, force: true });
});

/** Starts a server and returns its port; sessions end up in `ended` when over. */
async function listen(options: Partial<PgServerOptions>): Promise<number> {
  const p = port++;
  const server = createServer((socket) => {
    sockets.add(socket);
    void PgServerSession.serve(socket, { authenticate: () => 'trust', onQuery: async () => {}, ...options });
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(`${dir}/.s.PGSQL.${p}`, resolve));
  return p;
}
const connect = (p: number, more: Partial<Parameters<typeof PgConnection.connect>[0]> = {}): Promise<PgConnection> =>
  PgConnection.connect({ host: dir, port: p, user: 'alice', ...more });

describe('queries', () => {
  it('returns rows, errors and empty results, in order', async () => {
    const p = await listen({
      onQuery: async (session, sql) => {
        if (sql === '') return;
        if (sql === 'boom') throw new LakebaseError('NOT_FOUND', 'no such thing');
        session.sendRows([textColumn('sql'), textColumn('nothing')], [[sql, null]]);
      },
    });
    const c = await connect(p);
    assert.equal(c.parameters.get('server_encoding'), 'UTF8');
    const [first, second] = await Promise.all([c.query('select 1'), c.query('ünï')]);
    assert.deepEqual(first[0]?.rows, [['select 1', null]]);
    assert.deepEqual(second[0]?.rows, [['ünï', null]]);
    await assert.rejects(c.query('boom'), (e) => e instanceof PgError && e.sqlstate === '42704' && e.message === 'no such thing');
    assert.deepEqual(await c.query(''), []);
    await c.end();
  });

  it('rejects the waiter when the server dies', async () => {
    const p = await listen({ onQuery: async (session) => void session.socket.destroy() });
    const c = await connect(p);
    await assert.rejects(c.query('x'), { code: 'UNAVAILABLE' });
    await assert.rejects(c.query('y'), { code: 'UNAVAILABLE' });
    assert.ok((await c.closed) instanceof Error);
  });
});

describe('authentication', () => {
  it('accepts any of several passwords and says which', async () => {
    let matched = -1;
    const p = await listen({
      authenticate: () => ({ passwords: ['one', 'zwei', 'drei'] }),
      onQuery: async (session) => {
        matched = session.matched;
      },
    });
    const c = await connect(p, { password: 'zwei' });
    await c.query('x');
    assert.equal(matched, 1);
    await c.end();
    await assert.rejects(connect(p, { password: 'four' }), (e) => e instanceof PgError && e.sqlstate === '28P01');
    await assert.rejects(connect(p), { code: 'UNAUTHENTICATED' });
  });

  it('checks a stored verifier, and refuses an unknown user in the same way', async () => {
    const verifier = await buildVerifier('pässword', { iterations: 1000 });
    const p = await listen({ authenticate: (s) => (s.parameters.get('user') === 'alice' ? { verifier } : 'unknown') });
    await (await connect(p, { password: 'pässword' })).end();
    for (const user of ['alice', 'bob'])
      await assert.rejects(
        connect(p, { user, password: 'wrong' }),
        (e) => e instanceof PgError && e.message === `password authentication failed for user "${user}"`,
      );
  });

  it('gives up when the server says nothing', async () => {
    const p = await listen({ authenticate: () => new Promise(() => {}) });
    await assert.rejects(connect(p, { connectTimeoutMs: 50 }), { code: 'TIMEOUT' });
    const abort = new AbortController();
    const pending = connect(p, { signal: abort.signal });
    abort.abort();
    await assert.rejects(pending);
  });
});

describe('replication', () => {
  it('streams WAL with backpressure, carries status back, and ends in order from either side', async () => {
    const chunks = Array.from({ length: 50 }, (_, i) => Buffer.alloc(100_000 + i, i));
    const bytesOf = (n: number): number => chunks.slice(0, n).reduce((sum, c) => sum + c.length, 0);
    const statuses: StandbyStatus[] = [];
    const p = await listen({
      onQuery: async (session, sql) => {
        if (!sql.startsWith('START_REPLICATION')) return session.sendRows([textColumn('sql')], [[sql]]);
        const copy = session.copyBoth({ onStatus: (s) => statuses.push(s) });
        const start = 0x1_0000_0000;
        for (const [i, chunk] of chunks.entries()) {
          const at = lsn(start + bytesOf(i));
          await copy.sendXLogData(at, lsn(at + chunk.length), chunk);
        }
        copy.sendKeepalive(lsn(start + bytesOf(50)), true);
        if (sql.includes('TIMELINE 2')) await copy.whenEnded;
        await copy.finish();
        session.complete('COPY 0');
      },
    });
    for (const [timeline, reuseMemory] of [
      [1, false],
      [2, false],
      [1, true],
      [2, true],
    ] as const) {
      statuses.length = 0;
      const c = await connect(p, { replication: 'physical', reuseMemory });
      let got = 0,
        next = 0x1_0000_0000,
        inHandler = 0;
      const keepalive = Promise.withResolvers<void>();
      const stream = await c.startReplication(
        { startLsn: lsn(0x1_0000_0000), timeline },
        {
          onXLogData: async (m: XLogData) => {
            assert.equal(++inHandler, 1, 'handlers do not overlap');
            assert.equal(m.start, next);
            next += m.data.length;
            await (got % 2 === 0 ? Promise.resolve() : new Promise(setImmediate));
            assert.ok(m.data.equals(chunks[got++] as Buffer));
            inHandler--;
          },
          onKeepalive: (m) => {
            assert.equal(m.replyRequested, true);
            stream.sendStatus({ write: m.walEnd, flush: m.walEnd, apply: 0 as Lsn });
            keepalive.resolve();
          },
        },
      );
      await keepalive.promise;
      await (timeline === 2 ? stream.stop() : stream.ended);
      assert.equal(got, 50);
      assert.equal(statuses.at(-1)?.flush, 0x1_0000_0000 + bytesOf(50));
      assert.deepEqual((await c.query('after'))[0]?.rows, [['after']]);
      await c.end();
    }
  });

  it('reports a refused START_REPLICATION, and a lost connection to the watcher of ended', async () => {
    const p = await listen({
      onQuery: async (session, sql) => {
        if (sql.includes('1/0')) throw new LakebaseError('CONFLICT', 'requested WAL is gone');
        session.copyBoth();
        if (sql.includes('0/10')) session.socket.end();
        else if (sql.includes('0/18')) session.socket.destroy();
        else session.terminate();
      },
    });
    for (const reuseMemory of [false, true]) {
      const refused = await connect(p, { replication: 'physical', reuseMemory });
      await assert.rejects(refused.startReplication({ startLsn: lsn(0x1_0000_0000) }, { onXLogData: () => {} }), /requested WAL is gone/);
      // By a message, by the end of its stream, by a server that is gone.
      for (const startLsn of [8, 16, 24]) {
        const c = await connect(p, { replication: 'physical', reuseMemory });
        const started = c.startReplication({ startLsn: lsn(startLsn) }, { onXLogData: () => {} });
        await assert.rejects(started.then((stream) => stream.ended));
        assert.ok((await c.closed) instanceof Error);
      }
    }
  });
});
