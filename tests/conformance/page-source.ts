/** Reads pages, sizes and start bundles from a pageserver, as a compute would. Requests are pipelined; a broken connection is made again and its
 *  requests repeated until `retryMs` is over, because campaigns kill the pageserver. */
import { connect, type Socket } from 'node:net';
import {
  ANSWER_FRAME_BYTES_MAX,
  decodeErrorFrame,
  decodeStartBundle,
  encodeHello,
  encodeRequest,
  type Frame,
  FrameParser,
  MSG,
  type PageRequest,
  REL_ABSENT,
  type StartBundle,
} from '@lakebase/api';
import { sleep } from '@lakebase/base';
import { type Lsn, MAX_LSN, type ProjectUid, type RelTag, type TimelineId } from '@lakebase/ids';

export interface PageSourceOptions {
  readonly host: string;
  readonly port: number;
  readonly token: string;
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly retryMs?: number;
}

interface Pending {
  readonly bytes: Buffer;
  readonly resolve: (frame: Frame) => void;
  readonly reject: (error: unknown) => void;
}

export class PageSource implements Disposable {
  readonly #options: PageSourceOptions;
  readonly #pending = new Map<number, Pending>();
  #socket: Socket | undefined;
  #ready = false;
  #nextId = 1;
  #closed = false;
  #brokenSince: number | undefined;

  constructor(options: PageSourceOptions) {
    this.#options = options;
  }

  /** Latest pages, from `atLeast` on; fewer than asked where the relation ends. */
  async pages(tag: RelTag, block: number, count: number, atLeast: Lsn): Promise<Buffer> {
    const frame = await this.#send({
      type: 'getPages',
      id: this.#nextId++,
      tag,
      block,
      count,
      requestLsn: MAX_LSN,
      notModifiedSince: atLeast,
    });
    return frame.payload.subarray(2);
  }

  /** Blocks of a fork; undefined when it does not exist. */
  async size(tag: RelTag, lsn: Lsn): Promise<number | undefined> {
    const frame = await this.#send({ type: 'getRelSize', id: this.#nextId++, tag, lsn });
    const blocks = frame.payload.readUInt32BE(0);
    return blocks === REL_ABSENT ? undefined : blocks;
  }

  async startBundle(lsn: Lsn): Promise<StartBundle> {
    const frame = await this.#send({ type: 'getStartBundle', id: this.#nextId++, lsn, waitMs: 30_000 });
    return decodeStartBundle(Buffer.from(frame.payload));
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    this.#socket?.destroy();
    for (const pending of this.#pending.values()) pending.reject(new Error('page source closed'));
    this.#pending.clear();
  }

  #send(request: PageRequest): Promise<Frame> {
    return new Promise((resolve, reject) => {
      const bytes = encodeRequest(request);
      this.#pending.set(request.id, { bytes, resolve, reject });
      if (this.#socket === undefined) this.#connect();
      else if (this.#ready) this.#socket.write(bytes);
    });
  }

  #connect(): void {
    const { host, port, token, project, timeline, retryMs = 60_000 } = this.#options;
    const socket = connect({ host, port, noDelay: true });
    const parser = new FrameParser(ANSWER_FRAME_BYTES_MAX);
    this.#socket = socket;
    socket.on('connect', () => socket.write(encodeHello({ token, project, timeline })));
    socket.on('data', (chunk) => parser.push(chunk, (frame) => this.#onFrame(socket, frame)));
    socket.on('error', () => {});
    socket.on('close', () => {
      if (this.#closed) return;
      this.#ready = false;
      this.#brokenSince ??= performance.now();
      if (performance.now() - this.#brokenSince > retryMs) {
        for (const pending of this.#pending.values()) pending.reject(new Error(`the pageserver does not answer for ${retryMs} ms`));
        this.#pending.clear();
      }
      if (this.#pending.size === 0) this.#socket = undefined;
      else void sleep(100).then(() => (this.#closed ? undefined : this.#connect()));
    });
  }

  #onFrame(socket: Socket, frame: Frame): void {
    if (frame.type === MSG.HELLO_OK) {
      this.#ready = true;
      this.#brokenSince = undefined;
      for (const pending of this.#pending.values()) socket.write(pending.bytes);
      return;
    }
    if (frame.type === MSG.ERROR && !this.#ready) {
      socket.destroy(); // not attached yet: asked again until the time is over
      return;
    }
    const pending = this.#pending.get(frame.id);
    this.#pending.delete(frame.id);
    if (frame.type === MSG.ERROR) pending?.reject(decodeErrorFrame(frame));
    else pending?.resolve({ ...frame, payload: Buffer.from(frame.payload) });
  }
}
