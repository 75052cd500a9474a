/** Safekeeper HTTP surface (all JSON; LSNs as Postgres text, terms as numbers). Token: `service`, or the timeline's own except for PUT and DELETE.
 *
 *    PUT    /v1/timelines/:project/:timeline            CreateWalTimeline  -> WalTimelineStatus   (idempotent)
 *    GET    /v1/timelines/:project/:timeline            -> WalTimelineStatus
 *    DELETE /v1/timelines/:project/:timeline            with ?objects=keep: only this member's copy, for one that was replaced
 *    POST   /v1/timelines/:project/:timeline/vote       VoteRequest     -> VoteResponse           (docs/protocols/election.md)
 *    POST   /v1/timelines/:project/:timeline/elected    ElectedRequest  -> ElectedResponse
 *    POST   /v1/timelines/:project/:timeline/subscribe  SubscribeRequest -> WalTimelineStatus     (idempotent per term)
 *    GET    /v1/timelines/:project/:timeline/configuration -> WalConfiguration           (docs/protocols/membership.md)
 *    PUT    /v1/timelines/:project/:timeline/configuration ConfigureRequest -> WalTimelineStatus (idempotent; token: service)
 *    POST   /v1/timelines/:project/:timeline/catch-up      { donor: PeerAddress } -> WalTimelineStatus (token: service)
 *    POST   /v1/timelines/:project/:timeline/archive-end   ArchiveEndRequest -> ArchiveEnd (token: service; the node need not have the timeline)
 *    GET    /v1/node                                    -> SafekeeperNode (token: service)
 *    GET    /v1/peer-stream                             ndjson of PeerStatus, one line per change (token: service)
 *
 *  WAL is served on `pgPort` by the Postgres replication protocol: SCRAM password = the token, user = any name,
 *  start-up parameter `options='-c lakebase.project=<uid> -c lakebase.timeline=<id>'`. IDENTIFY_SYSTEM, TIMELINE_HISTORY, SHOW,
 *  CREATE_REPLICATION_SLOT/READ_REPLICATION_SLOT as far as pg_receivewal needs, START_REPLICATION PHYSICAL. Nothing beyond the commit LSN,
 *  except with `-c lakebase.peer=1` (token: service): then up to the flush LSN, for peer catch-up. Such a stream also carries
 *  `-c lakebase.term=<n>` and ends as soon as the serving member's term is not n: what it holds may be replaced then (docs/protocols/election.md). */
import type { ProjectUid, Term, TimelineId } from '@lakebase/ids';
import { HttpClient, type HttpClientOptions } from './http-client.ts';

export interface TermHistoryEntryJson {
  readonly term: number;
  readonly startLsn: string;
}

export interface CreateWalTimeline {
  /** Decimal string: a 64-bit number. */
  readonly systemId: string;
  readonly pgVersion: number;
  /** First byte this timeline will ever hold. */
  readonly startLsn: string;
  /** Start of the last record before startLsn (the first record's xl_prev). */
  readonly prevRecordLsn: string;
  /** Of the timeline's WAL, oldest first; the last one begins at startLsn (docs/protocols/wal-recovery.md). Absent: lineage 0 only. */
  readonly lineages?: readonly WalLineageJson[];
  /** Who the member is to be; absent: the node's own id in the set of nodes it was started with. */
  readonly membership?: { readonly member: string; readonly configuration: ConfigurationJson };
  /** Disk that is meant: refused on any other. */
  readonly incarnation?: string;
}

/** A WAL without a fork; every recovery that could not bring back all WAL begins the next one. */
export interface WalLineageJson {
  readonly number: number;
  readonly startLsn: string;
}

/** How far does WAL in the object store reach, read record by record from a place where one ends? */
export interface ArchiveEndRequest {
  readonly systemId: string;
  readonly pgVersion: number;
  readonly lineages: readonly WalLineageJson[];
  readonly from: string;
  /** Start of the last record before `from`. */
  readonly prevRecordLsn: string;
}
export interface ArchiveEnd {
  /** End and start of the last whole record; `from` and `prevRecordLsn` when there is none. */
  readonly endLsn: string;
  readonly lastRecordLsn: string;
  /** Of the last commit in it; null: none was seen. */
  readonly lastCommitTime: string | null;
  /** Why reading ended before the stored WAL does: damage, or a hole with objects behind it. Null: it did not. */
  readonly problem: string | null;
}

