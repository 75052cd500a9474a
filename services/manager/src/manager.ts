/** Puts the Manager together and runs it: metadata database, reconcilers, HTTP surface, first start. Stops in reverse order. */
import { createHmac } from 'node:crypto';
import { internalToken } from '@lakebase/api';
import { LakebaseError, type Logger, isCode } from '@lakebase/base';
import { Gauge, Teardown, createMetricsRegistry, readSecret } from '@lakebase/service-kit';
import type { FastifyInstance } from 'fastify';
import type { ManagerConfig } from './config.ts';
import { Credentials, ensureAdminToken } from './credentials.ts';
import { type FarEnd, connectFarEnd } from './far-end.ts';
import { accountRoutes } from './http/accounts.ts';
import type { ApiContext } from './http/api-context.ts';
import { databaseRoutes } from './http/databases.ts';
import { encryptionRoutes } from './http/encryption.ts';
import { endpointRoutes } from './http/endpoints.ts';
import { internalRoutes } from './http/internal.ts';
import { miscRoutes } from './http/misc.ts';
import { maintenanceRoutes } from './http/maintenance.ts';
import { placementRoutes } from './http/placements.ts';
import { createProject, projectRoutes } from './http/projects.ts';
import { roleRoutes } from './http/roles.ts';
import { safekeeperRoutes } from './http/safekeepers.ts';
import { createManagerServer } from './http/server.ts';
import type { CatalogCopy } from './durability/catalog-copy.ts';
import { keepCredentials } from './durability/kept-credentials.ts';
import { openCatalogCopy } from './durability/open-catalog-copy.ts';
import { Database } from './metadata/database.ts';
import { EmbeddedPostgres } from './metadata/embedded-postgres.ts';
import { DEFAULT_ACCOUNT, DEFAULT_PROJECT, DEFAULT_WORKSPACE } from './model/names.ts';
import { Endpoints } from './reconcile/endpoints.ts';
import { KeyStates } from './reconcile/key-states.ts';
import { NO_KEYRING, projectKeyring } from './reconcile/project-keyring.ts';
import { Placements } from './reconcile/placements.ts';
import { ProjectReconciler } from './reconcile/project-reconciler.ts';

/** A client that connects while its project is being made waits this long. */
const READY_MS_MAX = 60_000;

export interface Manager {
  readonly app: FastifyInstance;
  readonly context: ApiContext;
  readonly port: number;
}

export interface ManagerOptions {
  readonly config: ManagerConfig;
  readonly log: Logger;
  readonly teardown: Teardown;
  readonly fail: (error: unknown) => void;
}

export async function startManager({ config, log, teardown, fail }: ManagerOptions): Promise<Manager> {
  const secret = readSecret(config.secretFile);
  const far: FarEnd = connectFarEnd(config, secret);
  const { db, copy } = await openDatabase({ config, log, teardown, fail }, secret, far);
  let endpoints: Endpoints | undefined = undefined;
  const placements = new Placements({ db, far, log });
  const projects: ProjectReconciler = new ProjectReconciler({
    db,
    far,
    log,
    placements,
    keys: config.keyManagerUrl === null ? NO_KEYRING : projectKeyring({ db, keys: far.keys, secret }),
    stopComputes: async (uid) => (endpoints as Endpoints).stopProject(uid),
  });
  const keyStates = new KeyStates({
    keys: far.keys,
    log,
    terminate: async (project, why) => {
      await (endpoints as Endpoints).stopProject(project);
      log.warn({ project, why }, 'terminated the computes of a project whose key may not be used');
      await far.keys.audit({
        actor: 'manager',
        action: 'TERMINATE_COMPUTES',
        account: DEFAULT_ACCOUNT,
        subject: project,
        result: 'OK',
        detail: why,
      });
    },
  });
  endpoints = new Endpoints({
    db,
    far,
    log,
    requireKey: (uid) => {
      if (config.keyManagerUrl !== null) keyStates.requireUsable(uid);
    },
    whenReady: (uid) => projects.whenReady(uid, READY_MS_MAX),
    pageserver: async (uid) => (await placements.serving(uid)).address,
  });
  const context: ApiContext = {
    workspace: DEFAULT_WORKSPACE,
    in: (request) => ({ ...context, workspace: request.workspace }),
    keys: far.keys,
    keyStates,
    placements,
    secret,
    serviceToken: internalToken(secret, 'service'),
    db,
    config,
    log,
    endpoints,
    projects,
    credentials: new Credentials(config.credentialsFile),
    controllerOf: (uid) => endpoints.peek(uid),
  };

  const metrics = createMetricsRegistry();
  // `collect` keeps it exact without a hook at every change of phase.
  const active: Gauge = new Gauge({
    name: 'lakebase_endpoints_active',
    help: 'endpoints with a running compute',
    registers: [metrics],
    collect: (): void => active.set(endpoints.activeCount),
  });
  if (copy !== undefined) {
    const copied: Gauge = new Gauge({
      name: 'lakebase_catalog_copied',
      help: '1 while every change of the catalog is in the object store before it is answered; 0: changes are refused',
      registers: [metrics],
      collect: (): void => copied.set(copy.state === 'OK' ? 1 : 0),
    });
  }
  const app = await createManagerServer({
    log,
    secret,
    db,
    metrics,
    health: () => ({ service: 'manager', active: endpoints.activeCount, ...copy?.health }),
  });
  for (const routes of [
    projectRoutes,
    endpointRoutes,
    roleRoutes,
    databaseRoutes,
    miscRoutes,
    accountRoutes,
    encryptionRoutes,
    placementRoutes,
    safekeeperRoutes,
    maintenanceRoutes,
  ])
    routes(app, context);
  internalRoutes(app, context);

  if (config.keyManagerUrl !== null) {
    keyStates.start();
    teardown.add('key states', () => keyStates.stop());
  }
  await keepCredentials(context.credentials, db, secret, log);
  await firstStart(context);
  placements.start();
  teardown.add('placements', () => placements.stop());
  await projects.start();
  teardown.add('projects', () => projects.stop());
  endpoints.start();
  teardown.add('endpoints', () => endpoints.stop(config.suspendOnStop));
  await app.listen({ host: config.httpHost, port: config.httpPort });
  // Before the computes are suspended: a connection that arrives meanwhile must not wake one.
  teardown.add('http', () => app.close());
  const address = app.server.address();
  const port = address !== null && typeof address === 'object' ? address.port : config.httpPort;
  log.info({ port, tokenFile: config.adminTokenFile }, 'manager ready');
  return { app, context, port };
}

