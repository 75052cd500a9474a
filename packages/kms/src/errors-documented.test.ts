/** An operator looks an error up in docs/operating/kms.md: every code of every table is there, on a line with its outcome. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { AWS_ERRORS } from './aws-errors.ts';
import { AZURE_ERRORS } from './azure-errors.ts';
import { NETWORK_CODES } from './errors.ts';
import { GOOGLE_ERRORS, GOOGLE_REASONS, GOOGLE_TEXTS } from './google-errors.ts';
import { LOCAL_ERRORS } from './local.ts';
import { VAULT_ERRORS } from './vault-errors.ts';

const page = readFileSync(join(import.meta.dirname, '..', '..', '..', 'docs', 'operating', 'kms.md'), 'utf8');
const AWS = Object.entries(AWS_ERRORS).map(([code, [kind]]) => [code, kind] as const);
const AZURE = Object.entries(AZURE_ERRORS).map(([code, [kind]]) => [code, kind] as const);
const GOOGLE = [
  ...Object.entries({ ...GOOGLE_ERRORS, ...GOOGLE_REASONS }).map(([code, [kind]]) => [code, kind] as const),
  ...GOOGLE_TEXTS.map(([, , code, [kind]]) => [code, kind] as const),
];
const VAULT = VAULT_ERRORS.map(([, , code, [kind]]) => [code, kind] as const);
const LOCAL = Object.entries(LOCAL_ERRORS).map(([code, [kind]]) => [code, kind] as const);
const EVERY = NETWORK_CODES.map((code) => [code, 'UNREACHABLE'] as const);

/** Rows of the error table below a heading: what is in the first column, and the outcome. */
function rows(heading: string): (readonly [codes: string, outcome: string])[] {
  const from = page.indexOf(`\n## ${heading}`);
  assert.ok(from >= 0, heading);
  const end = page.indexOf('\n## ', from + 1);
  return [...page.slice(from, end < 0 ? undefined : end).matchAll(/^\| (.+?) \| (DENIED|UNREACHABLE|INVALID) \|/gm)].map(
    ([, codes = '', outcome = '']) => [codes, outcome],
  );
}

for (const [heading, table] of [
  ['AWS KMS', AWS],
  ['Azure Key Vault', AZURE],
  ['Google Cloud KMS', GOOGLE],
  ['HashiCorp Vault', VAULT],
  ['Local key file', LOCAL],
  ['For every provider', EVERY],
] as const)
  test(`${heading}: every code is on the page, with its outcome`, () => {
    const documented = rows(heading);
    const wrong = table.filter(([code, kind]) => {
      const outcome = kind === 'UNAUTHENTICATED' ? 'UNREACHABLE' : kind;
      const word = new RegExp(`(?<![A-Za-z_])${code}(?![A-Za-z_])`);
      return !documented.some(([codes, told]) => told === outcome && word.test(codes));
    });
    assert.deepEqual(wrong, []);
  });
