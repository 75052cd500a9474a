/** Google Cloud KMS: Encrypt and Decrypt with the context as additional authenticated data, over the SDK's REST transport (HTTP/1.1, passes
 *  proxies, no native code).
 *
 *  Invariants
 *  - CRC-32C of plaintext, ciphertext and context goes with every request; the service's confirmation and the CRC of every answer are
 *    checked before a byte is used.
 *  - The version that wrapped is stored for the report; Decrypt finds it in the ciphertext. */
import { crc32c } from '@lakebase/bytes';
import type { KeyManagementServiceClient } from '@google-cloud/kms';
import type { AuthClient, GoogleAuth } from 'google-auth-library';
import type { KmsAdapter, Options, Unwrapped } from './adapter.ts';
import { contextBytes } from './context.ts';
import { requireAllowed } from './endpoint.ts';
import { KmsError, badAnswer, meaningToError } from './errors.ts';
import { googleError, googleLoginError } from './google-errors.ts';
import type { KmsEnvironment, WrapContext, WrappedKey } from './types.ts';

export { googleError } from './google-errors.ts';

const ALGORITHM = 'GOOGLE_SYMMETRIC_ENCRYPTION';
const KEY_NAME = /^projects\/[^/\s]{1,100}\/locations\/[^/\s]{1,63}\/keyRings\/[\w-]{1,63}\/cryptoKeys\/[\w-]{1,63}$/;
const SCOPES = ['https://www.googleapis.com/auth/cloudkms'];

interface GoogleSettings {
  readonly key: string;
  readonly endpoint: URL | null;
  readonly serviceAccount: { readonly email: string; readonly privateKey: string } | null;
  readonly impersonate: string | undefined;
}

export function openGoogleKey(key: string, options: Options, env: KmsEnvironment): KmsAdapter {
  const invalid = (code: string, advice: string): KmsError => new KmsError('INVALID', 'GCP_KMS', code, `GCP_KMS ${code}: ${advice}`);
  if (!KEY_NAME.test(key))
    throw invalid(
      'InvalidKeyName',
      'name the key as projects/<project>/locations/<location>/keyRings/<ring>/cryptoKeys/<key>, without a version',
    );
  const impersonate = options.get('impersonateServiceAccount');
  if (impersonate !== undefined && !/^[^@\s]+@[^@\s]+$/.test(impersonate))
    throw invalid('InvalidOptions', 'impersonateServiceAccount is the e-mail name of a service account');
  const endpoint = env.endpoints?.GCP_KMS;
  requireAllowed('GCP_KMS', new URL(endpoint ?? 'https://cloudkms.googleapis.com'), env);
  const json = options.get('serviceAccountKey');
  return new GoogleKey(
    {
      key,
      endpoint: endpoint === undefined ? null : new URL(endpoint),
      serviceAccount: json === undefined ? null : parseServiceAccount(json, invalid),
      impersonate,
    },
    env,
  );
}

/** Only the key of a service account: other kinds of credential files name addresses to call or programs to run. */
function parseServiceAccount(json: string, invalid: (code: string, advice: string) => KmsError): { email: string; privateKey: string } {
  let body: { type?: unknown; client_email?: unknown; private_key?: unknown } | null;
  try {
    body = JSON.parse(json);
  } catch {
    body = null;
  }
  if (body?.type !== 'service_account' || typeof body.client_email !== 'string' || typeof body.private_key !== 'string')
    throw invalid('InvalidOptions', 'serviceAccountKey is the JSON of a service account key (type service_account)');
  return { email: body.client_email, privateKey: body.private_key };
}

class GoogleKey implements KmsAdapter {
  readonly #settings: GoogleSettings;
  readonly #env: KmsEnvironment;
  #opened: Promise<{ client: KeyManagementServiceClient; auth: GoogleAuth }> | null = null;

  constructor(settings: GoogleSettings, env: KmsEnvironment) {
    this.#settings = settings;
    this.#env = env;
  }

