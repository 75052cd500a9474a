/** The page service on TCP (docs/protocols/page-service.md): one timeline per connection, requests pipelined, answers in the order they are ready.
 *  Invariants: nothing is answered before the hello's token is checked; a connection holds at most MAX_INFLIGHT requests and stops being read
 *  beyond that, or while its answers are not taken; a malformed frame closes the connection after an error frame. */
import { type Server, type Socket, createServer } from 'node:net';
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import {
  type Frame,
  FrameParser,
  type Hello,
  MSG,
  PAGES_HEAD_BYTES,
  type PageRequest,
  REL_ABSENT,
  REQUEST_FRAME_BYTES_MAX,
  decodeRequest,
  encodeErrorFrame,
  encodeFrame,
  finishPagesFrame,
  timelineScope,
  tryDecodeHello,
  verifyToken,
} from '@lakebase/api';
import { BLCKSZ } from '@lakebase/ids';
import { runMemory } from './run-memory.ts';
import type { TimelineStore } from './store.ts';
import type { Timeline } from './timeline.ts';

const HELLO_TIMEOUT_MS = 10_000;
const HELLO_BYTES_MAX = 1_024;
const MAX_INFLIGHT = 256;
const LINGER_MS = 1_000;

export interface PageMetrics {
  observe(type: PageRequest['type'], seconds: number, pages: number): void;
  failed(code: string): void;
}

export class PageListener {
  readonly #store: TimelineStore;
  readonly #secret: string;
  readonly #log: Logger;
  readonly #metrics: PageMetrics;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #connections = new Set<Connection>();

  constructor(store: TimelineStore, secret: string, log: Logger, metrics: PageMetrics) {
    this.#store = store;
    this.#secret = secret;
    this.#log = log;
    this.#metrics = metrics;
    this.#server = createServer({ noDelay: true }, (socket) => this.#accept(socket));
  }

