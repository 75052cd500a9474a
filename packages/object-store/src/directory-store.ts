/** Objects as files below a directory: the default on one machine. A put writes a temporary file, syncs it, links or renames it into place and syncs
 *  the directory.
 *
 *  Invariants
 *  - An object is there whole or not at all, also after kill -9, and stays after a power cut once its put was answered. ALREADY_EXISTS is
 *    answered only when what is there would stay too.
 *  - Conditional puts are atomic among the processes of one machine: `ifAbsent` by link(2), `ifMatch` under a lock that dies with its holder. A
 *    name is replaced either always with `ifMatch` or never: a put without condition takes no lock.
 *  - A directory that has been taken away (unmounted, renamed) is UNAVAILABLE, never an empty store: its marker file is missing.
 *  The tag is inode, size and modification time, whose fraction is random: an inode used again at once gives another tag. */
import { constants } from 'node:fs';
import { type FileHandle, access, copyFile, link, mkdir, open, readdir, rename, rm, unlink } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { type Readable, addAbortSignal } from 'node:stream';
import { pathToFileURL } from 'node:url';
import { LakebaseError } from '@lakebase/base';
import { checkObjectKey } from './keys.ts';
import { withMachineLock } from './machine-lock.ts';
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
} from './object-store.ts';
import { checkSignal, checkSource } from './put-source.ts';
import { absolute, checkRange } from './range.ts';
import { removeLeftovers, temporaryName } from './temporary-files.ts';

/** No object's name starts with a dot. */
const TEMPORARY = '.tmp';
/** Its presence tells the store from the empty mount point of a store. */
export const DIRECTORY_MARKER = '.lakebase-objects';
const LOCK_WAIT_MS = 20_000;

export class DirectoryStore implements ObjectStore {
  readonly location: string;
  readonly #root: string;
  /** The marker was seen by this process: from then on its absence is a failure. */
  #initialised = false;
  #prepared: Promise<void> | undefined;

  constructor(root: string) {
    this.#root = resolve(root);
    this.location = pathToFileURL(this.#root).href;
  }

  async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    if (options.range !== undefined) checkRange(options.range, key);
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
    const { file, info } = await this.#open(key, options);
    // The open file stays the object it was, whatever replaces its name meanwhile.
    const body = file.createReadStream({ start: 0, ...(info.size > 0 ? { end: info.size - 1 } : {}), highWaterMark: 256 * 1024 });
    if (options.signal !== undefined) addAbortSignal(options.signal, body);
    return { ...info, body };
  }

  head(key: string, options: CallOptions = {}): Promise<ObjectInfo> {
    return this.#reading(key, options, (_, info) => Promise.resolve(info));
  }

