/** Azure Key Vault against lowkey-vault (Java), which implements it independently of us: the real SDK with its challenge and its login by a managed
 *  identity, RSA keys, versions, disabling, soft deletion. It refuses in words that are not Azure's, so no refusal of it may count as a denial. It
 *  knows no A256KW. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { request } from 'node:https';
import { after, before, describe, test } from 'node:test';
import { connect } from 'node:tls';
import { type KmsEnvironment, type KmsKeyConfig, openKmsKey } from '@lakebase/kms';
import { CONTEXT, type KmsHarness, expectOutcome, registerKmsConformance, soon } from '@lakebase/kms/testing';
import { CACHE, type RunningServer, findProgram, freePort, startServer } from './servers.ts';

const program = findProgram('lowkey-vault', 'bin');
const API = 'api-version=7.4';

class LowkeyVault implements KmsHarness {
  readonly provider = 'AZURE_KEY_VAULT';
  readonly setFaults = null;
  readonly tokenPort: number;
  readonly #server: RunningServer;
  readonly #port: number;
  readonly #cert: string;

  private constructor(server: RunningServer, port: number, tokenPort: number, cert: string) {
    this.#server = server;
    this.#port = port;
    this.tokenPort = tokenPort;
    this.#cert = cert;
  }

  static async start(): Promise<LowkeyVault> {
    const tokenPort = await freePort();
    const args = (port: number): string[] => [`--server.port=${port}`, `--app.token.port=${tokenPort}`, '--LOWKEY_VAULT_NAMES=interop'];
    const server = await startServer(program as string, args, 'port');
    const port = Number(new URL(server.url).port);
    return new LowkeyVault(server, port, tokenPort, await certificateOf(port));
  }

  get url(): string {
    return `https://localhost:${this.#port}`;
  }

  environment(): KmsEnvironment {
    const token = { getToken: () => Promise.resolve({ token: 'interop', expiresOnTimestamp: Date.now() + 3_600_000 }) };
    return {
      rootKeyPath: '/nonexistent/root.key',
      endpoints: { AZURE_KEY_VAULT: this.url },
      credentials: { azure: token },
      caCertificates: this.#cert,
      attemptTimeoutMs: 15_000,
    };
  }

  async createKey(): Promise<KmsKeyConfig> {
    const key = `${this.url}/keys/key-${randomBytes(4).toString('hex')}`;
    await this.rotate(key);
    return { provider: 'AZURE_KEY_VAULT', key };
  }
  /** A key of an existing name is a new version of it. Unlike Azure it wants encrypt and decrypt for wrapping too. */
  async rotate(key: string): Promise<void> {
    const body = { kty: 'RSA', key_size: 2_048, key_ops: ['wrapKey', 'unwrapKey', 'encrypt', 'decrypt'] };
    await this.call('POST', `${path(key)}/create`, body);
  }

  disable(key: string): Promise<void> {
    return this.change(key, { enabled: false });
  }
  enable(key: string): Promise<void> {
    return this.change(key, { enabled: true });
  }
  async change(key: string, attributes: unknown): Promise<void> {
    const { value } = (await this.call('GET', `${path(key)}/versions`, undefined)) as { value: { kid: string }[] };
    for (const { kid } of value) await this.call('PATCH', path(kid), { attributes });
  }
  async scheduleDeletion(key: string): Promise<void> {
    await this.call('DELETE', path(key), undefined);
  }
  async cancelDeletion(key: string): Promise<void> {
    await this.call('POST', `${deleted(key)}/recover`, {});
  }
  /** It refuses to purge what can be recovered; nobody recovers this one. */
  destroy(key: string): Promise<void> {
    return this.scheduleDeletion(key);
  }
  deny(): void {}
  allow(): void {}
  close(): Promise<void> {
    return this.#server.stop();
  }

  call(method: string, where: string, body: unknown): Promise<unknown> {
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const headers = { authorization: 'Bearer interop', 'content-type': 'application/json' };
    const sent = request(`${this.url}${where}?${API}`, { method, headers, ca: this.#cert }, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('end', () => {
        const text = Buffer.concat(chunks).toString();
        if ((response.statusCode ?? 500) >= 300) reject(new Error(`${method} ${where}: ${response.statusCode} ${text}`));
        else resolve(text === '' ? null : JSON.parse(text));
      });
    });
    sent.once('error', reject);
    sent.end(body === undefined ? undefined : JSON.stringify(body));
    return promise;
  }
}

