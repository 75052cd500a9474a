/** Objects in a bucket of S3 or of a server that speaks its protocol (MinIO, Ceph, R2 …). The server has to know conditional writes.
 *
 *  Invariants
 *  - The SDK does not retry (retrying-store.ts does), and every request ends with its AbortSignal.
 *  - Bytes are checked against what the answer announces, a range against Content-Range; uploads carry a CRC-32 the server checks.
 *  - A missing bucket is never taken for a missing object.
 *  - An upload in parts becomes visible at its completion, which carries the condition; when it fails, its parts are removed. */
import { Readable } from 'node:stream';
import { crc32 } from 'node:zlib';
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  type CompletedPart,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  DeleteObjectsCommand,
  GetObjectCommand,
  type GetObjectCommandOutput,
  HeadObjectCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
  type S3ClientConfig,
  UploadPartCommand,
} from '@aws-sdk/client-s3';
import { LakebaseError } from '@lakebase/base';
import { type S3Config, objectStoreLocation } from './config.ts';
import { readCredentials } from './credentials.ts';
import { type FilePart, crc32Header, partCrc32, partStream, partsOf } from './file-parts.ts';
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
import { absolute, checkRange, httpRange, parseContentRange } from './range.ts';
import { checkedBody, readBody } from './read-body.ts';
import { s3Error } from './s3-errors.ts';

/** Files up to this go up as one request: a layer of 128 MiB in parts would cost four. */
const SINGLE_BYTES_MAX = 256 * 1024 * 1024;
const PART_BYTES = 64 * 1024 * 1024;
const PARTS_AT_ONCE = 3;
const DELETE_KEYS_MAX = 1_000;
const CONNECT_TIMEOUT_MS = 5_000;

export class S3Store implements ObjectStore {
  readonly location: string;
  readonly #client: S3Client;
  readonly #bucket: string;
  readonly #prefix: string;
  readonly #sums: boolean;
  readonly #sizes: Required<UploadSizes>;

  constructor(config: S3Config, sizes: UploadSizes = {}) {
    this.location = objectStoreLocation(config);
    this.#client = new S3Client(clientConfig(config));
    this.#bucket = config.bucket;
    this.#prefix = config.prefix === undefined ? '' : `${config.prefix}/`;
    this.#sums = config.checksums ?? true;
    this.#sizes = { singleBytesMax: SINGLE_BYTES_MAX, partBytes: PART_BYTES, ...sizes };
  }

