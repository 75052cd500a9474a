/** HashiCorp Vault and OpenBao: the transit engine over its HTTP API, with the context as associated data.
 *
 *  Invariants
 *  - The version that wrapped is in the ciphertext (`vault:v3:…`) and stored; decrypt finds it there.
 *  - wrap never makes a key: Vault would, for a token with `create`, and a new key of an old name would hide that the old one is gone.
 *  - A 403 is a denial of the key only when the token itself is still good; otherwise it is our login that failed.
 *  - Identities of this machine (the operator's token, a Kubernetes service account) go to the operator's own address only. */
import { Agent as HttpAgent, request as httpRequest } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import type { KmsAdapter, Options, Unwrapped } from './adapter.ts';
import { contextBytes } from './context.ts';
import { tenantEndpoint, trustedAuthorities } from './endpoint.ts';
import { KmsError, badAnswer } from './errors.ts';
import type { KmsEnvironment, WrapContext, WrappedKey } from './types.ts';
import { VaultAnswer, vaultError } from './vault-errors.ts';
import { type VaultLogin, VaultTokens } from './vault-login.ts';

export { vaultError } from './vault-errors.ts';

const ALGORITHM = 'TRANSIT_AEAD';
const ANSWER_BYTES_MAX = 256 * 1024;
const KEY_NAME = /^((?:[\w.-]{1,64}\/){1,8})([\w.-]{1,128})$/;
const MOUNT = /^[\w.-]{1,64}(?:\/[\w.-]{1,64}){0,7}$/;
const NAMESPACE = /^[\w.-]{1,64}(?:\/[\w.-]{1,64}){0,15}\/?$/;
const SERVICE_ACCOUNT_TOKEN = '/var/run/secrets/kubernetes.io/serviceaccount/token';

export function openVaultKey(key: string, options: Options, env: KmsEnvironment): KmsAdapter {
  const invalid = (code: string, advice: string): KmsError =>
    new KmsError('INVALID', 'VAULT_TRANSIT', code, `VAULT_TRANSIT ${code}: ${advice}`);
  const parts = KEY_NAME.exec(key);
  if (parts === null || key.split('/').some((part) => /^\.+$/.test(part)))
    throw invalid('InvalidKeyName', 'name the key as <mount>/<key>, for example transit/lakebase');
  const tenants = tenantEndpoint('VAULT_TRANSIT', options.get('address'), env);
  const operators = env.endpoints?.VAULT_TRANSIT?.replace(/\/+$/, '');
  const address = tenants ?? operators;
  if (address === undefined) throw invalid('InvalidOptions', 'set address to the URL of Vault');
  const namespace = options.get('namespace');
  if (namespace !== undefined && !NAMESPACE.test(namespace)) throw invalid('InvalidOptions', 'namespace is a path such as team/app');
  const login = loginOf(options, env, address === operators, invalid);
  return new VaultKey({ address, namespace, mount: (parts[1] as string).slice(0, -1), name: parts[2] as string, login }, env);
}

function loginOf(
  options: Options,
  env: KmsEnvironment,
  operatorsAddress: boolean,
  invalid: (code: string, advice: string) => KmsError,
): VaultLogin {
  const token = options.get('token');
  const roleId = options.get('roleId');
  const secretId = options.get('secretId');
  const kubernetesRole = options.get('kubernetesRole');
  const authMount = options.get('authMount');
  if (authMount !== undefined && !MOUNT.test(authMount))
    throw invalid('InvalidOptions', 'authMount is the path of the auth method, such as approle');
  if ([token, roleId, kubernetesRole].filter((v) => v !== undefined).length > 1)
    throw invalid('InvalidOptions', 'choose one login: token, roleId with secretId, or kubernetesRole');
  if (token !== undefined) return { kind: 'token', token };
  if (roleId !== undefined || secretId !== undefined) {
    if (roleId === undefined || secretId === undefined) throw invalid('InvalidOptions', 'roleId and secretId belong together');
    return { kind: 'approle', mount: authMount ?? 'approle', roleId, secretId };
  }
  if (kubernetesRole !== undefined) {
    if (!operatorsAddress)
      throw invalid('InvalidOptions', "kubernetesRole works with the operator's own Vault only; use roleId and secretId");
    return { kind: 'kubernetes', mount: authMount ?? 'kubernetes', role: kubernetesRole, tokenFile: SERVICE_ACCOUNT_TOKEN };
  }
  const operators = env.credentials?.vaultToken;
  if (operators !== undefined && operatorsAddress) return { kind: 'token', token: operators };
  throw invalid('InvalidOptions', 'set token, or roleId and secretId');
}

interface VaultSettings {
  readonly address: string;
  readonly namespace: string | undefined;
  readonly mount: string;
  readonly name: string;
  readonly login: VaultLogin;
}

class VaultKey implements KmsAdapter {
  readonly #settings: VaultSettings;
  readonly #tokens: VaultTokens;
  readonly #agent: HttpAgent | HttpsAgent;

  constructor(settings: VaultSettings, env: KmsEnvironment) {
    this.#settings = settings;
    const { caCertificates } = env;
    this.#agent = settings.address.startsWith('https:')
      ? new HttpsAgent({
          keepAlive: true,
          maxSockets: 16,
          ...(caCertificates === undefined ? {} : { ca: trustedAuthorities(caCertificates) }),
        })
      : new HttpAgent({ keepAlive: true, maxSockets: 16 });
    this.#tokens = new VaultTokens(settings.login, (method, path, body, token, signal) => this.#send(method, path, body, token, signal));
  }

