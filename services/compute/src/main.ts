/** Compute host process: HTTP surface of packages/api/src/compute.ts over {@link Computes}. */
import { createHash } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { internalToken } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import {
  DEFAULT_POSTGRES_MAJOR,
  type PostgresInstallation,
  accountName,
  createHttpServer,
  enterableByOthers,
  findPostgres,
  loadConfig,
  readSecret,
  readableByOthers,
  runService,
  unprivilegedAccount,
} from '@lakebase/service-kit';
import { type ComputeHostConfig, computeHostConfig } from './config.ts';
import { Computes } from './host/computes.ts';
import { registerComputeMetrics } from './host/compute-metrics.ts';
import { routes } from './host/routes.ts';
import { makeTemplate } from './host/template.ts';

const config = loadConfig('lakebase-compute', computeHostConfig, process.argv.slice(2));

await runService(config.id, config.logLevel, async ({ log, teardown }) => {
  const secret = readSecret(config.secretFile);
  const account = unprivilegedAccount();
  const dataDir = scratchDir(config);
  mkdirSync(dataDir, { recursive: true, mode: 0o755 });
  if (dataDir !== config.dataDir) log.info({ dataDir }, 'the configured directory is closed to other accounts; scratch goes here');
  const installations = new Map<number, PostgresInstallation>();
  /** Found once; the default major at our start, so that a machine without it says so at once. */
  const postgres = (major: number): PostgresInstallation => {
    const known = installations.get(major) ?? findPostgres(major, configured(config, major));
    installations.set(major, known);
    return known;
  };
  postgres(DEFAULT_POSTGRES_MAJOR);
  const own = accountName(process.getuid?.() ?? 0);
  const computes = new Computes({
    secret,
    dataDir,
    runtimeDir: config.runtimeDir,
    spareAgents: config.spareAgents,
    log,
    postgres,
    setup: {
      shimPath: join(readableByOthers(dirname(config.shimPath)), basename(config.shimPath)),
      sharedBuffers: config.sharedBuffers,
      cacheBytes: bytesFrom('LAKEBASE_CACHE_BYTES') ?? config.cacheBytes,
      prefetch: switchedBy('LAKEBASE_PREFETCH') ?? config.prefetch,
      settle: switchedBy('LAKEBASE_SETTLE') ?? config.settle,
      maxIngestLagBytes: bytesFrom('LAKEBASE_MAX_INGEST_LAG_BYTES') ?? config.maxIngestLagBytes,
      trustedAccounts: [own, account?.name ?? own],
      logLevel: config.logLevel,
      plaintextScratch: process.env['LAKEBASE_TEST_SCRATCH_PLAINTEXT'] === '1',
      account: account === undefined ? null : { uid: account.uid, gid: account.gid },
      warmUp: { directory: join(dataDir, 'warm-up'), url: `http://${config.httpHost}:${config.httpPort}/healthz` },
    },
  });
  teardown.add('computes', () => computes.close());
  const { app, metrics } = createHttpServer({
    log,
    secret,
    health: () => ({ computes: computes.list().filter((c) => c.state === 'RUNNING').length }),
  });
  registerComputeMetrics(metrics, computes);
  routes(app, computes);
  app.post('/v1/templates/:major', async (request) => {
    const major = Number((request.params as { major: string }).major);
    const { pageserver } = (request.body ?? {}) as { pageserver?: unknown };
    return makeTemplate({
      installation: postgres(major),
      account,
      dataDir,
      pageserverHttpUrl: typeof pageserver === 'string' ? pageserver : config.pageserverHttpUrl,
      token: internalToken(secret, 'service'),
      log,
    });
  });
  await app.listen({ host: config.httpHost, port: config.httpPort });
  teardown.add('http', () => app.close());
  log.info({ port: config.httpPort }, 'compute host is ready');
});

/** On or off by the environment, over the configuration file. */
function switchedBy(name: string): boolean | undefined {
  const text = process.env[name];
  return text === undefined ? undefined : text !== '0';
}

/** A number of bytes from the environment, over the one in the configuration file: on one machine nobody writes that file. */
function bytesFrom(name: string): number | undefined {
  const text = process.env[name];
  if (text === undefined || text === '') return undefined;
  const bytes = Number(text);
  if (!Number.isSafeInteger(bytes) || bytes < 16 << 20)
    throw new LakebaseError('CONFIG', `${name} is a number of bytes, at least ${16 << 20}, not '${text.slice(0, 40)}'`);
  return bytes;
}

function configured(c: ComputeHostConfig, major: number): string | null {
  return c.postgresInstallations[String(major)] ?? (major === DEFAULT_POSTGRES_MAJOR ? c.postgresPrefix : null);
}

/** Where computes live: as configured, or, when we are root and the configured place is private, a directory Postgres's account can enter. */
function scratchDir(c: ComputeHostConfig): string {
  mkdirSync(c.dataDir, { recursive: true, mode: 0o755 });
  if (process.getuid?.() !== 0 || enterableByOthers(c.dataDir)) return c.dataDir;
  return `/var/tmp/lakebase-compute-${createHash('sha256').update(c.dataDir).digest('hex').slice(0, 10)}`;
}
