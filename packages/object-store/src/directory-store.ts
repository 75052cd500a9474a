/** Objects as files below a directory: the default on one machine. A put writes a temporary file, syncs it, links or renames it into place and syncs
 *  the directory: an object is there whole or not at all, and stays after a power cut. Conditional puts are atomic among processes of one machine:
 *  `ifAbsent` by link(2), `ifMatch` under a lock file. The tag is inode, size and modification time. */
import { randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, copyFile, link, mkdir, open, readdir, rename, rm, unlink } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import type { Readable } from 'node:stream';
import { pathToFileURL } from 'node:url';
import { LakebaseError, SerialQueue } from '@lakebase/base';
import { checkObjectKey } from './keys.ts';
import type {
  ByteRange,
  CallOptions,
  GetOptions,
  ListPage,
  ObjectBytes,
  ObjectInfo,
  ObjectStore,
  ObjectTag,
  PutOptions,
  PutSource,
} from './object-store.ts';

/** No object's name starts with a dot. */
const TEMPORARY = '.tmp';

export class DirectoryStore implements ObjectStore {
  readonly location: string;
  readonly #root: string;
  /** Conditional replacements of this process; those of others are kept out by the lock file. */
  readonly #replacements = new SerialQueue();

  constructor(root: string) {
    this.#root = resolve(root);
    this.location = pathToFileURL(this.#root).href;
  }

  async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    return this.#reading(key, options, async (file, info) => {
      const { offset, length } = absolute(options.range, info.size, key);
      const bytes = Buffer.allocUnsafeSlow(length);
      for (let done = 0; done < length; ) {
        const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
        if (bytesRead === 0) throw new LakebaseError('UNAVAILABLE', `object ${key} became shorter while it was read`);
        done += bytesRead;
      }
      return { ...info, bytes };
    });
  }

  async stream(key: string, options: CallOptions = {}): Promise<ObjectInfo & { readonly body: Readable }> {
    const info = await this.head(key, options);
    return { ...info, body: createReadStream(this.#path(key), { ...(options.signal === undefined ? {} : { signal: options.signal }) }) };
  }

  head(key: string, options: CallOptions = {}): Promise<ObjectInfo> {
    return this.#reading(key, options, (_, info) => Promise.resolve(info));
  }

  async put(key: string, source: PutSource, options: PutOptions = {}): Promise<ObjectTag> {
    const path = this.#path(key);
    ended(options);
    const temporary = join(this.#root, TEMPORARY, randomBytes(12).toString('hex'));
    try {
      await this.#write(temporary, source);
      await makeDirectory(dirname(path), this.#root);
      await this.#place(temporary, path, key, options);
      await syncDirectory(dirname(path));
      return (await this.head(key)).tag;
    } catch (error) {
      throw translated(error, key);
    } finally {
      await rm(temporary, { force: true });
    }
  }

  async list(prefix: string, options: CallOptions & { readonly after?: string; readonly limit?: number } = {}): Promise<ListPage> {
    ended(options);
    const limit = options.limit ?? 1_000;
    const objects: ObjectInfo[] = [];
    for await (const key of this.#walk('', prefix, options.after ?? '')) {
      const info = await this.head(key).catch((error: unknown) => {
        if (error instanceof LakebaseError && error.code === 'NOT_FOUND') return undefined;
        throw error;
      });
      if (info !== undefined) objects.push(info);
      if (objects.length === limit) return { objects, next: key };
    }
    return { objects, next: undefined };
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    for (const key of keys) {
      ended(options);
      await unlink(this.#path(key)).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw translated(error, key);
      });
    }
  }

  async close(): Promise<void> {}

  #path(key: string): string {
    return join(this.#root, checkObjectKey(key));
  }

  async #reading<T>(key: string, options: CallOptions, use: (file: FileHandle, info: ObjectInfo) => Promise<T>): Promise<T> {
    ended(options);
    let file: FileHandle | undefined;
    try {
      file = await open(this.#path(key), 'r');
      const s = await file.stat();
      if (!s.isFile()) throw new LakebaseError('NOT_FOUND', `there is no object ${key} in ${this.location}`);
      return await use(file, { key, size: s.size, tag: `${s.ino}-${s.size}-${s.mtimeMs}` });
    } catch (error) {
      throw translated(error, key);
    } finally {
      await file?.close();
    }
  }

  async #write(path: string, source: PutSource): Promise<void> {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    if (!Buffer.isBuffer(source)) await copyFile(source.path, path);
    const file = await open(path, Buffer.isBuffer(source) ? 'wx' : 'r+', 0o600);
    try {
      if (Buffer.isBuffer(source)) await file.writeFile(source);
      else if ((await file.stat()).size !== source.size)
        throw new LakebaseError('INVALID_ARGUMENT', `${source.path} is not ${source.size} bytes long`);
      await file.sync();
    } finally {
      await file.close();
    }
  }

  async #place(temporary: string, path: string, key: string, options: PutOptions): Promise<void> {
    if (options.ifAbsent === true) return link(temporary, path);
    const expected = options.ifMatch;
    if (expected === undefined) return rename(temporary, path);
    await this.#replacements.run(async () => {
      const lock = await open(`${temporary.slice(0, -24)}lock`, 'a');
      try {
        const { tag } = await this.head(key);
        if (tag !== expected) throw new LakebaseError('CONFLICT', `object ${key} has changed`);
        await rename(temporary, path);
      } finally {
        await lock.close();
      }
    });
  }

  /** Keys in byte order below `directory` (ending in '/', or empty). */
  async *#walk(directory: string, prefix: string, after: string): AsyncGenerator<string> {
    const entries = await readdir(join(this.#root, directory), { withFileTypes: true }).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return [];
      throw translated(error, directory);
    });
    const names = entries
      .filter((e) => !e.name.startsWith('.'))
      .map((e) => `${directory}${e.name}${e.isDirectory() ? '/' : ''}`)
      .sort((a, b) => (a < b ? -1 : 1));
    for (const name of names) {
      if (name.endsWith('/')) {
        const related = name.startsWith(prefix) || prefix.startsWith(name);
        if (related && (name > after || after.startsWith(name))) yield* this.#walk(name, prefix, after);
      } else if (name.startsWith(prefix) && name > after) yield name;
    }
  }
}

