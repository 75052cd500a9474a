/** What decorators of a store share: every call goes through one method. */
import type { Readable } from 'node:stream';
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
import { sizeOf } from './put-source.ts';

export type StoreOperation = 'get' | 'stream' | 'head' | 'put' | 'list' | 'delete';

export interface StoreCall {
  readonly operation: StoreOperation;
  /** Key or prefix, for messages. */
  readonly key: string;
  /** Bytes that will travel, where they are known before: of a put, or of a get with a range. */
  readonly bytes: number | undefined;
}

const lengthOf = (range: ByteRange | undefined): number | undefined =>
  range === undefined ? undefined : 'suffix' in range ? range.suffix : range.length;

export abstract class StoreDecorator implements ObjectStore {
  protected readonly inner: ObjectStore;

  constructor(inner: ObjectStore) {
    this.inner = inner;
  }

  get location(): string {
    return this.inner.location;
  }

  /** `run` is the call of the store below; it may be made any number of times. */
  protected abstract around<T, O extends CallOptions>(call: StoreCall, options: O, run: (options: O) => Promise<T>): Promise<T>;

  get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    return this.around({ operation: 'get', key, bytes: lengthOf(options.range) }, options, (o) => this.inner.get(key, o));
  }
  stream(key: string, options: CallOptions = {}): Promise<ObjectInfo & { readonly body: Readable }> {
    return this.around({ operation: 'stream', key, bytes: undefined }, options, (o) => this.inner.stream(key, o));
  }
  head(key: string, options: CallOptions = {}): Promise<ObjectInfo> {
    return this.around({ operation: 'head', key, bytes: 0 }, options, (o) => this.inner.head(key, o));
  }
  put(key: string, source: PutSource, options: PutOptions = {}): Promise<ObjectTag> {
    return this.around({ operation: 'put', key, bytes: sizeOf(source) }, options, (o) => this.inner.put(key, source, o));
  }
  list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    return this.around({ operation: 'list', key: prefix, bytes: 0 }, options, (o) => this.inner.list(prefix, o));
  }
  delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    return this.around({ operation: 'delete', key: keys[0] ?? '', bytes: 0 }, options, (o) => this.inner.delete(keys, o));
  }
  close(): Promise<void> {
    return this.inner.close();
  }
}
