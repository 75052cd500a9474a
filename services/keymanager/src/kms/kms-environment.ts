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
    mayConnect:
      allowedHosts.length === 0 ? (url: URL) => !isMetadataService(url.hostname) : (url: URL) => allowedHosts.some((p) => isHost(url, p)),
  };
}

/** `host`, `host:port`, or `*.domain` for everything below a domain (not the domain itself). */
function isHost(url: URL, pattern: string): boolean {
  const wanted = pattern.toLowerCase();
  // Without a port in the pattern any port will do.
  const host = /:\d+$/.test(wanted) ? url.host : url.hostname;
  return wanted.startsWith('*.') ? host.endsWith(wanted.slice(1)) && host.length > wanted.length - 1 : host === wanted;
}

const METADATA_NAMES = new Set(['metadata.google.internal', 'metadata', 'instance-data', 'instance-data.ec2.internal']);
/** Alibaba, Azure, Oracle. Everything else is link-local. */
const METADATA_ADDRESSES = new Set(['100.100.100.200', '168.63.129.16', '192.0.0.192']);

/** Link-local addresses and those of clouds' metadata services, which hand out the machine's own credentials: never where a tenant's key is,
 *  unless the operator lists the host. `hostname` is a URL's, so an IPv4 address is dotted and an IPv6 one shortened. A name that resolves to
 *  such an address is not noticed here: docs/operating/kms.md. */
export function isMetadataService(hostname: string): boolean {
  const host = hostname.toLowerCase().replace(/\.$/, '');
  if (!host.startsWith('[')) return METADATA_NAMES.has(host) || METADATA_ADDRESSES.has(host) || host.startsWith('169.254.');
  const address = host.slice(1, -1);
  const mapped = /^(?:::ffff:|64:ff9b::)([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(address);
  if (mapped !== null) return isMetadataService(dotted(mapped[1] as string, mapped[2] as string));
  return /^fe[89ab][0-9a-f]:/.test(address) || address === 'fd00:ec2::254' || address === 'fd20:ce::254';
}

const dotted = (high: string, low: string): string =>
  [high, low]
    .map((part) => Number.parseInt(part, 16))
    .flatMap((n) => [n >> 8, n & 0xff])
    .join('.');

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