function ended(options: CallOptions): void {
  if (options.signal?.aborted === true) throw new LakebaseError('UNAVAILABLE', 'the call was ended', { cause: options.signal.reason });
}

/** A range as an implementation needs it, within an object of `size` bytes. */
export function absolute(range: ByteRange | undefined, size: number, key: string): { offset: number; length: number } {
  if (range === undefined) return { offset: 0, length: size };
  const wanted = 'suffix' in range ? { offset: Math.max(0, size - range.suffix), length: Math.min(size, range.suffix) } : range;
  if (!(wanted.offset >= 0 && wanted.length >= 0 && wanted.offset <= size))
    throw new LakebaseError('INVALID_ARGUMENT', `object ${key} has ${size} bytes; there is nothing at ${wanted.offset}`);
  return { offset: wanted.offset, length: Math.min(wanted.length, size - wanted.offset) };
}

async function makeDirectory(path: string, root: string): Promise<void> {
  const first = await mkdir(path, { recursive: true, mode: 0o700 });
  if (first === undefined) return;
  // Every directory that is new, and the one that names the first of them.
  for (let at = path; at.length >= first.length; at = dirname(at)) await syncDirectory(at);
  if (first.startsWith(root)) await syncDirectory(dirname(first));
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

function translated(error: unknown, key: string): unknown {
  if (error instanceof LakebaseError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  const cause = { cause: error };
  if (code === 'ENOENT' || code === 'ENOTDIR') return new LakebaseError('NOT_FOUND', `there is no object ${key}`, cause);
  if (code === 'EEXIST') return new LakebaseError('ALREADY_EXISTS', `object ${key} exists`, cause);
  if (code === 'EACCES' || code === 'EPERM') return new LakebaseError('PERMISSION_DENIED', `object ${key}: ${message}`, cause);
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return new LakebaseError('RESOURCE_EXHAUSTED', `object ${key}: no space left on the object store's disk`, cause);
  return new LakebaseError('UNAVAILABLE', `object ${key}: ${message}`, cause);
}
