/** The metadata schema as numbered steps. A step that was released never changes; corrections are new steps. */
export interface Migration {
  readonly number: number;
  readonly name: string;
  readonly sql: string;
}

/** Relations of steps 1 to 4, columns of their keys, and columns that change all the time and mean nothing for a restore. What a later step makes has to
 *  get its trigger there, and a place in RELATIONS of durability/change-log.ts. */
const COPIED: readonly (readonly [relation: string, key: string, volatile?: string])[] = [
  ['accounts', 'id'],
  ['customer_managed_keys', 'id'],
  ['workspaces', 'id'],
  ['users', 'id'],
  ['workspace_users', 'workspace_id,user_id'],
  ['projects', 'uid'],
  ['branches', 'timeline_id'],
  ['endpoints', 'uid'],
  ['roles', 'timeline_id,role_id'],
  ['databases', 'timeline_id,database_id'],
  ['seen_roles', 'timeline_id,name', 'seen_time'],
  ['tokens', 'hash'],
  ['wal_members', 'timeline_id,safekeeper_id'],
  ['wal_configurations', 'timeline_id'],
  ['safekeeper_nodes', 'id', 'seen_time'],
  ['placements', 'project_uid'],
  ['operations', 'id'],
  ['shred_reports', 'project_uid'],
];

