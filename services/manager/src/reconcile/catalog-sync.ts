/** Carries pending roles and databases out on the running compute, one at a time, and finishes their operations.
 *  What was carried out is only observed here, and would be found out again, so it does not wait for the catalog's copy.
 *  A change the server refuses is undone: a new row goes away again, a dropped one comes back, and the operation has the reason. */
import type { ComputeChange } from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue, errorMessage, isCode } from '@lakebase/base';
import type { TimelineId } from '@lakebase/ids';
import { type FarEnd, isTransient } from '../far-end.ts';
import type { Database } from '../metadata/database.ts';
import { ApiError, publicError } from '../model/api-error.ts';
import * as catalog from '../store/catalog.ts';
import { completeTarget } from '../store/operations.ts';

interface Item {
  readonly kind: catalog.CatalogKind;
  readonly id: string;
  readonly name: string;
  readonly revision: number;
  readonly isNew: boolean;
  readonly deleting: boolean;
  readonly change: ComputeChange;
}

export const catalogTarget = (kind: catalog.CatalogKind, timeline: TimelineId, id: string): string => `${kind}:${timeline}/${id}`;

export class CatalogSync {
  readonly #db: Database;
  readonly #far: FarEnd;
  readonly #log: Logger;
  readonly #queues = new Map<TimelineId, SerialQueue>();

  constructor(db: Database, far: FarEnd, log: Logger) {
    this.#db = db;
    this.#far = far;
    this.#log = log;
  }

  /** Everything pending on this branch. Throws when the compute went away in the middle; the rest stays pending. */
  sync(timeline: TimelineId, computeId: string): Promise<void> {
    const queue = this.#queues.get(timeline) ?? new SerialQueue();
    this.#queues.set(timeline, queue);
    return queue.run(() => this.#sync(timeline, computeId));
  }

  /** Finishes the operations of changes that wait for the next start: they are recorded, and no compute runs. */
  async defer(timeline: TimelineId, kind: catalog.CatalogKind, id: string): Promise<void> {
    await completeTarget(this.#db.local, catalogTarget(kind, timeline, id), { response: {} });
  }

  async #sync(timeline: TimelineId, computeId: string): Promise<void> {
    for (const item of items(await catalog.pendingCatalog(this.#db, timeline))) {
      try {
        await this.#far.computeHost.change(computeId, item.change);
      } catch (error) {
        if (isTransient(error) || isCode(error, 'NOT_FOUND') || isCode(error, 'CONFLICT')) throw error;
        await this.#refused(timeline, item, error);
        continue;
      }
      await this.#db.local.transaction(async (tx) => {
        if (item.deleting) {
          await catalog.deleteCatalogRow(tx, item.kind, timeline, item.id);
          if (item.kind === 'role') await catalog.forgetSecret(tx, timeline, item.name);
        } else await catalog.setApplied(tx, item.kind, timeline, item.id, item.revision);
        await completeTarget(tx, catalogTarget(item.kind, timeline, item.id), { response: {} });
      });
    }
    await this.#finishStrays(timeline);
  }

  async #refused(timeline: TimelineId, item: Item, error: unknown): Promise<void> {
    this.#log.warn({ timeline, kind: item.kind, name: item.name, err: errorMessage(error) }, 'the server refused a change of its catalog');
    const reason = publicError(new ApiError('INVALID_ARGUMENT', 'BAD_REQUEST', errorMessage(error)));
    await this.#db.local.transaction(async (tx) => {
      if (item.deleting) await catalog.setDeleting(tx, item.kind, timeline, item.id, false);
      else if (item.isNew) await catalog.deleteCatalogRow(tx, item.kind, timeline, item.id);
      else await catalog.setApplied(tx, item.kind, timeline, item.id, item.revision);
      await completeTarget(tx, catalogTarget(item.kind, timeline, item.id), { error: reason });
    });
  }

  /** Operations whose change was carried out by a start, or before a kill that came between the change and the record. */
  async #finishStrays(timeline: TimelineId): Promise<void> {
    const rows = await this.#db.query<{ id: string; kind: string; target: string }>(
      `SELECT id, kind, target FROM operations WHERE NOT done AND (target LIKE 'role:' || $1 || '/%' OR target LIKE 'database:' || $1 || '/%')`,
      [timeline],
    );
    if (rows.length === 0) return;
    const { roles, databases } = await catalog.pendingCatalog(this.#db, timeline);
    const open = new Set([
      ...roles.map((r) => catalogTarget('role', timeline, r.role_id)),
      ...databases.map((d) => catalogTarget('database', timeline, d.database_id)),
    ]);
    for (const row of rows) if (!open.has(row.target)) await completeTarget(this.#db.local, row.target, { response: {} });
  }
}

/** Roles before the databases they own; dropped databases before dropped owners. */
function items(pending: catalog.Pending): Item[] {
  const roles = pending.roles.map(
    (r): Item => ({
      kind: 'role',
      id: r.role_id,
      name: r.postgres_role,
      revision: r.revision,
      isNew: r.applied_revision === 0,
      deleting: r.deleting,
      change: r.deleting ? { droppedRoles: [r.postgres_role] } : { roles: [catalog.roleSpec(r)] },
    }),
  );
  const databases = pending.databases.map(
    (d): Item => ({
      kind: 'database',
      id: d.database_id,
      name: d.postgres_database,
      revision: d.revision,
      isNew: d.applied_revision === 0,
      deleting: d.deleting,
      change: d.deleting ? { droppedDatabases: [d.postgres_database] } : { databases: [catalog.databaseSpec(d)] },
    }),
  );
  return [
    ...roles.filter((i) => !i.deleting),
    ...databases.filter((i) => !i.deleting),
    ...databases.filter((i) => i.deleting),
    ...roles.filter((i) => i.deleting),
  ];
}

/** What a caller that waits for a change is told when no compute could be reached. */
export const cannotApply = (error: unknown): LakebaseError =>
  new LakebaseError(
    'UNAVAILABLE',
    `the change is recorded and is carried out as soon as the compute can be reached: ${errorMessage(error)}`,
  );
