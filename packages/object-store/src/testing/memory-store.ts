/** Objects in memory, with a count of every call; for tests only. */
import { LakebaseError } from '@lakebase/base';
import { readFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import { checkObjectKey } from '../keys.ts';
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
} from '../object-store.ts';
import { checkSignal, checkSource } from '../put-source.ts';
import { absolute } from '../range.ts';

export class MemoryStore implements ObjectStore {
  readonly location = 'memory:';
  readonly objects = new Map<string, { bytes: Buffer; tag: ObjectTag }>();
  readonly calls = { get: 0, put: 0, head: 0, list: 0, delete: 0 };
  #version = 0;

  async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    this.calls.get++;
    checkSignal(options);
    const { bytes, tag } = this.#find(key);
    const { offset, length } = absolute(options.range, bytes.length, key);
    return { key, size: bytes.length, tag, bytes: Buffer.from(bytes.subarray(offset, offset + length)) };
  }
  async stream(key: string): Promise<ObjectInfo & { readonly body: Readable }> {
    const { bytes, ...info } = await this.get(key);
    return { ...info, body: Readable.from([bytes]) };
  }
  async put(key: string, source: PutSource, options: PutOptions = {}): Promise<ObjectTag> {
    this.calls.put++;
    checkObjectKey(key);
    checkSignal(options);
    await checkSource(source);
    const existing = this.objects.get(key);
    if (options.ifAbsent === true && existing !== undefined) throw new LakebaseError('ALREADY_EXISTS', `object ${key} exists`);
    if (options.ifMatch !== undefined && existing?.tag !== options.ifMatch)
      throw new LakebaseError('CONFLICT', `object ${key} has changed`);
    const tag = `v${++this.#version}`;
    this.objects.set(key, { bytes: Buffer.isBuffer(source) ? Buffer.from(source) : readFileSync(source.path), tag });
    return tag;
  }
  async head(key: string, options: CallOptions = {}): Promise<ObjectInfo> {
    this.calls.head++;
    checkSignal(options);
    const { bytes, tag } = this.#find(key);
    return { key, size: bytes.length, tag };
  }
  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    this.calls.list++;
    const keys = [...this.objects.keys()].filter((k) => k.startsWith(prefix) && k > (options.after ?? '')).sort((a, b) => (a < b ? -1 : 1));
    const page = keys.slice(0, options.limit ?? 1_000);
    const objects = page.map((key) => ({ key, size: this.#find(key).bytes.length, tag: this.#find(key).tag }));
    return { objects, next: page.length < keys.length ? page.at(-1) : undefined };
  }
  async delete(keys: readonly string[]): Promise<void> {
    this.calls.delete++;
    for (const key of keys) this.objects.delete(checkObjectKey(key));
  }
  async close(): Promise<void> {}

  #find(key: string): { bytes: Buffer; tag: ObjectTag } {
    const found = this.objects.get(checkObjectKey(key));
    if (found === undefined) throw new LakebaseError('NOT_FOUND', `there is no object ${key}`);
    return found;
  }
}
