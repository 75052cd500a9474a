import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { GOOGLE_ERRORS, GOOGLE_REASONS, googleLoginError } from './google-errors.ts';
import { expectOutcome, soon } from './testing/conformance.ts';
import { FakeGoogleKms, json } from './testing/index.ts';
import { KEK, withOpenedKey } from './testing/opened-key.ts';

const outcomeOf = (meaning: string): 'DENIED' | 'UNREACHABLE' | 'INVALID' =>
  meaning === 'UNAUTHENTICATED' ? 'UNREACHABLE' : (meaning as 'DENIED' | 'UNREACHABLE' | 'INVALID');

describe('Google Cloud KMS', () => {
  const fake = new FakeGoogleKms();
  const opened = withOpenedKey(fake);

  for (const [status, [meaning]] of Object.entries(GOOGLE_ERRORS))
    test(`${status} on the wire is ${meaning}`, async () => {
      fake.setFaults({ answer: fake.error(status) });
      const error = await expectOutcome(opened.unwrap(), outcomeOf(meaning), new RegExp(`^${status}$`));
      assert.equal(error.transient, meaning === 'UNREACHABLE');
      fake.setFaults(null);
    });

  for (const [reason, [meaning]] of Object.entries(GOOGLE_REASONS))
    test(`reason ${reason} is ${meaning}`, async () => {
      for (const status of ['PERMISSION_DENIED', 'FAILED_PRECONDITION']) {
        fake.setFaults({ answer: fake.error(status, 'text', reason) });
        await expectOutcome(opened.unwrap(), outcomeOf(meaning), new RegExp(`${status}/${reason}`));
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
      await expectOutcome(opened.unwrap(), outcome, new RegExp(`${status}/${code}`));
      fake.setFaults(null);
    });

  test('a 403 or 404 that is not in the words of Google never denies', async () => {
    for (const status of [403, 404])
      for (const body of ['<html>', '', 'null', '{}', '{"message":"blocked"}']) {
        fake.setFaults({ answer: { status, body } });
        await expectOutcome(opened.unwrap(), 'UNREACHABLE');
      }
    fake.setFaults(null);
  });

  test('a wrong CRC and an unconfirmed request are refused', async () => {
    fake.setFaults({ kind: 'corrupt' });
    await expectOutcome(opened.unwrap(), 'UNREACHABLE', /ChecksumMismatch/);
    await expectOutcome(opened.wrap(), 'UNREACHABLE', /ChecksumMismatch/);
    const blob = Buffer.from('x');
    fake.setFaults({ answer: json(200, { name: `${opened.wrapped.keyId}/cryptoKeyVersions/1`, ciphertext: blob.toString('base64') }) });
    await expectOutcome(opened.wrap(), 'UNREACHABLE', /ChecksumMismatch/);
    fake.setFaults({ answer: json(200, { plaintext: KEK.toString('base64') }) });
    await expectOutcome(opened.unwrap(), 'UNREACHABLE', /ChecksumMismatch/);
    fake.setFaults(null);
  });

  test('versions are not seen without cryptoKeys.get, and all else works', async () => {
    fake.getDenied = true;
    assert.equal(await opened.key.currentVersion(soon()), '');
    assert.equal((await opened.wrap()).keyVersion, '1');
    fake.getDenied = false;
    assert.equal(await opened.key.currentVersion(soon()), '1');
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