  async wrap(plain: Buffer, context: WrapContext, signal: AbortSignal): Promise<WrappedKey> {
    const client = await this.#open();
    const aad = contextBytes(context);
    const [answer] = await client.encrypt(
      {
        name: this.#settings.key,
        plaintext: plain,
        plaintextCrc32c: { value: crc32c(plain) },
        additionalAuthenticatedData: aad,
        additionalAuthenticatedDataCrc32c: { value: crc32c(aad) },
      },
      this.#callOptions(signal),
    );
    if (answer.verifiedPlaintextCrc32c !== true || answer.verifiedAdditionalAuthenticatedDataCrc32c !== true)
      throw checksum('the service did not confirm the checksums of the request');
    const blob = bytes(answer.ciphertext);
    if (blob.length === 0 || crcOf(answer.ciphertextCrc32c) !== crc32c(blob)) throw checksum('the ciphertext was damaged on the way');
    const version = /\/cryptoKeyVersions\/(\d{1,19})$/.exec(answer.name ?? '')?.[1];
    if (version === undefined || !(answer.name ?? '').startsWith(`${this.#settings.key}/`))
      throw badAnswer('GCP_KMS', 'the answer does not name a version of the key asked for');
    return { blob, keyId: this.#settings.key, keyVersion: version, algorithm: ALGORITHM };
  }

  async unwrap(wrapped: WrappedKey, context: WrapContext, signal: AbortSignal): Promise<Unwrapped> {
    const client = await this.#open();
    const aad = contextBytes(context);
    const [answer] = await client.decrypt(
      {
        name: this.#settings.key,
        ciphertext: wrapped.blob,
        ciphertextCrc32c: { value: crc32c(wrapped.blob) },
        additionalAuthenticatedData: aad,
        additionalAuthenticatedDataCrc32c: { value: crc32c(aad) },
      },
      this.#callOptions(signal),
    );
    const plain = bytes(answer.plaintext);
    if (crcOf(answer.plaintextCrc32c) !== crc32c(plain)) {
      plain.fill(0);
      throw checksum('the plaintext was damaged on the way');
    }
    return { plain, keyVersion: wrapped.keyVersion };
  }

  async currentVersion(signal: AbortSignal): Promise<string> {
    const client = await this.#open();
    try {
      const [key] = await client.getCryptoKey({ name: this.#settings.key }, this.#callOptions(signal));
      return /\/cryptoKeyVersions\/(\d{1,19})$/.exec(key.primary?.name ?? '')?.[1] ?? '';
    } catch (error) {
      // cryptoKeys.get may be left out of the role: then versions are not seen, and everything else works.
      if (googleError(error).providerCode.startsWith('PERMISSION_DENIED')) return '';
      throw error;
    }
  }

  async load(): Promise<void> {
    await Promise.all([import('@google-cloud/kms'), import('google-auth-library')]);
  }

  close(): void {
    this.#opened?.then(({ client }) => client.close()).catch(() => {});
    this.#opened = null;
  }

  #callOptions(signal: AbortSignal): { timeout: number; retry: { retryCodes: number[] }; signal: AbortSignal } {
    return { timeout: this.#env.attemptTimeoutMs ?? 3_000, retry: { retryCodes: [] }, signal };
  }

  async #open(): Promise<KeyManagementServiceClient> {
    this.#opened ??= this.#connect().catch((error: unknown) => {
      this.#opened = null;
      throw googleLoginError(error);
    });
    const { client, auth } = await this.#opened;
    try {
      // The token first: the SDK would report a refused login as if KMS had refused the call.
      await (await auth.getClient()).getRequestHeaders();
    } catch (error) {
      throw googleLoginError(error);
    }
    return client;
  }

  async #connect(): Promise<{ client: KeyManagementServiceClient; auth: GoogleAuth }> {
    const [{ v1 }, { GoogleAuth, Impersonated, JWT }] = await Promise.all([import('@google-cloud/kms'), import('google-auth-library')]);
    const { serviceAccount, impersonate, endpoint } = this.#settings;
    let authClient: AuthClient | undefined = this.#env.credentials?.google;
    if (serviceAccount !== null) authClient = new JWT({ email: serviceAccount.email, key: serviceAccount.privateKey, scopes: SCOPES });
    if (impersonate !== undefined) {
      const source =
        authClient ?? ((await new GoogleAuth({ scopes: ['https://www.googleapis.com/auth/cloud-platform'] }).getClient()) as AuthClient);
      authClient = new Impersonated({ sourceClient: source, targetPrincipal: impersonate, targetScopes: SCOPES, lifetime: 900 });
    }
    const auth = new GoogleAuth(authClient === undefined ? { scopes: SCOPES } : { authClient, scopes: SCOPES });
    const options: Record<string, string | number | object> = { fallback: 'rest', auth };
    if (endpoint !== null) {
      options['protocol'] = endpoint.protocol.slice(0, -1);
      options['apiEndpoint'] = endpoint.hostname;
      options['port'] = Number(endpoint.port || (endpoint.protocol === 'https:' ? 443 : 80));
    }
    return { client: new v1.KeyManagementServiceClient(options), auth };
  }
}

const checksum = (what: string): KmsError => meaningToError('GCP_KMS', 'ChecksumMismatch', ['UNREACHABLE', `${what}; retried`], '');

/** A view where the SDK decoded bytes, so that wiping it wipes them. */
function bytes(value: Uint8Array | string | null | undefined): Buffer {
  if (typeof value === 'string') return Buffer.from(value, 'base64');
  return value === null || value === undefined ? Buffer.alloc(0) : Buffer.from(value.buffer, value.byteOffset, value.byteLength);
}

/** A wrapped int64 in any of the forms protobuf.js gives it; -1 when there is none. */
function crcOf(wrapper: { value?: unknown } | string | number | null | undefined): number {
  const value = typeof wrapper === 'object' && wrapper !== null ? wrapper.value : wrapper;
  if (value === null || value === undefined || value === '') return -1;
  const crc = Number(typeof value === 'object' ? (value as { toString(): string }).toString() : value);
  return Number.isSafeInteger(crc) ? crc : -1;
}
