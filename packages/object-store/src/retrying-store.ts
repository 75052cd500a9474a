/** Repeats what may pass (UNAVAILABLE; RESOURCE_EXHAUSTED, which is also throttling; CORRUPT once, it may have happened on the way), with exponential
 *  delays under full jitter, until the deadline of the call.
 *
 *  Invariants
 *  - A conditional put whose earlier attempt may have been applied does not fail because of its own write: when a later attempt finds the name
 *    taken or changed, what is there is read and compared. The same bytes count as ours, and the put as done. Writers that have to know which
 *    of them was first therefore write different bytes (sealed objects always are).
 *  - A get returns exactly the bytes of its range; a stream exactly the bytes of one version of the object, or it fails.
 *  - A put without condition that is repeated may be applied twice, its lost first attempt even after later puts of the same name: what is
 *    replaced again and again is put with `ifMatch`. */
import { type FileHandle, open } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { LakebaseError, sleep } from '@lakebase/base';
import { transferMs, withAbort } from './deadline-store.ts';
import type { CallOptions, GetOptions, ObjectBytes, ObjectInfo, ObjectStore, ObjectTag, PutOptions, PutSource } from './object-store.ts';
import { sizeOf } from './put-source.ts';
import { absolute, checkRange } from './range.ts';
import { type StoreCall, StoreDecorator } from './store-decorator.ts';

export interface RetryOptions {
  readonly deadlineMs: number;
  /** A stream without a byte for this long has stalled. */
  readonly idleMs: number;
  /** First and longest delay; each is drawn from between 0 and that. */
  readonly baseMs?: number;
  readonly maxMs?: number;
  readonly random?: () => number;
  readonly onRetry?: (call: StoreCall, error: LakebaseError, attempt: number) => void;
}

/** What a broken stream goes on with. */
const RESUME_BYTES = 8 * 1024 * 1024;
const COMPARE_BYTES = 4 * 1024 * 1024;
/** Larger ones do not belong into memory. */
const WHOLE_BYTES_MAX = 1024 * 1024 * 1024;

export class RetryingStore extends StoreDecorator {
  readonly #options: Required<Omit<RetryOptions, 'onRetry'>> & Pick<RetryOptions, 'onRetry'>;

  constructor(inner: ObjectStore, options: RetryOptions) {
    super(inner);
    this.#options = { baseMs: 100, maxMs: 10_000, random: Math.random, ...options };
  }

