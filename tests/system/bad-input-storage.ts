/** Bad bytes at the storage side's own protocols: the page service, the safekeepers' WAL port, and the agent's socket of a running compute. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { it } from 'node:test';
import {
  FrameParser,
  MSG,
  PAGE_MAGIC,
  type PageRequest,
  REL_ABSENT,
  decodeErrorFrame,
  encodeFrame,
  encodeHello,
  encodeRequest,
  internalToken,
  timelineScope,
} from '@lakebase/api';
import { must } from '@lakebase/base';
import { type Lsn, MAX_LSN, type ProjectUid, type TimelineId, formatLsn, newProjectUid, newTimelineId, parseLsn } from '@lakebase/ids';
import type { ClusterInternals } from '@lakebase/testkit';
import pg from 'pg';
import { RawClient, errorIn, startupPacket, startupParameters, tell, typedMessage, u32 } from './raw-client.ts';

const FAR = (2 ** 50) as Lsn;
const MIB = Buffer.alloc(1 << 20, 0x41);

/** Returns a request for a page of the future: it takes the page service's whole patience (30 s), so it is made early and awaited late. */
export function storageCases(inside: () => ClusterInternals): () => Promise<string> {
  const pages = (): { port: number } => ({ port: inside().manager.pageserver.pagePort });
  const hello = (values: Partial<{ token: string; project: string; timeline: string }> = {}): Buffer => {
    const own = inside().branch();
    const project = (values.project ?? own.project) as ProjectUid;
    const timeline = (values.timeline ?? own.timeline) as TimelineId;
    return encodeHello({
      token: values.token ?? internalToken(inside().secret, timelineScope(own.project, own.timeline)),
      project,
      timeline,
    });
  };

  /** The code and message of the first error frame. */
  function pageError(said: Buffer): string | undefined {
    let found: string | undefined;
    new FrameParser(1 << 20).push(said, (frame) => {
      if (frame.type !== MSG.ERROR || found !== undefined) return;
      const error = decodeErrorFrame(frame);
      found = `${error.code}: ${error.message}`;
    });
    return found;
  }

  it('page service: nothing but a good hello opens it', async () => {
    const { secret } = inside();
    const service = internalToken(secret, 'service');
    const tooLong = Buffer.concat([u32(PAGE_MAGIC), Buffer.from([0, 1, 0xff, 0xff]), Buffer.alloc(2_000)]);
    const oldVersion = Buffer.concat([u32(PAGE_MAGIC), Buffer.from([0, 9, 0, 0]), Buffer.alloc(64, 0x61)]);
    const cases: [string, Buffer, RegExp][] = [
      ['HTTP', Buffer.from('GET / HTTP/1.1\r\n\r\n'), /^CORRUPT: not a page service hello/],
      ['a start-up packet', startupPacket(startupParameters({ user: 'x' })), /^CORRUPT/],
      ['another version', oldVersion, /^CORRUPT: page service version 9/],
      ['a token of 64 KiB', tooLong, /^CORRUPT: token too long/],
      ['no token', hello({ token: '' }), /^UNAUTHENTICATED/],
      ['a forged token', hello({ token: service.replace(/./, (c) => (c === 'a' ? 'b' : 'a')) }), /^UNAUTHENTICATED/],
      [
        "another timeline's token",
        hello({ token: internalToken(secret, timelineScope(newProjectUid(), newTimelineId())) }),
        /^UNAUTHENTICATED/,
      ],
      ['its own token for another timeline', hello({ timeline: newTimelineId() }), /^UNAUTHENTICATED/],
      ['an unknown timeline', hello({ token: service, timeline: newTimelineId() }), /^NOT_FOUND/],
      ['a path for a project', hello({ token: service, project: '../../../../../../../../etc/pass' }), /^INVALID_ID/],
      ['NULs for a timeline', hello({ token: service, timeline: '\0'.repeat(32) }), /^INVALID_ID/],
    ];
    for (const [what, bytes, expected] of cases) assert.match(pageError(await tell(pages(), bytes)) ?? 'no error', expected, what);
    // Who was refused and goes on talking is cut off, not collected.
    for (const opening of [Buffer.from('not a hello'), Buffer.concat([hello(), u32(0xffff_ffff), Buffer.alloc(64)])]) {
      using talker = new RawClient({ ...pages(), stubborn: true });
      talker.send(opening);
      await talker.until('a refusal', pageError);
      const more = (error?: Error | null): void => {
        if (!error && !talker.socket.destroyed) talker.socket.write(MIB, more);
      };
      more();
      await talker.untilClosed();
    }
    using cut = new RawClient(pages());
    cut.send(hello().subarray(0, 40)).finish();
    await cut.untilClosed();
  });

  /** One request on a connection of its own; the frame that answers it. */
  async function ask(bytes: Buffer, ms?: number): Promise<{ type: number; text: string; payload: Buffer }> {
    using client = new RawClient(pages());
    client.send(hello(), bytes);
    return await client.until(
      'an answer',
      (said) => {
        let answer: { type: number; text: string; payload: Buffer } | undefined;
        new FrameParser(1 << 28).push(said, (frame) => {
          if (frame.type !== MSG.HELLO_OK)
            answer ??= {
              type: frame.type,
              payload: frame.payload,
              text: frame.type === MSG.ERROR ? `${decodeErrorFrame(frame).code}: ${decodeErrorFrame(frame).message}` : '',
            };
        });
        return answer;
      },
      ms,
    );
  }
  const pgClass = { spc: 1663, db: 1, rel: 1259, fork: 0 as const };
  const getPages = (change: Partial<Extract<PageRequest, { type: 'getPages' }>> = {}): Buffer =>
    encodeRequest({
      type: 'getPages',
      id: 1,
      tag: pgClass,
      block: 0,
      count: 1,
      requestLsn: MAX_LSN,
      notModifiedSince: 0 as Lsn,
      ...change,
    });
  /** With fields the encoder would never write. */
  const patched = (at: number, ...bytes: readonly number[]): Buffer => {
    const out = getPages();
    Buffer.from(bytes).copy(out, 13 + at);
    return out;
  };

  it('page service: malformed and impossible requests get a typed error, or the nothing that is there', async () => {
    const cases: [string, Buffer, RegExp][] = [
      ['a frame of 1 MiB', Buffer.concat([u32(1 << 20), Buffer.alloc(64)]), /^CORRUPT: frame of/],
      ['a frame of 4 GiB', Buffer.concat([u32(0xffff_ffff), Buffer.alloc(64)]), /^CORRUPT: frame of/],
      ['a frame of 3 bytes', Buffer.concat([u32(3), Buffer.alloc(64)]), /^CORRUPT: frame of/],
      ['an unknown type', Buffer.concat(encodeFrame(0x7e, 1, Buffer.alloc(30))), /^CORRUPT: unknown page request type/],
      ['an answer as request', Buffer.concat(encodeFrame(MSG.PAGES, 1, Buffer.alloc(30))), /^CORRUPT: unknown page request type/],
      ['half a request', Buffer.concat(encodeFrame(MSG.GET_PAGES, 1, Buffer.alloc(5))), /^CORRUPT/],
      ['trailing bytes', Buffer.concat(encodeFrame(MSG.GET_REL_SIZE, 1, Buffer.alloc(200))), /^CORRUPT: trailing/],
      ['fork 9', patched(12, 9), /^CORRUPT: fork 9/],
      ['no blocks', patched(17, 0, 0), /^CORRUPT: block run/],
      ['129 blocks', patched(17, 0, 129), /^CORRUPT: block run/],
      ['65535 blocks', patched(17, 0xff, 0xff), /^CORRUPT: block run/],
      ['a run over the end of numbers', patched(13, 0xff, 0xff, 0xff, 0xfe, 0, 8), /^CORRUPT: block run/],
      ['an LSN beyond 2^53', patched(19, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0), /^INVALID_LSN/],
      ['an LSN before the timeline', getPages({ requestLsn: 8 as Lsn }), /^INVALID_ARGUMENT: LSN 0\/8 is before/],
      ['a range upside down', getPages({ requestLsn: 8 as Lsn, notModifiedSince: 9 as Lsn }), /^INVALID_ARGUMENT: notModifiedSince/],
      [
        'a bundle of the future',
        encodeRequest({ type: 'getStartBundle', id: 1, lsn: FAR, waitMs: 100 }),
        /^TIMEOUT: WAL up to 40000\/0 did not arrive within 100 ms/,
      ],
      ['a bundle of the past', encodeRequest({ type: 'getStartBundle', id: 1, lsn: 8 as Lsn, waitMs: 0 }), /^INVALID_ARGUMENT/],
    ];
    for (const [what, bytes, expected] of cases) assert.match((await ask(bytes)).text, expected, what);
    const none = { spc: 1663, db: 4_000_000_000, rel: 4_000_000_001, fork: 3 as const };
    assert.equal((await ask(getPages({ tag: none }))).payload.readUInt16BE(0), 0, 'no relation, no pages');
    assert.equal((await ask(getPages({ block: 4_000_000_000, count: 128 }))).payload.readUInt16BE(0), 0, 'nothing beyond the end');
    assert.equal((await ask(encodeRequest({ type: 'getRelSize', id: 1, tag: none, lsn: MAX_LSN }))).payload.readUInt32BE(0), REL_ABSENT);
  });

  it('page service: 5,000 requests at once, never read: the rest of the world is still served', async () => {
    using glutton = new RawClient(pages());
    glutton.socket.pause();
    glutton.send(hello(), Buffer.concat(Array.from({ length: 5_000 }, (_, id) => getPages({ id, count: 16 }))));
    assert.equal((await ask(getPages())).payload.readUInt16BE(0), 1);
  });

  const walPort = (): { port: number } => ({ port: must(inside().manager.safekeepers[0], 'a safekeeper').pgPort });
  const named = (project: string, timeline: string, more = ''): string =>
    `-c lakebase.project=${project} -c lakebase.timeline=${timeline}${more}`;
  async function walClient(change: { options?: string; password?: string; replication?: string } = {}): Promise<pg.Client> {
    const { project, timeline } = inside().branch();
    const config = {
      host: '127.0.0.1',
      port: walPort().port,
      user: 'x',
      database: 'x',
      password: change.password ?? internalToken(inside().secret, 'service'),
      options: change.options ?? named(project, timeline),
      replication: change.replication ?? 'true',
      connectionTimeoutMillis: 10_000,
    };
    const client = new pg.Client(config as pg.ClientConfig);
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  it('WAL port: start-up, password and timeline must be right', async () => {
    const { project, timeline } = inside().branch();
    const packets: [string, Buffer, RegExp][] = [
      ['length 0', Buffer.concat([u32(0), u32(0)]), /08P01/],
      ['length 2^31-1', startupPacket('', { length: 0x7fff_ffff }), /08P01/],
      ['HTTP', Buffer.from('GET / HTTP/1.1\r\n\r\n'), /08P01/],
      ['protocol 9.9', startupPacket(startupParameters({ user: 'x' }), { code: 0x0009_0009 }), /0A000/],
      ['no user', startupPacket('\0'), /28000|0A000/],
      ['no replication', startupPacket(startupParameters({ user: 'x' })), /0A000/],
      [
        'a path for a project',
        startupPacket(startupParameters({ user: 'x', replication: 'true', options: named('../../../etc', timeline) })),
        /22023/,
      ],
    ];
    for (const [what, bytes, sqlstate] of packets) {
      const error = errorIn(await tell(walPort(), bytes));
      assert.match(error?.['C'] ?? 'no error', sqlstate, what);
      assert.equal(error?.['S'], 'FATAL', what);
    }
    const service = internalToken(inside().secret, 'service');
    const other = internalToken(inside().secret, timelineScope(newProjectUid(), newTimelineId()));
    for (const password of ['wrong', other, `${service}x`, inside().secret])
      await assert.rejects(walClient({ password }), { code: '28P01' });
    const one = internalToken(inside().secret, timelineScope(project, timeline));
    await assert.rejects(
      walClient({ password: one, options: named(project, newTimelineId()) }),
      { code: '28P01' },
      'its own token for another timeline',
    );
    const stranger = await walClient({ options: named(newProjectUid(), newTimelineId()) });
    await assert.rejects(stranger.query('IDENTIFY_SYSTEM'), { code: '3D000' });
    const reader = await walClient({ password: one, options: named(project, timeline, ' -c lakebase.peer=1 -c lakebase.term=1') });
    await assert.rejects(reader.query('IDENTIFY_SYSTEM'), { code: '42501' }, 'uncommitted WAL is for members');
    await Promise.all([stranger, reader].map((c) => c.end().catch(() => {})));
  });

  it('WAL port: commands nobody knows, WAL that is not there, garbage while streaming', async () => {
    const client = await walClient();
    const status = await must(inside().safekeeper('sk1'), 'sk1').status(inside().branch().project, inside().branch().timeline);
    const beyond = formatLsn((parseLsn(status.flushLsn) + 1_000_000_000) as Lsn);
    const refused: [string, RegExp][] = [
      ['SELECT 1', /42601/],
      ['START_REPLICATION ../..', /42601/],
      ['START_REPLICATION 0/', /42601/],
      ['START_REPLICATION 123456789/0', /42601/],
      ['START_REPLICATION PHYSICAL FFFFFFFF/FFFFFFFF', /22023/],
      [`START_REPLICATION PHYSICAL ${beyond}`, /55000/],
      [`START_REPLICATION PHYSICAL ${status.flushLsn} TIMELINE 7`, /58P01/],
      ['START_REPLICATION PHYSICAL 0/0', /58P01|22023|55000/],
      ['START_REPLICATION SLOT "none" PHYSICAL 0/1000000', /42704/],
      ['START_REPLICATION SLOT "x" LOGICAL 0/0', /42601/],
      ['TIMELINE_HISTORY 99999999999', /42601/],
      ['TIMELINE_HISTORY 2', /58P01/],
      ['SHOW __proto__', /42704/],
      ['SHOW constructor', /42704/],
      ['BASE_BACKUP', /42601/],
      ['DROP_REPLICATION_SLOT "../x"', /42601/],
    ];
    for (const [sql, code] of refused)
      await assert.rejects(client.query(sql), (error: Error & { code?: string }) => code.test(error.code ?? ''), sql);
    assert.equal((await client.query('IDENTIFY_SYSTEM')).rows.length, 1, 'the session lives on');
    await client.end();
    for (const garbage of [
      typedMessage('d', 'zgarbage'),
      typedMessage('d', ''),
      typedMessage('d', Buffer.concat([Buffer.from('r'), Buffer.alloc(3)])),
      typedMessage('d', Buffer.concat([Buffer.from('r'), Buffer.alloc(33, 0xff)])),
      typedMessage('Q', 'SELECT 1\0'),
      typedMessage('d', 'x', 0x7fff_ffff),
      typedMessage('d', 'x', 2),
      typedMessage('~', ''),
    ]) {
      const streaming = await walClient();
      const { stream } = (streaming as unknown as { connection: { stream: import('node:net').Socket } }).connection;
      const gone = new Promise<void>((resolve) => stream.once('close', () => resolve()));
      const began = new Promise<void>((resolve) =>
        (streaming as unknown as { connection: NodeJS.EventEmitter }).connection.once('replicationStart', () => resolve()),
      );
      streaming.query(`START_REPLICATION PHYSICAL ${status.commitLsn}`).catch(() => {});
      await began;
      stream.write(garbage);
      await gone;
    }
  });

  it("agent socket: whoever talks nonsense is cut off, impossible blocks are an I/O error, Postgres's own reads go on", async () => {
    const compute = must(await inside().running(), 'a running compute');
    const socket = { path: join(must(compute.socketDir, 'socket directory'), 'agent.sock') };
    const request = (index: number, block: number, count: number): Buffer => {
      const out = Buffer.alloc(32);
      out.writeUInt32LE(0x4c42_5251, 0);
      out.writeUInt32LE(index, 4);
      out.writeUInt32LE(block, 8);
      out.writeUInt16LE(count, 12);
      return out;
    };
    assert.equal((await tell(socket, Buffer.alloc(64, 0x41))).length, 0);
    assert.equal((await tell(socket, 'GET / HTTP/1.1\r\n\r\n', MIB)).length, 0);
    for (const bad of [
      request(0xffff_ffff, 0, 1),
      request(0, 0xffff_fff0, 1),
      request(0, 0, 0),
      request(0, 0, 65_535),
      request(0, 131_071, 2),
    ]) {
      using client = new RawClient(socket);
      const errno = await client.send(bad).until('an answer', (said) => (said.length >= 24 ? said.readUInt32LE(4) : undefined));
      assert.equal(errno, 5);
    }
    using cut = new RawClient(socket);
    cut.send(request(0, 0, 1).subarray(0, 20)).finish();
    await cut.untilClosed();
    const admin = await inside().admin(compute);
    assert.ok(Number((await admin.query('SELECT count(*) AS n FROM pg_class')).rows[0].n) > 100);
    await admin.end();
  });

  return () => ask(getPages({ requestLsn: MAX_LSN, notModifiedSince: FAR }), 60_000).then((answer) => answer.text);
}
