/** The one interface to durable bulk storage. Keys are `/`-separated segments of `[A-Za-z0-9._-]`; objects are written whole and are then either
 *  there or not, also to a reader on another machine. Nothing above relies on `list` for correctness.
 *
 *  Errors every implementation gives: NOT_FOUND (get, head: there is no such object; a store that is not there itself, such as a missing bucket or an
 *  unmounted disk, is UNAVAILABLE), ALREADY_EXISTS (put with `ifAbsent`, the object is there), CONFLICT (`ifMatch` does not hold, also for want of an object), INVALID_ARGUMENT (a malformed key or range), PERMISSION_DENIED, RESOURCE_EXHAUSTED (throttled, or full), UNAVAILABLE (anything that may pass:
 *  timeouts, 5xx, resets, a body shorter than announced), CORRUPT (the body does not match the checksum the store keeps).
 *  Invariants: a `get` never returns fewer or other bytes than asked for; a failed `put` may nevertheless have been applied. */
import type { Readable } from 'node:stream';

/** Opaque: changes whenever the object's content does. */
export type ObjectTag = string;

export interface ObjectInfo {
  readonly key: string;
  /** Bytes of the whole object. */
  readonly size: number;
  readonly tag: ObjectTag;
}

export interface ObjectBytes extends ObjectInfo {
  /** The range asked for, or all of it. */
  readonly bytes: Buffer;
}

/** Bytes [offset, offset + length), cut at the object's end; or its last `suffix` bytes. */
export type ByteRange = { readonly offset: number; readonly length: number } | { readonly suffix: number };

export interface CallOptions {
  /** Ends the call with UNAVAILABLE. */
  readonly signal?: AbortSignal;
}
export interface GetOptions extends CallOptions {
  readonly range?: ByteRange;
}
export interface PutOptions extends CallOptions {
  /** Only where no object has the key. */
  readonly ifAbsent?: boolean;
  /** Only where the object has this tag. */
  readonly ifMatch?: ObjectTag;
}

export interface ListOptions extends CallOptions {
  /** Only keys behind this one. */
  readonly after?: string;
  /** Objects of a page at most, 1000 if not said. A page may have fewer and still have a next one. */
  readonly limit?: number;
}

/** What to store: bytes, or a file that nobody changes meanwhile (large ones go up in parts). */
export type PutSource = Buffer | { readonly path: string; readonly size: number };

/** How files go up where a provider has uploads in parts: larger ones than `singleBytesMax` in parts of `partBytes`. For tests. */
export interface UploadSizes {
  readonly singleBytesMax?: number;
  readonly partBytes?: number;
}

export interface ListPage {
  readonly objects: readonly ObjectInfo[];
  /** To go on with; undefined at the end. */
  readonly next: string | undefined;
}

export interface ObjectStore {
  /** For messages: `file:///…`, `s3://bucket/prefix`, never with credentials. */
  readonly location: string;
  get(key: string, options?: GetOptions): Promise<ObjectBytes>;
  /** A whole object as a stream; its errors have the codes above. */
  stream(key: string, options?: CallOptions): Promise<ObjectInfo & { readonly body: Readable }>;
  put(key: string, source: PutSource, options?: PutOptions): Promise<ObjectTag>;
  head(key: string, options?: CallOptions): Promise<ObjectInfo>;
  /** A page of the keys that start with `prefix`, in byte order, those after `after`. For scrubbing and for people. */
  list(prefix: string, options?: ListOptions): Promise<ListPage>;
  /** Objects that are not there are no error. */
  delete(keys: readonly string[], options?: CallOptions): Promise<void>;
  close(): Promise<void>;
}