/** Who keeps the WAL of a timeline; joint while `newMembers` is set. */
export interface ConfigurationJson {
  readonly generation: number;
  readonly members: readonly string[];
  readonly newMembers: readonly string[] | null;
}
/** A member's configuration, and where those members are: `id` is the member's. */
export interface WalConfiguration {
  readonly configuration: ConfigurationJson;
  readonly addresses: readonly PeerAddress[];
  /** Every member that the disk of who answers ever was on this timeline. */
  readonly notes?: readonly string[];
}
export interface ConfigureRequest {
  readonly configuration: ConfigurationJson;
  /** Nodes of all its members. */
  readonly nodes: readonly PeerAddress[];
  /** Become this new member first, if the disk is the one that is meant and was never that member. */
  readonly make: { readonly member: string; readonly incarnation: string; readonly timeline: CreateWalTimeline } | null;
}
/** A safekeeper process and its disk. */
export interface SafekeeperNode {
  readonly id: string;
  /** Made once per disk: another one means that everything this node ever held is gone. */
  readonly incarnation: string;
  readonly timelines: number;
  /** Members that this disk held and holds no more, or cannot read. */
  readonly lost: readonly { readonly project: ProjectUid; readonly timeline: TimelineId; readonly member: string }[];
}

export interface WalTimelineStatus extends CreateWalTimeline {
  readonly id: string;
  /** Identity of this node as a member of the timeline, and the generation of the configuration it holds. */
  readonly member?: string;
  readonly generation?: number;
  /** Highest term granted or adopted; persisted before any answer that shows it. */
  readonly term: Term;
  readonly termHistory: readonly TermHistoryEntryJson[];
  /** End of durable bytes, possibly inside a record. */
  readonly flushLsn: string;
  /** End of the last complete durable record: what votes and the commit LSN are computed from. */
  readonly flushRecordLsn: string;
  /** Start of that last complete record (xl_prev of whatever follows). */
  readonly lastRecordLsn: string;
  readonly commitLsn: string;
  /** Set while a receiver is connected to a compute. */
  readonly streaming: { readonly term: Term } | null;
  /** Set when the member refuses to vote until repaired (docs/formats/wal-segment.md, damage). */
  readonly damaged: string | null;
  /** First byte on this member's disk; older WAL is in the object store. */
  readonly firstLsn?: string;
  /** Without a hole up to here in the object store, and up to where its tail reaches as far as this member knows. */
  readonly offloadedLsn?: string;
  readonly tailLsn?: string;
  /** What WAL up to here made is durable with the pageserver. */
  readonly pagesLsn?: string;
  /** How full this member's disk for WAL is: 0 while there is plenty of room, 1 when nearly none is left and writers have to be slow. */
  readonly pressure?: number;
  /** Its disk takes long for a flush. */
  readonly slowDisk?: boolean;
}

export interface VoteRequest {
  readonly term: Term;
  /** By which the candidate counts; absent: whatever the member holds. */
  readonly configuration?: ConfigurationJson;
}
export interface VoteResponse {
  readonly granted: boolean;
  /** The acceptor's term after the request. */
  readonly term: Term;
  readonly lastLogTerm: Term;
  readonly flushRecordLsn: string;
  readonly lastRecordLsn: string;
  readonly commitLsn: string;
  readonly termHistory: readonly TermHistoryEntryJson[];
  /** Set with a refusal when the member holds a newer configuration. */
  readonly newer?: WalConfiguration;
}

export interface PeerAddress {
  readonly id: string;
  readonly httpUrl: string;
  readonly pgHost: string;
  readonly pgPort: number;
}

/** The acceptor truncates what diverges, copies what it lacks up to termStartLsn from the donor, then persists the history. */
export interface ElectedRequest {
  readonly term: Term;
  readonly termStartLsn: string;
  readonly lastRecordLsn: string;
  readonly termHistory: readonly TermHistoryEntryJson[];
  readonly donor: PeerAddress;
  /** Ids of the members that granted the term: a rebuilt member joins only when all others did. */
  readonly voters: readonly string[];
  readonly configuration?: ConfigurationJson;
}
export interface ElectedResponse {
  readonly term: Term;
  readonly flushRecordLsn: string;
}