  async wrap(plain: Buffer, context: WrapContext, signal: AbortSignal): Promise<WrappedKey> {
    // Fails when the key is not there. A token that may not read the key is let through: docs/operating/kms.md says not to give it `create`.
    await this.currentVersion(signal);
    const { data } = (await this.#call(
      'POST',
      `encrypt/${this.#settings.name}`,
      this.#body('plaintext', plain.toString('base64'), context),
      signal,
    )) as {
      data?: { ciphertext?: unknown; key_version?: unknown };
    };
    const text = data?.ciphertext;
    const version = typeof text === 'string' ? /^[a-z]+:v(\d{1,10}):/.exec(text)?.[1] : undefined;
    if (typeof text !== 'string' || version === undefined) throw badAnswer('VAULT_TRANSIT', 'encrypt answers without a ciphertext');
    return { blob: Buffer.from(text, 'ascii'), keyId: this.#keyId(), keyVersion: version, algorithm: ALGORITHM };
  }

  async unwrap(wrapped: WrappedKey, context: WrapContext, signal: AbortSignal): Promise<Unwrapped> {
    const { data } = (await this.#call(
      'POST',
      `decrypt/${this.#settings.name}`,
      this.#body('ciphertext', wrapped.blob.toString('ascii'), context),
      signal,
    )) as {
      data?: { plaintext?: unknown };
    };
    if (typeof data?.plaintext !== 'string') throw badAnswer('VAULT_TRANSIT', 'decrypt answers without a plaintext');
    return { plain: Buffer.from(data.plaintext, 'base64'), keyVersion: wrapped.keyVersion };
  }

  async currentVersion(signal: AbortSignal): Promise<string> {
    try {
      const { data } = (await this.#call('GET', `keys/${this.#settings.name}`, undefined, signal)) as {
        data?: { latest_version?: unknown };
      };
      return typeof data?.latest_version === 'number' ? String(data.latest_version) : '';
    } catch (error) {
      // Reading the key may be left out of the policy: then versions are not seen, and everything else works.
      if (vaultError(error).providerCode === 'PermissionDenied') return '';
      throw error;
    }
  }

  load(): Promise<void> {
    return Promise.resolve();
  }

  close(): void {
    this.#agent.destroy();
  }

  #keyId(): string {
    const { namespace, mount, name } = this.#settings;
    return `${namespace === undefined ? '' : `${namespace.replace(/\/$/, '')}/`}${mount}/${name}`;
  }

  #body(field: 'plaintext' | 'ciphertext', value: string, context: WrapContext): Record<string, string> {
    return { [field]: value, associated_data: contextBytes(context).toString('base64') };
  }

  async #call(method: string, path: string, body: unknown, signal: AbortSignal): Promise<unknown> {
    const full = `${this.#settings.mount}/${path}`;
    const token = await this.#tokens.get(signal);
    try {
      return await this.#send(method, full, body, token, signal);
    } catch (error) {
      if (!(error instanceof VaultAnswer) || error.status !== 403 || error.errors === null) throw error;
      if (await this.#isGood(token, signal)) throw error;
      this.#tokens.forget(token);
      if (!this.#tokens.canLogIn) throw vaultError(new VaultAnswer(403, ['invalid token']));
      return await this.#send(method, full, body, await this.#tokens.get(signal), signal);
    }
  }

  /** Tells a lost token from a missing permission: Vault answers 403 to both. Needs the `default` policy, which every token has unless it is left out. */
  async #isGood(token: string, signal: AbortSignal): Promise<boolean> {
    try {
      await this.#send('GET', 'auth/token/lookup-self', undefined, token, signal);
      return true;
    } catch (error) {
      if (error instanceof VaultAnswer && error.status === 403 && error.errors !== null) return false;
      throw error;
    }
  }

  #send(method: string, path: string, body: unknown, token: string | null, signal: AbortSignal): Promise<unknown> {
    const { address, namespace } = this.#settings;
    const payload = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
    const headers: Record<string, string> = { 'x-vault-request': 'true', accept: 'application/json' };
    if (token !== null) headers['x-vault-token'] = token;
    if (namespace !== undefined) headers['x-vault-namespace'] = namespace;
    if (payload !== undefined) {
      headers['content-type'] = 'application/json';
      headers['content-length'] = String(payload.length);
    }
    return new Promise((resolve, reject) => {
      const send = address.startsWith('https:') ? httpsRequest : httpRequest;
      const request = send(`${address}/v1/${path}`, { method, headers, agent: this.#agent, signal }, (response) => {
        const chunks: Buffer[] = [];
        let length = 0;
        response.on('data', (chunk: Buffer) => {
          length += chunk.length;
          if (length > ANSWER_BYTES_MAX) response.destroy(new Error(`an answer of more than ${ANSWER_BYTES_MAX} bytes`));
          else chunks.push(chunk);
        });
        response.on('error', reject);
        response.on('end', () => {
          payload?.fill(0);
          const text = Buffer.concat(chunks);
          for (const chunk of chunks) chunk.fill(0);
          try {
            resolve(parseAnswer(response.statusCode ?? 0, text));
          } catch (error) {
            reject(error as Error);
          } finally {
            text.fill(0);
          }
        });
      });
      request.on('error', reject);
      request.end(payload);
    });
  }
}

function parseAnswer(status: number, text: Buffer): unknown {
  let body: unknown;
  try {
    body = text.length === 0 && status === 204 ? {} : JSON.parse(text.toString('utf8'));
  } catch {
    body = null;
  }
  if (status >= 200 && status < 300) {
    if (typeof body === 'object' && body !== null) return body;
    throw badAnswer('VAULT_TRANSIT', `HTTP ${status} without JSON`);
  }
  const errors = (body as { errors?: unknown } | null)?.errors;
  throw new VaultAnswer(status, Array.isArray(errors) ? errors.slice(0, 8).map(String) : null);
}
