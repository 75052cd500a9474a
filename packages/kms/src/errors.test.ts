import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { withAttempts } from './attempts.ts';
import { KmsError, NETWORK_CODES, badAnswer, brief, networkError } from './errors.ts';
import { openKmsKey } from './open.ts';
import { CONTEXT, expectOutcome, soon } from './testing/conformance.ts';
import { FakeAwsKms } from './testing/index.ts';
import type { KmsEnvironment, KmsKeyConfig, KmsProvider } from './types.ts';

const env: KmsEnvironment = { rootKeyPath: '/nonexistent/root.key', attemptTimeoutMs: 1_000, attemptsMax: 2 };
const unreachable = (): KmsError => new KmsError('UNREACHABLE', 'AWS_KMS', 'X', 'try again later, please');

describe('network errors', () => {
  test('every code is unreachable, however deep an SDK hides it', () => {
    assert.ok(NETWORK_CODES.length >= 20);
    for (const code of NETWORK_CODES) {
      const inner = Object.assign(new Error('inner'), { code });
      for (const error of [
        inner,
        new Error('outer', { cause: new Error('middle', { cause: inner }) }),
        new AggregateError([new Error('other'), inner]),
      ]) {
        const found = networkError('GCP_KMS', error);
        assert.equal(found?.outcome, 'UNREACHABLE');
        assert.equal(found?.providerCode, code);
      }
    }
    const loop = new Error('loop');
    loop.cause = loop;
    assert.equal(networkError('GCP_KMS', loop), null);
  });

  test('a closed port and a name that does not resolve, through every SDK', async () => {
    const gone = await new FakeAwsKms().listen();
    const url = gone.url;
    await gone.close();
    const credentials = { azure: { getToken: () => Promise.resolve({ token: 't', expiresOnTimestamp: Date.now() + 1e6 }) } };
    const { PassThroughClient } = await import('google-auth-library');
    for (const address of [url, 'http://kms.invalid:1']) {
      const configs: [KmsKeyConfig, KmsProvider][] = [
        [
          { provider: 'AWS_KMS', key: 'arn:aws:kms:eu-central-1:111122223333:key/k', options: { accessKeyId: 'a', secretAccessKey: 'b' } },
          'AWS_KMS',
        ],
        [{ provider: 'AZURE_KEY_VAULT', key: 'https://v.vault.azure.net/keys/k' }, 'AZURE_KEY_VAULT'],
        [{ provider: 'GCP_KMS', key: 'projects/p/locations/l/keyRings/r/cryptoKeys/k' }, 'GCP_KMS'],
        [{ provider: 'VAULT_TRANSIT', key: 'transit/k', options: { token: 't' } }, 'VAULT_TRANSIT'],
      ];
      for (const [config, provider] of configs) {
        const key = openKmsKey(config, {
          ...env,
          endpoints: { [provider]: address },
          credentials: { ...credentials, google: new PassThroughClient() },
        });
        await expectOutcome(
          key.wrap(Buffer.alloc(32), CONTEXT, soon()),
          'UNREACHABLE',
          /ECONNREFUSED|ENOTFOUND|EAI_AGAIN|UNAVAILABLE|Timeout/,
        );
        key.close();
      }
    }
  });
});

describe('attempts', () => {
  const run = (
    attempt: (signal: AbortSignal) => Promise<string>,
    options: Partial<KmsEnvironment> = {},
    signal = soon(),
  ): Promise<string> => withAttempts('AWS_KMS', { ...env, ...options }, signal, (e) => badAnswer('AWS_KMS', String(e)), attempt);

  test('transient failures are tried again up to the limit, others are not', async () => {
    let calls = 0;
    const failing = (error: Error) => (): Promise<string> => {
      calls++;
      return Promise.reject(error);
    };
    await expectOutcome(run(failing(unreachable()), { attemptsMax: 3 }), 'UNREACHABLE');
    assert.equal(calls, 3);
    calls = 0;
    await expectOutcome(run(failing(new KmsError('DENIED', 'AWS_KMS', 'D', 'the key is disabled, enable it'))), 'DENIED');
    assert.equal(calls, 1);
    calls = 0;
    await expectOutcome(
      run(failing(new KmsError('UNREACHABLE', 'AWS_KMS', 'U', 'the credential is refused', { transient: false }))),
      'UNREACHABLE',
    );
    assert.equal(calls, 1);
  });

  test('an attempt that ignores its signal is left behind', async () => {
    await expectOutcome(
      run(() => new Promise(() => {}), { attemptTimeoutMs: 30 }),
      'UNREACHABLE',
      /Timeout/,
    );
  });

  test('the signal of the caller ends waits between attempts too', async () => {
    const controller = new AbortController();
    const work = run(
      () => {
        setImmediate(() => controller.abort());
        return Promise.reject(unreachable());
      },
      { attemptsMax: 100 },
      controller.signal,
    );
    await expectOutcome(work, 'UNREACHABLE', /X/);
  });

  test('an attempt sees its signal fire', async () => {
    let seen = false;
    await expectOutcome(
      run(
        (signal) =>
          new Promise((_, reject) =>
            signal.addEventListener('abort', () => {
              seen = true;
              reject(new Error('aborted'));
            }),
          ),
        { attemptTimeoutMs: 20, attemptsMax: 1 },
      ),
      'UNREACHABLE',
      /Timeout/,
    );
    assert.equal(seen, true);
  });
});

test('a message of a provider is one bounded line in ours', () => {
  assert.equal(brief('a\r\n\tb\u0000c'), 'a b c');
  assert.equal(brief('x'.repeat(1_000)).length, 301);
});