/** Where the compute of `term` serves replication: a Unix socket directory on one machine, or a host. Peer authentication. */
export interface SubscribeRequest {
  readonly term: Term;
  readonly host: string;
  readonly port: number;
  readonly user: string;
  /** Becomes application_name: the name the compute's synchronous_standby_names lists. */
  readonly standbyName: string;
  /** By which the compute counts; absent: whatever the member holds. */
  readonly configuration?: ConfigurationJson;
}

export interface PeerStatus {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  /** The member's term. It counts towards the commit LSN only when this equals lastLogTerm (wal-quorum, commit.ts). */
  readonly term: Term;
  readonly lastLogTerm: Term;
  readonly flushRecordLsn: string;
  readonly commitLsn: string;
  readonly offloadedLsn?: string;
  readonly tailLsn?: string;
  readonly pagesLsn?: string;
  /** Of the configuration the member holds (docs/protocols/membership.md). */
  readonly generation?: number;
  /** Identity of the member; absent: the node's id. */
  readonly member?: string;
  /** Of the member's WAL: what another lineage has in the object store says nothing. Absent: 0. */
  readonly lineage?: number;
}

export class SafekeeperClient {
  readonly http: HttpClient;
  constructor(options: HttpClientOptions) {
    this.http = new HttpClient(options);
  }

  #path(project: ProjectUid, timeline: TimelineId, verb = ''): string {
    return `/v1/timelines/${project}/${timeline}${verb}`;
  }

  create(p: ProjectUid, t: TimelineId, body: CreateWalTimeline): Promise<WalTimelineStatus> {
    return this.http.call('PUT', this.#path(p, t), body);
  }
  status(p: ProjectUid, t: TimelineId): Promise<WalTimelineStatus> {
    return this.http.call('GET', this.#path(p, t), undefined, { timeoutMs: 5_000 });
  }
  /** `objects: 'keep'`: the timeline goes on elsewhere. */
  remove(p: ProjectUid, t: TimelineId, options: { readonly objects?: 'keep' } = {}): Promise<void> {
    return this.http.call('DELETE', this.#path(p, t, options.objects === 'keep' ? '?objects=keep' : ''));
  }
  archiveEnd(p: ProjectUid, t: TimelineId, body: ArchiveEndRequest, timeoutMs: number): Promise<ArchiveEnd> {
    return this.http.call('POST', this.#path(p, t, '/archive-end'), body, { timeoutMs });
  }
  vote(p: ProjectUid, t: TimelineId, body: VoteRequest, timeoutMs = 5_000): Promise<VoteResponse> {
    return this.http.call('POST', this.#path(p, t, '/vote'), body, { timeoutMs });
  }
  elected(p: ProjectUid, t: TimelineId, body: ElectedRequest, timeoutMs = 60_000): Promise<ElectedResponse> {
    return this.http.call('POST', this.#path(p, t, '/elected'), body, { timeoutMs });
  }
  configuration(p: ProjectUid, t: TimelineId): Promise<WalConfiguration> {
    return this.http.call('GET', this.#path(p, t, '/configuration'), undefined, { timeoutMs: 5_000 });
  }
  configure(p: ProjectUid, t: TimelineId, body: ConfigureRequest): Promise<WalTimelineStatus> {
    return this.http.call('PUT', this.#path(p, t, '/configuration'), body, { timeoutMs: 5_000 });
  }
  catchUp(p: ProjectUid, t: TimelineId, donor: PeerAddress, timeoutMs = 60_000): Promise<WalTimelineStatus> {
    return this.http.call('POST', this.#path(p, t, '/catch-up'), { donor }, { timeoutMs });
  }
  node(): Promise<SafekeeperNode> {
    return this.http.call('GET', '/v1/node', undefined, { timeoutMs: 3_000 });
  }
  subscribe(p: ProjectUid, t: TimelineId, body: SubscribeRequest): Promise<WalTimelineStatus> {
    return this.http.call('POST', this.#path(p, t, '/subscribe'), body, { timeoutMs: 10_000 });
  }
}
