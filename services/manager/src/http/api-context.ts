/** What the routes of the public API share: lookups that answer 404 in one wording, masks, pages, operations. */
import type { KeyManagerClient } from '@lakebase/api';
import type { Logger } from '@lakebase/base';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { ManagerConfig } from '../config.ts';
import type { Credentials } from '../credentials.ts';
import type { Database } from '../metadata/database.ts';
import { invalid, notFound } from '../model/api-error.ts';
import type { Endpoints } from '../reconcile/endpoints.ts';
import type { KeyStates } from '../reconcile/key-states.ts';
import type { Placements } from '../reconcile/placements.ts';
import type { ProjectReconciler } from '../reconcile/project-reconciler.ts';
import * as catalog from '../store/catalog.ts';
import { type EndpointRow, endpointById } from '../store/endpoints.ts';
import { type BranchRow, type ProjectRow, branchByPath, projectById } from '../store/projects.ts';
import { operationViewById, type ViewContext } from './views.ts';

export const API = '/api/2.0/postgres';

export interface ApiContext extends ViewContext {
  readonly db: Database;
  readonly config: ManagerConfig;
  readonly log: Logger;
  readonly endpoints: Endpoints;
  readonly projects: ProjectReconciler;
  readonly credentials: Credentials;
  readonly keys: KeyManagerClient;
  readonly keyStates: KeyStates;
  readonly placements: Placements;
  /** The installation's secret, hex. */
  readonly secret: string;
  readonly serviceToken: string;
  /** The context of the workspace the request speaks for. */
  in(request: FastifyRequest): ApiContext;
}
export type Routes = (app: FastifyInstance, c: ApiContext) => void;

export interface BranchParams {
  readonly project: string;
  readonly branch: string;
}
export type ChildParams = BranchParams & { readonly id: string };

export async function requireProject(c: ApiContext, id: string): Promise<ProjectRow> {
  const row = await projectById(c.db, c.workspace, id);
  if (row === undefined) throw notFound('project id not found');
  return row;
}
export async function requireBranch(c: ApiContext, p: BranchParams): Promise<BranchRow> {
  await requireProject(c, p.project);
  const row = await branchByPath(c.db, c.workspace, p.project, p.branch);
  if (row === undefined) throw notFound('branch id not found');
  return row;
}
export async function requireEndpoint(c: ApiContext, p: ChildParams): Promise<EndpointRow> {
  const row = await endpointById(c.db, (await requireBranch(c, p)).timeline_id, p.id);
  if (row === undefined) throw notFound('endpoint id not found');
  return row;
}
export async function requireRole(c: ApiContext, p: ChildParams): Promise<catalog.RoleRow> {
  const row = await catalog.roleById(c.db, (await requireBranch(c, p)).timeline_id, p.id);
  if (row === undefined) throw notFound(`role not found; role_id:${JSON.stringify(p.id)}`);
  return row;
}
export async function requireDatabase(c: ApiContext, p: ChildParams): Promise<catalog.DatabaseRow> {
  const row = await catalog.databaseById(c.db, (await requireBranch(c, p)).timeline_id, p.id);
  if (row === undefined) throw notFound(`database not found; database_id:${JSON.stringify(p.id)}`);
  return row;
}

/** Which spec fields a PATCH means: those of `update_mask`, else those present in the body. Unknown paths are refused. */
export function maskedFields(request: FastifyRequest, spec: object, known: readonly string[]): Set<string> {
  const mask = (request.query as { update_mask?: string }).update_mask;
  const fields = new Set<string>();
  if (mask === undefined || mask === '*' || mask === 'spec') {
    for (const key of Object.keys(spec)) fields.add(key);
    return fields;
  }
  for (const path of mask.split(',').map((p) => p.trim())) {
    const field = path.startsWith('spec.') ? path.slice(5) : path;
    const top = field.split('.')[0] as string;
    if (!path.startsWith('spec.') || !known.includes(top)) throw invalid(`Unknown field path in update_mask: '${path.slice(0, 100)}'`);
    fields.add(top);
  }
  return fields;
}

/** Lists are small (limits of 500 and 1000): a page is cut from the whole list; the token is the last name of the page before. */
export function page<T>(request: FastifyRequest, items: readonly T[], name: (item: T) => string): { items: T[]; next_page_token?: string } {
  const { page_size = 0, page_token } = request.query as { page_size?: number; page_token?: string };
  let from = 0;
  if (page_token !== undefined && page_token !== '') {
    const last = Buffer.from(page_token, 'base64url').toString();
    const at = items.findIndex((item) => name(item) === last);
    if (at < 0) throw invalid('page_token is not valid');
    from = at + 1;
  }
  const cut = page_size === 0 ? items.slice(from) : items.slice(from, from + page_size);
  const more = from + cut.length < items.length && cut.length > 0;
  return { items: cut, ...(more ? { next_page_token: Buffer.from(name(cut.at(-1) as T)).toString('base64url') } : {}) };
}

/** Answers with the operation as it is now. `extra` joins its metadata in this answer only. */
export async function replyOperation(c: ApiContext, reply: FastifyReply, id: string, extra: Record<string, unknown> = {}): Promise<void> {
  await reply.send(await operationViewById(c, id, extra));
}
