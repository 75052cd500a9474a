/** Rows as the public API shows them. `status` is what holds now; zero and false are sent explicitly, as the official clients expect. */
import { type KeyState, keyUsable } from '@lakebase/api';
import type { ManagerConfig } from '../config.ts';
import type { Queryable } from '../metadata/database.ts';
import { formatDuration, rfc3339 } from '../model/duration.ts';
import { branchName, childName, projectName } from '../model/names.ts';
import type { KeyStates } from '../reconcile/key-states.ts';
import type { EndpointController } from '../reconcile/endpoint-controller.ts';
import * as catalog from '../store/catalog.ts';
import { type EndpointRow, endpointById } from '../store/endpoints.ts';
import { EMPTY_RESPONSE, type OperationRow, operationById } from '../store/operations.ts';
import { type BranchRow, type EndpointDefaults, type ProjectRow, branchByPath, projectById } from '../store/projects.ts';

type Json = Record<string, unknown>;
/** 8 TiB, the documented limit of a branch. */
const LOGICAL_SIZE_LIMIT_BYTES = 8_796_093_022_208;

export const uuidOf = (hex: string): string =>
  `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;

const suspension = (seconds: number | null): Json =>
  seconds === null ? { no_suspension: true } : { suspend_timeout_duration: formatDuration(seconds) };

export const endpointDefaultsView = (d: EndpointDefaults): Json => ({
  autoscaling_limit_min_cu: d.autoscaling_limit_min_cu,
  autoscaling_limit_max_cu: d.autoscaling_limit_max_cu,
  ...suspension(d.suspend_timeout_seconds),
  ...(Object.keys(d.pg_settings).length === 0 ? {} : { pg_settings: d.pg_settings }),
});

export function projectView(p: ProjectRow, defaultBranch: string, encryption: Json): Json {
  return {
    name: projectName(p.project_id),
    project_id: p.project_id,
    uid: uuidOf(p.uid),
    create_time: rfc3339(p.create_time),
    update_time: rfc3339(p.update_time),
    status: {
      project_id: p.project_id,
      display_name: p.display_name,
      owner: p.owner,
      pg_version: p.pg_version,
      history_retention_duration: formatDuration(p.retention_seconds),
      default_branch: branchName({ project: p.project_id, branch: defaultBranch }),
      default_endpoint_settings: endpointDefaultsView(p.default_endpoint_settings),
      enable_pg_native_login: true,
      branch_logical_size_limit_bytes: LOGICAL_SIZE_LIMIT_BYTES,
      synthetic_storage_size_bytes: p.stored_bytes,
      encryption,
      ...(p.error === null ? {} : { error: p.error }),
    },
  };
}

/** Suspended is unreachable for too long: clients know four states, and whether data is served. */
export const publicState = (state: KeyState): string => (state === 'SUSPENDED' ? 'UNREACHABLE' : state);

/** State of the project's key as the Manager knows it without asking: lists and operations show this, a single project more. */
export function briefEncryption(c: Pick<ViewContext, 'keyStates'>, p: ProjectRow): Json {
  const known = c.keyStates.of(p.uid);
  return {
    customer_managed: p.managed_key_id !== null,
    ...(p.managed_key_id === null ? {} : { customer_managed_key_id: p.managed_key_id }),
    ...(known === undefined ? {} : { state: publicState(known.state), serving: keyUsable(known.state), kek_version: known.kekVersion }),
    ...(known === undefined || known.reason === '' ? {} : { reason: known.reason }),
  };
}

export function branchView(b: BranchRow): Json {
  return {
    name: branchName({ project: b.project_id, branch: b.branch_id }),
    parent: projectName(b.project_id),
    branch_id: b.branch_id,
    uid: b.uid,
    create_time: rfc3339(b.create_time),
    update_time: rfc3339(b.update_time),
    status: {
      branch_id: b.branch_id,
      current_state: b.state,
      ...(b.state === 'INIT' ? { pending_state: 'READY' } : {}),
      state_change_time: rfc3339(b.state_change_time),
      default: b.is_default,
      is_protected: b.is_protected,
      logical_size_bytes: b.logical_bytes ?? 0,
    },
  };
}

export function endpointView(
  e: EndpointRow,
  controller: EndpointController | undefined,
  config: Pick<ManagerConfig, 'proxyHost' | 'proxyPort'>,
): Json {
  const state = currentState(e, controller);
  const pending = controller?.phase === 'STARTING' ? 'ACTIVE' : controller?.phase === 'STOPPING' ? 'IDLE' : undefined;
  const error = controller?.lastError ?? e.last_error;
  const host = config.proxyHost;
  const lastActive = controller?.lastActive ?? e.last_active_time;
  return {
    name: childName({ project: e.project_id, branch: e.branch_id }, 'endpoints', e.endpoint_id),
    parent: branchName({ project: e.project_id, branch: e.branch_id }),
    endpoint_id: e.endpoint_id,
    uid: e.uid,
    create_time: rfc3339(e.create_time),
    update_time: rfc3339(e.update_time),
    status: {
      endpoint_id: e.endpoint_id,
      endpoint_type: e.endpoint_type,
      current_state: state,
      ...(pending === undefined || pending === state ? {} : { pending_state: pending }),
      autoscaling_limit_min_cu: e.min_cu,
      autoscaling_limit_max_cu: e.max_cu,
      ...suspension(e.suspend_timeout_seconds),
      disabled: e.disabled,
      settings: { pg_settings: e.pg_settings },
      group: { min: 1, max: 1, enable_readable_secondaries: false },
      hosts: { host, port: config.proxyPort, routing_option: `endpoint=${e.uid}` },
      ...(lastActive === null ? {} : { last_active_time: rfc3339(lastActive) }),
      ...(e.start_time === null ? {} : { start_time: rfc3339(e.start_time) }),
      ...(e.suspend_time === null ? {} : { suspend_time: rfc3339(e.suspend_time) }),
      ...(controller?.running === undefined ? {} : { compute_id: controller.running.computeId }),
      ...(error === null ? {} : { last_error: error }),
    },
  };
}

export function currentState(e: EndpointRow, controller: EndpointController | undefined): 'INIT' | 'ACTIVE' | 'IDLE' {
  if (e.project_state === 'CREATING') return 'INIT';
  if (controller === undefined) return e.state;
  return controller.phase === 'ACTIVE' || controller.phase === 'STOPPING' ? 'ACTIVE' : 'IDLE';
}

export function roleView(p: { project: string; branch: string }, r: catalog.RoleRow): Json {
  return {
    name: childName(p, 'roles', r.role_id),
    parent: branchName(p),
    role_id: r.role_id,
    create_time: rfc3339(r.create_time),
    update_time: rfc3339(r.update_time),
    status: {
      role_id: r.role_id,
      postgres_role: r.postgres_role,
      auth_method: r.auth_method,
      ...(r.identity_type === null ? {} : { identity_type: r.identity_type }),
      attributes: { createdb: r.createdb, createrole: r.createrole, bypassrls: r.bypassrls },
      membership_roles: r.membership_roles,
    },
  };
}

export function databaseView(p: { project: string; branch: string }, d: catalog.DatabaseRow): Json {
  return {
    name: childName(p, 'databases', d.database_id),
    parent: branchName(p),
    database_id: d.database_id,
    create_time: rfc3339(d.create_time),
    update_time: rfc3339(d.update_time),
    status: { database_id: d.database_id, postgres_database: d.postgres_database, role: childName(p, 'roles', d.owner_role_id) },
  };
}

export interface ViewContext {
  /** Names of projects are unique in a workspace. */
  readonly workspace: string;
  readonly db: Queryable;
  readonly keyStates: Pick<KeyStates, 'of'>;
  readonly config: Pick<ManagerConfig, 'proxyHost' | 'proxyPort'>;
  controllerOf(uid: string): EndpointController | undefined;
}

/** The resource as it is now, by name; undefined when it is gone. */
export async function resourceView(c: ViewContext, name: string): Promise<Json | undefined> {
  const [, project = '', , branch, kind, id = ''] = name.split('/');
  const p = await projectById(c.db, c.workspace, project);
  if (p === undefined) return undefined;
  if (branch === undefined) return projectView(p, 'production', briefEncryption(c, p));
  const b = await branchByPath(c.db, c.workspace, project, branch);
  if (b === undefined) return undefined;
  const path = { project, branch };
  if (kind === undefined) return branchView(b);
  if (kind === 'endpoints') {
    const e = await endpointById(c.db, b.timeline_id, id);
    return e === undefined ? undefined : endpointView(e, c.controllerOf(e.uid), c.config);
  }
  if (kind === 'roles') {
    const r = await catalog.roleById(c.db, b.timeline_id, id);
    return r === undefined ? undefined : roleView(path, r);
  }
  const d = await catalog.databaseById(c.db, b.timeline_id, id);
  return d === undefined ? undefined : databaseView(path, d);
}

const METADATA_TYPE: Readonly<Record<string, string>> = { PROJECT: 'Project', ENDPOINT: 'Endpoint', ROLE: 'Role', DATABASE: 'Database' };

/** `response` is rendered when asked for: the resource as it is now, or Empty for a delete. Done without an error always has one. */
export async function operationView(c: ViewContext, o: OperationRow, extra: Json = {}): Promise<Json> {
  const noun = METADATA_TYPE[o.kind.slice(o.kind.indexOf('_') + 1)] ?? 'Project';
  const base = {
    name: `${o.resource}/operations/${o.id}`,
    done: o.done,
    metadata: { '@type': `type.googleapis.com/databricks.postgres.v1.${noun}OperationMetadata`, ...extra },
  };
  if (!o.done) return base;
  if (o.error !== null) return { ...base, error: o.error };
  const response = o.kind.startsWith('DELETE') ? EMPTY_RESPONSE : ((await resourceView(c, o.resource)) ?? { name: o.resource });
  return { ...base, response };
}

export async function operationViewById(c: ViewContext, id: string, extra: Json = {}): Promise<Json> {
  return operationView(c, (await operationById(c.db, id)) as OperationRow, extra);
}
