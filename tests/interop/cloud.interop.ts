/** Real keys in a real cloud, or in any server that the operator runs: `LAKEBASE_INTEROP_KMS` is a JSON array of key configurations, to be wrapped
 *  and unwrapped with the credentials of this machine. Nothing is changed at the provider. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { describe, test } from 'node:test';
import { type KmsKeyConfig, openKmsKey } from '@lakebase/kms';
import { CONTEXT, expectOutcome, soon } from '@lakebase/kms/testing';

const text = process.env['LAKEBASE_INTEROP_KMS'];
const configs = text === undefined ? [] : (JSON.parse(text) as KmsKeyConfig[]);

const HOW: readonly (readonly [provider: string, what: string, example: KmsKeyConfig])[] = [
  ['AWS_KMS', 'a real key', { provider: 'AWS_KMS', key: 'arn:aws:kms:<region>:<account>:key/<id>' }],
  ['AZURE_KEY_VAULT', 'a real key', { provider: 'AZURE_KEY_VAULT', key: 'https://<vault>.vault.azure.net/keys/<name>' }],
  ['GCP_KMS', 'a real key', { provider: 'GCP_KMS', key: 'projects/…/cryptoKeys/<key>' }],
];
for (const [provider, what, example] of HOW)
  if (!configs.some((c) => c.provider === provider))
    test(`${provider} on ${what}`, { skip: `set LAKEBASE_INTEROP_KMS='${JSON.stringify([example])}'` });

for (const config of configs)
  describe(`${config.provider} ${config.key}`, () => {
    test('wraps, unwraps, refuses another context', async () => {
      const key = openKmsKey(config, { rootKeyPath: '/nonexistent/root.key', attemptTimeoutMs: 10_000 });
      const kek = randomBytes(32);
      const start = performance.now();
      const wrapped = await key.wrap(kek, CONTEXT, soon(60_000));
      const middle = performance.now();
      assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon(60_000)), kek);
      const end = performance.now();
      assert.equal(await key.currentVersion(soon(60_000)), wrapped.keyVersion);
      await expectOutcome(key.unwrap(wrapped, { ...CONTEXT, project: 'other' }, soon(60_000)), 'DENIED');
      process.stdout.write(`wrap with its check ${Math.round(middle - start)} ms, unwrap ${Math.round(end - middle)} ms\n`);
      key.close();
    });
  });
