/** Which members this disk may become, and with what they begin (docs/protocols/membership.md).
 *  Invariant: a promise once given under an identity is never forgotten by it: what was here and is gone is never made again as the member it was. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { CreateWalTimeline, WalTimelineStatus } from '@lakebase/api';
import { LakebaseError, withDeadline } from '@lakebase/base';
import { type ProjectUid, type Term, type TimelineId, parseLsn } from '@lakebase/ids';
import {
  type ControlFile,
  type Membership,
  configurationFromJson,
  describeConfiguration,
  firstTermOf,
  lineagesFromJson,
  nodeOf,
  staticConfiguration,
  votersOf,
} from '@lakebase/wal-quorum';
import type { SafekeeperConfig } from './config.ts';
import type { DiskIdentity } from './disk-identity.ts';
import type { NodeBook } from './node-book.ts';

const PEER_ANSWER_MS = 2_000;

export class NewMembers {
  readonly #config: SafekeeperConfig;
  readonly #identity: DiskIdentity;
  readonly #nodes: NodeBook;

  constructor(config: SafekeeperConfig, identity: DiskIdentity, nodes: NodeBook) {
    this.#config = config;
    this.#identity = identity;
    this.#nodes = nodes;
  }

  /** Of a member that begins with nothing. */
  fresh(project: ProjectUid, timeline: TimelineId, request: CreateWalTimeline): ControlFile {
    const startLsn = parseLsn(request.startLsn);
    const lineages = request.lineages === undefined ? undefined : lineagesFromJson(request.lineages);
    if (lineages !== undefined && lineages.at(-1)?.startLsn !== startLsn)
      throw new LakebaseError('INVALID_ARGUMENT', `the newest lineage does not begin at ${request.startLsn}`);
    return {
      project,
      timeline,
      systemId: BigInt(request.systemId),
      pgVersion: request.pgVersion,
      term: lineages === undefined ? (0 as Term) : firstTermOf(lineages),
      history: [],
      startLsn,
      prevRecordLsn: parseLsn(request.prevRecordLsn),
      commitLsn: startLsn,
      flushHint: startLsn,
      damage: null,
      membership: this.#membershipFor(request),
      offloadedLsn: startLsn,
      pagesLsn: startLsn,
      ...(lineages === undefined || lineages.length < 2 ? {} : { lineages }),
    };
  }

  /** Throws unless this disk may become that member now: a promise once given under an identity is never forgotten by it. */
  async mayBecome({ project, timeline, membership }: ControlFile, incarnation: string | undefined): Promise<void> {
    const member = membership?.self ?? this.#config.id;
    const lost = `${member} lost what it held of timeline ${timeline}; it can only join again as a new member: lakebase storage replace-safekeeper`;
    if (incarnation !== undefined && incarnation !== this.#identity.incarnation)
      throw new LakebaseError('CONFLICT', `this disk is ${this.#identity.incarnation}, not ${incarnation}: ${lost}`);
    const removed = existsSync(this.tombstone(project, timeline));
    if (!removed && this.#identity.membersOf(project, timeline).includes(member)) throw new LakebaseError('CONFLICT', lost);
    if (incarnation !== undefined) return;
    // Nobody says which disk is meant: then a timeline that its other members have used may have been here.
    if ((await this.#askPeers(project, timeline)).some((s) => s.term > 0)) throw new LakebaseError('CONFLICT', lost);
  }

  async #askPeers(project: ProjectUid, timeline: TimelineId): Promise<WalTimelineStatus[]> {
    const answers = await Promise.allSettled(
      this.#nodes.peers.map(({ client, address }) => withDeadline(client.status(project, timeline), PEER_ANSWER_MS, address.id)),
    );
    return answers.filter((a) => a.status === 'fulfilled').map((a) => a.value);
  }

  #membershipFor(request: CreateWalTimeline): Membership {
    const config = this.#config;
    if (request.membership === undefined)
      return { self: config.id, configuration: staticConfiguration([config.id, ...config.peers.map((p) => p.id)]) };
    const configuration = configurationFromJson(request.membership.configuration);
    const self = request.membership.member;
    if (nodeOf(self) !== config.id || !votersOf(configuration).includes(self))
      throw new LakebaseError(
        'INVALID_ARGUMENT',
        `${self} cannot be made on ${config.id} for configuration ${describeConfiguration(configuration)}`,
      );
    return { self, configuration };
  }

  /** Stands where a timeline was deleted. */
  tombstone(project: ProjectUid, timeline: TimelineId): string {
    return join(this.#config.dataDir, project, `${timeline}.deleted`);
  }
}
