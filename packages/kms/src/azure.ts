/** Azure Key Vault and Managed HSM: wrapKey and unwrapKey.
 *
 *  Invariants
 *  - A URL without version follows the newest one; the version that wrapped is stored and named on unwrap.
 *  - Wrapping happens in the vault. The SDK would wrap by itself with the public half of an RSA key for RSA-OAEP and RSA1_5, which proves
 *    nothing about access; RSA-OAEP-256 and A256KW it always sends. Only unwrap proves access in any case, and open.ts does one after every wrap.
 *  - The vault binds no context: it is in the plaintext (context.ts).
 *  - An expired key is denied. The vault itself would still unwrap; the SDK checks the dates, which we read again on every call. */
import type { TokenCredential } from '@azure/core-auth';
import type { KeyClient, KeyVaultKey } from '@azure/keyvault-keys';
import type { KmsAdapter, Options, Unwrapped } from './adapter.ts';
import { azureError, azureFailure } from './azure-errors.ts';
import { packWithContext, unpackWithContext } from './context.ts';
import { requireAllowed, trustedAuthorities } from './endpoint.ts';
import { KmsError, badAnswer } from './errors.ts';
import type { KmsEnvironment, WrapContext, WrappedKey } from './types.ts';

export { azureError } from './azure-errors.ts';

type Algorithm = 'RSA-OAEP-256' | 'A256KW';
const KEY_PATH = /^\/keys\/([0-9A-Za-z-]{1,127})(?:\/([0-9A-Za-z]{1,64}))?\/?$/;
/** Vault hosts of Azure's clouds. Tokens are asked for the audience of the host, so no other host may be named by a tenant. */
const VAULT_HOST = /^[0-9A-Za-z-]{1,63}\.(vault|managedhsm)\.(azure\.net|azure\.cn|usgovcloudapi\.net)$/;

interface AzureSettings {
  /** As the key's URL has it; part of the key's id. */
  readonly vault: string;
  readonly name: string;
  /** '' follows the newest. */
  readonly version: string;
  /** Where requests go: the vault, or the operator's own address for it. */
  readonly address: string;
  readonly custom: boolean;
  readonly algorithm: Algorithm | undefined;
  readonly login: AzureLogin;
}
interface AzureLogin {
  readonly tenantId: string | undefined;
  readonly clientId: string | undefined;
  readonly clientSecret: string | undefined;
  readonly managedIdentityClientId: string | undefined;
  readonly cloud: string;
}

export function openAzureKey(key: string, options: Options, env: KmsEnvironment): KmsAdapter {
  const invalid = (code: string, advice: string): KmsError =>
    new KmsError('INVALID', 'AZURE_KEY_VAULT', code, `AZURE_KEY_VAULT ${code}: ${advice}`);
  const shape = 'name the key by its URL, https://<vault>.vault.azure.net/keys/<name>, with or without /<version>';
  if (!URL.canParse(key)) throw invalid('InvalidKeyUrl', shape);
  const url = new URL(key);
  const path = KEY_PATH.exec(url.pathname);
  if (path === null || url.search !== '' || url.hash !== '' || url.username !== '' || url.password !== '')
    throw invalid('InvalidKeyUrl', shape);
  const operators = env.endpoints?.AZURE_KEY_VAULT;
  if (operators === undefined && (url.protocol !== 'https:' || url.port !== '' || !VAULT_HOST.test(url.hostname)))
    throw invalid('InvalidKeyUrl', shape);
  requireAllowed('AZURE_KEY_VAULT', url, env);
  const algorithm = options.get('algorithm');
  if (algorithm !== undefined && algorithm !== 'RSA-OAEP-256' && algorithm !== 'A256KW')
    throw invalid('InvalidOptions', 'algorithm is RSA-OAEP-256 or A256KW');
  const login: AzureLogin = {
    tenantId: options.get('tenantId'),
    clientId: options.get('clientId'),
    clientSecret: options.get('clientSecret'),
    managedIdentityClientId: options.get('managedIdentityClientId'),
    cloud: url.hostname.endsWith('.azure.cn') ? 'china' : url.hostname.endsWith('.usgovcloudapi.net') ? 'government' : 'public',
  };
  if (new Set([login.tenantId, login.clientId, login.clientSecret].map((v) => v === undefined)).size > 1)
    throw invalid('InvalidOptions', 'tenantId, clientId and clientSecret belong together');
  return new AzureKey(
    {
      vault: url.origin,
      name: path[1] as string,
      version: path[2] ?? '',
      address: operators ?? url.origin,
      custom: operators !== undefined,
      algorithm,
      login,
    },
    env,
  );
}

class AzureKey implements KmsAdapter {
  readonly #settings: AzureSettings;
  readonly #env: KmsEnvironment;
  #opened: Promise<KeyClient> | null = null;

  constructor(settings: AzureSettings, env: KmsEnvironment) {
    this.#settings = settings;
    this.#env = env;
  }

