/** The key manager put together, without process concerns: what main.ts and tests start. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { AuditEntry } from '@lakebase/api';
import { type Logger, errorMessage } from '@lakebase/base';
import type { ObjectStore } from '@lakebase/object-store';
import { createHttpServer, forgetGarbage, openObjectStore } from '@lakebase/service-kit';
import { AuditCopies, type RestoredLog } from './audit/audit-copies.ts';
import { AuditLog } from './audit/audit-log.ts';
import type { KeyManagerConfig } from './config.ts';
import { KeyChanges } from './key-changes.ts';
import { InstallationKeys } from './installation-keys.ts';
import { type Clock, KeyManager, SELF } from './key-manager.ts';
import { KekCache } from './kms/kek-cache.ts';
import { KmsAccess, type KmsAccessOptions } from './kms/kms-access.ts';
import { kmsEnvironment } from './kms/kms-environment.ts';
import { kmsMetrics, registerMetrics } from './metrics.ts';
import { Prober } from './prober.ts';
import { RollbackCheck, isChange } from './record-rollback.ts';
import { registerRoutes } from './routes.ts';
import { RecordCopies } from './store/record-copies.ts';
import { RecordStore } from './store/record-store.ts';
import { CopySeal } from './store/sealed-copy.ts';
import { WatchHub } from './watch-hub.ts';

const BODY_BYTES_MAX = 1024 * 1024;
const PRUNE_MS = 3_600_000;

export interface KeyManagerServer {
  readonly manager: KeyManager;
  readonly httpPort: number;
  close(): Promise<void>;
}

export const systemClock: Clock = { now: () => Date.now(), monotonic: () => performance.now() };

export async function startKeyManager(
  config: KeyManagerConfig,
  secret: string,
  log: Logger,
  options: { clock?: Clock; open?: KmsAccessOptions['open']; objectStore?: ObjectStore } = {},
): Promise<KeyManagerServer> {
  const clock = options.clock ?? systemClock;
  mkdirSync(config.dataDir, { recursive: true, mode: 0o700 });
  const env = kmsEnvironment(config);
  const objects = options.objectStore ?? (config.objectStore === null ? undefined : await openObjectStore(config.objectStore, { log }));
  const seal = new CopySeal(env);
  const late: { manager?: KeyManager; copies?: RecordCopies } = {};
  const auditCopies =
    objects === undefined ? undefined : new AuditCopies({ store: objects, seal, log, held: () => (late.copies?.pending ?? 0) > 0 });
  const copies =
    objects === undefined || auditCopies === undefined
      ? undefined
      : new RecordCopies({ store: objects, seal, log, auditCopied: () => auditCopies.copied });
  if (copies !== undefined) late.copies = copies;
  const restoredLog = await auditCopies?.restore(join(config.dataDir, 'audit'));
  const restored = (await copies?.restore(join(config.dataDir, 'projects'), join(config.dataDir, 'audit'))) ?? [];
  const store = new RecordStore(join(config.dataDir, 'projects'));
  const expect = store.all().map((r) => r.audit);
  const rollbacks = new RollbackCheck();
  const audit = await AuditLog.open({
    dir: join(config.dataDir, 'audit'),
    log,
    now: () => clock.now(),
    expect,
    onLine: rollbacks.see,
    retention: { keepDays: config.auditKeepDays, keepBytes: config.auditKeepMegabytes * 1024 * 1024 },
    isChange,
    ...(auditCopies === undefined ? {} : { appended: (entry) => auditCopies.noticed(entry) }),
  });
  if (restoredLog?.kind === 'RESTORED') audit.append(restoredLine(restoredLog));
  rollbacks.apply(store);
  for (const [project, damage] of store.damaged()) {
    log.error({ project, err: damage.message }, 'the key record of a project cannot be used; the project stays locked');
    audit.append({ actor: SELF, action: 'RECORD_DAMAGED', account: '', subject: project, result: 'FAILED', detail: damage.message });
  }
  for (const project of restored)
    audit.append({
      actor: SELF,
      action: 'RECORD_RESTORED',
      account: store.get(project)?.account ?? '',
      subject: project,
      result: 'OK',
      detail: 'the key record was not on the disk; it is restored from its copy in the object store',
    });
  for (const record of store.all()) copies?.later(record);
  auditCopies?.start(audit);
  const { app, metrics } = createHttpServer({
    log,
    secret,
    bodyLimitBytes: BODY_BYTES_MAX,
    health: () => {
      const projects = late.manager?.projects() ?? [];
      return {
        projects: projects.length,
        locked: projects.filter((p) => !p.usable).length,
        damaged: store.damaged().size,
        ...(copies === undefined || copies.pending === 0 ? {} : { recordsNotCopied: copies.pending }),
        ...(auditCopies === undefined || auditCopies.behind === 0 ? {} : { auditLinesNotCopied: auditCopies.behind }),
        ...(audit.problem === undefined ? {} : { auditProblem: audit.problem }),
      };
    },
  });
  const kms = new KmsAccess({
    env,
    timeoutMs: config.probeTimeoutMs,
    observe: kmsMetrics(metrics),
    ...(options.open === undefined ? {} : { open: options.open }),
  });
  const manager = new KeyManager({
    store,
    audit,
    kms,
    cache: new KekCache(config.kekCacheSeconds * 1_000, () => clock.monotonic(), collectSoon(log)),
    clock,
    log,
    graceSeconds: config.graceSeconds,
    storageServices: config.storageServices,
    auditProbes: config.auditProbes,
    versionCheckMs: config.versionCheckMs,
    copies,
  });
  late.manager = manager;
  const changes = new KeyChanges(manager);
  const hub = new WatchHub({ snapshot: () => manager.projects().map((p) => p.watched), leaseSeconds: config.leaseSeconds });
  registerMetrics(metrics, manager, hub, () => auditCopies?.behind ?? 0);
  registerRoutes(app, { manager, changes, hub, installation: new InstallationKeys(env) });
  const prober = new Prober({ manager, changes, log, intervalMs: config.probeIntervalMs, rotateKekDays: config.rotateKekDays });
  manager.onChange((project) => hub.change(project));
  await app.listen({ host: config.httpHost, port: config.httpPort });
  hub.start();
  prober.start();
  void audit.verifyAll(expect).catch((error: unknown) => log.error({ err: String(error) }, 'cannot check the audit log'));
  const prune = (): void =>
    void audit.prune().then(
      (files) => files > 0 && log.info({ files }, 'old files of the audit log are removed'),
      (error: unknown) => log.error({ err: errorMessage(error) }, 'cannot remove old files of the audit log'),
    );
  prune();
  const pruner = setInterval(prune, PRUNE_MS);
  const address = app.server.address();
  const httpPort = typeof address === 'object' && address !== null ? address.port : config.httpPort;
  log.info({ httpPort, projects: manager.projects().length, auditLines: audit.head.sequence }, 'key manager is ready');
  return {
    manager,
    httpPort,
    close: async () => {
      clearInterval(pruner);
      prober.stop();
      hub.close();
      await app.close();
      manager.close();
      await copies?.close();
      await auditCopies?.close();
      if (options.objectStore === undefined) await objects?.close();
      await audit.close();
    },
  };
}

const restoredLine = ({ last, problem }: Extract<RestoredLog, { kind: 'RESTORED' }>): AuditEntry => ({
  actor: SELF,
  action: 'AUDIT_RESTORED',
  account: '',
  subject: 'audit log',
  result: problem === undefined ? 'OK' : 'FAILED',
  detail: `the log was not on the disk; lines up to ${last} are restored from the object store, later ones are lost${problem === undefined ? '' : `: ${problem}`}`,
});

/** Copies of dropped keys in OpenSSL's memory end with the garbage collector; many projects that are revoked at once need it once. */
function collectSoon(log: Logger): () => void {
  let running = false;
  return () => {
    if (running) return;
    running = true;
    forgetGarbage()
      .catch((error: unknown) => log.warn({ err: errorMessage(error) }, 'cannot run the garbage collector'))
      .finally(() => (running = false));
  };
}
