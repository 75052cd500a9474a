/** The key manager without HTTP and timers: projects, their KEKs, and what may be done with them.
 *  Invariants
 *  - When a project stops being usable its KEKs are wiped and watchers told before anything is written; a result that was computed from a
 *    KEK is given to nobody once the project is not usable any more.
 *  - Every change of keys is one replacement of one file: a kill leaves the old or the new.
 *  - Every use of a CMK and every change is in the audit log before it is answered. */
import type { AuditEntry, CheckRequest, CheckResult, CreateProjectKey, ProjectKeyStatus, WatchedProject } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import { wipe } from '@lakebase/envelope';
import type { ProjectUid } from '@lakebase/ids';
import { KmsError } from '@lakebase/kms';
import type { AuditLog } from './audit/audit-log.ts';
import { type KeyHealth, type ProbeOutcome, afterProbe, afterTime, iso } from './health.ts';
import type { CachedKek, KekCache } from './kms/kek-cache.ts';
import { type KmsAccess, sameKey } from './kms/kms-access.ts';
import { ProjectState } from './project-state.ts';
import { type KekRecord, type ProjectRecord, currentKek } from './store/project-record.ts';
import type { RecordCopies } from './store/record-copies.ts';
import type { RecordStore } from './store/record-store.ts';

export interface Clock {
  /** Wall clock, milliseconds. */
  now(): number;
  /** Never jumps. */
  monotonic(): number;
}

export interface KeyManagerOptions {
  readonly store: RecordStore;
  readonly audit: AuditLog;
  readonly kms: KmsAccess;
  readonly cache: KekCache;
  readonly clock: Clock;
  readonly log: Logger;
  readonly graceSeconds: number;
  readonly storageServices: readonly string[];
  readonly auditProbes: 'each' | 'summary';
  readonly versionCheckMs: number;
  /** In the object store; undefined where there is none. */
  readonly copies?: RecordCopies | undefined;
}

export type ChangeListener = (project: WatchedProject) => void;
const SUMMARY_MS = 300_000;
export const SELF = 'keymanager';

export class KeyManager {
  readonly o: KeyManagerOptions;
  readonly #projects = new Map<ProjectUid, ProjectState>();
  readonly #listeners = new Set<ChangeListener>();
  /** Unwraps under way, so that many requests make one call. */
  readonly #opening = new Map<string, Promise<void>>();

  constructor(options: KeyManagerOptions) {
    this.o = options;
    for (const record of options.store.all()) this.#projects.set(record.project, this.#state(record));
  }

