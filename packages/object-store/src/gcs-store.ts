/** Objects in a bucket of Google Cloud Storage. The tag is the object's generation.
 *
 *  Invariants
 *  - The SDK does not retry (retrying-store.ts does). It takes no AbortSignal: transfers are ended by destroying their streams, small calls are
 *    left behind (deadline-store.ts).
 *  - Bytes are checked against the size that comes with them; uploads carry an MD5 the service checks, so that a body cut
 *    off never becomes an object.
 *  - A missing bucket is never taken for a missing object. */
import { createHash } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { type Bucket, type File, Storage, type StorageOptions } from '@google-cloud/storage';
import { LakebaseError } from '@lakebase/base';
import { type GcsConfig, objectStoreLocation } from './config.ts';
import { readServiceAccount } from './credentials.ts';
import { partMd5, partStream } from './file-parts.ts';
import { gcsError } from './gcs-errors.ts';
import { checkObjectKey, isObjectKey } from './keys.ts';
import type {
  ByteRange,
  CallOptions,
  GetOptions,
  ListOptions,
  ListPage,
  ObjectBytes,
  ObjectInfo,
  ObjectStore,
  ObjectTag,
  PutOptions,
  PutSource,
} from './object-store.ts';
import { checkSignal, checkSource } from './put-source.ts';
import { absolute, checkRange, httpRange, parseContentRange } from './range.ts';
import { checkedBody, readBody } from './read-body.ts';

const DELETES_AT_ONCE = 4;

interface Metadata {
  readonly size?: string | number;
  readonly generation?: string | number;
}

export class GcsStore implements ObjectStore {
  readonly location: string;
  readonly #bucket: Bucket;
  readonly #prefix: string;

  constructor(config: GcsConfig) {
    this.location = objectStoreLocation(config);
    this.#bucket = new Storage(storageOptions(config)).bucket(config.bucket);
    this.#prefix = config.prefix === undefined ? '' : `${config.prefix}/`;
  }

