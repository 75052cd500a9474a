/** Compute host process: HTTP surface of packages/api/src/compute.ts over {@link Computes}. */
import { createHash } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { type ComputeChange, type ComputeSpec, internalToken } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { accountName, createHttpServer, enterableByOthers, findPostgres, loadConfig, readSecret, readableByOthers, runService, unprivilegedAccount } from '@lakebase/service-kit';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { type ComputeHostConfig, computeHostConfig } from './config.ts';
import { Computes } from './host/computes.ts';
import { makeTemplate } from './host/template.ts';

const DEFAULT_MAJOR = 18;
const config = loadConfig('lakebase-compute', computeHostConfig, process.argv.slice(2));

await runService(config.id, config.logLevel, async ({ log, teardown }) => {
  const secret = readSecret(config.secretFile);
  const account = unprivilegedAccount();
  const dataDir = scratchDir(config);
  mkdirSync(dataDir, { recursive: true, mode: 0o755 });
  if (dataDir !== config.dataDir) log.info({ dataDir }, 'the configured directory is closed to other accounts; scratch goes here');
  const installation = findPostgres(DEFAULT_MAJOR, config.postgresPrefix);
  const own = accountName(process.getuid?.() ?? 0);
  const computes = new Computes({
    secret, dataDir, runtimeDir: config.runtimeDir, spareAgents: config.spareAgents, log,
    setup: {
      binDir: installation.binDir, libDir: installation.libDir, shimPath: join(readableByOthers(dirname(config.shimPath)), basename(config.shimPath)), sharedBuffers: config.sharedBuffers,
      trustedAccounts: [own, account?.name ?? own], logLevel: config.logLevel, account: account === undefined ? null : { uid: account.uid, gid: account.gid },
    },
  });
  teardown.add('computes', () => computes.close());
  const { app } = createHttpServer({ log, secret, health: () => ({ computes: computes.list().filter((c) => c.state === 'RUNNING').length }) });
  routes(app, computes);
  app.post('/v1/templates/:major', async (request) => {
    const major = Number((request.params as { major: string }).major);
    if (major !== DEFAULT_MAJOR) throw new LakebaseError('UNSUPPORTED', `Postgres ${major} is not supported by this version; use ${DEFAULT_MAJOR}`);
    return makeTemplate({ installation, account, dataDir, pageserverHttpUrl: config.pageserverHttpUrl, token: internalToken(secret, 'service'), log });
  });
  await app.listen({ host: config.httpHost, port: config.httpPort });
  teardown.add('http', () => app.close());
  log.info({ port: config.httpPort }, 'compute host is ready');
});

/** Where computes live: as configured, or, when we are root and the configured place is private, a directory Postgres's account can enter. */
function scratchDir(c: ComputeHostConfig): string {
  mkdirSync(c.dataDir, { recursive: true, mode: 0o755 });
  if (process.getuid?.() !== 0 || enterableByOthers(c.dataDir)) return c.dataDir;
  return `/var/tmp/lakebase-compute-${createHash('sha256').update(c.dataDir).digest('hex').slice(0, 10)}`;
}

const id = Type.Object({ id: Type.String({ maxLength: 63 }) });
const peer = Type.Object({ id: Type.String(), httpUrl: Type.String(), pgHost: Type.String(), pgPort: Type.Integer() });
const role = Type.Object({
  name: Type.String({ minLength: 1, maxLength: 63 }), verifier: Type.Union([Type.String(), Type.Null()]), login: Type.Boolean(), createdb: Type.Optional(Type.Boolean()), createrole: Type.Optional(Type.Boolean()),
  bypassrls: Type.Optional(Type.Boolean()), memberOf: Type.Optional(Type.Array(Type.String())),
});
const change = {
  roles: Type.Array(role), databases: Type.Array(Type.Object({ name: Type.String({ minLength: 1, maxLength: 63 }), owner: Type.String() })),
  droppedRoles: Type.Optional(Type.Array(Type.String())), droppedDatabases: Type.Optional(Type.Array(Type.String())), settings: Type.Record(Type.String(), Type.String()),
};
const spec = Type.Object({
  projectUid: Type.String(), timelineId: Type.String(), endpointId: Type.String({ pattern: '^[A-Za-z0-9_-]{1,128}$' }), pgVersion: Type.Integer(), systemId: Type.String({ pattern: '^[0-9]{1,20}$' }),
  safekeepers: Type.Array(peer, { minItems: 1, maxItems: 7 }), pageserver: Type.Object({ httpUrl: Type.String(), pageHost: Type.String(), pagePort: Type.Integer() }), ...change,
});

function routes(app: FastifyInstance, computes: Computes): void {
  app.get('/v1/computes', async () => ({ computes: computes.list() }));
  app.get('/v1/computes/:id', { schema: { params: id } }, async (r) => computes.status((r.params as { id: string }).id));
  app.put('/v1/computes/:id', { schema: { params: id, body: spec } }, async (r) => computes.start((r.params as { id: string }).id, r.body as ComputeSpec));
  app.patch('/v1/computes/:id', { schema: { params: id, body: Type.Partial(Type.Object(change)) } }, async (r) => computes.change((r.params as { id: string }).id, r.body as ComputeChange));
  app.post('/v1/computes/:id/stop', { schema: { params: id, body: Type.Object({ mode: Type.Union([Type.Literal('fast'), Type.Literal('immediate')]) }) } },
    async (r) => computes.stop((r.params as { id: string }).id, (r.body as { mode: 'fast' | 'immediate' }).mode));
  app.get('/v1/computes/:id/roles/:role', async (r) => computes.role((r.params as { id: string }).id, (r.params as { role: string }).role));
}