  async wrap(plain: Buffer, context: WrapContext, signal: AbortSignal): Promise<WrappedKey> {
    const client = await this.#open();
    const key = await this.#get(client, signal);
    const version = key.properties.version ?? '';
    if (version === '') throw badAnswer('AZURE_KEY_VAULT', 'the key has no version');
    const algorithm = this.#settings.algorithm ?? algorithmOf(key);
    const packed = packWithContext(plain, context);
    try {
      const { result } = await client
        .getCryptographyClient(this.#settings.name, { keyVersion: version })
        .wrapKey(algorithm, packed, { abortSignal: signal });
      if (!(result instanceof Uint8Array)) throw badAnswer('AZURE_KEY_VAULT', 'wrapKey answers without a value');
      return { blob: Buffer.from(result), keyId: this.#keyId(version), keyVersion: version, algorithm };
    } finally {
      packed.fill(0);
    }
  }

  async unwrap(wrapped: WrappedKey, context: WrapContext, signal: AbortSignal): Promise<Unwrapped> {
    const { algorithm, keyVersion } = wrapped;
    if (algorithm !== 'RSA-OAEP-256' && algorithm !== 'A256KW') throw azureFailure('UnwrapFailed', `unknown algorithm ${algorithm}`);
    if (!/^[0-9A-Za-z]{1,64}$/.test(keyVersion)) throw azureFailure('UnwrapFailed', 'the stored key version is malformed');
    if (wrapped.keyId !== this.#keyId(keyVersion)) throw azureFailure('UnwrapFailed', `wrapped by ${wrapped.keyId}`);
    const client = await this.#open();
    let result: Uint8Array;
    try {
      // A new one each time: it reads the key's dates and keeps them.
      const crypto = client.getCryptographyClient(this.#settings.name, { keyVersion });
      ({ result } = await crypto.unwrapKey(algorithm, wrapped.blob, { abortSignal: signal }));
    } catch (error) {
      const failure = azureError(error);
      // A well-formed request is refused like this when the bytes do not open.
      if (failure.outcome === 'INVALID' && /Bad(Parameter|Request)$/.test(failure.providerCode))
        throw azureFailure('UnwrapFailed', failure.message, error);
      throw failure;
    }
    if (!(result instanceof Uint8Array)) throw badAnswer('AZURE_KEY_VAULT', 'unwrapKey answers without a value');
    const packed = Buffer.from(result.buffer, result.byteOffset, result.byteLength);
    const length = packed.length;
    const plain = unpackWithContext(packed, context);
    if (length !== 64) throw badAnswer('AZURE_KEY_VAULT', `an unwrapped value of ${length} bytes`);
    if (plain === null) throw azureFailure('ContextMismatch', '');
    return { plain, keyVersion };
  }

  async currentVersion(signal: AbortSignal): Promise<string> {
    return (await this.#get(await this.#open(), signal)).properties.version ?? '';
  }

  async load(): Promise<void> {
    await Promise.all([import('@azure/keyvault-keys'), import('@azure/identity')]);
  }

  close(): void {
    // The SDK holds no connection of its own beyond the process's keep-alive agent.
    this.#opened = null;
  }

  #keyId(version: string): string {
    return `${this.#settings.vault}/keys/${this.#settings.name}/${version}`;
  }

  async #get(client: KeyClient, signal: AbortSignal): Promise<KeyVaultKey> {
    const { name, version } = this.#settings;
    return await client.getKey(name, { abortSignal: signal, ...(version === '' ? {} : { version }) });
  }

  #open(): Promise<KeyClient> {
    this.#opened ??= this.#connect().catch((error: unknown) => {
      this.#opened = null;
      throw error;
    });
    return this.#opened;
  }

  async #connect(): Promise<KeyClient> {
    const { KeyClient } = await import('@azure/keyvault-keys');
    const { address, custom } = this.#settings;
    const { caCertificates } = this.#env;
    return new KeyClient(address, await this.#credential(), {
      retryOptions: { maxRetries: 0 },
      ...(custom ? { disableChallengeResourceVerification: true, allowInsecureConnection: address.startsWith('http:') } : {}),
      ...(caCertificates === undefined ? {} : { tlsOptions: { ca: trustedAuthorities(caCertificates).join('\n') } }),
    });
  }

  async #credential(): Promise<TokenCredential> {
    const { tenantId, clientId, clientSecret, managedIdentityClientId, cloud } = this.#settings.login;
    const operators = this.#env.credentials?.azure;
    if (clientSecret === undefined && managedIdentityClientId === undefined && operators !== undefined) return operators;
    const identity = await import('@azure/identity');
    const authorityHost =
      cloud === 'china'
        ? identity.AzureAuthorityHosts.AzureChina
        : cloud === 'government'
          ? identity.AzureAuthorityHosts.AzureGovernment
          : identity.AzureAuthorityHosts.AzurePublicCloud;
    const options = { authorityHost, retryOptions: { maxRetries: 0 } };
    if (tenantId !== undefined && clientId !== undefined && clientSecret !== undefined)
      return new identity.ClientSecretCredential(tenantId, clientId, clientSecret, options);
    if (managedIdentityClientId !== undefined)
      return new identity.ManagedIdentityCredential({ clientId: managedIdentityClientId, retryOptions: { maxRetries: 0 } });
    return new identity.DefaultAzureCredential(options);
  }
}

function algorithmOf(key: KeyVaultKey): Algorithm {
  const type = (key.keyType ?? '').toUpperCase();
  if (type === 'RSA' || type === 'RSA-HSM') return 'RSA-OAEP-256';
  if (type === 'OCT-HSM' || type === 'OCT') return 'A256KW';
  throw azureFailure('KeyTypeNotSupported', `the key is of type ${key.keyType}`);
}
