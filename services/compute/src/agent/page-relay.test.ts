/** Memory of pages is used again while others still read: every block that any reader gets is the one it asked for, under scans, random reads, a hot set
 *  fetched beside them, slow readers, readers that go away, and a page service that breaks its connections. And pages of before a round of settling reach
 *  nobody who asks after it. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { type Socket, connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { MSG, decodeRequest, encodeFrame } from '@lakebase/api';
import { silentLogger } from '@lakebase/base';
import { BLCKSZ, lsn, newProjectUid, newTimelineId } from '@lakebase/ids';
import { HotPrefetch } from './hot-prefetch.ts';
import { PageClient } from './page-client.ts';
import { listening, servePageFrames } from '../testing/fake-page-service.ts';
import { PageRelay } from './page-relay.ts';

const tag = { spc: 1663, db: 5, rel: 16_384, fork: 0 } as const;
const BLOCKS = 1_500;
const BREAK_EVERY = 97;

/** Every word of page n is n. */
function stamped(first: number, count: number): Buffer {
  const pages = Buffer.alloc(Math.max(0, Math.min(count, BLOCKS - first)) * BLCKSZ);
  for (let i = 0; i < pages.length / BLCKSZ; i++) pages.fill(Buffer.from(Uint32Array.of(first + i).buffer), i * BLCKSZ, (i + 1) * BLCKSZ);
  return pages;
}

async function pageService(): Promise<{ port: number; close: () => void }> {
  let answers = 0;
  const server = createServer((socket) => {
    let broken = false;
    servePageFrames(socket, (frame) => {
      if (broken) return;
      const request = decodeRequest(frame);
      assert.equal(request.type, 'getPages');
      if (request.type !== 'getPages') return;
      const pages = stamped(request.block, request.count);
      const count = Buffer.alloc(2);
      count.writeUInt16BE(pages.length / BLCKSZ);
      const bytes = Buffer.concat(encodeFrame(MSG.PAGES, request.id, count, pages));
      broken = ++answers % BREAK_EVERY === 0;
      if (!broken) return void socket.write(bytes);
      // Half an answer, and the connection is gone.
      socket.write(bytes.subarray(0, bytes.length >> 1), () => socket.destroy());
    });
  });
  return { port: await listening(server), close: () => server.close() };
}

/** One request at a time, as the shim. */
class Reader {
  readonly #socket: Socket;
  readonly #slow: boolean;

  constructor(path: string, slow: boolean) {
    this.#socket = connect(path);
    this.#slow = slow;
  }

  send(block: number, count: number, background = false): void {
    const request = Buffer.alloc(32);
    request.writeUInt32LE(0x4c425251, 0);
    request.writeUInt32LE(block, 8);
    request.writeUInt16LE(count, 12);
    request.writeUInt16LE(background ? 1 : 0, 14);
    this.#socket.write(request);
  }

  async read(block: number, count: number, background = false): Promise<void> {
    this.send(block, count, background);
    if (this.#slow) await pause(2); // the answer lies in the agent meanwhile
    const pages = await this.receive(Math.max(0, Math.min(count, BLOCKS - block)));
    assert.ok(pages.equals(stamped(block, count)), `blocks ${block}+${count} are others`);
  }

  /** The pages of an answer. */
  async receive(count: number): Promise<Buffer> {
    const want = 24 + count * BLCKSZ;
    const parts: Buffer[] = [];
    let got = 0;
    while (got < want) {
      const part = this.#socket.read() as Buffer | null;
      if (part === null) await new Promise((resolve) => this.#socket.once('readable', resolve));
      else got += parts.push(part) && part.length;
    }
    const answer = Buffer.concat(parts);
    assert.equal(answer.length, want);
    assert.equal(answer.readUInt32LE(4), 0);
    return answer.subarray(24);
  }

  close(): void {
    this.#socket.destroy();
  }

  /** In the middle of an answer. */
  leave(): void {
    this.send(0, 128);
    this.#socket.once('readable', () => this.#socket.destroy());
  }
}

const clientOf = (port: number): PageClient =>
  new PageClient({ host: '127.0.0.1', port, token: 't', project: newProjectUid(), timeline: newTimelineId(), log: silentLogger });

test('whoever reads gets the blocks asked for, however memory is used again', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'lb-relay-'));
  const service = await pageService();
  const pages = clientOf(service.port);
  const beside: { prefetch?: HotPrefetch } = {};
  const path = join(dir, 's');
  const relay = new PageRelay({
    socketPath: path,
    entries: [{ tag, source: tag, segment: 0 }],
    pages,
    lsn: lsn(5),
    log: silentLogger,
    prefetched: (entry, block, count) => beside.prefetch?.take(entry, block, count),
  });
  await relay.listen();
  let seed = 1;
  const random = (below: number): number => (seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fff_ffff) % below;
  const worker = new Reader(path, false);
  const prefetch = new HotPrefetch({
    batches: Array.from({ length: 2 * Math.floor(BLOCKS / 128) }, (_, i) => ({
      entry: 0,
      block: (i % Math.floor(BLOCKS / 128)) * 128,
      count: 128,
    })),
    pages: (batch) => relay.fetch(batch),
    memory: relay.memory,
    worker: {
      // In pieces: not all of a batch is absent.
      fetch: async (_entry, block, count) => {
        for (let at = 0; at < count; at += 48) await worker.read(block + at, Math.min(48, count - at), true);
        return 'ok';
      },
    },
    busy: () => relay.busy,
    log: silentLogger,
  });
  beside.prefetch = prefetch;
  t.after(() => {
    relay.close();
    pages.close();
    service.close();
    rmSync(dir, { recursive: true });
  });
  const scan = async (slow: boolean, step: number): Promise<void> => {
    const reader = new Reader(path, slow);
    for (let block = 0; block < BLOCKS; block += step) await reader.read(block, step);
  };
  const hop = async (): Promise<void> => {
    const reader = new Reader(path, false);
    for (let i = 0; i < 60; i++) await reader.read(random(BLOCKS), 1 + random(32));
  };
  for (let i = 0; i < 3; i++) new Reader(path, true).leave();
  await Promise.all([prefetch.run(), scan(false, 16), scan(true, 32), scan(false, 17), hop(), hop()]);
  assert.equal(prefetch.done, 'complete');
});

