import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { kmsEnvironment } from './kms-environment.ts';

const plain = { rootKeyFile: '/root.key', kmsEndpoints: {}, caCertificatesFile: null, allowedHosts: [] };

test('allowed hosts: exact, with a port, below a domain; without a list everything', () => {
  assert.equal(kmsEnvironment(plain).mayConnect, undefined);
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
