/** Vault transit against a real Vault or OpenBao in development mode: the conformance suite, and logins, policies and versions as they really are. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { type KmsEnvironment, type KmsKeyConfig, openKmsKey } from '@lakebase/kms';
import { CONTEXT, type KmsHarness, expectOutcome, registerKmsConformance, soon } from '@lakebase/kms/testing';
import { CACHE, type RunningServer, findProgram, startServer } from './servers.ts';

const ROOT_TOKEN = 'interop-root';
const program = findProgram('vault', 'bin') ?? findProgram('bao', 'bin');

class RealVault implements KmsHarness {
  readonly provider = 'VAULT_TRANSIT';
  readonly setFaults = null;
  readonly #server: RunningServer;

  constructor(server: RunningServer) {
    this.#server = server;
  }

  static async start(): Promise<RealVault> {
    const vault = new RealVault(
      await startServer(
        program as string,
        (port) => ['server', '-dev', `-dev-listen-address=127.0.0.1:${port}`, `-dev-root-token-id=${ROOT_TOKEN}`, '-dev-no-store-token'],
        (url) => `${url}/v1/sys/health`,
      ),
    );
    // The development server listens before its core is ready.
    for (let attempt = 0; ; attempt++)
      try {
        await vault.call('POST', 'sys/mounts/transit', { type: 'transit' });
        return vault;
      } catch (error) {
        if (attempt > 100) throw error;
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
  }

  get url(): string {
    return this.#server.url;
  }

  environment(): KmsEnvironment {
    return { rootKeyPath: '/nonexistent/root.key' };
  }

  /** A key with a policy and a token of its own, as an operator would make them. */
  async createKey(): Promise<KmsKeyConfig> {
    const name = `key-${randomBytes(4).toString('hex')}`;
    await this.call('POST', `transit/keys/${name}`, { type: 'aes256-gcm96' });
    await this.allow(name);
    const { auth } = (await this.call('POST', 'auth/token/create', { policies: [name], ttl: '1h' })) as { auth: { client_token: string } };
    return { provider: 'VAULT_TRANSIT', key: `transit/${name}`, options: { address: this.url, token: auth.client_token } };
  }

  disable(key: string): Promise<void> {
    return this.deny(key);
  }
  enable(key: string): Promise<void> {
    return this.allow(key);
  }
  scheduleDeletion(): void {}
  cancelDeletion(): void {}
  async destroy(key: string): Promise<void> {
    await this.call('POST', `transit/keys/${short(key)}/config`, { deletion_allowed: true });
    await this.call('DELETE', `transit/keys/${short(key)}`, undefined);
  }
  async deny(key: string): Promise<void> {
    await this.call('PUT', `sys/policies/acl/${short(key)}`, { policy: 'path "transit/keys/none" { capabilities = ["read"] }' });
  }
  async allow(key: string): Promise<void> {
    const policy = ['encrypt', 'decrypt'].map((verb) => `path "transit/${verb}/${short(key)}" { capabilities = ["update"] }`);
    await this.call('PUT', `sys/policies/acl/${short(key)}`, {
      policy: [...policy, `path "transit/keys/${short(key)}" { capabilities = ["read"] }`].join('\n'),
    });
  }
  async rotate(key: string): Promise<void> {
    await this.call('POST', `transit/keys/${short(key)}/rotate`, {});
  }
  close(): Promise<void> {
    return this.#server.stop();
  }

  async call(method: string, path: string, body: unknown): Promise<unknown> {
    const response = await fetch(`${this.url}/v1/${path}`, {
      method,
      headers: { 'x-vault-token': ROOT_TOKEN, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    assert.ok(response.ok, `${method} ${path}: ${response.status} ${text}`);
    return text === '' ? null : JSON.parse(text);
  }
}

const short = (key: string): string => key.split('/').pop() as string;

if (program === null) {
  test('Vault transit on a real server', {
    skip: `neither vault nor bao is here; put the binary of HashiCorp Vault or OpenBao into ${CACHE}/bin or on the PATH`,
  });
} else {
  registerKmsConformance('VAULT_TRANSIT on a real server, independent', () => RealVault.start(), { without: ['deletion'] });

  describe('Vault, more', () => {
    let vault: RealVault;
    let env: KmsEnvironment;
    const kek = randomBytes(32);
    before(async () => {
      vault = await RealVault.start();
      env = { ...vault.environment(), attemptTimeoutMs: 10_000 };
    });
    after(() => vault.close());

    test('min_decryption_version revokes and gives back', async () => {
      const config = await vault.createKey();
      const key = openKmsKey(config, env);
      const wrapped = await key.wrap(kek, CONTEXT, soon());
      await vault.rotate(config.key);
      await vault.call('POST', `transit/keys/${short(config.key)}/config`, { min_decryption_version: 2 });
      await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'DENIED', /VersionTooOld/);
      await vault.call('POST', `transit/keys/${short(config.key)}/config`, { min_decryption_version: 1 });
      assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), kek);
      key.close();
    });

    test('a token that was revoked is our login, not a denial', async () => {
      const config = await vault.createKey();
      const key = openKmsKey(config, env);
      const wrapped = await key.wrap(kek, CONTEXT, soon());
      await vault.call('POST', 'auth/token/revoke', { token: config.options?.['token'] });
      await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE', /InvalidToken/);
      key.close();
    });

    test('AppRole logs in again when its token is gone; a wrong secret id is not a denial', async () => {
      const config = await vault.createKey();
      await vault.call('POST', 'sys/auth/approle', { type: 'approle' });
      await vault.call('POST', 'auth/approle/role/km', { token_policies: [short(config.key)], token_ttl: '1h' });
      const { data: role } = (await vault.call('GET', 'auth/approle/role/km/role-id', undefined)) as { data: { role_id: string } };
      const { data: secret } = (await vault.call('POST', 'auth/approle/role/km/secret-id', {})) as { data: { secret_id: string } };
      const options = { address: vault.url, roleId: role.role_id, secretId: secret.secret_id };
      const key = openKmsKey({ ...config, options }, env);
      const wrapped = await key.wrap(kek, CONTEXT, soon());
      await vault.call('POST', 'sys/leases/revoke-prefix/auth/approle', {});
      assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), kek);
      key.close();
      const wrong = openKmsKey({ ...config, options: { ...options, secretId: 'x' } }, env);
      await expectOutcome(wrong.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE', /LoginRefused/);
      wrong.close();
    });

    test('wrap never makes a key, whatever the token may do', async () => {
      const key = openKmsKey({ provider: 'VAULT_TRANSIT', key: 'transit/none', options: { address: vault.url, token: ROOT_TOKEN } }, env);
      await expectOutcome(key.wrap(kek, CONTEXT, soon()), 'DENIED', /NotFound/);
      await expectOutcome(key.wrap(kek, CONTEXT, soon()), 'DENIED', /NotFound/);
      key.close();
    });

    test('sealed is unreachable; a removed mount and a key that takes no context say what is wrong', async () => {
      const config = await vault.createKey();
      const derived = `derived-${randomBytes(2).toString('hex')}`;
      await vault.call('POST', `transit/keys/${derived}`, { type: 'aes256-gcm96', derived: true });
      const rsa = `rsa-${randomBytes(2).toString('hex')}`;
      await vault.call('POST', `transit/keys/${rsa}`, { type: 'rsa-2048' });
      const options = { address: vault.url, token: ROOT_TOKEN };
      for (const name of [derived, rsa]) {
        const key = openKmsKey({ provider: 'VAULT_TRANSIT', key: `transit/${name}`, options }, env);
        await expectOutcome(key.wrap(kek, CONTEXT, soon()), 'INVALID', /KeyDerived|KeyType/);
        key.close();
      }
      const elsewhere = openKmsKey({ provider: 'VAULT_TRANSIT', key: 'nowhere/k', options }, env);
      await expectOutcome(elsewhere.wrap(kek, CONTEXT, soon()), 'DENIED', /NotFound/);
      elsewhere.close();
      const key = openKmsKey(config, { ...env, attemptsMax: 1 });
      const wrapped = await key.wrap(kek, CONTEXT, soon());
      await vault.call('PUT', 'sys/seal', {});
      await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE', /Sealed/);
      key.close();
    });
  });
}
