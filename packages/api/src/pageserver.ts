/** Pageserver HTTP surface. Token: `service`, or the timeline's own where marked (T).
 *
 *    PUT    /v1/templates/:major                     body: tar of a cleanly shut down data directory (base backup layout) -> TemplateInfo
 *    GET    /v1/templates/:major                     -> TemplateInfo (404 when none)
 *    PUT    /v1/timelines/:project/:timeline         CreatePageTimeline -> PageTimelineStatus     (idempotent)
 *    GET    /v1/timelines/:project/:timeline         -> PageTimelineStatus                        (T)
 *    DELETE /v1/timelines/:project/:timeline
 *    PUT    /v1/timelines/:project/:timeline/suspend-state   body: SuspendState binary (docs/formats/start-bundle.md)   (T)
 *                                                            with LSN 0: of a running compute, files that a start after a crash may take
 *    PUT    /v1/timelines/:project/:timeline/boot-set        body: boot set binary (docs/formats/start-bundle.md)       (T)
 *    POST   /v1/timelines/:project/:timeline/checkpoint      flush the open layer and publish the index -> PageTimelineStatus
 *    GET    /healthz                                 -> PageserverHealth                          (no token)
 *
 *  Whole projects, for the Manager: placement.ts.
 *  Pages and the start bundle travel on `pagePort` in the binary page service protocol: page-service.ts. */
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { HttpClient, type HttpClientOptions } from './http-client.ts';
import type { AttachedProject, ProjectReadiness } from './placement.ts';
import type { PeerAddress } from './safekeeper.ts';

export interface TemplateInfo {
  readonly major: number;
  readonly endLsn: string;
  readonly prevRecordLsn: string;
  readonly layerBytes: number;
}

export interface CreatePageTimeline {
  readonly pgVersion: number;
  /** Decimal; the new cluster's own identifier. */
  readonly systemId: string;
  readonly safekeepers: readonly PeerAddress[];
  /** Lineage of the WAL to follow (docs/protocols/wal-recovery.md); when it answers nothing of another one is ingested any more. Absent: as before. */
  readonly walLineage?: number;
  /** Where that one begins, once that is decided: a state of an older lineage that goes beyond is not of this timeline's history. */
  readonly walLineageStart?: string;
}

export interface PageTimelineStatus {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly pgVersion: number;
  readonly systemId: string;
  readonly startLsn: string;
  /** xl_prev of the record at startLsn. */
  readonly startPrevRecordLsn: string;
  /** Ingested and readable up to here. */
  readonly lastRecordLsn: string;
  /** In layers that survive kill -9; WAL before it is not needed any more. */
  readonly diskConsistentLsn: string;
  /** Start of the last record before lastRecordLsn. */
  readonly prevRecordLsn?: string;
  /** Everything up to here is in the object store, under a generation that was confirmed afterwards; absent without a store. */
  readonly remoteConsistentLsn?: string;
  readonly walLineage?: number;
  readonly logicalSizeBytes: number;
  /** LOCKED: the project's key may not be used; everything else of the status is unknown then. */
  readonly state: 'ACTIVE' | 'BROKEN' | 'LOCKED';
  readonly error: string | null;
  readonly layers: number;
}

/** As far as the choice of a place for a new project needs it. */
export interface PageserverHealth {
  /** Absent while it is not known. */
  readonly disk?: {
    readonly capacityBytes: number;
    /** No WAL is ingested until there is room again. */
    readonly full: boolean;
  };
}

export class PageserverClient {
  readonly http: HttpClient;
  constructor(options: HttpClientOptions) {
    this.http = new HttpClient(options);
  }

  #path(p: ProjectUid, t: TimelineId, verb = ''): string {
    return `/v1/timelines/${p}/${t}${verb}`;
  }
  health(timeoutMs: number): Promise<PageserverHealth> {
    return this.http.call('GET', '/healthz', undefined, { timeoutMs });
  }
  template(major: number): Promise<TemplateInfo> {
    return this.http.call('GET', `/v1/templates/${major}`);
  }
  create(p: ProjectUid, t: TimelineId, body: CreatePageTimeline): Promise<PageTimelineStatus> {
    return this.http.call('PUT', this.#path(p, t), body);
  }
  status(p: ProjectUid, t: TimelineId): Promise<PageTimelineStatus> {
    return this.http.call('GET', this.#path(p, t), undefined, { timeoutMs: 5_000 });
  }
  remove(p: ProjectUid, t: TimelineId): Promise<void> {
    return this.http.call('DELETE', this.#path(p, t));
  }
  takeOver(given: AttachedProject, timeoutMs: number): Promise<ProjectReadiness> {
    return this.http.call('PUT', `/v1/projects/${given.project}`, given, { timeoutMs });
  }
  readiness(p: ProjectUid): Promise<ProjectReadiness> {
    return this.http.call('GET', `/v1/projects/${p}`, undefined, { timeoutMs: 2_000 });
  }
  upload(p: ProjectUid, timeoutMs: number): Promise<void> {
    return this.http.call('POST', `/v1/projects/${p}/upload`, {}, { timeoutMs });
  }
  letGo(p: ProjectUid): Promise<void> {
    return this.http.call('DELETE', `/v1/projects/${p}`, undefined, { timeoutMs: 5_000 });
  }
  checkpoint(p: ProjectUid, t: TimelineId): Promise<PageTimelineStatus> {
    return this.http.call('POST', this.#path(p, t, '/checkpoint'), {});
  }
}
