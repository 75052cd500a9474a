/** What the account does with the keys of projects: look, move to another key, rotate, re-wrap, check; the audit log and shred reports.
 *  Workspace users see the state in `status.encryption` of their projects and can change none of it. */
import { type ProjectKeyStatus, type ReEncryptionStatus, keyUsable } from '@lakebase/api';
import { isCode } from '@lakebase/base';
import type { FastifyRequest } from 'fastify';
import { Readable } from 'node:stream';
import { invalid, notFound } from '../model/api-error.ts';
import { bindingOf } from '../model/key-info.ts';
import * as accounts from '../store/accounts.ts';
import { type ProjectRow, projectById } from '../store/projects.ts';
import { ACCOUNTS, accountOf, bodyOf, requireBindable, requireKeyById, requireWorkspace } from './accounts.ts';
import type { ApiContext, Routes } from './api-context.ts';
import { briefEncryption, publicState } from './views.ts';

type Json = Record<string, unknown>;
const GRACE_SECONDS_MAX = 30 * 86_400;

export const encryptionRoutes: Routes = (app, c) => {
  const schema = { schema: { tags: ['encryption'] } };
  const ENCRYPTION = `${ACCOUNTS}/workspaces/:workspace/projects/:project/encryption`;

  app.get(ENCRYPTION, schema, async (request) => encryptionView(await statusOf(c, (await target(c, request)).project)));
  /** `customer_managed_key_id` moves the project to another key, or from and to the installation's own: KEKs are wrapped again, no data is
   *  touched. `grace_seconds`: how long its KMS may be unreachable. */
  app.patch(ENCRYPTION, schema, async (request) => {
    const { project, workspace } = await target(c, request);
    const body = bodyOf(request);
    const grace = readGrace(body['grace_seconds']);
    if (grace === undefined && !('customer_managed_key_id' in body))
      throw invalid("Field 'customer_managed_key_id' (a key's id, or null for the installation's own) or 'grace_seconds' is required");
    let status: ProjectKeyStatus | undefined;
    if ('customer_managed_key_id' in body) {
      const id = body['customer_managed_key_id'];
      const key = id === null ? undefined : await requireKeyById(c, accountOf(request), id);
      if (key !== undefined) await requireBindable(c, request, key, workspace.pricing_tier);
      // The key manager first: it is the truth; a row left behind by a kill is set right by repeating the call.
      status = await c.keys.rebind(project.uid, bindingOf(c.secret, key, request.identity, accountOf(request)));
      await accounts.setProjectKey(c.db, project.uid, key?.id ?? null);
    }
    if (grace !== undefined) status = await c.keys.setGrace(project.uid, grace, request.identity);
    return encryptionView(status as ProjectKeyStatus);
  });
  const action = (verb: string, run: (project: ProjectRow, actor: string) => Promise<ProjectKeyStatus>): void => {
    app.post(`${ENCRYPTION}/${verb}`, schema, async (request) =>
      encryptionView(await run((await target(c, request)).project, request.identity)),
    );
  };
  action('rotate', (p, actor) => c.keys.rotate(p.uid, actor));
  action('rewrap', (p, actor) => c.keys.rewrapKek(p.uid, actor));
  /** A new KEK, and in the background every object from before it under a new data key: after a move to another key, or a suspicion. */
  action('re-encrypt', (p, actor) => c.keys.reEncrypt(p.uid, actor));
  action('check', (p) => c.keys.probe(p.uid));

  app.get(`${ACCOUNTS}/audit-log`, schema, async (request, reply) => {
    accountOf(request);
    const { after = '0' } = request.query as { after?: string };
    if (!/^[0-9]{1,15}$/.test(after)) throw invalid('after must be a sequence number');
    const answer = await fetch(`${c.keys.http.baseUrl}/v1/audit?after=${after}`, {
      headers: { authorization: `Bearer ${c.serviceToken}` },
      signal: AbortSignal.timeout(60_000),
    });
    if (!answer.ok || answer.body === null) throw notFound('the audit log cannot be read now');
    return reply.type('application/x-ndjson').send(Readable.fromWeb(answer.body as Parameters<typeof Readable.fromWeb>[0]));
  });
  app.get(`${ACCOUNTS}/shred-reports`, schema, async (request) => ({
    shred_reports: (await accounts.listShredReports(c.db, accountOf(request))).map((r) => ({ project_id: r.project_id, ...r.report })),
  }));
};

