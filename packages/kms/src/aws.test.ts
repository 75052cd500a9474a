import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { AWS_ERRORS, awsError } from './aws-errors.ts';
import { openKmsKey } from './open.ts';
import { CONTEXT, expectOutcome, soon } from './testing/conformance.ts';
import { FakeAwsKms } from './testing/index.ts';
import { KEK, withOpenedKey } from './testing/opened-key.ts';

const ROLE = 'arn:aws:iam::111122223333:role/customer';

describe('AWS KMS', () => {
  const fake = new FakeAwsKms();
  const opened = withOpenedKey(fake);

  for (const [code, [meaning]] of Object.entries(AWS_ERRORS))
    test(`${code} on the wire is ${meaning}`, async () => {
      fake.setFaults({ answer: fake.error(code) });
      const error = await expectOutcome(opened.unwrap(), meaning === 'UNAUTHENTICATED' ? 'UNREACHABLE' : meaning, new RegExp(`^${code}$`));
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
    await expectOutcome(opened.unwrap(), 'DENIED', /DisabledException/);
    for (const state of ['Creating', 'Updating', 'Unavailable']) {
      fake.setFaults({ answer: fake.error('KMSInvalidStateException', `arn is in state ${state}`) });
      await expectOutcome(opened.unwrap(), 'UNREACHABLE', /KMSInvalidStateException/);
    }
    fake.setFaults({ answer: fake.error('BrandNewException') });
    await expectOutcome(opened.unwrap(), 'UNREACHABLE', /BadAnswer/);
    fake.setFaults(null);
  });

  test('the version is the id of the key material; without DescribeKey it is not seen', async () => {
    assert.match(opened.wrapped.keyVersion, /^[0-9a-f]{64}$/);
    fake.describeDenied = true;
    assert.equal(await opened.key.currentVersion(soon()), '');
    fake.describeDenied = false;
    assert.equal(await opened.key.currentVersion(soon()), opened.wrapped.keyVersion);
  });

  test('a role is assumed with its external id; one taken away denies; a refused credential does not', async () => {
    const options = { ...opened.config.options, roleArn: ROLE, externalId: 'acme-42', stsEndpoint: fake.url };
    const assumed = openKmsKey({ ...opened.config, options }, opened.env);
    assert.deepEqual(await assumed.unwrap(opened.wrapped, CONTEXT, soon()), KEK);
    assert.deepEqual(fake.assumedRoles.at(-1), { role: ROLE, externalId: 'acme-42' });
    assumed.close();
    fake.deniedRoles.add(ROLE);
    const refused = openKmsKey({ ...opened.config, options }, opened.env);
    await expectOutcome(refused.unwrap(opened.wrapped, CONTEXT, soon()), 'DENIED', /AccessDenied/);
    fake.deniedRoles.clear();
    assert.deepEqual(await refused.unwrap(opened.wrapped, CONTEXT, soon()), KEK);
    refused.close();
    fake.refusedAccessKeys.set('AKIAFAKE', 'ExpiredToken');
    const expired = openKmsKey({ ...opened.config, options }, opened.env);
    await expectOutcome(expired.unwrap(opened.wrapped, CONTEXT, soon()), 'UNREACHABLE', /ExpiredToken/);
    expired.close();
    fake.refusedAccessKeys.clear();
  });

  test('a credential of ours that KMS does not know is unreachable and not tried again', async () => {
    fake.refusedAccessKeys.set('AKIAFAKE', 'UnrecognizedClientException');
    const many = openKmsKey(opened.config, { ...opened.env, attemptsMax: 5 });
    const calls = fake.calls.length;
    const error = await expectOutcome(many.unwrap(opened.wrapped, CONTEXT, soon()), 'UNREACHABLE', /UnrecognizedClientException/);
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
    const error = await expectOutcome(opened.wrap(), 'DENIED');
    for (const secret of [KEK.toString('hex'), KEK.toString('base64'), 'fake-secret'])
      assert.equal(JSON.stringify([error.message, error.stack]).includes(secret), false);
    fake.setFaults(null);
  });
});
