import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { GOOGLE_ERRORS, GOOGLE_REASONS, googleLoginError } from './google-errors.ts';
import { openKmsKey } from './open.ts';
import { CONTEXT, expectOutcome, soon } from './testing/conformance.ts';
import { FakeGoogleKms, json } from './testing/index.ts';
import type { KmsEnvironment, KmsKey, WrappedKey } from './types.ts';

const KEK = Buffer.alloc(32, 7);
const outcomeOf = (meaning: string): 'DENIED' | 'UNREACHABLE' | 'INVALID' =>
  meaning === 'UNAUTHENTICATED' ? 'UNREACHABLE' : (meaning as 'DENIED' | 'UNREACHABLE' | 'INVALID');

describe('Google Cloud KMS', () => {
  const fake = new FakeGoogleKms();
  let env: KmsEnvironment;
  let key: KmsKey;
  let wrapped: WrappedKey;
  before(async () => {
    await fake.listen();
    env = { ...fake.environment(), attemptTimeoutMs: 8_000, attemptsMax: 1 };
    key = openKmsKey(fake.createKey(), env);
    wrapped = await key.wrap(KEK, CONTEXT, soon());
  });
  after(async () => {
    key.close();
    await fake.close();
  });

  for (const [status, [meaning]] of Object.entries(GOOGLE_ERRORS))
    test(`${status} on the wire is ${meaning}`, async () => {
      fake.setFaults({ answer: fake.error(status) });
      const error = await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), outcomeOf(meaning), new RegExp(`^${status}$`));
      assert.equal(error.transient, meaning === 'UNREACHABLE');
      fake.setFaults(null);
    });

  for (const [reason, [meaning]] of Object.entries(GOOGLE_REASONS))
    test(`reason ${reason} is ${meaning}`, async () => {
      for (const status of ['PERMISSION_DENIED', 'FAILED_PRECONDITION']) {
        fake.setFaults({ answer: fake.error(status, 'text', reason) });
        await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), outcomeOf(meaning), new RegExp(`${status}/${reason}`));
      }
      fake.setFaults(null);
    });

  const texts: [status: string, text: string, code: string, outcome: 'DENIED' | 'UNREACHABLE' | 'INVALID'][] = [
    ['FAILED_PRECONDITION', 'k/cryptoKeyVersions/1 is not enabled, current state is: DISABLED.', 'KeyVersionDisabled', 'DENIED'],
    ['FAILED_PRECONDITION', 'k/cryptoKeyVersions/1 is not enabled, current state is: DESTROYED.', 'KeyVersionDestroyed', 'DENIED'],
    [
      'FAILED_PRECONDITION',
      'k/cryptoKeyVersions/1 is not enabled, current state is: DESTROY_SCHEDULED.',
      'KeyVersionDestroyScheduled',
      'DENIED',
    ],
    [
      'FAILED_PRECONDITION',
      'k/cryptoKeyVersions/1 is not enabled, current state is: PENDING_GENERATION.',
      'KeyVersionPending',
      'UNREACHABLE',
    ],
    ['FAILED_PRECONDITION', 'k/cryptoKeyVersions/1 is not enabled, current state is: PENDING_IMPORT.', 'KeyVersionPending', 'UNREACHABLE'],
    ['FAILED_PRECONDITION', 'The key has purpose ASYMMETRIC_SIGN.', 'KeyPurpose', 'INVALID'],
    ['INVALID_ARGUMENT', "Decryption failed: verify that 'name' refers to the correct CryptoKey.", 'DecryptionFailed', 'DENIED'],
    [
      'INVALID_ARGUMENT',
      'The checksum in field ciphertext_crc32c did not match the data in field ciphertext.',
      'ChecksumMismatch',
      'UNREACHABLE',
    ],
  ];
  for (const [status, text, code, outcome] of texts)
    test(`${code} is ${outcome}: ${text.slice(-30)}`, async () => {
      fake.setFaults({ answer: fake.error(status, text) });
      await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), outcome, new RegExp(`${status}/${code}`));
      fake.setFaults(null);
    });

  test('a 403 or 404 that is not in the words of Google never denies', async () => {
    for (const status of [403, 404])
      for (const body of ['<html>', '', 'null', '{}', '{"message":"blocked"}']) {
        fake.setFaults({ answer: { status, body } });
        await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE');
      }
    fake.setFaults(null);
  });

  test('a wrong CRC and an unconfirmed request are refused', async () => {
    fake.setFaults({ kind: 'corrupt' });
    await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE', /ChecksumMismatch/);
    await expectOutcome(key.wrap(KEK, CONTEXT, soon()), 'UNREACHABLE', /ChecksumMismatch/);
    const blob = Buffer.from('x');
    fake.setFaults({ answer: json(200, { name: `${wrapped.keyId}/cryptoKeyVersions/1`, ciphertext: blob.toString('base64') }) });
    await expectOutcome(key.wrap(KEK, CONTEXT, soon()), 'UNREACHABLE', /ChecksumMismatch/);
    fake.setFaults({ answer: json(200, { plaintext: KEK.toString('base64') }) });
    await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE', /ChecksumMismatch/);
    fake.setFaults(null);
  });

  test('versions are not seen without cryptoKeys.get, and all else works', async () => {
    fake.getDenied = true;
    assert.equal(await key.currentVersion(soon()), '');
    assert.equal((await key.wrap(KEK, CONTEXT, soon())).keyVersion, '1');
    fake.getDenied = false;
    assert.equal(await key.currentVersion(soon()), '1');
  });

  test('failures of the login: ours are not transient, those of Google are', () => {
    assert.deepEqual(shape(googleLoginError(Object.assign(new Error('invalid_grant'), { status: 400 }))), [
      'UNREACHABLE',
      'LoginFailed',
      false,
    ]);
    assert.deepEqual(shape(googleLoginError(Object.assign(new Error('denied'), { response: { status: 403 } }))), [
      'UNREACHABLE',
      'LoginFailed',
      false,
    ]);
    assert.deepEqual(shape(googleLoginError(new Error('Could not load the default credentials.'))), ['UNREACHABLE', 'LoginFailed', false]);
    assert.deepEqual(shape(googleLoginError(Object.assign(new Error('x'), { status: 503 }))), [
      'UNREACHABLE',
      'TokenServiceUnavailable',
      true,
    ]);
    assert.deepEqual(shape(googleLoginError(Object.assign(new Error('x'), { code: 'ENOTFOUND' }))), ['UNREACHABLE', 'ENOTFOUND', true]);
  });
});

const shape = (error: { outcome: string; providerCode: string; transient: boolean }): unknown[] => [
  error.outcome,
  error.providerCode,
  error.transient,
];
