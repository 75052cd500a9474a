/** Request and answer shapes of the public API: what is validated, and what /openapi.json shows. */
import { type TProperties, Type } from 'typebox';

const id = Type.String({ maxLength: 200 });
export const projectParams = Type.Object({ project: id });
export const branchParams = Type.Object({ project: id, branch: id });
export const childParams = Type.Object({ project: id, branch: id, id });

export const listQuery = Type.Object({
  page_size: Type.Optional(Type.Integer({ minimum: 0, maximum: 1000 })),
  page_token: Type.Optional(Type.String({ maxLength: 200 })),
  show_deleted: Type.Optional(Type.Boolean()),
});
export const maskQuery = Type.Object({ update_mask: Type.Optional(Type.String({ maxLength: 2000 })) });

const loose = <T extends TProperties>(properties: T) => Type.Object(properties, { additionalProperties: true });
const opt = Type.Optional;
const text = Type.String();
const nullish = <T extends Parameters<typeof Type.Union>[0][number]>(t: T) => opt(Type.Union([t, Type.Null()]));

const pgSettings = Type.Record(Type.String(), Type.Unknown());
export const endpointSettings = loose({
  autoscaling_limit_min_cu: opt(Type.Number()),
  autoscaling_limit_max_cu: opt(Type.Number()),
  suspend_timeout_duration: nullish(text),
  no_suspension: nullish(Type.Boolean()),
  pg_settings: opt(pgSettings),
});
export const projectSpec = loose({
  display_name: opt(Type.String({ minLength: 1, maxLength: 256 })),
  pg_version: opt(Type.Integer()),
  history_retention_duration: opt(text),
  default_endpoint_settings: opt(endpointSettings),
});
export const projectBody = loose({ spec: opt(projectSpec) });
export const endpointSpec = loose({
  endpoint_type: opt(text),
  autoscaling_limit_min_cu: opt(Type.Number()),
  autoscaling_limit_max_cu: opt(Type.Number()),
  suspend_timeout_duration: nullish(text),
  no_suspension: nullish(Type.Boolean()),
  disabled: opt(Type.Boolean()),
  settings: opt(loose({ pg_settings: opt(pgSettings) })),
});
export const endpointBody = loose({ spec: opt(endpointSpec) });
export const roleSpec = loose({
  postgres_role: opt(text),
  identity_type: opt(text),
  auth_method: opt(text),
  attributes: opt(loose({ createdb: opt(Type.Boolean()), createrole: opt(Type.Boolean()), bypassrls: opt(Type.Boolean()) })),
  membership_roles: opt(Type.Array(text, { maxItems: 20 })),
});
export const roleBody = loose({ spec: opt(roleSpec) });
export const databaseSpec = loose({ postgres_database: opt(text), role: opt(text) });
export const databaseBody = loose({ spec: opt(databaseSpec) });
export const credentialBody = loose({
  endpoint: opt(text),
  expire_time: nullish(text),
  ttl: nullish(text),
  claims: opt(Type.Array(Type.Unknown(), { maxItems: 100 })),
  group_name: nullish(text),
});

export const operation = loose({
  name: text,
  done: Type.Boolean(),
  metadata: opt(loose({})),
  response: opt(loose({})),
  error: opt(loose({ error_code: text, message: text })),
});
export const project = loose({ name: text, project_id: text, uid: text, create_time: text, update_time: text, status: loose({}) });
export const branch = loose({ name: text, uid: text, status: loose({ branch_id: text, current_state: text }) });
export const endpoint = loose({
  name: text,
  uid: text,
  status: loose({ endpoint_id: text, current_state: text, hosts: loose({ host: text }) }),
});
export const role = loose({ name: text, status: loose({ role_id: text, postgres_role: text }) });
export const database = loose({ name: text, status: loose({ database_id: text, postgres_database: text }) });
export const credential = loose({ token: text, expire_time: text });
export const errorBody = loose({ error_code: text, message: text, details: Type.Array(Type.Unknown()) });
