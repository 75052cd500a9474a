/** The proxy against a compute from memory: start-up, TLS and limits, byte by byte. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { type Server, type Socket, connect, createServer } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { connect as tlsConnect } from 'node:tls';
import {
  MessageParser,
  PROTOCOL_3_2,
  PgConnection,
  PgError,
  PgServerSession,
  buildVerifier,
  decodeBackend,
  encodeCancelRequest,
  encodeGssEncRequest,
  encodeSslRequest,
  encodeStartupMessage,
  formatVerifier,
  textColumn,
  type BackendMessage,
} from '@lakebase/pg-wire';
import type { ProxyConfig } from './config.ts';
import type { ProxyServer } from './proxy-server.ts';
import { FakeManager, proxyConfig, startProxy, temporaryDirectory } from './test-harness.ts';

const dir = temporaryDirectory();
const COMPUTE_PORT = 6001;
const manager = new FakeManager();
const proxies: ProxyServer[] = [];
/** The compute's side of every session. */
const computeSockets = new Set<Socket>();
/** Cancel requests and start-up parameters the compute saw. */
const computeInput: Buffer[] = [];
let compute: Server;
let proxy: ProxyServer;

before(async () => {
  compute = createServer((socket) => {
    computeSockets.add(socket);
    socket.once('close', () => computeSockets.delete(socket));
    socket.once('data', (chunk) => computeInput.push(chunk));
    void PgServerSession.serve(socket, {
      authenticate: () => 'trust',
      onQuery: async (session, sql) => {
        if (sql === 'die') session.socket.destroy();
        else if (sql === 'parameters') session.sendRows([textColumn('k'), textColumn('v')], [...session.startup.parameters]);
        else session.sendRows([textColumn('sql')], [[sql]]);
      },
    });
  });
  await new Promise<void>((resolve) => compute.listen({ path: `${dir}/.s.PGSQL.${COMPUTE_PORT}`, backlog: 4096 }, resolve));
  manager.addEndpoint('ep-one');
  manager.defaultEndpoint = 'ep-one';
  manager.onWake = async () => ({ socketDir: dir, port: COMPUTE_PORT });
  await manager.addRole('alice', 'pw');
  // The client's half of SCRAM is slow on purpose; not for two thousand of them.
  manager.roles.set('bulk', { name: 'bulk', verifier: formatVerifier(await buildVerifier('pw', { iterations: 1 })), login: true });
  await manager.start();
  proxy = await start();
});
after(async () => {
  for (const p of proxies) await p.stop();
  compute.close();
  for (const s of computeSockets) s.destroy();
  await manager.stop();
  rmSync(dir, { recursive: true, force: true });
});

async function start(more: Partial<ProxyConfig> = {}): Promise<ProxyServer> {
  const p = await startProxy(proxyConfig(manager.url, dir, more));
  proxies.push(p);
  return p;
}
const session = (p: ProxyServer = proxy, more: object = {}): Promise<PgConnection> =>
  PgConnection.connect({ host: '127.0.0.1', port: p.port, user: 'alice', password: 'pw', connectTimeoutMs: 60_000, ...more });
const fatalWith =
  (sqlstate: string) =>
  (e: unknown): boolean =>
    e instanceof PgError && e.fields.severity === 'FATAL' && e.sqlstate === sqlstate;

/** Sends `bytes` and returns everything until the proxy closes. */
function exchange(p: ProxyServer, bytes: Buffer): Promise<Buffer> {
  return new Promise((resolve) => {
    const socket = connect(p.port, '127.0.0.1');
    const got: Buffer[] = [];
    socket.on('data', (c) => got.push(c));
    socket.on('error', () => {});
    socket.on('close', () => resolve(Buffer.concat(got)));
    socket.write(bytes);
  });
}
function messages(bytes: Buffer): BackendMessage[] {
  const parser = new MessageParser({ limit: 1 << 20 });
  parser.push(bytes);
  const out: BackendMessage[] = [];
  for (let m = parser.next(); m !== undefined; m = parser.next()) out.push(decodeBackend(m.type, m.body));
  return out;
}
const sqlstates = (bytes: Buffer): string[] => messages(bytes).flatMap((m) => (m.kind === 'error' ? [m.fields.sqlstate] : []));