async function openDatabase(
  { config, log, teardown, fail }: ManagerOptions,
  secret: string,
  far: FarEnd,
): Promise<{ db: Database; copy: CatalogCopy | undefined }> {
  let client: ConstructorParameters<typeof Database>[0];
  if (config.databaseUrl === null) {
    const password = createHmac('sha256', Buffer.from(secret, 'hex')).update('lakebase-metadata-v1').digest('base64url');
    const embedded = new EmbeddedPostgres({ dataDir: config.dataDir, prefix: config.postgresPrefix, password, log });
    teardown.add('metadata database', () => embedded.stop());
    await embedded.start();
    client = embedded.clientConfig;
  } else client = { connectionString: config.databaseUrl };
  const copied = config.objectStore !== null && config.keyManagerUrl !== null;
  const db = new Database(client, log, { copied });
  teardown.add('metadata connections', () => db.close());
  try {
    await db.lockOut(fail);
  } catch (error) {
    if (error instanceof LakebaseError || config.databaseUrl === null) throw error;
    throw new LakebaseError(
      'UNAVAILABLE',
      `the metadata database that LAKEBASE_DATABASE_URL names does not answer: ${(error as Error).message}`,
      { cause: error },
    );
  }
  const copy = copied ? await openCatalogCopy({ config, client, secret, keys: far.keys, log, teardown, fail }) : undefined;
  const applied = await db.migrate();
  if (applied > 0) log.info({ applied }, 'metadata schema migrated');
  if (copy !== undefined) {
    await copy.start();
    db.setGate(copy);
  }
  return { db, copy };
}

/** Idempotent: what is there stays. A default project somebody deleted is not made again. */
async function firstStart(c: ApiContext): Promise<void> {
  const { created } = await ensureAdminToken(c.db, c.config.adminTokenFile, c.config.adminUser);
  if (created) c.log.info({ file: c.config.adminTokenFile }, 'wrote a new admin token');
  await c.db.query('INSERT INTO workspaces (id) VALUES ($1) ON CONFLICT DO NOTHING', [DEFAULT_WORKSPACE]);
  const [workspace] = await c.db.query<{ initialized: boolean }>('SELECT initialized FROM workspaces WHERE id = $1', [DEFAULT_WORKSPACE]);
  if (workspace?.initialized === true) return;
  try {
    await createProject(c, DEFAULT_PROJECT, {}, c.config.adminUser);
  } catch (error) {
    // A Manager killed between the two statements made it already.
    if (!isCode(error, 'ALREADY_EXISTS')) throw error;
  }
  await c.db.query('UPDATE workspaces SET initialized = true WHERE id = $1', [DEFAULT_WORKSPACE]);
}
