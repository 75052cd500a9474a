/** What leaves the key manager's disk for the object store: sealed under a fresh key that the installation root key wraps, bound to the name of
 *  the object. docs/formats/key-store.md. Form: a line of JSON `{"format","wrapped":{…},"tag"}`, then the ciphertext. */
import { createCipheriv, createDecipheriv } from 'node:crypto';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { NONCE_BYTES, TAG_BYTES, randomSecret, wipe } from '@lakebase/envelope';
import { type KmsEnvironment, type WrapContext, type WrappedKey, openKmsKey } from '@lakebase/kms';

const FORMAT = 'lakebase key record copy 1';
const HEAD_BYTES_MAX = 4_096;
const TIMEOUT_MS = 10_000;
/** The key seals one copy only. */
const NONCE = Buffer.alloc(NONCE_BYTES);

interface Head {
  readonly format: string;
  readonly wrapped: Omit<WrappedKey, 'blob'> & { readonly blob: string };
  readonly tag: string;
}

const contextOf = (name: string): WrapContext => ({ project: name, account: 'installation', purpose: 'record-copy', kekVersion: 1 });

export class CopySeal {
  readonly #env: KmsEnvironment;

  constructor(env: KmsEnvironment) {
    this.#env = env;
  }

  async seal(name: string, plain: Buffer): Promise<Buffer> {
    const dek = randomSecret();
    const root = openKmsKey({ provider: 'LOCAL', key: 'root' }, this.#env);
    try {
      const wrapped = await root.wrap(dek, contextOf(name), AbortSignal.timeout(TIMEOUT_MS));
      const cipher = createCipheriv('aes-256-gcm', dek, NONCE, { authTagLength: TAG_BYTES }).setAAD(Buffer.from(name));
      const sealed = Buffer.concat([cipher.update(plain), cipher.final()]);
      const head: Head = {
        format: FORMAT,
        wrapped: { ...wrapped, blob: wrapped.blob.toString('base64') },
        tag: cipher.getAuthTag().toString('base64'),
      };
      return Buffer.concat([Buffer.from(`${JSON.stringify(head)}\n`), sealed]);
    } finally {
      wipe(dek);
      root.close();
    }
  }

  /** Throws CORRUPT; CONFIG when the root key is not the one that sealed it. */
  async open(name: string, bytes: Buffer): Promise<Buffer> {
    const end = bytes.subarray(0, HEAD_BYTES_MAX).indexOf(0x0a);
    const corrupt = (what: string, cause?: unknown): LakebaseError =>
      new LakebaseError('CORRUPT', `object ${name} ${what}`, cause === undefined ? {} : { cause });
    const head = parseHead(bytes.subarray(0, Math.max(0, end)).toString('utf8'));
    if (head === undefined) throw corrupt('is no copy of a key record');
    if (head.format !== FORMAT) throw corrupt(`has format ${head.format.slice(0, 100)}, which this version does not know`);
    const dek = await this.#unwrap(name, head);
    try {
      const decipher = createDecipheriv('aes-256-gcm', dek, NONCE, { authTagLength: TAG_BYTES })
        .setAAD(Buffer.from(name))
        .setAuthTag(Buffer.from(head.tag, 'base64'));
      return Buffer.concat([decipher.update(bytes.subarray(end + 1)), decipher.final()]);
    } catch (cause) {
      throw corrupt('is damaged: it does not open', cause);
    } finally {
      wipe(dek);
    }
  }

  async #unwrap(name: string, head: Head): Promise<Buffer> {
    const root = openKmsKey({ provider: 'LOCAL', key: 'root' }, this.#env);
    try {
      const wrapped = { ...head.wrapped, blob: Buffer.from(head.wrapped.blob, 'base64') };
      return await root.unwrap(wrapped, contextOf(name), AbortSignal.timeout(TIMEOUT_MS));
    } catch (cause) {
      throw new LakebaseError(
        'CONFIG',
        `the object store holds ${name}, sealed by an installation root key (fingerprint ${head.wrapped.keyVersion}) that is not the one in ${this.#env.rootKeyPath}: put that root key back from its backup, or use an empty object store for a new installation (${errorMessage(cause)})`,
        { cause },
      );
    } finally {
      root.close();
    }
  }
}

function parseHead(text: string): Head | undefined {
  try {
    const head = JSON.parse(text) as Head;
    const { wrapped } = head;
    const strings = [head.format, head.tag, wrapped.blob, wrapped.algorithm, wrapped.keyId, wrapped.keyVersion];
    return strings.every((s) => typeof s === 'string') ? head : undefined;
  } catch {
    return undefined;
  }
}