const path = (key: string): string => new URL(key).pathname;
const deleted = (key: string): string => path(key).replace(/^\/keys\//, '/deletedkeys/');

/** Its own authority is unknown to the system; trusting this certificate is what an operator's `caCertificatesFile` does. */
function certificateOf(port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: '127.0.0.1', port, servername: 'localhost', rejectUnauthorized: false }, () => {
      const { raw } = socket.getPeerCertificate();
      socket.destroy();
      resolve(`-----BEGIN CERTIFICATE-----\n${raw.toString('base64')}\n-----END CERTIFICATE-----\n`);
    });
    socket.once('error', reject);
  });
}

if (program === null) {
  test('Azure Key Vault on lowkey-vault', {
    skip: `lowkey-vault is not here; put a program of that name into ${CACHE}/bin that runs "java -jar lowkey-vault-app-<version>.jar" with its arguments (Java 25; the jar is on Maven Central, or build it: docs/operating/kms.md)`,
  });
} else {
  registerKmsConformance('AZURE_KEY_VAULT on lowkey-vault, independent', () => LowkeyVault.start(), {
    without: ['deny'],
    foreignErrors: true,
  });

  describe('Azure Key Vault on lowkey-vault, more', () => {
    let vault: LowkeyVault;
    let env: KmsEnvironment;
    const kek = randomBytes(32);
    before(async () => {
      vault = await LowkeyVault.start();
      env = vault.environment();
    });
    after(() => vault?.close());

    test('the login of a managed identity, by the real @azure/identity', async () => {
      const variables = {
        IDENTITY_ENDPOINT: `http://localhost:${vault.tokenPort}/metadata/identity/oauth2/token`,
        IDENTITY_HEADER: 'interop',
      };
      Object.assign(process.env, variables);
      try {
        const config = await vault.createKey();
        const { credentials: _, ...rest } = env;
        const key = openKmsKey({ ...config, options: { managedIdentityClientId: '11111111-1111-1111-1111-111111111111' } }, rest);
        assert.deepEqual(await key.unwrap(await key.wrap(kek, CONTEXT, soon()), CONTEXT, soon()), kek);
        key.close();
      } finally {
        for (const name of Object.keys(variables)) delete process.env[name];
      }
    });

    test('an expired key is denied although the vault would still open; with another date it works again', async () => {
      const config = await vault.createKey();
      const key = openKmsKey(config, env);
      const wrapped = await key.wrap(kek, CONTEXT, soon());
      const seconds = Math.floor(Date.now() / 1_000);
      await vault.change(config.key, { exp: seconds - 60 });
      await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'DENIED', /KeyExpired/);
      await vault.change(config.key, { exp: seconds + 3_600 });
      assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), kek);
      key.close();
    });

    test('a version that is disabled shuts what it wrapped, and only that', async () => {
      const config = await vault.createKey();
      const key = openKmsKey(config, { ...env, attemptsMax: 1 });
      const old = await key.wrap(kek, CONTEXT, soon());
      await vault.rotate(config.key);
      const renewed = await key.wrap(kek, CONTEXT, soon());
      await vault.call('PATCH', path(old.keyId), { attributes: { enabled: false } });
      await expectOutcome(key.unwrap(old, CONTEXT, soon()), 'UNREACHABLE');
      assert.deepEqual(await key.unwrap(renewed, CONTEXT, soon()), kek);
      key.close();
    });
  });
}
