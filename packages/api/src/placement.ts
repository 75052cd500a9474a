/** Which pageserver has a project, and under which generation it may write (docs/protocols/generations.md). The Manager serves the first four,
 *  a pageserver the others. Token: `service`.
 *
 *    POST /internal/v1/pageservers/:id/attach      AttachRequest -> AttachAnswer
 *    POST /internal/v1/pageservers/:id/validate    ValidateRequest -> ValidateAnswer
 *    GET  /internal/v1/projects/:project/published -> PublishedAnswer
 *    POST /internal/v1/projects/:project/place     PlaceRequest -> Placement                  moves the project; answers when the target serves it
 *
 *    PUT    /v1/projects/:project                  AttachedProject -> ProjectReadiness        take it over: attach, catch up
 *    GET    /v1/projects/:project                  -> ProjectReadiness
 *    POST   /v1/projects/:project/upload           -> {}                                      everything ingested is in the object store when it answers
 *    DELETE /v1/projects/:project                  let go of it: another pageserver serves it. Removes local files, nothing in the object store */
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { HttpClient, type HttpClientOptions } from './http-client.ts';
import type { PeerAddress } from './safekeeper.ts';

export interface AttachRequest {
  /** `seen`: the highest generation of the project that this pageserver knows of, wherever from; the Manager never gives out one that is not above it. */
  readonly projects: readonly { readonly project: ProjectUid; readonly seen: number }[];
}
/** Where an index is in the history of its timeline: by generation, then by version. Zeros: none was put. */
export interface IndexPlace {
  readonly generation: number;
  readonly version: number;
}
export const NO_INDEX: IndexPlace = { generation: 0, version: 0 };
export const compareIndexPlaces = (a: IndexPlace, b: IndexPlace): number => a.generation - b.generation || a.version - b.version;

export interface PublishedTimeline {
  readonly timeline: TimelineId;
  /** Of the newest index that is known to have been put: the store has this one or a newer one. */
  readonly published: IndexPlace;
}
export interface PublishedAnswer {
  readonly timelines: readonly PublishedTimeline[];
}
export interface AttachedTimeline extends PublishedTimeline {
  readonly safekeepers: readonly PeerAddress[];
  /** Somebody uses it now. */
  readonly active?: boolean;
}
export interface AttachedProject {
  readonly project: ProjectUid;
  readonly generation: number;
  readonly timelines: readonly AttachedTimeline[];
}
/** Where the project is, as the Manager sees it. `superseded`: another pageserver has the newest generation and is catching up, reads stay here;
 *  `moved`: another one serves it; `unknown`: no such project (an old metadata database, perhaps: nothing is removed because of it). */
export interface AttachAnswer {
  readonly attached: readonly AttachedProject[];
  readonly superseded: readonly ProjectUid[];
  readonly moved: readonly ProjectUid[];
  readonly unknown: readonly ProjectUid[];
}
export interface TimelineSize {
  readonly timeline: TimelineId;
  /** Of all layers that its index names, as they are stored: compressed and sealed, history included. */
  readonly layerBytes: number;
  /** Of all relations as Postgres sees them now: blocks of every fork. */
  readonly logicalBytes: number;
}
/** The index of a timeline that was put last, under the generation that is asked about. */
export interface PublishedVersion {
  readonly timeline: TimelineId;
  readonly version: number;
}
export interface ValidateRequest {
  readonly projects: readonly {
    readonly project: ProjectUid;
    readonly generation: number;
    readonly published: readonly PublishedVersion[];
    /** Of the project's timelines in memory; of the others, and without this, what was told last holds. */
    readonly sizes?: readonly TimelineSize[];
  }[];
}
export interface ValidateAnswer {
  readonly valid: readonly ProjectUid[];
  readonly superseded: readonly ProjectUid[];
  readonly moved: readonly ProjectUid[];
  readonly unknown: readonly ProjectUid[];
}
export interface PlaceRequest {
  readonly pageserver: string;
}
export interface Placement {
  readonly project: ProjectUid;
  readonly pageserver: string;
  readonly generation: number;
}
export interface ProjectReadiness {
  /** Bytes of committed WAL that are not readable yet, over all timelines in use; null while it is not known. */
  readonly lagBytes: number | null;
}

/** What a pageserver asks the Manager. */
export class PlacementClient {
  readonly http: HttpClient;
  readonly #id: string;
  constructor(id: string, options: HttpClientOptions) {
    this.http = new HttpClient({ timeoutMs: 10_000, ...options });
    this.#id = encodeURIComponent(id);
  }
  attach(body: AttachRequest): Promise<AttachAnswer> {
    return this.http.call('POST', `/internal/v1/pageservers/${this.#id}/attach`, body);
  }
  published(project: ProjectUid): Promise<PublishedAnswer> {
    return this.http.call('GET', `/internal/v1/projects/${project}/published`);
  }
  validate(body: ValidateRequest): Promise<ValidateAnswer> {
    return this.http.call('POST', `/internal/v1/pageservers/${this.#id}/validate`, body);
  }
}
