/** LOCAL: AES-256-GCM under a file of 32 random bytes as hex. The root of an installation without a KMS.
 *
 *  Invariants
 *  - The file is read on every call and its bytes are wiped afterwards: removing or changing it revokes at the next probe.
 *  - `root` is made once. Beside it stays `<file>.id` with its fingerprint: if the key is gone and the id is there, the key was lost or
 *    taken away, and making another would only hide that.
 *  - Blob: `u8 version 1 · 12 bytes nonce · 32 bytes · 16 bytes tag`; associated data: `contextBytes`. */
import { createCipheriv, createDecipheriv, createHash, randomBytes, randomFillSync } from 'node:crypto';
import { type FileHandle, link, mkdir, open, unlink } from 'node:fs/promises';
import { dirname, isAbsolute, relative, resolve } from 'node:path';
import { errorMessage } from '@lakebase/base';
import { offHeap } from '@lakebase/bytes';
import type { KmsAdapter, Options, Unwrapped } from './adapter.ts';
import { KEK_BYTES, contextBytes } from './context.ts';
import { type ErrorTable, KmsError, meaningToError } from './errors.ts';
import type { KmsEnvironment, WrapContext, WrappedKey } from './types.ts';

const BLOB_VERSION = 1;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const BLOB_BYTES = 1 + NONCE_BYTES + KEK_BYTES + TAG_BYTES;
const ALGORITHM = 'AES-256-GCM';
const FILE_BYTES_MAX = 256;

export const LOCAL_ERRORS: ErrorTable = {
  KeyFileMissing: ['DENIED', 'the key file is gone; restore it from its backup to make the data readable again'],
  KeyFileChanged: ['DENIED', 'the key file holds another key than the one that wrapped; put the former file back'],
  KeyFileUnreadable: ['DENIED', 'the key manager may not read the key file; make it owned by its user, mode 0600'],
  WrongContext: ['DENIED', 'the wrapped key belongs to another project or version, or was altered'],
  KeyFileMode: ['INVALID', 'others may read the key file; run chmod 600 on it, and consider the key known to them'],
  KeyFileMalformed: ['INVALID', 'a key file holds 32 random bytes as 64 hex digits; make one with: openssl rand -hex 32'],
  KeyFilePath: ['INVALID', 'a local key is `root` or an absolute path below the directory of the installation root key'],
  IoError: ['UNREACHABLE', 'the key file cannot be read; check the disk'],
};

const failure = (code: string, detail: string, cause?: unknown): KmsError =>
  meaningToError('LOCAL', code, LOCAL_ERRORS[code] as (typeof LOCAL_ERRORS)[string], detail, cause);

export function openLocalKey(key: string, _options: Options, env: KmsEnvironment): KmsAdapter {
  return new LocalKey(localPath(key, env), key === 'root');
}

function localPath(key: string, env: KmsEnvironment): string {
  if (key === 'root') return resolve(env.rootKeyPath);
  if (!isAbsolute(key) || key.includes('\0')) throw failure('KeyFilePath', key);
  const path = resolve(key);
  const inside = relative(dirname(resolve(env.rootKeyPath)), path);
  if (env.allowAnyLocalPath !== true && (inside.startsWith('..') || isAbsolute(inside) || inside === '')) throw failure('KeyFilePath', key);
  // By its path it would look like a key of a customer's.
  if (path === resolve(env.rootKeyPath)) throw failure('KeyFilePath', key);
  return path;
}

class LocalKey implements KmsAdapter {
  readonly #path: string;
  readonly #isRoot: boolean;

  constructor(path: string, isRoot: boolean) {
    this.#path = path;
    this.#isRoot = isRoot;
  }

  async wrap(plain: Buffer, context: WrapContext): Promise<WrappedKey> {
    const key = await this.#read(this.#isRoot);
    try {
      const nonce = randomBytes(NONCE_BYTES);
      const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(contextBytes(context));
      const body = Buffer.concat([cipher.update(plain), cipher.final()]);
      return {
        blob: Buffer.concat([Buffer.from([BLOB_VERSION]), nonce, body, cipher.getAuthTag()]),
        keyId: this.#path,
        keyVersion: fingerprint(key),
        algorithm: ALGORITHM,
      };
    } finally {
      key.fill(0);
    }
  }

