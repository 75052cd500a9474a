/** REST in front of a Google Cloud KMS emulator that speaks gRPC only: interop tests of our adapter, which uses REST. The messages are encoded
 *  by Google's own protobuf code; only the way from JSON to fields is ours. Unary calls without TLS, one connection, nothing is kept. */
import { type Server, createServer } from 'node:http';
import { type ClientHttp2Session, type IncomingHttpHeaders, connect, constants } from 'node:http2';
import type { AddressInfo } from 'node:net';

type Json = Record<string, unknown>;
interface Codec {
  fromObject(fields: Json): unknown;
  encode(message: never): { finish(): Uint8Array };
  decode(bytes: Uint8Array): unknown;
}
interface Call {
  readonly method: string;
  readonly request: string;
  readonly response: string;
  readonly fields: Json;
}

/** Status by gRPC code: name and HTTP status, as Google's REST front end answers. */
const STATUS: Readonly<Record<number, readonly [string, number]>> = {
  3: ['INVALID_ARGUMENT', 400],
  5: ['NOT_FOUND', 404],
  6: ['ALREADY_EXISTS', 409],
  7: ['PERMISSION_DENIED', 403],
  9: ['FAILED_PRECONDITION', 400],
  12: ['UNIMPLEMENTED', 501],
  14: ['UNAVAILABLE', 503],
  16: ['UNAUTHENTICATED', 401],
};
const SERVICE = '/google.cloud.kms.v1.KeyManagementService/';
const CALL_MS = 10_000;

class GrpcError extends Error {
  readonly code: number;
  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

export class GoogleGrpcBridge {
  readonly #session: ClientHttp2Session;
  readonly #server: Server;

  /** `target`: `http://127.0.0.1:9010`. */
  constructor(target: string) {
    this.#session = connect(target);
    this.#session.on('error', () => {});
    this.#server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        this.#answer(request.method ?? '', new URL(request.url ?? '/', 'http://bridge'), Buffer.concat(chunks))
          .then((body) => ({ status: 200, body }))
          .catch((error: unknown) => {
            const [status, code] = STATUS[error instanceof GrpcError ? error.code : 13] ?? ['INTERNAL', 500];
            return { status: code, body: { error: { code, status, message: (error as Error).message } } };
          })
          .then(({ status, body }) => response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body)))
          .catch(() => response.destroy());
      });
    });
  }

  async listen(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    return this;
  }
  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }
  async close(): Promise<void> {
    this.#session.destroy();
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  async #answer(method: string, url: URL, body: Buffer): Promise<Json> {
    const { google } = (await import('@google-cloud/kms')).protos;
    const messages = google.cloud.kms.v1 as unknown as Readonly<Record<string, Codec>>;
    const call = callOf(method, url, body.length === 0 ? {} : (JSON.parse(body.toString('utf8')) as Json));
    const request = messages[call.request] as Codec;
    const bytes = request.encode(request.fromObject(call.fields) as never).finish();
    const answer = (messages[call.response] as Codec).decode(await this.#unary(call.method, bytes)) as Json;
    return jsonOf(answer);
  }

  /** One message there, one back; gRPC's frame is a zero byte and the length. */
  #unary(method: string, message: Uint8Array): Promise<Buffer> {
    const head = Buffer.alloc(5);
    head.writeUInt32BE(message.length, 1);
    return new Promise((resolve, reject) => {
      const stream = this.#session.request({
        [constants.HTTP2_HEADER_METHOD]: 'POST',
        [constants.HTTP2_HEADER_PATH]: SERVICE + method,
        [constants.HTTP2_HEADER_CONTENT_TYPE]: 'application/grpc',
        [constants.HTTP2_HEADER_TE]: 'trailers',
      });
      stream.setTimeout(CALL_MS, () => stream.close(constants.NGHTTP2_CANCEL));
      const chunks: Buffer[] = [];
      // Without a message the trailers come as the headers.
      let status: IncomingHttpHeaders = {};
      const take = (headers: IncomingHttpHeaders): void => {
        if (headers['grpc-status'] !== undefined) status = headers;
      };
      stream.on('response', take);
      stream.on('trailers', take);
      stream.on('data', (chunk: Buffer) => chunks.push(chunk));
      stream.on('error', (error) => reject(new GrpcError(14, error.message)));
      stream.on('close', () => {
        const code = Number(status['grpc-status'] ?? 14);
        if (code === 0) resolve(Buffer.concat(chunks).subarray(5));
        else reject(new GrpcError(code, decodeURIComponent([status['grpc-message'] ?? 'no answer'].join())));
      });
      stream.end(Buffer.concat([head, message]));
    });
  }
}

function callOf(method: string, url: URL, body: Json): Call {
  const [path = '', verb] = decodeURIComponent(url.pathname.slice('/v1/'.length)).split(':');
  const [, parent = '', leaf = ''] = /^(.*)\/([^/]+)$/.exec(path) ?? [];
  const name = { name: path };
  switch (verb ?? `${method} ${leaf}`) {
    case 'encrypt':
    case 'decrypt': {
      const kind = verb === 'encrypt' ? 'Encrypt' : 'Decrypt';
      return { method: kind, request: `${kind}Request`, response: `${kind}Response`, fields: { ...wrapped(body), ...name } };
    }
    case 'updatePrimaryVersion':
      return {
        method: 'UpdateCryptoKeyPrimaryVersion',
        request: 'UpdateCryptoKeyPrimaryVersionRequest',
        response: 'CryptoKey',
        fields: { ...body, ...name },
      };
    case 'POST keyRings':
      return {
        method: 'CreateKeyRing',
        request: 'CreateKeyRingRequest',
        response: 'KeyRing',
        fields: { parent, keyRingId: url.searchParams.get('keyRingId'), keyRing: {} },
      };
    case 'POST cryptoKeys':
      return {
        method: 'CreateCryptoKey',
        request: 'CreateCryptoKeyRequest',
        response: 'CryptoKey',
        fields: { parent, cryptoKeyId: url.searchParams.get('cryptoKeyId'), cryptoKey: body },
      };
    case 'POST cryptoKeyVersions':
      return {
        method: 'CreateCryptoKeyVersion',
        request: 'CreateCryptoKeyVersionRequest',
        response: 'CryptoKeyVersion',
        fields: { parent, cryptoKeyVersion: {} },
      };
    default:
      if (method === 'GET') return { method: 'GetCryptoKey', request: 'GetCryptoKeyRequest', response: 'CryptoKey', fields: name };
      throw new GrpcError(12, `${method} ${url.pathname} is not here`);
  }
}

/** JSON has an Int64Value as a string; the message wants the wrapper. Bytes are base64 in both. */
const wrapped = (body: Json): Json =>
  Object.fromEntries(Object.entries(body).map(([field, value]) => [field, field.endsWith('Crc32c') ? { value } : value]));

/** What the adapter reads, as REST spells it. */
function jsonOf(message: Json): Json {
  const out: Json = {};
  for (const field of ['name', 'plaintext', 'ciphertext', 'plaintextCrc32c', 'ciphertextCrc32c', 'primary'])
    if (Object.hasOwn(message, field)) out[field] = valueOf(message[field]);
  for (const field of ['verifiedPlaintextCrc32c', 'verifiedAdditionalAuthenticatedDataCrc32c', 'usedPrimary'])
    if (message[field] === true) out[field] = true;
  return out;
}
function valueOf(value: unknown): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('base64');
  if (typeof value !== 'object' || value === null) return value;
  return 'value' in value ? String(value.value) : jsonOf(value as Json);
}
