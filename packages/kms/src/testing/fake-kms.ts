/** A stand-in for a KMS that speaks its real wire protocol over HTTP, with switches for everything that can happen to a key and to the way
 *  there. What is the same for all providers: the server, the faults, the administration over HTTP when it runs as a process.
 *
 *  Administration (`POST /_fake/<action>`, JSON): create {name?} → { config }, then disable, enable, scheduleDeletion, cancelDeletion, destroy,
 *  deny, allow, rotate with { key }, faults with a `FakeFaults`, calls → { calls }. */
import { randomBytes } from 'node:crypto';
import { type IncomingMessage, type Server, type ServerResponse, createServer } from 'node:http';
import { type Server as TlsServer, createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { KmsEnvironment, KmsKeyConfig, KmsProvider } from '../types.ts';

export type FakeKeyState = 'ENABLED' | 'DISABLED' | 'PENDING_DELETION' | 'DESTROYED';

export interface FakeReply {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body: string | Buffer;
}

export interface FakeFaults {
  /** `corrupt`: well-formed answers with a flipped bit inside (for Google: a wrong CRC). `proxy403`: an error page of something in between. */
  readonly kind?: 'throttle' | 'error500' | 'hang' | 'reset' | 'garbage' | 'truncate' | 'corrupt' | 'proxy403';
  readonly latencyMs?: number;
  /** Sent instead of the real answer. */
  readonly answer?: FakeReply;
  /** Ends after so many requests. */
  readonly times?: number;
}

export interface FakeCall {
  readonly time: number;
  readonly operation: string;
  readonly status: number;
}

export interface FakeRequest {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: IncomingMessage['headers'];
  readonly body: Buffer;
}

export interface FakeKeyVersion {
  readonly id: string;
  readonly material: Buffer;
}
export interface FakeKey {
  readonly name: string;
  readonly versions: FakeKeyVersion[];
  state: FakeKeyState;
  denied: boolean;
}

export interface FakeTls {
  readonly key: string;
  readonly cert: string;
}

/** What the conformance suite needs of a provider, faked or real. */
export interface KmsHarness {
  readonly provider: KmsProvider;
  environment(): KmsEnvironment;
  createKey(name?: string): KmsKeyConfig | Promise<KmsKeyConfig>;
  /** `key` is that of the configuration. Where a provider has no such state, the nearest that a customer would use. */
  disable(key: string): void | Promise<void>;
  enable(key: string): void | Promise<void>;
  scheduleDeletion(key: string): void | Promise<void>;
  cancelDeletion(key: string): void | Promise<void>;
  destroy(key: string): void | Promise<void>;
  deny(key: string): void | Promise<void>;
  allow(key: string): void | Promise<void>;
  rotate(key: string): void | Promise<void>;
  /** Null where there is no network to disturb. */
  setFaults: ((faults: FakeFaults | null) => void) | null;
  close(): Promise<void>;
}

export abstract class FakeKms implements KmsHarness {
  abstract readonly provider: KmsProvider;
  readonly calls: FakeCall[] = [];
  protected readonly keys = new Map<string, FakeKey>();
  #faults: FakeFaults | null = null;
  #faultsLeft = Number.POSITIVE_INFINITY;
  readonly #server: Server | TlsServer;
  readonly #tls: boolean;

  constructor(tls?: FakeTls) {
    this.#tls = tls !== undefined;
    const onRequest = (request: IncomingMessage, response: ServerResponse): void => {
      this.#serve(request, response).catch((error: unknown) => response.writeHead(500).end(String(error)));
    };
    this.#server = tls === undefined ? createServer(onRequest) : createTlsServer(tls, onRequest);
  }

  /** Answers one request of the provider's protocol. `corrupt`: flip a bit in what is returned. */
  protected abstract answer(request: FakeRequest, corrupt: boolean): FakeReply;
  /** Name of the operation, for `calls`. */
  protected abstract operation(request: FakeRequest): string;
  protected abstract throttled(): FakeReply;
  protected abstract internalError(): FakeReply;
  /** What `KmsKeyConfig` says to use this key. */
  abstract config(key: FakeKey): KmsKeyConfig;
  protected abstract newVersion(key: FakeKey): FakeKeyVersion;
  /** The part of the environment that leads here. */
  abstract environment(): KmsEnvironment;

  async listen(port = 0): Promise<this> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, '127.0.0.1', resolve);
    });
    return this;
  }

  get url(): string {
    return `${this.#tls ? 'https' : 'http'}://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  createKey(name = `key-${randomBytes(4).toString('hex')}`): KmsKeyConfig {
    const key: FakeKey = { name, versions: [], state: 'ENABLED', denied: false };
    key.versions.push(this.newVersion(key));
    this.keys.set(name, key);
    return this.config(key);
  }

  disable(key: string): void {
    this.find(key).state = 'DISABLED';
  }
  enable(key: string): void {
    this.find(key).state = 'ENABLED';
  }
  scheduleDeletion(key: string): void {
    this.find(key).state = 'PENDING_DELETION';
  }
  cancelDeletion(key: string): void {
    this.find(key).state = 'ENABLED';
  }
  destroy(key: string): void {
    this.find(key).state = 'DESTROYED';
  }
  deny(key: string): void {
    this.find(key).denied = true;
  }
  allow(key: string): void {
    this.find(key).denied = false;
  }
  rotate(key: string): void {
    const found = this.find(key);
    found.versions.push(this.newVersion(found));
  }

  /** By the name in a configuration, or the short name. */
  find(key: string): FakeKey {
    const found = this.keys.get(key.split('/').pop() as string) ?? this.keys.get(key);
    if (found === undefined) throw new Error(`the fake has no key ${key}`);
    return found;
  }

  readonly setFaults = (faults: FakeFaults | null): void => {
    this.#faults = faults;
    this.#faultsLeft = faults?.times ?? Number.POSITIVE_INFINITY;
  };

  async #serve(message: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of message) chunks.push(chunk as Buffer);
    const url = new URL(message.url ?? '/', 'http://fake');
    const request: FakeRequest = {
      method: message.method ?? 'GET',
      path: decodeURIComponent(url.pathname),
      query: url.searchParams,
      headers: message.headers,
      body: Buffer.concat(chunks),
    };
    if (request.path.startsWith('/_fake/')) return send(response, this.#administer(request));
    const faults = this.#faultsLeft-- > 0 ? this.#faults : null;
    if (faults?.latencyMs !== undefined) await new Promise((resolve) => setTimeout(resolve, faults.latencyMs));
    const reply = this.#reply(request, faults);
    this.calls.push({ time: Date.now(), operation: this.operation(request), status: reply?.status ?? 0 });
    if (faults?.kind === 'hang') return;
    if (faults?.kind === 'reset') return void message.socket.destroy();
    if (faults?.kind === 'truncate' && reply !== null) {
      const body = Buffer.from(reply.body);
      response.writeHead(reply.status, { ...reply.headers, 'content-length': String(body.length) });
      response.write(body.subarray(0, body.length >> 1), () => message.socket.destroy());
      return;
    }
    send(response, reply ?? this.internalError());
  }

  #reply(request: FakeRequest, faults: FakeFaults | null): FakeReply | null {
    if (faults?.answer !== undefined) return faults.answer;
    switch (faults?.kind) {
      case 'throttle':
        return this.throttled();
      case 'error500':
        return this.internalError();
      case 'hang':
      case 'reset':
        return null;
      case 'garbage':
        return { status: 200, headers: { 'content-type': 'text/html' }, body: '<html>Please sign in to the hotel network</html>' };
      case 'proxy403':
        return { status: 403, headers: { 'content-type': 'text/html' }, body: '<html>Blocked by policy of your company</html>' };
      default:
        return this.answer(request, faults?.kind === 'corrupt');
    }
  }

  #administer(request: FakeRequest): FakeReply {
    const action = request.path.slice('/_fake/'.length);
    const body = (request.body.length === 0 ? {} : JSON.parse(request.body.toString('utf8'))) as {
      key?: string;
      name?: string;
    } & FakeFaults;
    const key = body.key ?? '';
    switch (action) {
      case 'create':
        return json(200, { config: this.createKey(body.name) });
      case 'faults':
        this.setFaults(Object.keys(body).length === 0 ? null : body);
        return json(200, {});
      case 'calls':
        return json(200, { calls: this.calls });
      case 'disable':
      case 'enable':
      case 'scheduleDeletion':
      case 'cancelDeletion':
      case 'destroy':
      case 'deny':
      case 'allow':
      case 'rotate':
        this[action](key);
        return json(200, {});
      default:
        return json(404, { error: `no action ${action}` });
    }
  }
}

export const json = (status: number, body: unknown, headers: Readonly<Record<string, string>> = {}): FakeReply => ({
  status,
  headers: { 'content-type': 'application/json', ...headers },
  body: JSON.stringify(body),
});

function send(response: ServerResponse, reply: FakeReply): void {
  response.writeHead(reply.status, { 'content-length': String(Buffer.byteLength(reply.body)), ...reply.headers }).end(reply.body);
}

/** A copy with its last bit flipped. */
export function flipBit(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  copy[copy.length - 1] = (copy[copy.length - 1] as number) ^ 1;
  return copy;
}

/** Runs a fake as a process: `node fake-….js --port 8080 [--key name]`; prints the configuration of the key as one line of JSON. */
export async function runFake(fake: FakeKms): Promise<void> {
  const option = (name: string): string | undefined => {
    const at = process.argv.indexOf(`--${name}`);
    return at < 0 ? undefined : process.argv[at + 1];
  };
  await fake.listen(Number(option('port') ?? 0));
  process.stdout.write(`${JSON.stringify({ url: fake.url, config: fake.createKey(option('key')) })}\n`);
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => void fake.close().then(() => process.exit(0)));
}
