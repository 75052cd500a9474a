/** Azure Key Vault and Managed HSM: get, wrapKey, unwrapKey. Over TLS it issues the 401 challenge; over HTTP it cannot, as the SDK then insists on https. */
import {
  type KeyObject,
  createCipheriv,
  createDecipheriv,
  createPublicKey,
  constants,
  generateKeyPairSync,
  privateDecrypt,
  publicEncrypt,
  randomBytes,
} from 'node:crypto';
import type { TokenCredential } from '@azure/core-auth';
import type { KmsEnvironment, KmsKeyConfig } from '../types.ts';
import {
  type FakeKey,
  FakeKms,
  type FakeKeyVersion,
  type FakeReply,
  type FakeRequest,
  type FakeTls,
  flipBit,
  json,
  runFake,
} from './fake-kms.ts';

const WRAP_IV = Buffer.alloc(8, 0xa6);

interface AzureVersion extends FakeKeyVersion {
  readonly rsa: KeyObject | null;
}

export class FakeAzureVault extends FakeKms {
  readonly provider = 'AZURE_KEY_VAULT';
  /** `oct-HSM` as in a Managed HSM. */
  readonly keyType: 'RSA' | 'oct-HSM' | 'EC';
  /** Seconds since 1970, of every version; undefined: none. */
  expires: number | undefined;
  notBefore: number | undefined;
  keyOperations: readonly string[] = ['wrapKey', 'unwrapKey'];
  /** May only wrap and unwrap: `get` is refused. */
  getDenied = false;
  tokensRefused = false;
  readonly #challenge: boolean;
  readonly #cert: string | undefined;

  constructor(keyType: 'RSA' | 'oct-HSM' | 'EC' = 'RSA', tls?: FakeTls) {
    super(tls);
    this.keyType = keyType;
    this.#challenge = tls !== undefined;
    this.#cert = tls?.cert;
  }

  config(key: FakeKey): KmsKeyConfig {
    return { provider: 'AZURE_KEY_VAULT', key: `https://fake-vault.vault.azure.net/keys/${key.name}` };
  }

  environment(): KmsEnvironment {
    const credential: TokenCredential = {
      getToken: () => Promise.resolve({ token: 'fake-token', expiresOnTimestamp: Date.now() + 3_600_000 }),
    };
    return {
      rootKeyPath: '/nonexistent/root.key',
      endpoints: { AZURE_KEY_VAULT: this.url },
      credentials: { azure: credential },
      ...(this.#cert === undefined ? {} : { caCertificates: this.#cert }),
    };
  }

  protected newVersion(): AzureVersion {
    const rsa = this.keyType === 'RSA' ? generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey : null;
    return { id: randomBytes(16).toString('hex'), material: randomBytes(32), rsa };
  }

  protected operation(request: FakeRequest): string {
    return `${request.method} ${request.path.split('/')[4] ?? 'get'}`;
  }

  error(status: number, code: string, inner?: string, message = `${inner ?? code} of the fake`): FakeReply {
    return json(status, { error: { code, message, ...(inner === undefined ? {} : { innererror: { code: inner } }) } });
  }
  protected throttled(): FakeReply {
    return this.error(429, 'Throttled', undefined, 'Request was not processed because too many requests were received.');
  }
  protected internalError(): FakeReply {
    return this.error(500, 'InternalServerError');
  }

  protected answer(request: FakeRequest, corrupt: boolean): FakeReply {
    if (this.#challenge && request.headers.authorization !== 'Bearer fake-token')
      return json(
        401,
        { error: { code: 'Unauthorized', message: 'AKV10000: Request is missing a Bearer or PoP token.' } },
        {
          'www-authenticate':
            'Bearer authorization="https://login.windows.net/00000000-0000-0000-0000-000000000000", resource="https://vault.azure.net"',
        },
      );
    if (this.tokensRefused)
      return this.error(401, 'Unauthorized', undefined, '[TokenExpired] Error validating token: The token has expired.');
    const [, , name = '', versionId = '', verb = ''] = request.path.split('/');
    const key = this.keys.get(name);
    if (key === undefined || key.state === 'DESTROYED' || key.state === 'PENDING_DELETION')
      return this.error(404, 'KeyNotFound', undefined, `A key with (name/id) ${name} was not found in this key vault.`);
    const version = (versionId === '' ? key.versions.at(-1) : key.versions.find((v) => v.id === versionId)) as AzureVersion | undefined;
    if (version === undefined) return this.error(404, 'KeyNotFound', undefined, `A key with (name/id) ${name}/${versionId} was not found.`);
    if (key.denied || (verb === '' && this.getDenied))
      return this.error(403, 'Forbidden', 'ForbiddenByRbac', 'Caller is not authorized to perform action on resource.');
    if (verb === '') return json(200, this.#bundle(key, version));
    if (key.state === 'DISABLED') return this.error(403, 'Forbidden', 'KeyDisabled', `Operation ${verb} is not allowed on a disabled key.`);
    const { alg, value } = JSON.parse(request.body.toString('utf8')) as { alg: string; value: string };
    const input = Buffer.from(value, 'base64url');
    const result = verb === 'wrapkey' ? wrap(version, alg, input) : unwrap(version, alg, input);
    if (result === null) return this.error(400, 'BadParameter', undefined, 'Bad or unknown format; the key could not be unwrapped.');
    return json(200, {
      kid: this.#kid(key, version),
      value: (corrupt ? (verb === 'wrapkey' ? flipBit(result) : result.subarray(1)) : result).toString('base64url'),
    });
  }

  #kid(key: FakeKey, version: FakeKeyVersion): string {
    return `https://fake-vault.vault.azure.net/keys/${key.name}/${version.id}`;
  }

  #bundle(key: FakeKey, version: AzureVersion): unknown {
    const publicPart = version.rsa === null ? {} : createPublicKey(version.rsa).export({ format: 'jwk' });
    return {
      key: { ...publicPart, kid: this.#kid(key, version), kty: this.keyType, key_ops: this.keyOperations },
      attributes: {
        enabled: key.state === 'ENABLED',
        created: 1_700_000_000,
        updated: 1_700_000_000,
        ...(this.expires === undefined ? {} : { exp: this.expires }),
        ...(this.notBefore === undefined ? {} : { nbf: this.notBefore }),
      },
    };
  }
}

function wrap(version: AzureVersion, algorithm: string, plain: Buffer): Buffer | null {
  if (algorithm === 'RSA-OAEP-256' && version.rsa !== null)
    return publicEncrypt({ key: version.rsa, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' }, plain);
  if (algorithm !== 'A256KW' || version.rsa !== null) return null;
  const cipher = createCipheriv('id-aes256-wrap', version.material, WRAP_IV);
  return Buffer.concat([cipher.update(plain), cipher.final()]);
}

function unwrap(version: AzureVersion, algorithm: string, wrapped: Buffer): Buffer | null {
  try {
    if (algorithm === 'RSA-OAEP-256' && version.rsa !== null)
      return privateDecrypt({ key: version.rsa, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' }, wrapped);
    if (algorithm !== 'A256KW' || version.rsa !== null) return null;
    const decipher = createDecipheriv('id-aes256-wrap', version.material, WRAP_IV);
    return Buffer.concat([decipher.update(wrapped), decipher.final()]);
  } catch {
    return null;
  }
}

if (import.meta.main) await runFake(new FakeAzureVault());