  async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    const named = this.#name(key, options);
    const { range, signal } = options;
    if (range !== undefined) checkRange(range, key);
    const asked = range === undefined ? undefined : httpRange(range);
    if (range !== undefined && asked === undefined) return this.#nothing(key, options);
    const what = `get of object ${key}`;
    try {
      const answer = await this.#client.send(
        new GetObjectCommand({ ...named, ...(asked === undefined ? {} : { Range: asked.header }) }),
        signal === undefined ? {} : { abortSignal: signal },
      );
      const part = parseContentRange(answer.ContentRange);
      const info = infoOf(key, part?.size ?? answer.ContentLength, answer.ETag, what);
      const expected = absolute(range, info.size, key);
      const { offset, length } = part ?? { offset: 0, length: info.size };
      if (offset !== expected.offset || length !== expected.length || (answer.ContentLength ?? length) !== length) {
        (answer.Body as Readable).destroy();
        throw new LakebaseError(
          'UNAVAILABLE',
          `${what}: the server sends ${length} bytes at ${offset} instead of ${expected.length} at ${expected.offset}`,
        );
      }
      return { ...info, bytes: await readBody(answer.Body as Readable, length, what, signal) };
    } catch (error) {
      const failure = s3Error(error, what);
      // A range behind the end, which the server refuses and we may have to answer with nothing.
      if (range !== undefined && statusOf(error) === 416) return this.#nothing(key, options);
      throw failure;
    }
  }

  async stream(key: string, options: CallOptions = {}): Promise<ObjectInfo & { readonly body: Readable }> {
    const what = `stream of object ${key}`;
    const named = this.#name(key, options);
    const answer = await this.#send<GetObjectCommandOutput>(what, options, (o) => this.#client.send(new GetObjectCommand(named), o));
    const info = infoOf(key, answer.ContentLength, answer.ETag, what);
    const body = checkedBody(answer.Body as Readable, info.size, what, (error) => s3Error(error, what));
    return { ...info, body: Readable.from(body, { objectMode: false }) };
  }

  async head(key: string, options: CallOptions = {}): Promise<ObjectInfo> {
    const what = `head of object ${key}`;
    const named = this.#name(key, options);
    try {
      const answer = await this.#send(what, options, (o) => this.#client.send(new HeadObjectCommand(named), o));
      return infoOf(key, answer.ContentLength, answer.ETag, what);
    } catch (error) {
      if (statusOf((error as LakebaseError).cause) !== 404) throw error;
      // The answer to HEAD has no body and does not say what is missing; that to GET does.
      return this.#send(what, options, async (o) => {
        const answer = await this.#client.send(new GetObjectCommand({ ...named, Range: 'bytes=0-0' }), o);
        (answer.Body as Readable | undefined)?.destroy();
        throw new LakebaseError('UNAVAILABLE', `${what}: it came while it was asked for`);
      });
    }
  }

  async put(key: string, source: PutSource, options: PutOptions = {}): Promise<ObjectTag> {
    const named = this.#name(key, options);
    await checkSource(source);
    const condition = {
      ...(options.ifAbsent === true ? { IfNoneMatch: '*' } : {}),
      ...(options.ifMatch === undefined ? {} : { IfMatch: options.ifMatch }),
    };
    try {
      if (!Buffer.isBuffer(source) && source.size > this.#sizes.singleBytesMax)
        return await this.#putParts(key, source, condition, options);
      const size = Buffer.isBuffer(source) ? source.length : source.size;
      const sum = Buffer.isBuffer(source) ? crc32(source) : await partCrc32(source.path, { offset: 0, length: size });
      const answer = await this.#client.send(
        new PutObjectCommand({
          ...named,
          ...condition,
          ...this.#sum(sum),
          Body: Buffer.isBuffer(source) ? source : size === 0 ? Buffer.alloc(0) : partStream(source.path, { offset: 0, length: size }),
          ContentLength: size,
          ContentType: 'application/octet-stream',
        }),
        options.signal === undefined ? {} : { abortSignal: options.signal },
      );
      return tagOf(answer.ETag, `put of object ${key}`);
    } catch (error) {
      const failure = s3Error(error, `put of object ${key}`);
      if (failure.code === 'CONFLICT' && options.ifAbsent === true)
        throw new LakebaseError('ALREADY_EXISTS', `object ${key} exists`, { cause: error });
      // There is nothing to replace.
      if (failure.code === 'NOT_FOUND' && options.ifMatch !== undefined)
        throw new LakebaseError('CONFLICT', `object ${key} has changed: it is not there`, { cause: error });
      throw failure;
    }
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    const { after, limit } = options;
    checkSignal(options);
    const answer = await this.#send(`list of ${prefix}`, options, (o) =>
      this.#client.send(
        new ListObjectsV2Command({
          Bucket: this.#bucket,
          Prefix: this.#prefix + prefix,
          MaxKeys: limit ?? 1_000,
          ...(after === undefined ? {} : { StartAfter: this.#prefix + after }),
        }),
        o,
      ),
    );
    const found = answer.Contents ?? [];
    const objects = found.flatMap(({ Key = '', Size = 0, ETag = '' }) => {
      const key = Key.slice(this.#prefix.length);
      return isObjectKey(key) ? [{ key, size: Size, tag: ETag }] : [];
    });
    return { objects, next: answer.IsTruncated === true ? found.at(-1)?.Key?.slice(this.#prefix.length) : undefined };
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    const names = keys.map((key) => this.#name(key, options).Key);
    const [only] = names;
    if (only === undefined) return;
    const what = `delete of object ${keys[0]}`;
    if (names.length === 1) {
      try {
        await this.#send(what, options, (o) => this.#client.send(new DeleteObjectCommand({ Bucket: this.#bucket, Key: only }), o));
      } catch (error) {
        if (!(error instanceof LakebaseError) || error.code !== 'NOT_FOUND') throw error;
      }
      return;
    }
    for (let from = 0; from < names.length; from += DELETE_KEYS_MAX) {
      const Objects = names.slice(from, from + DELETE_KEYS_MAX).map((Key) => ({ Key }));
      const answer = await this.#send(what, options, (o) =>
        this.#client.send(new DeleteObjectsCommand({ Bucket: this.#bucket, Delete: { Objects, Quiet: true } }), o),
      );
      const failed = answer.Errors?.find(({ Code }) => Code !== 'NoSuchKey');
      if (failed !== undefined)
        throw s3Error({ name: failed.Code, message: failed.Message ?? '' }, `delete of object ${failed.Key ?? '?'}`);
    }
  }

  async close(): Promise<void> {
    this.#client.destroy();
  }

  #name(key: string, options: CallOptions): { Bucket: string; Key: string } {
    checkObjectKey(key);
    checkSignal(options);
    return { Bucket: this.#bucket, Key: this.#prefix + key };
  }

  #sum(sum: number): { ChecksumCRC32?: string } {
    return this.#sums ? { ChecksumCRC32: crc32Header(sum) } : {};
  }

  async #send<T>(what: string, options: CallOptions, send: (o: { abortSignal?: AbortSignal }) => Promise<T>): Promise<T> {
    try {
      return await send(options.signal === undefined ? {} : { abortSignal: options.signal });
    } catch (error) {
      throw s3Error(error, what);
    }
  }

  /** An empty range, once it is known that there is one. */
  async #nothing(key: string, options: GetOptions): Promise<ObjectBytes> {
    const info = await this.head(key, options);
    const { length } = absolute(options.range, info.size, key);
    if (length > 0) throw new LakebaseError('UNAVAILABLE', `get of object ${key}: it was replaced meanwhile`);
    return { ...info, bytes: Buffer.alloc(0) };
  }

  async #putParts(key: string, file: { path: string; size: number }, condition: object, options: CallOptions): Promise<ObjectTag> {
    const named = this.#name(key, options);
    const { UploadId } = await this.#client.send(
      new CreateMultipartUploadCommand({
        ...named,
        ContentType: 'application/octet-stream',
        ...(this.#sums ? { ChecksumAlgorithm: 'CRC32' } : {}),
      }),
      options.signal === undefined ? {} : { abortSignal: options.signal },
    );
    if (UploadId === undefined) throw new LakebaseError('UNAVAILABLE', `put of object ${key}: the server begins no upload in parts`);
    // The first failure ends the others.
    const failed = new AbortController();
    const signal = options.signal === undefined ? failed.signal : AbortSignal.any([failed.signal, options.signal]);
    try {
      const parts = partsOf(file.size, this.#sizes.partBytes);
      const done: CompletedPart[] = [];
      let next = 0;
      const work = async (): Promise<void> => {
        for (let i = next++; i < parts.length && !signal.aborted; i = next++) {
          const part = parts[i] as FilePart;
          const sum = this.#sum(await partCrc32(file.path, part));
          const body = { Body: partStream(file.path, part), ContentLength: part.length };
          const { ETag } = await this.#client.send(new UploadPartCommand({ ...named, UploadId, PartNumber: i + 1, ...body, ...sum }), {
            abortSignal: signal,
          });
          done[i] = { PartNumber: i + 1, ETag: tagOf(ETag, `part of object ${key}`), ...sum };
        }
      };
      const workers = Array.from({ length: PARTS_AT_ONCE }, () =>
        work().catch((error: unknown) => {
          failed.abort(error);
          throw error;
        }),
      );
      await Promise.allSettled(workers);
      if (failed.signal.aborted) throw failed.signal.reason;
      checkSignal(options);
      const answer = await this.#client.send(
        new CompleteMultipartUploadCommand({ ...named, ...condition, UploadId, MultipartUpload: { Parts: done } }),
        options.signal === undefined ? {} : { abortSignal: options.signal },
      );
      return tagOf(answer.ETag, `put of object ${key}`);
    } catch (error) {
      // Parts cost money until they are removed. If this fails too, a lifecycle rule has to do it (docs/operating/object-store.md).
      await this.#client
        .send(new AbortMultipartUploadCommand({ ...named, UploadId }), { abortSignal: AbortSignal.timeout(CONNECT_TIMEOUT_MS) })
        .catch(() => {});
      throw error;
    }
  }
}

