import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { KmsError } from './errors.ts';
import { openKmsKey } from './open.ts';
import { CONTEXT, soon } from './testing/conformance.ts';
import { FakeAwsKms, FakeAzureVault, FakeGoogleKms, type FakeKms, FakeVault } from './testing/index.ts';

const body = fc.oneof(
  fc.string(),
  fc.json(),
  fc.uint8Array({ maxLength: 64 }).map((b) => Buffer.from(b)),
  fc.constantFrom(
    '',
    '{}',
    '[]',
    'null',
    '{"error":null}',
    '{"errors":null}',
    '{"__type":1}',
    '{"Plaintext":7}',
    '{"value":"!"}',
    '{"data":[]}',
  ),
);
const status = fc.constantFrom(200, 204, 301, 400, 401, 403, 404, 409, 418, 500, 503);

describe('what is not an answer of the provider', () => {
  const fakes: [string, () => FakeKms][] = [
    ['AWS_KMS', () => new FakeAwsKms()],
    ['AZURE_KEY_VAULT', () => new FakeAzureVault('oct-HSM')],
    ['GCP_KMS', () => new FakeGoogleKms()],
    ['VAULT_TRANSIT', () => new FakeVault()],
  ];
  for (const [name, make] of fakes)
    test(`${name}: never a key, never a denial`, async () => {
      const fake = await make().listen();
      const key = openKmsKey(fake.createKey(), { ...fake.environment(), attemptTimeoutMs: 8_000, attemptsMax: 1 });
      const wrapped = await key.wrap(Buffer.alloc(32, 1), CONTEXT, soon());
      await fc.assert(
        fc.asyncProperty(status, body, async (code, text) => {
          fake.setFaults({ answer: { status: code, headers: { 'content-type': 'application/json' }, body: code === 204 ? '' : text } });
          const error = await key.unwrap(wrapped, CONTEXT, soon()).then(
            () => assert.fail('a key out of garbage'),
            (e: unknown) => e,
          );
          assert.ok(error instanceof KmsError, String(error));
          assert.notEqual(error.outcome, 'DENIED', `${code} ${String(text)}: ${error.message}`);
        }),
        { numRuns: 60 },
      );
      key.close();
      await fake.close();
    });
});
