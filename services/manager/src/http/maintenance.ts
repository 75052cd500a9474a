/** An administrator's routes to what is stored: scrubs of the whole installation, and files, objects and pages shown for a person. The Manager keeps nothing
 *  of them: it hands them to the services that have files and keys, and gathers what these say (packages/api/src/scrub.ts, inspect.ts). */
import { randomUUID } from 'node:crypto';
import { HttpClient, type InspectReport, ScrubClient, type ScrubRequest, type ScrubStatus, type ScrubSummary } from '@lakebase/api';
import { LakebaseError, errorMessage, isCode } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { ApiError } from '../model/api-error.ts';
import { branchByPath, projectById } from '../store/projects.ts';
import type { ApiContext } from './api-context.ts';

const API = '/api/2.0/lakebase';
/** Where pageservers keep the templates' objects, as a project. */
const TEMPLATES = '0'.repeat(32);
const INSPECT_MS_MAX = 120_000;

const name = Type.String({ minLength: 1, maxLength: 200 });
const uid = Type.String({ pattern: '^[0-9a-f]{32}$' });
const lsn = Type.String({ pattern: '^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$' });
const u32 = Type.Integer({ minimum: 0, maximum: 0xffff_ffff });
const limit = Type.Optional(Type.Integer({ minimum: 1, maximum: 10_000 }));
const scrubBody = Type.Object(
  {
    project: Type.Optional(name),
    repair: Type.Optional(Type.Boolean()),
    bytes_per_second: Type.Optional(Type.Integer({ minimum: 1_024 })),
  },
  { additionalProperties: false },
);
/** By names, or by the identities that are in a path. */
const place = {
  project: Type.Optional(name),
  branch: Type.Optional(name),
  project_uid: Type.Optional(uid),
  timeline: Type.Optional(uid),
};
const inspectBody = Type.Object(
  {
    ...place,
    service: name,
    name: Type.String({ maxLength: 200 }),
    from_store: Type.Optional(Type.Boolean()),
    limit,
    frame: Type.Optional(Type.Integer({ minimum: 0 })),
    whole: Type.Optional(Type.Boolean()),
    from: Type.Optional(lsn),
  },
  { additionalProperties: false },
);
const pageBody = Type.Object(
  { ...place, spc: u32, db: u32, rel: u32, fork: Type.Integer({ minimum: 0, maximum: 3 }), block: u32, lsn: Type.Optional(lsn), limit },
  { additionalProperties: false },
);

interface Place {
  readonly project?: string;
  readonly branch?: string;
  readonly project_uid?: string;
  readonly timeline?: string;
}
interface Service {
  readonly id: string;
  /** It may not be running, and that is no fault. */
  readonly spare: boolean;
  readonly http: HttpClient;
}

export function maintenanceRoutes(app: FastifyInstance, c: ApiContext): void {
  const hidden = (body?: unknown) => ({ schema: { hide: true, ...(body === undefined ? {} : { body }) } });
  const services = (): Service[] => {
    const { pageserver, morePageservers, safekeepers, spareSafekeepers } = c.config;
    const all = [
      ...[pageserver, ...morePageservers, ...safekeepers].map((a) => ({ ...a, spare: false })),
      ...spareSafekeepers.map((a) => ({ ...a, spare: true })),
    ];
    return all.map(({ id, httpUrl, spare }) => ({
      id,
      spare,
      http: new HttpClient({ baseUrl: httpUrl, token: c.serviceToken }),
    }));
  };

  app.post(`${API}/scrubs`, hidden(scrubBody), async (request): Promise<ScrubSummary> => {
    requireAdmin(request);
    const body = request.body as { project?: string; repair?: boolean; bytes_per_second?: number };
    const project = body.project === undefined ? null : (await requireProject(c, request, body.project)).uid;
    const rows = await c.db.query<{ uid: string }>('SELECT uid FROM projects');
    const wanted: ScrubRequest = {
      id: randomUUID(),
      project,
      repair: body.repair === true,
      knownProjects: [TEMPLATES, ...rows.map((r) => r.uid)],
      bytesPerSecond: body.bytes_per_second ?? null,
    };
    const answers = await gather(services(), wanted.id, (s) => new ScrubClient(s.http).start(wanted));
    const refused = answers.find((a) => isCode(a.cause, 'CONFLICT'));
    if (refused === undefined) return summary(wanted.id, answers);
    await Promise.allSettled(services().map((s) => new ScrubClient(s.http).end(wanted.id)));
    throw refused.cause as LakebaseError;
  });

  app.get(`${API}/scrubs/:id`, hidden(), async (request): Promise<ScrubSummary> => {
    requireAdmin(request);
    const { id } = request.params as { id: string };
    const answers = await gather(services(), id, (s) => new ScrubClient(s.http).status(id));
    if (answers.every((a) => a.status === undefined || isCode(a.cause, 'NOT_FOUND')))
      throw new LakebaseError('NOT_FOUND', `no service knows a scrub '${id.slice(0, 80)}'`);
    return summary(id, answers);
  });

  app.delete(`${API}/scrubs/:id`, hidden(), async (request) => {
    requireAdmin(request);
    await gather(services(), '', (s) => new ScrubClient(s.http).end((request.params as { id: string }).id).then(() => undefined));
    return {};
  });

  app.post(`${API}/inspect`, hidden(inspectBody), async (request): Promise<InspectReport> => {
    requireAdmin(request);
    const {
      service: wanted,
      from_store: fromStore,
      name: file,
      limit: rows,
      frame,
      whole,
      from,
      ...at
    } = request.body as Place & {
      service: string;
      name: string;
      from_store?: boolean;
      limit?: number;
      frame?: number;
      whole?: boolean;
      from?: string;
    };
    const ids = await timelineOf(c, request, at);
    const service = wanted === 'pageserver' ? await pageserverOf(c, ids.project) : services().find((s) => s.id === wanted);
    if (service === undefined)
      throw new LakebaseError(
        'NOT_FOUND',
        `there is no service ${wanted}; there are ${services()
          .map((s) => s.id)
          .join(', ')}`,
      );
    const body = { ...ids, name: file, fromStore, limit: rows, frame, whole, from };
    return service.http.call('POST', '/v1/inspect', body, { timeoutMs: INSPECT_MS_MAX });
  });

  app.post(`${API}/inspect/page`, hidden(pageBody), async (request): Promise<InspectReport> => {
    requireAdmin(request);
    const {
      spc,
      db,
      rel,
      fork,
      block,
      lsn: at,
      limit: rows,
      ...where
    } = request.body as Place & {
      spc: number;
      db: number;
      rel: number;
      fork: number;
      block: number;
      lsn?: string;
      limit?: number;
    };
    const ids = await timelineOf(c, request, where);
    const { http } = await pageserverOf(c, ids.project);
    return http.call(
      'POST',
      '/v1/inspect/page',
      { ...ids, spc, db, rel, fork, block, lsn: at ?? null, limit: rows },
      { timeoutMs: INSPECT_MS_MAX },
    );
  });
}

