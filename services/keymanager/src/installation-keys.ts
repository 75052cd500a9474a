/** Data keys of the installation itself, not of a project: those of the Manager's catalog in the object store. The installation root key wraps them,
 *  so they open with that key and nothing else of this installation's disks. Octets in, octets out; the caller wipes results.
 *  Invariant: a reference says which root key wrapped it; with another one in its place the answer is CONFIG, never a wrong key. */
import { INSTALLATION_DEKS_MAX, INSTALLATION_REFERENCE_BYTES, KEY_BYTES } from '@lakebase/api';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { randomSecret, secretBuffer, wipe } from '@lakebase/envelope';
import { type KmsEnvironment, KmsError, type KmsKey, type WrapContext, openKmsKey } from '@lakebase/kms';

const CONTEXT: WrapContext = { project: 'installation', account: 'installation', purpose: 'catalog', kekVersion: 1 };
const ALGORITHM = 'AES-256-GCM';
const FINGERPRINT_BYTES = 8;
const TIMEOUT_MS = 10_000;

export class InstallationKeys {
  readonly #env: KmsEnvironment;

  constructor(env: KmsEnvironment) {
    this.#env = env;
  }

  /** `count × (DEK · reference)`. */
  async deks(count: number): Promise<Buffer> {
    if (!Number.isInteger(count) || count < 1 || count > INSTALLATION_DEKS_MAX)
      throw new LakebaseError('INVALID_ARGUMENT', `count is a whole number from 1 to ${INSTALLATION_DEKS_MAX}`);
    const out = secretBuffer(count * (KEY_BYTES + INSTALLATION_REFERENCE_BYTES));
    await this.#withRoot(async (root) => {
      for (let i = 0, at = 0; i < count; i++) {
        const dek = randomSecret();
        try {
          const { blob, keyVersion } = await root.wrap(dek, CONTEXT, AbortSignal.timeout(TIMEOUT_MS));
          const reference = Buffer.concat([Buffer.from(keyVersion, 'hex'), blob]);
          if (reference.length !== INSTALLATION_REFERENCE_BYTES)
            throw new LakebaseError('INTERNAL', `a key that the root key wrapped has ${reference.length} bytes`);
          at += dek.copy(out, at);
          at += reference.copy(out, at);
        } finally {
          wipe(dek);
        }
      }
    });
    return out;
  }

  async unwrap(references: Buffer): Promise<Buffer> {
    const count = references.length / INSTALLATION_REFERENCE_BYTES;
    if (!Number.isInteger(count) || count < 1 || count > INSTALLATION_DEKS_MAX)
      throw new LakebaseError('INVALID_ARGUMENT', `the body is 1 to ${INSTALLATION_DEKS_MAX} references`);
    const out = secretBuffer(count * KEY_BYTES);
    await this.#withRoot(async (root) => {
      for (let i = 0; i < count; i++) {
        const reference = references.subarray(i * INSTALLATION_REFERENCE_BYTES, (i + 1) * INSTALLATION_REFERENCE_BYTES);
        const keyVersion = reference.subarray(0, FINGERPRINT_BYTES).toString('hex');
        const wrapped = { blob: Buffer.from(reference.subarray(FINGERPRINT_BYTES)), keyId: 'root', keyVersion, algorithm: ALGORITHM };
        const dek = await root.unwrap(wrapped, CONTEXT, AbortSignal.timeout(TIMEOUT_MS)).catch((cause: unknown) => {
          const denied = cause instanceof KmsError && cause.outcome === 'DENIED';
          throw new LakebaseError(
            denied ? 'CONFIG' : 'UNAVAILABLE',
            `the installation root key in ${this.#env.rootKeyPath} does not open what key ${keyVersion} sealed: put the root key of this installation back from its backup (${errorMessage(cause)})`,
            { cause },
          );
        });
        dek.copy(out, i * KEY_BYTES);
        wipe(dek);
      }
    });
    return out;
  }

  async #withRoot(use: (root: KmsKey) => Promise<void>): Promise<void> {
    const root = openKmsKey({ provider: 'LOCAL', key: 'root' }, this.#env);
    try {
      await use(root);
    } finally {
      root.close();
    }
  }
}