test('who asks after a raise gets nothing that was asked for before: read ahead, fetched as hot, or still on its way', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'lb-relay-'));
  /** Answers with pages of their LSN, later when they are held. */
  const held: (() => void)[] = [];
  let hold = false;
  const server = createServer((socket) =>
    servePageFrames(socket, (frame) => {
      const request = decodeRequest(frame);
      assert.ok(request.type === 'getPages' && request.requestLsn === request.notModifiedSince);
      const count = Buffer.alloc(2);
      count.writeUInt16BE(request.count);
      const bytes = Buffer.concat(encodeFrame(MSG.PAGES, request.id, count, Buffer.alloc(request.count * BLCKSZ, request.requestLsn)));
      if (hold) held.push(() => socket.write(bytes));
      else socket.write(bytes);
    }),
  );
  const pages = clientOf(await listening(server));
  const path = join(dir, 's');
  const beside: { prefetch?: HotPrefetch } = {};
  const relay = new PageRelay({
    socketPath: path,
    entries: [{ tag, source: tag, segment: 0 }],
    pages,
    lsn: lsn(5),
    log: silentLogger,
    prefetched: (entry, block, count) => beside.prefetch?.take(entry, block, count),
  });
  await relay.listen();
  const readers: Reader[] = [];
  const reader = (): Reader => {
    const one = new Reader(path, false);
    readers.push(one);
    return one;
  };
  t.after(() => {
    for (const one of readers) one.close();
    relay.close();
    pages.close();
    server.close();
    rmSync(dir, { recursive: true });
  });
  const until = async (what: () => boolean): Promise<void> => {
    while (!what()) await new Promise((resolve) => setImmediate(resolve));
  };
  const lsnOf = async (from: Reader): Promise<number> => {
    const got = await from.receive(16);
    assert.ok(got.equals(Buffer.alloc(16 * BLCKSZ, got[0])), 'pages of one LSN');
    return got[0] as number;
  };

  const scan = reader();
  for (const block of [0, 16, 32]) {
    scan.send(block, 16);
    assert.equal(await lsnOf(scan), 5);
  }
  // One run is here; the next one, a hot batch and a page that somebody waits for are on their way.
  hold = true;
  scan.send(130, 16);
  assert.equal(await lsnOf(scan), 5);
  const prefetch = new HotPrefetch({
    batches: [{ entry: 0, block: 1_024, count: 128 }],
    pages: (batch) => relay.fetch(batch),
    memory: relay.memory,
    worker: { fetch: () => new Promise(() => {}) },
    busy: () => relay.busy,
    log: silentLogger,
  });
  void prefetch.run();
  beside.prefetch = prefetch;
  const early = [reader(), reader(), reader()] as const;
  early[0].send(1_030, 16); // of the batch
  early[1].send(300, 16); // of the run
  early[2].send(2_000, 16); // of its own
  await until(() => held.length >= 3 && relay.busy);
  await new Promise((resolve) => setImmediate(resolve));
  relay.raise(lsn(9));
  prefetch.forget();
  hold = false;
  const late = [1_030, 300, 130, 2_000, 3_000].map((block) => {
    const one = reader();
    one.send(block, 16);
    return one;
  });
  assert.equal(await lsnOf(late.pop() as Reader), 9); // the others have come by now, too
  for (const answer of held) answer();
  for (const one of late) assert.equal(await lsnOf(one), 9);
  for (const one of early) assert.ok([5, 9].includes(await lsnOf(one)));
  scan.send(320, 16);
  assert.equal(await lsnOf(scan), 9);
  assert.throws(() => relay.raise(lsn(8)), { code: 'INVALID_ARGUMENT' });
});
