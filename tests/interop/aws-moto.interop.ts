/** AWS KMS and STS against moto (Python), which implements them independently of us. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { type KmsEnvironment, type KmsKeyConfig, openKmsKey } from '@lakebase/kms';
import { CONTEXT, type KmsHarness, expectOutcome, registerKmsConformance, soon } from '@lakebase/kms/testing';
import { CACHE, type RunningServer, findProgram, startServer } from './servers.ts';

const REGION = 'eu-central-1';
const CREDENTIALS = { accessKeyId: 'AKIAINTEROP', secretAccessKey: 'interop' };
const program = findProgram('moto_server', 'moto/bin');

class Moto implements KmsHarness {
  readonly provider = 'AWS_KMS';
  readonly setFaults = null;
  readonly #server: RunningServer;

  constructor(server: RunningServer) {
    this.#server = server;
  }

  static async start(): Promise<Moto> {
    return new Moto(
      await startServer(
        program as string,
        (port) => ['-H', '127.0.0.1', '-p', String(port)],
        (url) => `${url}/moto-api/`,
      ),
    );
  }

  get url(): string {
    return this.#server.url;
  }

  environment(): KmsEnvironment {
    return { rootKeyPath: '/nonexistent/root.key' };
  }

  async createKey(): Promise<KmsKeyConfig> {
    const { KeyMetadata } = (await this.call('CreateKey', {})) as { KeyMetadata: { Arn: string } };
    return { provider: 'AWS_KMS', key: KeyMetadata.Arn, options: { ...CREDENTIALS, endpoint: this.url } };
  }

  async disable(key: string): Promise<void> {
    await this.call('DisableKey', { KeyId: keyId(key) });
  }
  async enable(key: string): Promise<void> {
    await this.call('EnableKey', { KeyId: keyId(key) });
  }
  async scheduleDeletion(key: string): Promise<void> {
    await this.call('ScheduleKeyDeletion', { KeyId: keyId(key), PendingWindowInDays: 7 });
  }
  async cancelDeletion(key: string): Promise<void> {
    await this.call('CancelKeyDeletion', { KeyId: keyId(key) });
    await this.enable(key);
  }
  destroy(): void {}
  deny(): void {}
  allow(): void {}
  async rotate(key: string): Promise<void> {
    await this.call('RotateKeyOnDemand', { KeyId: keyId(key) });
  }
  close(): Promise<void> {
    return this.#server.stop();
  }

  async call(operation: string, body: unknown): Promise<unknown> {
    const response = await fetch(this.url, {
      method: 'POST',
      headers: {
        'content-type': 'application/x-amz-json-1.1',
        'x-amz-target': `TrentService.${operation}`,
        authorization: `AWS4-HMAC-SHA256 Credential=${CREDENTIALS.accessKeyId}/20260101/${REGION}/kms/aws4_request, SignedHeaders=host, Signature=0`,
      },
      body: JSON.stringify(body),
    });
    const text = await response.text();
    assert.equal(response.status, 200, `${operation}: ${text}`);
    return text === '' ? null : JSON.parse(text);
  }
}

/** moto fails on ARNs here, where AWS takes both. */
const keyId = (arn: string): string => arn.split('/').pop() as string;

if (program === null) {
  test('AWS KMS on moto', {
    skip: `moto is not here; get it with: python3 -m venv ${CACHE}/moto && ${CACHE}/moto/bin/pip install 'moto[server]'`,
  });
} else {
  // moto has no IAM for KMS, does not say which key material it used, and lets a disabled key decrypt.
  registerKmsConformance('AWS_KMS on moto, independent', () => Moto.start(), {
    without: ['disable', 'deletion', 'deny', 'destroy', 'rotate'],
  });

  describe('AWS KMS on moto, more', () => {
    let moto: Moto;
    before(async () => {
      moto = await Moto.start();
    });
    after(() => moto.close());

    test('what was wrapped before a rotation unwraps after it', async () => {
      const config = await moto.createKey();
      const key = openKmsKey(config, { ...moto.environment(), attemptTimeoutMs: 10_000 });
      const kek = randomBytes(32);
      const wrapped = await key.wrap(kek, CONTEXT, soon(30_000));
      await moto.rotate(config.key);
      assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon(30_000)), kek);
      key.close();
    });

    test('a key that is not there is denied', async () => {
      const config = await moto.createKey();
      const key = openKmsKey({ ...config, key: config.key.replace(/[^/]+$/, '00000000-0000-0000-0000-000000000000') }, moto.environment());
      await expectOutcome(key.wrap(randomBytes(32), CONTEXT, soon(30_000)), 'DENIED', /NotFoundException/);
      key.close();
    });

    test('through a role of STS', async () => {
      const config = await moto.createKey();
      const options = { ...config.options, stsEndpoint: moto.url, roleArn: 'arn:aws:iam::123456789012:role/interop', externalId: 'x-1' };
      const key = openKmsKey({ ...config, options }, { ...moto.environment(), attemptTimeoutMs: 10_000 });
      const kek = randomBytes(32);
      const wrapped = await key.wrap(kek, CONTEXT, soon(30_000));
      assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon(30_000)), kek);
      key.close();
    });
  });
}
