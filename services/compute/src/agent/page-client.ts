/** Client of the page service: one connection, pipelined requests, reconnect with back-off.
 *  Invariants: every request ends in exactly one answer or error; a request is sent again after a reconnect (reads are idempotent)
 *  until its deadline passes, also at another pageserver when the project was moved; answers are matched by id, so a stale connection's answer can
 *  never reach a newer request. The connection is kept also while nothing is asked: it keeps the timeline in the pageserver's memory. */
import { type Socket, connect } from 'node:net';
import {
  ANSWER_FRAME_BYTES_MAX,
  type Frame,
  FrameReceiver,
  MSG,
  type PageRequest,
  REL_ABSENT,
  type StartBundle,
  decodeErrorFrame,
  decodeStartBundle,
  encodeHello,
  encodeRequest,
} from '@lakebase/api';
import { LakebaseError, type Logger, backoffDelay, errorMessage } from '@lakebase/base';
import { BufferPool } from '@lakebase/bytes';
import { BLCKSZ, type Lsn, type ProjectUid, type RelTag, type TimelineId } from '@lakebase/ids';

export interface PageClientOptions {
  readonly host: string;
  readonly port: number;
  readonly token: string;
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly log: Logger;
  /** How long a request is retried over broken connections. */
  readonly retryMs?: number;
}

interface Pending {
  readonly request: PageRequest;
  readonly deadline: number;
  readonly resolve: (frame: Frame) => void;
  readonly reject: (error: unknown) => void;
}

const IDLE_RETRY_MS = 2_000;
/** Of this connection's timeline, not of the request: it is asked again. */
const mayPass = (error: LakebaseError): boolean => error.code === 'FENCED' || error.code === 'CLOSED';

export class PageClient {
  /** Of answers: who is done with pages releases them; who keeps them or forgets makes garbage. */
  readonly memory = new BufferPool();
  readonly #options: PageClientOptions;
  readonly #pending = new Map<number, Pending>();
  #socket: Socket | undefined;
  #ready = false;
  #nextId = 1;
  #attempt = 0;
  #retryTimer: NodeJS.Timeout | undefined;
  #closed = false;
  #host: string;
  #port: number;

  constructor(options: PageClientOptions) {
    this.#options = options;
    this.#host = options.host;
    this.#port = options.port;
  }

