/** HashiCorp Vault's transit engine, its tokens, and the AppRole login. */
import { createHash, randomBytes } from 'node:crypto';
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
import { fakeOpen, fakeSeal } from './seal.ts';

const MOUNT = 'transit';

export class FakeVault extends FakeKms {
  readonly provider = 'VAULT_TRANSIT';
  /** Good tokens and their seconds to live; 0 never ends. */
  readonly tokens = new Map<string, number>([['fake-token', 0]]);
  readonly appRoles = new Map<string, string>([['fake-role', 'fake-secret']]);
  /** Of the tokens that logins give. */
  leaseSeconds = 3_600;
  /** Has the token the capability `create`? */
  mayCreate = false;
  sealed = false;
  mountRemoved = false;
  minDecryptionVersion = 1;
  readonly #cert: string | undefined;

  constructor(tls?: FakeTls) {
    super(tls);
    this.#cert = tls?.cert;
  }

  config(key: FakeKey): KmsKeyConfig {
    return { provider: 'VAULT_TRANSIT', key: `${MOUNT}/${key.name}`, options: { address: this.url, token: 'fake-token' } };
  }

  environment(): KmsEnvironment {
    return { rootKeyPath: '/nonexistent/root.key', ...(this.#cert === undefined ? {} : { caCertificates: this.#cert }) };
  }

  protected newVersion(key: FakeKey): FakeKeyVersion {
    return { id: String(key.versions.length + 1), material: randomBytes(32) };
  }

  /** Transit has no disabled state; what a customer does is take the policy away. */
  override disable(key: string): void {
    this.deny(key);
  }
  override enable(key: string): void {
    this.allow(key);
  }

  protected operation(request: FakeRequest): string {
    return request.path.replace(/^\/v1\//, '');
  }

  error(status: number, ...errors: string[]): FakeReply {
    return json(status, { errors });
  }
  protected throttled(): FakeReply {
    return this.error(429, 'request path "transit/decrypt/key": rate limit quota exceeded');
  }
  protected internalError(): FakeReply {
    return this.error(500, 'internal error');
  }

  protected answer(request: FakeRequest, corrupt: boolean): FakeReply {
    if (this.sealed) return this.error(503, 'Vault is sealed');
    const path = this.operation(request);
    const body = (request.body.length === 0 ? {} : JSON.parse(request.body.toString('utf8'))) as Record<string, string>;
    if (path === 'auth/approle/login') return this.#login(body);
    const token = String(request.headers['x-vault-token'] ?? '');
    const ttl = this.tokens.get(token);
    if (ttl === undefined) return this.error(403, '2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n');
    if (path === 'auth/token/lookup-self') return json(200, { data: { id: token, ttl, renewable: ttl > 0 } });
    if (path === 'auth/token/renew-self') return json(200, { auth: { client_token: token, lease_duration: ttl, renewable: true } });
    const [mount, verb, name = ''] = path.split('/');
    if (mount !== MOUNT || this.mountRemoved) return this.error(404, `no handler for route "${path}". route entry not found.`);
    const key = this.keys.get(name);
    if (key?.denied === true) return this.error(403, '1 error occurred:\n\t* permission denied\n\n');
    // A token that may create makes the key by encrypting.
    if (key === undefined && verb === 'encrypt' && this.mayCreate) {
      this.createKey(name);
      return this.answer(request, corrupt);
    }
    if (key === undefined || key.state !== 'ENABLED')
      return verb === 'keys' ? this.error(404) : this.error(400, 'encryption key not found');
    if (verb === 'keys')
      return json(200, {
        data: { name, type: 'aes256-gcm96', latest_version: key.versions.length, min_decryption_version: this.minDecryptionVersion },
      });
    const aad = Buffer.from(body['associated_data'] ?? '', 'base64');
    if (verb === 'encrypt') {
      const blob = fakeSeal(key, Buffer.from(body['plaintext'] ?? '', 'base64'), aad);
      return json(200, {
        data: {
          ciphertext: `vault:v${key.versions.length}:${(corrupt ? flipBit(blob) : blob).toString('base64')}`,
          key_version: key.versions.length,
        },
      });
    }
    return this.#decrypt(key, body['ciphertext'] ?? '', aad, corrupt);
  }

  #decrypt(key: FakeKey, text: string, aad: Buffer, corrupt: boolean): FakeReply {
    const parts = /^vault:v(\d+):(.+)$/.exec(text);
    if (parts === null) return this.error(400, 'invalid ciphertext: no prefix');
    if (Number(parts[1]) < this.minDecryptionVersion)
      return this.error(400, 'ciphertext or signature version is disallowed by policy (too old)');
    const opened = fakeOpen(key, Buffer.from(parts[2] as string, 'base64'), aad);
    if (opened === null) return this.error(400, 'cipher: message authentication failed');
    return json(200, { data: { plaintext: (corrupt ? opened.plain.subarray(1) : opened.plain).toString('base64') } });
  }

  #login(body: Record<string, string>): FakeReply {
    if (this.appRoles.get(body['role_id'] ?? '') !== body['secret_id'] || body['secret_id'] === undefined)
      return this.error(400, 'invalid role or secret ID');
    const token = `hvs.${createHash('sha256').update(randomBytes(16)).digest('hex').slice(0, 24)}`;
    this.tokens.set(token, this.leaseSeconds);
    return json(200, { auth: { client_token: token, lease_duration: this.leaseSeconds, renewable: true } });
  }
}

if (import.meta.main) await runFake(new FakeVault());
