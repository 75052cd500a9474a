/** A key manager in memory of a test: scripted KMS, fake clock, real store and audit log in a temporary directory. */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { CreateProjectKey, KmsKeyConfig, WatchedProject } from '@lakebase/api';
import { silentLogger } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import { type KmsKey, KmsError, type KmsOutcome, type WrapContext, type WrappedKey } from '@lakebase/kms';
import type { ObjectStore } from '@lakebase/object-store';
import { AuditCopies, type RestoredLog } from './audit/audit-copies.ts';
import type { AuditHead } from './audit/audit-file.ts';
import { AuditLog } from './audit/audit-log.ts';
import { KeyChanges } from './key-changes.ts';
import { type Clock, KeyManager } from './key-manager.ts';
import { KekCache } from './kms/kek-cache.ts';
import { KmsAccess } from './kms/kms-access.ts';
import type { CrashHook } from './store/durable-file.ts';
import { RecordCopies } from './store/record-copies.ts';
import { CopySeal } from './store/sealed-copy.ts';
import { RecordStore } from './store/record-store.ts';

export class FakeClock implements Clock {
  ms: number = Date.parse('2026-01-01T00:00:00Z');
  now(): number {
    return this.ms;
  }
  monotonic(): number {
    return this.ms;
  }
  advance(seconds: number): void {
    this.ms += seconds * 1_000;
  }
}

/** KMS keys by name; each fails as the test says. */
export class ScriptedKms {
  readonly #material = new Map<string, Buffer[]>();
  /** By key name; 'OK' when absent. */
  readonly outcome = new Map<string, KmsOutcome>();
  /** Outcomes of the next calls, before `outcome` counts. */
  next: (KmsOutcome | 'OK' | 'WRONG')[] = [];
  /** Awaited by every call. */
  gate: Promise<void> = Promise.resolve();
  calls = 0;
  /** Versions that may not be used any more, `name/version`. */
  readonly disabled = new Set<string>();

  versions(name: string): Buffer[] {
    let versions = this.#material.get(name);
    if (versions === undefined) this.#material.set(name, (versions = [randomBytes(32)]));
    return versions;
  }
  newVersion(name: string): void {
    this.versions(name).push(randomBytes(32));
  }

  open(config: KmsKeyConfig): KmsKey {
    const name = config.key;
    const aad = (c: WrapContext): Buffer => Buffer.from(JSON.stringify([c.project, c.account, c.purpose, c.kekVersion]));
    const fail = (outcome: KmsOutcome): KmsError => new KmsError(outcome, config.provider, 'Scripted', `scripted ${outcome}`);
    const enter = async (): Promise<'OK' | 'WRONG'> => {
      this.calls++;
      await this.gate;
      const outcome = this.next.shift() ?? this.outcome.get(name) ?? 'OK';
      if (outcome === 'OK' || outcome === 'WRONG') return outcome;
      throw fail(outcome);
    };
    return {
      wrap: async (plain, context) => {
        await enter();
        const versions = this.versions(name);
        const nonce = randomBytes(12);
        const cipher = createCipheriv('aes-256-gcm', versions.at(-1) as Buffer, nonce).setAAD(aad(context));
        const bytes = Buffer.concat([cipher.update(plain), cipher.final()]);
        return {
          blob: Buffer.concat([nonce, cipher.getAuthTag(), bytes]),
          keyId: name,
          keyVersion: String(versions.length),
          algorithm: 'SCRIPTED',
        };
      },
      unwrap: async (wrapped: WrappedKey, context) => {
        if ((await enter()) === 'WRONG') return randomBytes(32);
        if (this.disabled.has(`${name}/${wrapped.keyVersion}`)) throw fail('DENIED');
        const material = this.versions(name)[Number(wrapped.keyVersion) - 1];
        if (material === undefined || wrapped.keyId !== name) throw fail('DENIED');
        const decipher = createDecipheriv('aes-256-gcm', material, wrapped.blob.subarray(0, 12))
          .setAAD(aad(context))
          .setAuthTag(wrapped.blob.subarray(12, 28));
        const plain = decipher.update(wrapped.blob.subarray(28));
        try {
          decipher.final();
        } catch {
          throw fail('DENIED');
        }
        return plain;
      },
      currentVersion: async () => {
        await enter();
        return String(this.versions(name).length);
      },
      close: () => {},
    };
  }
}

export const cmk = (key: string): KmsKeyConfig => ({ provider: 'AWS_KMS', key });
export const binding = (key: string, more: Partial<CreateProjectKey> = {}): CreateProjectKey => ({
  account: 'acc',
  configurationId: `cfg-${key}`,
  kms: cmk(key),
  actor: 'admin',
  ...more,
});

export class Rig {
  readonly dir: string = mkdtempSync(join(tmpdir(), 'lb-km-'));
  readonly clock = new FakeClock();
  readonly kms = new ScriptedKms();
  readonly storageServices = ['sk1', 'pageserver'];
  cache!: KekCache;
  audit!: AuditLog;
  manager!: KeyManager;
  changes!: KeyChanges;
  copies: RecordCopies | undefined;
  auditCopies: AuditCopies | undefined;
  restoredLog: RestoredLog | undefined;
  restored: readonly ProjectUid[] = [];
  readonly told: WatchedProject[] = [];

  /** (Re)starts it on the same directory. A former one is abandoned as a killed process would be. */
  async start(
    options: { hook?: CrashHook; auditProbes?: 'each' | 'summary'; objects?: ObjectStore; segmentBytes?: number } = {},
  ): Promise<this> {
    const seal = new CopySeal({ rootKeyPath: join(this.dir, 'keys', 'root.key') });
    const { objects: store, segmentBytes } = options;
    const log = silentLogger;
    const held = (): boolean => (this.copies?.pending ?? 0) > 0;
    this.auditCopies = store && new AuditCopies({ store, seal, log, held, ...(segmentBytes === undefined ? {} : { segmentBytes }) });
    const auditCopied = (): AuditHead => (this.auditCopies as AuditCopies).copied;
    this.copies = store && new RecordCopies({ store, seal, log, auditCopied });
    this.restoredLog = await this.auditCopies?.restore(join(this.dir, 'audit'));
    this.restored = (await this.copies?.restore(join(this.dir, 'projects'), join(this.dir, 'audit'))) ?? [];
    const records = new RecordStore(join(this.dir, 'projects'), options.hook);
    this.audit = await AuditLog.open({
      dir: join(this.dir, 'audit'),
      log: silentLogger,
      now: () => this.clock.now(),
      expect: records.all().map((r) => r.audit),
      appended: (entry) => this.auditCopies?.noticed(entry),
    });
    this.cache = new KekCache(300_000, () => this.clock.monotonic());
    this.manager = new KeyManager({
      store: records,
      audit: this.audit,
      kms: new KmsAccess({
        env: { rootKeyPath: join(this.dir, 'root.key') },
        timeoutMs: 2_000,
        observe: () => {},
        open: (config) => this.kms.open(config),
      }),
      cache: this.cache,
      clock: this.clock,
      log: silentLogger,
      graceSeconds: 600,
      storageServices: this.storageServices,
      auditProbes: options.auditProbes ?? 'each',
      versionCheckMs: 60_000,
      copies: this.copies,
    });
    for (const record of records.all()) this.copies?.later(record);
    this.auditCopies?.start(this.audit);
    this.changes = new KeyChanges(this.manager);
    this.manager.onChange((project) => this.told.push(project));
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.copies?.close();
    await this.auditCopies?.close();
    await this.audit.close();
    rmSync(this.dir, { recursive: true, force: true });
  }
}
