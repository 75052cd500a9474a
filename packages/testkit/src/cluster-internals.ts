/** What tests and benchmarks need of a cluster's inside: internal clients, the default branch's storage identity, its running compute. */
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import {
  ComputeHostClient,
  type ComputeSpec,
  type ComputeStatus,
  PageserverClient,
  type PeerAddress,
  SafekeeperClient,
  internalToken,
} from '@lakebase/api';
import { must } from '@lakebase/base';
import { type ProjectUid, type TimelineId, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import pg from 'pg';
import type { Cluster } from './cluster.ts';

interface ManagerConfig {
  computeHostUrl: string;
  pageserver: { httpUrl: string; pageHost: string; pagePort: number };
  safekeepers: PeerAddress[];
}

export class ClusterInternals {
  readonly cluster: Cluster;
  readonly manager: ManagerConfig;
  readonly secret: string;
  readonly host: ComputeHostClient;
  readonly pageserver: PageserverClient;

  constructor(cluster: Cluster) {
    this.cluster = cluster;
    this.manager = JSON.parse(readFileSync(join(cluster.home, 'config', 'manager.json'), 'utf8')) as ManagerConfig;
    this.secret = readFileSync(join(cluster.home, 'secret'), 'utf8').trim();
    const token = internalToken(this.secret, 'service');
    this.host = new ComputeHostClient({ baseUrl: this.manager.computeHostUrl, token });
    this.pageserver = new PageserverClient({ baseUrl: this.manager.pageserver.httpUrl, token });
  }

  safekeeper(id: string): SafekeeperClient {
    const peer = must(
      this.manager.safekeepers.find((s) => s.id === id),
      id,
    );
    return new SafekeeperClient({ baseUrl: peer.httpUrl, token: internalToken(this.secret, 'service') });
  }

  /** Storage identity of the only branch there is. */
  branch(): { project: ProjectUid; timeline: TimelineId } {
    const timelines = join(this.cluster.home, 'data', 'pageserver', 'timelines');
    const project = must(readdirSync(timelines)[0], 'a project');
    return { project: parseProjectUid(project), timeline: parseTimelineId(must(readdirSync(join(timelines, project))[0], 'a branch')) };
  }

  async running(): Promise<ComputeStatus | undefined> {
    return (await this.host.list()).computes.find((c) => c.state === 'RUNNING');
  }

  /** Straight to the compute's socket, as the superuser no client can be. */
  async admin(compute?: ComputeStatus, database = 'databricks_postgres'): Promise<pg.Client> {
    const to = compute ?? must(await this.running(), 'a running compute');
    const client = new pg.Client({ host: must(to.socketDir, 'socket directory'), port: to.port, user: 'lakebase_admin', database });
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  /** A specification that starts another compute on the branch, as a second Manager gone wrong would. */
  async rivalSpec(): Promise<ComputeSpec> {
    const { project, timeline } = this.branch();
    const { systemId, pgVersion } = await this.pageserver.status(project, timeline);
    return {
      projectUid: project,
      timelineId: timeline,
      endpointId: 'ep-rival',
      pgVersion,
      systemId,
      safekeepers: this.manager.safekeepers,
      pageserver: this.manager.pageserver,
      roles: [],
      databases: [],
      settings: {},
    };
  }
}
