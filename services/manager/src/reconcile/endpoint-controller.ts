/** One endpoint's compute: start on demand, suspend when idle, restart when it died.
 *  Invariants: starts and stops of one endpoint never overlap (one queue); all callers of wake() share one start; a compute's id is
 *  recorded before it is asked for, and the one before it is stopped first, so two are never wanted at once. */
import type { ComputeSpec, ComputeStatus, WokenEndpoint } from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue, backoffDelay, errorMessage, isCode, sleep } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import type { FarEnd, PageserverAddress } from '../far-end.ts';
import { ignoreNotFound, isTransient } from '../far-end.ts';
import type { Database } from '../metadata/database.ts';
import { newComputeId } from '../model/names.ts';
import { databaseSpec, forgetSecret, knownRoleNames, pendingCatalog, rememberSecret, roleSpec, setApplied } from '../store/catalog.ts';
import type { Pending } from '../store/catalog.ts';
import { type EndpointRow, endpointByUid, setActive, setIdle, setLastActive, setLastError, setStarting } from '../store/endpoints.ts';
import { walForStart, type walOf } from './membership.ts';

export type Phase = 'IDLE' | 'STARTING' | 'ACTIVE' | 'STOPPING';

export interface ControllerContext {
  readonly db: Database;
  readonly far: FarEnd;
  /** Whom computes of the project ask for pages. */
  readonly pageserver: (project: ProjectUid) => Promise<PageserverAddress>;
  readonly log: Logger;
  /** Throws KEY_REVOKED when the project's data may not be used. */
  requireKey(project: ProjectUid): void;
  /** Resolves when the endpoint's project can be used. */
  whenReady(row: EndpointRow): Promise<void>;
  /** Called after every change of phase, so that polling can be rescheduled. */
  phaseChanged(): void;
  /** Called when a compute is up: changes asked for during the start are carried out now. */
  started(row: EndpointRow): void;
}

/** One wake keeps trying this long while the reason is a service that does not answer; the client is held meanwhile. */
const WAKE_MS_MAX = 60_000;
/** Attempts when the reason looks permanent. */
const HARD_ATTEMPTS_MAX = 2;
/** A compute that dies this soon after its start counts as a failed start. Short: somebody who kills computes is no broken start. */
const EARLY_DEATH_MS = 3_000;
/** Delay after an early death at most: short enough that clients wait it out and see nothing. */
const DEATH_BACKOFF_MS_MAX = 2_000;
/** An observation younger than this is trusted without asking again. */
const FRESH_MS = 500;
/** A connection just let through must find the compute there. */
const WAKE_GRACE_MS = 5_000;

export class EndpointController {
  readonly uid: string;
  readonly #c: ControllerContext;
  readonly #log: Logger;
  readonly #queue = new SerialQueue();
  #phase: Phase = 'IDLE';
  #compute: ComputeStatus | undefined;
  /** Id recorded as wanted, running or not. */
  #computeId: string | undefined;
  #flight: Promise<WokenEndpoint> | undefined;
  #verify: Promise<void> | undefined;
  #activeSince = 0;
  #observedAt = 0;
  #lastActive = 0;
  #lastWake = 0;
  #failures = 0;
  #notBefore = 0;
  #lastError: LakebaseError | undefined;
  /** Null: never suspended. */
  #suspendAfterMs: number | null;
  #closed = false;

  constructor(context: ControllerContext, row: EndpointRow) {
    this.#c = context;
    this.uid = row.uid;
    this.#log = context.log.child({ endpoint: row.uid });
    this.#suspendAfterMs = row.suspend_timeout_seconds === null ? null : row.suspend_timeout_seconds * 1000;
    this.#computeId = row.compute_id ?? undefined;
  }

  get phase(): Phase {
    return this.#phase;
  }
  get computeId(): string | undefined {
    return this.#computeId;
  }
  get suspendAfterMs(): number | null {
    return this.#suspendAfterMs;
  }
  get lastError(): string | null {
    return this.#lastError?.message ?? null;
  }
  /** Status of the running compute; undefined unless ACTIVE. */
  get running(): ComputeStatus | undefined {
    return this.#phase === 'ACTIVE' ? this.#compute : undefined;
  }