  async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    const what = `get of object ${key}`;
    const { range, signal } = options;
    checkObjectKey(key);
    checkSignal(options);
    if (range !== undefined) checkRange(range, key);
    if (range !== undefined && httpRange(range) === undefined) return this.#nothing(key, options);
    try {
      const { info, offset, length, body } = await this.#media(key, range, what, signal);
      const expected = absolute(range, info.size, key);
      if (offset !== expected.offset || length !== expected.length) {
        body.destroy();
        throw new LakebaseError(
          'UNAVAILABLE',
          `${what}: the server sends ${length} bytes at ${offset} instead of ${expected.length} at ${expected.offset}`,
        );
      }
      return { ...info, bytes: await readBody(body, length, what, signal) };
    } catch (error) {
      if (range !== undefined && (error as { code?: unknown }).code === 416) return this.#nothing(key, options);
      throw await this.#explained(error, what);
    }
  }

  async stream(key: string, options: CallOptions = {}): Promise<ObjectInfo & { readonly body: Readable }> {
    const what = `stream of object ${key}`;
    checkObjectKey(key);
    checkSignal(options);
    try {
      const { info, body } = await this.#media(key, undefined, what, options.signal);
      return {
        ...info,
        body: Readable.from(
          checkedBody(body, info.size, what, (error) => gcsError(error, what)),
          { objectMode: false },
        ),
      };
    } catch (error) {
      throw await this.#explained(error, what);
    }
  }

  async head(key: string, options: CallOptions = {}): Promise<ObjectInfo> {
    const what = `head of object ${key}`;
    checkObjectKey(key);
    checkSignal(options);
    try {
      const [metadata] = await this.#file(key).getMetadata();
      return infoOf(key, metadata, what);
    } catch (error) {
      throw await this.#explained(error, what);
    }
  }

  async put(key: string, source: PutSource, options: PutOptions = {}): Promise<ObjectTag> {
    const what = `put of object ${key}`;
    checkObjectKey(key);
    checkSignal(options);
    await checkSource(source);
    const size = Buffer.isBuffer(source) ? source.length : source.size;
    const md5 = Buffer.isBuffer(source)
      ? createHash('md5').update(source).digest()
      : await partMd5(source.path, { offset: 0, length: size });
    const file = this.#file(key);
    const generation = options.ifAbsent === true ? 0 : options.ifMatch;
    const upload = file.createWriteStream({
      resumable: false,
      validation: false,
      contentType: 'application/octet-stream',
      metadata: { md5Hash: md5.toString('base64') },
      ...(generation === undefined ? {} : { preconditionOpts: { ifGenerationMatch: generation } }),
    });
    const body = Buffer.isBuffer(source)
      ? Readable.from([source])
      : size === 0
        ? Readable.from([])
        : partStream(source.path, { offset: 0, length: size });
    try {
      await pipeline(body, upload, options.signal === undefined ? {} : { signal: options.signal });
      return infoOf(key, file.metadata as Metadata, what).tag;
    } catch (error) {
      const failure = await this.#explained(error, what);
      if (failure.code === 'CONFLICT' && options.ifAbsent === true)
        throw new LakebaseError('ALREADY_EXISTS', `object ${key} exists`, { cause: error });
      if (failure.code === 'NOT_FOUND')
        throw new LakebaseError(options.ifMatch === undefined ? 'UNAVAILABLE' : 'CONFLICT', failure.message, { cause: error });
      throw failure;
    }
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    const what = `list of ${prefix}`;
    const { after = '', limit = 1_000 } = options;
    checkSignal(options);
    const objects: ObjectInfo[] = [];
    let pageToken: string | undefined;
    try {
      do {
        const [files, next] = await this.#bucket.getFiles({
          prefix: this.#prefix + prefix,
          // The one it starts from is in it.
          maxResults: limit + 1,
          autoPaginate: false,
          ...(after === '' ? {} : { startOffset: this.#prefix + after }),
          ...(pageToken === undefined ? {} : { pageToken }),
        });
        for (const file of files) {
          const key = file.name.slice(this.#prefix.length);
          if (key <= after || !isObjectKey(key)) continue;
          if (objects.length === limit) return { objects, next: objects.at(-1)?.key };
          objects.push(infoOf(key, file.metadata as Metadata, what));
        }
        pageToken = (next as { pageToken?: string } | null)?.pageToken;
      } while (pageToken !== undefined);
      return { objects, next: undefined };
    } catch (error) {
      throw gcsError(error, what);
    }
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    for (const key of keys) checkObjectKey(key);
    let next = 0;
    const work = async (): Promise<void> => {
      for (let i = next++; i < keys.length; i = next++) {
        checkSignal(options);
        const key = keys[i] as string;
        try {
          await this.#file(key).delete();
        } catch (error) {
          const failure = gcsError(error, `delete of object ${key}`);
          if (failure.code !== 'NOT_FOUND') throw failure;
        }
      }
    };
    await Promise.all(Array.from({ length: DELETES_AT_ONCE }, work));
  }

  async close(): Promise<void> {}

  #file(key: string): File {
    return this.#bucket.file(this.#prefix + key);
  }

  /** The headers and the body to come. Errors are the SDK's. */
  async #media(key: string, range: ByteRange | undefined, what: string, signal: AbortSignal | undefined): Promise<Media> {
    const body = this.#file(key).createReadStream({ validation: false, decompress: false, ...streamRange(range) });
    const { promise, resolve, reject } = Promise.withResolvers<IncomingHttpHeaders>();
    const stop = (): void => void body.destroy(new LakebaseError('UNAVAILABLE', `${what}: the call was ended`));
    signal?.addEventListener('abort', stop, { once: true });
    // Stays, for errors between now and the reading of the body, which sees them too.
    body.on('error', reject);
    // Of other answers the SDK makes an error.
    body.once('response', (r: { statusCode?: number; headers: IncomingHttpHeaders }) => {
      if (r.statusCode === 200 || r.statusCode === 206) resolve(r.headers);
    });
    // The request is made when somebody reads.
    body.read(0);
    try {
      const headers = await promise;
      const part = parseContentRange(headers['content-range']);
      const size =
        part?.size ??
        (range === undefined ? headers['content-length'] : undefined) ??
        String(headers['x-goog-stored-content-length'] ?? '');
      const info = infoOf(key, { size, generation: String(headers['x-goog-generation'] ?? '') }, what);
      return { info, offset: part?.offset ?? 0, length: part?.length ?? info.size, body };
    } catch (error) {
      body.destroy();
      throw error;
    } finally {
      signal?.removeEventListener('abort', stop);
    }
  }

  /** An empty range, once it is known that there is one. */
  async #nothing(key: string, options: GetOptions): Promise<ObjectBytes> {
    const info = await this.head(key, options);
    const { length } = absolute(options.range, info.size, key);
    if (length > 0) throw new LakebaseError('UNAVAILABLE', `get of object ${key}: it was replaced meanwhile`);
    return { ...info, bytes: Buffer.alloc(0) };
  }

  /** A 404 that does not say what is missing: whether the bucket is there, a list tells. */
  async #explained(error: unknown, what: string): Promise<LakebaseError> {
    const failure = gcsError(error, what);
    if (failure.code !== 'NOT_FOUND' || /no such object:/i.test((error as Error).message)) return failure;
    try {
      await this.#bucket.getFiles({ maxResults: 1, autoPaginate: false, prefix: this.#prefix });
      return failure;
    } catch (cause) {
      const listing = gcsError(cause, what);
      if (listing.code !== 'NOT_FOUND') return listing;
      return gcsError({ code: 404, message: 'The specified bucket does not exist.' }, what);
    }
  }
}

interface Media {
  readonly info: ObjectInfo;
  readonly offset: number;
  readonly length: number;
  readonly body: Readable;
}

/** Ends are inclusive; a negative end asks for the last bytes. */
function streamRange(range: ByteRange | undefined): { start?: number; end?: number } {
  if (range === undefined) return {};
  return 'suffix' in range
    ? { end: -range.suffix }
    : { start: range.offset, end: Math.min(range.offset + range.length - 1, Number.MAX_SAFE_INTEGER) };
}

function storageOptions(config: GcsConfig): StorageOptions {
  const { endpoint, credentialsFile } = config;
  const account = credentialsFile === undefined ? undefined : readServiceAccount(credentialsFile);
  return {
    // Only calls about buckets need one.
    projectId: 'unused',
    retryOptions: { autoRetry: false, maxRetries: 0 },
    ...(account === undefined ? {} : { credentials: account }),
    // An emulator on this machine wants no credentials.
    ...(endpoint === undefined
      ? {}
      : { apiEndpoint: endpoint.replace(/\/+$/, ''), useAuthWithCustomEndpoint: account !== undefined || endpoint.startsWith('https:') }),
  };
}

function infoOf(key: string, metadata: Metadata, what: string): ObjectInfo {
  const size = Number(metadata.size);
  if (metadata.size === undefined || !Number.isSafeInteger(size) || size < 0)
    throw new LakebaseError('UNAVAILABLE', `${what}: the server names no size`);
  const { generation } = metadata;
  if (generation === undefined || String(generation) === '')
    throw new LakebaseError('UNAVAILABLE', `${what}: the server names no generation`);
  return { key, size, tag: String(generation) };
}
