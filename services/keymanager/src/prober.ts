/** Asks every project's KMS in turn, for ever. Invariants: each project has one probe under way at most and its next one `intervalMs` (±10 %)
 *  after the last; projects of one CMK wait for each other beyond a few at a time, so that a KMS that hangs delays nobody else's; what one
 *  project learns about a CMK going away, the others under it ask for at once. */
import { type Logger, errorMessage } from '@lakebase/base';
import { keyUsable } from '@lakebase/api';
import type { ProjectUid } from '@lakebase/ids';
import type { KeyChanges } from './key-changes.ts';
import { olderThan } from './key-changes.ts';
import { type KeyManager, SELF } from './key-manager.ts';
import { WRAPS_MAX } from './data-keys.ts';
import type { ProjectState } from './project-state.ts';
import { currentKek } from './store/project-record.ts';

const AT_ONCE_PER_CMK = 8;
const TICK_MS = 1_000;
const DAY_MS = 86_400_000;
const ROTATION_RETRY_MS = 60_000;
/** A probe is late when so many intervals, and what two calls of a KMS may take, have gone by. */
const OVERDUE_INTERVALS = 3;
const OVERDUE_MS = 10_000;

export interface ProberOptions {
  readonly manager: KeyManager;
  readonly changes: KeyChanges;
  readonly log: Logger;
  readonly intervalMs: number;
  readonly rotateKekDays: number;
  readonly random?: () => number;
}

export class Prober {
  readonly #o: ProberOptions;
  readonly #timers = new Map<ProjectUid, NodeJS.Timeout>();
  readonly #byCmk = new Map<string, { running: number; waiting: (() => void)[] }>();
  readonly #notRotatedBefore = new Map<ProjectUid, number>();
  #ticker: NodeJS.Timeout | undefined;
  #stopped = false;
  #unsubscribe = (): void => {};
  /** State each project had when its CMK's other projects were last told. */
  readonly #usable = new Map<ProjectUid, boolean>();

  constructor(options: ProberOptions) {
    this.#o = options;
  }

  start(): void {
    const { manager } = this.#o;
    this.#unsubscribe = manager.onChange(({ project, state }) => {
      const p = manager.peek(project);
      if (p === undefined) return;
      if (!this.#timers.has(project)) this.#schedule(p, this.#interval());
      const was = this.#usable.get(project);
      this.#usable.set(project, keyUsable(state));
      if (was === true && state === 'REVOKED') this.#others(p);
    });
    for (const p of manager.projects()) {
      this.#usable.set(p.project, p.usable);
      this.#schedule(p, 0);
    }
    this.#ticker = setInterval(
      () => void this.tick().catch((e: unknown) => this.#o.log.error({ err: errorMessage(e) }, 'tick failed')),
      TICK_MS,
    );
  }

  stop(): void {
    this.#stopped = true;
    this.#unsubscribe();
    clearInterval(this.#ticker);
    for (const timer of this.#timers.values()) clearTimeout(timer);
  }

  #interval(): number {
    return this.#o.intervalMs * (0.9 + 0.2 * (this.#o.random ?? Math.random)());
  }

  #schedule(p: ProjectState, ms: number): void {
    if (this.#stopped || p.state === 'SHREDDED') return;
    clearTimeout(this.#timers.get(p.project));
    this.#timers.set(
      p.project,
      setTimeout(() => void this.#turn(p), ms),
    );
  }

  #others(p: ProjectState): void {
    const { provider, key } = p.record.kms;
    for (const other of this.#o.manager.projects())
      if (other !== p && other.usable && other.record.kms.provider === provider && other.record.kms.key === key) this.#schedule(other, 0);
  }

  async #turn(p: ProjectState): Promise<void> {
    const cmk = `${p.record.kms.provider} ${p.record.kms.key}`;
    await this.#enter(cmk);
    try {
      await this.#o.manager.probe(p.project);
      if (p.state === 'ACTIVE') await this.#version(p);
    } catch (error) {
      this.#o.log.error({ project: p.project, err: errorMessage(error) }, 'a probe failed in a way that says nothing about the key');
    } finally {
      this.#leave(cmk);
      this.#schedule(p, this.#interval());
    }
  }

  /** A newer version of the CMK: the KEKs are wrapped with it, so that the old one may be disabled. */
  async #version(p: ProjectState): Promise<void> {
    const { manager, changes, log } = this.#o;
    const now = manager.o.clock.monotonic();
    if (now - p.versionCheckedAt < manager.o.versionCheckMs) return;
    p.versionCheckedAt = now;
    let newest: string;
    try {
      newest = await manager.o.kms.currentVersion(p.record.kms);
    } catch (error) {
      return log.debug({ project: p.project, err: errorMessage(error) }, 'the KMS does not say which version of the key is current');
    }
    const stale = p.record.keks.filter((k) => k.wrapped !== null && k.keyVersion !== '' && k.keyVersion !== newest);
    if (newest === '' || stale.length === 0) return;
    log.info({ project: p.project, version: newest, keks: stale.length }, 'the customer key has a newer version: wrapping the KEKs again');
    await changes.rewrapKek(p.project, SELF);
  }

  /** What time alone brings about: ends of graces, old caches, late probes, scheduled rotations. Once a second; tests call it. */
  async tick(): Promise<void> {
    const { manager, changes, log } = this.#o;
    manager.tick();
    for (const p of manager.projects()) {
      manager.overdue(p, this.#o.intervalMs * OVERDUE_INTERVALS + OVERDUE_MS);
      const why = this.#rotationDue(p);
      const now = manager.o.clock.monotonic();
      if (why === undefined || now < (this.#notRotatedBefore.get(p.project) ?? 0)) continue;
      // Also while it runs; a key that may unwrap but not wrap fails every time.
      this.#notRotatedBefore.set(p.project, now + ROTATION_RETRY_MS);
      try {
        await changes.rotate(p.project, why);
      } catch (error) {
        log.warn({ project: p.project, err: errorMessage(error) }, 'scheduled rotation failed; trying again in a minute');
      }
    }
  }

  #rotationDue(p: ProjectState): string | undefined {
    if (p.state !== 'ACTIVE' || currentKek(p.record) === undefined) return undefined;
    if (p.wraps > WRAPS_MAX) return 'limit of wraps';
    const { rotateKekDays, manager } = this.#o;
    return rotateKekDays > 0 && olderThan(p, rotateKekDays * DAY_MS, manager.o.clock.now()) ? 'schedule' : undefined;
  }

  async #enter(cmk: string): Promise<void> {
    const gate = this.#byCmk.get(cmk) ?? { running: 0, waiting: [] };
    this.#byCmk.set(cmk, gate);
    if (gate.running >= AT_ONCE_PER_CMK) await new Promise<void>((resolve) => gate.waiting.push(resolve));
    else gate.running++;
  }
  #leave(cmk: string): void {
    const gate = this.#byCmk.get(cmk);
    const next = gate?.waiting.shift();
    if (next !== undefined) next();
    else if (gate !== undefined && --gate.running === 0) this.#byCmk.delete(cmk);
  }
}
