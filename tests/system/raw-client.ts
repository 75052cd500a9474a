/** Clients that say whatever they are told to: raw bytes over TCP or a Unix socket, HTTP without normalised paths.
 *  Invariant: every wait has a deadline, and what ends it early is an event of the socket. */
import { type IncomingHttpHeaders, request as httpRequest } from 'node:http';
import { type Socket, connect } from 'node:net';

const ANSWER_MS = 10_000;

export interface Where {
  readonly port?: number;
  readonly path?: string;
  /** Stays open for writing when the other side has ended: only its reset or our own end closes it. */
  readonly stubborn?: boolean;
}

/** One raw connection: `send`, and promises for what comes back. */
export class RawClient implements Disposable {
  readonly socket: Socket;
  #received = Buffer.alloc(0);
  #closed = false;
  readonly #waiting = new Set<() => void>();

  constructor(where: Where) {
    this.socket =
      where.path === undefined
        ? connect({ port: where.port ?? 0, host: '127.0.0.1', noDelay: true, allowHalfOpen: where.stubborn === true })
        : connect({ path: where.path });
    this.socket.on('data', (chunk) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#notify();
    });
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.#closed = true;
      this.#notify();
    });
  }

  get received(): Buffer {
    return this.#received;
  }
  get closed(): boolean {
    return this.#closed;
  }

  send(...chunks: readonly (Buffer | string)[]): this {
    for (const chunk of chunks) if (!this.socket.destroyed) this.socket.write(chunk);
    return this;
  }

  /** Ends our side only. */
  finish(): this {
    this.socket.end();
    return this;
  }

  /** What `found` returns for the bytes received so far, as soon as it is not undefined. */
  async until<T>(what: string, found: (received: Buffer) => T | undefined, ms = ANSWER_MS): Promise<T> {
    const deadline = performance.now() + ms;
    for (;;) {
      const value = found(this.#received);
      if (value !== undefined) return value;
      if (this.#closed) throw new Error(`closed before ${what}; received ${describe(this.#received)}`);
      const left = deadline - performance.now();
      if (left <= 0) throw new Error(`no ${what} within ${ms} ms; received ${describe(this.#received)}`);
      await this.#event(left);
    }
  }

  /** Everything the other side said, once it has closed the connection. */
  async untilClosed(ms = ANSWER_MS): Promise<Buffer> {
    const deadline = performance.now() + ms;
    while (!this.#closed) {
      const left = deadline - performance.now();
      if (left <= 0) throw new Error(`not closed within ${ms} ms; received ${describe(this.#received)}`);
      await this.#event(left);
    }
    return this.#received;
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }

  #notify(): void {
    for (const wake of this.#waiting) wake();
  }

  #event(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      this.#waiting.add(done);
    });
  }
}

const describe = (bytes: Buffer): string => `${bytes.length} bytes ${JSON.stringify(bytes.subarray(0, 120).toString('latin1'))}`;

/** Sends the chunks, and returns all that came back when the other side closed. */
export async function tell(where: Where, ...chunks: readonly (Buffer | string)[]): Promise<Buffer> {
  using client = new RawClient(where);
  return await client.send(...chunks).untilClosed();
}

export const u32 = (value: number): Buffer => {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(value >>> 0);
  return out;
};

/** A start-up packet with any length field, code and payload. */
export const startupPacket = (payload: Buffer | string, options: { readonly length?: number; readonly code?: number } = {}): Buffer => {
  const body = Buffer.from(payload as string);
  return Buffer.concat([u32(options.length ?? 8 + body.length), u32(options.code ?? 0x0003_0000), body]);
};

/** `name\0value\0…\0\0`. */
export const startupParameters = (values: Readonly<Record<string, string>>): string =>
  `${Object.entries(values)
    .map(([name, value]) => `${name}\0${value}\0`)
    .join('')}\0`;

/** A typed message with any length field. */
export const typedMessage = (type: string, body: Buffer | string, length?: number): Buffer => {
  const bytes = Buffer.from(body as string);
  return Buffer.concat([Buffer.from(type), u32(length ?? 4 + bytes.length), bytes]);
};

/** The fields of the first ErrorResponse in what a Postgres server said, by their letter. */
export function errorIn(bytes: Buffer): Readonly<Record<string, string>> | undefined {
  for (let at = 0; at + 5 <= bytes.length; ) {
    const length = bytes.readUInt32BE(at + 1);
    if (at + 1 + length > bytes.length) return undefined;
    if (bytes[at] === 0x45) {
      const fields: Record<string, string> = {};
      for (const part of bytes
        .subarray(at + 5, at + 1 + length)
        .toString('utf8')
        .split('\0'))
        if (part !== '') fields[part[0] as string] = part.slice(1);
      return fields;
    }
    at += 1 + length;
  }
  return undefined;
}

/** Whether an Authentication message asking for SASL, or its continuation, is among the bytes. */
export const saslAnswer =
  (code: 10 | 11) =>
  (bytes: Buffer): string | undefined => {
    for (let at = 0; at + 9 <= bytes.length; ) {
      const length = bytes.readUInt32BE(at + 1);
      if (at + 1 + length > bytes.length) return undefined;
      if (bytes[at] === 0x52 && bytes.readUInt32BE(at + 5) === code) return bytes.subarray(at + 9, at + 1 + length).toString('latin1');
      if (bytes[at] === 0x45) throw new Error(`refused: ${JSON.stringify(errorIn(bytes))}`);
      at += 1 + length;
    }
    return undefined;
  };

export interface HttpAnswer {
  readonly status: number;
  readonly text: string;
  readonly headers: IncomingHttpHeaders;
}
export interface HttpAsk {
  readonly method?: string;
  readonly token?: string | undefined;
  readonly body?: string | Buffer | undefined;
  readonly type?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

/** The path goes out exactly as given: `%2e%2e` and `..` included. */
export function http(port: number, path: string, ask: HttpAsk = {}): Promise<HttpAnswer> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({
      host: '127.0.0.1',
      port,
      path,
      method: ask.method ?? 'GET',
      timeout: ANSWER_MS,
      agent: false,
      headers: {
        ...(ask.token === undefined ? {} : { authorization: `Bearer ${ask.token}` }),
        ...(ask.body === undefined
          ? {}
          : { 'content-type': ask.type ?? 'application/json', 'content-length': Buffer.byteLength(ask.body) }),
        ...ask.headers,
      },
    });
    request.on('timeout', () =>
      request.destroy(new Error(`${ask.method ?? 'GET'} ${path.slice(0, 80)}: no answer within ${ANSWER_MS} ms`)),
    );
    request.on('response', (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk;
      });
      response.on('error', reject);
      response.on('end', () => {
        request.destroy();
        resolve({ status: response.statusCode ?? 0, text, headers: response.headers });
      });
    });
    request.on('error', reject);
    request.end(ask.body);
  });
}