function clientConfig(config: S3Config): S3ClientConfig {
  const { endpoint, region, credentialsFile, readsMax = 32, writesMax = 8 } = config;
  const agent = { keepAlive: true, maxSockets: readsMax + writesMax * PARTS_AT_ONCE };
  const sums = config.checksums === false ? 'WHEN_REQUIRED' : 'WHEN_SUPPORTED';
  const quiet = (): void => {};
  return {
    maxAttempts: 1,
    // It writes to the console otherwise; what happens is said by our errors.
    logger: { trace: quiet, debug: quiet, info: quiet, warn: quiet, error: quiet },
    forcePathStyle: config.forcePathStyle ?? endpoint !== undefined,
    requestChecksumCalculation: sums,
    responseChecksumValidation: sums,
    requestHandler: { connectionTimeout: CONNECT_TIMEOUT_MS, httpAgent: agent, httpsAgent: agent },
    ...(endpoint === undefined ? {} : { endpoint }),
    // A server of one's own has no regions, and the SDK insists on one.
    ...(region !== undefined ? { region } : endpoint === undefined ? {} : { region: 'us-east-1' }),
    ...(credentialsFile === undefined
      ? {}
      : {
          credentials: readCredentials(credentialsFile, [['accessKeyId', 'secretAccessKey', 'sessionToken?']]) as unknown as {
            accessKeyId: string;
            secretAccessKey: string;
          },
        }),
  };
}

function tagOf(etag: string | undefined, what: string): ObjectTag {
  if (etag === undefined || etag === '') throw new LakebaseError('UNAVAILABLE', `${what}: the server names no ETag`);
  return etag;
}

function infoOf(key: string, size: number | undefined, etag: string | undefined, what: string): ObjectInfo {
  if (size === undefined || !Number.isSafeInteger(size) || size < 0)
    throw new LakebaseError('UNAVAILABLE', `${what}: the server names no length`);
  return { key, size, tag: tagOf(etag, what) };
}

const statusOf = (error: unknown): number | undefined =>
  (error as { $metadata?: { httpStatusCode?: number } } | null)?.$metadata?.httpStatusCode;