  async put(key: string, source: PutSource, options: PutOptions = {}): Promise<ObjectTag> {
    const path = this.#path(key);
    checkSignal(options);
    await checkSource(source);
    await this.#prepare();
    const temporary = join(this.#root, TEMPORARY, temporaryName());
    try {
      const tag = await this.#write(temporary, source);
      await makeDirectory(dirname(path), this.#root).catch((cause: NodeJS.ErrnoException) => {
        if (cause.code !== 'EEXIST' && cause.code !== 'ENOTDIR') throw cause;
        throw new LakebaseError('INVALID_ARGUMENT', `object ${key}: there is an object with the name of its directory`, { cause });
      });
      await this.#place(temporary, path, key, options);
      await syncDirectory(dirname(path));
      return tag;
    } catch (error) {
      const failure = translated(error, key);
      // It was not there to replace; or the directories went away under us.
      if (failure.code === 'NOT_FOUND')
        throw new LakebaseError('UNAVAILABLE', `object ${key} cannot be written: ${failure.message}`, { cause: error });
      throw failure;
    } finally {
      await rm(temporary, { force: true }).catch(() => {}); // a later process removes it
    }
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    checkSignal(options);
    await this.#present();
    const limit = options.limit ?? 1_000;
    const objects: ObjectInfo[] = [];
    for await (const key of this.#walk('', prefix, options.after ?? '')) {
      const info = await this.head(key, options).catch((error: unknown) => {
        if (error instanceof LakebaseError && error.code === 'NOT_FOUND') return undefined;
        throw error;
      });
      if (info !== undefined) objects.push(info);
      if (objects.length >= limit) return { objects, next: key };
    }
    return { objects, next: undefined };
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    const directories = new Set<string>();
    for (const key of keys) {
      const path = this.#path(key);
      checkSignal(options);
      try {
        await unlink(path);
        directories.add(dirname(path));
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code !== 'ENOENT' && code !== 'ENOTDIR' && code !== 'EISDIR') throw translated(error, key);
      }
    }
    for (const directory of directories) await syncDirectory(directory);
    if (directories.size === 0) await this.#present();
  }

  async close(): Promise<void> {}

  #path(key: string): string {
    return join(this.#root, checkObjectKey(key));
  }

  async #open(key: string, options: CallOptions): Promise<{ file: FileHandle; info: ObjectInfo }> {
    const path = this.#path(key);
    checkSignal(options);
    let file: FileHandle | undefined;
    try {
      file = await open(path, 'r');
      const s = await file.stat();
      if (!s.isFile()) throw new LakebaseError('NOT_FOUND', `there is no object ${key} in ${this.location}`);
      return { file, info: { key, size: s.size, tag: tagOf(s) } };
    } catch (error) {
      await file?.close();
      const failure = translated(error, key);
      if (failure.code === 'NOT_FOUND') await this.#present();
      throw failure;
    }
  }

  async #reading<T>(key: string, options: CallOptions, use: (file: FileHandle, info: ObjectInfo) => Promise<T>): Promise<T> {
    const { file, info } = await this.#open(key, options);
    try {
      return await use(file, info);
    } catch (error) {
      throw translated(error, key);
    } finally {
      await file.close();
    }
  }

  /** Fails where the store was there and is there no more. */
  async #present(): Promise<void> {
    try {
      await access(join(this.#root, DIRECTORY_MARKER));
      this.#initialised = true;
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      if (code === 'ENOTDIR')
        throw new LakebaseError('CONFIG', `${this.#root} is not a directory: move it away, or name another`, { cause });
      if (code !== 'ENOENT') throw translated(cause, this.location);
      if (this.#initialised)
        throw new LakebaseError('UNAVAILABLE', `the directory of the object store is not there: is the disk of ${this.#root} mounted?`, {
          cause,
        });
    }
  }

  /** Before every put: directory, marker, and once, what dead processes left. */
  async #prepare(): Promise<void> {
    await this.#present();
    if (this.#initialised && this.#prepared !== undefined) return this.#prepared;
    this.#prepared ??= (async () => {
      try {
        await makeDirectory(this.#root, this.#root);
        await mkdir(join(this.#root, TEMPORARY), { recursive: true, mode: 0o700 });
        const marker = await open(join(this.#root, DIRECTORY_MARKER), 'a', 0o600);
        await marker.close();
        await syncDirectory(this.#root);
        this.#initialised = true;
        await removeLeftovers(join(this.#root, TEMPORARY)).catch(() => 0); // only their space is lost
      } catch (error) {
        this.#prepared = undefined;
        throw translated(error, this.location);
      }
    })();
    return this.#prepared;
  }

  async #write(path: string, source: PutSource): Promise<ObjectTag> {
    if (!Buffer.isBuffer(source)) await copyFile(source.path, path, constants.COPYFILE_EXCL);
    const file = await open(path, Buffer.isBuffer(source) ? 'wx' : 'r+', 0o600);
    try {
      if (Buffer.isBuffer(source)) await file.writeFile(source);
      else {
        await file.chmod(0o600);
        if ((await file.stat()).size !== source.size)
          throw new LakebaseError('INVALID_ARGUMENT', `${source.path} is not ${source.size} bytes long any more`);
      }
      const seconds = Date.now() / 1_000 + Math.random();
      await file.utimes(seconds, seconds);
      await file.sync();
      return tagOf(await file.stat());
    } finally {
      await file.close();
    }
  }

  async #place(temporary: string, path: string, key: string, options: PutOptions): Promise<void> {
    if (options.ifAbsent === true) {
      await link(temporary, path).catch(async (error: unknown) => {
        // Whoever is told that it exists may rely on it.
        if ((error as NodeJS.ErrnoException).code === 'EEXIST') await syncDirectory(dirname(path));
        throw error;
      });
      return;
    }
    const expected = options.ifMatch;
    if (expected === undefined) return rename(temporary, path);
    await withMachineLock(path, LOCK_WAIT_MS, async () => {
      const found = await this.head(key).catch((error: unknown) => {
        if (error instanceof LakebaseError && error.code === 'NOT_FOUND') return undefined;
        throw error;
      });
      if (found?.tag !== expected) throw new LakebaseError('CONFLICT', `object ${key} has changed`);
      await rename(temporary, path);
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

const tagOf = (s: { ino: number; size: number; mtimeMs: number }): ObjectTag => `${s.ino}-${s.size}-${s.mtimeMs}`;

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

const MEANINGS: Readonly<Record<string, readonly [LakebaseError['code'], string]>> = {
  ENOENT: ['NOT_FOUND', 'there is no such object'],
  ENOTDIR: ['NOT_FOUND', 'there is no such object'],
  EEXIST: ['ALREADY_EXISTS', 'it exists'],
  EISDIR: ['INVALID_ARGUMENT', 'other objects have its name as a directory'],
  ENAMETOOLONG: ['INVALID_ARGUMENT', 'its name is too long for the file system'],
  EACCES: ['PERMISSION_DENIED', 'no permission for its file; change the owner or mode of the directory'],
  EPERM: ['PERMISSION_DENIED', 'no permission for its file; change the owner or mode of the directory'],
  EROFS: ['PERMISSION_DENIED', 'the file system is read-only; mount it writable'],
  ENOSPC: ['RESOURCE_EXHAUSTED', "no space left on the object store's disk; free some, or move it"],
  EDQUOT: ['RESOURCE_EXHAUSTED', "the quota on the object store's disk is used up; free some space"],
  EMFILE: ['RESOURCE_EXHAUSTED', 'too many open files; raise the limit (ulimit -n)'],
  ENFILE: ['RESOURCE_EXHAUSTED', 'too many open files on this machine'],
};

function translated(error: unknown, key: string): LakebaseError {
  if (error instanceof LakebaseError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  const known = Object.hasOwn(MEANINGS, code ?? '') ? MEANINGS[code as string] : undefined;
  return new LakebaseError(known?.[0] ?? 'UNAVAILABLE', `object ${key}: ${known?.[1] ?? message}`, { cause: error });
}
