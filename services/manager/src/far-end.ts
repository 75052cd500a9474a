/** The services the Manager drives, as typed clients. */
import { ComputeHostClient, KeyManagerClient, PageserverClient, type PeerAddress, SafekeeperClient, internalToken } from '@lakebase/api';
import { LakebaseError, isCode } from '@lakebase/base';

export interface FarEnd {
  readonly computeHost: ComputeHostClient;
  /** In the order of the configuration. Projects from before there were placements are on the first. */
  readonly pageservers: readonly FarPageserver[];
  /** Where new timelines go. */
  readonly safekeepers: readonly PeerAddress[];
  /** Those and the ones that stand ready to take another's place. */
  readonly nodes: readonly PeerAddress[];
  readonly keys: KeyManagerClient;
  /** Throws NOT_FOUND for one that is not in the configuration. */
  pageserverOf(id: string): FarPageserver;
  safekeeper(id: string): SafekeeperClient | undefined;
}

export interface PageserverAddress {
  readonly httpUrl: string;
  readonly pageHost: string;
  readonly pagePort: number;
}
export interface FarPageserver {
  readonly id: string;
  readonly client: PageserverClient;
  readonly address: PageserverAddress;
}

export interface FarEndAddresses {
  readonly computeHostUrl: string;
  readonly pageserver: PageserverAddress & { readonly id: string };
  readonly morePageservers: readonly (PageserverAddress & { readonly id: string })[];
  readonly safekeepers: readonly PeerAddress[];
  readonly spareSafekeepers: readonly PeerAddress[];
  readonly keyManagerUrl: string | null;
}

export function connectFarEnd(a: FarEndAddresses, secret: string): FarEnd {
  const token = internalToken(secret, 'service');
  const nodes = [...a.safekeepers, ...a.spareSafekeepers];
  const members = new Map(nodes.map((s) => [s.id, new SafekeeperClient({ baseUrl: s.httpUrl, token, timeoutMs: 10_000 })]));
  const pageservers = new Map(
    [a.pageserver, ...a.morePageservers].map(({ id, ...address }): [string, FarPageserver] => [
      id,
      { id, address, client: new PageserverClient({ baseUrl: address.httpUrl, token }) },
    ]),
  );
  return {
    computeHost: new ComputeHostClient({ baseUrl: a.computeHostUrl, token }),
    pageservers: [...pageservers.values()],
    pageserverOf: (id) => {
      const found = pageservers.get(id);
      if (found === undefined)
        throw new LakebaseError('NOT_FOUND', `there is no pageserver ${id}; there are ${[...pageservers.keys()].join(', ')}`);
      return found;
    },
    safekeepers: a.safekeepers,
    nodes,
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
