/** Objects as block blobs in a container of Azure Blob Storage.
 *
 *  Invariants
 *  - The SDK does not retry (retrying-store.ts does), and every request ends with its AbortSignal.
 *  - Bytes are checked against what the answer announces, a range against Content-Range.
 *  - A missing container is never taken for a missing object.
 *  - A large file is put as blocks, which become visible together with their list; the condition is on the list. Blocks without a list are
 *    removed by the service after a week. */
import { Readable } from 'node:stream';
import {
  type BlobRequestConditions,
  type BlockBlobClient,
  ContainerClient,
  StorageSharedKeyCredential,
  newPipeline,
} from '@azure/storage-blob';
import { LakebaseError } from '@lakebase/base';
import { type AzureConfig, objectStoreLocation } from './config.ts';
import { readCredentials } from './credentials.ts';
import { azureError } from './azure-errors.ts';
import { type FilePart, partMd5, partStream, partsOf } from './file-parts.ts';
import { checkObjectKey, isObjectKey } from './keys.ts';
import type {
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
  UploadSizes,
} from './object-store.ts';
import { checkSignal, checkSource } from './put-source.ts';
import { absolute, checkRange, parseContentRange } from './range.ts';
import { checkedBody, readBody } from './read-body.ts';

const SINGLE_BYTES_MAX = 256 * 1024 * 1024;
const PART_BYTES = 64 * 1024 * 1024;
const PARTS_AT_ONCE = 3;

export class AzureStore implements ObjectStore {
  readonly location: string;
  readonly #open: Promise<ContainerClient>;
  readonly #prefix: string;
  readonly #sizes: Required<UploadSizes>;

  constructor(config: AzureConfig, sizes: UploadSizes = {}) {
    this.location = objectStoreLocation(config);
    this.#prefix = config.prefix === undefined ? '' : `${config.prefix}/`;
    this.#open = openContainer(config);
    // A wrong file of credentials is said by the first call, and is no unhandled rejection before.
    this.#open.catch(() => {});
    this.#sizes = { singleBytesMax: SINGLE_BYTES_MAX, partBytes: PART_BYTES, ...sizes };
  }

