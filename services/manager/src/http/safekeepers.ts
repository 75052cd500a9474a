/** Safekeepers for the operator: which there are, what they hold, replacing one for good (docs/protocols/membership.md), and bringing WAL back from the
 *  object store when too many are gone (docs/protocols/wal-recovery.md). */
import { LakebaseError } from '@lakebase/base';
import { describeConfiguration } from '@lakebase/wal-quorum';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { ApiError } from '../model/api-error.ts';
import { toConfiguration } from '../reconcile/membership.ts';
import { evictNode, nodeRows, recoveries, unsettled } from '../store/membership.ts';
import { branchesOf, projectById } from '../store/projects.ts';
import type { ApiContext } from './api-context.ts';

const hidden = { schema: { hide: true } };
const recoverBody = Type.Object({ branch: Type.Optional(Type.String({ maxLength: 63 })), accept_loss: Type.Optional(Type.Boolean()) });

export function safekeeperRoutes(app: FastifyInstance, c: ApiContext): void {
  const { far, membership } = c.projects;
  const admin = (request: FastifyRequest): void => {
    if (!request.accountAdmin)
      throw new ApiError('PERMISSION_DENIED', 'PERMISSION_DENIED', 'only an administrator of the account may do this');
  };

  app.get('/api/2.0/lakebase/safekeepers', hidden, async (request) => {
    admin(request);
    const rows = new Map((await nodeRows(c.db)).map((row) => [row.id, row]));
    const changes = await unsettled(c.db);
    return {
      safekeepers: far.nodes.map(({ id, httpUrl }) => {
        const row = rows.get(id);
        return {
          id,
          url: httpUrl,
          state: membership.present.has(id) ? 'UP' : 'DOWN',
          spare: !far.safekeepers.some((s) => s.id === id),
          disk: row?.incarnation ?? null,
          timelines: row?.members ?? 0,
          lost: row?.lost ?? 0,
          leaving: row?.leaving ?? 0,
        };
      }),
      changes: changes.map((row) => ({
        project: row.project_uid,
        timeline: row.timeline_id,
        configuration: describeConfiguration(toConfiguration(row)),
        problem: membership.problems.get(row.timeline_id) ?? null,
      })),
    };
  });

  app.get('/api/2.0/lakebase/wal-recoveries', hidden, async (request) => {
    admin(request);
    const rows = await recoveries(c.db);
    return { recoveries: rows.map(({ entry, ...branch }) => ({ ...branch, ...entry })) };
  });

  // A dry run unless the loss is accepted.
  app.post('/api/2.0/lakebase/projects/:project/recover-wal', { schema: { hide: true, body: recoverBody } }, async (request) => {
    admin(request);
    const name = (request.params as { project: string }).project;
    const { branch: only, accept_loss: acceptLoss = false } = request.body as { branch?: string; accept_loss?: boolean };
    const project = await projectById(c.db, request.workspace, name);
    if (project === undefined) throw new LakebaseError('NOT_FOUND', `there is no project ${name}`);
    const branches = (await branchesOf(c.db, project.uid)).filter((b) => only === undefined || b.branch_id === only);
    if (branches.length === 0) throw new LakebaseError('NOT_FOUND', `there is no branch ${only ?? ''} of project ${name}`);
    const reports: unknown[] = [];
    for (const b of branches)
      reports.push({ branch: b.branch_id, ...(await membership.recoverWal(b.timeline_id, c.config.adminUser, acceptLoss)) });
    return { branches: reports };
  });

  app.post('/api/2.0/lakebase/safekeepers/:id/replace', hidden, async (request) => {
    admin(request);
    const { id } = request.params as { id: string };
    if (!far.nodes.some((n) => n.id === id)) throw new LakebaseError('NOT_FOUND', `there is no safekeeper ${id}`);
    const others = far.nodes.filter((n) => n.id !== id && membership.present.has(n.id));
    const needed = far.safekeepers.length;
    if (others.length < needed)
      throw new LakebaseError(
        'CONFLICT',
        `no other safekeeper can take the place of ${id}: ${others.length} others answer and ${needed} are needed; ` +
          'a safekeeper that only lost its disk needs nothing but to be started again',
      );
    return { id, members: await evictNode(c.db, id) };
  });
}
