/** Talks to a pageserver under test as its clients do: page service, and HTTP where bodies are not JSON. */
import { type Socket, connect } from 'node:net';
import { type Frame, FrameParser, MSG, type PageRequest, decodeErrorFrame, encodeHello, encodeRequest, internalToken } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { BLCKSZ, type Lsn, MAX_LSN, type ProjectUid, type TimelineId, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { TEST_PROJECT, TEST_TIMELINE, tarOf } from './testing.ts';

export const SECRET: string = 'ab'.repeat(32);
export const PROJECT: ProjectUid = parseProjectUid(TEST_PROJECT);
export const TIMELINE: TimelineId = parseTimelineId(TEST_TIMELINE);

/** A page service client as small as can be. */
export class PageClient {
  readonly socket: Socket;
  readonly #waiting = new Map<number, { resolve: (f: Frame) => void; reject: (error: Error) => void }>();
  #nextId = 1;
  readonly closed: Promise<void>;

  private constructor(socket: Socket) {
    this.socket = socket;
    this.closed = new Promise((resolve) => socket.on('close', () => resolve()));
    void this.closed.then(() => {
      for (const { reject } of this.#waiting.values()) reject(new LakebaseError('UNAVAILABLE', 'the pageserver closed the connection'));
      this.#waiting.clear();
    });
  }
  static async open(port: number, token: string, timeline = TIMELINE, project = PROJECT): Promise<PageClient> {
    const client = new PageClient(connect(port, '127.0.0.1'));
    const parser = new FrameParser(1 << 28);
    const hello = client.#answer(0);
    client.socket.on('data', (chunk: Buffer) =>
      parser.push(chunk, (f) => client.#waiting.get(f.id)?.resolve({ ...f, payload: Buffer.from(f.payload) })),
    );
    client.socket.on('error', () => {});
    client.socket.write(encodeHello({ token, project, timeline }));
    const frame = await hello;
    client.#waiting.delete(0);
    if (frame.type === MSG.ERROR) throw decodeErrorFrame(frame);
    return client;
  }
  async call(request: Record<string, unknown>): Promise<Frame> {
    const id = this.#nextId++;
    const answer = this.#answer(id);
    this.socket.write(encodeRequest({ ...request, id } as unknown as PageRequest));
    const frame = await answer;
    this.#waiting.delete(id);
    if (frame.type === MSG.ERROR) throw decodeErrorFrame(frame);
    return frame;
  }
  /** Rejects with UNAVAILABLE when the connection ends first. */
  #answer(id: number): Promise<Frame> {
    if (this.socket.destroyed) return Promise.reject(new LakebaseError('UNAVAILABLE', 'the connection is closed'));
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }
  async pages(tag: object, block: number, count: number, since: Lsn = 0 as Lsn): Promise<Buffer[]> {
    const { payload } = await this.call({ type: 'getPages', tag, block, count, requestLsn: MAX_LSN, notModifiedSince: since });
    return Array.from({ length: payload.readUInt16BE(0) }, (_, i) => payload.subarray(2 + i * BLCKSZ, 2 + (i + 1) * BLCKSZ));
  }
}

export async function put(
  port: number,
  path: string,
  body: Buffer,
  type: string,
  token = internalToken(SECRET, 'service'),
): Promise<Response> {
  return fetch(`http://127.0.0.1:${port}${path}`, {
    method: 'PUT',
    headers: { authorization: `Bearer ${token}`, 'content-type': type },
    body: new Uint8Array(body),
  });
}

export async function tarBytes(pgdata: string): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of tarOf(pgdata)) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}
