/** One project as the key manager holds it: the stored record, and what is known since it was stored. */
import { type KeyState, type ProjectKeyStatus, type WatchedProject, keyUsable } from '@lakebase/api';
import { LakebaseError, SerialQueue } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import type { KeyHealth } from './health.ts';
import { type ProjectRecord, type ServiceProgress, currentKek } from './store/project-record.ts';

export class ProjectState {
  /** As on disk. */
  record: ProjectRecord;
  /** Ahead of the record's for as long as it cannot be written: a full disk must not delay a revocation. */
  health: KeyHealth;
  lastCheck: string | null = null;
  lastSuccess: string | null;
  /** Changes of KEKs and binding, one at a time. Probes are not among them. */
  readonly changes = new SerialQueue();
  /** A probe that is under way; asking again joins it. */
  probing: Promise<void> | undefined;
  /** On the clock that does not jump: the last probe that ended, and the last look at the CMK's version. */
  checkedAt = 0;
  versionCheckedAt = Number.NEGATIVE_INFINITY;
  /** DEKs wrapped by the current KEK, counted from what the record reserved. */
  wraps: number;
  /** Successful probes that have no audit line yet. */
  unreported: { count: number; since: string } | undefined;

  /** Of re-encryption, by service: reports since the start. */
  readonly progress = new Map<string, ServiceProgress>();

  constructor(record: ProjectRecord) {
    this.record = record;
    this.health = record.health;
    this.lastSuccess = record.lastSuccess;
    this.wraps = currentKek(record)?.wrapsReserved ?? 0;
  }

  get project(): ProjectUid {
    return this.record.project;
  }
  get state(): KeyState {
    return this.health.state;
  }
  get usable(): boolean {
    return keyUsable(this.health.state);
  }

  requireUsable(): void {
    if (!this.usable) throw new LakebaseError('KEY_REVOKED', `the key of project ${this.project} is ${this.state}: ${this.health.reason}`);
  }

  get watched(): WatchedProject {
    return {
      project: this.project,
      state: this.state,
      reason: this.health.reason,
      kekVersion: currentKek(this.record)?.version ?? this.record.keks.length,
      ...(this.record.reEncryption === undefined ? {} : { reEncryptBelow: this.record.reEncryption.below }),
    };
  }

  /** `required`: the services that have to finish a re-encryption. */
  statusFor(required: readonly string[]): ProjectKeyStatus {
    const { record, health } = this;
    const services = { ...Object.fromEntries(this.progress), ...record.reEncryption?.services };
    return {
      project: record.project,
      account: record.account,
      configurationId: record.configurationId,
      provider: record.kms.provider,
      key: record.kms.key,
      state: health.state,
      reason: health.reason,
      keks: record.keks.map(({ version, createTime, keyId, keyVersion, state }) => ({ version, createTime, keyId, keyVersion, state })),
      lastCheck: this.lastCheck,
      lastSuccess: this.lastSuccess,
      history: health.history,
      graceSeconds: record.graceSeconds,
      ...(record.reEncryption === undefined
        ? {}
        : { reEncryption: { ...record.reEncryption, services, waitingFor: required.filter((s) => services[s]?.finished !== true) } }),
    };
  }
}