  /** Called on every change of state, KEK version or existence. */
  onChange(listener: ChangeListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  projects(): readonly ProjectState[] {
    return [...this.#projects.values()];
  }
  find(project: ProjectUid): ProjectState {
    const state = this.peek(project);
    if (state === undefined) throw new LakebaseError('NOT_FOUND', `project ${project} has no key`);
    return state;
  }
  /** Throws CORRUPT for a project whose record is damaged. */
  peek(project: ProjectUid): ProjectState | undefined {
    const damage = this.o.store.damaged().get(project);
    if (damage !== undefined) throw damage;
    return this.#projects.get(project);
  }
  async add(record: ProjectRecord): Promise<ProjectState> {
    const first = { ...record, audit: this.o.audit.durableHead };
    await this.o.copies?.put({ ...first, revision: 1 });
    const state = this.#state(this.o.store.put(first));
    this.#projects.set(record.project, state);
    return state;
  }

  #state(record: ProjectRecord): ProjectState {
    const state = new ProjectState(record);
    state.checkedAt = this.o.clock.monotonic();
    return state;
  }

  /** The stored record with `changes`, and the health that is known now. */
  save(p: ProjectState, changes: Partial<ProjectRecord>, destroys = false): void {
    p.record = this.o.store.put(this.#next(p, changes), destroys);
    this.o.copies?.later(p.record);
  }

  /** As {@link save}, of a change that brings key material: that is in the object store before it is current. `check` runs right before. */
  async saveKeys(p: ProjectState, changes: Partial<ProjectRecord>, destroys: boolean, check: () => void): Promise<void> {
    for (let before: ProjectRecord | undefined; before !== p.record; ) {
      before = p.record;
      await this.o.copies?.put({ ...this.#next(p, changes), revision: before.revision + 1 });
    }
    check();
    this.save(p, changes, destroys);
  }

  #next(p: ProjectState, changes: Partial<ProjectRecord>): ProjectRecord {
    return { ...p.record, ...changes, health: p.health, lastSuccess: p.lastSuccess, audit: this.o.audit.durableHead };
  }

  statusOf(p: ProjectState): ProjectKeyStatus {
    return p.statusFor(this.o.storageServices);
  }

  notify(p: ProjectState): void {
    for (const listener of this.#listeners) listener(p.watched);
  }

  audit(
    p: Pick<ProjectRecord, 'project' | 'account'>,
    actor: string,
    action: string,
    result: AuditEntry['result'],
    detail: string,
  ): Promise<number> {
    return this.o.audit.record({ actor, action, account: p.account, subject: p.project, result, detail });
  }

  /** For what must not wait for the log, or fail with it: losing a line is told, losing a revocation must not happen. */
  #auditSoon(p: ProjectState, actor: string, action: string, result: AuditEntry['result'], detail: string): void {
    const entry = { actor, action, account: p.record.account, subject: p.project, result, detail };
    try {
      this.o.audit.append(entry);
    } catch (error) {
      this.o.log.error({ ...entry, err: errorMessage(error) }, 'cannot write an audit line');
    }
  }

  /** One unwrap for real, its outcome applied. Joins one that is under way. */
  async probe(project: ProjectUid, actor: string = SELF): Promise<ProjectKeyStatus> {
    const p = this.find(project);
    p.probing ??= this.#probe(p, actor).finally(() => (p.probing = undefined));
    await p.probing;
    return this.statusOf(p);
  }

  async #probe(p: ProjectState, actor: string): Promise<void> {
    const kek = currentKek(p.record);
    if (kek === undefined) return;
    const { record } = p;
    const attempt = async (): Promise<{ outcome: ProbeOutcome; secret?: Buffer }> => {
      try {
        return { outcome: { kind: 'OK' }, secret: await this.o.kms.unwrap(record, kek) };
      } catch (error) {
        return { outcome: outcomeOf(error) };
      }
    };
    let { outcome, secret } = await attempt();
    if (outcome.kind === 'DENIED') {
      this.#auditSoon(p, actor, 'KMS_UNWRAP', 'DENIED', `probe: ${outcome.reason}; asking once more`);
      ({ outcome, secret } = await attempt());
    }
    try {
      // Another key, or another wrapping, while the KMS was thinking: this answer is about nothing that is still there.
      const now = currentKek(p.record);
      if (now?.version !== kek.version || now.wrapped?.blob !== kek.wrapped?.blob || !sameKey(p.record.kms, record.kms)) return;
      p.lastCheck = iso(this.o.clock.now());
      p.checkedAt = this.o.clock.monotonic();
      if (secret !== undefined) {
        p.lastSuccess = p.lastCheck;
        this.o.cache.put(p.project, kek.version, secret);
      }
      this.#apply(p, afterProbe(p.health, outcome, p.record.graceSeconds * 1_000, this.o.clock.now()));
    } finally {
      wipe(secret);
    }
    this.#auditProbe(p, actor, outcome);
  }

  /** The grace may end, and caches grow old, without a probe. */
  tick(): void {
    this.o.cache.expire();
    for (const p of this.#projects.values()) {
      this.#apply(p, afterTime(p.health, p.record.graceSeconds * 1_000, this.o.clock.now()));
      if (p.unreported !== undefined && this.o.clock.now() - Date.parse(p.unreported.since) >= SUMMARY_MS) this.#summarize(p);
    }
  }

  /** A project whose turn does not come, because its KMS keeps others waiting, is not known to be allowed any more. */
  overdue(p: ProjectState, afterMs: number): void {
    const ms = this.o.clock.monotonic() - p.checkedAt;
    if (p.state !== 'ACTIVE' || ms < afterMs) return;
    const outcome = { kind: 'UNREACHABLE', reason: `the key was not checked for ${Math.round(ms / 1_000)} s` } as const;
    this.#apply(p, afterProbe(p.health, outcome, p.record.graceSeconds * 1_000, this.o.clock.now()));
  }

  #apply(p: ProjectState, next: KeyHealth): void {
    const before = p.health;
    if (next === before) return;
    p.health = next;
    if (!p.usable) this.o.cache.wipe(p.project);
    if (next.state !== before.state || next.reason !== before.reason) this.notify(p);
    try {
      this.save(p, {});
    } catch (error) {
      this.o.log.error(
        { project: p.project, state: next.state, err: errorMessage(error) },
        'cannot store the new state of a key; it is in force, but a restart forgets it',
      );
    }
    if (next.state === before.state) return;
    const level = next.state === 'ACTIVE' ? 'info' : next.state === 'UNREACHABLE' ? 'warn' : 'error';
    this.o.log[level]({ project: p.project, from: before.state, to: next.state, reason: next.reason }, 'state of a project key changed');
    const result = { ACTIVE: 'OK', UNREACHABLE: 'UNREACHABLE', SUSPENDED: 'UNREACHABLE', REVOKED: 'DENIED', SHREDDED: 'OK' } as const;
    this.#auditSoon(
      p,
      SELF,
      'STATE_CHANGE',
      result[next.state],
      `${before.state} to ${next.state}${next.reason === '' ? '' : `: ${next.reason}`}`,
    );
  }

  /** Ends every use of the project's KEKs at once; for shredding. */
  force(p: ProjectState, next: KeyHealth): void {
    p.health = next;
    this.o.cache.wipe(p.project);
    this.notify(p);
  }