  async unwrap(wrapped: WrappedKey, context: WrapContext): Promise<Unwrapped> {
    const { blob } = wrapped;
    if (wrapped.algorithm !== ALGORITHM || blob.length !== BLOB_BYTES || blob[0] !== BLOB_VERSION)
      throw failure('WrongContext', 'not a wrapped key of this adapter');
    const key = await this.#read(false).catch((error: unknown) => {
      // A key file that held a good key and is now malformed was changed.
      if (error instanceof KmsError && error.providerCode === 'KeyFileMalformed') throw failure('KeyFileChanged', this.#path, error);
      throw error;
    });
    try {
      const keyVersion = fingerprint(key);
      if (keyVersion !== wrapped.keyVersion) throw failure('KeyFileChanged', this.#path);
      const decipher = createDecipheriv('aes-256-gcm', key, blob.subarray(1, 1 + NONCE_BYTES), { authTagLength: TAG_BYTES })
        .setAAD(contextBytes(context))
        .setAuthTag(blob.subarray(BLOB_BYTES - TAG_BYTES));
      const plain = decipher.update(blob.subarray(1 + NONCE_BYTES, BLOB_BYTES - TAG_BYTES));
      try {
        decipher.final();
      } catch (cause) {
        plain.fill(0);
        throw failure('WrongContext', '', cause);
      }
      return { plain, keyVersion };
    } finally {
      key.fill(0);
    }
  }

  async currentVersion(): Promise<string> {
    const key = await this.#read(false);
    const version = fingerprint(key);
    key.fill(0);
    return version;
  }

  load(): Promise<void> {
    return Promise.resolve();
  }

  close(): void {}

  /** The 32 bytes; the caller wipes them. */
  async #read(createWhenMissing: boolean): Promise<Buffer> {
    let file: FileHandle;
    try {
      file = await open(this.#path, 'r');
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? '';
      if (code === 'ENOENT' || code === 'ENOTDIR') {
        if (createWhenMissing && !(await exists(idPath(this.#path)))) return await this.#create();
        throw failure('KeyFileMissing', this.#path, error);
      }
      if (code === 'EACCES' || code === 'EPERM') throw failure('KeyFileUnreadable', this.#path, error);
      throw failure('IoError', errorMessage(error), error);
    }
    const text = offHeap(FILE_BYTES_MAX);
    try {
      const { mode } = await file.stat();
      if ((mode & 0o077) !== 0) throw failure('KeyFileMode', `${this.#path} has mode ${(mode & 0o777).toString(8)}`);
      const { bytesRead } = await file.read(text, 0, FILE_BYTES_MAX, 0);
      const key = parseHex(text.subarray(0, bytesRead));
      if (key === null) throw failure('KeyFileMalformed', this.#path);
      if (this.#isRoot && createWhenMissing) await writeOnce(idPath(this.#path), `${fingerprint(key)}\n`);
      return key;
    } catch (error) {
      if (error instanceof KmsError) throw error;
      throw failure('IoError', errorMessage(error), error);
    } finally {
      text.fill(0);
      await file.close().catch(() => {});
    }
  }

  async #create(): Promise<Buffer> {
    const key = randomFillSync(offHeap(KEK_BYTES));
    try {
      await mkdir(dirname(this.#path), { recursive: true, mode: 0o700 });
      await writeOnce(this.#path, `${key.toString('hex')}\n`);
    } catch (error) {
      throw failure('IoError', errorMessage(error), error);
    } finally {
      key.fill(0);
    }
    // Another process may have been first: what is on disk is the key.
    return await this.#read(true);
  }
}

const idPath = (path: string): string => `${path}.id`;

/** Names a key without telling anything about it. */
const fingerprint = (key: Buffer): string => createHash('sha256').update('lakebase local key v1').update(key).digest('hex').slice(0, 16);

/** From bytes, not through a string: strings cannot be wiped. */
function parseHex(text: Buffer): Buffer | null {
  let length = text.length;
  while (length > 0 && (text[length - 1] as number) <= 0x20) length--;
  if (length !== 2 * KEK_BYTES) return null;
  const key = offHeap(KEK_BYTES);
  for (let i = 0; i < length; i++) {
    const c = text[i] as number;
    const digit = c >= 0x30 && c <= 0x39 ? c - 0x30 : (c | 0x20) >= 0x61 && (c | 0x20) <= 0x66 ? (c | 0x20) - 0x57 : -1;
    if (digit < 0) {
      key.fill(0);
      return null;
    }
    key[i >> 1] = ((key[i >> 1] as number) << 4) | digit;
  }
  return key;
}

async function exists(path: string): Promise<boolean> {
  try {
    await (await open(path, 'r')).close();
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ENOENT';
  }
}

/** Writes the whole file or nothing, durable, and leaves one that is there alone. */
async function writeOnce(path: string, text: string): Promise<void> {
  if (await exists(path)) return;
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`;
  const file = await open(temporary, 'wx', 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
    await file.close();
    await link(temporary, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    await file.close().catch(() => {});
    await unlink(temporary).catch(() => {});
  }
  const directory = await open(dirname(path), 'r');
  await directory.sync().finally(() => directory.close());
}
