/** Key configurations as the account API spells them (`aws_key_info`, `azure_key_info`, …), and as the key manager wants them.
 *  Secrets among the options are kept sealed and never shown again. */
import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto';
import { join } from 'node:path';
import type { CreateProjectKey, KmsKeyConfig, KmsProvider } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import type { KeyRow } from '../store/accounts.ts';
import { invalid } from './api-error.ts';

/** The one provider-specific member of a request. */
export const KEY_INFO_FIELDS = ['aws_key_info', 'azure_key_info', 'gcp_key_info', 'vault_key_info', 'local_key_info'] as const;
export type KeyInfoField = (typeof KEY_INFO_FIELDS)[number];
const USE_CASES = ['MANAGED_SERVICES', 'STORAGE'];
const OPTIONS_MAX = 20;
const OPTION_CHARS_MAX = 4_096;

export interface KeyInfo {
  readonly field: KeyInfoField;
  /** As shown. */
  readonly info: Readonly<Record<string, unknown>>;
  readonly kms: KmsKeyConfig;
}

type Fields = Record<string, unknown>;

/** Throws INVALID_ARGUMENT that names the field. */
export function readKeyInfo(body: Fields, localKeysDir: string): KeyInfo {
  const given = KEY_INFO_FIELDS.filter((f) => body[f] !== undefined && body[f] !== null);
  if (given.length !== 1) throw invalid(`exactly one of ${KEY_INFO_FIELDS.join(', ')} is required`);
  const field = given[0] as KeyInfoField;
  const info = body[field];
  if (typeof info !== 'object' || info === null || Array.isArray(info)) throw invalid(`Field ${field} must be an object`);
  const options = readOptions(body['options']);
  const text = (name: string, required = true): string | undefined => {
    const value = (info as Fields)[name];
    if (value === undefined || value === null || value === '') {
      if (required) throw invalid(`Field '${field}.${name}' is required, expected non-default value (not "")!`);
      return undefined;
    }
    if (typeof value !== 'string' || value.length > OPTION_CHARS_MAX) throw invalid(`Field ${field}.${name} must be a string`);
    return value;
  };
  const shown = (names: readonly string[]): Fields => {
    const out: Fields = {};
    for (const name of names) {
      const value = text(name, false);
      if (value !== undefined) out[name] = value;
    }
    return out;
  };
  const make = (provider: KmsProvider, key: string, names: readonly string[], more: Record<string, string> = {}): KeyInfo => ({
    field,
    info: shown(names),
    kms: { provider, key, options: { ...more, ...options } },
  });
  switch (field) {
    case 'aws_key_info': {
      const arn = text('key_arn') as string;
      if (!/^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key\/.+$/.test(arn))
        throw invalid(
          `Field aws_key_info.key_arn must be the ARN of a KMS key (arn:aws:kms:REGION:ACCOUNT:key/ID; an alias can be pointed at another key), got '${arn.slice(0, 100)}'`,
        );
      return make('AWS_KMS', arn, ['key_arn', 'key_alias', 'key_region']);
    }
    case 'azure_key_info': {
      const uri = (text('key_vault_uri') as string).replace(/\/$/, '');
      if (!/^https?:\/\/[^/]+$/.test(uri))
        throw invalid('Field azure_key_info.key_vault_uri must be a URL such as https://NAME.vault.azure.net');
      const version = text('version', false);
      const tenant = text('tenant_id', false);
      const key = `${uri}/keys/${text('key_name')}${version === undefined ? '' : `/${version}`}`;
      return make(
        'AZURE_KEY_VAULT',
        key,
        ['key_vault_uri', 'key_name', 'version', 'tenant_id'],
        tenant === undefined ? {} : { tenantId: tenant },
      );
    }
    case 'gcp_key_info': {
      const id = text('kms_key_id') as string;
      if (!/^projects\/[^/]+\/locations\/[^/]+\/keyRings\/[^/]+\/cryptoKeys\/[^/]+$/.test(id))
        throw invalid('Field gcp_key_info.kms_key_id must be projects/P/locations/L/keyRings/R/cryptoKeys/K');
      return make('GCP_KMS', id, ['kms_key_id']);
    }
    case 'vault_key_info': {
      const namespace = text('namespace', false);
      const mount = text('mount', false) ?? 'transit';
      const key = `${mount.replaceAll(/^\/|\/$/g, '')}/${text('key_name')}`;
      const more = { address: text('address') as string, ...(namespace === undefined ? {} : { namespace }) };
      return make('VAULT_TRANSIT', key, ['address', 'mount', 'key_name', 'namespace'], more);
    }
    case 'local_key_info': {
      const name = text('key_name') as string;
      // A name, never a path: whoever manages keys must not be able to make the key manager read files of the machine.
      if (name === 'root') throw invalid("Field local_key_info.key_name: 'root' is the installation's own key, not a customer's");
      if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(name)) throw invalid('Field local_key_info.key_name must match ^[a-z0-9][a-z0-9-]{0,62}$');
      return make('LOCAL', join(localKeysDir, `${name}.key`), ['key_name']);
    }
  }
}