  /** Resolves with the port. */
  listen(host: string, port: number): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', (cause: NodeJS.ErrnoException) =>
        reject(
          new LakebaseError(
            'CONFIG',
            `cannot listen on ${host}:${port}: ${cause.code === 'EADDRINUSE' ? 'the port is taken; set pagePort' : cause.message}`,
            { cause },
          ),
        ),
      );
      this.#server.listen(port, host, () => {
        const address = this.#server.address();
        resolve(typeof address === 'object' && address !== null ? address.port : port);
      });
    });
  }

  close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    return new Promise((resolve) => this.#server.close(() => resolve()));
  }

  /** Ends all connections of a project, or of one timeline, with everything that waits to be sent. */
  end(project: string, error: LakebaseError, timeline?: string): void {
    for (const connection of this.#connections)
      if (connection.project === project && (timeline === undefined || connection.timeline === timeline)) connection.end(error);
  }

  get connections(): number {
    return this.#sockets.size;
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => this.#sockets.delete(socket));
    const timer = setTimeout(() => socket.destroy(), HELLO_TIMEOUT_MS);
    let pending: Buffer = Buffer.alloc(0);
    const fail = (error: unknown): void => {
      clearTimeout(timer);
      this.#metrics.failed(error instanceof LakebaseError ? error.code : 'INTERNAL');
      refuse(socket, error);
    };
    const onHello = (chunk: Buffer): void => {
      try {
        pending = pending.length === 0 ? chunk : Buffer.concat([pending, chunk]);
        const decoded = tryDecodeHello(pending);
        if (decoded === undefined) {
          if (pending.length > HELLO_BYTES_MAX) socket.destroy();
          return;
        }
        clearTimeout(timer);
        socket.off('data', onHello);
        socket.pause();
        const { token, project, timeline } = decoded.hello;
        if (verifyToken(this.#secret, token, ['service', timelineScope(project, timeline)]) === undefined)
          throw new LakebaseError('UNAUTHENTICATED', 'a valid internal token is needed');
        void this.#connect(socket, decoded.hello, pending.subarray(decoded.consumed)).catch(fail);
      } catch (error) {
        fail(error);
      }
    };
    socket.on('data', onHello);
    socket.on('close', () => clearTimeout(timer));
  }

  /** The timeline may have to be attached first. */
  async #connect(socket: Socket, { project, timeline }: Hello, first: Buffer): Promise<void> {
    const held = await this.#store.hold(project, timeline);
    if (socket.destroyed) return held.release();
    socket.on('close', held.release);
    for (const part of encodeFrame(MSG.HELLO_OK, 0)) socket.write(part);
    const connection = new Connection(socket, held.timeline, this.#store, this.#metrics, this.#log);
    this.#connections.add(connection);
    socket.on('close', () => this.#connections.delete(connection));
    connection.start(first);
  }
}

/** Says why and closes, also on a client that goes on talking or never reads: what it sends from now on is thrown away. */
function refuse(socket: Socket, error: unknown): void {
  socket.removeAllListeners('data');
  socket.resume();
  if (!socket.writableEnded) socket.end(Buffer.concat(encodeErrorFrame(0, error)));
  setTimeout(() => socket.destroy(), LINGER_MS).unref();
}

class Connection {
  readonly #socket: Socket;
  readonly #timeline: Timeline;
  readonly #store: TimelineStore;
  readonly #metrics: PageMetrics;
  readonly #log: Logger;
  readonly #parser = new FrameParser(REQUEST_FRAME_BYTES_MAX);
  #inflight = 0;
  #blocked = false;
  #ended = false;

  constructor(socket: Socket, timeline: Timeline, store: TimelineStore, metrics: PageMetrics, log: Logger) {
    this.#socket = socket;
    this.#timeline = timeline;
    this.#store = store;
    this.#metrics = metrics;
    this.#log = log;
  }

  get project(): string {
    return this.#timeline.project;
  }
  get timeline(): string {
    return this.#timeline.id;
  }

  /** At once: of what was written only what the kernel has already taken is still sent. */
  end(error: LakebaseError): void {
    this.#ended = true;
    this.#metrics.failed(error.code);
    if (this.#socket.writableLength > 0) this.#socket.destroy();
    else refuse(this.#socket, error);
  }

  start(first: Buffer): void {
    this.#socket.on('data', (chunk) => this.#push(chunk));
    this.#socket.on('drain', () => {
      this.#blocked = false;
      this.#flow();
    });
    if (first.length > 0) this.#push(first);
    this.#flow();
  }

  #push(chunk: Buffer): void {
    try {
      this.#parser.push(chunk, (frame) => this.#onFrame(frame));
    } catch (error) {
      refuse(this.#socket, error);
    }
  }

  #onFrame(frame: Frame): void {
    let request: PageRequest;
    try {
      request = decodeRequest(frame);
    } catch (error) {
      this.#metrics.failed('CORRUPT');
      this.#write(encodeErrorFrame(frame.id, error));
      return;
    }
    this.#inflight++;
    this.#flow();
    const started = performance.now();
    this.#answer(request)
      .then(
        ({ frames, pages }) => {
          this.#write(frames);
          this.#metrics.observe(request.type, (performance.now() - started) / 1_000, pages);
        },
        (error: unknown) => {
          if (!(error instanceof LakebaseError) && !this.#ended)
            this.#log.error({ err: errorMessage(error), stack: (error as Error).stack, request: request.type }, 'page request failed');
          this.#metrics.failed(error instanceof LakebaseError ? error.code : 'INTERNAL');
          this.#write(encodeErrorFrame(request.id, error));
        },
      )
      .finally(() => {
        this.#inflight--;
        this.#flow();
      });
  }

  async #answer(request: PageRequest): Promise<{ frames: Buffer[]; pages: number }> {
    const t = this.#timeline;
    if (request.type === 'getPages') {
      const lsn = await t.chooseLsn(request.requestLsn, request.notModifiedSince);
      const frame = await t.run(request.tag, request.block, request.count, lsn, PAGES_HEAD_BYTES);
      return { frames: [finishPagesFrame(frame, request.id)], pages: (frame.length - PAGES_HEAD_BYTES) / BLCKSZ };
    }
    if (request.type === 'getRelSize') {
      const lsn = await t.chooseLsn(request.lsn, request.lsn === Number.MAX_SAFE_INTEGER ? t.lastRecordLsn : request.lsn);
      const size = Buffer.allocUnsafe(4);
      size.writeUInt32BE((await t.relSize(request.tag, lsn)) ?? REL_ABSENT, 0);
      return { frames: encodeFrame(MSG.REL_SIZE, request.id, size), pages: 0 };
    }
    const bundle = await this.#store.starts.bundle(t, request.lsn, request.waitMs);
    return { frames: encodeFrame(MSG.START_BUNDLE, request.id, bundle), pages: 0 };
  }

  #write(frames: readonly Buffer[]): void {
    if (this.#ended || this.#socket.destroyed || !this.#socket.writable) return;
    this.#socket.cork();
    let room = true;
    // What could not be sent is garbage: the socket may still look at it.
    for (const frame of frames) room = this.#socket.write(frame, (error) => error ?? runMemory.release(frame));
    process.nextTick(() => this.#socket.uncork());
    if (!room) {
      this.#blocked = true;
      this.#flow();
    }
  }

  #flow(): void {
    if (this.#blocked || this.#inflight >= MAX_INFLIGHT) this.#socket.pause();
    else if (this.#socket.isPaused()) this.#socket.resume();
  }
}