export const migrations: readonly Migration[] = [
  {
    number: 1,
    name: 'resources',
    sql: `
CREATE TABLE workspaces (
  id text PRIMARY KEY,
  -- Set once its default project was made: a default project somebody deletes later stays deleted.
  initialized boolean NOT NULL DEFAULT false,
  create_time timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE projects (
  uid text PRIMARY KEY CHECK (uid ~ '^[0-9a-f]{32}$'),
  workspace_id text NOT NULL REFERENCES workspaces,
  project_id text NOT NULL,
  display_name text NOT NULL,
  owner text NOT NULL,
  pg_version int NOT NULL,
  system_id text NOT NULL,
  retention_seconds int NOT NULL,
  default_endpoint_settings jsonb NOT NULL,
  -- Desired and observed in one word: CREATING and DELETING are work the reconciler still has to do.
  state text NOT NULL CHECK (state IN ('CREATING', 'READY', 'DELETING')),
  error text,
  create_time timestamptz NOT NULL DEFAULT now(),
  update_time timestamptz NOT NULL DEFAULT now(),
  UNIQUE (workspace_id, project_id)
);
CREATE TABLE branches (
  timeline_id text PRIMARY KEY CHECK (timeline_id ~ '^[0-9a-f]{32}$'),
  project_uid text NOT NULL REFERENCES projects ON DELETE CASCADE,
  branch_id text NOT NULL,
  uid text NOT NULL UNIQUE,
  is_default boolean NOT NULL,
  is_protected boolean NOT NULL DEFAULT false,
  state text NOT NULL CHECK (state IN ('INIT', 'READY')),
  state_change_time timestamptz NOT NULL DEFAULT now(),
  -- The pageserver's answer; WAL timelines are created from it.
  start_lsn text,
  prev_record_lsn text,
  -- Addresses of the safekeepers as the pageserver was last told them.
  announced jsonb,
  create_time timestamptz NOT NULL DEFAULT now(),
  update_time timestamptz NOT NULL DEFAULT now(),
  UNIQUE (project_uid, branch_id)
);
-- One row per safekeeper and timeline. No foreign key: removal goes on after the project's rows are gone.
CREATE TABLE wal_members (
  timeline_id text NOT NULL,
  project_uid text NOT NULL,
  safekeeper_id text NOT NULL,
  wanted boolean NOT NULL,
  made boolean NOT NULL DEFAULT false,
  PRIMARY KEY (timeline_id, safekeeper_id)
);
CREATE TABLE endpoints (
  uid text PRIMARY KEY,
  timeline_id text NOT NULL REFERENCES branches ON DELETE CASCADE,
  endpoint_id text NOT NULL,
  endpoint_type text NOT NULL CHECK (endpoint_type IN ('ENDPOINT_TYPE_READ_WRITE', 'ENDPOINT_TYPE_READ_ONLY')),
  min_cu real NOT NULL,
  max_cu real NOT NULL,
  -- Null: never suspended.
  suspend_timeout_seconds int,
  disabled boolean NOT NULL DEFAULT false,
  pg_settings jsonb NOT NULL DEFAULT '{}',
  state text NOT NULL CHECK (state IN ('INIT', 'ACTIVE', 'IDLE')),
  -- The compute that was last asked for and is not known to be gone. Written before the start is asked for.
  compute_id text,
  last_error text,
  last_active_time timestamptz,
  start_time timestamptz,
  suspend_time timestamptz,
  create_time timestamptz NOT NULL DEFAULT now(),
  update_time timestamptz NOT NULL DEFAULT now(),
  UNIQUE (timeline_id, endpoint_id)
);
CREATE TABLE roles (
  timeline_id text NOT NULL REFERENCES branches ON DELETE CASCADE,
  role_id text NOT NULL,
  postgres_role text NOT NULL,
  auth_method text NOT NULL CHECK (auth_method IN ('LAKEBASE_OAUTH_V1', 'PG_PASSWORD_SCRAM_SHA_256', 'NO_LOGIN')),
  identity_type text,
  verifier text,
  createdb boolean NOT NULL DEFAULT false,
  createrole boolean NOT NULL DEFAULT false,
  bypassrls boolean NOT NULL DEFAULT false,
  membership_roles text[] NOT NULL DEFAULT '{}',
  -- Raised by every change; applied when a compute has carried out that revision. Sent to computes only until then,
  -- so that what was changed with SQL afterwards stays as it is.
  revision int NOT NULL DEFAULT 1,
  applied_revision int NOT NULL DEFAULT 0,
  deleting boolean NOT NULL DEFAULT false,
  create_time timestamptz NOT NULL DEFAULT now(),
  update_time timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (timeline_id, role_id),
  UNIQUE (timeline_id, postgres_role)
);
CREATE TABLE databases (
  timeline_id text NOT NULL REFERENCES branches ON DELETE CASCADE,
  database_id text NOT NULL,
  postgres_database text NOT NULL,
  owner_role_id text NOT NULL,
  revision int NOT NULL DEFAULT 1,
  applied_revision int NOT NULL DEFAULT 0,
  deleting boolean NOT NULL DEFAULT false,
  create_time timestamptz NOT NULL DEFAULT now(),
  update_time timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (timeline_id, database_id),
  UNIQUE (timeline_id, postgres_database)
);
-- What computes last said about a role (pg_authid): answers log-ins while no compute runs.
CREATE TABLE seen_roles (
  timeline_id text NOT NULL REFERENCES branches ON DELETE CASCADE,
  name text NOT NULL,
  verifier text,
  login boolean NOT NULL,
  seen_time timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (timeline_id, name)
);
CREATE TABLE operations (
  id uuid PRIMARY KEY,
  resource text NOT NULL,
  kind text NOT NULL,
  -- What completes it: 'project:<uid>', 'role:<timeline>/<id>', 'database:<timeline>/<id>', 'endpoint:<uid>'.
  target text NOT NULL,
  done boolean NOT NULL DEFAULT false,
  response jsonb,
  error jsonb,
  create_time timestamptz NOT NULL DEFAULT now(),
  done_time timestamptz
);
CREATE INDEX operations_open ON operations (target) WHERE NOT done;
CREATE TABLE tokens (
  -- SHA-256 of the token: tokens are 256 random bits, so nothing slower is needed.
  hash bytea PRIMARY KEY,
  kind text NOT NULL CHECK (kind IN ('ADMIN', 'CREDENTIAL')),
  identity text NOT NULL,
  endpoint_uid text REFERENCES endpoints ON DELETE CASCADE,
  expire_time timestamptz,
  create_time timestamptz NOT NULL DEFAULT now()
);`,
  },
  {
    number: 2,
    name: 'accounts and keys',
    sql: `
CREATE TABLE accounts (
  id text PRIMARY KEY,
  display_name text NOT NULL,
  create_time timestamptz NOT NULL DEFAULT now()
);
INSERT INTO accounts (id, display_name) VALUES ('default', 'Default account');
CREATE TABLE customer_managed_keys (
  id uuid PRIMARY KEY,
  account_id text NOT NULL REFERENCES accounts,
  use_cases text[] NOT NULL,
  provider text NOT NULL,
  kms_key text NOT NULL,
  -- As it was given and is shown; without secrets.
  key_info jsonb NOT NULL,
  -- Provider options, secrets among them: sealed under a key of the installation's secret.
  sealed_options bytea NOT NULL,
  create_time timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE workspaces
  ADD COLUMN account_id text NOT NULL DEFAULT 'default' REFERENCES accounts,
  ADD COLUMN workspace_id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  ADD COLUMN display_name text NOT NULL DEFAULT 'Default workspace',
  ADD COLUMN pricing_tier text NOT NULL DEFAULT 'ENTERPRISE' CHECK (pricing_tier IN ('STANDARD', 'PREMIUM', 'ENTERPRISE')),
  ADD COLUMN managed_services_key_id uuid REFERENCES customer_managed_keys;
ALTER TABLE projects ADD COLUMN managed_key_id uuid REFERENCES customer_managed_keys;
ALTER TABLE operations ADD COLUMN workspace_id text NOT NULL DEFAULT 'default';
CREATE TABLE users (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  account_id text NOT NULL REFERENCES accounts,
  user_name text NOT NULL,
  account_admin boolean NOT NULL,
  create_time timestamptz NOT NULL DEFAULT now(),
  UNIQUE (account_id, user_name)
);
CREATE TABLE workspace_users (
  workspace_id text NOT NULL REFERENCES workspaces ON DELETE CASCADE,
  user_id bigint NOT NULL REFERENCES users ON DELETE CASCADE,
  PRIMARY KEY (workspace_id, user_id)
);
ALTER TABLE tokens
  DROP CONSTRAINT tokens_kind_check,
  ADD CONSTRAINT tokens_kind_check CHECK (kind IN ('ADMIN', 'USER', 'CREDENTIAL')),
  ADD COLUMN id uuid UNIQUE,
  ADD COLUMN user_id bigint REFERENCES users ON DELETE CASCADE,
  -- Null for a user's token: the account, not a workspace.
  ADD COLUMN workspace_id text REFERENCES workspaces ON DELETE CASCADE,
  ADD COLUMN comment text;
-- What was destroyed when a project was deleted; outlives the project's rows.
CREATE TABLE shred_reports (
  project_uid text PRIMARY KEY,
  account_id text NOT NULL REFERENCES accounts,
  workspace_id text NOT NULL,
  project_id text NOT NULL,
  report jsonb NOT NULL,
  create_time timestamptz NOT NULL DEFAULT now()
);`,
  },
  {
    number: 3,
    name: 'placements',
    sql: `
CREATE TABLE placements (
  project_uid text PRIMARY KEY REFERENCES projects ON DELETE CASCADE,
  -- Pageserver that was given the newest generation.
  owner text NOT NULL,
  -- Pageserver that computes ask; another than the owner while a move is under way.
  serving text NOT NULL,
  generation bigint NOT NULL DEFAULT 0
);
ALTER TABLE branches
  -- The highest generation whose index is known to be in the object store.
  ADD COLUMN published_generation bigint NOT NULL DEFAULT 0;`,
  },
  {
    number: 4,
    name: 'membership',
    sql: `
ALTER TABLE wal_members
  -- Who the node is as a member of this timeline; another than the node's id once it has joined anew.
  ADD COLUMN member_id text,
  -- The member has lost its data: a new one takes its place.
  ADD COLUMN lost boolean NOT NULL DEFAULT false,
  -- Its place goes to another node.
  ADD COLUMN evict boolean NOT NULL DEFAULT false;
UPDATE wal_members SET member_id = safekeeper_id;
ALTER TABLE wal_members ALTER COLUMN member_id SET NOT NULL;
-- Absent: generation 0, the members of wal_members. Changed by compare-and-swap on the generation.
CREATE TABLE wal_configurations (
  timeline_id text PRIMARY KEY REFERENCES branches ON DELETE CASCADE,
  generation bigint NOT NULL,
  members jsonb NOT NULL,
  new_members jsonb,
  -- Every member holds it.
  told boolean NOT NULL DEFAULT false
);
-- The disk of each safekeeper as it was last seen.
CREATE TABLE safekeeper_nodes (
  id text PRIMARY KEY,
  incarnation text NOT NULL,
  seen_time timestamptz NOT NULL DEFAULT now()
);`,
  },
  {
    number: 5,
    name: 'copy in the object store',
    sql: `
-- Changes that are not in the object store yet (docs/formats/catalog-object.md). Written by the triggers below, within the transaction that changes.
CREATE TABLE catalog_outbox (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
  relation text NOT NULL,
  key jsonb NOT NULL,
  -- Null: the row is gone.
  content jsonb
);
-- The newest link of the chain in the object store that this database is known to contain.
CREATE TABLE catalog_copy (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  installation text NOT NULL,
  number bigint NOT NULL,
  hash text NOT NULL
);
-- Arguments: columns of the key; columns whose change alone is not worth a copy.
CREATE FUNCTION catalog_changed() RETURNS trigger LANGUAGE plpgsql AS $f$
DECLARE
  before jsonb;
  after jsonb;
BEGIN
  IF current_setting('lakebase.copied', true) IS DISTINCT FROM 'on' THEN RETURN NULL; END IF;
  IF TG_OP <> 'INSERT' THEN before := to_jsonb(OLD); END IF;
  IF TG_OP <> 'DELETE' THEN after := to_jsonb(NEW); END IF;
  IF before - TG_ARGV[1]::text[] = after - TG_ARGV[1]::text[] THEN RETURN NULL; END IF;
  INSERT INTO catalog_outbox (relation, key, content)
    SELECT TG_TABLE_NAME, jsonb_object_agg(k, coalesce(after, before) -> k), after FROM unnest(TG_ARGV[0]::text[]) AS k;
  RETURN NULL;
END
$f$;
${COPIED.map(
  ([relation, key, volatile = '']) =>
    `CREATE TRIGGER catalog_changed AFTER INSERT OR UPDATE OR DELETE ON ${relation} FOR EACH ROW EXECUTE FUNCTION catalog_changed('{${key}}', '{${volatile}}');`,
).join('\n')}`,
  },
  {
    number: 6,
    name: 'lineages of WAL',
    sql: `
-- Recoveries of the branch's WAL from the object store, each with the lineage that it began (docs/protocols/wal-recovery.md), oldest first.
ALTER TABLE branches ADD COLUMN wal_lineages jsonb NOT NULL DEFAULT '[]';`,
  },
  {
    number: 7,
    name: 'generated passwords',
    sql: `
-- What the file of generated passwords holds, so that it comes back when it is lost: sealed under a key of the installation's secret.
CREATE TABLE owner_credentials (
  name text PRIMARY KEY,
  sealed bytea NOT NULL
);
CREATE TRIGGER catalog_changed AFTER INSERT OR UPDATE OR DELETE ON owner_credentials FOR EACH ROW EXECUTE FUNCTION catalog_changed('{name}', '{}');`,
  },
  {
    number: 8,
    name: 'sizes of branches',
    sql: `
-- Of its layers, as its pageserver told last; null: not yet. It changes all the time and is told again: alone it is not worth a copy.
ALTER TABLE branches ADD COLUMN layer_bytes bigint;
CREATE OR REPLACE TRIGGER catalog_changed AFTER INSERT OR UPDATE OR DELETE ON branches
  FOR EACH ROW EXECUTE FUNCTION catalog_changed('{timeline_id}', '{layer_bytes}');`,
  },
  {
    number: 9,
    name: 'versions of published indexes',
    sql: `
-- Version of the newest index of published_generation. It watches the object store, so a copy there would be of no use, and every upload would cost one.
ALTER TABLE branches ADD COLUMN published_version bigint NOT NULL DEFAULT 0;
CREATE OR REPLACE TRIGGER catalog_changed AFTER INSERT OR UPDATE OR DELETE ON branches
  FOR EACH ROW EXECUTE FUNCTION catalog_changed('{timeline_id}', '{layer_bytes,published_version}');`,
  },
  {
    number: 10,
    name: 'logical sizes of branches',
    sql: `
-- Of its relations, told together with layer_bytes.
ALTER TABLE branches ADD COLUMN logical_bytes bigint;
CREATE OR REPLACE TRIGGER catalog_changed AFTER INSERT OR UPDATE OR DELETE ON branches
  FOR EACH ROW EXECUTE FUNCTION catalog_changed('{timeline_id}', '{layer_bytes,logical_bytes,published_version}');`,
  },
];