describe('start-up', () => {
  it('speaks 3.2 with a 32-byte cancel key and 3.0 with one of 4 bytes, never the compute’s own', async () => {
    for (const [protocol, keyLength] of [
      [PROTOCOL_3_2, 32],
      [0x30000, 4],
      [0x3270f, 32],
    ] as const) {
      const c = await session(proxy, { protocol });
      assert.equal(c.cancelKeyLength, keyLength);
      assert.notEqual(c.backendPid, process.pid);
      assert.deepEqual((await c.query('hello'))[0]?.rows, [['hello']]);
      await c.end();
    }
  });

  it('passes parameters on, without the endpoint', async () => {
    const c = await session(proxy, {
      database: 'app',
      parameters: { application_name: 'ünï', options: '-c endpoint=ep-one -c geqo=off endpoint=ep-one', client_encoding: 'LATIN1' },
    });
    const rows = Object.fromEntries((await c.query('parameters'))[0]?.rows ?? []);
    assert.deepEqual(rows, { user: 'alice', database: 'app', application_name: 'ünï', client_encoding: 'LATIN1', options: '-c geqo=off' });
    await c.end();
  });

  it('refuses what is malformed or too long, with an error where the client can read one', async () => {
    const startup = encodeStartupMessage([['user', 'alice']]);
    const oversized = Buffer.from(startup);
    oversized.writeInt32BE(10_001, 0);
    assert.deepEqual(sqlstates(await exchange(proxy, oversized)), ['08P01']);
    const tiny = Buffer.from(startup);
    tiny.writeInt32BE(4, 0);
    assert.deepEqual(sqlstates(await exchange(proxy, tiny)), ['08P01']);
    const old = Buffer.from(startup);
    old.writeInt32BE(0x20000, 4);
    assert.deepEqual(sqlstates(await exchange(proxy, old)), ['0A000']);
    assert.deepEqual(sqlstates(await exchange(proxy, encodeStartupMessage([['database', 'x']]))), ['28000']);
    assert.deepEqual(sqlstates(await exchange(proxy, Buffer.from('GET / HTTP/1.1\r\n\r\n'))), ['08P01']);
    // A password message longer than any password.
    const flood = Buffer.alloc(5);
    flood.write('p');
    flood.writeInt32BE(0x7fff_ffff, 1);
    assert.deepEqual(sqlstates(await exchange(proxy, Buffer.concat([startup, flood]))), ['08P01']);
    assert.equal(proxy.sessions, 0);
  });

  it('answers a GSSAPI request with N and goes on', async () => {
    const socket = connect(proxy.port, '127.0.0.1');
    const next = (): Promise<Buffer> => new Promise((resolve) => socket.once('data', resolve));
    socket.write(encodeGssEncRequest());
    assert.equal((await next()).toString(), 'N');
    socket.write(encodeStartupMessage([['user', 'alice']]));
    assert.equal(messages(await next())[0]?.kind, 'authenticationSasl');
    socket.destroy();
  });

  it('gives a slow client up after the deadline', async () => {
    const hasty = await start({ authTimeoutMs: 60 });
    const startup = encodeStartupMessage([['user', 'alice']]);
    for (const bytes of [Buffer.alloc(0), startup.subarray(0, 6), startup]) {
      const got = await exchange(hasty, bytes);
      const last = messages(got).at(-1);
      assert.equal(last?.kind === 'error' && last.fields.sqlstate, '08006');
    }
    // Inside the TLS handshake there is nobody to tell.
    assert.equal((await exchange(hasty, encodeSslRequest())).toString(), 'S');
    assert.equal(hasty.sessions, 0);
  });
});

describe('TLS', () => {
  it('hangs up on bytes sent before the handshake', async () => {
    const got = await exchange(proxy, Buffer.concat([encodeSslRequest(), encodeStartupMessage([['user', 'alice']])]));
    assert.equal(got.length, 0);
  });

  it('takes direct TLS with ALPN postgresql only, and routes by SNI', async () => {
    manager.addEndpoint('ep-two');
    let to = proxy;
    const talk = (options: object): Promise<string[]> =>
      new Promise((resolve) => {
        const tls = tlsConnect({ port: to.port, host: '127.0.0.1', rejectUnauthorized: false, ...options });
        const got: Buffer[] = [];
        tls.on('secureConnect', () => tls.write(encodeStartupMessage([['user', 'nobody']])));
        tls.on('data', (c: Buffer) => {
          got.push(c);
          tls.end();
        });
        tls.on('error', () => {});
        tls.on('close', () => resolve(messages(Buffer.concat(got)).map((m) => (m.kind === 'error' ? m.fields.sqlstate : m.kind))));
      });
    assert.deepEqual(await talk({ ALPNProtocols: ['postgresql'], servername: 'ep-two.db.example.com' }), ['authenticationSasl']);
    // The name of the machine stands for the default endpoint, if there is one; a mistyped endpoint does not.
    manager.defaultEndpoint = null;
    to = await start();
    assert.deepEqual(await talk({ ALPNProtocols: ['postgresql'], servername: 'db.example.com' }), ['08004']);
    assert.deepEqual(await talk({ ALPNProtocols: ['postgresql'], servername: 'ep-tow.example.com' }), ['authenticationSasl']);
    manager.defaultEndpoint = 'ep-one';
    to = await start();
    assert.deepEqual(await talk({ ALPNProtocols: ['postgresql'], servername: 'db.example.com' }), ['authenticationSasl']);
    assert.deepEqual(await talk({ ALPNProtocols: ['http/1.1'] }), []);
    assert.deepEqual(await talk({}), ['08P01']);
  });

  it('is demanded where the configuration says so', async () => {
    const strict = await start({ requireTls: 'always' });
    await assert.rejects(session(strict), fatalWith('28000'));
  });

  it('survives garbage in the handshake', async () => {
    await exchange(proxy, Buffer.concat([Buffer.from([0x16, 3, 1, 0, 5]), Buffer.from('hello')]));
    const raw = connect(proxy.port, '127.0.0.1');
    raw.write(encodeSslRequest());
    await new Promise((resolve) => raw.once('data', resolve));
    raw.write(Buffer.from('this is not TLS at all, not even a little'));
    await new Promise((resolve) => raw.once('close', resolve).on('error', () => {}));
    await (await session()).end();
  });
});