function requireAdmin(request: FastifyRequest): void {
  if (!request.accountAdmin)
    throw new ApiError('PERMISSION_DENIED', 'PERMISSION_DENIED', 'only an administrator of the account may look into what is stored');
}

async function requireProject(c: ApiContext, request: FastifyRequest, id: string): Promise<{ uid: ProjectUid }> {
  const row = await projectById(c.db, request.workspace, id);
  if (row === undefined) throw new LakebaseError('NOT_FOUND', `there is no project ${id}`);
  return row;
}

async function timelineOf(c: ApiContext, request: FastifyRequest, p: Place): Promise<{ project: ProjectUid; timeline: TimelineId }> {
  if (p.project_uid !== undefined && p.timeline !== undefined)
    return { project: p.project_uid as ProjectUid, timeline: p.timeline as TimelineId };
  if (p.project === undefined || p.branch === undefined)
    throw new LakebaseError('INVALID_ARGUMENT', 'name project and branch, or project_uid and timeline');
  await requireProject(c, request, p.project);
  const row = await branchByPath(c.db, request.workspace, p.project, p.branch);
  if (row === undefined) throw new LakebaseError('NOT_FOUND', `project ${p.project} has no branch ${p.branch}`);
  return { project: row.project_uid, timeline: row.timeline_id };
}

async function pageserverOf(c: ApiContext, project: ProjectUid): Promise<Service> {
  const { id, address } = await c.placements.serving(project);
  return { id, spare: false, http: new HttpClient({ baseUrl: address.httpUrl, token: c.serviceToken }) };
}

interface Answer {
  readonly service: string;
  readonly status: ScrubStatus | undefined;
  readonly cause: unknown;
}

function gather(services: readonly Service[], id: string, ask: (s: Service) => Promise<ScrubStatus | undefined>): Promise<Answer[]> {
  return Promise.all(
    services.map(async (s): Promise<Answer> => {
      try {
        return { service: s.id, status: await ask(s), cause: undefined };
      } catch (cause) {
        const absent = s.spare && isCode(cause, 'UNAVAILABLE');
        return { service: s.id, status: absent ? undefined : failed(id, s.id, cause), cause: absent ? undefined : cause };
      }
    }),
  );
}

function failed(id: string, service: string, cause: unknown): ScrubStatus {
  const now = new Date().toISOString();
  return {
    id,
    service,
    state: 'FAILED',
    error: errorMessage(cause),
    startedAt: now,
    finishedAt: now,
    timelines: { done: 0, total: 0 },
    skipped: [],
    objects: 0,
    bytes: 0,
    findings: [],
    findingsOmitted: 0,
    left: 0,
  };
}

function summary(id: string, answers: readonly Answer[]): ScrubSummary {
  const services = answers.flatMap((a) => (a.status === undefined ? [] : [a.status]));
  const states = services.map((s) => s.state);
  return { id, state: states.includes('RUNNING') ? 'RUNNING' : states.includes('FAILED') ? 'FAILED' : 'DONE', services };
}
