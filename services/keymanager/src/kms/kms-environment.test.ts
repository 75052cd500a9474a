import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { kmsEnvironment } from './kms-environment.ts';

const plain = { rootKeyFile: '/root.key', kmsEndpoints: {}, caCertificatesFile: null, allowedHosts: [] };

test('without a list every host but link-local addresses and metadata services; a listed one is allowed', () => {
  const may = (text: string, ...allowedHosts: string[]): boolean =>
    kmsEnvironment({ ...plain, allowedHosts }).mayConnect?.(new URL(text)) === true;
  for (const url of ['https://kms.eu-central-1.amazonaws.com', 'http://127.0.0.1:8200', 'https://10.1.2.3', 'https://[fd00::1]:8200'])
    assert.ok(may(url), url);
  const refused = [
    'https://169.254.169.254/latest/meta-data',
    'https://169.254.170.2',
    'https://2852039166', // the same in decimal
    'https://0xa9.0xfe.0xa9.0xfe',
    'https://[::ffff:169.254.169.254]',
    'https://[64:ff9b::a9fe:a9fe]',
    'https://[fe80::1]',
    'https://[fd00:ec2::254]',
    'https://metadata.google.internal',
    'https://Metadata.Google.Internal.',
    'https://100.100.100.200',
    'https://168.63.129.16',
  ];
  for (const url of refused) assert.ok(!may(url), url);
  assert.ok(may('https://169.254.10.1:8200', '169.254.10.1'));
});

test('allowed hosts: exact, with a port, below a domain', () => {
  const may = (text: string, ...allowedHosts: string[]): boolean =>
    kmsEnvironment({ ...plain, allowedHosts }).mayConnect?.(new URL(text)) === true;
  assert.ok(may('https://KMS.eu-central-1.amazonaws.com/', 'kms.eu-central-1.amazonaws.com'));
  assert.ok(may('https://vault.internal:8200/', 'vault.internal'));
  assert.ok(may('https://vault.internal:8200/', 'other', 'Vault.internal:8200'));
  assert.ok(!may('https://vault.internal:8201/', 'vault.internal:8200'));
  assert.ok(may('https://acme.vault.azure.net/', '*.vault.azure.net'));
  for (const url of ['https://vault.azure.net/', 'https://evilvault.azure.net/', 'https://vault.azure.net.evil.example/'])
    assert.ok(!may(url, '*.vault.azure.net'), url);
});

test('certificates are read, and a file without one is refused at the start', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'lb-kmsenv-'));
  t.after(() => rmSync(dir, { recursive: true }));
  const file = join(dir, 'ca.pem');
  assert.throws(() => kmsEnvironment({ ...plain, caCertificatesFile: file }), /cannot read caCertificatesFile/);
  writeFileSync(file, 'nothing');
  assert.throws(() => kmsEnvironment({ ...plain, caCertificatesFile: file }), /holds no certificate/);
  const pem = '-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n';
  writeFileSync(file, pem);
  assert.equal(kmsEnvironment({ ...plain, caCertificatesFile: file }).caCertificates, pem);
});
