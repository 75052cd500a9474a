/** The services of a running system from inside: their internal routes with the installation's own token, and the failpoints of a system that was started
 *  with LAKEBASE_FAILPOINTS_ROUTE=1. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { HttpClient, internalToken } from '@lakebase/api';
import type { FailpointName, FailpointStatus } from '@lakebase/base';
import type { Cluster, ServiceName } from '@lakebase/testkit';

export class Inside {
  readonly #cluster: Cluster;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
  }

  /** Ports may change with a start of the system. */
  http(service: ServiceName): HttpClient {
    const { home } = this.#cluster;
    const { httpPort } = JSON.parse(readFileSync(join(home, 'config', `${service}.json`), 'utf8')) as { httpPort: number };
    const token = internalToken(readFileSync(join(home, 'secret'), 'utf8').trim(), 'service');
    return new HttpClient({ baseUrl: `http://127.0.0.1:${httpPort}`, token, timeoutMs: 60_000 });
  }

  arm(service: ServiceName, name: FailpointName, action: string): Promise<unknown> {
    return this.http(service).call('PUT', `/v1/failpoints/${name}`, { action });
  }
  release(service: ServiceName, name: FailpointName): Promise<unknown> {
    return this.http(service).call('PUT', `/v1/failpoints/${name}`, { release: true });
  }
  /** Resolves when the place was reached so often since it was armed. */
  reached(service: ServiceName, name: FailpointName, hits = 1): Promise<FailpointStatus> {
    return this.http(service).call('GET', `/v1/failpoints/${name}?hits=${hits}&ms=50000`);
  }
}
