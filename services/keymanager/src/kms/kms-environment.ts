/** What the operator, not the owner of a key, says about the way to a KMS: from the configuration to what the adapters take. */
import { readFileSync } from 'node:fs';
import { LakebaseError, errorMessage } from '@lakebase/base';
import type { KmsEnvironment } from '@lakebase/kms';
import type { KeyManagerConfig } from '../config.ts';

type Settings = Pick<KeyManagerConfig, 'rootKeyFile' | 'kmsEndpoints' | 'caCertificatesFile' | 'allowedHosts'>;

/** Throws CONFIG when the certificates cannot be read: with a wrong set of authorities every key would seem unreachable. */
export function kmsEnvironment(config: Settings): KmsEnvironment {
  const { caCertificatesFile, allowedHosts } = config;
  return {
    rootKeyPath: config.rootKeyFile,
    endpoints: config.kmsEndpoints,
    ...(caCertificatesFile === null ? {} : { caCertificates: readCertificates(caCertificatesFile) }),
    ...(allowedHosts.length === 0 ? {} : { mayConnect: (url: URL) => allowedHosts.some((pattern) => isHost(url, pattern)) }),
  };
}

/** `host`, `host:port`, or `*.domain` for everything below a domain (not the domain itself). */
function isHost(url: URL, pattern: string): boolean {
  const wanted = pattern.toLowerCase();
  // Without a port in the pattern any port will do.
  const host = /:\d+$/.test(wanted) ? url.host : url.hostname;
  return wanted.startsWith('*.') ? host.endsWith(wanted.slice(1)) && host.length > wanted.length - 1 : host === wanted;
}

function readCertificates(path: string): string {
  let pem: string;
  try {
    pem = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new LakebaseError('CONFIG', `cannot read caCertificatesFile ${path}: ${errorMessage(cause)}`, { cause });
  }
  if (!pem.includes('-----BEGIN CERTIFICATE-----'))
    throw new LakebaseError('CONFIG', `caCertificatesFile ${path} holds no certificate: it must be PEM (-----BEGIN CERTIFICATE-----)`);
  return pem;
}
