import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { KmsError } from './errors.ts';
import { openKmsKey } from './open.ts';
import type { KmsEnvironment, KmsKeyConfig, KmsProvider } from './types.ts';

const env: KmsEnvironment = { rootKeyPath: '/var/lib/lakebase/root.key' };
const ARN = 'arn:aws:kms:eu-central-1:111122223333:key/mrk-1234';
const GOOGLE = 'projects/p/locations/l/keyRings/r/cryptoKeys/k';

const refuse = (config: KmsKeyConfig, code: string, environment = env): void => {
  assert.throws(
    () => openKmsKey(config, environment),
    (error: unknown) =>
      error instanceof KmsError && error.outcome === 'INVALID' && error.providerCode === code && error.code === 'INVALID_ARGUMENT',
    `${config.provider} ${config.key} ${JSON.stringify(config.options)}`,
  );
};

describe('configurations that cannot be right', () => {
  test('names of keys', () => {
    const wrong: Record<KmsProvider, [code: string, ...keys: string[]]> = {
      AWS_KMS: [
        'InvalidArn',
        'k',
        'alias/x',
        'arn:aws:kms:eu-central-1:111122223333:alias/x',
        'arn:aws:s3:::x',
        `${ARN}/x`,
        'arn:aws:kms:eu-central-1:1:key/k',
      ],
      AZURE_KEY_VAULT: [
        'InvalidKeyUrl',
        'k',
        'http://v.vault.azure.net/keys/k',
        'https://evil.example/keys/k',
        'https://v.vault.azure.net.evil.example/keys/k',
        'https://v.vault.azure.net:444/keys/k',
        'https://v.vault.azure.net/secrets/k',
        'https://user@v.vault.azure.net/keys/k',
        'https://v.vault.azure.net/keys/k/v/x',
      ],
      GCP_KMS: [
        'InvalidKeyName',
        'k',
        `${GOOGLE}/cryptoKeyVersions/1`,
        `/${GOOGLE}`,
        'projects/p/locations/l/keyRings/r/cryptoKeys/../../x',
      ],
      VAULT_TRANSIT: ['InvalidKeyName', 'k', 'transit/', '/k', 'transit/../sys', 'transit/k?x', 'a b/k'],
      LOCAL: ['KeyFilePath', 'relative/key', '/etc/shadow', '/var/lib/lakebase/../x', '/var/lib/lakebase', '/var/lib/lakebase/root.key'],
    };
    for (const [provider, [code, ...keys]] of Object.entries(wrong) as [KmsProvider, [string, ...string[]]][])
      for (const key of keys) refuse({ provider, key }, code);
    for (const provider of Object.keys(wrong) as KmsProvider[]) refuse({ provider, key: '' }, 'KeyName');
    refuse({ provider: 'HSM' as KmsProvider, key: 'k' }, 'UnknownProvider');
    refuse({ provider: 'toString' as KmsProvider, key: 'k' }, 'UnknownProvider');
  });

  test('options that nobody reads, half pairs and wrong forms', () => {
    refuse({ provider: 'AWS_KMS', key: ARN, options: { rolearn: 'x' } }, 'UnknownOption');
    refuse({ provider: 'LOCAL', key: 'root', options: { path: 'x' } }, 'UnknownOption');
    refuse({ provider: 'AWS_KMS', key: ARN, options: { accessKeyId: 'x' } }, 'InvalidOptions');
    refuse({ provider: 'AWS_KMS', key: ARN, options: { externalId: 'x' } }, 'InvalidOptions');
    refuse({ provider: 'AWS_KMS', key: ARN, options: { roleArn: 'admin' } }, 'InvalidOptions');
    refuse({ provider: 'AZURE_KEY_VAULT', key: 'https://v.vault.azure.net/keys/k', options: { clientId: 'x' } }, 'InvalidOptions');
    refuse({ provider: 'AZURE_KEY_VAULT', key: 'https://v.vault.azure.net/keys/k', options: { algorithm: 'RSA1_5' } }, 'InvalidOptions');
    // Other kinds of Google credential files name addresses to call and programs to run.
    for (const serviceAccountKey of ['{', '{"type":"external_account"}', '{"type":"service_account"}'])
      refuse({ provider: 'GCP_KMS', key: GOOGLE, options: { serviceAccountKey } }, 'InvalidOptions');
    refuse({ provider: 'GCP_KMS', key: GOOGLE, options: { impersonateServiceAccount: 'x' } }, 'InvalidOptions');
    refuse({ provider: 'VAULT_TRANSIT', key: 'transit/k', options: { token: 't' } }, 'InvalidOptions');
    refuse({ provider: 'VAULT_TRANSIT', key: 'transit/k', options: { address: 'https://v', token: 't', roleId: 'r' } }, 'InvalidOptions');
    refuse({ provider: 'VAULT_TRANSIT', key: 'transit/k', options: { address: 'https://v', roleId: 'r' } }, 'InvalidOptions');
  });

  test('addresses', () => {
    for (const endpoint of ['ftp://x', 'http://10.0.0.1', 'http://169.254.169.254', 'x', 'https://u:p@x', 'https://x?y'])
      refuse({ provider: 'AWS_KMS', key: ARN, options: { endpoint } }, 'InvalidEndpoint');
    const strict: KmsEnvironment = { ...env, mayConnect: (url) => url.hostname.endsWith('.example') };
    refuse(
      { provider: 'VAULT_TRANSIT', key: 'transit/k', options: { address: 'https://other.test', token: 't' } },
      'EndpointNotAllowed',
      strict,
    );
    openKmsKey({ provider: 'VAULT_TRANSIT', key: 'transit/k', options: { address: 'https://vault.example', token: 't' } }, strict).close();
  });

  test("the operator's identities go to the operator's address only", () => {
    const operators: KmsEnvironment = {
      ...env,
      endpoints: { VAULT_TRANSIT: 'https://vault.operator' },
      credentials: { vaultToken: 'operators-token' },
    };
    refuse({ provider: 'VAULT_TRANSIT', key: 'transit/k', options: { address: 'https://vault.tenant' } }, 'InvalidOptions', operators);
    refuse(
      { provider: 'VAULT_TRANSIT', key: 'transit/k', options: { address: 'https://vault.tenant', kubernetesRole: 'r' } },
      'InvalidOptions',
      operators,
    );
    openKmsKey({ provider: 'VAULT_TRANSIT', key: 'transit/k' }, operators).close();
    openKmsKey({ provider: 'VAULT_TRANSIT', key: 'transit/k', options: { kubernetesRole: 'r' } }, operators).close();
  });

  test('configurations that are right open without a request', () => {
    openKmsKey({ provider: 'AWS_KMS', key: ARN, options: { roleArn: 'arn:aws:iam::111122223333:role/a/b', externalId: 'x' } }, env).close();
    openKmsKey({ provider: 'AWS_KMS', key: 'arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/0a-b' }, env).close();
    openKmsKey({ provider: 'AZURE_KEY_VAULT', key: 'https://h.managedhsm.azure.net/keys/k/0123456789abcdef' }, env).close();
    openKmsKey({ provider: 'GCP_KMS', key: GOOGLE, options: { impersonateServiceAccount: 'a@b.iam.gserviceaccount.com' } }, env).close();
    openKmsKey({ provider: 'LOCAL', key: '/var/lib/lakebase/keys/acme' }, env).close();
    openKmsKey({ provider: 'LOCAL', key: '/elsewhere/key' }, { ...env, allowAnyLocalPath: true }).close();
  });
});
