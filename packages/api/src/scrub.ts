/** Scrubbing: every object and file of the projects is read whole, compared with what names it, and opened frame by frame (docs/operating/scrub.md).
 *  A scrub runs where the keys are, in pageservers and safekeepers; the Manager starts it there and gathers what they say.
 *
 *    POST   /v1/scrubs        ScrubRequest -> ScrubStatus     one at a time: CONFLICT while another runs
 *    GET    /v1/scrubs/:id    -> ScrubStatus                  also of the last ones that ended
 *    DELETE /v1/scrubs/:id    ends it; what it found stays
 *
 *  Token: `service`. */
import type { HttpClient } from './http-client.ts';

export interface ScrubRequest {
  readonly id: string;
  /** Only this one; null: all. */
  readonly project: string | null;
  /** Replace what is damaged or missing by a good copy, and delete orphans. */
  readonly repair: boolean;
  /** Projects the Manager knows; objects of others are reported. Null: not looked for. */
  readonly knownProjects: readonly string[] | null;
  /** Read at most so much in a second; null: as configured. */
  readonly bytesPerSecond: number | null;
}

export const SCRUB_FINDINGS = {
  damaged: 'its bytes are not those that were written',
  missing: 'it is named and not there',
  orphan: 'nothing names it any more',
  unknown: 'it belongs to a project or timeline that the Manager does not know; never deleted by a scrub',
  unreadable: 'it could not be read now; scrub again',
} as const;
export type ScrubFindingKind = keyof typeof SCRUB_FINDINGS;

export interface ScrubFinding {
  readonly kind: ScrubFindingKind;
  /** Key in the object store, or path on the disk of the service. */
  readonly name: string;
  readonly where: 'store' | 'disk';
  readonly project: string;
  readonly timeline: string;
  readonly detail: string;
  /** What was done about it; `left`: nothing, it is as it was. */
  readonly outcome: 'left' | 'repaired' | 'deleted';
}

export interface ScrubStatus {
  readonly id: string;
  readonly service: string;
  readonly state: 'RUNNING' | 'DONE' | 'FAILED';
  readonly error: string | null;
  /** ISO 8601. */
  readonly startedAt: string;
  readonly finishedAt: string | null;
  readonly timelines: { readonly done: number; readonly total: number };
  /** Locked by their key, or not attached for another reason: not looked at. */
  readonly skipped: readonly string[];
  readonly objects: number;
  readonly bytes: number;
  readonly findings: readonly ScrubFinding[];
  /** More than are listed. */
  readonly findingsOmitted: number;
  /** Findings that are as they were, also of those that are not listed. */
  readonly left: number;
}

export class ScrubClient {
  readonly http: HttpClient;
  constructor(http: HttpClient) {
    this.http = http;
  }
  start(body: ScrubRequest): Promise<ScrubStatus> {
    return this.http.call('POST', '/v1/scrubs', body);
  }
  status(id: string): Promise<ScrubStatus> {
    return this.http.call('GET', `/v1/scrubs/${encodeURIComponent(id)}`);
  }
  end(id: string): Promise<void> {
    return this.http.call('DELETE', `/v1/scrubs/${encodeURIComponent(id)}`);
  }
}

/** What the Manager says of one scrub of the whole installation: `/api/2.0/lakebase/scrubs`. A service that cannot be asked is FAILED. */
export interface ScrubSummary {
  readonly id: string;
  readonly state: 'RUNNING' | 'DONE' | 'FAILED';
  readonly services: readonly ScrubStatus[];
}
