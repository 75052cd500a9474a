/** Where requests may go. A tenant may name an address for AWS and Vault only, and the operator's policy has the last word: the key
 *  manager must not become a way into the operator's own network, nor hand the operator's credentials to an address a tenant named. */
import { rootCertificates } from 'node:tls';
import { KmsError } from './errors.ts';
import type { KmsEnvironment, KmsProvider } from './types.ts';

/** Checks an address that came with a key's options; undefined stays undefined. Without a trailing slash. */
export function tenantEndpoint(provider: KmsProvider, text: string | undefined, env: KmsEnvironment): string | undefined {
  if (text === undefined) return undefined;
  const invalid = (advice: string): KmsError =>
    new KmsError('INVALID', provider, 'InvalidEndpoint', `${provider} InvalidEndpoint: ${advice} (${text.slice(0, 200)})`);
  if (!URL.canParse(text)) throw invalid('not a URL');
  const url = new URL(text);
  if (url.username !== '' || url.password !== '' || url.search !== '' || url.hash !== '')
    throw invalid('an endpoint is scheme, host, port and path only');
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && isLoopback(url.hostname)))
    throw invalid('use https; plain http is for this machine only');
  requireAllowed(provider, url, env);
  return text.replace(/\/+$/, '');
}

export function requireAllowed(provider: KmsProvider, url: URL, env: KmsEnvironment): void {
  if (env.mayConnect !== undefined && !env.mayConnect(url))
    throw new KmsError(
      'INVALID',
      provider,
      'EndpointNotAllowed',
      `${provider} EndpointNotAllowed: the operator does not allow keys at ${url.host}; ask for it to be added to the key manager's allowed hosts`,
    );
}

const isLoopback = (host: string): boolean => host === 'localhost' || host === '[::1]' || /^127(\.\d{1,3}){3}$/.test(host);

/** The system's authorities and ours. */
export const trustedAuthorities = (pem: string): string[] => [...rootCertificates, pem];
