/** The services the Manager drives, as typed clients. */
import { ComputeHostClient, KeyManagerClient, PageserverClient, type PeerAddress, SafekeeperClient, internalToken } from '@lakebase/api';
import { isCode } from '@lakebase/base';

export interface FarEnd {
  readonly computeHost: ComputeHostClient;
  readonly pageserver: PageserverClient;
  readonly pageserverAddress: { readonly httpUrl: string; readonly pageHost: string; readonly pagePort: number };
  readonly safekeepers: readonly PeerAddress[];
  readonly keys: KeyManagerClient;
  safekeeper(id: string): SafekeeperClient | undefined;
}

export interface FarEndAddresses {
  readonly computeHostUrl: string;
  readonly pageserver: FarEnd['pageserverAddress'];
  readonly safekeepers: readonly PeerAddress[];
  readonly keyManagerUrl: string | null;
}

export function connectFarEnd(a: FarEndAddresses, secret: string): FarEnd {
  const token = internalToken(secret, 'service');
  const members = new Map(a.safekeepers.map((s) => [s.id, new SafekeeperClient({ baseUrl: s.httpUrl, token, timeoutMs: 10_000 })]));
  return {
    computeHost: new ComputeHostClient({ baseUrl: a.computeHostUrl, token }),
    pageserver: new PageserverClient({ baseUrl: a.pageserver.httpUrl, token }),
    pageserverAddress: a.pageserver,
    safekeepers: a.safekeepers,
    keys: new KeyManagerClient({ baseUrl: a.keyManagerUrl ?? 'http://127.0.0.1:1', token }),
    safekeeper: (id) => members.get(id),
  };
}

/** Errors that say nothing about the request: the same call may work later. */
export const isTransient = (error: unknown): boolean =>
  isCode(error, 'UNAVAILABLE') ||
  isCode(error, 'TIMEOUT') ||
  isCode(error, 'CLOSED') ||
  isCode(error, 'FENCED') ||
  isCode(error, 'RESOURCE_EXHAUSTED');

/** A removal of what is not there has succeeded. */
export async function ignoreNotFound(work: Promise<unknown>): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (!isCode(error, 'NOT_FOUND')) throw error;
  }
}