function readGrace(value: unknown): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > GRACE_SECONDS_MAX)
    throw invalid(`Field grace_seconds must be a whole number of seconds from 0 to ${GRACE_SECONDS_MAX}`);
  return value;
}

async function target(c: ApiContext, request: FastifyRequest): Promise<{ project: ProjectRow; workspace: accounts.WorkspaceRow }> {
  const workspace = await requireWorkspace(c, request);
  const project = await projectById(c.db, workspace.id, (request.params as { project: string }).project);
  if (project === undefined) throw notFound('project id not found');
  return { project, workspace };
}

async function statusOf(c: ApiContext, project: ProjectRow): Promise<ProjectKeyStatus> {
  try {
    return await c.keys.status(project.uid);
  } catch (error) {
    if (isCode(error, 'NOT_FOUND')) throw notFound('the project has no key yet: it is still being created');
    throw error;
  }
}

/** With versions, last check and history where the key manager answers; what is known without it otherwise. */
export async function fullEncryption(c: Pick<ApiContext, 'keys' | 'keyStates'>, p: ProjectRow): Promise<Json> {
  try {
    return encryptionView(await c.keys.status(p.uid));
  } catch {
    return briefEncryption(c, p);
  }
}

/** `status.encryption` of a project, and the answer of the routes above. */
export function encryptionView(s: ProjectKeyStatus): Json {
  const current = s.keks.find((k) => k.state === 'CURRENT');
  return {
    customer_managed: s.configurationId !== null,
    ...(s.configurationId === null ? {} : { customer_managed_key_id: s.configurationId }),
    provider: s.provider,
    key: s.configurationId === null ? 'installation root key' : s.key,
    ...(current === undefined ? {} : { key_version: current.keyVersion, kek_version: current.version }),
    state: publicState(s.state),
    serving: keyUsable(s.state),
    ...(s.reason === '' ? {} : { reason: s.reason }),
    ...(s.lastCheck === null ? {} : { last_check: s.lastCheck }),
    ...(s.lastSuccess === null ? {} : { last_success: s.lastSuccess }),
    grace_seconds: s.graceSeconds,
    keks: s.keks.map((k) => ({
      version: k.version,
      create_time: k.createTime,
      key_id: k.keyId,
      key_version: k.keyVersion,
      state: k.state,
    })),
    ...(s.reEncryption === undefined ? {} : { re_encryption: reEncryptionView(s.reEncryption) }),
    history: s.history.map((h) => ({ ...h, state: publicState(h.state), serving: keyUsable(h.state) })),
  };
}

/** Progress of rewriting old objects: totals, and by storage service. */
function reEncryptionView(r: ReEncryptionStatus): Json {
  const services = Object.entries(r.services);
  const sum = (of: (s: ReEncryptionStatus['services'][string]) => number): number => services.reduce((n, [, s]) => n + of(s), 0);
  return {
    state: r.finishTime === null ? 'RUNNING' : 'DONE',
    kek_version: r.below,
    requested_by: r.actor,
    request_time: r.requestTime,
    ...(r.finishTime === null ? {} : { finish_time: r.finishTime }),
    objects_done: sum((s) => s.done),
    objects_total: sum((s) => s.total),
    bytes_written: sum((s) => s.bytes),
    waiting_for: r.waitingFor,
    services: services.map(([service, s]) => ({
      service,
      objects_done: s.done,
      objects_total: s.total,
      bytes_written: s.bytes,
      finished: s.finished,
      report_time: s.time,
    })),
  };
}