function readOptions(value: unknown): Record<string, string> {
  if (value === undefined || value === null) return {};
  if (typeof value !== 'object' || Array.isArray(value) || Object.keys(value).length > OPTIONS_MAX)
    throw invalid(`Field options must be an object with at most ${OPTIONS_MAX} strings`);
  for (const [name, text] of Object.entries(value))
    if (!/^[a-zA-Z][a-zA-Z0-9]{0,40}$/.test(name) || typeof text !== 'string' || text.length > OPTION_CHARS_MAX)
      throw invalid(`Field options.${name.slice(0, 50)} must be a string under a plain name`);
  return value as Record<string, string>;
}

export function readUseCases(value: unknown): string[] {
  if (value === undefined) return ['MANAGED_SERVICES'];
  if (!Array.isArray(value) || value.length === 0 || value.some((v) => !USE_CASES.includes(v as string)))
    throw invalid(`Field use_cases must be a list of ${USE_CASES.join(', ')}`);
  return [...new Set(value as string[])];
}

const SEAL_INFO = 'lakebase kms options v1';
const sealKey = (secretHex: string): Buffer =>
  Buffer.from(hkdfSync('sha256', Buffer.from(secretHex, 'hex'), Buffer.alloc(0), SEAL_INFO, 32));

/** `nonce (12) · tag (16) · ciphertext` of the options as JSON, under a key of the installation's secret. */
export function sealOptions(secretHex: string, kmsKey: string, options: Readonly<Record<string, string>>): Buffer {
  const nonce = randomBytes(12);
  const cipher = createCipheriv('aes-256-gcm', sealKey(secretHex), nonce).setAAD(Buffer.from(kmsKey));
  const bytes = Buffer.concat([cipher.update(JSON.stringify(options), 'utf8'), cipher.final()]);
  return Buffer.concat([nonce, cipher.getAuthTag(), bytes]);
}

export function openOptions(secretHex: string, kmsKey: string, sealed: Buffer): Record<string, string> {
  try {
    const decipher = createDecipheriv('aes-256-gcm', sealKey(secretHex), sealed.subarray(0, 12)).setAAD(Buffer.from(kmsKey));
    decipher.setAuthTag(sealed.subarray(12, 28));
    return JSON.parse(Buffer.concat([decipher.update(sealed.subarray(28)), decipher.final()]).toString('utf8')) as Record<string, string>;
  } catch (cause) {
    throw new LakebaseError('CORRUPT', `the options of key ${kmsKey} cannot be opened: the installation's secret file is another one`, {
      cause,
    });
  }
}

/** A stored configuration as the key manager wants it. */
export function kmsOf(secretHex: string, row: KeyRow): KmsKeyConfig {
  return { provider: row.provider, key: row.kms_key, options: openOptions(secretHex, row.kms_key, row.sealed_options) };
}

/** What the key manager is told of the key a project is under; `undefined`: the installation's own. */
export function bindingOf(secretHex: string, key: KeyRow | undefined, actor: string, account: string): CreateProjectKey {
  const kms: KmsKeyConfig = key === undefined ? { provider: 'LOCAL', key: 'root' } : kmsOf(secretHex, key);
  return { account, configurationId: key?.id ?? null, kms, actor };
}