  override async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    const { range } = options;
    // How long an object of unknown size may take cannot be said before; that its bytes go on coming can be watched.
    if (range === undefined) return this.#collect(key, options);
    checkRange(range, key);
    const bytes = 'suffix' in range ? range.suffix : range.length;
    return this.around({ operation: 'get', key, bytes }, options, async (o) => {
      const answer = await this.inner.get(key, o);
      const { length } = absolute(range, answer.size, key);
      if (answer.bytes.length !== length)
        throw new LakebaseError('UNAVAILABLE', `get of object ${key}: ${answer.bytes.length} bytes came instead of ${length}`);
      return answer;
    });
  }

  override async put(key: string, source: PutSource, options: PutOptions = {}): Promise<ObjectTag> {
    let attempts = 0;
    return this.around({ operation: 'put', key, bytes: sizeOf(source) }, options, async (o) => {
      attempts++;
      try {
        return await this.inner.put(key, source, o);
      } catch (error) {
        const taken = error instanceof LakebaseError && (error.code === 'ALREADY_EXISTS' || error.code === 'CONFLICT');
        const ours = taken && attempts > 1 ? await this.#holds(key, source, o) : undefined;
        if (ours !== undefined) return ours;
        throw error;
      }
    });
  }

  override async stream(key: string, options: CallOptions = {}): Promise<ObjectInfo & { readonly body: Readable }> {
    const opened = await super.stream(key, options);
    const { body, ...info } = opened;
    return { ...info, body: Readable.from(this.#whole(body, info, options), { objectMode: false, highWaterMark: 1 << 20 }) };
  }

  protected around<T, O extends CallOptions>(call: StoreCall, options: O, run: (options: O) => Promise<T>): Promise<T> {
    const { deadlineMs } = this.#options;
    const bytes = call.bytes ?? 0;
    let last: LakebaseError | undefined;
    return withAbort(deadlineMs + 2 * transferMs(bytes), call, options, async (o) => {
      for (let attempt = 0; ; attempt++) {
        try {
          return await run(o);
        } catch (error) {
          if (!(error instanceof LakebaseError) || !passes(error, attempt) || o.signal?.aborted === true) throw error;
          last = error;
          this.#options.onRetry?.(call, error, attempt);
          const { baseMs, maxMs, random } = this.#options;
          await sleep(random() * Math.min(maxMs, baseMs * 2 ** Math.min(attempt, 20)), o.signal).catch(() => {
            throw error;
          });
        }
      }
    }).catch((error: unknown) => {
      // The deadline says less than what went wrong before it.
      if (last === undefined || error === last || !(error instanceof LakebaseError) || error.code !== 'UNAVAILABLE') throw error;
      throw new LakebaseError(last.code, `${error.message}; before that: ${last.message}`, { cause: last });
    });
  }

  /** The tag of what is there, if it has the bytes of `source`. */
  async #holds(key: string, source: PutSource, options: CallOptions): Promise<ObjectTag | undefined> {
    const signal = options.signal === undefined ? {} : { signal: options.signal };
    let file: FileHandle | undefined;
    try {
      const size = sizeOf(source);
      const { size: found, tag } = await this.inner.head(key, signal);
      if (found !== size) return undefined;
      if (!Buffer.isBuffer(source)) file = await open(source.path, 'r');
      for (let offset = 0; offset < size; offset += COMPARE_BYTES) {
        const length = Math.min(COMPARE_BYTES, size - offset);
        const there = await this.inner.get(key, { ...signal, range: { offset, length } });
        if (there.tag !== tag) return undefined;
        if (there.bytes.length !== length)
          throw new LakebaseError('UNAVAILABLE', `get of object ${key}: ${there.bytes.length} bytes came instead of ${length}`);
        const ours = Buffer.isBuffer(source) ? source.subarray(offset, offset + length) : Buffer.allocUnsafe(length);
        if (file !== undefined) await file.read(ours, 0, length, offset);
        if (!there.bytes.equals(ours)) return undefined;
      }
      return tag;
    } catch (error) {
      if (error instanceof LakebaseError && error.code === 'NOT_FOUND') return undefined;
      throw error;
    } finally {
      await file?.close();
    }
  }

  async #collect(key: string, options: CallOptions): Promise<ObjectBytes> {
    for (let attempt = 0; ; attempt++) {
      const { body, ...info } = await this.stream(key, options);
      try {
        if (info.size > WHOLE_BYTES_MAX)
          throw new LakebaseError('RESOURCE_EXHAUSTED', `object ${key} has ${info.size} bytes: read it by ranges or as a stream`);
        const bytes = Buffer.allocUnsafeSlow(info.size);
        let filled = 0;
        for await (const chunk of body as AsyncIterable<Buffer>) filled += chunk.copy(bytes, filled);
        return { ...info, bytes };
      } catch (error) {
        // Damaged on the way, perhaps; or replaced while it was read.
        if (attempt > 1 || !(error instanceof LakebaseError) || options.signal?.aborted === true) throw error;
        if (error.code !== 'CORRUPT' && error.code !== 'UNAVAILABLE') throw error;
      } finally {
        body.destroy();
      }
    }
  }

  /** The bytes of `body`, and where it breaks off, the rest by ranges of the same version. */
  async *#whole(body: Readable, info: ObjectInfo, options: CallOptions): AsyncGenerator<Buffer> {
    const { key, size, tag } = info;
    let offset = 0;
    try {
      for await (const chunk of watched(body, this.#options.idleMs, options.signal)) {
        if (offset + chunk.length > size) throw new LakebaseError('UNAVAILABLE', `stream of object ${key}: more bytes than it has`);
        offset += chunk.length;
        yield chunk;
      }
    } catch (error) {
      // What failed a check has been passed on already: it cannot go on from there.
      if (options.signal?.aborted === true || !(error instanceof LakebaseError) || error.code !== 'UNAVAILABLE') throw error;
      this.#options.onRetry?.({ operation: 'stream', key, bytes: size - offset }, error, 0);
    } finally {
      body.destroy();
    }
    while (offset < size) {
      const { bytes, tag: now } = await this.get(key, { ...options, range: { offset, length: Math.min(RESUME_BYTES, size - offset) } });
      if (now !== tag) throw new LakebaseError('UNAVAILABLE', `stream of object ${key}: it was replaced meanwhile; read it again`);
      offset += bytes.length;
      yield bytes;
    }
  }
}

const passes = (error: LakebaseError, attempt: number): boolean =>
  error.code === 'UNAVAILABLE' || error.code === 'RESOURCE_EXHAUSTED' || (error.code === 'CORRUPT' && attempt === 0);

/** The chunks of a stream, each of which has to come within `idleMs` of being asked for. Errors are ours. */
async function* watched(body: Readable, idleMs: number, signal: AbortSignal | undefined): AsyncGenerator<Buffer> {
  const stop = (): void => void body.destroy(new LakebaseError('UNAVAILABLE', 'the call was ended', { cause: signal?.reason }));
  signal?.addEventListener('abort', stop, { once: true });
  const chunks = body[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  try {
    for (;;) {
      const timer = setTimeout(() => body.destroy(new LakebaseError('UNAVAILABLE', `no byte for ${idleMs} ms`)), idleMs);
      const { value, done } = await chunks
        .next()
        .catch((error: unknown) => {
          if (error instanceof LakebaseError) throw error;
          throw new LakebaseError('UNAVAILABLE', `the stream broke off: ${(error as Error).message}`, { cause: error });
        })
        .finally(() => clearTimeout(timer));
      if (done === true) return;
      yield value;
    }
  } finally {
    signal?.removeEventListener('abort', stop);
  }
}