  /** After a change of binding proved that the key can be used. */
  proved(p: ProjectState): void {
    p.lastSuccess = p.lastCheck = iso(this.o.clock.now());
    this.#apply(p, afterProbe(p.health, { kind: 'OK' }, 0, this.o.clock.now()));
  }

  #auditProbe(p: ProjectState, actor: string, outcome: ProbeOutcome): void {
    const now = iso(this.o.clock.now());
    if (outcome.kind !== 'OK') return this.#auditSoon(p, actor, 'KMS_UNWRAP', outcome.kind, `probe: ${outcome.reason}`);
    if (this.o.auditProbes === 'summary' && actor === SELF) {
      p.unreported ??= { count: 0, since: now };
      p.unreported.count++;
      return;
    }
    this.#auditSoon(p, actor, 'KMS_UNWRAP', 'OK', `probe of KEK ${p.watched.kekVersion}`);
  }

  #summarize(p: ProjectState): void {
    const { count, since } = p.unreported as NonNullable<ProjectState['unreported']>;
    p.unreported = undefined;
    const detail = `${count} probes of KEK ${p.watched.kekVersion} since ${since}`;
    this.#auditSoon(p, SELF, 'KMS_UNWRAP', 'OK', detail);
  }

  /** KEKs for `use`, which must be synchronous. Versions that do not exist, or are destroyed, are left out. */
  async withKeks<T>(p: ProjectState, versions: Iterable<number>, use: (keks: ReadonlyMap<number, CachedKek>) => T): Promise<T> {
    p.requireUsable();
    const wanted = [...new Set(versions)];
    for (const version of wanted) {
      const kek = p.record.keks[version - 1];
      if (kek !== undefined && kek.wrapped !== null && this.o.cache.get(p.project, version) === undefined) await this.#open(p, kek);
      p.requireUsable();
    }
    // From here to the end of `use` nothing else runs, so nothing is wiped.
    const keks = new Map<number, CachedKek>();
    for (const version of wanted) {
      if ((p.record.keks[version - 1]?.wrapped ?? null) === null) continue;
      const cached = this.o.cache.get(p.project, version);
      if (cached === undefined) throw new LakebaseError('UNAVAILABLE', 'a key was dropped while others were fetched; try again');
      keks.set(version, cached);
    }
    return use(keks);
  }

  async #open(p: ProjectState, kek: KekRecord): Promise<void> {
    const name = `${p.project}/${kek.version}`;
    let opening = this.#opening.get(name);
    if (opening === undefined) {
      opening = this.#openNow(p, kek).finally(() => this.#opening.delete(name));
      this.#opening.set(name, opening);
    }
    await opening;
  }

  async #openNow(p: ProjectState, kek: KekRecord): Promise<void> {
    try {
      const secret = await this.o.kms.unwrap(p.record, kek);
      // Revoked or shredded meanwhile: withKeks looks again, but the cache must not fill up behind the wipe.
      if (p.usable && p.record.keks[kek.version - 1]?.wrapped !== null) this.o.cache.put(p.project, kek.version, secret);
      wipe(secret);
      await this.audit(p.record, SELF, 'KMS_UNWRAP', 'OK', `KEK ${kek.version} for a service`);
    } catch (error) {
      const outcome = outcomeOf(error);
      this.#auditSoon(p, SELF, 'KMS_UNWRAP', outcome.kind, `KEK ${kek.version} for a service: ${errorMessage(error)}`);
      // The probe decides what that means; we only do not wait for its turn.
      void this.probe(p.project).catch((e: unknown) => this.o.log.warn({ project: p.project, err: errorMessage(e) }, 'probe failed'));
      throw error;
    }
  }

  /** A live wrap and unwrap of a throw-away key. */
  async check(request: CheckRequest): Promise<CheckResult> {
    const result = await this.o.kms.check(request.kms, request.account);
    await this.o.audit.record({
      actor: request.actor,
      action: 'KEY_CHECK',
      account: request.account,
      subject: `${request.kms.provider} ${request.kms.key}`,
      result: result.outcome === 'INVALID' ? 'FAILED' : result.outcome,
      detail: result.message,
    });
    return result;
  }

  newRecord(
    project: ProjectUid,
    body: CreateProjectKey,
  ): Pick<ProjectRecord, 'project' | 'account' | 'configurationId' | 'kms' | 'graceSeconds'> {
    return {
      project,
      account: body.account,
      configurationId: body.configurationId,
      kms: body.kms,
      graceSeconds: body.graceSeconds ?? this.o.graceSeconds,
    };
  }

  close(): void {
    this.o.cache.wipeAll();
    this.o.kms.close();
  }
}

/** INVALID of a key that once worked: the KMS did not deny it, so it is ridden out like an outage, with the same end. */
function outcomeOf(error: unknown): Extract<ProbeOutcome, { reason: string }> {
  const denied = error instanceof KmsError && error.outcome === 'DENIED';
  return { kind: denied ? 'DENIED' : 'UNREACHABLE', reason: errorMessage(error) };
}