  /** The project is on another pageserver now; what is under way is asked there again. */
  moveTo(host: string, port: number): void {
    if (host === this.#host && port === this.#port) return;
    this.#host = host;
    this.#port = port;
    this.#attempt = 0;
    clearTimeout(this.#retryTimer);
    this.#retryTimer = undefined;
    const socket = this.#socket;
    this.#socket = undefined;
    this.#ready = false;
    socket?.destroy();
    this.#connect();
  }

  /** Up to `count` pages of one run, as one buffer; shorter when the relation ends. */
  async getPages(tag: RelTag, block: number, count: number, lsn: Lsn): Promise<Buffer> {
    const frame = await this.#send({ type: 'getPages', id: this.#nextId++, tag, block, count, requestLsn: lsn, notModifiedSince: lsn });
    const pages = frame.payload.subarray(2);
    if (pages.length !== frame.payload.readUInt16BE(0) * BLCKSZ) throw new LakebaseError('CORRUPT', 'page answer of a wrong length');
    return pages;
  }

  /** Blocks of a fork at `lsn`, which is waited for; undefined when it does not exist then. */
  async getRelSize(tag: RelTag, lsn: Lsn): Promise<number | undefined> {
    const { payload } = await this.#send({ type: 'getRelSize', id: this.#nextId++, tag, lsn });
    if (payload.length !== 4) throw new LakebaseError('CORRUPT', 'relation size of a wrong length');
    const blocks = payload.readUInt32BE(0);
    return blocks === REL_ABSENT ? undefined : blocks;
  }

  async getStartBundle(lsn: Lsn, waitMs: number): Promise<StartBundle> {
    const frame = await this.#send({ type: 'getStartBundle', id: this.#nextId++, lsn, waitMs });
    return decodeStartBundle(frame.payload);
  }

  /** Connects before the first request needs it. */
  warm(): void {
    this.#connect();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#retryTimer);
    this.#socket?.destroy();
    for (const [id, pending] of this.#pending) {
      this.#pending.delete(id);
      pending.reject(new LakebaseError('CLOSED', 'page client closed'));
    }
  }

  #send(request: PageRequest): Promise<Frame> {
    if (this.#closed) return Promise.reject(new LakebaseError('CLOSED', 'page client closed'));
    return new Promise((resolve, reject) => {
      const extra = request.type === 'getStartBundle' ? request.waitMs : 0;
      this.#pending.set(request.id, { request, resolve, reject, deadline: performance.now() + extra + (this.#options.retryMs ?? 60_000) });
      if (this.#ready) this.#socket?.write(encodeRequest(request));
      else {
        // A wait of an idle connection's is too long for a read.
        if (this.#pending.size === 1) {
          clearTimeout(this.#retryTimer);
          this.#retryTimer = undefined;
        }
        this.#connect();
      }
    });
  }

  #connect(): void {
    if (this.#socket !== undefined || this.#closed || this.#retryTimer !== undefined) return;
    const { token, project, timeline } = this.#options;
    const onFrame = (frame: Frame): void => {
      if (this.#socket === socket) this.#onFrame(frame);
    };
    const received = new FrameReceiver(ANSWER_FRAME_BYTES_MAX, onFrame, (bytes) => this.memory.take(bytes));
    // Pages come straight into the memory they are handed on in.
    const onread = {
      buffer: (): Buffer => received.space,
      callback: (bytes: number): boolean => {
        try {
          received.filled(bytes);
        } catch (error) {
          socket.destroy(error as Error);
        }
        return true;
      },
    };
    const socket = connect({ host: this.#host, port: this.#port, noDelay: true, onread });
    this.#socket = socket;
    socket.on('connect', () => socket.write(encodeHello({ token, project, timeline })));
    socket.on('error', (error) => this.#options.log.debug({ err: errorMessage(error) }, 'page service connection failed'));
    socket.on('close', () => this.#onClose(socket));
  }

  #onFrame(frame: Frame): void {
    if (frame.type === MSG.HELLO_OK) {
      this.#ready = true;
      this.#attempt = 0;
      for (const pending of this.#pending.values()) this.#socket?.write(encodeRequest(pending.request));
      return;
    }
    const error = frame.type === MSG.ERROR ? decodeErrorFrame(frame) : undefined;
    if (error !== undefined && !this.#ready) {
      // The server closes after it: then again, here or where the project has gone.
      if (!mayPass(error) && error.code !== 'UNAVAILABLE') this.#failAll(error);
      return;
    }
    const pending = this.#pending.get(frame.id);
    if (pending === undefined) return;
    if (error !== undefined && mayPass(error) && pending.deadline > performance.now()) return void this.#socket?.destroy();
    this.#pending.delete(frame.id);
    if (error !== undefined) pending.reject(error);
    else pending.resolve(frame);
  }

  #onClose(socket: Socket): void {
    if (this.#socket !== socket) return;
    this.#socket = undefined;
    this.#ready = false;
    const now = performance.now();
    for (const [id, pending] of this.#pending) {
      if (pending.deadline > now) continue;
      this.#pending.delete(id);
      pending.reject(new LakebaseError('UNAVAILABLE', 'the pageserver does not answer'));
    }
    if (this.#closed) return;
    this.#retryTimer = setTimeout(
      () => {
        this.#retryTimer = undefined;
        this.#connect();
      },
      backoffDelay(this.#attempt++, { baseMs: 10, maxMs: this.#pending.size > 0 ? 500 : IDLE_RETRY_MS }),
    );
    if (this.#pending.size === 0) this.#retryTimer.unref();
  }

  #failAll(error: LakebaseError): void {
    for (const [id, pending] of this.#pending) {
      this.#pending.delete(id);
      pending.reject(error);
    }
  }
}
