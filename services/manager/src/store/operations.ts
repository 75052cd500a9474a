/** Long-running operations. An operation is done when its target is where it should be; the reconcilers call completeOperations. */
import { randomUUID } from 'node:crypto';
import type { Queryable } from '../metadata/database.ts';
import type { PublicErrorBody } from '../model/api-error.ts';

export interface OperationRow {
  readonly id: string;
  readonly workspace_id: string;
  /** Name of the resource it works on: the prefix of the operation's own name. */
  readonly resource: string;
  readonly kind: OperationKind;
  readonly target: string;
  readonly done: boolean;
  readonly response: Record<string, unknown> | null;
  readonly error: PublicErrorBody | null;
  readonly create_time: Date;
  readonly done_time: Date | null;
}
export type OperationKind =
  | 'CREATE_PROJECT'
  | 'UPDATE_PROJECT'
  | 'DELETE_PROJECT'
  | 'UPDATE_ENDPOINT'
  | 'SUSPEND_ENDPOINT'
  | 'START_ENDPOINT'
  | 'CREATE_ROLE'
  | 'UPDATE_ROLE'
  | 'DELETE_ROLE'
  | 'CREATE_DATABASE'
  | 'UPDATE_DATABASE'
  | 'DELETE_DATABASE';

export const EMPTY_RESPONSE = { '@type': 'type.googleapis.com/google.protobuf.Empty' };

export interface NewOperation {
  readonly workspace: string;
  readonly resource: string;
  readonly kind: OperationKind;
  readonly target: string;
}

export async function insertOperation(q: Queryable, o: NewOperation): Promise<string> {
  const id = randomUUID();
  await q.query('INSERT INTO operations (id, workspace_id, resource, kind, target) VALUES ($1, $2, $3, $4, $5)', [
    id,
    o.workspace,
    o.resource,
    o.kind,
    o.target,
  ]);
  return id;
}

export const operationById = async (q: Queryable, id: string): Promise<OperationRow | undefined> =>
  (await q.query<OperationRow>('SELECT * FROM operations WHERE id = $1', [id]))[0];
export const openOperations = (q: Queryable, target: string): Promise<OperationRow[]> =>
  q.query<OperationRow>('SELECT * FROM operations WHERE target = $1 AND NOT done ORDER BY create_time', [target]);
export const allOpenOperations = (q: Queryable): Promise<OperationRow[]> =>
  q.query<OperationRow>('SELECT * FROM operations WHERE NOT done ORDER BY create_time');

export type Outcome = { readonly response: Record<string, unknown> } | { readonly error: PublicErrorBody };

export async function completeOperation(q: Queryable, id: string, outcome: Outcome): Promise<void> {
  const response = 'response' in outcome ? JSON.stringify(outcome.response) : null;
  const error = 'error' in outcome ? JSON.stringify(outcome.error) : null;
  await q.query('UPDATE operations SET done = true, response = $2, error = $3, done_time = now() WHERE id = $1 AND NOT done', [
    id,
    response,
    error,
  ]);
}
/** Completes every open operation on a target. */
export async function completeTarget(q: Queryable, target: string, outcome: Outcome): Promise<void> {
  for (const o of await openOperations(q, target)) await completeOperation(q, o.id, outcome);
}
/** Finished operations are kept a week. */
export async function pruneOperations(q: Queryable): Promise<void> {
  await q.query(`DELETE FROM operations WHERE done AND done_time < now() - interval '7 days'`);
}