  /** When something was last seen active, or a connection came; undefined before the first. */
  get lastActive(): Date | undefined {
    const at = Math.max(this.#lastActive, this.#lastWake);
    return at === 0 ? undefined : new Date(at);
  }

  setSuspendTimeout(seconds: number | null): void {
    this.#suspendAfterMs = seconds === null ? null : seconds * 1000;
    this.#c.phaseChanged();
  }

  /** Resolves when a compute accepts connections. */
  async wake(): Promise<WokenEndpoint> {
    this.#lastWake = Date.now();
    if (this.#closed) throw new LakebaseError('CLOSED', 'the Manager is stopping');
    if (this.#phase === 'ACTIVE') await this.#verifyAlive();
    if (this.#phase === 'ACTIVE') return this.#woken();
    this.#flight ??= this.#queue.run(() => this.#start()).finally(() => (this.#flight = undefined));
    return this.#flight;
  }

  /** Resolves when no compute runs. `idle` looks once more whether it is still so. */
  suspend(reason: 'idle' | 'asked' | 'stopping', mode: 'fast' | 'immediate' = 'fast'): Promise<void> {
    if (reason === 'stopping') this.#closed = true;
    return this.#queue.run(() => this.#stop(reason, mode));
  }

  /** Called with every look at the compute host. `lookedAt` is when the look began. */
  observe(status: ComputeStatus | undefined, lookedAt: number): void {
    if (this.#phase !== 'ACTIVE' || lookedAt < this.#activeSince) return;
    if (status === undefined || status.state === 'STOPPED' || status.state === 'FAILED' || status.state === 'STOPPING')
      return this.#died(status);
    this.#noteStatus(status, lookedAt);
    const idleMs = Date.now() - Math.max(this.#lastActive, this.#activeSince, this.#lastWake);
    const quiet = this.#suspendAfterMs !== null && !status.activity.active && idleMs >= this.#suspendAfterMs;
    if (quiet && Date.now() - this.#lastWake >= Math.min(WAKE_GRACE_MS, this.#suspendAfterMs as number))
      this.suspend('idle').catch((error) => this.#log.warn({ err: errorMessage(error) }, 'suspend failed'));
  }

  /** Takes over what runs after a restart of the Manager. `status`: what the compute host says about the recorded compute. */
  async adopt(row: EndpointRow, status: ComputeStatus | undefined): Promise<void> {
    if (row.compute_id === null) return;
    if (status?.state === 'RUNNING' && status.socketDir !== null && !row.disabled) {
      this.#setRunning(status);
      await setActive(this.#c.db.local, this.uid, status.computeId);
      this.#log.info({ compute: status.computeId }, 'adopted a running compute');
      this.#c.started(row);
      return;
    }
    // Starting, stopping, failed or gone: stop it for certain. A client that waited for it comes again and wakes a fresh one.
    await this.#queue.run(() => this.#clearOld(row.compute_id));
    const recent = Date.now() - (row.last_active_time?.getTime() ?? 0) < (this.#suspendAfterMs ?? Infinity);
    if (row.state === 'ACTIVE' && recent && !row.disabled) void this.wake().catch(() => {});
  }

  async #start(): Promise<WokenEndpoint> {
    if (this.#phase === 'ACTIVE') return this.#woken();
    const started = Date.now();
    await this.#respectBackoff();
    for (let attempt = 0, hard = 0; ; attempt++) {
      if (this.#closed) throw new LakebaseError('CLOSED', 'the Manager is stopping');
      try {
        const woken = await this.#attempt(started);
        this.#lastError = undefined;
        return woken;
      } catch (error) {
        this.#phase = 'IDLE';
        this.#c.phaseChanged();
        if (isRefusal(error)) throw error;
        this.#log.warn({ attempt, err: errorMessage(error) }, 'start failed');
        if (!isTransient(error)) hard++;
        const delay = backoffDelay(attempt, { baseMs: 100 });
        if (hard >= HARD_ATTEMPTS_MAX || Date.now() + delay - started > WAKE_MS_MAX) return this.#giveUp(error);
        await sleep(delay);
      }
    }
  }

  async #attempt(startedAt: number): Promise<WokenEndpoint> {
    const row = await endpointByUid(this.#c.db, this.uid);
    if (row === undefined || row.project_state === 'DELETING') throw new LakebaseError('NOT_FOUND', 'the endpoint is deleted');
    if (row.disabled) throw new LakebaseError('CONFLICT', 'the endpoint is disabled: enable it before connecting');
    this.#phase = 'STARTING';
    this.#c.phaseChanged();
    if (row.project_state !== 'READY') await this.#c.whenReady(row);
    this.#c.requireKey(row.project_uid);
    await this.#clearOld(row.compute_id);
    const computeId = newComputeId();
    this.#computeId = computeId;
    await setStarting(this.#c.db.local, this.uid, computeId);
    const pending = await pendingCatalog(this.#c.db, row.timeline_id);
    const pageserver = await this.#c.pageserver(row.project_uid);
    const wal = await walForStart(this.#c, row.timeline_id);
    const status = await this.#c.far.computeHost.start(computeId, this.#spec(row, pending, pageserver, wal));
    if (status.state !== 'RUNNING' || status.socketDir === null)
      throw new LakebaseError('UNAVAILABLE', status.error ?? `the compute is ${status.state}`);
    this.#setRunning(status);
    this.#log.info({ compute: computeId, ms: Date.now() - startedAt, stages: status.stages }, 'compute started');
    // The client can go on meanwhile: a kill in between only repeats idempotent work. The queue keeps the order of what is written.
    void this.#queue
      .run(async () => {
        if (this.#computeId !== computeId) return;
        await setActive(this.#c.db.local, this.uid, computeId);
        // The project may have moved while it started.
        const now = await this.#c.pageserver(row.project_uid);
        if (now.httpUrl !== pageserver.httpUrl) await this.#c.far.computeHost.change(computeId, { pageserver: now });
        await this.#markApplied(row, pending);
        this.#c.started(row);
      })
      .catch((error) => this.#log.warn({ err: errorMessage(error) }, 'cannot record the start; the next look repeats it'));
    return this.#woken();
  }

  #spec(row: EndpointRow, pending: Pending, pageserver: PageserverAddress, wal: Awaited<ReturnType<typeof walOf>>): ComputeSpec {
    return {
      projectUid: row.project_uid,
      timelineId: row.timeline_id,
      endpointId: row.uid,
      pgVersion: row.pg_version,
      systemId: row.system_id,
      ...wal,
      pageserver,
      // Only what no compute has carried out yet: SQL may have changed the rest since. Drops go through a running compute, where a
      // refusal (the role owns objects) can be reported instead of failing the start.
      roles: pending.roles.filter((r) => !r.deleting).map(roleSpec),
      databases: pending.databases.filter((d) => !d.deleting).map(databaseSpec),
      settings: row.pg_settings,
    };
  }

  async #markApplied(row: EndpointRow, pending: Pending): Promise<void> {
    for (const r of pending.roles) if (!r.deleting) await setApplied(this.#c.db.local, 'role', row.timeline_id, r.role_id, r.revision);
    for (const d of pending.databases)
      if (!d.deleting) await setApplied(this.#c.db.local, 'database', row.timeline_id, d.database_id, d.revision);
  }

  /** No compute recorded earlier may be left when a new one is asked for. Immediate: its commits are in the quorum already. */
  async #clearOld(computeId: string | null): Promise<void> {
    if (computeId === null) return;
    await ignoreNotFound(this.#c.far.computeHost.stop(computeId, 'immediate'));
    await setIdle(this.#c.db.local, this.uid, computeId, this.#lastError?.message ?? null);
    if (this.#computeId === computeId) this.#computeId = undefined;
  }

  async #stop(reason: 'idle' | 'asked' | 'stopping', mode: 'fast' | 'immediate'): Promise<void> {
    if (this.#phase !== 'ACTIVE' || this.#computeId === undefined) {
      if (this.#computeId !== undefined && reason !== 'idle') await this.#clearOld(this.#computeId);
      return;
    }
    const computeId = this.#computeId;
    if (reason === 'idle' && !(await this.#stillIdle(computeId))) return;
    this.#phase = 'STOPPING';
    this.#c.phaseChanged();
    const began = Date.now();
    try {
      if (mode === 'fast') await this.#rememberRoles(computeId);
      await this.#stopCompute(computeId, mode);
      await setLastActive(this.#c.db.local, this.uid, new Date(Math.max(this.#lastActive, this.#activeSince)));
      await setIdle(this.#c.db.local, this.uid, computeId, null);
      this.#computeId = undefined;
      this.#log.info({ compute: computeId, reason, ms: Date.now() - began }, 'compute suspended');
    } finally {
      // When the stop failed the id stays recorded, and the next start stops it first.
      this.#compute = undefined;
      this.#phase = 'IDLE';
      this.#c.phaseChanged();
    }
  }

  async #stopCompute(computeId: string, mode: 'fast' | 'immediate'): Promise<void> {
    try {
      await ignoreNotFound(this.#c.far.computeHost.stop(computeId, mode));
    } catch (error) {
      if (mode === 'immediate') throw error;
      this.#log.warn({ compute: computeId, err: errorMessage(error) }, 'fast stop failed; stopping at once');
      await ignoreNotFound(this.#c.far.computeHost.stop(computeId, 'immediate'));
    }
  }

  async #stillIdle(computeId: string): Promise<boolean> {
    const asked = Date.now();
    try {
      const status = await this.#c.far.computeHost.status(computeId, true);
      this.#noteStatus(status, asked);
      const idleMs = Date.now() - Math.max(this.#lastActive, this.#lastWake);
      return !status.activity.active && this.#suspendAfterMs !== null && idleMs >= this.#suspendAfterMs;
    } catch (error) {
      // Nobody can say: leave it alone until the next look.
      this.#log.warn({ err: errorMessage(error) }, 'cannot see whether the compute is idle');
      return false;
    }
  }

  /** SQL may have changed passwords: ask once more before nobody can be asked, so that log-ins find the truth while suspended. */
  async #rememberRoles(computeId: string): Promise<void> {
    const row = await endpointByUid(this.#c.db, this.uid);
    if (row === undefined) return;
    for (const name of await knownRoleNames(this.#c.db, row.timeline_id)) {
      try {
        await rememberSecret(this.#c.db.local, row.timeline_id, await this.#c.far.computeHost.role(computeId, name));
      } catch (error) {
        if (!isCode(error, 'NOT_FOUND')) return;
        await forgetSecret(this.#c.db.local, row.timeline_id, name);
      }
    }
  }

  #setRunning(status: ComputeStatus): void {
    this.#compute = status;
    this.#computeId = status.computeId;
    this.#phase = 'ACTIVE';
    this.#activeSince = Date.now();
    this.#noteStatus(status, this.#activeSince);
    this.#c.phaseChanged();
  }

  #noteStatus(status: ComputeStatus, at: number): void {
    this.#compute = status;
    this.#observedAt = at;
    if (status.activity.active) this.#lastActive = Math.max(this.#lastActive, at);
    else if (status.activity.lastActiveAt !== null) this.#lastActive = Math.max(this.#lastActive, Date.parse(status.activity.lastActiveAt));
    if (this.#failures > 0 && Date.now() - this.#activeSince > EARLY_DEATH_MS) this.#failures = 0;
  }

  #died(status: ComputeStatus | undefined): void {
    const computeId = this.#computeId as string;
    const reason = status?.error ?? (status === undefined ? 'the compute is gone' : `the compute is ${status.state}`);
    this.#log.warn({ compute: computeId, reason }, 'compute died');
    this.#phase = 'IDLE';
    this.#compute = undefined;
    if (Date.now() - this.#activeSince < EARLY_DEATH_MS)
      this.#failed(new LakebaseError('UNAVAILABLE', `the compute died soon after its start: ${reason}`), DEATH_BACKOFF_MS_MAX);
    this.#c.phaseChanged();
    // It was active and nobody suspended it: start it again at once; its clients are about to come back.
    void this.wake().catch((error) => this.#log.warn({ err: errorMessage(error) }, 'restart failed; the next connection tries again'));
  }

  /** An old observation is not enough to send a client to a socket: look, once for all who ask meanwhile. */
  async #verifyAlive(): Promise<void> {
    if (Date.now() - this.#observedAt < FRESH_MS) return;
    this.#verify ??= (async () => {
      const asked = Date.now();
      const computeId = this.#computeId as string;
      try {
        const status = await this.#c.far.computeHost.status(computeId);
        if (this.#computeId === computeId) this.observe(status, asked);
      } catch (error) {
        // A compute host that does not answer says nothing about its computes.
        if (isCode(error, 'NOT_FOUND') && this.#computeId === computeId) this.observe(undefined, asked);
      }
    })().finally(() => (this.#verify = undefined));
    await this.#verify;
  }

  #woken(): WokenEndpoint {
    const s = this.#compute as ComputeStatus;
    return { endpointId: this.uid, computeId: s.computeId, socketDir: s.socketDir as string, port: s.port, stages: s.stages };
  }

  #failed(error: unknown, maxMs = 30_000): void {
    this.#lastError = error instanceof LakebaseError ? error : new LakebaseError('INTERNAL', errorMessage(error));
    this.#notBefore = Date.now() + backoffDelay(this.#failures++, { baseMs: 250, maxMs });
  }

  async #giveUp(error: unknown): Promise<never> {
    this.#failed(error);
    const last = this.#lastError as LakebaseError;
    await setLastError(this.#c.db.local, this.uid, last.message).catch(() => {});
    throw last;
  }

  /** Callers in a long back-off get the reason now; a short one is waited out. */
  async #respectBackoff(): Promise<void> {
    const waitMs = this.#notBefore - Date.now();
    if (waitMs <= 0) return;
    if (waitMs > 3_000)
      throw new LakebaseError(
        'UNAVAILABLE',
        `${this.#lastError?.message ?? 'the last start failed'} (next attempt in ${Math.ceil(waitMs / 1000)} s)`,
      );
    await sleep(waitMs);
  }
}

/** Answers that say "no" rather than "not now". */
const isRefusal = (error: unknown): boolean =>
  isCode(error, 'NOT_FOUND') || isCode(error, 'CONFLICT') || isCode(error, 'KEY_REVOKED') || isCode(error, 'CLOSED');