describe('limits', () => {
  it('counts sessions', async () => {
    const small = await start({ maxConnections: 2 });
    const a = await session(small),
      b = await session(small);
    await assert.rejects(session(small), fatalWith('53300'));
    await a.end();
    while (small.sessions > 1) await new Promise((resolve) => setImmediate(resolve));
    await (await session(small)).end();
    await b.end();
  });

  it('stops guessing', async () => {
    const guarded = await start();
    let attempts = 0;
    for (let sqlstate = ''; sqlstate !== '28000'; attempts++) {
      assert.ok(attempts < 200, 'never refused');
      sqlstate = await session(guarded, { password: `guess ${attempts}` }).then(
        () => 'let in',
        (e) => (e as PgError).sqlstate,
      );
    }
    assert.ok(attempts > 20);
    await assert.rejects(session(guarded), fatalWith('28000'));
  });

  it('lets a client go that gives up while it is held', async () => {
    const gate = Promise.withResolvers<void>();
    const asked = Promise.withResolvers<void>();
    const held = await start();
    const answer = manager.onWake;
    manager.onWake = async (id) => {
      asked.resolve();
      await gate.promise;
      return answer(id);
    };
    const abort = new AbortController();
    const leaving = session(held, { signal: abort.signal });
    await asked.promise;
    const staying = session(held);
    abort.abort();
    await assert.rejects(leaving);
    while (held.sockets > 1) await new Promise((resolve) => setImmediate(resolve));
    gate.resolve();
    const c = await staying;
    assert.deepEqual((await c.query('x'))[0]?.rows, [['x']]);
    await c.end();
    manager.onWake = answer;
  });

  it('gives up on a compute that never comes', async () => {
    const impatient = await start({ wakeTimeoutMs: 100 });
    const answer = manager.onWake;
    manager.onWake = async () => ({ socketDir: '/nonexistent', port: 1 });
    await assert.rejects(session(impatient), fatalWith('57P03'));
    manager.onWake = answer;
    await (await session(impatient)).end();
  });
});

describe('sessions', () => {
  it('cancel requests carry the compute’s key; unknown ones are dropped without a word', async () => {
    const c = await session(proxy, { protocol: PROTOCOL_3_2 });
    computeInput.length = 0;
    assert.equal((await exchange(proxy, encodeCancelRequest(c.backendPid, Buffer.alloc(32)))).length, 0);
    assert.equal((await exchange(proxy, encodeCancelRequest(c.backendPid ^ 1, Buffer.alloc(4)))).length, 0);
    assert.equal(computeInput.length, 0);
    await c.cancel();
    assert.equal(computeInput.length, 1);
    // The compute of this test answers with its own process id and a four-byte key.
    assert.equal(computeInput[0]?.readInt32BE(8), process.pid);
    assert.equal(computeInput[0]?.length, 16);
    await c.end();
  });

  it('adds a FATAL when the compute goes away between messages, and nothing inside one', async () => {
    const c = await session();
    await c.query('x');
    await assert.rejects(c.query('die'), fatalWith('57P01'));
    const torn = await session();
    const mine = [...computeSockets].at(-1) as Socket;
    const error = assert.rejects(torn.query('never mind'), { code: 'UNAVAILABLE' });
    mine.removeAllListeners('data');
    mine.write(Buffer.from([0x44, 0, 0, 1, 0, 0]));
    mine.end();
    await error;
  });

  it('tells clients when it stops', async () => {
    const stopping = await start();
    const c = await session(stopping);
    await stopping.stop();
    assert.ok(fatalWith('57P01')(await c.closed));
  });

  it('keeps 2,000 idle sessions for little memory', async () => {
    const before = memory();
    const many = await start();
    const sockets: PgConnection[] = [];
    for (let i = 0; i < 2_000; i += 100)
      sockets.push(...(await Promise.all(Array.from({ length: 100 }, () => session(many, { user: 'bulk' })))));
    assert.equal(many.sessions, 2_000);
    const perSession = (memory() - before) / 2_000;
    // Client, proxy and compute are all in this process: six sockets' worth of objects for each session.
    assert.ok(perSession < 200_000, `${Math.round(perSession)} bytes a session`);
    for (const c of [sockets[0], sockets[1_999]]) assert.deepEqual((await c?.query('still here'))?.[0]?.rows, [['still here']]);
    await Promise.all(sockets.map((c) => c.end()));
  });
});

function memory(): number {
  (globalThis as { gc?: () => void }).gc?.();
  return process.memoryUsage().rss;
}
