/** Malformed bytes at the proxy's Postgres port. Each case: what is sent, and the SQLSTATE that comes back (or silence) before the close. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { connect as tlsConnect } from 'node:tls';
import { it } from 'node:test';
import type { Cluster } from '@lakebase/testkit';
import pg from 'pg';
import { RawClient, errorIn, saslAnswer, startupPacket, startupParameters, tell, typedMessage, u32 } from './raw-client.ts';

const SSL_REQUEST = Buffer.concat([u32(8), u32(80_877_103)]);
const GSSENC_REQUEST = Buffer.concat([u32(8), u32(80_877_104)]);
const cancelRequest = (pid: number, key: Buffer): Buffer => Buffer.concat([u32(12 + key.length), u32(80_877_102), u32(pid), key]);
const startup = (values: Readonly<Record<string, string>>, code?: number): Buffer =>
  startupPacket(startupParameters(values), code === undefined ? {} : { code });
const sasl = (mechanism: string, first: string, announced = Buffer.byteLength(first)): Buffer =>
  typedMessage('p', Buffer.concat([Buffer.from(`${mechanism}\0`), u32(announced), Buffer.from(first)]));

export function proxyCases(cluster: () => Cluster): void {
  const at = (): { port: number } => ({ port: cluster().pgPort });

  it('proxy: every malformed start-up packet ends in one FATAL with its SQLSTATE, then the close', async () => {
    const long = 'x'.repeat(9_000);
    const cases: [what: string, bytes: Buffer, sqlstate: RegExp | null][] = [
      ['length 0', Buffer.concat([u32(0), u32(0x30000)]), /08P01/],
      ['length 4', Buffer.concat([u32(4), u32(0x30000)]), /08P01/],
      ['length 7', Buffer.concat([u32(7), u32(0x30000)]), /08P01/],
      ['length 10,001', startupPacket('', { length: 10_001 }), /08P01/],
      ['length 2^31-1', startupPacket('', { length: 0x7fff_ffff }), /08P01/],
      ['negative length', startupPacket('', { length: 0xffff_fff0 }), /08P01/],
      ['HTTP', Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'), /08P01/],
      ['no terminator', startupPacket('user\0owner'), /08P01/],
      ['bytes after the terminator', startupPacket(`${startupParameters({ user: 'owner' })}more`), /08P01/],
      ['a name without its value', startupPacket('user\0\0'), /08P01|28000/],
      ['no user', startup({ database: 'databricks_postgres' }), /28000/],
      ['an empty packet', startupPacket('\0'), /28000/],
      ['an empty user', startupPacket('user\0\0\0'), /28000/],
      ['invalid UTF-8', startupPacket(Buffer.concat([Buffer.from('user\0'), Buffer.from([0xff, 0xfe]), Buffer.from('\0\0')])), /22021/],
      ['protocol 2.0', startup({ user: 'owner' }, 0x0002_0000), /0A000/],
      ['protocol 9.9', startup({ user: 'owner' }, 0x0009_0009), /0A000/],
      ['protocol 0.0', startup({ user: 'owner' }, 0), /0A000/],
      ['replication=true', startup({ user: 'owner', replication: 'true' }), /0A000/],
      ['replication=nonsense', startup({ user: 'owner', replication: '../..' }), /22023|0A000|08P01/],
      ['SSLRequest with a body', Buffer.concat([u32(12), u32(80_877_103), u32(0)]), /08P01/],
      ['GSSENCRequest twice', Buffer.concat([GSSENC_REQUEST, GSSENC_REQUEST]), /08P01/],
      ['GSSENCRequest with bytes after it', Buffer.concat([GSSENC_REQUEST, Buffer.from('early')]), /08P01/],
      ['cancel key of 0 bytes', cancelRequest(1, Buffer.alloc(0)), /08P01/],
      ['cancel key of 257 bytes', cancelRequest(1, Buffer.alloc(257)), /08P01/],
      ['cancel with a key of nobody', cancelRequest(123, Buffer.alloc(4, 1)), null],
      ['cancel with a long key of nobody', cancelRequest(-1, Buffer.alloc(256, 1)), null],
      ['bytes between SSLRequest and the handshake', Buffer.concat([SSL_REQUEST, startup({ user: 'owner' })]), null],
      ['garbage in place of the handshake', Buffer.concat([Buffer.from([0x16, 3, 1, 0xff, 0xff]), Buffer.alloc(600, 7)]), null],
      [
        'a user of 9,000 bytes as a password message first',
        Buffer.concat([startup({ user: long }), typedMessage('Q', 'SELECT 1\0')]),
        /08P01|28P01|22023/,
      ],
    ];
    const wrong: string[] = [];
    await Promise.all(
      cases.map(async ([what, bytes, sqlstate]) => {
        try {
          let answer = await tell(at(), bytes);
          if (bytes.subarray(0, 8).equals(GSSENC_REQUEST) && answer[0] === 0x4e) answer = answer.subarray(1);
          const error = errorIn(answer);
          if (
            sqlstate === null
              ? answer.length > 0 && answer[0] === 0x45
              : error === undefined || !sqlstate.test(error['C'] ?? '') || error['S'] !== 'FATAL' || (error['M'] ?? '') === ''
          )
            wrong.push(`${what}: ${JSON.stringify(error ?? answer.toString('latin1').slice(0, 80))}`);
        } catch (error) {
          wrong.push(`${what}: ${String(error)}`);
        }
      }),
    );
    assert.deepEqual(wrong, []);
  });

  it('proxy: a truncated packet waits for its rest, and one byte at a time is as good as all at once', async () => {
    using client = new RawClient(at());
    for (const byte of startup({ user: 'owner', database: 'databricks_postgres' })) client.send(Buffer.from([byte]));
    await client.until('the SASL request', saslAnswer(10));
    using cut = new RawClient(at());
    cut.send(startup({ user: 'owner' }).subarray(0, 10)).finish();
    assert.equal((await cut.untilClosed()).length, 0, 'nobody is left to tell');
  });

  it('proxy: TLS without ALPN at once, and TLS of another time, are refused', async () => {
    const refused = (options: object): Promise<string> =>
      new Promise((resolve) => {
        const socket = tlsConnect({ host: '127.0.0.1', port: at().port, rejectUnauthorized: false, ...options });
        let said = Buffer.alloc(0);
        socket.on('secureConnect', () => socket.write(startup({ user: 'owner' })));
        socket.on('data', (chunk: Buffer) => {
          said = Buffer.concat([said, chunk]);
        });
        socket.on('error', () => {});
        socket.on('close', () => resolve(errorIn(said)?.['C'] ?? 'closed'));
      });
    assert.equal(await refused({}), '08P01');
    assert.match(await refused({ ALPNProtocols: ['h2'] }), /closed|08P01/);
    assert.equal(
      await refused({ ALPNProtocols: ['postgresql'], maxVersion: 'TLSv1.1', minVersion: 'TLSv1', ciphers: 'DEFAULT@SECLEVEL=0' }),
      'closed',
    );
  });

  it('proxy: malformed SCRAM never succeeds, crashes or hangs', async () => {
    const nonce = 'abcdefghijklmnopqrstuvwx';
    const first = `n,,n=,r=${nonce}`;
    /** `final` gets the server's first message and makes ours. */
    const cases: [what: string, first: Buffer, final?: (serverFirst: string) => Buffer][] = [
      ['an unknown mechanism', sasl('SCRAM-MD5', first)],
      ['channel binding without TLS', sasl('SCRAM-SHA-256-PLUS', `p=tls-server-end-point,,n=,r=${nonce}`)],
      ['a binding flag of the other mechanism', sasl('SCRAM-SHA-256', `p=tls-unique,,n=,r=${nonce}`)],
      ['a binding flag nobody knows', sasl('SCRAM-SHA-256', `q,,n=,r=${nonce}`)],
      ['no header', sasl('SCRAM-SHA-256', `r=${nonce}`)],
      ['no nonce', sasl('SCRAM-SHA-256', 'n,,n=')],
      ['an empty nonce', sasl('SCRAM-SHA-256', 'n,,n=,r=')],
      ['a nonce of control bytes', sasl('SCRAM-SHA-256', 'n,,n=,r=\u0001\u0002')],
      ['a mandatory extension', sasl('SCRAM-SHA-256', `n,,m=x,n=,r=${nonce}`)],
      ['an authzid', sasl('SCRAM-SHA-256', `n,a=postgres,n=,r=${nonce}`)],
      ['an empty message', typedMessage('p', '')],
      ['a mechanism without end', typedMessage('p', 'SCRAM-SHA-256')],
      ['an announced length beyond the message', sasl('SCRAM-SHA-256', first, 100_000)],
      ['an announced length of -2', sasl('SCRAM-SHA-256', first, -2)],
      ['no first message', sasl('SCRAM-SHA-256', '', -1)],
      ['a message of 1 GB', typedMessage('p', 'x', 1 << 30)],
      ['a message of negative length', typedMessage('p', 'x', -1)],
      ['a length below its own size', typedMessage('p', '', 3)],
      ['a query in its place', typedMessage('Q', 'SELECT 1\0')],
      ['a terminate', typedMessage('X', '')],
      ['a final message without proof', sasl('SCRAM-SHA-256', first), (s) => typedMessage('p', `c=biws,${nonceOf(s)}`)],
      [
        'a final message of another nonce',
        sasl('SCRAM-SHA-256', first),
        () => typedMessage('p', `c=biws,r=${nonce},p=${Buffer.alloc(32).toString('base64')}`),
      ],
      [
        'a changed header',
        sasl('SCRAM-SHA-256', first),
        (s) => typedMessage('p', `c=eSws,${nonceOf(s)},p=${Buffer.alloc(32).toString('base64')}`),
      ],
      ['a short proof', sasl('SCRAM-SHA-256', first), (s) => typedMessage('p', `c=biws,${nonceOf(s)},p=AAAA`)],
      ['a proof that is no base64', sasl('SCRAM-SHA-256', first), (s) => typedMessage('p', `c=biws,${nonceOf(s)},p=!!!!`)],
      [
        'a wrong proof',
        sasl('SCRAM-SHA-256', first),
        (s) => typedMessage('p', `c=biws,${nonceOf(s)},p=${Buffer.alloc(32, 9).toString('base64')}`),
      ],
      ['an empty final message', sasl('SCRAM-SHA-256', first), () => typedMessage('p', '')],
    ];
    const wrong: string[] = [];
    await Promise.all(
      cases.map(async ([what, message, final], i) => {
        try {
          using client = new RawClient(at());
          // A role of its own for each, so that none is refused for the failures of others.
          client.send(startup({ user: i === 0 ? 'owner' : `nobody_${i}`, database: 'databricks_postgres' }));
          await client.until('the SASL request', saslAnswer(10), 20_000);
          client.send(message);
          if (final !== undefined) client.send(final(await client.until('the server-first message', saslAnswer(11))));
          const said = await client.untilClosed();
          const error = errorIn(said);
          if (what === 'a terminate' && error === undefined) return;
          if (error === undefined || !/^(08P01|28P01|28000|0A000)$/.test(error['C'] ?? '') || error['S'] !== 'FATAL')
            wrong.push(`${what}: ${JSON.stringify(error)}`);
        } catch (error) {
          wrong.push(`${what}: ${String(error)}`);
        }
      }),
    );
    assert.deepEqual(wrong, []);
  });

  it('proxy: a wrong password, an unknown role, an unknown endpoint and a path for an endpoint all look the same', async () => {
    const attempt = async (change: pg.ClientConfig): Promise<{ code?: string | undefined; message: string }> => {
      const client = new pg.Client({
        host: '127.0.0.1',
        port: at().port,
        user: 'owner',
        password: 'wrong',
        database: 'databricks_postgres',
        ...change,
      });
      client.on('error', () => {});
      return await client.connect().then(
        async () => {
          await client.end();
          return { message: 'let in' };
        },
        (error: Error & { code?: string }) => ({ code: error.code, message: error.message }),
      );
    };
    const answers = await Promise.all([
      attempt({}),
      attempt({ password: '\u0001' }),
      attempt({ password: 'x'.repeat(10_000) }),
      attempt({ user: 'nobody' }),
      attempt({ user: 'lakebase_admin' }),
      ...['ep-unknown', '../../etc', '%2e%2e%2f', 'ep-\u0440'].map((endpoint) => attempt({ options: `endpoint=${endpoint}` })),
    ]);
    assert.deepEqual(await attempt({ options: `endpoint=${'a'.repeat(5_000)}` }), {
      code: '08P01',
      message: 'the endpoint in the connection options is empty or too long',
    });
    for (const answer of answers) {
      assert.equal(answer.code, '28P01', JSON.stringify(answer));
      assert.match(answer.message, /^password authentication failed for user "(owner|nobody|lakebase_admin)"$/);
    }
  });

  it("proxy: a CancelRequest with somebody else's key cancels nothing and is told nothing", async () => {
    const client = await cluster().connect();
    const { processID } = client as unknown as { processID: number };
    const query = client.query('SELECT pg_sleep(0.4), 1 AS done');
    for (const key of [Buffer.alloc(4), Buffer.alloc(32, 7)]) assert.equal((await tell(at(), cancelRequest(processID, key))).length, 0);
    assert.equal((await query).rows[0].done, 1);
    await client.end();
  });

  it('proxy: after login, impossible lengths, unknown types and truncated messages end that session only', async () => {
    const bystander = await cluster().connect();
    const cases: [string, Buffer][] = [
      ['2^31-1 bytes announced', typedMessage('Q', 'SELECT 1\0', 0x7fff_ffff)],
      ['a negative length', typedMessage('Q', '', -5)],
      ['a length below its own size', typedMessage('Q', '', 3)],
      ['an unknown type', typedMessage('~', 'x')],
      ['a Bind that ends early', typedMessage('B', Buffer.concat([Buffer.from('\0\0'), Buffer.alloc(2, 0xff)]))],
      ['a start-up packet again', startup({ user: 'owner' })],
    ];
    for (const [what, bytes] of cases) {
      const client = await cluster().connect();
      const { stream } = (client as unknown as { connection: { stream: import('node:net').Socket } }).connection;
      const said: Buffer[] = [];
      stream.on('data', (chunk: Buffer) => said.push(chunk));
      const gone = new Promise<void>((resolve) => stream.once('close', () => resolve()));
      stream.write(bytes);
      // Whatever the server made of it, half a message must not hang the connection once we leave.
      stream.end();
      await gone;
      assert.ok(stream.destroyed, what);
    }
    assert.equal((await bystander.query('SELECT 1 AS one')).rows[0].one, 1);
    await bystander.end();
  });

  it('proxy: 100,000 statements ahead of their answers, and 64 MB nobody asked for, take no memory', async () => {
    const [proxy] = cluster().pids('proxy');
    const residentMb = (): number => Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${proxy}/status`, 'utf8'))?.[1]) / 1024;
    const client = await cluster().connect();
    const { stream } = (client as unknown as { connection: { stream: import('node:net').Socket } }).connection;
    stream.removeAllListeners('data');
    stream.pause();
    const before = residentMb();
    const sent = new Promise((resolve) => {
      const parse = typedMessage('P', '\0SELECT 1\0\0\0');
      stream.write(Buffer.concat(Array.from({ length: 100_000 }, () => parse)));
      // CopyData outside of COPY is ignored, however much of it there is.
      const copy = typedMessage('d', Buffer.alloc(1 << 20));
      for (let i = 0; i < 64; i++) stream.write(copy);
      stream.write(typedMessage('S', ''), resolve);
    });
    const ready = new Promise<void>((resolve, reject) => {
      let tail: Buffer = Buffer.alloc(0);
      stream.on('data', (chunk: Buffer) => {
        tail = Buffer.concat([tail, chunk]).subarray(-6);
        if (tail.equals(Buffer.from([0x5a, 0, 0, 0, 5, 0x49]))) resolve();
      });
      stream.once('close', () => reject(new Error('closed')));
    });
    stream.resume();
    await sent;
    await ready;
    const grown = residentMb() - before;
    stream.destroy();
    assert.ok(grown < 64, `the proxy grew by ${Math.round(grown)} MB`);
  });
}

const nonceOf = (serverFirst: string): string => serverFirst.split(',')[0] ?? '';