  async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    const what = `get of object ${key}`;
    const blob = await this.#blob(key, options);
    const { range } = options;
    if (range !== undefined) checkRange(range, key);
    // There is no way to ask for the last bytes, nor for none; an empty blob has no range.
    if (range !== undefined && ('suffix' in range || range.length === 0)) {
      const info = await this.head(key, options);
      const { offset, length } = absolute(range, info.size, key);
      if (length === 0) return { ...info, bytes: Buffer.alloc(0) };
      return this.#download(blob, key, offset, length, { ...options, tag: info.tag });
    }
    try {
      return await this.#download(blob, key, range?.offset ?? 0, range?.length, options);
    } catch (error) {
      const failure = azureError(error, what);
      if (range === undefined || (error as { statusCode?: number }).statusCode !== 416) throw failure;
      return this.#nothing(key, options);
    }
  }

  async stream(key: string, options: CallOptions = {}): Promise<ObjectInfo & { readonly body: Readable }> {
    const what = `stream of object ${key}`;
    const blob = await this.#blob(key, options);
    try {
      const answer = await blob.download(0, undefined, { ...abort(options), maxRetryRequests: 0 });
      const info = infoOf(key, answer.contentLength, answer.etag, what);
      const body = checkedBody(answer.readableStreamBody as Readable, info.size, what, (error) => azureError(error, what));
      return { ...info, body: Readable.from(body, { objectMode: false }) };
    } catch (error) {
      throw azureError(error, what);
    }
  }

  async head(key: string, options: CallOptions = {}): Promise<ObjectInfo> {
    const what = `head of object ${key}`;
    const blob = await this.#blob(key, options);
    try {
      const { contentLength, etag } = await blob.getProperties(abort(options));
      return infoOf(key, contentLength, etag, what);
    } catch (error) {
      throw azureError(error, what);
    }
  }

  async put(key: string, source: PutSource, options: PutOptions = {}): Promise<ObjectTag> {
    const what = `put of object ${key}`;
    const blob = await this.#blob(key, options);
    await checkSource(source);
    const conditions: BlobRequestConditions = {
      ...(options.ifAbsent === true ? { ifNoneMatch: '*' } : {}),
      ...(options.ifMatch === undefined ? {} : { ifMatch: options.ifMatch }),
    };
    try {
      if (!Buffer.isBuffer(source) && source.size > this.#sizes.singleBytesMax)
        return await this.#putBlocks(blob, source, conditions, what, options);
      const size = Buffer.isBuffer(source) ? source.length : source.size;
      const body = Buffer.isBuffer(source) || size === 0 ? (source as Buffer) : () => partStream(source.path, { offset: 0, length: size });
      const { etag } = await blob.upload(size === 0 ? Buffer.alloc(0) : body, size, { conditions, ...abort(options) });
      return tagOf(etag, what);
    } catch (error) {
      const failure = azureError(error, what);
      if (failure.code === 'CONFLICT' && options.ifAbsent === true)
        throw new LakebaseError('ALREADY_EXISTS', `object ${key} exists`, { cause: error });
      if (failure.code === 'NOT_FOUND' && options.ifMatch !== undefined)
        throw new LakebaseError('CONFLICT', `object ${key} has changed: it is not there`, { cause: error });
      throw failure;
    }
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    const what = `list of ${prefix}`;
    const { after = '', limit = 1_000 } = options;
    checkSignal(options);
    const container = await this.#open;
    const objects: ObjectInfo[] = [];
    try {
      const pages = container
        .listBlobsFlat({ prefix: this.#prefix + prefix, ...(after === '' ? {} : { startFrom: this.#prefix + after }), ...abort(options) })
        // The one it starts from is in it.
        .byPage({ maxPageSize: limit + 1 });
      for await (const { segment } of pages) {
        for (const { name, properties } of segment.blobItems) {
          const key = name.slice(this.#prefix.length);
          if (key <= after || !isObjectKey(key)) continue;
          if (objects.length === limit) return { objects, next: objects.at(-1)?.key };
          objects.push(infoOf(key, properties.contentLength, quoted(properties.etag), what));
        }
      }
      return { objects, next: undefined };
    } catch (error) {
      throw azureError(error, what);
    }
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    const blobs: BlockBlobClient[] = [];
    for (const key of keys) blobs.push(await this.#blob(key, options));
    let next = 0;
    const work = async (): Promise<void> => {
      for (let i = next++; i < blobs.length; i = next++) {
        const what = `delete of object ${keys[i]}`;
        try {
          await blobs[i]?.delete(abort(options));
        } catch (error) {
          const failure = azureError(error, what);
          if (failure.code !== 'NOT_FOUND') throw failure;
        }
      }
    };
    await Promise.all(Array.from({ length: 4 }, work));
  }

  async close(): Promise<void> {}

  async #blob(key: string, options: CallOptions): Promise<BlockBlobClient> {
    checkObjectKey(key);
    checkSignal(options);
    return (await this.#open).getBlockBlobClient(this.#prefix + key);
  }

  async #download(
    blob: BlockBlobClient,
    key: string,
    offset: number,
    length: number | undefined,
    options: GetOptions & { readonly tag?: ObjectTag },
  ): Promise<ObjectBytes> {
    const what = `get of object ${key}`;
    const answer = await blob.download(offset, length, {
      ...abort(options),
      ...(options.tag === undefined ? {} : { conditions: { ifMatch: options.tag } }),
      maxRetryRequests: 0,
    });
    const body = answer.readableStreamBody as Readable;
    const part = parseContentRange(answer.contentRange);
    // Azurite's answer to a range behind the end; the service says 416.
    if (part === undefined && length !== undefined && answer.contentLength === 0) {
      body.destroy();
      return this.#nothing(key, { ...options, range: { offset, length } });
    }
    const info = infoOf(key, part?.size ?? answer.contentLength, answer.etag, what);
    const expected = absolute(length === undefined ? undefined : { offset, length }, info.size, key);
    if ((part?.offset ?? 0) !== expected.offset || (part?.length ?? info.size) !== expected.length) {
      body.destroy();
      throw new LakebaseError(
        'UNAVAILABLE',
        `${what}: the server sends ${answer.contentRange ?? 'all'} instead of ${expected.length} bytes at ${expected.offset}`,
      );
    }
    return { ...info, bytes: await readBody(body, expected.length, what, options.signal) };
  }

  /** An empty range, once it is known that there is one. */
  async #nothing(key: string, options: GetOptions): Promise<ObjectBytes> {
    const info = await this.head(key, options);
    const { length } = absolute(options.range, info.size, key);
    if (length > 0) throw new LakebaseError('UNAVAILABLE', `get of object ${key}: it was replaced meanwhile`);
    return { ...info, bytes: Buffer.alloc(0) };
  }

  async #putBlocks(
    blob: BlockBlobClient,
    file: { path: string; size: number },
    conditions: BlobRequestConditions,
    what: string,
    options: CallOptions,
  ): Promise<ObjectTag> {
    const parts = partsOf(file.size, this.#sizes.partBytes);
    // Blocks of uploads that fight over a name must not mix: their ids differ. All ids of a blob have one length.
    const upload = crypto.randomUUID();
    const ids = parts.map((_, i) => Buffer.from(`${upload}-${String(i).padStart(6, '0')}`).toString('base64'));
    let next = 0;
    const work = async (): Promise<void> => {
      for (let i = next++; i < parts.length; i = next++) {
        const part = parts[i] as FilePart;
        await blob.stageBlock(ids[i] as string, () => partStream(file.path, part), part.length, {
          ...abort(options),
          transactionalContentMD5: await partMd5(file.path, part),
        });
      }
    };
    await Promise.all(Array.from({ length: PARTS_AT_ONCE }, work));
    const { etag } = await blob.commitBlockList(ids, { conditions, ...abort(options) });
    return tagOf(etag, what);
  }
}

const abort = ({ signal }: CallOptions): { abortSignal?: AbortSignal } => (signal === undefined ? {} : { abortSignal: signal });

async function openContainer(config: AzureConfig): Promise<ContainerClient> {
  const { account, container, credentialsFile } = config;
  const endpoint = (config.endpoint ?? `https://${account}.blob.core.windows.net`).replace(/\/+$/, '');
  const url = `${endpoint}/${container}`;
  const options = { retryOptions: { maxTries: 1 }, keepAliveOptions: { enable: true } };
  if (credentialsFile !== undefined) {
    const given = readCredentials(credentialsFile, [['accountKey'], ['sasToken'], ['tenantId', 'clientId', 'clientSecret']]);
    if (given['accountKey'] !== undefined)
      return new ContainerClient(url, newPipeline(new StorageSharedKeyCredential(account, given['accountKey']), options));
    if (given['sasToken'] !== undefined) return new ContainerClient(`${url}?${given['sasToken'].replace(/^\?/, '')}`, undefined, options);
    const { ClientSecretCredential } = await import('@azure/identity');
    const { tenantId = '', clientId = '', clientSecret = '' } = given;
    return new ContainerClient(url, newPipeline(new ClientSecretCredential(tenantId, clientId, clientSecret), options));
  }
  const { DefaultAzureCredential } = await import('@azure/identity');
  return new ContainerClient(url, newPipeline(new DefaultAzureCredential(), options));
}

/** Lists name tags without their quotes. */
const quoted = (etag: string): string => (etag === '' || etag.startsWith('"') ? etag : `"${etag}"`);

function tagOf(etag: string | undefined, what: string): ObjectTag {
  if (etag === undefined || etag === '') throw new LakebaseError('UNAVAILABLE', `${what}: the server names no ETag`);
  return etag;
}

function infoOf(key: string, size: number | undefined, etag: string | undefined, what: string): ObjectInfo {
  if (size === undefined || !Number.isSafeInteger(size) || size < 0)
    throw new LakebaseError('UNAVAILABLE', `${what}: the server names no length`);
  return { key, size, tag: tagOf(etag, what) };
}
