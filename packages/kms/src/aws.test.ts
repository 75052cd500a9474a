import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { AWS_ERRORS, awsError } from './aws-errors.ts';
import { openKmsKey } from './open.ts';
import { CONTEXT, expectOutcome, soon } from './testing/conformance.ts';
import { FakeAwsKms } from './testing/index.ts';
import type { KmsEnvironment, KmsKey, KmsKeyConfig, WrappedKey } from './types.ts';

const KEK = Buffer.alloc(32, 7);
const ROLE = 'arn:aws:iam::111122223333:role/customer';

describe('AWS KMS', () => {
  const fake = new FakeAwsKms();
  let env: KmsEnvironment;
  let config: KmsKeyConfig;
  let key: KmsKey;
  let wrapped: WrappedKey;
  before(async () => {
    await fake.listen();
    env = { ...fake.environment(), attemptTimeoutMs: 8_000, attemptsMax: 1 };
    config = fake.createKey();
    key = openKmsKey(config, env);
    wrapped = await key.wrap(KEK, CONTEXT, soon());
  });
  after(async () => {
    key.close();
    await fake.close();
  });

  for (const [code, [meaning]] of Object.entries(AWS_ERRORS))
    test(`${code} on the wire is ${meaning}`, async () => {
      fake.setFaults({ answer: fake.error(code) });
      const error = await expectOutcome(
        key.unwrap(wrapped, CONTEXT, soon()),
        meaning === 'UNAUTHENTICATED' ? 'UNREACHABLE' : meaning,
        new RegExp(`^${code}$`),
      );
      assert.equal(error.transient, meaning === 'UNREACHABLE');
      fake.setFaults(null);
    });

  test('every exception that the SDK declares for our calls is in the table', () => {
    /** Base classes, and what only dry runs and session policies bring about, which we do not use. */
    const never = /ServiceException$|^DryRunOperation|^MalformedPolicyDocument|^PackedPolicyTooLarge/;
    const declared = new Set<string>();
    const root = join(import.meta.dirname, '..', '..', '..', 'node_modules', '@aws-sdk');
    for (const file of [
      'client-kms/dist-types/commands/EncryptCommand.d.ts',
      'client-kms/dist-types/commands/DecryptCommand.d.ts',
      'client-kms/dist-types/commands/DescribeKeyCommand.d.ts',
      'nested-clients/dist-types/submodules/sts/commands/AssumeRoleCommand.d.ts',
    ])
      for (const [, name = ''] of readFileSync(join(root, file), 'utf8').matchAll(/@throws \{@link (\w+)\}/g)) declared.add(name);
    assert.ok(declared.size > 12, [...declared].join(' '));
    assert.deepEqual(
      [...declared].filter((name) => !never.test(name) && !Object.hasOwn(AWS_ERRORS, name)),
      [],
    );
  });

  test('namespaced types, and states that pass', async () => {
    fake.setFaults({ answer: fake.error('com.amazonaws.kms#DisabledException') });
    await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'DENIED', /DisabledException/);
    for (const state of ['Creating', 'Updating', 'Unavailable']) {
      fake.setFaults({ answer: fake.error('KMSInvalidStateException', `arn is in state ${state}`) });
      await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE', /KMSInvalidStateException/);
    }
    fake.setFaults({ answer: fake.error('BrandNewException') });
    await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE', /BadAnswer/);
    fake.setFaults(null);
  });

  test('the version is the id of the key material; without DescribeKey it is not seen', async () => {
    assert.match(wrapped.keyVersion, /^[0-9a-f]{64}$/);
    fake.describeDenied = true;
    assert.equal(await key.currentVersion(soon()), '');
    fake.describeDenied = false;
    assert.equal(await key.currentVersion(soon()), wrapped.keyVersion);
  });

  test('a role is assumed with its external id; one taken away denies; a refused credential does not', async () => {
    const options = { ...config.options, roleArn: ROLE, externalId: 'acme-42', stsEndpoint: fake.url };
    const assumed = openKmsKey({ ...config, options }, env);
    assert.deepEqual(await assumed.unwrap(wrapped, CONTEXT, soon()), KEK);
    assert.deepEqual(fake.assumedRoles.at(-1), { role: ROLE, externalId: 'acme-42' });
    assumed.close();
    fake.deniedRoles.add(ROLE);
    const refused = openKmsKey({ ...config, options }, env);
    await expectOutcome(refused.unwrap(wrapped, CONTEXT, soon()), 'DENIED', /AccessDenied/);
    fake.deniedRoles.clear();
    assert.deepEqual(await refused.unwrap(wrapped, CONTEXT, soon()), KEK);
    refused.close();
    fake.refusedAccessKeys.set('AKIAFAKE', 'ExpiredToken');
    const expired = openKmsKey({ ...config, options }, env);
    await expectOutcome(expired.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE', /ExpiredToken/);
    expired.close();
    fake.refusedAccessKeys.clear();
  });

  test('a credential of ours that KMS does not know is unreachable and not tried again', async () => {
    fake.refusedAccessKeys.set('AKIAFAKE', 'UnrecognizedClientException');
    const many = openKmsKey(config, { ...env, attemptsMax: 5 });
    const calls = fake.calls.length;
    const error = await expectOutcome(many.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE', /UnrecognizedClientException/);
    assert.equal(error.transient, false);
    assert.equal(fake.calls.length, calls + 1);
    many.close();
    fake.refusedAccessKeys.clear();
  });

  test('a provider of credentials that could not connect is the network, not a missing credential', () => {
    const cause = Object.assign(new Error('connect'), { code: 'ECONNREFUSED' });
    const error = awsError(Object.assign(new Error('Could not load credentials', { cause }), { name: 'CredentialsProviderError' }));
    assert.deepEqual([error.outcome, error.providerCode], ['UNREACHABLE', 'ECONNREFUSED']);
  });

  test('no message carries the KEK or a secret', async () => {
    fake.setFaults({ answer: fake.error('AccessDeniedException') });
    const error = await expectOutcome(key.wrap(KEK, CONTEXT, soon()), 'DENIED');
    for (const secret of [KEK.toString('hex'), KEK.toString('base64'), 'fake-secret'])
      assert.equal(JSON.stringify([error.message, error.stack]).includes(secret), false);
    fake.setFaults(null);
  });
});
